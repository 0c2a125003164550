//! Many tunnels through random faults, dying control processes among them, for weeks of virtual
//! time, from a seed.
//!
//! After each step no two SAs share an SPI and nothing grows; after each calm hour both ends agree on
//! every tunnel. `CULVERT_SEEDS=first..end` runs other seeds than the few of every day.

#![allow(clippy::unwrap_used, clippy::panic, reason = "the harness is test code too")]

#[allow(dead_code, reason = "other tests use the rest of the harness")]
mod pair;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use culvert_ike::{
    ConnectionConfig, IkeSaId, IkeState, Instant, Lifetime, PathChoice, Secret, TransportChoice,
};
use pair::{Pair, Rng, Side, child, config, mirror};

const TUNNELS: usize = 8;
const DAYS: u64 = 10;

/// The configuration of tunnel `n`: transports, lifetimes and options differ.
fn tunnel(n: usize) -> ConnectionConfig {
    let mut a = config();
    a.name = format!("tunnel{n}");
    a.local_id = format!("a{n}.test").parse().unwrap();
    a.transport = [TransportChoice::Udp, TransportChoice::Tcp, TransportChoice::Auto][n % 3];
    a.mobike = n.is_multiple_of(2);
    a.reauth_time = (n == 5).then(|| Duration::from_secs(50_000));
    a.dpd_delay = Some(Duration::from_secs(300));
    a.tcp_response_timeout = Duration::from_secs(30);
    let (own, other) = (format!("10.1.{n}.0/24"), format!("10.2.{n}.0/24"));
    let proposal = if n.is_multiple_of(4) { "aes128gcm16-x25519-esn" } else { "aes128gcm16-esn" };
    let mut net = child(&[&own], &[&other], proposal);
    net.lifetime = Lifetime::tenths(Duration::from_secs(3600));
    a.children = vec![Arc::new(net)];
    a
}

/// A child that was asked for is not asked for again so soon.
const PATIENCE: Duration = Duration::from_secs(600);

struct Simulation {
    pair: Pair,
    rng: Rng,
    /// When a child was last asked for.
    asked: BTreeMap<IkeSaId, Instant>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let tunnels: Vec<_> = (0..TUNNELS).map(tunnel).collect();
        let mut pair = Pair::new(tunnels[0].clone(), mirror(&tunnels[0]));
        pair.net.rng = Rng(seed);
        pair.a.host.reseed(seed);
        pair.b.host.reseed(seed + 1_000_000);
        let psk = |id: &ConnectionConfig| (id.local_id.clone(), Secret::new(b"shared".to_vec()));
        pair.b.host.psk = tunnels.iter().map(psk).collect();
        pair.b.host.connections = tunnels.iter().map(|t| Arc::new(mirror(t))).collect();
        pair.a.host.connections = tunnels.into_iter().map(Arc::new).collect();
        Self { pair, rng: Rng(seed + 2_000_000), asked: BTreeMap::new() }
    }

    /// As a control process does: what is to stand and does not is begun.
    fn keep_up(&mut self) {
        for connection in self.pair.a.host.connections.clone() {
            let mut sas = self.pair.a.endpoint.sas().filter(|sa| sa.connection == connection.name);
            let first = sas.next();
            drop(sas);
            match first {
                None => {
                    let a = &mut self.pair.a;
                    a.endpoint.initiate(self.pair.now, &connection, None, &mut a.host).unwrap();
                }
                Some(sa) if sa.state == IkeState::Established && sa.children.is_empty() => {
                    let (now, a) = (self.pair.now, &mut self.pair.a);
                    if self.asked.get(&sa.id).is_none_or(|at| now.since(*at) > PATIENCE) {
                        self.asked.insert(sa.id, now);
                        let _ = a.endpoint.initiate_child(now, sa.id, "net", &mut a.host);
                    }
                }
                Some(_) => {}
            }
        }
    }

    fn any_sa(&mut self, of_a: bool) -> Option<IkeSaId> {
        let side = if of_a { &self.pair.a } else { &self.pair.b };
        let up = side.endpoint.sas().filter(|sa| sa.state == IkeState::Established);
        let ids: Vec<_> = up.map(|sa| sa.id).collect();
        (!ids.is_empty()).then(|| ids[self.rng.next() as usize % ids.len()])
    }

    /// Something happens.
    fn fault(&mut self) {
        let net = &mut self.pair.net;
        match self.rng.next() % 14 {
            0 => (net.loss, net.repeated, net.reordered) = (30, 20, 30),
            1 => (net.loss, net.repeated, net.reordered) = (0, 0, 0),
            2 => net.udp_blocked = true,
            3 | 4 => net.udp_blocked = false,
            5 => net.tcp_refused = true,
            6 | 7 => net.tcp_refused = false,
            8 => self.pair.cut(),
            9 => net.crash.often = 3,
            10 => net.crash.often = 0,
            _ => self.command(),
        }
    }

    /// Somebody asks one end for something.
    fn command(&mut self) {
        let of_a = self.rng.percent(50);
        let Some(ike) = self.any_sa(of_a) else { return };
        let now = self.pair.now;
        let what = self.rng.next() % 8;
        let Side { endpoint, host, .. } = if of_a { &mut self.pair.a } else { &mut self.pair.b };
        let child =
            endpoint.sas().find(|sa| sa.id == ike).and_then(|sa| sa.children.first().map(|c| c.id));
        match (what, child) {
            (0, _) => endpoint.terminate(now, ike, host).unwrap(),
            (1, Some(child)) => endpoint.terminate_child(now, child, host).unwrap(),
            (2 | 3, _) => endpoint.rekey_ike(now, ike, host).unwrap(),
            (4, _) => {
                let to = PathChoice::Tcp { local: None, remote: None };
                let _ = endpoint.move_to(now, ike, to, host);
            }
            (5, _) => {
                let to = PathChoice::Udp { local: None, remote: None };
                let _ = endpoint.move_to(now, ike, to, host);
            }
            (_, Some(child)) => endpoint.rekey_child(now, child, host).unwrap(),
            _ => {}
        }
    }

    /// What holds at any time.
    fn check(&mut self, seed: u64) {
        for side in [&mut self.pair.a, &mut self.pair.b] {
            let spis: Vec<_> = side.endpoint.sas().map(|sa| (sa.spi_i, sa.spi_r)).collect();
            let known: Vec<_> = spis.iter().filter(|(_, spi_r)| *spi_r != 0).collect();
            let single: BTreeSet<_> = known.iter().collect();
            assert_eq!(single.len(), known.len(), "seed {seed}: two IKE SAs with one SPI");
            assert!(side.endpoint.len() <= 6 * TUNNELS, "seed {seed}: IKE SAs pile up");
            assert!(side.host.installed.len() <= 6 * TUNNELS, "seed {seed}: CHILD SAs pile up");
            assert!(side.host.reserved.len() <= 4 * TUNNELS, "seed {seed}: SPIs leak");
            // A process may die when it has removed an SA and not told the peer.
            let held = side.endpoint.sas().flat_map(|sa| sa.children);
            let held: BTreeSet<_> = held.map(|child| child.spi_in).collect();
            let owned = side.host.installed.keys().all(|spi_in| held.contains(spi_in));
            assert!(owned, "seed {seed}: an SA without an owner");
            (side.sent, side.received, side.events) = (Vec::new(), Vec::new(), Vec::new());
            (side.connects, side.closes) = (Vec::new(), Vec::new());
        }
    }

    /// After a calm time both ends agree on every tunnel.
    fn assert_agreed(&self, seed: u64) {
        let (a, b) = (&self.pair.a, &self.pair.b);
        for connection in &a.host.connections {
            let of = |side: &Side| -> Vec<_> {
                let sas = side.endpoint.sas().filter(|sa| sa.connection == connection.name);
                sas.filter(|sa| sa.state == IkeState::Established).collect()
            };
            let (own, other) = (of(a), of(b));
            let name = &connection.name;
            assert_eq!((own.len(), other.len()), (1, 1), "seed {seed}: {name}");
            let (own, other) = (&own[0], &other[0]);
            assert_eq!((own.spi_i, own.spi_r), (other.spi_i, other.spi_r), "seed {seed}: {name}");
            assert_eq!(own.children.len(), 1, "seed {seed}: {name}");
            let pairs = |spi_in, spi_out| {
                a.host.installed[&spi_in].keymat_in == b.host.installed[&spi_out].keymat_out
            };
            let (child, theirs) = (&own.children[0], &other.children[0]);
            assert_eq!(other.children.len(), 1, "seed {seed}: {name}");
            assert_eq!((child.spi_in, child.spi_out), (theirs.spi_out, theirs.spi_in));
            assert!(pairs(child.spi_in, child.spi_out), "seed {seed}: {name}: other keys");
            assert!(a.host.outbound.contains(&child.id) && b.host.outbound.contains(&theirs.id));
        }
        assert!(a.host.reserved.is_empty() && b.host.reserved.is_empty(), "seed {seed}");
    }

    fn run(&mut self, seed: u64) {
        for _ in 0..DAYS * 4 {
            for _ in 0..40 {
                self.fault();
                let wait = Duration::from_millis(self.rng.next() % 240_000);
                self.pair.run(wait);
                self.keep_up();
                self.check(seed);
            }
            let net = &mut self.pair.net;
            (net.loss, net.repeated, net.reordered) = (0, 0, 0);
            (net.udp_blocked, net.tcp_refused) = (false, false);
            net.crash.often = 0;
            self.pair.a.kept.forget_seen();
            self.pair.b.kept.forget_seen();
            for _ in 0..60 {
                self.pair.run(Duration::from_secs(60));
                self.keep_up();
                self.check(seed);
            }
            // A rekey may just be under way: a moment later it is over.
            let settled = |side: &Side| {
                side.endpoint.sas().count() == TUNNELS && side.host.installed.len() == TUNNELS
            };
            for _ in 0..20 {
                if settled(&self.pair.a) && settled(&self.pair.b) {
                    break;
                }
                self.pair.run(Duration::from_secs(1));
                self.keep_up();
            }
            self.assert_agreed(seed);
            self.pair.run(Duration::from_secs(3 * 3600));
            self.check(seed);
        }
    }
}

#[test]
fn tunnels_live_through_weeks_of_faults() {
    let seeds = std::env::var("CULVERT_SEEDS").ok();
    let seeds = seeds.as_deref().and_then(|range| range.split_once(".."));
    let seeds = match seeds {
        Some((first, end)) => first.parse().unwrap()..end.parse().unwrap(),
        None => 0..3,
    };
    for seed in seeds {
        Simulation::new(seed).run(seed);
    }
}
