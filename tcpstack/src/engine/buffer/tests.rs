use super::*;
use crate::time::Instant;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const NOW: Instant = Instant::from_micros(1);

fn octet(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9) >> 13) as u8
}

fn write_urgent(
    buffer: &mut SendBuffer,
    pool: &mut ChunkPool,
    next: u64,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Result<(), Full> {
    buffer.write_urgent(pool, (NOW, next), (len, usize::MAX), fill)
}

#[derive(Clone, Debug)]
enum Write {
    Frame(usize),
    Urgent(usize),
    Send(u64),
    Acknowledge(u64),
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let step = prop_oneof![
        4 => (1usize..3000).prop_map(Write::Frame),
        1 => (CHUNK - 2..3 * CHUNK).prop_map(Write::Frame),
        2 => (1usize..2000).prop_map(Write::Urgent),
        4 => (1u64..9000).prop_map(Write::Send),
        2 => (1u64..9000).prop_map(Write::Acknowledge),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Against a list of frames: an urgent one goes in front of the first that is neither started nor
    /// urgent, and what is read is what was written.
    #[test]
    fn the_send_buffer_is_a_queue_of_frames(steps in writes()) {
        let mut pool = ChunkPool::new(16 << 20);
        let mut buffer = SendBuffer::new();
        let mut stream: Vec<u8> = Vec::new();
        // Starts of the frames in `stream`, and those of urgent ones.
        let mut starts: Vec<u64> = Vec::new();
        let mut urgent: BTreeSet<u64> = BTreeSet::new();
        let (mut una, mut next) = (1u64, 1u64);
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Write::Frame(len) => {
                    starts.push(1 + stream.len() as u64);
                    stream.resize(stream.len() + len, number as u8);
                    let fill = |room: &mut [u8]| { room.fill(number as u8); len };
                    prop_assert_eq!(buffer.write_with(&mut pool, NOW, len, fill), Ok(len));
                }
                Write::Urgent(len) => {
                    let end = 1 + stream.len() as u64;
                    let waits = |start: &u64| *start >= next && !urgent.contains(start);
                    let at = starts.iter().copied().find(waits).unwrap_or(end);
                    let place = (at - 1) as usize;
                    stream.splice(place..place, std::iter::repeat_n(number as u8, len));
                    starts.iter_mut().filter(|s| **s >= at).for_each(|s| *s += len as u64);
                    starts.push(at);
                    starts.sort_unstable();
                    urgent.insert(at);
                    let fill = |room: &mut [u8]| room.fill(number as u8);
                    prop_assert_eq!(write_urgent(&mut buffer, &mut pool, next, len, fill), Ok(()));
                }
                Write::Send(len) => {
                    next = (next + len).min(1 + stream.len() as u64);
                    buffer.sent(next);
                }
                Write::Acknowledge(len) => {
                    una = (una + len).min(next);
                    buffer.acknowledged(&mut pool, una);
                }
            }
            prop_assert_eq!(buffer.end(), 1 + stream.len() as u64);
            let waits = starts.iter().copied().chain([buffer.end()]);
            let unsent = waits.clone().any(|start| start > next) || next < buffer.end();
            prop_assert_eq!(buffer.waiting_since().is_some(), unsent && next < buffer.end());
            let mut read = vec![0; stream.len() + 1 - una as usize];
            buffer.read(una, &mut read);
            prop_assert_eq!(&read, &stream[una as usize - 1..]);
        }
        buffer.release(&mut pool);
        prop_assert_eq!(pool.octets_in_use(), 0);
    }

    /// Against a map of octets: what is lent is what came, in order, and memory is given back.
    #[test]
    fn the_receive_buffer_gives_the_stream_back(
        pieces in proptest::collection::vec((0u64..60_000, 1u64..5000, 0usize..40_000), 1..60),
    ) {
        let mut pool = ChunkPool::new(16 << 20);
        let mut buffer = ReceiveBuffer::new();
        let mut model: BTreeMap<u64, u8> = BTreeMap::new();
        let (mut next, mut taken) = (1u64, 1u64);
        for (start, len, most) in pieces {
            let start = (1 + start).max(next);
            let data: Vec<u8> = (start..start + len).map(octet).collect();
            if buffer.holds(&(start..start + len)) {
                continue;
            }
            prop_assert_eq!(buffer.insert(&mut pool, next, start, &data), Ok(()));
            model.extend((start..).zip(data));
            while model.contains_key(&next) {
                next += 1;
            }
            prop_assert_eq!(buffer.run_end(next.min(start)), {
                let mut end = next.min(start);
                while model.contains_key(&end) { end += 1; }
                end
            });
            buffer.in_order_below(next);
            let mut left = most;
            let mut lent = Vec::new();
            buffer.lend(&mut pool, next, |octets| {
                let take = octets.len().min(left);
                lent.extend_from_slice(&octets[..take]);
                left -= take;
                take
            });
            let expected: Vec<u8> = (taken..taken + lent.len() as u64).map(octet).collect();
            prop_assert_eq!(&lent, &expected);
            prop_assert!(left == 0 || taken + lent.len() as u64 == next, "all was lent");
            taken += lent.len() as u64;
            prop_assert_eq!(buffer.taken(), taken);
            let held = model.range(taken..).count();
            prop_assert_eq!(pool.octets_in_use() == 0, held == 0, "memory for {} octets", held);
        }
        buffer.release(&mut pool);
        prop_assert_eq!(pool.octets_in_use(), 0);
    }
}

#[test]
fn the_pool_has_an_end() {
    let mut pool = ChunkPool::new(4 * CHUNK);
    let mut buffer = SendBuffer::new();
    assert_eq!(buffer.write_with(&mut pool, NOW, 2 * CHUNK, |_| 2 * CHUNK), Ok(2 * CHUNK));
    assert!(!pool.is_scarce());
    assert_eq!(buffer.write_with(&mut pool, NOW, 2 * CHUNK, |_| panic!("no room")), Err(Full));
    assert_eq!(buffer.write_with(&mut pool, NOW, CHUNK, |_| CHUNK), Ok(CHUNK));
    assert!(pool.is_scarce());
    assert_eq!(buffer.write_with(&mut pool, NOW, 1, |_| panic!("no room")), Err(Full));
    let refused = write_urgent(&mut buffer, &mut pool, 1, 1, |_| panic!("no room"));
    assert_eq!(refused, Err(Full), "nothing was moved");
    let mut kept = vec![9; 3 * CHUNK];
    buffer.read(1, &mut kept);
    assert_eq!(kept, vec![0; 3 * CHUNK]);
    buffer.acknowledged(&mut pool, 1 + CHUNK as u64);
    assert_eq!(pool.octets_in_use(), 2 * CHUNK);
}

/// The SACK Panic class seen from the receiver: single octets behind holes are soon refused.
#[test]
fn single_octets_do_not_make_the_list_long() {
    let mut pool = ChunkPool::new(16 << 20);
    let mut buffer = ReceiveBuffer::new();
    let kept =
        (0..1000u64).filter(|n| buffer.insert(&mut pool, 1, 2 + 2 * n, &[1]).is_ok()).count();
    assert!(kept < 100, "{kept}");
    let large = (0..1000u64).filter(|n| {
        let mut other = ReceiveBuffer::new();
        other
            .insert(&mut pool, 1, 2000 + 2000 * n, &[1; 1000])
            .map(|()| other.release(&mut pool))
            .is_ok()
    });
    assert_eq!(large.count(), 1000);
}

/// A segment for which there is not enough memory takes none: its chunks would belong to no octet, so
/// that nobody could be asked to give them up.
#[test]
fn what_is_refused_holds_no_memory() {
    let (mut pool, octets) = (ChunkPool::new(8 * CHUNK), vec![0; 2 * CHUNK]);
    let mut other = ReceiveBuffer::new();
    other.insert(&mut pool, 1, 2, &octets).unwrap();
    let in_use = pool.octets_in_use();
    let mut buffer = ReceiveBuffer::new();
    assert_eq!(buffer.insert(&mut pool, 1, 2, &octets), Err(Full));
    assert_eq!(pool.octets_in_use(), in_use);
    assert_eq!(buffer.insert(&mut pool, 1, 2, &[0; 100]), Ok(()), "there is room for less");
    buffer.release(&mut pool);
    other.release(&mut pool);
    assert_eq!(pool.octets_in_use(), 0);
}

/// A frame that its writer gives up takes no memory: nothing that is acknowledged would give it back.
#[test]
fn a_frame_that_was_not_written_holds_no_memory() {
    let mut pool = ChunkPool::new(8 * CHUNK);
    let mut buffer = SendBuffer::new();
    assert_eq!(buffer.write_with(&mut pool, NOW, 100, |_| 0), Ok(0));
    assert_eq!(pool.octets_in_use(), 0);
    assert_eq!(buffer.write_with(&mut pool, NOW, 100, |_| 10), Ok(10));
    assert_eq!(buffer.write_with(&mut pool, NOW, 100, |_| 0), Ok(0));
    assert_eq!((buffer.end(), pool.octets_in_use()), (11, CHUNK));
}
