//! Connections that have not yet shown the stream prefix, in the order of their deadlines.
//!
//! All wait equally long, so a list through preallocated entries is sorted by itself: arming,
//! disarming and the question who is due cost the same at one connection and at ten thousand.

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Entry {
    previous: u32,
    next: u32,
    deadline_ns: u64,
    armed: bool,
}

const DISARMED: Entry = Entry { previous: NONE, next: NONE, deadline_ns: 0, armed: false };

/// Deadlines by connection index.
pub(crate) struct PrefixWatch {
    entries: Box<[Entry]>,
    first: u32,
    last: u32,
}

impl PrefixWatch {
    /// A watch over the connection indices below `connections`.
    #[must_use]
    pub(crate) fn new(connections: u32) -> Self {
        let entries = vec![DISARMED; connections as usize].into_boxed_slice();
        Self { entries, first: NONE, last: NONE }
    }

    /// Watches connection `index` until `deadline_ns`, which must not lie before the deadline armed
    /// last: now plus a constant keeps that.
    pub(crate) fn arm(&mut self, index: u32, deadline_ns: u64) {
        self.disarm(index);
        let previous = self.last;
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        *entry = Entry { previous, next: NONE, deadline_ns, armed: true };
        match self.entries.get_mut(previous as usize) {
            Some(entry) => entry.next = index,
            None => self.first = index,
        }
        self.last = index;
    }

    /// Stops watching connection `index`; nothing happens when it was not watched.
    pub(crate) fn disarm(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        let Entry { previous, next, armed, .. } = std::mem::replace(entry, DISARMED);
        if !armed {
            return;
        }
        match self.entries.get_mut(previous as usize) {
            Some(entry) => entry.next = next,
            None => self.first = next,
        }
        match self.entries.get_mut(next as usize) {
            Some(entry) => entry.previous = previous,
            None => self.last = previous,
        }
    }

    /// Takes one connection whose deadline has passed.
    pub(crate) fn pop_due(&mut self, now_ns: u64) -> Option<u32> {
        let first = self.first;
        let due = self.entries.get(first as usize)?.deadline_ns <= now_ns;
        due.then(|| {
            self.disarm(first);
            first
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_waited_longest_is_due_first_and_only_once() {
        let mut watch = PrefixWatch::new(4);
        watch.arm(2, 10);
        watch.arm(0, 20);
        watch.arm(3, 30);
        watch.disarm(0);
        assert_eq!(watch.pop_due(9), None);
        assert_eq!(watch.pop_due(30), Some(2));
        assert_eq!(watch.pop_due(30), Some(3));
        assert_eq!(watch.pop_due(u64::MAX), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// The list agrees with a plain vector of deadlines, whatever is armed and disarmed.
        #[test]
        fn agrees_with_a_plain_list(steps in prop::collection::vec((0u32..8, 0u8..3), 0..60)) {
            let mut watch = PrefixWatch::new(8);
            let mut plain: Vec<(u32, u64)> = Vec::new();
            for (now, (index, action)) in steps.into_iter().enumerate() {
                let now = now as u64;
                match action {
                    0 => {
                        plain.retain(|&(other, _)| other != index);
                        plain.push((index, now + 5));
                        watch.arm(index, now + 5);
                    }
                    1 => {
                        plain.retain(|&(other, _)| other != index);
                        watch.disarm(index);
                    }
                    _ => {
                        let due = plain.first().filter(|&&(_, deadline)| deadline <= now).copied();
                        plain.retain(|entry| Some(*entry) != due);
                        prop_assert_eq!(watch.pop_due(now), due.map(|(index, _)| index));
                    }
                }
            }
        }
    }
}
