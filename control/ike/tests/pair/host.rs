//! The host of an endpoint: what a data plane would hold, what is configured, and randomness.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_ike::{
    ChildClaim, ChildId, ChildPath, ChildSa, ConnectionConfig, Host, Identity, IkeSaId,
    InstallError, Instant, Secret,
};

use super::{Rng, crash};

/// What a data plane would hold.
pub(crate) struct TestHost {
    rng: Rng,
    address: IpAddr,
    pub(crate) connections: Vec<Arc<ConnectionConfig>>,
    pub(crate) psk: Vec<(Identity, Secret)>,
    next_spi: u32,
    pub(crate) reserved: BTreeSet<u32>,
    pub(crate) installed: BTreeMap<u32, ChildSa>,
    /// Pairs that packets may leave by, in the order in which they were let: the last is in use.
    pub(crate) outbound: Vec<ChildId>,
    /// Pairs that the peer asked for beside others with the same selectors: as long as those are
    /// there packets stay with them, since the answer may be on its way.
    pub(super) waiting: Vec<ChildId>,
    pub(crate) paths: BTreeMap<IkeSaId, ChildPath>,
    pub(crate) last_inbound: Option<Instant>,
    pub(crate) last_outbound: Option<Instant>,
    /// Refuse to install.
    pub(crate) broken: bool,
    /// What the process before left in the data plane and this one has not claimed.
    pub(super) left: crash::Left,
}

impl TestHost {
    pub(super) fn new(address: IpAddr, seed: u64) -> Self {
        Self {
            rng: Rng(seed),
            address,
            connections: Vec::new(),
            psk: Vec::new(),
            next_spi: 0x1000 * seed as u32,
            reserved: BTreeSet::new(),
            installed: BTreeMap::new(),
            outbound: Vec::new(),
            waiting: Vec::new(),
            paths: BTreeMap::new(),
            last_inbound: None,
            last_outbound: None,
            broken: false,
            left: crash::Left::default(),
        }
    }

    /// Lets packets leave by a pair; whether they could not before.
    fn enable(&mut self, id: ChildId) -> bool {
        let new = !self.outbound.contains(&id);
        if new {
            self.outbound.push(id);
        }
        new
    }

    /// Whether another pair that packets leave by takes the same ones.
    fn is_served(&self, sa: &ChildSa) -> bool {
        let same = |other: &&ChildSa| {
            (&other.remote_id, &other.local_ts, &other.remote_ts)
                == (&sa.remote_id, &sa.local_ts, &sa.remote_ts)
        };
        self.installed.values().filter(same).any(|other| self.outbound.contains(&other.id))
    }

    pub(super) fn begin_sending(&mut self, sa: &ChildSa) {
        if !sa.initiator && self.is_served(sa) {
            self.waiting.push(sa.id);
        } else {
            self.enable(sa.id);
        }
    }

    pub(super) fn drop_child(&mut self, spi_in: u32) -> Option<ChildId> {
        let id = self.installed.remove(&spi_in)?.id;
        self.outbound.retain(|other| *other != id);
        self.waiting.retain(|other| *other != id);
        let served = |id: &ChildId| {
            self.installed.values().find(|sa| sa.id == *id).is_some_and(|sa| self.is_served(sa))
        };
        let (waiting, freed) = self.waiting.iter().partition(|id| served(id));
        self.waiting = waiting;
        self.outbound.extend::<Vec<ChildId>>(freed);
        Some(id)
    }

    /// Other random octets from now on.
    pub(crate) fn reseed(&mut self, seed: u64) {
        self.rng = Rng(seed.wrapping_mul(0x1234_5677) + 99);
    }
}

impl Host for TestHost {
    fn random(&mut self, out: &mut [u8]) {
        out.fill_with(|| self.rng.next() as u8);
    }

    fn connections(&mut self, local: IpAddr, remote: IpAddr) -> Vec<Arc<ConnectionConfig>> {
        self.connections.iter().filter(|c| c.covers(local, remote)).cloned().collect()
    }

    fn connection(&mut self, name: &str) -> Option<Arc<ConnectionConfig>> {
        self.connections.iter().find(|c| c.name == name).cloned()
    }

    fn psk(&mut self, _local: &Identity, remote: &Identity) -> Option<Secret> {
        self.psk.iter().find(|(id, _)| id.same_as(remote)).map(|(_, secret)| secret.clone())
    }

    fn source_address(&mut self, _remote: IpAddr) -> Option<IpAddr> {
        Some(self.address)
    }

    fn allocate_child(&mut self, _ike: IkeSaId) -> Option<u32> {
        self.next_spi += 1;
        self.reserved.insert(self.next_spi);
        Some(self.next_spi)
    }

    fn release_child(&mut self, spi_in: u32) {
        if self.left.unfinished.remove(&spi_in) {
            self.drop_child(spi_in);
            return;
        }
        // A process that died may have come so far before.
        let known = self.reserved.remove(&spi_in) || self.left.crashed;
        assert!(known, "{spi_in:08x} was not reserved");
    }

    fn claim_spi(&mut self, _ike: IkeSaId, spi_in: u32) {
        self.left.claim_spi(spi_in);
    }

    fn claim_child(&mut self, claim: &ChildClaim<'_>) -> bool {
        let known = self
            .installed
            .get(&claim.spi_in)
            .is_some_and(|sa| (sa.id, sa.ike, sa.spi_out) == (claim.id, claim.ike, claim.spi_out));
        if known && claim.outbound && !self.waiting.contains(&claim.id) {
            self.enable(claim.id);
        }
        self.left.installed.remove(&claim.spi_in);
        known
    }

    fn install_child(&mut self, sa: &ChildSa) -> Result<(), InstallError> {
        if self.broken {
            return Err(InstallError("it is told to refuse".into()));
        }
        if self.left.unfinished.remove(&sa.spi_in) {
            self.install_again(sa);
            return Ok(());
        }
        assert!(self.reserved.remove(&sa.spi_in), "{:08x} was not reserved", sa.spi_in);
        assert_eq!(sa.keymat_in.expose().len(), sa.suite.encryption.keymat_len());
        self.paths.insert(sa.ike, sa.path);
        if sa.outbound {
            self.begin_sending(sa);
        }
        assert!(self.installed.insert(sa.spi_in, sa.clone()).is_none());
        Ok(())
    }

    fn enable_outbound(&mut self, id: ChildId, spi_in: u32) {
        assert_eq!(self.installed[&spi_in].id, id);
        assert!(self.enable(id) || self.left.crashed);
    }

    fn remove_child(&mut self, id: ChildId, spi_in: u32) {
        let removed = self.drop_child(spi_in);
        // A process that died may have come so far before.
        assert!(removed == Some(id) || removed.is_none() && self.left.crashed);
    }

    fn set_path(&mut self, ike: IkeSaId, path: &ChildPath) {
        let known = self.paths.insert(ike, *path).is_some() || self.left.crashed;
        assert!(known, "the peer has a CHILD SA");
    }

    fn last_inbound(&mut self, _ike: IkeSaId) -> Option<Instant> {
        self.last_inbound
    }

    fn last_outbound(&mut self, _ike: IkeSaId) -> Option<Instant> {
        self.last_outbound
    }
}
