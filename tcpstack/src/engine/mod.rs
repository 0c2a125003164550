//! The TCP engine: RFC 9293 for the open Internet, on `smoltcp::wire`.
//!
//! A [`connection::Connection`] is the state machine of one connection. It owns its two directions
//! and borrows the rest: chunks of memory from the worker's pool ([`buffer`]), numbers and cookies
//! from the gateway's secret ([`cookie`]). [`segment`] is the edge to the wire; behind it positions
//! are offsets that never wrap ([`offset`]).
//!
//! The repair of losses: [`scoreboard`] knows what is in flight, [`rack`] what is lost, [`rtt`]
//! how long to wait, [`prr`] and [`congestion`] how much may leave, [`pacing`] when, and [`pmtu`]
//! in pieces of which size.

pub(crate) mod buffer;
pub(crate) mod congestion;
pub(crate) mod connection;
pub(crate) mod cookie;
pub(crate) mod label;
mod lazy;
#[cfg(test)]
mod link;
mod offset;
mod pacing;
mod pmtu;
mod prr;
mod rack;
mod ranges;
mod rtt;
mod scoreboard;
pub(crate) mod segment;

use crate::config::StackConfig;
use crate::time::{Duration, Instant};
use buffer::ChunkPool;
use connection::{Context, Settings};
use hdrhistogram::Histogram;

/// The longest head-of-line delay told apart, in microseconds.
const HEAD_OF_LINE_MAX_US: u64 = 60_000_000;
/// TIME-WAIT, 2 MSL: as long as Linux and others keep it (RFC 9293, 3.4.2 gives the MSL as an
/// engineering choice).
const TIME_WAIT: Duration = Duration::from_secs(60);

/// What the connections of one stack share.
#[derive(Debug)]
pub(crate) struct Shared {
    settings: Settings,
    pool: ChunkPool,
    head_of_line: Histogram<u64>,
}

impl Shared {
    pub(crate) fn new(config: &StackConfig) -> Self {
        // Both bounds are constants that the histogram accepts.
        let head_of_line = Histogram::new_with_bounds(1, HEAD_OF_LINE_MAX_US, 2)
            .unwrap_or_else(|_| unreachable!("1 to 60,000,000 with two digits is valid"));
        Self {
            settings: Settings {
                mtu: config.mtu,
                receive_max: config.rx_buffer_bytes,
                send_max: config.tx_buffer_bytes,
                window_scale: window_scale(config.rx_buffer_bytes),
                congestion_control: config.congestion_control,
                user_timeout: config.user_timeout,
                connect_timeout: config.connect_timeout,
                keepalive: config.keepalive,
                time_wait: TIME_WAIT,
                tx_checksum: config.tx_checksum,
                segmentation_bytes: config.segmentation_bytes,
            },
            pool: ChunkPool::new(config.buffers_bytes),
            head_of_line,
        }
    }

    /// Lends a connection what it needs to work at `now`.
    pub(crate) fn borrow(&mut self, now: Instant) -> Context<'_> {
        Context {
            now,
            settings: &self.settings,
            pool: &mut self.pool,
            head_of_line: &mut self.head_of_line,
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn pool(&mut self) -> &mut ChunkPool {
        &mut self.pool
    }

    /// Octets that frames may still be written to, whatever their connections allow.
    pub(crate) fn send_room(&self) -> usize {
        self.pool.send_room()
    }

    pub(crate) fn buffer_bytes(&self) -> usize {
        self.pool.octets_in_use()
    }

    pub(crate) fn head_of_line(&self) -> &Histogram<u64> {
        &self.head_of_line
    }
}

/// The least shift by which 16 bits express `window` octets (RFC 7323, 2.3: at most 14).
fn window_scale(window: usize) -> u8 {
    (0..14).find(|shift| window >> shift <= usize::from(u16::MAX)).unwrap_or(14)
}
