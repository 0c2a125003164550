//! What the tunnel asks of the stack beyond the RFCs of TCP: IKE overtakes, unsent octets are known
//! with their age, marks are constant, memory is given back.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use culvert_tcpstack::{ConnError, Instant, Marking, Packet, Stack, StackConfig, Transmit};

use crate::play::{Play, config, play};
use crate::wire::Family;

/// Takes packets as they are.
#[derive(Default)]
struct Packets(Vec<Vec<u8>>);

impl Transmit for Packets {
    fn has_room(&mut self) -> bool {
        true
    }

    fn packet(&mut self, packet: Packet, mut fill: impl FnMut(&mut [u8])) {
        let mut octets = vec![0xa5; packet.bytes];
        fill(&mut octets);
        self.0.push(octets);
    }
}

/// A connection to a peer whose window is closed by 2000 octets of `b'a'` and `b'b'`.
fn stalled() -> Play {
    stalled_with(config())
}

fn stalled_with(config: StackConfig) -> Play {
    Play::new(Family::V4, config).play(
        "open 500
         < . 1(0) ack 1 win 500",
    )
}

fn send(play: &mut Play, octet: u8, len: usize) {
    let id = play.id();
    let sent = play.stack.send_with(id, len, |room| {
        room.fill(octet);
        len
    });
    assert_eq!(sent, Ok(len));
}

/// The payloads that leave when the peer opens its window, in one string.
fn drain(mut play: Play, mut acked: usize) -> Vec<u8> {
    let mut stream = Vec::new();
    for _ in 0..20 {
        let mut out = Packets::default();
        play.stack.poll_transmit(play.now, &mut out);
        for packet in out.0 {
            let header = 20 + usize::from(packet[32] >> 4) * 4;
            stream.extend_from_slice(&packet[header..]);
        }
        acked = acked.max(stream.len());
        let step = format!("< . 1(0) ack {} win 60000", acked + 1);
        play = play.quietly(&step, &mut stream);
        acked = stream.len();
    }
    stream
}

/// IKE overtakes the ESP frames that have not been started, and no other, nor other IKE.
#[test]
fn an_urgent_frame_overtakes_what_has_not_been_started() {
    let mut play = stalled();
    send(&mut play, b'a', 800); // 500 octets of it leave.
    let mut out = Packets::default();
    play.stack.poll_transmit(play.now, &mut out);
    assert_eq!(out.0.len(), 1);
    send(&mut play, b'b', 700);
    send(&mut play, b'c', 20_000); // Larger than a chunk of memory.
    let id = play.id();
    play.stack.send_urgent(id, 300, |frame| frame.fill(b'I')).unwrap();
    play.stack.send_urgent(id, 100, |frame| frame.fill(b'J')).unwrap();
    assert_eq!(play.stack.info(id).unwrap().unsent_bytes, 300 + 700 + 20_000 + 400);
    let stream = drain(play, 500);
    let frames: Vec<(u8, usize)> =
        stream.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect();
    assert_eq!(frames, [(b'a', 300), (b'I', 300), (b'J', 100), (b'b', 700), (b'c', 20_000)]);
}

/// A peer that shuts its window, answers probes and asks again and again for what is urgent, as who
/// repeats one IKE request does, gets no more than two of the longest frames of memory. The longest
/// one fits behind any frame that is started.
#[test]
fn urgent_frames_of_a_closed_window_are_bounded() {
    let mut play = stalled();
    let id = play.id();
    send(&mut play, b'a', 65_541);
    let mut out = Packets::default();
    play.stack.poll_transmit(play.now, &mut out);
    play.stack.send_urgent(id, 65_541, |frame| frame.fill(b'I')).unwrap();
    let before = play.stack.stats().buffer_bytes;
    let mut refused = 0;
    for n in 0..1000 {
        let answer = play.stack.send_urgent(id, 500, |frame| frame.fill(b'J'));
        refused += u32::from(answer == Err(ConnError::Full));
        play.run_until(play.now + Duration::from_secs(1));
        play.stack.poll_transmit(play.now, &mut Packets::default());
        play = play.quietly(&format!("< . {}(0) ack 501 win 0", 1 - n % 2), &mut Vec::new());
    }
    assert_eq!(refused, 999, "there was room for one behind 500 octets that have left");
    let more = play.stack.stats().buffer_bytes - before;
    assert!(more <= 2 * 16_384, "{more} octets of buffers");
    // What has left makes room again.
    let mut play = play.quietly("< . 1(0) ack 501 win 60000", &mut Vec::new());
    let id = play.id();
    play.stack.send_urgent(id, 500, |frame| frame.fill(b'K')).unwrap();
}

/// Nor does a peer that has its window filled with them and acknowledges nothing: besides the send
/// buffer there are two of the longest frames, in flight or not.
#[test]
fn urgent_frames_in_flight_are_bounded() {
    let tx_buffer_bytes = 1 << 16;
    let mut play = stalled_with(StackConfig { tx_buffer_bytes, ..config() });
    let id = play.id();
    send(&mut play, b'a', 500);
    let mut play = play.quietly("< . 1(0) ack 1 win 0", &mut Vec::new());
    send(&mut play, b'b', 65_000);
    let mut answers = Vec::new();
    for _ in 0..500 {
        answers.push(play.stack.send_urgent(id, 500, |frame| frame.fill(b'I')));
    }
    let mut play = play.quietly("< . 1(0) ack 1 win 14000", &mut Vec::new());
    play.stack.poll_transmit(play.now, &mut Packets::default());
    for _ in 0..500 {
        answers.push(play.stack.send_urgent(id, 500, |frame| frame.fill(b'J')));
    }
    assert!(answers.contains(&Ok(())) && answers.contains(&Err(ConnError::Full)));
    let info = play.stack.info(id).unwrap();
    let (held, most) = (info.unsent_bytes + info.in_flight_bytes, tx_buffer_bytes + 2 * 65_541);
    assert!(held <= most, "{held} octets to send, {most} allowed");
    assert!(info.in_flight_bytes > 0 && held > most - 500, "{held} of {most}: there was room");
}

/// How much waits, and since when: by these inner packets are dropped before they are sealed.
#[test]
fn unsent_octets_and_their_age() {
    let mut play = stalled();
    let id = play.id();
    let first = play.now;
    send(&mut play, b'a', 500);
    send(&mut play, b'b', 300);
    play.run_until(first + Duration::from_millis(7));
    send(&mut play, b'c', 200);
    let info = play.stack.info(id).unwrap();
    assert_eq!((info.unsent_bytes, info.unsent_since), (500, Some(first)));
    assert_eq!(info.in_flight_bytes, 500);
    let mut out = Vec::new();
    let play = play.quietly("< . 1(0) ack 501 win 300", &mut out);
    let info = play.stack.info(id).unwrap();
    let second = first + Duration::from_millis(7);
    assert_eq!((info.unsent_bytes, info.unsent_since), (200, Some(second)));
    let play = play.quietly("< . 1(0) ack 801 win 300", &mut out);
    let info = play.stack.info(id).unwrap();
    assert_eq!((info.unsent_bytes, info.unsent_since), (0, None));
}

/// Memory follows what is in flight or behind holes; without either there is none.
#[test]
fn buffers_are_given_back() {
    let play = Play::new(Family::V4, config()).play(
        "open 65535
         write 5000
         > . 1(1000) ack 1
         > . 1001(1000) ack 1
         > . 2001(1000) ack 1
         > . 3001(1000) ack 1
         > . 4001(1000) ack 1
         < . 60001(10) ack 1
         > . 5001(0) ack 1 sack 60001-60011",
    );
    assert_eq!(play.stack.stats().buffer_bytes, 2 * 16_384);
    let play = play.play("< . 1(0) ack 5001");
    assert_eq!(play.stack.stats().buffer_bytes, 16_384, "what was sent has arrived");
    let play = play.play(
        "< . 1(30000) ack 5001
         > . 5001(0) ack 30001 sack 60001-60011
         < . 30001(30000) ack 5001
         > . 5001(0) ack 60011",
    );
    assert_eq!(play.stack.stats().buffer_bytes, 0, "what was received was taken");
}

/// Without memory a stream goes on as long as it comes in order and is taken.
#[test]
fn a_stream_goes_on_without_memory() {
    let without = StackConfig { buffers_bytes: 0, ..config() };
    let play = Play::new(Family::V4, without).play(
        "open 65535
         < . 1001(1000) ack 1 => no-memory
         > . 1(0) ack 1
         < . 1(1000) ack 1 => accepted
         > . 1(0) ack 1001
         < . 1001(1000) ack 1 => accepted
         > . 1(0) ack 2001",
    );
    let mut play = play;
    let id = play.id();
    assert_eq!(play.stack.send_with(id, 10, |_| 10), Err(ConnError::Full));
}

/// RFC 9329, 9.1: how long frames waited behind a hole is known.
#[test]
fn rfc9329_9_1_head_of_line_delay() {
    let play = Play::new(Family::V4, config()).play(
        "open 65535
         < . 1001(1000) ack 1
         > . 1(0) ack 1 sack 1001-2001
         +0.05 < . 1(1000) ack 1
         > . 1(0) ack 2001",
    );
    let delays = play.stack.head_of_line_delay();
    assert_eq!(delays.len(), 1);
    assert!((49_000..=51_000).contains(&delays.max()), "{} microseconds", delays.max());
}

/// RFC 9329, 9.1: each segment waits from its own arrival until all before it have come, whatever
/// holes are filled in between.
#[test]
fn rfc9329_9_1_each_segment_behind_two_holes_has_its_own_delay() {
    let play = Play::new(Family::V4, config()).play(
        "open 65535
         < . 1001(1000) ack 1
         > . 1(0) ack 1 sack 1001-2001
         +0.01 < . 2001(1000) ack 1
         > . 1(0) ack 1 sack 1001-3001
         +0.01 < . 4001(1000) ack 1
         > . 1(0) ack 1 sack 4001-5001,1001-3001
         +0.01 < . 4001(1000) ack 1        # a duplicate does not wait
         > . 1(0) ack 1 sack 4001-5001,4001-5001,1001-3001
         +0.02 < . 1(1000) ack 1
         > . 1(0) ack 3001 sack 4001-5001
         +0.03 < . 3001(1000) ack 1
         > . 1(0) ack 5001",
    );
    let delays = play.stack.head_of_line_delay();
    let waited = |ms: u64| delays.count_between(ms * 1000 - 500, ms * 1000 + 500);
    assert_eq!(delays.len(), 3);
    // The first two until the first hole was filled, the third until the second was.
    assert_eq!((waited(50), waited(40), waited(60)), (1, 1, 1));
}

/// RFC 9329, 9.3 and 6.1: one DSCP and one flow label for every packet, RST and cookie included.
#[test]
fn rfc9329_9_3_marks_are_constant() {
    let marking = Marking { dscp: 46, ..Marking::default() };
    let marked = StackConfig { marking, ..config() };
    let mut stacks = [Stack::new(config(), [1; 32]).unwrap(), Stack::new(marked, [2; 32]).unwrap()];
    stacks[1].listen(4500);
    let now = Instant(1_000_000);
    let remote: SocketAddr = "[2001:db8::2]:4500".parse().unwrap();
    let id = stacks[0].connect(now, "2001:db8::1".parse().unwrap(), remote).unwrap();
    stacks[0].set_flow_label(id, 0x4_5678);
    // The other end's own setting is what is asked for here of one connection.
    stacks[0].set_dscp(id, 46);
    let (mut seen, mut labels) = (0, [BTreeSet::new(), BTreeSet::new()]);
    for turn in 0..8 {
        if turn == 4 {
            stacks[0].send_with(id, 3000, |_| 3000).unwrap();
        } else if turn == 6 {
            stacks[0].abort(id);
        }
        let mut out = Packets::default();
        stacks[turn % 2].poll_transmit(now, &mut out);
        for mut packet in out.0 {
            let first = u32::from_be_bytes(packet[..4].try_into().unwrap());
            assert_eq!(first >> 20, 6 << 8 | 46 << 2, "version, DSCP, Not-ECT");
            labels[turn % 2].insert(first & 0xf_ffff);
            seen += 1;
            let checksum = culvert_tcpstack::RxChecksum::Unknown;
            stacks[1 - turn % 2].handle_segment(now, &mut packet, checksum, &mut |_, o| o.len());
        }
    }
    assert!(seen >= 6, "SYN, cookie, ACK, three segments, ACK, RST: {seen}");
    assert_eq!(labels[0], BTreeSet::from([0x4_5678]), "as it was given");
    assert_eq!(labels[1].len(), 1);
}

/// Opens a connection from `from` to `to`; the flow labels of all its packets.
fn flow_labels(stacks: &mut [Stack; 2], from: &str, to: &str) -> [BTreeSet<u32>; 2] {
    let now = Instant(1_000_000);
    let remote = SocketAddr::new(to.parse().unwrap(), 4500);
    let id = stacks[0].connect(now, from.parse().unwrap(), remote).unwrap();
    let mut labels = [BTreeSet::new(), BTreeSet::new()];
    for turn in 0..6 {
        if turn == 4 {
            stacks[0].abort(id);
        }
        let mut out = Packets::default();
        stacks[turn % 2].poll_transmit(now, &mut out);
        for mut packet in out.0 {
            let first = u32::from_be_bytes(packet[..4].try_into().unwrap());
            labels[turn % 2].insert(first & 0xf_ffff);
            let checksum = culvert_tcpstack::RxChecksum::Unknown;
            stacks[1 - turn % 2].handle_segment(now, &mut packet, checksum, &mut |_, o| o.len());
        }
    }
    labels
}

/// RFC 9329, 6.1: the flow label stays when a new connection takes the place of an old one, in both
/// directions and whatever its port. RFC 6437, 3: it differs from host to host, and nobody else
/// can tell it.
#[test]
fn rfc9329_6_1_the_flow_label_outlives_the_connection() {
    let stack = |key| {
        let marking = Marking { label_key: [key; 2], ..Marking::default() };
        let mut stack = Stack::new(StackConfig { marking, ..config() }, [1; 32]).unwrap();
        stack.listen(4500);
        stack
    };
    let mut stacks = [stack(3), stack(4)];
    let first = flow_labels(&mut stacks, "2001:db8::1", "2001:db8::2");
    assert!(first.iter().all(|labels| labels.len() == 1 && !labels.contains(&0)), "{first:?}");
    assert_eq!(flow_labels(&mut stacks, "2001:db8::1", "2001:db8::2"), first);
    let other = flow_labels(&mut stacks, "2001:db8::1", "2001:db8::3");
    assert!(other[0] != first[0] && other[1] != first[1]);
    let mut others = [stack(5), stack(4)];
    assert_ne!(flow_labels(&mut others, "2001:db8::1", "2001:db8::2")[0], first[0]);
}

/// RFC 9293, 3.7.4 (no Nagle): a frame never waits for another.
#[test]
fn small_frames_do_not_wait() {
    play(
        "open 65535
         write 10
         > . 1(10) ack 1
         write 10
         > . 11(10) ack 1
         write 10
         > . 21(10) ack 1",
    );
}
