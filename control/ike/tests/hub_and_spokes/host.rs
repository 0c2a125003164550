//! What a gateway of the simulation has below its endpoint: SPIs, pairs of CHILD SAs, the peers' paths.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    ChildClaim, ChildId, ChildPath, ChildSa, ConnectionConfig, Host, Identity, IkeSaId,
    InstallError, Instant, Secret,
};

/// How long an answer may be on its way, as `control` takes it.
const ANSWER: Duration = Duration::from_secs(1);

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
    /// Pairs that peers asked for beside others, and until when packets stay with those: the answer
    /// may be on its way.
    waiting: Vec<(Instant, u32)>,
    pub(crate) paths: HashMap<IkeSaId, ChildPath>,
    /// The world's time.
    pub(crate) now: Instant,
    left: Left,
}

/// What a control process that died has left and the one that follows has not claimed.
#[derive(Default)]
struct Left {
    pairs: BTreeSet<u32>,
    reserved: BTreeSet<u32>,
    /// Installed, as far as the exchange under way does not know yet.
    unfinished: BTreeSet<u32>,
    /// Claimed, but the process that died had given them up.
    gone: BTreeSet<u32>,
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
            waiting: Vec::new(),
            paths: HashMap::new(),
            now: Instant::default(),
            left: Left::default(),
        }
    }

    /// The pairs with this peer.
    pub(crate) fn with_peer(&self, peer: &str) -> impl Iterator<Item = &Installed> {
        let spis = self.by_peer.get(peer).into_iter().flatten();
        spis.filter_map(|spi| self.pairs.get(spi))
    }

    /// The pair that packets to this peer take.
    pub(crate) fn outbound(&self, peer: &str) -> Option<&ChildSa> {
        let pairs = self.with_peer(peer).filter(|pair| pair.enabled.is_some());
        pairs.max_by_key(|pair| pair.enabled).map(|p| &p.sa)
    }

    pub(crate) fn pairs_with(&self, peer: &str) -> usize {
        self.by_peer.get(peer).map_or(0, Vec::len)
    }

    /// Whether a process that died had given this pair up, and the next one still knows it: it has
    /// been told of that, and deletes it as soon as the peer answers.
    pub(crate) fn is_lost(&self, spi_in: u32) -> bool {
        self.left.gone.contains(&spi_in)
    }

    fn enable(&mut self, spi_in: u32) {
        self.enabled += 1;
        let now = self.enabled;
        self.pairs.get_mut(&spi_in).unwrap().enabled = Some(now);
    }

    /// Lets the pairs carry packets that have waited long enough.
    pub(crate) fn end_waiting(&mut self, now: Instant) {
        self.now = now;
        for (_, spi_in) in
            self.waiting.extract_if(.., |(until, _)| *until <= now).collect::<Vec<_>>()
        {
            self.enable(spi_in);
        }
    }

    fn drop_pair(&mut self, spi_in: u32) -> Option<ChildSa> {
        let Installed { sa, enabled } = self.pairs.remove(&spi_in)?;
        let peer = sa.remote_id.to_string();
        if let Some(spis) = self.by_peer.get_mut(&peer) {
            spis.retain(|spi| *spi != spi_in);
        }
        self.waiting.retain(|(_, spi)| *spi != spi_in);
        // What waited for its end.
        let freed = |(_, spi): &mut (Instant, u32)| {
            enabled.is_some() && self.pairs[spi].sa.remote_id == sa.remote_id
        };
        for (_, spi) in self.waiting.extract_if(.., freed).collect::<Vec<_>>() {
            self.enable(spi);
        }
        Some(sa)
    }

    /// The control process is another one.
    pub(crate) fn leave(&mut self) {
        self.left = Left {
            pairs: self.pairs.keys().copied().collect(),
            reserved: self.reserved.clone(),
            ..Left::default()
        };
    }

    /// It has claimed what is its own: the rest goes.
    pub(crate) fn end_unclaimed(&mut self, of: impl Fn(IkeSaId) -> bool) {
        for spi_in in std::mem::take(&mut self.left.pairs) {
            self.drop_pair(spi_in);
        }
        for spi_in in std::mem::take(&mut self.left.reserved) {
            self.reserved.remove(&spi_in);
        }
        self.paths.retain(|ike, _| of(*ike));
    }

    /// The pair that the process before installed: another would begin its sequence numbers anew.
    fn install_again(&mut self, sa: &ChildSa) {
        let pair = self.pairs.get_mut(&sa.spi_in).unwrap();
        assert!(pair.sa.keymat_in == sa.keymat_in && pair.sa.keymat_out == sa.keymat_out);
        pair.sa = sa.clone();
        self.paths.insert(sa.ike, sa.path);
        if sa.outbound && pair.enabled.is_none() {
            self.begin_sending(sa);
        }
    }

    fn begin_sending(&mut self, sa: &ChildSa) {
        let served = self.outbound(&sa.remote_id.to_string()).is_some();
        if served && !sa.initiator {
            self.waiting.retain(|(_, spi)| *spi != sa.spi_in);
            self.waiting.push((self.now + ANSWER, sa.spi_in));
        } else {
            self.enable(sa.spi_in);
        }
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

    fn claim_spi(&mut self, _ike: IkeSaId, spi_in: u32) {
        if self.left.pairs.remove(&spi_in) {
            self.left.unfinished.insert(spi_in);
        } else if !self.left.reserved.remove(&spi_in) {
            self.left.gone.insert(spi_in);
        }
    }

    fn claim_child(&mut self, claim: &ChildClaim<'_>) -> bool {
        if !self.left.pairs.remove(&claim.spi_in) {
            self.left.gone.insert(claim.spi_in);
            return false;
        }
        let pair = &self.pairs[&claim.spi_in];
        assert_eq!(
            (pair.sa.id, pair.sa.ike, pair.sa.spi_out),
            (claim.id, claim.ike, claim.spi_out)
        );
        let waits = self.waiting.iter().any(|(_, spi)| *spi == claim.spi_in);
        if claim.outbound && pair.enabled.is_none() && !waits {
            self.enable(claim.spi_in);
        }
        true
    }

    fn allocate_child(&mut self, _ike: IkeSaId) -> Option<u32> {
        self.next_spi = self.next_spi.wrapping_add(1).max(0x100);
        assert!(!self.pairs.contains_key(&self.next_spi), "SPIs come round");
        assert!(self.reserved.insert(self.next_spi));
        Some(self.next_spi)
    }

    fn release_child(&mut self, spi_in: u32) {
        if self.left.unfinished.remove(&spi_in) {
            self.drop_pair(spi_in);
            return;
        }
        let known = self.reserved.remove(&spi_in) || self.left.gone.remove(&spi_in);
        assert!(known, "{spi_in:08x} was not reserved");
    }

    fn install_child(&mut self, sa: &ChildSa) -> Result<(), InstallError> {
        if self.left.unfinished.remove(&sa.spi_in) {
            self.install_again(sa);
            return Ok(());
        }
        assert!(self.reserved.remove(&sa.spi_in), "{:08x} was not reserved", sa.spi_in);
        self.paths.insert(sa.ike, sa.path);
        let pair = Installed { sa: sa.clone(), enabled: None };
        assert!(self.pairs.insert(sa.spi_in, pair).is_none(), "two SAs with one SPI");
        if sa.outbound {
            self.begin_sending(sa);
        }
        self.by_peer.entry(sa.remote_id.to_string()).or_default().push(sa.spi_in);
        Ok(())
    }

    fn enable_outbound(&mut self, id: ChildId, spi_in: u32) {
        if self.left.gone.contains(&spi_in) {
            return;
        }
        assert_eq!(self.pairs[&spi_in].sa.id, id);
        self.enable(spi_in);
    }

    fn remove_child(&mut self, id: ChildId, spi_in: u32) {
        match self.drop_pair(spi_in) {
            Some(sa) => assert_eq!(sa.id, id),
            None => assert!(self.left.gone.remove(&spi_in), "{spi_in:08x} is not there"),
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
