//! Reading TCP streams: octets in order, frames, IKE up and ESP in.

use culvert_esp::OpenError;
use culvert_shm::{CloseReason, Counter, Standing, Up};
use culvert_tcpstack::framing::{Frame, FramingError};
use culvert_tcpstack::{self as tcpstack, ConnId, DropReason, RxChecksum, SegmentOutcome};

use super::core::Core;
use super::handoff::Handed;
use super::inbound::{Place, Refused};
use super::link::Link;
use super::peer::Arrival;
use super::tcp::{Conn, Tcp};
use crate::net::encap::Ecn;
use crate::net::ip::{self, HOP_LIMIT};

/// Messages of nobody's in a row on one connection before it is closed. RFC 9329, 6.1: a few must
/// not close it, SAs come and go; too many mean that the stream has lost its frames.
pub const STRANGERS_MAX: u8 = 8;

/// Octets of an IKE header (RFC 7296, 3.1).
const IKE_HEADER_LEN: usize = 28;

/// Why a stream is broken off.
enum Fault {
    Framing(FramingError),
    Corrupt,
}

impl From<FramingError> for Fault {
    fn from(error: FramingError) -> Self {
        Self::Framing(error)
    }
}

/// What the frames of a segment ask for, once the stack is free again.
#[derive(Default)]
struct Met {
    /// The segment met congestion on its way.
    congested: bool,
    begun: Option<ConnId>,
    fault: Option<(ConnId, Fault)>,
}

impl Met {
    /// Takes octets of a connection; says how many.
    fn take<L: Link>(&mut self, core: &mut Core<L>, conn: &mut Conn, octets: &mut [u8]) -> usize {
        let count = octets.len();
        if self.fault.is_some() {
            return count; // Nothing behind a fault can be trusted.
        }
        let had_begun = conn.decoder.is_begun();
        if let Err(fault) = take_frames(core, conn, octets, self.congested) {
            self.fault = Some((conn.id, fault));
        }
        if !had_begun && conn.decoder.is_begun() {
            self.begun = Some(conn.id);
        }
        count
    }
}

impl Tcp {
    /// Gives a packet to the stack. Octets in order become frames where they lie in it.
    ///
    /// # Errors
    /// The stack did not take it.
    pub(crate) fn receive<L: Link>(
        &mut self,
        core: &mut Core<L>,
        now: tcpstack::Instant,
        packet: &mut [u8],
        checksum: RxChecksum,
    ) -> Result<(), DropReason> {
        let congested = ip::traffic_class(packet).is_some_and(|class| Ecn::of(class) == Ecn::Ce);
        let mut met = Met { congested, ..Met::default() };
        let (stack, mut conns) = self.stack_and_conns();
        let outcome = stack.handle_segment(now, packet, checksum, &mut |id, octets| {
            // What comes before the connection was reported waits for its event.
            conns.get(id).map_or(0, |conn| met.take(core, conn, octets))
        });
        self.settle(core, met);
        match outcome {
            SegmentOutcome::Accepted => Ok(()),
            SegmentOutcome::Dropped(reason) => Err(reason),
        }
    }

    /// Takes everything that waits on a connection.
    pub(crate) fn read<L: Link>(&mut self, core: &mut Core<L>, id: ConnId) {
        loop {
            let mut met = Met::default();
            let Some((stack, conn)) = self.parts(id) else { return };
            let taken = stack.recv(id, |octets| met.take(core, conn, octets));
            self.settle(core, met);
            if !matches!(taken, Ok(count) if count > 0) {
                return;
            }
        }
    }

    fn settle<L: Link>(&mut self, core: &Core<L>, met: Met) {
        if let Some(id) = met.begun {
            self.begun(id);
        }
        if let Some((id, fault)) = met.fault {
            count_fault(core, &fault);
            self.break_off(id, CloseReason::Protocol);
        }
    }
}

fn count_fault<L: Link>(core: &Core<L>, fault: &Fault) {
    core.count(match fault {
        Fault::Framing(FramingError::BadPrefix) => Counter::FramingBadPrefix,
        Fault::Framing(FramingError::BadLength(_)) => Counter::FramingBadLength,
        Fault::Corrupt => Counter::FramingCorrupt,
    });
}

/// Takes the frames in `octets`; what is left of them waits in the decoder. Those that end in a
/// segment that met congestion have met it, too: one that came behind a hole is not told apart any more.
fn take_frames<L: Link>(
    core: &mut Core<L>,
    conn: &mut Conn,
    mut octets: &mut [u8],
    congested: bool,
) -> Result<(), Fault> {
    let (path, hop_limit) = (conn.path, HOP_LIMIT);
    let traffic_class = if congested { Ecn::Ce as u8 } else { 0 };
    let arrival = Arrival { path, traffic_class, hop_limit, may_move: !conn.originator };
    if let Some(slot) = core.view.conn(conn.id.index) {
        slot.frame(core.now_ns);
    }
    let standing = conn.standing;
    loop {
        let frame = conn.decoder.next_frame(&mut core.gathering, &mut octets)?;
        // RFC 9329, 6.1: the prefix has come whole if there is a frame.
        if frame.is_some() {
            report(core, &mut conn.reported, &arrival);
        }
        let known = match frame {
            Some(Frame::Ike(message)) => take_ike(core, standing, &arrival, message),
            Some(Frame::Esp(packet)) => {
                let spi = packet.first_chunk().map_or(0, |spi| u32::from_be_bytes(*spi));
                if take_esp(core, &arrival, packet)? {
                    conn.known.note(spi);
                    true
                } else if conn.known.contains(spi) || core.view.sa_is_coming(spi) {
                    continue; // Its SA has just ended or is about to begin: neither good nor bad.
                } else {
                    false
                }
            }
            Some(Frame::Keepalive | Frame::Empty) => {
                // RFC 9329, 3 and 6.6: ignored; no sign of life of the peer either.
                core.count(Counter::FramingKeepalive);
                continue;
            }
            Some(Frame::Short) => {
                core.count(Counter::FramingShort);
                false
            }
            None => break,
        };
        conn.strangers = if known { 0 } else { conn.strangers.saturating_add(1) };
        if conn.strangers >= STRANGERS_MAX {
            return Err(Fault::Corrupt);
        }
    }
    if conn.decoder.is_begun() {
        report(core, &mut conn.reported, &arrival);
    }
    Ok(())
}

/// Tells control of a connection that the peer opened, once, before its first message. Anybody may
/// open many: while control is behind, it hears of one with a later message.
fn report<L: Link>(core: &mut Core<L>, reported: &mut bool, arrival: &Arrival) {
    let path = &arrival.path;
    if let (false, Some(conn)) = (*reported, path.conn) {
        let (local, remote) = (path.local, path.remote);
        let opened = Up::TcpOpened { conn, local, remote, originator: false, token: 0 };
        *reported = core.tell_for(Standing::Peer, &opened);
    }
}

/// An IKE message; false when it cannot be one. More than that only control can say.
fn take_ike<L: Link>(
    core: &mut Core<L>,
    standing: Standing,
    arrival: &Arrival,
    message: &[u8],
) -> bool {
    core.count(Counter::FramingIke);
    let length = message.get(24..IKE_HEADER_LEN).and_then(|field| field.try_into().ok());
    let plausible = length.is_some_and(|field| u32::from_be_bytes(field) as usize == message.len());
    if plausible {
        core.ike_up(standing, &arrival.path, message);
    } else {
        core.count(Counter::IkeMalformed);
    }
    plausible
}

/// An ESP packet; false when no SA has its SPI.
fn take_esp<L: Link>(
    core: &mut Core<L>,
    arrival: &Arrival,
    packet: &mut [u8],
) -> Result<bool, Fault> {
    core.count(Counter::FramingEsp);
    match core.place(packet) {
        Place::Nowhere => {
            core.count(Counter::EspSpiUnknown);
            Ok(false)
        }
        Place::Elsewhere(worker) => {
            if let Some(copy) = core.copy(packet) {
                core.hand_over(worker, Handed::Esp { packet: copy, arrival: *arrival });
            }
            Ok(true)
        }
        Place::Here => match core.open(packet, arrival) {
            Ok(opened) => {
                let inner = packet.get(opened.inner.clone()).unwrap_or_default();
                if inner.len() > core.pool.room() as usize {
                    core.refuse_long(inner, &opened);
                } else if let Some(inner) = core.copy(inner) {
                    core.deliver(inner, &opened, arrival);
                }
                Ok(true)
            }
            // RFC 9329, 6.1: a failed check of a packet with a known SPI is corruption.
            Err(Refused::Esp(OpenError::IcvFailed)) => Err(Fault::Corrupt),
            Err(_) => Ok(true),
        },
    }
}
