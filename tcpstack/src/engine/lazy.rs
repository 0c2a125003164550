//! State that an idle connection does not need: no memory until it is first changed, and none any
//! more once it is idle again.

use std::ops::{Deref, DerefMut};

/// A type with a state in which there is nothing to remember.
pub(crate) trait Idle: Sized + 'static {
    /// That state.
    const IDLE: &'static Self;

    /// The same, to be changed.
    fn idle() -> Self;

    /// Whether this is that state, as far as anybody asks.
    fn is_idle(&self) -> bool;
}

/// A `T` that takes memory only while it is not idle.
#[derive(Debug)]
pub(crate) struct Lazy<T>(Option<Box<T>>);

impl<T: Idle> Lazy<T> {
    pub(crate) const fn new() -> Self {
        Self(None)
    }

    /// Gives the memory back if it is idle.
    pub(crate) fn shrink(&mut self) {
        if self.is_idle() {
            self.0 = None;
        }
    }
}

impl<T: Idle> Deref for Lazy<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or(T::IDLE)
    }
}

impl<T: Idle> DerefMut for Lazy<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_with(|| Box::new(T::idle()))
    }
}
