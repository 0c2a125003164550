//! Processes that die, and what is left of them: the snapshots they saved and the data plane.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use culvert_ike::{ChildSa, Endpoint, EndpointConfig, IkeSaId, Snapshot};

use super::{Pair, Side, TestHost};

/// How far a process comes with what it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Death {
    /// It has acted, and nothing is saved.
    BeforeSave,
    /// It has saved what came of it, and sent nothing.
    BeforeSend,
    /// It has sent everything.
    AfterSend,
}

pub(crate) const DEATHS: [Death; 3] = [Death::BeforeSave, Death::BeforeSend, Death::AfterSend];

/// When processes die.
#[derive(Default)]
pub(crate) struct Plan {
    /// Percent of steps.
    pub(crate) often: u64,
    /// At this step of this side (`true`: A), counted down.
    pub(crate) once: Option<(bool, u32, Death)>,
    pub(crate) deaths: u32,
}

/// What a dead process left in the data plane.
#[derive(Default)]
pub(crate) struct Left {
    pub(super) installed: BTreeSet<u32>,
    reserved: BTreeSet<u32>,
    /// Installed, as far as the exchange under way does not know yet.
    pub(super) unfinished: BTreeSet<u32>,
    /// Whether there was any death.
    pub(super) crashed: bool,
}

impl Left {
    pub(super) fn claim_spi(&mut self, spi_in: u32) {
        self.reserved.remove(&spi_in);
        if self.installed.remove(&spi_in) {
            self.unfinished.insert(spi_in);
        }
    }
}

impl TestHost {
    /// The same SA as the process before installed: another would begin its sequence numbers anew
    /// with the same keys.
    pub(super) fn install_again(&mut self, sa: &ChildSa) {
        let old = self.installed.insert(sa.spi_in, sa.clone()).unwrap();
        assert!(old.keymat_in == sa.keymat_in && old.keymat_out == sa.keymat_out);
        for id in self.outbound.iter_mut().chain(&mut self.waiting).filter(|id| **id == old.id) {
            *id = sa.id;
        }
        if sa.outbound && !self.outbound.contains(&sa.id) && !self.waiting.contains(&sa.id) {
            self.begin_sending(sa);
        }
    }

    /// There may be SAs and SPIs that this host has not given out.
    pub(crate) fn expect_leftovers(&mut self) {
        self.left.crashed = true;
    }

    fn leave(&mut self) {
        self.left.installed = self.installed.keys().copied().collect();
        self.left.reserved = self.reserved.clone();
        self.left.unfinished.clear();
        self.left.crashed = true;
    }

    fn settle(&mut self) {
        for spi_in in std::mem::take(&mut self.left.installed) {
            self.drop_child(spi_in);
        }
        for spi_in in std::mem::take(&mut self.left.reserved) {
            self.reserved.remove(&spi_in);
        }
    }
}

/// What outlives a process.
pub(crate) struct Kept {
    pub(crate) snapshots: BTreeMap<IkeSaId, Vec<u8>>,
    last_name: u64,
    config: EndpointConfig,
    /// Each IV of each key, and each message by its Message ID, with what went out under it.
    seen: HashMap<Vec<u8>, Vec<u8>>,
}

impl Kept {
    pub(super) fn new(config: &EndpointConfig) -> Self {
        let (snapshots, seen) = (BTreeMap::new(), HashMap::new());
        Self { snapshots, last_name: 0, config: config.clone(), seen }
    }

    /// RFC 7296, 2.1 and 2.2: a Message ID goes with one message, whoever sends it once more. RFC
    /// 5282, 3.1: so does an IV.
    pub(super) fn check(&mut self, octets: &[u8]) {
        const SK: u8 = 46;
        const SKF: u8 = 53;
        let iv = match octets[16] {
            SK => 32,
            SKF => 36,
            _ => return,
        };
        // SPIs and the flag name the key.
        let key = [&octets[..16], &octets[19..20]].concat();
        let direction = [&octets[..16], &[octets[19] & 8]].concat();
        let by_iv = [&direction, &octets[iv..iv + 8]].concat();
        let by_id = [&key, &octets[16..17], &octets[20..24], &octets[32..iv]].concat();
        for name in [by_iv, by_id] {
            let first = self.seen.entry(name).or_insert_with(|| octets.to_vec());
            assert!(first == octets, "an IV or a Message ID was used for two messages");
        }
    }

    pub(crate) fn forget_seen(&mut self) {
        self.seen.clear();
    }
}

impl Side {
    pub(super) fn save(&mut self) {
        let mut buffer = vec![0; 64 * 1024];
        while let Some(snapshot) = self.endpoint.poll_snapshot(&mut buffer) {
            match snapshot {
                Snapshot::Of(ike, octets) => self.kept.snapshots.insert(ike, octets.to_vec()),
                Snapshot::Gone(ike) => self.kept.snapshots.remove(&ike),
                Snapshot::TooLong(ike) => panic!("the snapshot of {ike} is too long"),
            };
        }
        self.kept.last_name = self.endpoint.last_name();
    }

    /// Another process in place of this one.
    pub(crate) fn begin_anew(&mut self) {
        self.endpoint = Endpoint::new(self.kept.config.clone());
        self.endpoint.skip_names(self.kept.last_name);
        self.host.leave();
        for (ike, octets) in &self.kept.snapshots {
            assert_eq!(self.endpoint.restore(octets, &mut self.host), Ok(*ike));
        }
        self.host.settle();
    }
}

impl Pair {
    /// Lets a side die, if it is time to. Whether what it was doing comes again.
    pub(super) fn crash(&mut self, a: bool) -> bool {
        let plan = &mut self.net.crash;
        let death = match &mut plan.once {
            Some((of_a, left, death)) if *of_a == a => {
                *left = left.wrapping_sub(1);
                (*left == 0).then_some(*death)
            }
            _ if plan.often > 0 && self.net.rng.percent(plan.often) => {
                Some(DEATHS[self.net.rng.next() as usize % DEATHS.len()])
            }
            _ => None,
        };
        let Some(death) = death else { return false };
        self.net.crash.deaths += 1;
        match death {
            Death::BeforeSave => {}
            Death::BeforeSend => self.side(a).save(),
            Death::AfterSend => self.collect(a),
        }
        self.restart(a);
        death != Death::AfterSend
    }

    /// Another process in place of this one, which goes on at once.
    pub(crate) fn restart(&mut self, a: bool) {
        let now = self.now;
        let side = self.side(a);
        side.begin_anew();
        side.endpoint.resume(now, &mut side.host);
        let open: Vec<_> = side.endpoint.sas().filter_map(|sa| sa.path.conn).collect();
        for conn in open {
            if !self.tcp.contains_key(&conn) {
                let side = self.side(a);
                side.endpoint.tcp_closed(now, conn, &mut side.host);
            }
        }
        self.collect(a);
    }

    /// The number of steps that a side takes in this time: the plan's countdown tells it.
    pub(crate) fn count_steps(&mut self, a: bool, time: Duration) -> u32 {
        self.net.crash.once = Some((a, u32::MAX, Death::AfterSend));
        self.run(time);
        let (_, left, _) = self.net.crash.once.take().unwrap();
        u32::MAX - left
    }
}
