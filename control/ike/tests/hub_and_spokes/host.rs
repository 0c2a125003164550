//! What a gateway of the simulation has below its endpoint: SPIs, pairs of CHILD SAs, the peers' paths.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_ike::{
    ChildClaim, ChildId, ChildPath, ChildSa, ConnectionConfig, Host, Identity, IkeSaId,
    InstallError, Instant, Secret,
};

/// Randomness from a seed (splitmix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// An installed pair, and since when packets leave by it: the latest is the one in use.
pub(crate) struct Installed {
    pub(crate) sa: ChildSa,
    pub(crate) enabled: Option<u64>,
}

/// A data plane that remembers what it was told.
pub(crate) struct SimHost {
    pub(crate) rng: Rng,
    pub(crate) address: IpAddr,
    pub(crate) connections: Vec<Arc<ConnectionConfig>>,
    next_spi: u32,
    enabled: u64,
    pub(crate) reserved: BTreeSet<u32>,
    pub(crate) pairs: HashMap<u32, Installed>,
    /// Inbound SPIs by the peer's identity.
    by_peer: HashMap<String, Vec<u32>>,
    pub(crate) paths: HashMap<IkeSaId, ChildPath>,
}

impl SimHost {
    pub(crate) fn new(seed: u64, address: IpAddr, connections: Vec<Arc<ConnectionConfig>>) -> Self {
        Self {
            rng: Rng(seed),
            address,
            connections,
            // Another part of the number space after each crash.
            next_spi: (seed as u32) << 12 | 0x100,
            enabled: 0,
            reserved: BTreeSet::new(),
            pairs: HashMap::new(),
            by_peer: HashMap::new(),
            paths: HashMap::new(),
        }
    }

    /// The pair that packets to this peer take.
    pub(crate) fn outbound(&self, peer: &str) -> Option<&ChildSa> {
        let spis = self.by_peer.get(peer)?;
        let pairs = spis.iter().filter_map(|spi| self.pairs.get(spi));
        pairs.filter(|pair| pair.enabled.is_some()).max_by_key(|pair| pair.enabled).map(|p| &p.sa)
    }

    pub(crate) fn pairs_with(&self, peer: &str) -> usize {
        self.by_peer.get(peer).map_or(0, Vec::len)
    }

    fn enable(&mut self, spi_in: u32) {
        self.enabled += 1;
        let now = self.enabled;
        self.pairs.get_mut(&spi_in).unwrap().enabled = Some(now);
    }
}

impl Host for SimHost {
    fn random(&mut self, out: &mut [u8]) {
        out.fill_with(|| self.rng.next() as u8);
    }

    fn connections(&mut self, local: IpAddr, remote: IpAddr) -> Vec<Arc<ConnectionConfig>> {
        self.connections.iter().filter(|c| c.covers(local, remote)).cloned().collect()
    }

    fn psk(&mut self, _local: &Identity, _remote: &Identity) -> Option<Secret> {
        Some(Secret::new(b"shared".to_vec()))
    }

    fn source_address(&mut self, _remote: IpAddr) -> Option<IpAddr> {
        Some(self.address)
    }

    fn connection(&mut self, name: &str) -> Option<Arc<ConnectionConfig>> {
        self.connections.iter().find(|c| c.name == name).cloned()
    }

    fn claim_spi(&mut self, _ike: IkeSaId, _spi_in: u32) {
        unreachable!("who crashes here forgets everything");
    }

    fn claim_child(&mut self, _claim: &ChildClaim<'_>) -> bool {
        unreachable!("who crashes here forgets everything")
    }

    fn allocate_child(&mut self, _ike: IkeSaId) -> Option<u32> {
        self.next_spi = self.next_spi.wrapping_add(1).max(0x100);
        assert!(!self.pairs.contains_key(&self.next_spi), "SPIs come round");
        assert!(self.reserved.insert(self.next_spi));
        Some(self.next_spi)
    }

    fn release_child(&mut self, spi_in: u32) {
        assert!(self.reserved.remove(&spi_in), "{spi_in:08x} was not reserved");
    }

    fn install_child(&mut self, sa: &ChildSa) -> Result<(), InstallError> {
        assert!(self.reserved.remove(&sa.spi_in), "{:08x} was not reserved", sa.spi_in);
        self.paths.insert(sa.ike, sa.path);
        self.by_peer.entry(sa.remote_id.to_string()).or_default().push(sa.spi_in);
        let pair = Installed { sa: sa.clone(), enabled: None };
        assert!(self.pairs.insert(sa.spi_in, pair).is_none(), "two SAs with one SPI");
        if sa.outbound {
            self.enable(sa.spi_in);
        }
        Ok(())
    }

    fn enable_outbound(&mut self, id: ChildId, spi_in: u32) {
        assert_eq!(self.pairs[&spi_in].sa.id, id);
        self.enable(spi_in);
    }

    fn remove_child(&mut self, id: ChildId, spi_in: u32) {
        let sa = self.pairs.remove(&spi_in).map(|pair| pair.sa).unwrap();
        assert_eq!(sa.id, id);
        let peer = sa.remote_id.to_string();
        if let Some(spis) = self.by_peer.get_mut(&peer) {
            spis.retain(|spi| *spi != spi_in);
        }
    }

    fn set_path(&mut self, ike: IkeSaId, path: &ChildPath) {
        assert!(self.paths.insert(ike, *path).is_some(), "the peer has a CHILD SA");
    }

    fn last_inbound(&mut self, _ike: IkeSaId) -> Option<Instant> {
        None
    }

    fn last_outbound(&mut self, _ike: IkeSaId) -> Option<Instant> {
        None
    }
}
