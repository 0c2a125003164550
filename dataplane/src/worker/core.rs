//! What a worker has beside its TCP connections, and the small steps that all paths share.
//!
//! The split lets a stream's octets be worked on where the TCP stack lends them: the stack is
//! borrowed then, everything here is free.

use std::sync::Arc;

use culvert_dpdk::{Burst, Mbuf, Pool};
use culvert_shm::{Counter, Standing, Up, WorkerView};
use culvert_tcpstack::framing::Gathering;

use super::drops;
use super::handoff::{Handed, Mesh};
use super::link::Link;
use super::network::Network;
use super::peer::PeerTable;
use super::rooms::Rooms;
use super::sa::SaTable;
use crate::net::ether::Cast;
use crate::net::fragment::Identifications;
use crate::net::icmp::{self, Problem, RateLimit, TooBigLimit};
use crate::net::ip::Header;
use crate::net::policy::PolicyTable;
use crate::net::{DropReason, Nanos};

/// Packets from tunnels into others that one batch may have. A burst of frames holds many more packets
/// than frames where they are small and come in TCP, or in segments that the device has put together.
const FORWARDED_MAX: usize = 1024;

/// Everything of a worker but its TCP connections.
pub(crate) struct Core<L> {
    pub(crate) view: WorkerView,
    pub(crate) net: Network<L>,
    pub(crate) sas: SaTable,
    pub(crate) peers: PeerTable,
    pub(crate) policies: PolicyTable,
    pub(crate) mesh: Mesh<Handed>,
    pub(crate) rooms: Arc<Rooms>,
    /// Buffers for frames that are split over segments.
    pub(crate) gathering: Gathering,
    pub(crate) pool: Pool,
    /// The time of this batch, nanoseconds of the monotonic clock.
    pub(crate) now_ns: Nanos,
    /// Forwarded packets from one tunnel that go into another one, at the end of the batch.
    pub(crate) forwarded: Vec<Mbuf>,
    /// Packets of the gateway's own, to inner hosts on either side of a tunnel.
    pub(crate) own: Burst,
    pub(crate) error_limit: RateLimit,
    pub(crate) too_big_limit: TooBigLimit,
    /// What routers say about too big segments is listened to no more often.
    pub(crate) told_limit: RateLimit,
    /// Room for an IKE message that is longer than a packet, before it is cut.
    pub(crate) big_datagram: Box<[u8]>,
    /// Identification of the last packet that may be fragmented (RFC 6864, 4.1).
    pub(crate) identification: u16,
    /// Those of IPv6 packets that are fragmented.
    pub(crate) identifications: Identifications,
}

impl<L: Link> Core<L> {
    #[inline]
    pub(crate) fn count(&self, counter: Counter) {
        self.view.count(counter, 1);
    }

    /// Counts a packet that is dropped for this reason.
    #[inline]
    pub(crate) fn drop_for(&self, reason: DropReason) {
        self.count(drops::counter(reason));
    }

    /// Tells control something; what its ring has no room for is counted.
    pub(crate) fn tell(&mut self, message: &Up<'_>) {
        let _ = self.tell_for(Standing::Worker, message);
    }

    /// The same of what somebody else has caused; whether there was room.
    pub(crate) fn tell_for(&mut self, standing: Standing, message: &Up<'_>) -> bool {
        let told = self.view.send_for(standing, message).is_ok();
        if !told {
            self.count(Counter::RingUpFull);
        }
        told
    }

    /// An empty buffer, or a counted want of one.
    #[inline]
    pub(crate) fn buffer(&self) -> Option<Mbuf> {
        let buffer = self.pool.alloc();
        if buffer.is_none() {
            self.count(Counter::PoolEmpty);
        }
        buffer
    }

    /// A copy of `octets` in a buffer of its own; those too long for one are counted and dropped.
    #[inline]
    pub(crate) fn copy(&self, octets: &[u8]) -> Option<Mbuf> {
        let mut buffer = self.buffer()?;
        if buffer.extend_from_slice(octets) {
            return Some(buffer);
        }
        self.drop_for(DropReason::NoRoom);
        None
    }

    /// Hands something to another worker; what its ring has no room for is counted and dropped.
    pub(crate) fn hand_over(&mut self, worker: u16, item: Handed) {
        let sent = self.mesh.send(worker, item).is_ok();
        self.count(if sent { Counter::HandoffSent } else { Counter::HandoffFull });
    }

    /// Room for all packets that a batch may forward, taken at the start.
    pub(crate) fn room_for_forwarded() -> Vec<Mbuf> {
        Vec::with_capacity(FORWARDED_MAX)
    }

    /// Puts a forwarded packet aside for the way out.
    pub(crate) fn queue_for_tunnel(&mut self, packet: Mbuf) {
        if self.forwarded.len() < FORWARDED_MAX {
            self.forwarded.push(packet);
        } else {
            self.count(Counter::BatchFull);
        }
    }

    /// Puts a packet of the gateway's own aside, for an inner host.
    fn originate(&mut self, packet: Mbuf) {
        if self.own.push(packet).is_err() {
            self.count(Counter::BatchFull);
        }
    }

    /// Tells the sender of an inner packet why it goes no further, if the rules allow it.
    pub(crate) fn report_problem(
        &mut self,
        problem: Problem,
        header: &Header,
        packet: &[u8],
        cast: Cast,
    ) {
        let own = &self.net.inner.own;
        if !icmp::may_answer(header, packet, cast, own) {
            return;
        }
        let Some(source) = icmp::error_source(header, own) else { return };
        let allowed = match problem {
            Problem::TooBig { .. } => self.too_big_limit.allow(self.now_ns, header.source),
            _ => self.error_limit.allow(self.now_ns),
        };
        if !allowed {
            return self.count(Counter::IcmpErrorLimited);
        }
        let room = if header.is_v4() { icmp::ERROR_MAX_V4 } else { icmp::ERROR_MAX_V6 };
        let Some(mut error) = self.buffer() else { return };
        let written = error
            .append(room)
            .ok_or(DropReason::NoRoom)
            .and_then(|out| icmp::write_error(problem, source, header, packet, out));
        match written {
            Ok(len) if error.trim(room - len) => {
                self.count(Counter::IcmpErrorSent);
                self.originate(error);
            }
            Ok(_) => {}
            Err(reason) => self.drop_for(reason),
        }
    }

    /// A packet to an address of the gateway's inner side, from an inner host or a tunnel: echo
    /// requests are answered, nothing else is served there.
    pub(crate) fn answer_inner(&mut self, mut packet: Mbuf, header: &Header) {
        match icmp::echo_reply(packet.data_mut(), header) {
            Ok(len) if packet.trim(header.total_len.saturating_sub(len)) => {
                self.count(Counter::IcmpEchoAnswered);
                self.originate(packet);
            }
            Ok(_) => {}
            Err(reason) => self.drop_for(reason),
        }
    }
}
