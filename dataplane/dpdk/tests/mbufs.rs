//! What an mbuf does to its octets, against a model: a vector of octets with limits.

#![allow(clippy::unwrap_used)] // helpers of tests, outside of their functions

use culvert_dpdk::{
    BURST_SIZE, Burst, ChecksumStatus, Eal, IpVersion, L4, Mbuf, Memory, Pool, PoolConfig,
    PoolError, TxOffload,
};
use proptest::prelude::*;
use std::{sync::OnceLock, thread};

const ROOM: u16 = 256;
const HEADROOM: usize = 128;

fn eal() -> Eal {
    static EAL: OnceLock<Eal> = OnceLock::new();
    *EAL.get_or_init(|| Eal::builder().memory(Memory::Small { mib: 64 }).init().unwrap())
}

fn pool(name: &str) -> Pool {
    let small =
        PoolConfig { mbufs: 255, cache: 0, data_room: ROOM + 128, ..PoolConfig::named(name) };
    Pool::new(eal(), &small).unwrap()
}

/// Pools of all cases of a property test each: pools are not freed.
static VECTOR_POOL: OnceLock<Pool> = OnceLock::new();
static CHAIN_POOL: OnceLock<Pool> = OnceLock::new();

/// The whole packet, read over segment borders.
fn octets(mbuf: &Mbuf) -> Vec<u8> {
    let mut all = vec![0; mbuf.len() + 1];
    let count = mbuf.read(0, &mut all);
    all.truncate(count);
    all
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<u8>),
    Prepend(Vec<u8>),
    Adj(usize),
    Trim(usize),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let some_octets = || proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        4 => some_octets().prop_map(Step::Append),
        4 => some_octets().prop_map(Step::Prepend),
        2 => (0..200usize).prop_map(Step::Adj),
        2 => (0..200usize).prop_map(Step::Trim),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Head and tail move as asked or not at all, and never lose or invent an octet.
    #[test]
    fn an_mbuf_is_a_vector_with_room_at_both_ends(steps in proptest::collection::vec(step(), 0..20)) {
        let mut mbuf = VECTOR_POOL.get_or_init(|| pool("vector")).alloc().unwrap();
        let (mut model, mut head) = (Vec::new(), HEADROOM);
        for step in steps {
            let tail = HEADROOM + usize::from(ROOM) - head - model.len();
            match step {
                Step::Append(added) => {
                    prop_assert_eq!(mbuf.extend_from_slice(&added), added.len() <= tail);
                    if added.len() <= tail {
                        model.extend(added);
                    }
                }
                Step::Prepend(added) => match mbuf.prepend(added.len()) {
                    Some(room) => {
                        prop_assert!(added.len() <= head);
                        room.copy_from_slice(&added);
                        head -= added.len();
                        model.splice(0..0, added);
                    }
                    None => prop_assert!(added.len() > head),
                },
                Step::Adj(count) => {
                    prop_assert_eq!(mbuf.adj(count), count <= model.len());
                    if count <= model.len() {
                        head += count;
                        model.drain(..count);
                    }
                }
                Step::Trim(count) => {
                    prop_assert_eq!(mbuf.trim(count), count <= model.len());
                    model.truncate(if count <= model.len() { model.len() - count } else { model.len() });
                }
                Step::Reset => {
                    mbuf.reset();
                    model.clear();
                    head = HEADROOM;
                }
            }
            prop_assert_eq!(mbuf.data(), &model[..]);
            prop_assert_eq!(mbuf.len(), model.len());
            prop_assert_eq!(mbuf.headroom(), head);
            prop_assert_eq!(mbuf.tailroom(), HEADROOM + usize::from(ROOM) - head - model.len());
        }
    }

    /// A chain reads as its segments in a row, from every offset; linearizing changes how it lies
    /// and not what it says.
    #[test]
    fn a_chain_reads_as_one_packet(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 1..5),
        offset in 0..400usize,
        wanted in 0..400usize,
    ) {
        let pool = CHAIN_POOL.get_or_init(|| pool("chain"));
        let mut packets = parts.iter().map(|part| {
            let mut mbuf = pool.alloc().unwrap();
            assert!(mbuf.extend_from_slice(part));
            mbuf
        });
        let mut packet = packets.next().unwrap();
        packets.for_each(|tail| packet.chain(tail).unwrap());
        let whole = parts.concat();
        prop_assert_eq!(packet.len(), whole.len());
        prop_assert_eq!(packet.is_contiguous(), parts.len() == 1);
        prop_assert!(packet.segments().eq(parts.iter().map(Vec::as_slice)));
        let expected: Vec<u8> = whole.iter().copied().skip(offset).take(wanted).collect();
        let mut out = vec![0; wanted];
        let count = packet.read(offset, &mut out);
        prop_assert_eq!(&out[..count], &expected[..]);
        let fits = parts.len() == 1 || whole.len() <= usize::from(ROOM);
        prop_assert_eq!(packet.linearize(), fits);
        prop_assert_eq!(octets(&packet), &whole[..]);
        if fits {
            prop_assert_eq!(packet.data(), &whole[..]);
        }
        drop(packet);
        prop_assert_eq!(pool.available(), pool.capacity());
    }
}

#[test]
fn a_reset_chain_gives_its_other_segments_back() {
    let pool = pool("reset");
    let mut packet = pool.alloc().unwrap();
    packet.chain(pool.alloc().unwrap()).unwrap();
    packet.chain(pool.alloc().unwrap()).unwrap();
    assert_eq!(pool.available(), pool.capacity() - 3);
    packet.reset();
    assert!(packet.is_contiguous());
    assert_eq!(pool.available(), pool.capacity() - 1);
}

#[test]
fn requests_are_not_taken_for_what_a_nic_has_checked() {
    let mut mbuf = pool("flags").alloc().unwrap();
    mbuf.request(&TxOffload {
        l2_len: 14,
        l3_len: 20,
        l4_len: 20,
        ip: IpVersion::V4,
        ip_checksum: true,
        l4_checksum: Some(L4::Tcp),
        tso_segment: None,
    });
    assert_eq!(mbuf.ip_checksum(), ChecksumStatus::Unknown);
    assert_eq!(mbuf.l4_checksum(), ChecksumStatus::Unknown);
    assert_eq!(mbuf.rss_hash(), None);
}

#[test]
fn a_burst_is_a_queue_that_frees_what_is_left_in_it() {
    let pool = pool("burst");
    let mut burst = Burst::new();
    assert!(pool.alloc_bulk(&mut burst, BURST_SIZE));
    assert!(burst.push(pool.alloc().unwrap()).is_err());
    burst.iter_mut().zip(0..).for_each(|(mbuf, n)| assert!(mbuf.extend_from_slice(&[n])));
    let first: Vec<Mbuf> = {
        let mut drain = burst.drain();
        (0..3).map(|_| drain.next().unwrap()).collect()
    };
    assert!(first.iter().map(Mbuf::data).eq([[0], [1], [2]]));
    assert!(burst.is_empty());
    assert_eq!(pool.available(), pool.capacity() - 3, "the rest of the drain is freed");
    first.into_iter().for_each(|mbuf| burst.push(mbuf).unwrap());
    drop(burst);
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn mbufs_travel_between_threads() {
    let pool = pool("threads");
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Mbuf>(8);
    let other = thread::spawn(move || {
        receiver.into_iter().map(|mbuf| usize::from(mbuf.data()[0])).sum::<usize>()
    });
    for n in 0..200 {
        let mut mbuf = pool.alloc().unwrap();
        assert!(mbuf.extend_from_slice(&[n]));
        sender.send(mbuf).unwrap();
    }
    drop(sender);
    assert_eq!(other.join().unwrap(), 199 * 200 / 2);
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn impossible_pools_are_refused_by_name() {
    let refused = |config: PoolConfig| Pool::new(eal(), &config).unwrap_err();
    let named = || PoolConfig::named("refused");
    assert!(matches!(refused(PoolConfig::named("")), PoolError::BadName { .. }));
    assert!(matches!(refused(PoolConfig::named("a".repeat(26))), PoolError::BadName { .. }));
    let cache = refused(PoolConfig { mbufs: 100, cache: 100, ..named() });
    assert!(matches!(cache, PoolError::CacheTooLarge { .. }), "{cache}");
    let memory = refused(PoolConfig { mbufs: 1_000_000, ..named() });
    assert!(matches!(memory, PoolError::NoMemory { mbufs: 1_000_000, .. }), "{memory}");
    let _first = pool("twice");
    let twice = refused(PoolConfig { name: "twice".to_owned(), ..named() });
    assert!(matches!(twice, PoolError::Create { .. }), "{twice}");
}
