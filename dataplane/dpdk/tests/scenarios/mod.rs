//! What must hold with every kind of memory. DPDK starts once in a process, so that each test
//! binary starts it its own way and runs these.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, outside of their functions

use culvert_dpdk::{
    BURST_SIZE, Burst, Device, Eal, LaunchError, Mbuf, Pool, PoolConfig, PortConfig, PortError,
    Started, devargs,
};
use std::{fs, path::PathBuf, process, process::Command, sync::mpsc, thread, time::Duration};

/// A pool that these scenarios do not exhaust by accident.
pub(crate) fn pool(eal: Eal, name: &str) -> Pool {
    Pool::new(eal, &PoolConfig { mbufs: 4_095, ..PoolConfig::named(name) }).unwrap()
}

/// One queue pair with few descriptors.
pub(crate) fn start(eal: Eal, device: &str, pool: Pool) -> Started {
    let config = PortConfig { rx_descriptors: 256, tx_descriptors: 256, ..PortConfig::default() };
    Device::open(eal, device).unwrap().start(&config, &[pool]).unwrap()
}

/// A frame to everybody that is recognisable by `number`, of an EtherType for experiments.
fn frame(pool: &Pool, number: u32) -> Mbuf {
    let mut mbuf = pool.alloc().unwrap();
    assert!(mbuf.extend_from_slice(&[0xff; 6]));
    assert!(mbuf.extend_from_slice(&[2, 0, 0, 0, 0, 1, 0x88, 0xb5]));
    mbuf.append(50).unwrap().fill(number as u8);
    assert!(mbuf.extend_from_slice(&number.to_be_bytes()));
    mbuf
}

fn number_of(mbuf: &Mbuf) -> u32 {
    let (_, number) = mbuf.data().split_last_chunk().unwrap();
    u32::from_be_bytes(*number)
}

/// What is sent on a net_ring comes back on it, octet for octet and in order; and when all of it
/// is dropped, the pool is as full as it was.
pub(crate) fn ring_returns_what_was_sent(eal: Eal) {
    let pool = pool(eal, "ring");
    {
        let Started { mut rx_queues, mut tx_queues, port } = start(eal, &devargs::ring(0), pool);
        let (mut rx, mut tx) = (rx_queues.remove(0), tx_queues.remove(0));
        let mut burst = Burst::new();
        for round in 0..100 {
            let numbers: Vec<u32> = (round * 20..round * 20 + 20).collect();
            numbers.iter().for_each(|&number| burst.push(frame(&pool, number)).unwrap());
            let sent: Vec<Vec<u8>> = burst.iter().map(|mbuf| mbuf.data().to_vec()).collect();
            assert_eq!(tx.burst(&mut burst), 20);
            assert!(burst.is_empty());
            assert_eq!(rx.burst(&mut burst), 20);
            assert!(burst.iter().map(number_of).eq(numbers));
            assert!(burst.iter().map(Mbuf::data).eq(sent.iter().map(Vec::as_slice)));
            burst.clear();
        }
        assert_eq!(port.stats().rx_packets, 2_000);
        assert_eq!(port.stats().tx_packets, 2_000);
    }
    assert_eq!(pool.available(), pool.capacity());
}

/// A device that takes less than it is offered leaves the rest, in order.
pub(crate) fn unsent_mbufs_stay_in_the_burst(eal: Eal) {
    let pool = pool(eal, "unsent");
    {
        let Started { mut rx_queues, mut tx_queues, .. } = start(eal, &devargs::ring(1), pool);
        let (mut rx, mut tx) = (rx_queues.remove(0), tx_queues.remove(0));
        let (mut burst, mut next) = (Burst::new(), 0);
        loop {
            while burst.push(frame(&pool, next)).is_ok() {
                next += 1;
            }
            if tx.burst(&mut burst) < BURST_SIZE {
                break; // the ring of the device is full
            }
        }
        let accepted = next - burst.len() as u32;
        assert!(burst.iter().map(number_of).eq(accepted..next));
        let mut received = Burst::new();
        let mut expected = 0;
        while rx.burst(&mut received) > 0 {
            for mbuf in received.drain() {
                assert_eq!(number_of(&mbuf), expected);
                expected += 1;
            }
        }
        assert_eq!(expected, accepted);
    }
    assert_eq!(pool.available(), pool.capacity());
}

/// An lcore polls net_null without end into a sink and stops when told; nothing leaks. What a
/// worker owns moves there and back.
pub(crate) fn a_worker_forwards_on_its_lcore(eal: Eal) {
    let pool = pool(eal, "worker");
    let source = start(eal, &devargs::null(0, 64), pool);
    let sink = start(eal, &devargs::sink(1), pool);
    let (mut rx_queues, mut tx_queues) = (source.rx_queues, sink.tx_queues);
    let (mut rx, mut tx) = (rx_queues.remove(0), tx_queues.remove(0));
    let worker = eal.workers()[0];
    let cpus = eal
        .launch(worker, move || {
            let mut burst = Burst::new();
            let mut forwarded = 0;
            while forwarded < 100_000 {
                rx.burst(&mut burst);
                assert!(burst.iter().all(|mbuf| mbuf.len() == 64));
                forwarded += tx.burst(&mut burst);
                burst.clear();
            }
            culvert_dpdk::available_cpus()
        })
        .unwrap()
        .join();
    assert_eq!(cpus.unwrap(), [worker.cpu()]);
    assert!(sink.port.stats().tx_packets >= 100_000);
    drop((rx_queues, tx_queues, source.port, sink.port));
    assert_eq!(pool.available(), pool.capacity());
}

/// Bulk allocation is all or nothing, and an empty pool says so instead of failing.
pub(crate) fn an_exhausted_pool_says_so(eal: Eal) {
    let config = PoolConfig { mbufs: 63, cache: 0, ..PoolConfig::named("exhausted") };
    let pool = Pool::new(eal, &config).unwrap();
    let (mut first, mut second) = (Burst::new(), Burst::new());
    assert!(pool.alloc_bulk(&mut first, BURST_SIZE));
    assert!(!pool.alloc_bulk(&mut first, 1), "the burst is full");
    assert!(!pool.alloc_bulk(&mut second, BURST_SIZE), "31 are left");
    assert!(second.is_empty());
    assert!(pool.alloc_bulk(&mut second, 31));
    assert!(pool.alloc().is_none());
    drop(first);
    assert_eq!(pool.available(), 32);
    drop(second);
    assert_eq!(pool.available(), 63);
}

/// A capture file of `frames`, in pcap's format: a header, and a header before each frame.
fn capture_file(name: &str, frames: &[&[u8]]) -> PathBuf {
    let path = std::env::temp_dir().join(format!("culvert-{}-{name}.pcap", process::id()));
    let header: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1];
    let mut octets: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
    for frame in frames {
        let length = frame.len() as u32;
        octets.extend([0, 0, length, length].into_iter().flat_map(u32::to_le_bytes));
        octets.extend(*frame);
    }
    fs::write(&path, octets).unwrap();
    path
}

/// A capture is replayed without end, in order, as a load; or once, with what is sent captured.
pub(crate) fn captures_are_replayed_and_written(eal: Eal) {
    let pool = pool(eal, "capture");
    let frames: [&[u8]; 3] = [&[1; 60], &[2; 1_000], &[3; 1_514]];
    let from = capture_file("from", &frames);
    let mut burst = Burst::new();
    {
        let mut port = start(eal, &devargs::replay(0, &from), pool);
        for _ in 0..100 {
            assert_eq!(port.rx_queues[0].burst(&mut burst), BURST_SIZE);
            let first = burst[0].data()[0];
            for (mbuf, turn) in burst.drain().zip(usize::from(first - 1)..) {
                assert_eq!(mbuf.data(), frames[turn % 3]);
            }
        }
    }
    let into = from.with_extension("out");
    {
        let mut port = start(eal, &devargs::capture(1, &from, &into), pool);
        assert_eq!(port.rx_queues[0].burst(&mut burst), 3);
        assert_eq!(port.tx_queues[0].burst(&mut burst), 3);
    }
    let (read, written) = (fs::read(&from).unwrap(), fs::read(&into).unwrap());
    assert_eq!(read.len(), written.len());
    assert!(frames.iter().all(|frame| written.windows(frame.len()).any(|octets| octets == *frame)));
    fs::remove_file(from).unwrap();
    fs::remove_file(into).unwrap();
    assert_eq!(pool.available(), pool.capacity());
}

/// Runs `ip` in this thread's network namespace.
fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Frames cross a veth between two net_af_packet ports, in a network namespace that exists as long
/// as this thread and the ports' sockets.
pub(crate) fn af_packet_crosses_a_veth(eal: Eal) {
    thread::spawn(move || {
        // SAFETY: changes the network namespace of this thread alone.
        let status = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(status, 0, "needs root: {}", std::io::Error::last_os_error());
        ip("link add cv0 type veth peer name cv1");
        ip("link set cv0 up");
        ip("link set cv1 up");
        let pool = pool(eal, "veth");
        let left = start(eal, &devargs::af_packet(0, "cv0", 1), pool);
        let right = start(eal, &devargs::af_packet(1, "cv1", 1), pool);
        assert_ne!(left.port.mac(), right.port.mac());
        assert!(left.port.link().up);
        exchange(&pool, left, right);
        two_queues_share_a_veth(eal, pool);
        assert_eq!(pool.available(), pool.capacity());
        // The ports took their devices along: the names are free again.
        drop(start(eal, &devargs::af_packet(0, "cv0", 1), pool));
    })
    .join()
    .unwrap();
}

/// With two queue pairs, each can send, and each flow arrives on one of the other side's.
fn two_queues_share_a_veth(eal: Eal, pool: Pool) {
    let config = PortConfig { rx_queues: 2, tx_queues: 2, ..PortConfig::default() };
    let mut ports = ["cv0", "cv1"].into_iter().zip(0..).map(|(interface, number)| {
        let device = Device::open(eal, &devargs::af_packet(number, interface, 2)).unwrap();
        assert_eq!(device.max_queues(), (2, 2));
        device.start(&config, &[pool]).unwrap()
    });
    let (mut left, mut right) = (ports.next().unwrap(), ports.next().unwrap());
    let mut burst = Burst::new();
    for tx in &mut left.tx_queues {
        (0..10).for_each(|number| burst.push(frame(&pool, number)).unwrap());
        assert_eq!(tx.burst(&mut burst), 10);
    }
    let mut arrived = 0;
    for _ in 0..1000 {
        for rx in &mut right.rx_queues {
            rx.burst(&mut burst);
            arrived += burst.drain().filter(is_ours).count();
        }
        if arrived == 20 {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(arrived, 20);
}

/// The kernel's own chatter (router solicitations) arrives as well.
fn is_ours(mbuf: &Mbuf) -> bool {
    mbuf.data().get(12..14) == Some(&[0x88, 0xb5])
}

fn exchange(pool: &Pool, mut left: Started, mut right: Started) {
    let mut burst = Burst::new();
    (0..10).for_each(|number| burst.push(frame(pool, number)).unwrap());
    assert_eq!(left.tx_queues[0].burst(&mut burst), 10);
    let mut arrived = Vec::new();
    for _ in 0..1000 {
        right.rx_queues[0].burst(&mut burst);
        arrived.extend(burst.drain().filter(is_ours).map(|mbuf| (mbuf.len(), number_of(&mbuf))));
        if arrived.len() == 10 {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(arrived, (0..10).map(|number| (68, number)).collect::<Vec<_>>());
}

/// Errors name the device and what is wrong with it.
pub(crate) fn impossible_ports_are_refused(eal: Eal) {
    let pool = pool(eal, "refused");
    let absent = Device::open(eal, "net_af_packet9,iface=cv-absent");
    assert!(matches!(absent, Err(PortError::VdevNotFound { .. })), "{absent:?}");
    let absent = Device::open(eal, "0000:ff:1f.7");
    assert!(matches!(absent, Err(PortError::PciNotFound { .. })), "{absent:?}");
    assert!(matches!(Device::open(eal, ""), Err(PortError::BadDevice { .. })));

    let start = |config: PortConfig, pools: &[Pool]| {
        Device::open(eal, &devargs::null(9, 64)).unwrap().start(&config, pools).map(drop)
    };
    let default = PortConfig::default;
    let refused = start(PortConfig { rx_queues: 5_000, ..default() }, &[pool]);
    assert!(matches!(refused, Err(PortError::Queues { rx: 5_000, .. })), "{refused:?}");
    let refused = start(PortConfig { mtu: 40, ..default() }, &[pool]);
    assert!(matches!(refused, Err(PortError::Mtu { mtu: 40, .. })), "{refused:?}");
    let refused = start(PortConfig { mtu: 9_000, ..default() }, &[pool]);
    assert!(matches!(refused, Err(PortError::MbufsTooSmall { mtu: 9_000, .. })), "{refused:?}");
    assert!(matches!(start(default(), &[]), Err(PortError::NoPool)));
    // Each refusal closed the device again.
    let held = Device::open(eal, &devargs::null(9, 64)).unwrap();
    let second = Device::open(eal, &devargs::null(9, 64));
    assert!(matches!(second, Err(PortError::InUse { .. })), "{second:?}");
    drop(held);
    start(default(), &[pool]).unwrap();
}

/// More queues than one are spread over by a symmetric hash where the device has one.
pub(crate) fn several_queues_get_rss(eal: Eal) {
    let pool = pool(eal, "rss");
    let start = |rx_queues| {
        let config = PortConfig { rx_queues, tx_queues: 1, ..PortConfig::default() };
        let device = Device::open(eal, &devargs::null(20, 64)).unwrap();
        let started = device.start(&config, &[pool]).unwrap();
        (started.port.rss(), started.rx_queues.len())
    };
    assert_eq!(start(1), (false, 1));
    assert_eq!(start(4), (true, 4));
}

/// An lcore refuses a second worker while it runs one, hands a panic to whoever joins, and is free
/// again after that.
pub(crate) fn an_lcore_runs_one_worker_at_a_time(eal: Eal) {
    let lcore = eal.workers()[0];
    let (finish, wait) = mpsc::channel::<()>();
    let first = eal.launch(lcore, move || wait.recv().is_ok()).unwrap();
    let second = eal.launch(lcore, || ());
    assert!(matches!(second, Err(LaunchError::Busy { lcore: 1 })), "{second:?}");
    finish.send(()).unwrap();
    assert!(first.join());
    let panicking = eal.launch(lcore, || std::panic::panic_any("on purpose")).unwrap();
    let panicked = thread::spawn(|| panicking.join()).join();
    assert_eq!(panicked.unwrap_err().downcast_ref(), Some(&"on purpose"));
    assert_eq!(eal.launch(lcore, || 42).unwrap().join(), 42);
}
