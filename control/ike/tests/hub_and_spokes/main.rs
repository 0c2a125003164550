//! A hub and its spokes through random faults for days of virtual time, from a seed.
//!
//! Links lose, repeat and delay, forbid UDP or refuse TCP; NATs forget, TCP connections break, spokes
//! move, reboot and come back with INITIAL_CONTACT, the hub too; control processes die at any point of
//! what they are doing, and others go on from their snapshots; clocks run at different speeds; and
//! people rekey, move and terminate. After each step, for every tunnel that has had time to get over
//! what was done to it: what either end sends in ESP arrives at the other, under the same keys; the
//! death of a control process gives no such time. No IV and no Message ID is used twice. At every
//! minute: no two SAs share an SPI, nothing leaks, no table grows. At the end all that is allocated is
//! as much as after the first day.
//!
//! `CULVERT_SPOKES`, `CULVERT_DAYS` and `CULVERT_SEEDS=first..end` run more than every day's.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a harness may fail its test")]

mod death;
mod esp;
mod host;
mod tunnels;
mod world;

use std::alloc::System;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use culvert_ike::{
    ConnectionConfig, EndpointConfig, IkeState, Instant, PathChoice, TransportChoice,
};
use death::DEATHS;
use host::{Rng, SimHost};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tunnels::{both_begin, hub_connections, limits, spoke, spoke_address, spoke_name};
use world::{HUB, HUB_ADDRESS, Node, World};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Simulations have their turns one after the other, so that each can tell what it has allocated.
static TURN: Mutex<()> = Mutex::new(());

/// Octets that are allocated now.
fn allocated() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated.wrapping_sub(stats.bytes_deallocated)
}

/// How long a tunnel may take to get over a fault: what is under way is given up, liveness is
/// checked, and a new attempt, whose turn comes each [`TICK`], may have to try UDP and then TCP.
const RECOVERY: Duration = Duration::from_secs(420);
/// How often each spoke sends ESP, and sees to it that its tunnel stands.
const TICK: Duration = Duration::from_secs(60);
/// How often, on average, something is done to each spoke.
const FAULT: Duration = Duration::from_secs(2 * 3600);
/// Longest time without a control process, in milliseconds.
const AWAY_MS: u64 = 10_000;
/// Longest time for which a link stays bad.
const BAD_S: u64 = 600;

struct Simulation {
    world: World,
    seed: u64,
    rng: Rng,
    spokes: usize,
    /// When a link is mended.
    heals: Vec<Option<Instant>>,
    hub_hurt: Instant,
    /// How often a tunnel was looked at and found to carry.
    carried: u64,
}

impl Simulation {
    fn new(seed: u64, spokes: usize) -> Self {
        let hub = SimHost::new(seed + 1, HUB_ADDRESS, hub_connections(spokes));
        let mut nodes = vec![Node::new("hub.test".into(), hub, 0, limits(spokes))];
        nodes.extend((1..=spokes).map(|n| {
            let seed = seed * 1_000_003 + n as u64;
            let host = SimHost::new(seed, spoke_address(n).into(), vec![Arc::new(spoke(n))]);
            // Up to half a percent fast or slow.
            let ppm = (seed % 10_001) as i64 - 5_000;
            Node::new(spoke_name(n), host, ppm, EndpointConfig::default())
        }));
        let world = World::new(seed + 2, nodes);
        let heals = vec![None; spokes + 1];
        let hub_hurt = world.now;
        let rng = Rng(seed + 3);
        Self { world, seed, rng, spokes, heals, hub_hurt, carried: 0 }
    }

    fn config(&self, n: usize) -> Arc<ConnectionConfig> {
        self.world.nodes[n].host.connections[0].clone()
    }

    /// As a control process does: what is to stand and does not is begun.
    fn keep_up(&mut self, n: usize) {
        let connection = self.config(n);
        begin(&mut self.world, n, &connection, |_| true);
        let own = self.world.nodes[HUB].host.connections.iter();
        let own = own.clone().find(|c| c.name == spoke_name(n)).cloned();
        if let Some(connection) = own {
            let id = connection.remote_id.clone();
            begin(&mut self.world, HUB, &connection, |remote| id.matches(remote));
        }
    }

    fn hurt(&mut self, n: usize) {
        self.world.links[n].hurt = self.world.now;
    }

    /// Something is done to a spoke, its link or the hub.
    fn fault(&mut self) {
        let n = 1 + self.rng.below(self.spokes as u64) as usize;
        if self.rng.percent(20) {
            return self.kill(n);
        }
        let transport = self.config(n).transport;
        let link = &mut self.world.links[n];
        match self.rng.below(100) {
            0..15 => link.bad = Some((30, 20, 30)),
            15..30 => link.udp_blocked = true,
            30..40 if transport != TransportChoice::Udp => link.tcp_refused = true,
            40..50 => self.world.rebind(n),
            50..60 => self.world.cut(n, self.rng.percent(50)),
            60..68 if !both_begin(n) => self.relocate(n),
            68..76 => self.world.reboot(n),
            76 if self.rng.percent(10) => {
                self.world.reboot(HUB);
                self.hub_hurt = self.world.now;
            }
            _ => return self.command(n),
        }
        self.hurt(n);
        self.heals[n] = Some(self.world.now + Duration::from_secs(1 + self.rng.below(BAD_S)));
    }

    /// The control process of a spoke or of the hub dies, and nobody is to notice. In most cases
    /// something is just under way.
    fn kill(&mut self, n: usize) {
        if self.rng.percent(60) {
            self.command(n);
        }
        // The more spokes there are, the more it takes to restore the hub's.
        let of_hub = 5 + self.spokes as u64 / 50;
        let who = if self.rng.below(self.spokes as u64) < of_hub { HUB } else { n };
        if self.rng.percent(25) {
            let back = self.world.now + Duration::from_millis(self.rng.below(AWAY_MS));
            self.world.kill(who, back);
        } else {
            let death = DEATHS[self.rng.below(DEATHS.len() as u64) as usize];
            self.world.doom(who, 1 + self.rng.below(6), death);
        }
    }

    /// A spoke has another address, and tells the hub where it can.
    fn relocate(&mut self, n: usize) {
        self.world.move_spoke(n);
        let local = Some(self.world.nodes[n].host.address);
        for sa in self.world.nodes[n].endpoint.sas().collect::<Vec<_>>() {
            let to = match self.config(n).transport {
                TransportChoice::Tcp => PathChoice::Tcp { local, remote: None },
                _ => PathChoice::Udp { local, remote: None },
            };
            let _ = self.world.act(n, |e, now, host| e.move_to(now, sa.id, to, host));
        }
    }

    /// Somebody asks one end for something. Only a termination interrupts traffic.
    fn command(&mut self, n: usize) {
        let at = if self.rng.percent(50) { n } else { HUB };
        let peer = self.world.nodes[if at == n { HUB } else { n }].id.clone();
        let Some(sa) = self.world.nodes[at].host.outbound(&peer) else { return };
        let (ike, child) = (sa.ike, sa.id);
        let to_tcp = PathChoice::Tcp { local: None, remote: None };
        let to_udp = PathChoice::Udp { local: None, remote: None };
        let what = self.rng.below(20);
        let auto = self.config(n).transport == TransportChoice::Auto;
        if what < 2 {
            self.hurt(n);
        }
        self.world.act(at, |e, now, host| {
            let _ = match what {
                0 => e.terminate(now, ike, host).is_ok(),
                1 => e.terminate_child(now, child, host).is_ok(),
                2..7 => e.rekey_ike(now, ike, host).is_ok(),
                7..10 if auto => e.move_to(now, ike, to_tcp, host).is_ok(),
                10..12 if auto => e.move_to(now, ike, to_udp, host).is_ok(),
                12 => e.reauthenticate(now, ike, host).is_ok(),
                _ => e.rekey_child(now, child, host).is_ok(),
            };
        });
    }

    fn heal(&mut self, n: usize) {
        if self.heals[n].is_none_or(|at| at > self.world.now) {
            return;
        }
        self.heals[n] = None;
        let auto = self.config(n).transport == TransportChoice::Auto;
        let link = &mut self.world.links[n];
        let harmless = link.bad.is_none() && auto && !link.tcp_refused;
        (link.bad, link.udp_blocked, link.tcp_refused) = (None, false, false);
        if !harmless {
            self.hurt(n);
        }
    }

    /// Whether the tunnel has to carry now.
    fn is_due(&self, n: usize) -> bool {
        let link = &self.world.links[n];
        let transport = self.config(n).transport;
        let passes = match transport {
            TransportChoice::Udp => !link.udp_blocked,
            TransportChoice::Tcp => !link.tcp_refused,
            TransportChoice::Auto => !link.udp_blocked || !link.tcp_refused,
        };
        let quiet = self.world.now.since(link.hurt) > RECOVERY
            && self.world.now.since(self.hub_hurt) > RECOVERY * 2;
        passes && quiet && link.bad.is_none()
    }

    /// What either end of a tunnel sends arrives at the other.
    fn check(&mut self, n: usize) {
        if !self.is_due(n) {
            return;
        }
        for from in [n, HUB] {
            if let Err(why) = self.world.send_esp(from, n, true) {
                self.fail(n, &format!("from {from}: {why}"));
            }
        }
        self.carried += 1;
    }

    fn fail(&self, n: usize, why: &str) -> ! {
        let (seed, now) = (self.seed, self.world.now.as_micros());
        let transport = self.config(n).transport;
        self.world.show(n);
        panic!("seed {seed}, {now} us: tunnel of {n} ({transport:?}) does not carry: {why}");
    }

    /// What holds at any time.
    fn check_all(&self) {
        let seed = self.seed;
        let (wire, conns) = self.world.sizes();
        assert!(wire <= 40 * self.spokes + 100, "seed {seed}: {wire} messages under way");
        assert!(conns <= 3 * self.spokes + 10, "seed {seed}: {conns} TCP connections");
        for (n, node) in self.world.nodes.iter().enumerate() {
            let most = if n == HUB { 6 * self.spokes + 10 } else { 10 };
            assert!(node.endpoint.len() <= most, "seed {seed}, {n}: IKE SAs pile up");
            assert!(node.host.pairs.len() <= most, "seed {seed}, {n}: CHILD SAs pile up");
            assert!(node.host.reserved.len() <= most, "seed {seed}, {n}: SPIs leak");
            assert!(node.host.paths.len() <= most, "seed {seed}, {n}: peers leak");
            assert!(node.kept.snapshots() <= most, "seed {seed}, {n}: snapshots leak");
            let (mut held, mut spis) = (HashSet::new(), HashSet::new());
            for sa in node.endpoint.sas() {
                held.extend(sa.children.iter().map(|child| child.spi_in));
                let own = if sa.initiator { sa.spi_i } else { sa.spi_r };
                let known = sa.state != IkeState::Connecting;
                assert!(!known || spis.insert((sa.spi_i, sa.spi_r)), "seed {seed}: {own:x} twice");
            }
            let owned = node.host.pairs.keys().all(|spi_in| held.contains(spi_in));
            assert!(owned, "seed {seed}, {n}: an SA without an owner");
            let there = |spi_in| node.host.pairs.contains_key(spi_in) || node.host.is_lost(*spi_in);
            assert!(held.iter().all(there), "seed {seed}, {n}: an owner without its SA");
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.world.now + time;
        let mut next_fault = self.world.now + Duration::from_secs(60);
        let spacing = FAULT / self.spokes as u32;
        while self.world.now < end {
            let minute = self.world.now + TICK;
            for n in 1..=self.spokes {
                // Spread over the minute.
                self.run_until(
                    self.world.now + TICK / (2 * self.spokes as u32),
                    &mut next_fault,
                    spacing,
                );
                self.heal(n);
                self.keep_up(n);
                let _ = self.world.send_esp(n, n, false);
                self.check(n);
            }
            self.run_until(minute, &mut next_fault, spacing);
            self.check_all();
            if self.rng.percent(1) {
                self.world.sent.forget();
                self.world.nodes.iter_mut().for_each(|node| node.save(usize::MAX));
            }
        }
    }

    fn run_until(&mut self, end: Instant, next_fault: &mut Instant, spacing: Duration) {
        loop {
            let until = end.min(*next_fault);
            while self.world.step(until) {
                for n in std::mem::take(&mut self.world.touched) {
                    self.check(n);
                }
                // It may have been hurt since the packet left.
                for (n, why) in std::mem::take(&mut self.world.lost) {
                    if self.is_due(n) {
                        self.fail(n, &why);
                    }
                }
            }
            if until == end {
                return;
            }
            self.fault();
            *next_fault = *next_fault + spacing;
        }
    }

    /// Nothing more is done to anybody: every tunnel stands alone, and both ends agree on it.
    fn settle(&mut self) {
        for n in 1..=self.spokes {
            self.heals[n] = self.heals[n].map(|_| self.world.now);
            self.heal(n);
        }
        let never = self.world.now + Duration::MAX;
        for _ in 0..20 {
            for n in 1..=self.spokes {
                self.keep_up(n);
                let _ = self.world.send_esp(n, n, false);
            }
            self.run_until(self.world.now + TICK, &mut { never }, TICK);
        }
        let settled = |world: &World| {
            let hub = &world.nodes[HUB];
            // Both may have asked for a pair in one moment: then each keeps what it asked for.
            let most = |n: usize| 1 + usize::from(both_begin(n));
            (1..world.nodes.len()).all(|n| {
                let there = hub.host.pairs_with(&world.nodes[n].id);
                (1..=most(n)).contains(&there) && world.nodes[n].host.pairs_with(&hub.id) == there
            })
        };
        // A rekey may just be under way: a moment later it is over, and another has begun.
        for _ in 0..10_000 {
            if settled(&self.world) {
                break;
            }
            self.run_until(self.world.now + Duration::from_millis(50), &mut { never }, TICK);
        }
        self.check_settled();
    }

    fn check_settled(&self) {
        let (seed, hub) = (self.seed, &self.world.nodes[HUB]);
        for node in &self.world.nodes[1..] {
            let sas: Vec<_> = node.endpoint.sas().collect();
            let [sa] = &sas[..] else { panic!("seed {seed}, {}: {sas:#?}", node.id) };
            let Some(theirs) = hub.host.outbound(&node.id) else {
                panic!("seed {seed}, {}", node.id)
            };
            let there = hub.endpoint.sa(theirs.ike).unwrap();
            assert_eq!(
                (sa.spi_i, sa.spi_r),
                (there.spi_i, there.spi_r),
                "seed {seed}, {}",
                node.id
            );
            for own in node.host.with_peer(&hub.id).map(|pair| &pair.sa) {
                let other = &hub.host.pairs[&own.spi_out].sa;
                assert_eq!(own.spi_in, other.spi_out, "seed {seed}, {}", node.id);
                assert!(own.keymat_in == other.keymat_out && own.keymat_out == other.keymat_in);
            }
        }
    }
}

/// Begins a connection, or its CHILD SA, where there is none.
fn begin(
    world: &mut World,
    n: usize,
    connection: &Arc<ConnectionConfig>,
    of_peer: impl Fn(&culvert_ike::Identity) -> bool,
) {
    if n == HUB && world.nodes[HUB].host.outbound(&connection.name).is_some() {
        return;
    }
    let its = |sa: &culvert_ike::IkeSnapshot| {
        sa.connection == connection.name || sa.remote_id.as_ref().is_some_and(&of_peer)
    };
    let sas = world.nodes[n].endpoint.sas().filter(its);
    let states: Vec<_> = sas.map(|sa| (sa.id, sa.state, sa.children.len())).collect();
    let standing = states.iter().filter(|(_, state, _)| *state != IkeState::Deleting);
    let standing: Vec<_> = standing.collect();
    if standing.is_empty() {
        world.act(n, |e, now, host| e.initiate(now, connection, None, host).unwrap());
    } else if standing.iter().all(|(_, state, c)| *state == IkeState::Established && *c == 0) {
        let (id, ..) = *standing[0];
        let _ = world.act(n, |e, now, host| e.initiate_child(now, id, "net", host));
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn simulate(seed: u64, spokes: usize, days: u64) {
    let before = allocated();
    let mut simulation = Simulation::new(seed, spokes);
    let held = [1, days - 1].map(|days| {
        simulation.run(Duration::from_secs(days * 86_400));
        simulation.settle();
        simulation.world.sent.forget();
        allocated() - before
    });
    let carried = simulation.carried;
    println!(
        "seed {seed}: {spokes} spokes, {days} days, {carried} looks, {held:?} octets; {:?}",
        simulation.world.events
    );
    // Tables that were fuller for a while keep their room.
    let [first, last] = held;
    assert!(last < first + first / 4, "seed {seed}: {first} octets have grown to {last}");
    // What cannot be had is asked for less and less often.
    let reauthentications = simulation.world.events.get("reauthentications").copied();
    let most = 20 * spokes as u64 * days;
    assert!(reauthentications.unwrap_or_default() < most, "seed {seed}: a storm");
    assert!(carried > spokes as u64 * days * 500, "seed {seed}: looked at too seldom: {carried}");
}

#[test]
fn tunnels_live_through_days_of_faults() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let seeds = std::env::var("CULVERT_SEEDS").unwrap_or_else(|_| "0..1".into());
    let (first, end) = seeds.split_once("..").expect("first..end");
    let (spokes, days) = (number("CULVERT_SPOKES", 16), number("CULVERT_DAYS", 7));
    for seed in first.parse().unwrap()..end.parse().unwrap() {
        simulate(seed, spokes as usize, days);
    }
}

#[test]
fn a_hub_of_a_thousand_spokes_lives_through_faults() {
    if std::env::var_os("CULVERT_SPOKES").is_some() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut simulation = Simulation::new(77, 1_000);
    simulation.run(Duration::from_secs(2400));
    simulation.settle();
    println!("{} looks; {:?}", simulation.carried, simulation.world.events);
}
