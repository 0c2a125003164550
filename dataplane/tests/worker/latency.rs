//! How long inner packets wait in front of a TCP connection that is slower than what is offered.

use std::collections::VecDeque;

use culvert_dataplane::net::arp;
use culvert_shm::{Counter, Transport};
use culvert_tcpstack::framing::{Decoder, Frame, Gathering};
use culvert_tcpstack::{Instant, RxChecksum};

use crate::fixture::{FAR_V4, Gateway, HOST_V4, OUTER_MAC, OUTER_V4, PEER_MAC, PEER_V4};
use crate::packets::ping;
use crate::peer::{Packets, Peer, Sa, Wanted, path};

/// Octets a millisecond: 10 Mbit/s.
const RATE: u64 = 1_250;
const DELAY_NS: u64 = 10_000_000;
/// The router's queue in front of the link, in octets.
const QUEUE: u64 = 30_000;
const MS: u64 = 1_000_000;

/// A slow link from the gateway to its peer, and the peer, who opens what comes.
struct Path {
    peer: Peer,
    decoder: Decoder,
    gathering: Gathering,
    under_way: VecDeque<(u64, Vec<u8>)>,
    back: VecDeque<(u64, Vec<u8>)>,
    free_at: u64,
}

impl Path {
    fn leave(&mut self, now: u64, packets: Vec<Vec<u8>>) {
        for packet in packets {
            let start = self.free_at.max(now);
            if (start - now) / MS * RATE > QUEUE {
                continue;
            }
            self.free_at = start + packet.len() as u64 * MS / RATE;
            self.under_way.push_back((self.free_at + DELAY_NS, packet));
        }
    }

    /// What arrives at the peer by now; gives the ages of the inner packets.
    fn arrive(&mut self, now: u64, sa: &Sa, id: culvert_tcpstack::ConnId) -> Vec<u64> {
        let time = Instant(now / 1000);
        while let Some((_, mut packet)) = self.under_way.pop_front_if(|(at, _)| *at <= now) {
            self.peer.stack.handle_segment(time, &mut packet, RxChecksum::Unknown, &mut |_, _| 0);
        }
        if self.peer.stack.poll_timeout().is_some_and(|at| at <= time) {
            self.peer.stack.handle_timeout(time);
        }
        let mut stream = self.peer.read(id);
        let mut out = Packets::default();
        self.peer.stack.poll_transmit(time, &mut out);
        self.back.extend(out.0.into_iter().map(|packet| (now + DELAY_NS, packet)));
        let (mut rest, mut ages) = (&mut stream[..], Vec::new());
        while let Some(frame) = self.decoder.next_frame(&mut self.gathering, &mut rest).unwrap() {
            let Frame::Esp(packet) = frame else { panic!("{frame:?}") };
            let (_, inner) = sa.open(packet).unwrap();
            let sent = u64::from_be_bytes(inner[28..36].try_into().unwrap());
            ages.push((now - sent) / MS);
        }
        ages
    }
}

/// What the gateway sends to its peer, who says that it is there whenever it is asked.
fn packets(gateway: &mut Gateway) -> Vec<Vec<u8>> {
    let (asks, frames): (Vec<_>, Vec<_>) =
        gateway.outer_frames().into_iter().partition(|frame| frame[12..14] == [8, 6]);
    for _ in asks {
        let answer = arp::Message {
            operation: arp::Operation::Reply,
            sender_mac: PEER_MAC,
            sender_ip: PEER_V4.parse().unwrap(),
            target_mac: OUTER_MAC,
            target_ip: OUTER_V4.parse().unwrap(),
        };
        let mut frame = [0; 64];
        let len = answer.write_frame(OUTER_MAC, &mut frame).unwrap();
        gateway.arrive(0, true, &frame[..len]);
    }
    frames.into_iter().map(|frame| frame[14..].to_vec()).collect()
}

/// RFC 8289: packets are offered at 1.25 times the link's rate, by somebody who does not listen, for
/// 20 s. With tail drop half of what arrives has waited for 97 ms and more, behind a full send buffer.
#[test]
fn a_standing_queue_is_kept_short_by_dropping_before_sealing() {
    keeps_a_standing_queue_short(Gateway::new(), 0);
}

/// The same where another worker seals than sends.
#[test]
fn a_standing_queue_is_kept_short_by_a_worker_that_does_not_own_it() {
    keeps_a_standing_queue_short(Gateway::with_workers(2), 1);
}

/// `owner` owns the SAs, worker 0 the connection.
fn keeps_a_standing_queue_short(mut gateway: Gateway, owner: u16) {
    let mut peer = Peer::new(1);
    let (id, conn) = peer.begin(&mut gateway);
    assert_eq!(conn.worker, 0);
    let wanted = Wanted { owner, ..Wanted::by(path(Transport::Tcp, Some(conn))) };
    let sa = Sa::install(&mut gateway, wanted);
    let (decoder, gathering) = (Decoder::for_originator(), Gathering::new());
    let (under_way, back) = (VecDeque::new(), VecDeque::new());
    let mut path = Path { peer, decoder, gathering, under_way, back, free_at: 0 };
    let start = gateway.now_ns;
    let (mut ages, mut arrived) = (Vec::new(), 0u64);
    while gateway.now_ns < start + 20_000 * MS {
        let now = gateway.now_ns;
        let payload = [&now.to_be_bytes()[..], &[0; 1290]].concat();
        gateway.inner_packet(&ping(HOST_V4, FAR_V4, &payload));
        if (now / MS).is_multiple_of(6) {
            gateway.inner_packet(&ping(HOST_V4, FAR_V4, &payload));
        }
        while let Some((_, packet)) = path.back.pop_front_if(|(at, _)| *at <= now) {
            gateway.outer_packet(&packet);
        }
        gateway.turn();
        path.leave(now, packets(&mut gateway));
        let new = path.arrive(now, &sa, id);
        if now > start + 10_000 * MS {
            arrived += new.len() as u64 * 1_400;
            ages.extend(new);
        }
        gateway.now_ns += MS;
    }
    ages.sort_unstable();
    let median = ages[ages.len() / 2];
    assert!(median < 60, "median {median} ms, of which the link's delay and queue are 34");
    assert!(gateway.count(Counter::TcpAged) > 100);
    assert_eq!(gateway.count(Counter::HandoffTcpLost), 0);
    assert!(arrived > RATE * 10_000 * 9 / 10, "{arrived} octets");
}
