//! Policies without SA: packets that meet one make a worker ask for an SA (`start_action = "trap"`).
//!
//! They are as wide as the child's configured selectors and come after all policies of SAs of the
//! same width, so that they take packets only while there is no SA for them. Those of an earlier
//! control process go when its memory is taken up; this one sets its own.

use std::collections::HashMap;

use culvert_ike::ChildConfig;
use culvert_shm::{ControlView, Policy, SlotRef};

use crate::policies::{self, Match, WIDTH_SHIFT};

/// A trapped child.
struct Trap {
    child: String,
    matches: Vec<Match>,
    slots: Vec<SlotRef>,
}

/// All traps, by connection.
#[derive(Default)]
pub struct Traps {
    by_connection: HashMap<String, Vec<Trap>>,
    /// Connection and child by the slot of a policy.
    by_slot: HashMap<u32, (String, String)>,
}

impl Traps {
    /// Sets traps for exactly these children of a connection. Those that stand already stay.
    pub fn set(&mut self, view: &mut ControlView, connection: &str, children: &[&ChildConfig]) {
        let mut wanted: Vec<(String, Vec<Match>)> = Vec::new();
        for child in children {
            // The configuration has been checked: they make policies, and not too many.
            if let Ok(matches) = policies::matches(&child.local_ts, &child.remote_ts) {
                wanted.push((child.name.clone(), matches));
            }
        }
        let present = self.by_connection.remove(connection).unwrap_or_default();
        let (mut traps, gone): (Vec<Trap>, Vec<Trap>) = present.into_iter().partition(|trap| {
            wanted.iter().any(|(child, matches)| *child == trap.child && *matches == trap.matches)
        });
        for slot in gone.into_iter().flat_map(|trap| trap.slots) {
            self.by_slot.remove(&slot.index);
            view.retire_policy(slot);
        }
        wanted.retain(|(child, _)| traps.iter().all(|trap| trap.child != *child));
        for (child, matches) in wanted {
            let slots = install(view, connection, &child, &matches);
            let names = (connection.to_owned(), child.clone());
            self.by_slot.extend(slots.iter().map(|slot| (slot.index, names.clone())));
            traps.push(Trap { child, matches, slots });
        }
        if !traps.is_empty() {
            self.by_connection.insert(connection.to_owned(), traps);
        }
    }

    /// Connection and child of the trap in this slot.
    #[must_use]
    pub fn find(&self, policy: u32) -> Option<&(String, String)> {
        self.by_slot.get(&policy)
    }
}

fn install(
    view: &mut ControlView,
    connection: &str,
    child: &str,
    matches: &[Match],
) -> Vec<SlotRef> {
    let mut slots = Vec::new();
    for found in matches {
        let policy = Policy {
            remote: found.remote,
            remote_ports: found.remote_ports,
            local: found.local,
            sa: Policy::TRAP,
            owner: 0,
            // The last of its width.
            priority: found.width() << WIDTH_SHIFT | ((1 << WIDTH_SHIFT) - 1),
        };
        match view.install_policy(&policy) {
            Ok(slot) => slots.push(slot),
            Err(error) => {
                tracing::error!(connection, child, %error, "traffic cannot set it up");
                break;
            }
        }
    }
    slots
}
