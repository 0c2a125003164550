//! The bell: how a worker wakes control when it waits, and only then.
//!
//! Before it sleeps, control arms the bell ([`crate::ControlView::arm_bell`]) and looks at the
//! rings once more. A worker that has pushed records looks at the end of its batch
//! ([`crate::WorkerView::ring_bell`]) whether the bell was armed since it last rang, and only
//! then writes to the eventfd. Both sides put a full fence between their write and their look, so
//! one of them sees the other: no wake-up is lost, and a busy control costs no system call.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::io::Errno;

/// An eventfd from the dataplane to control.
pub struct Bell {
    fd: OwnedFd,
}

impl Bell {
    /// Makes a new one, silent and non-blocking.
    ///
    /// # Errors
    /// The kernel's, when it has no descriptors left.
    pub fn new() -> Result<Bell, Errno> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Bell { fd })
    }

    /// The bell that another process handed over.
    pub fn from_fd(fd: OwnedFd) -> Bell {
        Bell { fd }
    }

    /// The descriptor, to wait for it to become readable or to hand it over.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Rings. It never blocks: a bell that has rung 2^64 - 2 times unheard stays rung.
    pub(crate) fn ring(&self) {
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Makes it silent again; whether it had rung.
    pub fn silence(&self) -> bool {
        let mut count = [0; 8];
        rustix::io::read(&self.fd, &mut count).is_ok()
    }
}
