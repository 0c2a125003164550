//! Connection slots: what `culvert tcp` shows of each worker's TCP connections.
//!
//! All of it is the worker's; control only reads.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use num_enum::TryFromPrimitive;

use crate::slot::{Slot, SlotState};
use crate::types::ConnRef;
use crate::words::{Record, SOCKET_WORDS, WordReader, WordWriter};

/// The congestion control of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, TryFromPrimitive)]
#[repr(u16)]
pub enum Congestion {
    /// BBR.
    Bbr = 1,
    /// CUBIC (RFC 9438).
    Cubic = 2,
}

impl fmt::Display for Congestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Congestion::Bbr => "bbr",
            Congestion::Cubic => "cubic",
        })
    }
}

/// What does not change while a connection lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnInfo {
    /// This gateway's end.
    pub local: SocketAddr,
    /// The peer's end.
    pub remote: SocketAddr,
    /// Whether this gateway opened it.
    pub originator: bool,
    /// When it was opened, [`crate::monotonic_ns`].
    pub opened_ns: u64,
}

impl Record for ConnInfo {
    const WORDS: usize = 2 * SOCKET_WORDS + 2;

    fn encode(&self, out: &mut WordWriter<'_>) {
        out.put_socket(self.local);
        out.put_socket(self.remote);
        out.put(u64::from(self.originator));
        out.put(self.opened_ns);
    }

    fn decode(words: &mut WordReader<'_>) -> Option<ConnInfo> {
        Some(ConnInfo {
            local: words.take_socket()?,
            remote: words.take_socket()?,
            originator: words.take()? == 1,
            opened_ns: words.take()?,
        })
    }
}

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnState {
    /// Open for both sides.
    Open,
    /// Closed by one side, not yet gone.
    Closing,
}

/// What a connection has carried, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnStats {
    /// The congestion control that governs it; `None` when shared memory held no such number.
    pub congestion: Option<Congestion>,
    /// Octets of the stream from the peer.
    pub octets_in: u64,
    /// Octets of the stream to the peer.
    pub octets_out: u64,
    /// Segments from the peer.
    pub segments_in: u64,
    /// Segments to the peer.
    pub segments_out: u64,
    /// When the last frame came, [`crate::monotonic_ns`]; 0: none yet.
    pub last_frame_ns: u64,
}

#[repr(C, align(64))]
pub(crate) struct ConnSlot {
    octets_in: AtomicU64,
    octets_out: AtomicU64,
    segments_in: AtomicU64,
    segments_out: AtomicU64,
    last_frame_ns: AtomicU64,
    /// Number of the [`Congestion`].
    congestion: AtomicU64,
    /// 1 once one side has closed.
    closing: AtomicU64,
    info: Slot<{ ConnInfo::WORDS }>,
}

impl ConnSlot {
    pub(crate) fn read(&self) -> Option<(u32, ConnState, ConnInfo, ConnStats)> {
        let (generation, _, info) = self.info.read()?;
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let state = if get(&self.closing) == 0 { ConnState::Open } else { ConnState::Closing };
        let congestion = u16::try_from(get(&self.congestion)).ok();
        let stats = ConnStats {
            congestion: congestion.and_then(|number| Congestion::try_from(number).ok()),
            octets_in: get(&self.octets_in),
            octets_out: get(&self.octets_out),
            segments_in: get(&self.segments_in),
            segments_out: get(&self.segments_out),
            last_frame_ns: get(&self.last_frame_ns),
        };
        Some((generation, state, info, stats))
    }

    pub(crate) fn erase(&self) {
        let (generation, _) = self.info.state();
        self.info.erase(generation);
    }
}

/// A worker's hand on one of its connection slots. Not `Sync`: it belongs to the worker's thread.
#[derive(Clone, Copy)]
pub struct ConnWriter<'a> {
    slot: &'a ConnSlot,
    _one_thread: std::marker::PhantomData<&'a std::cell::Cell<()>>,
}

impl<'a> ConnWriter<'a> {
    pub(crate) fn new(slot: &'a ConnSlot) -> ConnWriter<'a> {
        ConnWriter { slot, _one_thread: std::marker::PhantomData }
    }

    /// Shows a new connection, its counts at 0.
    pub fn open(&self, conn: ConnRef, info: &ConnInfo) {
        self.slot.erase();
        let slot = self.slot;
        for count in [
            &slot.octets_in,
            &slot.octets_out,
            &slot.segments_in,
            &slot.segments_out,
            &slot.last_frame_ns,
            &slot.congestion,
            &slot.closing,
        ] {
            count.store(0, Ordering::Relaxed);
        }
        slot.info.publish(conn.generation, SlotState::Live, info);
    }

    /// Shows that one side has closed the connection.
    pub fn closing(&self) {
        self.slot.closing.store(1, Ordering::Relaxed);
    }

    /// Shows the connection no more.
    pub fn close(&self) {
        self.slot.erase();
    }

    /// Shows what the connection has carried, as its owner counts it elsewhere; the time of the
    /// last frame stays.
    #[inline]
    pub fn show(&self, stats: &ConnStats) {
        self.slot.octets_in.store(stats.octets_in, Ordering::Relaxed);
        self.slot.octets_out.store(stats.octets_out, Ordering::Relaxed);
        self.slot.segments_in.store(stats.segments_in, Ordering::Relaxed);
        self.slot.segments_out.store(stats.segments_out, Ordering::Relaxed);
        let congestion = stats.congestion.map_or(0, |congestion| congestion as u64);
        self.slot.congestion.store(congestion, Ordering::Relaxed);
    }

    /// Notes that a whole frame came.
    #[inline]
    pub fn frame(&self, now_ns: u64) {
        self.slot.last_frame_ns.store(now_ns, Ordering::Relaxed);
    }
}
