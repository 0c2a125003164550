//! How fast a poll loop runs here, without a kernel or a NIC: one lcore takes frames from net_null
//! and sends them to net_null, for a second at a time.
//!
//! ```text
//! cargo run --release -p culvert-dpdk --example poll_loop
//! ```
//!
//! `forward` only moves bursts; `touch` also reads and writes each frame's addresses; `single`
//! allocates and frees each mbuf by itself, `bulk` 32 at once.

use culvert_dpdk::{
    BURST_SIZE, Burst, Device, Eal, Memory, Pool, PoolConfig, PortConfig, RxQueue, Started,
    TxQueue, devargs, tsc, tsc_hz,
};
use std::error::Error;

const FRAME_OCTETS: u16 = 64;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let cpu = culvert_dpdk::available_cpus()?.pop().ok_or("no CPU")?;
    let eal = Eal::builder().workers([cpu]).memory(Memory::Small { mib: 128 }).init()?;
    let pool = Pool::new(eal, &PoolConfig::named("poll"))?;
    let (mut rx, mut tx) = queues(eal, pool)?;
    let hz = tsc_hz(eal);
    let worker = eal.launch(eal.workers()[0], move || {
        println!("{:>9} {:>9} {:>14}", "loop", "Mpps", "cycles/packet");
        for _ in 0..ROUNDS {
            report("forward", hz, || forward(&mut rx, &mut tx, |_| ()));
            report("touch", hz, || forward(&mut rx, &mut tx, swap_addresses));
            report("single", hz, || allocate_single(&pool));
            report("bulk", hz, || allocate_bulk(&pool));
        }
    })?;
    worker.join();
    Ok(())
}

fn queues(eal: Eal, pool: Pool) -> Result<(RxQueue, TxQueue), Box<dyn Error>> {
    let config = PortConfig::default();
    let device = devargs::null(0, FRAME_OCTETS);
    let Started { mut rx_queues, mut tx_queues, .. } =
        Device::open(eal, &device)?.start(&config, &[pool])?;
    let (rx, tx) = (rx_queues.pop(), tx_queues.pop());
    Ok((rx.ok_or("no receive queue")?, tx.ok_or("no transmit queue")?))
}

/// Runs `turn`, which returns how many packets it handled, for a second.
fn report(name: &str, hz: u64, mut turn: impl FnMut() -> usize) {
    let start = tsc();
    let mut packets = 0;
    while tsc() - start < hz {
        packets += (0..1000).map(|_| turn()).sum::<usize>();
    }
    let cycles = (tsc() - start) as f64;
    let per_packet = cycles / packets as f64;
    println!("{name:>9} {:>9.1} {per_packet:>14.1}", hz as f64 / per_packet / 1e6);
}

fn forward(rx: &mut RxQueue, tx: &mut TxQueue, touch: impl Fn(&mut [u8])) -> usize {
    let mut burst = Burst::new();
    rx.burst(&mut burst);
    burst.iter_mut().for_each(|mbuf| touch(mbuf.data_mut()));
    tx.burst(&mut burst)
}

fn swap_addresses(frame: &mut [u8]) {
    if let Some(addresses) = frame.first_chunk_mut::<12>() {
        addresses.rotate_left(6);
    }
}

fn allocate_single(pool: &Pool) -> usize {
    (0..BURST_SIZE).filter_map(|_| pool.alloc()).map(drop).count()
}

fn allocate_bulk(pool: &Pool) -> usize {
    let mut burst = Burst::new();
    if pool.alloc_bulk(&mut burst, BURST_SIZE) { burst.len() } else { 0 }
}
