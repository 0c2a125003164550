//! Children that traffic sets up.

use culvert_api::Happening;
use culvert_ike::{ChildConfig, Instant};

use super::Engine;

impl Engine {
    /// Brings the traps in the shared memory up to date.
    pub(super) fn set_traps(&mut self) {
        let Some(view) = self.services.forwarding.view_mut() else { return };
        for (connection, children) in self.starts.changed_traps() {
            let configured = self.services.config.connection(&connection);
            let configured = configured.map(|found| found.ike.children.as_slice());
            let wanted = configured.unwrap_or_default().iter().map(std::sync::Arc::as_ref);
            let wanted: Vec<&ChildConfig> =
                wanted.filter(|child| children.contains(&child.name)).collect();
            self.traps.set(view, &connection, &wanted);
        }
    }

    /// There is traffic for a child without SA.
    pub(super) fn acquire(&mut self, now: Instant, policy: u32) {
        // The trap may just have been taken away.
        let Some((connection, child)) = self.traps.find(policy).cloned() else { return };
        if self.starts.acquire(&connection, &child, now) {
            self.note(Some(&connection), None, Happening::Acquired { child });
        }
    }
}
