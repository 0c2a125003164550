//! One direction of a path: rate, queue and delay, and everything that can happen to a packet.
//!
//! A packet is lost (singly or in bursts), corrupted or thinned out on its way in; what is left
//! waits in a queue that drops at its tail, takes its time on the wire, and comes out after the
//! delay, perhaps twice, perhaps behind its successors. The clock is the caller's, so that the same
//! link serves virtual time and a shim between two real devices.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::time::Duration;

use culvert_tcpstack::Instant;

use crate::packet;
use crate::random::Random;

/// A modem that thins ACKs out forgets one for a newer one that comes within this time.
const THINNING_GAP: Duration = Duration::from_millis(20);

/// Losses that come in bursts, after Gilbert and Elliott: a good state without losses of its own
/// and a bad one. All in parts of a million, for each packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bursts {
    /// Good becomes bad.
    pub enter: u32,
    /// Bad becomes good.
    pub leave: u32,
    /// A packet is lost while bad.
    pub loss: u32,
}

/// What a direction is like. Probabilities are in parts of a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkConfig {
    /// Octets of IP packets a second.
    pub octets_per_second: u64,
    /// Propagation, one way.
    pub delay: Duration,
    /// The longest packet; longer ones vanish without a word (RFC 4821 is for these).
    pub mtu: usize,
    /// Octets that may wait for the wire.
    pub queue_octets: u64,
    /// Single losses.
    pub loss: u32,
    /// Losses in bursts.
    pub bursts: Option<Bursts>,
    /// Packets that are held back.
    pub reorder: u32,
    /// For how long at the most.
    pub reorder_by: Duration,
    /// Packets come out together that arrive within up to twice this time, as Wi-Fi has it.
    pub aggregation: Duration,
    /// Packets that come twice.
    pub duplicate: u32,
    /// Packets in which something changes: a bit, an octet or the length.
    pub corrupt: u32,
    /// ACKs without data that are lost, beyond the rest.
    pub ack_loss: u32,
    /// Only the last of so many ACKs without data of one connection gets through that follow each
    /// other closely, as some modems have it.
    pub ack_thinning: u32,
}

impl LinkConfig {
    /// A clean link with a queue of one round trip, if the other direction has the same delay.
    #[must_use]
    pub fn clean(megabits_per_second: u64, round_trip: Duration) -> Self {
        let octets_per_second = megabits_per_second * 125_000;
        let round_trip_octets = octets_per_second * round_trip.as_micros() as u64 / 1_000_000;
        Self {
            octets_per_second,
            delay: round_trip / 2,
            mtu: 1500,
            queue_octets: round_trip_octets.max(64 << 10),
            loss: 0,
            bursts: None,
            reorder: 0,
            reorder_by: Duration::ZERO,
            aggregation: Duration::ZERO,
            duplicate: 0,
            corrupt: 0,
            ack_loss: 0,
            ack_thinning: 1,
        }
    }
}

/// What became of packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Put in.
    pub offered: u64,
    /// Came out, duplicates included.
    pub delivered: u64,
    /// Dropped because the queue was full.
    pub overflowed: u64,
    /// Lost.
    pub lost: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InFlight {
    at: Reverse<(Instant, u64)>,
    packet: Vec<u8>,
}

/// One direction of a path.
#[derive(Debug)]
pub struct Link {
    config: LinkConfig,
    random: Random,
    /// For ACKs without data, if they have their own.
    ack_random: Option<Random>,
    /// When the wire is free, in nanoseconds.
    free_at: u64,
    /// When the packets that are being put together come out.
    together_at: Instant,
    bad: bool,
    thinned: u32,
    /// The last ACK without data: when it came, of which connection, and its number on the link.
    last_ack: Option<(Instant, [u16; 2], u64)>,
    /// Numbers of those that newer ones have replaced.
    replaced: HashSet<u64>,
    serial: u64,
    flight: BinaryHeap<InFlight>,
    stats: LinkStats,
}

impl Link {
    /// A link on which nothing is yet.
    #[must_use]
    pub fn new(config: LinkConfig, random: Random) -> Self {
        Self {
            config,
            ack_random: None,
            random,
            free_at: 0,
            together_at: Instant::ZERO,
            bad: false,
            thinned: 0,
            last_ack: None,
            replaced: HashSet::new(),
            serial: 0,
            flight: BinaryHeap::new(),
            stats: LinkStats::default(),
        }
    }

    /// Loses the same segments of data however many ACKs without data there are between them, so that
    /// two senders can be compared.
    #[must_use]
    pub fn with_acks_apart(mut self) -> Self {
        self.ack_random = Some(self.random.fork());
        self
    }

    /// From now on the link is like this. What is on it stays.
    pub fn change(&mut self, config: LinkConfig) {
        self.config = config;
    }

    /// What became of packets so far.
    #[must_use]
    pub fn stats(&self) -> LinkStats {
        self.stats
    }

    /// Packets under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flight.len()
    }

    /// Puts an IP packet in.
    pub fn push(&mut self, now: Instant, packet: Vec<u8>) {
        let is_ack = packet::is_pure_ack(&packet);
        self.draw_for_acks(is_ack);
        self.carry(now, packet, is_ack);
        self.draw_for_acks(is_ack);
    }

    /// Changes to the random numbers of ACKs, and back.
    fn draw_for_acks(&mut self, is_ack: bool) {
        if let Some(acks) = self.ack_random.as_mut().filter(|_| is_ack) {
            std::mem::swap(&mut self.random, acks);
        }
    }

    fn carry(&mut self, now: Instant, mut packet: Vec<u8>, is_ack: bool) {
        self.stats.offered += 1;
        if self.loses(&packet, is_ack) {
            self.stats.lost += 1;
            return;
        }
        let Some(left_at) = self.transmit(now, packet.len() as u64) else {
            self.stats.overflowed += 1;
            return;
        };
        if self.random.happens(self.config.corrupt) {
            packet::corrupt(&mut packet, &mut self.random);
        }
        let mut at = self.together(left_at + self.config.delay);
        if self.random.happens(self.config.reorder) {
            let most = self.config.reorder_by.as_micros() as u64;
            at = at + Duration::from_micros(self.random.within(0..=most));
        }
        if self.random.happens(self.config.duplicate) {
            let later = at + Duration::from_micros(self.random.within(0..=5_000));
            self.fly(later, packet.clone());
        }
        self.thin_out(now, &packet);
        self.fly(at, packet);
    }

    /// When a packet that arrives at `at` comes out with others.
    fn together(&mut self, at: Instant) -> Instant {
        if at > self.together_at {
            let most = 2 * self.config.aggregation.as_micros() as u64;
            let wait = if most > 0 { self.random.within(0..=most) } else { 0 };
            self.together_at = at + Duration::from_micros(wait);
        }
        if self.config.aggregation.is_zero() { at } else { self.together_at }
    }

    /// When the wire has taken a packet of so many octets; `None` if the queue is full.
    fn transmit(&mut self, now: Instant, octets: u64) -> Option<Instant> {
        let now = now.0 * 1000;
        let waiting = self.free_at.saturating_sub(now);
        let queued = u128::from(waiting) * u128::from(self.config.octets_per_second);
        if queued > u128::from(self.config.queue_octets) * 1_000_000_000 {
            return None;
        }
        let time = octets * 1_000_000_000 / self.config.octets_per_second.max(1);
        self.free_at = self.free_at.max(now) + time;
        Some(Instant(self.free_at.div_ceil(1000)))
    }

    fn fly(&mut self, at: Instant, packet: Vec<u8>) {
        self.serial += 1;
        self.stats.delivered += 1;
        self.flight.push(InFlight { at: Reverse((at, self.serial)), packet });
    }

    fn loses(&mut self, packet: &[u8], is_ack: bool) -> bool {
        if let Some(bursts) = self.config.bursts {
            let turn = if self.bad { bursts.leave } else { bursts.enter };
            self.bad ^= self.random.happens(turn);
            if self.bad && self.random.happens(bursts.loss) {
                return true;
            }
        }
        if packet.len() > self.config.mtu || self.random.happens(self.config.loss) {
            return true;
        }
        is_ack && self.random.happens(self.config.ack_loss)
    }

    /// An ACK without data takes its place on the link, and perhaps that of the one before it.
    fn thin_out(&mut self, now: Instant, packet: &[u8]) {
        if self.config.ack_thinning <= 1 || !packet::is_pure_ack(packet) {
            return;
        }
        let Some(ports) = packet::ports(packet) else { return };
        let before = self.last_ack.replace((now, ports, self.serial + 1));
        self.thinned += 1;
        match before {
            Some((at, of, serial))
                if of == ports
                    && now.since(at) <= THINNING_GAP
                    && self.thinned < self.config.ack_thinning =>
            {
                self.replaced.insert(serial);
            }
            _ => self.thinned = 0,
        }
    }

    /// When the next packet comes out.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.flight.peek().map(|first| first.at.0.0)
    }

    /// A packet that has come out by now.
    pub fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        loop {
            if self.next()? > now {
                return None;
            }
            let first = self.flight.pop()?;
            if !self.replaced.remove(&first.at.0.1) {
                return Some(first.packet);
            }
            self.stats.delivered -= 1;
            self.stats.lost += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Segment;

    fn arrivals(config: LinkConfig, packets: usize) -> Vec<(u64, Vec<u8>)> {
        let mut link = Link::new(config, Random::new(7));
        for number in 0..packets {
            let mut packet = vec![0; 1250];
            packet[..8].copy_from_slice(&(number as u64).to_le_bytes());
            link.push(Instant(0), packet);
        }
        std::iter::from_fn(|| Some((link.next()?.0, link.pop(Instant(u64::MAX))?))).collect()
    }

    #[test]
    fn a_packet_takes_its_time_on_the_wire_and_the_delay() {
        // 1250 octets at 10 Mbit/s are 1 ms.
        let clean = LinkConfig::clean(10, Duration::from_millis(20));
        let times: Vec<u64> = arrivals(clean, 3).into_iter().map(|(at, _)| at).collect();
        assert_eq!(times, [11_000, 12_000, 13_000]);
    }

    #[test]
    fn a_full_queue_drops_at_its_tail() {
        let config =
            LinkConfig { queue_octets: 2500, ..LinkConfig::clean(10, Duration::from_millis(1)) };
        // One may begin whenever no more than the queue is waiting.
        assert_eq!(arrivals(config, 10).len(), 3);
    }

    #[test]
    fn aggregated_packets_come_together_and_in_order() {
        let clean = LinkConfig::clean(100, Duration::from_millis(20));
        let aggregation = Duration::from_millis(3);
        let came = arrivals(LinkConfig { aggregation, queue_octets: 1 << 20, ..clean }, 500);
        let numbers =
            came.iter().map(|(_, packet)| u64::from_le_bytes(packet[..8].try_into().unwrap()));
        assert!(numbers.eq(0..500));
        let mut times: Vec<u64> = came.iter().map(|(at, _)| *at).collect();
        times.dedup();
        // 500 packets take 50 ms of wire.
        assert!((8..30).contains(&times.len()), "{}", times.len());
    }

    #[test]
    fn thinned_acks_are_replaced_by_newer_ones_and_a_lone_one_is_not() {
        let clean = LinkConfig::clean(100, Duration::from_millis(2));
        let mut link = Link::new(LinkConfig { ack_thinning: 3, ..clean }, Random::new(7));
        let ack = |number: u32, port: u16| {
            let segment = Segment {
                source: ([192, 0, 2, 1], port).into(),
                destination: ([192, 0, 2, 2], 4500).into(),
                seq: 1,
                ack: number,
                flags: packet::flags::ACK,
                window: 0,
                options: Vec::new(),
                payload: Vec::new(),
            };
            segment.packet()
        };
        let ms = |ms: u64| Instant(ms * 1000);
        for (at, number, port) in
            [(0, 1, 7), (0, 2, 7), (0, 3, 7), (0, 4, 7), (1, 5, 8), (100, 6, 8)]
        {
            link.push(ms(at), ack(number, port));
        }
        let come = std::iter::from_fn(|| link.pop(ms(1000)));
        let numbers: Vec<u32> = come.map(|packet| Segment::read(&packet).unwrap().ack).collect();
        assert_eq!(numbers, [3, 4, 5, 6], "one of three, the other connection's, and the lone one");
        assert_eq!((link.stats().delivered, link.stats().lost), (4, 2));
    }

    #[test]
    fn bursts_lose_neighbours() {
        let bursts = Some(Bursts { enter: 10_000, leave: 200_000, loss: 1_000_000 });
        let clean = LinkConfig::clean(1000, Duration::from_secs(10));
        let came: Vec<u64> = arrivals(LinkConfig { bursts, ..clean }, 20_000)
            .iter()
            .map(|(_, packet)| u64::from_le_bytes(packet[..8].try_into().unwrap()))
            .collect();
        let gaps: Vec<u64> =
            came.windows(2).map(|pair| pair[1] - pair[0] - 1).filter(|gap| *gap > 0).collect();
        let mean = gaps.iter().sum::<u64>() as f64 / gaps.len() as f64;
        assert!((3.5..6.5).contains(&mean), "bursts of 1 / 0.2 packets, not {mean}");
        let lost = 1.0 - came.len() as f64 / 20_000.0;
        assert!((0.03..0.07).contains(&lost), "a share of 1/21, not {lost}");
    }

    /// Two senders that acknowledge differently lose the same of their data.
    #[test]
    fn acks_do_not_change_which_segments_are_lost() {
        let address = |host| std::net::SocketAddr::from(([192, 0, 2, host], 4500));
        let segment = |seq, payload: &[u8]| Segment {
            source: address(1),
            destination: address(2),
            seq,
            ack: 1,
            flags: packet::flags::ACK,
            window: 100,
            options: Vec::new(),
            payload: payload.to_vec(),
        };
        let lossy = LinkConfig { loss: 300_000, ..LinkConfig::clean(100, Duration::from_secs(1)) };
        let arrived = |acks_after: u32| {
            let mut link = Link::new(lossy, Random::new(7)).with_acks_apart();
            for seq in 0..200 {
                link.push(Instant(0), segment(seq, b"x").packet());
                if acks_after > 0 && seq % acks_after == 0 {
                    link.push(Instant(0), segment(seq + 1, b"").packet());
                }
            }
            let out = std::iter::from_fn(|| link.pop(Instant(u64::MAX)));
            let segments = out.filter_map(|packet| Segment::read(&packet));
            let data = segments.filter(|segment| !segment.payload.is_empty());
            data.map(|segment| segment.seq).collect::<Vec<_>>()
        };
        let without = arrived(0);
        assert!((120..160).contains(&without.len()));
        assert_eq!(without, arrived(1));
        assert_eq!(without, arrived(7));
    }

    #[test]
    fn a_seed_repeats_everything() {
        let bad = LinkConfig {
            loss: 100_000,
            reorder: 100_000,
            reorder_by: Duration::from_millis(9),
            duplicate: 100_000,
            corrupt: 100_000,
            ..LinkConfig::clean(100, Duration::from_secs(1))
        };
        assert_eq!(arrivals(bad, 1000), arrivals(bad, 1000));
        assert!(arrivals(bad, 1000).windows(2).any(|pair| pair[0].1[..8] > pair[1].1[..8]));
    }
}
