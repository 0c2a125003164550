//! DPDK as safe Rust: the EAL and its lcores, mbuf pools, mbufs, bursts, and ports split into
//! queues.
//!
//! A packet's way through here: a [`RxQueue`] takes up to [`BURST_SIZE`] of them from a device's
//! descriptors into a [`Burst`]; each is a [`Mbuf`] that its holder owns, may change in place, may
//! send to another thread, and gives back to its [`Pool`] by dropping it; a [`TxQueue`] takes a
//! burst, keeps what the device accepts and leaves the rest. Nothing on that way allocates, locks
//! or calls the kernel. (What a driver does below is the driver's: net_af_packet makes one system
//! call a burst.)
//!
//! # How a worker uses it
//!
//! ```no_run
//! use culvert_dpdk::{Burst, Device, Eal, Memory, Pool, PoolConfig, PortConfig, Started};
//! use std::sync::{Arc, atomic::{AtomicBool, Ordering}};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // Once in a process, on the thread that stays the control thread.
//! let eal = Eal::builder().workers([1]).memory(Memory::Small { mib: 256 }).init()?;
//! let pool = Pool::new(eal, &PoolConfig { mbufs: 16_383, ..PoolConfig::named("packets") })?;
//!
//! // One port, one queue pair for each worker.
//! let device = Device::open(eal, "net_af_packet0,iface=outer0")?;
//! let config = PortConfig { rx_queues: 1, tx_queues: 1, ..PortConfig::default() };
//! let Started { port, mut rx_queues, mut tx_queues } = device.start(&config, &[pool])?;
//! println!("{:?} has offloads {:?}", port.mac(), port.offloads());
//!
//! let stop = Arc::new(AtomicBool::new(false));
//! let (Some(mut rx), Some(mut tx)) = (rx_queues.pop(), tx_queues.pop()) else { return Ok(()) };
//! let worker = eal.launch(eal.workers()[0], {
//!     let stop = Arc::clone(&stop);
//!     move || {
//!         let (mut received, mut to_send) = (Burst::new(), Burst::new());
//!         while !stop.load(Ordering::Relaxed) {
//!             rx.burst(&mut received);
//!             for mut mbuf in received.drain() {
//!                 let Some(ethernet) = mbuf.data_mut().get_mut(..12) else { continue }; // drop
//!                 ethernet.rotate_left(6);
//!                 if to_send.push(mbuf).is_err() {
//!                     break; // full: the mbuf and the rest of the drain are freed, in bulk
//!                 }
//!             }
//!             tx.burst(&mut to_send);
//!             to_send.clear(); // what the device could not take is dropped, in bulk
//!         }
//!     }
//! })?;
//! stop.store(true, Ordering::Relaxed);
//! worker.join();
//! # Ok(())
//! # }
//! ```
//!
//! # Ownership
//!
//! * [`Eal`] is a proof that `rte_eal_init` succeeded; it is `Copy`, and never undone.
//! * A [`Pool`] is never freed: its mbufs may lie in any ring, burst or descriptor.
//! * A [`Mbuf`] has exactly one owner (its reference count is one and nothing here raises it).
//! * A queue has exactly one owner, which may be any one thread at a time. The device is stopped
//!   and closed when its [`Port`] and all its queues are dropped.
//!
//! # Limits
//!
//! One EAL in a process; [`MAX_WORKERS`] workers; [`BURST_SIZE`] mbufs in a burst.

mod burst;
mod cycles;
pub mod devargs;
mod device;
mod eal;
mod error;
mod lcore;
mod mbuf;
mod offload;
mod pool;
mod port;
mod queue;

pub use burst::{BURST_SIZE, Burst, Drain};
pub use cycles::{tsc, tsc_hz};
pub use device::{Device, PortConfig};
pub use eal::{Eal, EalBuilder, LogLevel, MAX_WORKERS, Memory, available_cpus};
pub use error::{EalError, Errno, LaunchError, PoolError, PortError};
pub use lcore::{Lcore, LcoreHandle};
pub use mbuf::{Mbuf, Segments};
pub use offload::{ChecksumStatus, IpVersion, L4, Offloads, TxOffload};
pub use pool::{Pool, PoolConfig};
pub use port::{Link, Port, PortStats, Started};
pub use queue::{RxQueue, TxQueue};
