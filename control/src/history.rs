//! What happened: remembered for a while, and told to whoever follows.

use std::collections::VecDeque;

use culvert_api::{Event, Happening};
use culvert_ike::IkeSaId;
use tokio::sync::broadcast;

use crate::clock;

/// Events remembered.
pub const REMEMBERED_MAX: usize = 4096;
/// Events that a client that follows may lag behind.
const LAG_MAX: usize = 1024;

/// The latest events, and the way to those who follow.
pub struct History {
    latest: VecDeque<Event>,
    followers: broadcast::Sender<Event>,
}

impl Default for History {
    fn default() -> Self {
        Self { latest: VecDeque::new(), followers: broadcast::channel(LAG_MAX).0 }
    }
}

impl History {
    /// Notes an event.
    pub fn note(
        &mut self,
        connection: Option<&str>,
        ike: Option<IkeSaId>,
        peer: Option<String>,
        happening: Happening,
    ) {
        let connection = connection.filter(|name| !name.is_empty()).map(ToOwned::to_owned);
        let number = ike.map(|IkeSaId(number)| number);
        let event = Event { time_ms: clock::unix_ms(), connection, ike: number, peer, happening };
        if self.latest.len() == REMEMBERED_MAX {
            self.latest.pop_front();
        }
        // That nobody follows is no error.
        let _ = self.followers.send(event.clone());
        self.latest.push_back(event);
    }

    /// The events remembered, oldest first, and from then on the new ones.
    #[must_use]
    pub fn follow(&self) -> (Vec<Event>, broadcast::Receiver<Event>) {
        (self.latest.iter().cloned().collect(), self.followers.subscribe())
    }
}
