//! The link to the control process: sought for ever, logged once for each change.
//!
//! The first control process brings the shared memory. It may die and come again as often as it
//! likes: the workers go on with the memory, and the next one gets it from here.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use culvert_dataplane_config::{Dataplane, Settings};
use culvert_shm::Layout;
use culvert_shm::rendezvous::{Bundle, Link, connect};

/// Name of control's socket in the runtime directory.
const SOCKET_NAME: &str = "shm.sock";
/// Time between two attempts.
const RETRY: Duration = Duration::from_millis(500);

/// The dataplane's end.
pub(super) struct Rendezvous {
    socket: PathBuf,
    layout: Layout,
    link: Option<Link>,
    bundle: Option<Bundle>,
    next_attempt: Instant,
    /// What was logged last, so that the same failure is not logged twice a second.
    last_failure: String,
}

impl Rendezvous {
    /// Not yet connected.
    #[must_use]
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            socket: settings.runtime_dir.join(SOCKET_NAME),
            layout: layout(&settings.dataplane),
            link: None,
            bundle: None,
            next_attempt: Instant::now(),
            last_failure: String::new(),
        }
    }

    /// The shared memory, once a control process has brought it.
    #[must_use]
    pub(super) fn bundle(&self) -> Option<&Bundle> {
        self.bundle.as_ref()
    }

    /// Notices a control process that is gone, and looks for another one when it is time to.
    pub(super) fn turn(&mut self) {
        if self.link.as_ref().is_some_and(Link::is_gone) {
            self.link = None;
            tracing::warn!(
                "the control process is gone; traffic goes on, waiting for the next one"
            );
        }
        if self.link.is_some() || Instant::now() < self.next_attempt {
            return;
        }
        self.next_attempt = Instant::now() + RETRY;
        match connect(&self.socket, self.bundle.as_ref(), &self.layout) {
            Ok((link, bundle)) => {
                let what = if self.bundle.is_some() { "took over" } else { "brought" };
                tracing::info!(socket = %self.socket.display(), "the control process {what} the shared memory");
                self.last_failure.clear();
                (self.link, self.bundle) = (Some(link), Some(bundle));
            }
            Err(error) => {
                let failure = error.to_string();
                if failure != self.last_failure {
                    tracing::warn!("no link to the control process, trying on: {failure}");
                    self.last_failure = failure;
                }
            }
        }
    }
}

/// The tables' sizes, which both processes take from the same configuration.
fn layout(dataplane: &Dataplane) -> Layout {
    Layout {
        workers: dataplane.workers(),
        sa_slots: dataplane.sas,
        policy_slots: dataplane.policies,
        peer_slots: dataplane.peers,
        conn_slots: dataplane.tcp_connections,
        ring_bytes: dataplane.ring_kib * 1024,
    }
}
