//! State that an idle connection does not need: no memory until it is first changed, and none any
//! more once it is idle again.
//!
//! What connections need again and again goes from one to the next through [`Spares`], the last one
//! first: no call of the allocator, and what the next connection gets is still in the caches.

use std::ops::{Deref, DerefMut};

/// Idle states that a worker keeps of each kind.
const SPARES_MAX: usize = 256;
/// Room for entries that an idle state keeps in each of its lists.
pub(crate) const ENTRIES_KEPT: usize = 64;

/// A type with a state in which there is nothing to remember.
pub(crate) trait Idle: Sized + 'static {
    /// That state.
    const IDLE: &'static Self;

    /// The same, to be changed.
    fn idle() -> Self;

    /// Whether this is that state, as far as anybody asks.
    fn is_idle(&self) -> bool;

    /// Makes it that state altogether, with room for at most [`ENTRIES_KEPT`] entries in each list.
    fn reset(&mut self) {
        *self = Self::idle();
    }
}

/// Idle states for the next connection that needs one.
#[derive(Debug)]
pub(crate) struct Spares<T>(Vec<Box<T>>);

impl<T> Spares<T> {
    pub(crate) fn new() -> Self {
        Self(Vec::with_capacity(SPARES_MAX))
    }
}

/// A `T` that takes memory only while it is not idle.
#[derive(Debug)]
pub(crate) struct Lazy<T>(Option<Box<T>>);

impl<T: Idle> Lazy<T> {
    pub(crate) const fn new() -> Self {
        Self(None)
    }

    /// Takes memory for a change, from the spares if there are any.
    pub(crate) fn hold(&mut self, spares: &mut Spares<T>) {
        if self.0.is_none() {
            self.0 = Some(spares.0.pop().unwrap_or_else(|| Box::new(T::idle())));
        }
    }

    /// Gives the memory to the spares if it is idle.
    pub(crate) fn release(&mut self, spares: &mut Spares<T>) {
        if let Some(mut held) = self.0.take_if(|held| held.is_idle())
            && spares.0.len() < SPARES_MAX
        {
            held.reset();
            spares.0.push(held);
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
