//! Two hosts, the path between them, their callers and the clock.
//!
//! Time jumps from one thing that happens to the next: a packet comes out of a link, a host's timer
//! is due, a caller wakes up. Each turn delivers, acts and sends, as a worker's loop does, and then
//! holds both hosts against their limits.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tcpstack::Instant;

use crate::caller::Callers;
use crate::host::{Host, Outbox};
use crate::link::Link;
use crate::nat::Nat;
use crate::packet::Segment;
use crate::stream::Ledger;

/// Turns without a step of the clock after which a host is said to spin.
const TURNS_AT_ONE_TIME_MAX: u32 = 10_000;

/// A simulation under way. End 0 connects, end 1 listens on 4500.
pub struct World {
    /// The clock.
    pub now: Instant,
    /// The two ends.
    pub hosts: [Box<dyn Host>; 2],
    /// From the end of this number to the other.
    pub links: [Link; 2],
    /// The callers of each end.
    pub callers: [Callers; 2],
    /// In front of end 0.
    pub nat: Option<Nat>,
    /// When it rebinds, the next one last.
    pub rebind_at: Vec<Instant>,
    /// When connections begin, the next one last.
    pub connect_at: Vec<Instant>,
    /// Where end 1 listens.
    pub remote: SocketAddr,
    /// Whether hosts can take only so many packets in a turn.
    pub room: usize,
    /// The oracle.
    pub ledger: Ledger,
    /// Packets delivered and turns taken.
    pub steps: u64,
    /// Whether each packet is shown where it leaves and where it arrives.
    pub shows: bool,
    turns_at_this_time: u32,
}

impl World {
    /// A world in which nothing has happened.
    #[must_use]
    pub fn new(
        hosts: [Box<dyn Host>; 2],
        links: [Link; 2],
        callers: [Callers; 2],
        remote: SocketAddr,
    ) -> Self {
        Self {
            now: Instant(1_000_000),
            hosts,
            links,
            callers,
            nat: None,
            rebind_at: Vec::new(),
            connect_at: Vec::new(),
            remote,
            room: usize::MAX,
            ledger: Ledger::default(),
            steps: 0,
            shows: false,
            turns_at_this_time: 0,
        }
    }

    /// Runs until nothing will happen any more, at most until `limit`.
    ///
    /// # Errors
    /// The oracle or a limit was violated, or it is not over by then.
    pub fn run(&mut self, limit: Instant) -> Result<()> {
        while self.turn().with_context(|| format!("at {} µs", self.now.0))? {
            ensure!(self.now <= limit, "not over after {} s", self.now.0 / 1_000_000);
        }
        for (end, host) in self.hosts.iter_mut().enumerate() {
            let left = self.callers[end].connections();
            ensure!(left.is_empty(), "end {end} was never told the end of {left:?}");
            host.check_empty().with_context(|| format!("end {end}"))?;
        }
        Ok(())
    }

    /// One turn; `false` if nothing is left to happen.
    fn turn(&mut self) -> Result<bool> {
        let Some(next) = self.next() else { return Ok(false) };
        if next > self.now {
            self.now = next;
            self.turns_at_this_time = 0;
        }
        self.turns_at_this_time += 1;
        ensure!(self.turns_at_this_time < TURNS_AT_ONE_TIME_MAX, "the clock stands still");
        self.steps += 1;
        self.begin();
        self.deliver();
        for end in 0..2 {
            let host = self.hosts[end].as_mut();
            if host.deadline().is_some_and(|at| at <= self.now) {
                host.timeout(self.now);
            }
            self.callers[end].act(self.now, host, &mut self.ledger)?;
            self.transmit(end);
            let connections = self.callers[end].connections();
            self.hosts[end].check(&connections).with_context(|| format!("end {end}"))?;
        }
        Ok(true)
    }

    fn next(&mut self) -> Option<Instant> {
        let mut times = vec![self.rebind_at.last().copied(), self.connect_at.last().copied()];
        for end in 0..2 {
            times.extend([self.links[end].next(), self.callers[end].wake_at()]);
            times.push(self.hosts[end].deadline());
        }
        times.into_iter().flatten().min()
    }

    fn begin(&mut self) {
        if self.rebind_at.pop_if(|at| *at <= self.now).is_some()
            && let Some(nat) = &mut self.nat
        {
            nat.rebind();
        }
        if self.connect_at.pop_if(|at| *at <= self.now).is_some()
            && let Some(id) = self.hosts[0].connect(self.now, self.remote)
        {
            self.callers[0].begin(self.now, id);
        }
    }

    fn deliver(&mut self) {
        for end in 0..2 {
            while let Some(mut packet) = self.links[1 - end].pop(self.now) {
                self.steps += 1;
                self.show("arrives at", end, &packet);
                if end == 0 && self.nat.as_ref().is_some_and(|nat| !nat.inbound(&mut packet)) {
                    continue;
                }
                let (callers, ledger) = (&mut self.callers[end], &mut self.ledger);
                callers.clock(self.now);
                let mut deliver = |id, octets: &mut [u8]| callers.deliver(ledger, id, octets);
                self.hosts[end].receive(self.now, &mut packet, &mut deliver);
            }
        }
    }

    fn transmit(&mut self, end: usize) {
        let mut out = Outbox { packets: Vec::new(), room: self.room };
        self.hosts[end].transmit(self.now, &mut out);
        for mut packet in out.packets {
            self.show("leaves", end, &packet);
            if end == 1 || self.nat.as_ref().is_none_or(|nat| nat.outbound(&mut packet)) {
                self.links[end].push(self.now, packet);
            }
        }
    }

    fn show(&self, what: &str, end: usize, packet: &[u8]) {
        if !self.shows {
            return;
        }
        let time = Duration::from_micros(self.now.0).as_secs_f64();
        match Segment::read(packet) {
            Some(segment) => println!("{time:.6} {what} {end}: {segment}"),
            None => println!("{time:.6} {what} {end}: damaged"),
        }
    }
}
