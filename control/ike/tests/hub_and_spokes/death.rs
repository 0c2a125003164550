//! Control processes that die, and those that come back in their place: of the one before they have
//! its snapshots and its data plane.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use culvert_ike::{ConnToken, Endpoint, IkeSaId, Instant, Snapshot};

use crate::host::SimHost;
use crate::world::{HUB, Node, What, World};

/// How long a connection may be without an IKE SA, as `control` takes it.
const UNUSED_MAX: Duration = Duration::from_secs(5);

/// How far a process comes with what it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// It has acted, and nothing is saved.
    BeforeSave,
    /// It has saved one of the IKE SAs that it acted on.
    SavedInPart,
    /// It has saved what came of it, and sent nothing.
    BeforeSend,
    /// It has sent everything.
    AfterSend,
}

pub(crate) const DEATHS: [Death; 4] =
    [Death::BeforeSave, Death::SavedInPart, Death::BeforeSend, Death::AfterSend];

/// What outlives a control process, and when it dies.
#[derive(Default)]
pub(crate) struct Kept {
    snapshots: BTreeMap<IkeSaId, Vec<u8>>,
    last_name: u64,
    /// It dies so many steps from now.
    dies: Option<(u64, Death)>,
    /// It is dead, and what came meanwhile waits.
    waiting: Option<Vec<What>>,
}

/// What went out under each IV of each key and under each Message ID: SPIs and flags, number, hash.
#[derive(Default)]
pub(crate) struct Sent(HashMap<([u8; 17], u64), u64>);

impl Sent {
    /// RFC 7296, 2.1 and 2.2: a Message ID goes with one message, whoever sends it once more. RFC
    /// 5282, 3.1: so does an IV.
    pub(crate) fn check(&mut self, octets: &[u8]) {
        const SK: u8 = 46;
        if octets[16] != SK {
            return;
        }
        let number = |from: &[u8]| from.iter().fold(0, |n, octet| n << 8 | u64::from(*octet));
        let mut hasher = DefaultHasher::new();
        octets.hash(&mut hasher);
        let hash = hasher.finish();
        // The I flag names the key; bit 0, which no message has set, marks what is an IV.
        let by_iv = (octets[19] & 8 | 1, number(&octets[32..40]));
        let by_id = (octets[19], number(&octets[20..24]));
        for (flags, number) in [by_iv, by_id] {
            let mut key = [flags; 17];
            key[..16].copy_from_slice(&octets[..16]);
            let first = *self.0.entry((key, number)).or_insert(hash);
            assert_eq!(first, hash, "an IV or a Message ID is used for two messages");
        }
    }

    /// Forgets all: those of IKE SAs that are gone are too many.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}

impl Kept {
    pub(crate) const fn is_away(&self) -> bool {
        self.waiting.is_some()
    }

    pub(crate) fn wait(&mut self, what: What) {
        self.waiting.get_or_insert_default().push(what);
    }

    pub(crate) fn snapshots(&self) -> usize {
        self.snapshots.len()
    }

    /// Whether this step is the last one.
    fn death(&mut self) -> Option<Death> {
        let (left, death) = self.dies.as_mut()?;
        *left -= 1;
        let death = (*left == 0).then_some(*death)?;
        self.dies = None;
        Some(death)
    }
}

impl Node {
    /// Saves what has changed, of at most so many IKE SAs.
    pub(crate) fn save(&mut self, most: usize) {
        let mut buffer = vec![0; 1 << 16];
        self.kept.last_name = self.endpoint.last_name();
        for _ in 0..most {
            match self.endpoint.poll_snapshot(&mut buffer) {
                None => return,
                Some(Snapshot::Of(ike, octets)) => {
                    self.kept.snapshots.insert(ike, octets.to_vec());
                }
                Some(Snapshot::Gone(ike)) => {
                    self.kept.snapshots.remove(&ike);
                }
                Some(Snapshot::TooLong(ike)) => panic!("the snapshot of {ike} is too long"),
            }
        }
    }

    /// Another process in place of this one.
    fn begin_anew(&mut self) {
        self.endpoint = Endpoint::new(self.limits.clone());
        self.endpoint.skip_names(self.kept.last_name);
        self.host.leave();
        for (ike, octets) in &self.kept.snapshots {
            assert_eq!(self.endpoint.restore(octets, &mut self.host), Ok(*ike));
        }
        let endpoint = &self.endpoint;
        self.host.end_unclaimed(|ike| endpoint.sa(ike).is_some());
    }
}

impl World {
    /// Lets a control process die so many steps from now.
    pub(crate) fn doom(&mut self, n: usize, steps: u64, death: Death) {
        self.nodes[n].kept.dies = Some((steps, death));
    }

    /// Kills a control process; the next one comes then.
    pub(crate) fn kill(&mut self, n: usize, back: Instant) {
        if !self.nodes[n].kept.is_away() {
            self.nodes[n].save(usize::MAX);
            self.nodes[n].kept.waiting = Some(Vec::new());
            self.set_timer(n, Some(back));
        }
    }

    /// Lets a gateway act at its own time, and takes what it wants sent.
    pub(crate) fn act<R>(
        &mut self,
        n: usize,
        mut act: impl FnMut(&mut Endpoint, Instant, &mut SimHost) -> R,
    ) -> R {
        if self.nodes[n].kept.is_away() {
            self.come_back(n);
        }
        let death = self.nodes[n].kept.death();
        if death.is_some() {
            self.nodes[n].save(usize::MAX);
        }
        let now = self.nodes[n].local(self.now);
        self.nodes[n].host.end_waiting(self.now);
        let node = &mut self.nodes[n];
        let mut result = act(&mut node.endpoint, now, &mut node.host);
        match death {
            None => return self.collect(n, result),
            Some(Death::BeforeSave) => {}
            Some(Death::SavedInPart) => node.save(1),
            Some(Death::BeforeSend) => node.save(usize::MAX),
            Some(Death::AfterSend) => {
                node.save(usize::MAX);
                self.collect(n, ());
            }
        }
        self.come_back(n);
        if death != Some(Death::AfterSend) {
            // What a process died over comes again to the next one.
            let node = &mut self.nodes[n];
            result = act(&mut node.endpoint, now, &mut node.host);
        }
        self.collect(n, result)
    }

    /// A process goes on with what the one before has left, as `control` does.
    fn come_back(&mut self, n: usize) {
        *self.events.entry("deaths").or_default() += 1;
        self.nodes[n].begin_anew();
        let (now, node) = (self.nodes[n].local(self.now), &mut self.nodes[n]);
        if n == HUB {
            // The data plane may have followed its peers meanwhile.
            let mut paths: Vec<_> = node.host.paths.clone().into_iter().collect();
            paths.sort_unstable_by_key(|(ike, _)| *ike);
            for (ike, path) in paths {
                node.endpoint.path_moved(now, ike, &path, &mut node.host);
            }
        }
        node.endpoint.resume(now, &mut node.host);
        let used: HashSet<_> = node.endpoint.sas().filter_map(|sa| sa.path.conn).collect();
        let mut gone: Vec<_> = used.iter().filter(|conn| self.is_lost(n, **conn)).collect();
        gone.sort_unstable();
        for conn in gone {
            let node = &mut self.nodes[n];
            node.endpoint.tcp_closed(now, *conn, &mut node.host);
        }
        for conn in self.connections_of(n).filter(|conn| !used.contains(conn)).collect::<Vec<_>>() {
            self.put(self.now + UNUSED_MAX, n, What::Unused(conn));
        }
        for what in self.nodes[n].kept.waiting.take().unwrap_or_default() {
            self.put(self.now, n, what);
        }
        self.collect(n, ());
    }

    /// A connection that no IKE SA uses, some time after the process that may have known it died.
    pub(crate) fn close_unused(&mut self, n: usize, conn: ConnToken) {
        let used = self.nodes[n].endpoint.sas().any(|sa| sa.path.conn == Some(conn));
        if !used && !self.is_lost(n, conn) {
            self.close(n, conn);
        }
    }
}
