//! Inner packets to ESP packets: the way out.
//!
//! Policy → the SA's owner → hop limit → fragments or a packet-too-big by the tunnel's MTU → MSS → in
//! transport mode without its IP header → room on the path → sequence number → seal → native, UDP,
//! or straight into a TCP send buffer.
//!
//! What a path cannot take is dropped before it is sealed: a sealed packet must be sent, since the
//! peer's window would close behind a number that never comes.

use culvert_dpdk::Mbuf;
use culvert_esp::{FRONT_LEN, OutboundSa};
use culvert_shm::{ConnRef, Counter, Dscp, Path, SaDrop, SlotRef, Transport, Up};
use culvert_tcpstack::ConnId;
use culvert_tcpstack::framing::{self, ESP_OVERHEAD_BYTES};

use super::Worker;
use super::core::Core;
use super::handoff::Handed;
use super::link::Link;
use super::peer::Peer;
use super::sa::Sa;
use super::tcp::Tcp;
use crate::net::DropReason;
use crate::net::encap::{self, EcnMode, Outer};
use crate::net::ether::Cast;
use crate::net::fragment;
use crate::net::icmp::Problem;
use crate::net::ip::{self, Flow, Header, protocol};
use crate::net::mss;
use crate::net::transport_mode;
use crate::net::udp::Fill;

/// Sequence numbers left when control is asked to rekey: the fastest core needs a minute and more for
/// so many, in which an exchange whose messages are lost is repeated.
const SEQUENCE_LOW: u64 = 1 << 28;

/// Control is asked again after so many, should its ring have been full.
const SEQUENCE_REMINDER: u64 = 1 << 24;

/// Where an inner packet comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// From an inner host or a tunnel: it makes a hop here.
    Forwarded(Cast),
    /// From the gateway itself.
    Own,
}

/// What ESP is to hold, and what the outer header takes over from the packet.
#[derive(Clone, Copy)]
struct Content {
    next_header: u8,
    traffic_class: u8,
    /// Those of the packet itself in transport mode; a tunnel's packets are new ones.
    hop_limit: u8,
    dont_fragment: bool,
}

impl Content {
    /// A whole packet. One that does not fit goes all the same, in fragments.
    fn tunnel(header: &Header, fits: bool) -> Self {
        Self {
            next_header: if header.is_v4() { protocol::IPV4 } else { protocol::IPV6 },
            traffic_class: header.traffic_class,
            hop_limit: ip::HOP_LIMIT,
            dont_fragment: fits,
        }
    }

    /// What a packet carries. Forwarding it takes a hop.
    fn transport(header: &Header, forwarded: bool) -> Self {
        Self {
            next_header: header.protocol,
            traffic_class: header.traffic_class,
            hop_limit: header.hop_limit.saturating_sub(u8::from(forwarded)),
            dont_fragment: header.dont_fragment,
        }
    }
}

impl<L: Link> Worker<L> {
    /// Sends an inner packet through the tunnel that its policy names.
    pub(crate) fn outbound(&mut self, packet: Mbuf, header: &Header, origin: Origin) {
        let core = &mut self.core;
        let flow = match header.flow(packet.data()) {
            Ok(flow) => flow,
            Err(reason) => return core.drop_for(reason),
        };
        let policy = match core.policies.lookup(&flow) {
            Ok(policy) => policy,
            Err(_) if origin == Origin::Own => return core.send_inner(packet, header),
            Err(reason) => return core.drop_for(reason),
        };
        let (sa, owner) = (policy.sa, policy.owner);
        if policy.is_trap() {
            return core.trapped(&flow);
        }
        if owner == core.view.worker() {
            self.protect(packet, header, sa, origin);
        } else {
            core.hand_over(owner, Handed::Inner { packet, sa });
        }
    }

    /// Sends an inner packet through this SA, which is this worker's.
    pub(crate) fn protect(
        &mut self,
        mut packet: Mbuf,
        header: &Header,
        sa: SlotRef,
        origin: Origin,
    ) {
        let core = &mut self.core;
        let (path, outer_mtu) = match core.outbound_path(sa) {
            Ok(found) => found,
            Err(counter) => return core.count(counter),
        };
        let cast = match origin {
            Origin::Own => Cast::Unicast,
            Origin::Forwarded(cast) => cast,
        };
        if origin != Origin::Own
            && let Err(reason) = ip::decrement_hop_limit(packet.data_mut())
        {
            core.drop_for(reason);
            return core.report_problem(Problem::HopLimit, header, packet.data(), cast);
        }
        let transport = core.sas.get(sa).is_some_and(|sa| sa.transport_mode.is_some());
        if transport && !transport_mode::fits(header) {
            return core.count(Counter::EspTransportUnfit);
        }
        let mtu = tunnel_mtu(outer_mtu, &path) + if transport { header.header_len } else { 0 };
        mss::clamp(packet.data_mut(), header, mss::for_mtu(mtu as u16, header.is_v4()));
        let fits = header.total_len <= mtu;
        // RFC 8200, 5: no IPv6 host sends less in one piece, whatever it is told. RFC 2473, 7.1: such a
        // packet may be fragmented on the way.
        let mtu = if header.is_v4() { mtu } else { mtu.max(ip::V6_MTU_MIN) };
        // RFC 4303, 3.3.4: in transport mode fragments are made behind ESP.
        if transport && (header.total_len <= mtu || !header.dont_fragment) {
            let content = Content::transport(header, origin != Origin::Own);
            if packet.adj(header.header_len) {
                self.seal(packet, sa, &path, &content);
            }
            return;
        }
        let content = Content::tunnel(header, fits);
        if header.total_len <= mtu {
            return self.seal(packet, sa, &path, &content);
        }
        // RFC 4301, 8.2: fragments before ESP, or the news that the packet is too big.
        if header.dont_fragment {
            core.drop_for(DropReason::IpTooBig);
            let problem = Problem::TooBig { mtu: mtu as u16 };
            return core.report_problem(problem, header, packet.data(), cast);
        }
        let mut cut = match fragment::fragments(packet.data(), header, mtu) {
            Ok(cut) => cut,
            Err(reason) => return core.drop_for(reason),
        };
        core.count(Counter::Ipv4Fragmented);
        while let Some(piece) = self.core.next_fragment(&mut cut, mtu) {
            self.seal(piece, sa, &path, &content);
        }
    }

    fn seal(&mut self, packet: Mbuf, sa: SlotRef, path: &Path, content: &Content) {
        let Self { core, tcp, .. } = self;
        let sealed = match (path.transport, path.conn) {
            (Transport::Tcp, Some(conn)) if conn.worker == core.view.worker() => {
                let id = ConnId { index: conn.index, generation: conn.generation };
                core.seal_into_stream(tcp, id, packet.data(), sa, content.next_header)
            }
            (Transport::Tcp, Some(conn)) => {
                core.seal_for_other(conn, packet.data(), sa, content.next_header)
            }
            (Transport::Tcp, None) => Err(Counter::PathNone),
            (Transport::Udp | Transport::Native, _) => {
                core.seal_datagram(packet, sa, path, content)
            }
        };
        if let Err(counter) = sealed {
            core.count(counter);
            if let Some(writer) = core.view.sa(sa.index) {
                let drop = match counter {
                    Counter::EspSequenceExhausted => SaDrop::Exhausted,
                    _ => SaDrop::Path,
                };
                writer.count_drop(drop);
            }
        }
    }
}

impl<L: Link> Core<L> {
    /// A packet whose policy has no SA yet is dropped; control hears of it, so that there soon is
    /// one.
    #[cold]
    fn trapped(&mut self, flow: &Flow) {
        self.count(Counter::PolicyTrapped);
        if let Some(policy) = self.policies.acquire(flow, self.now_ns) {
            self.tell(&Up::Acquire { policy });
        }
    }

    /// The path of an SA that may be used for sending now, and the octets of the longest outer packet
    /// that it takes.
    fn outbound_path(&self, slot: SlotRef) -> Result<(Path, usize), Counter> {
        let sa = self.sas.get(slot).filter(|sa| self.view.sa_in_use(sa.slot));
        let sa = sa.ok_or(Counter::PolicyStale)?;
        if self.now_ns >= sa.deadline_ns {
            if let Some(writer) = self.view.sa(slot.index) {
                writer.count_drop(SaDrop::Expired);
            }
            return Err(Counter::EspSaExpired);
        }
        let peer: &Peer = self.peers.get(sa.peer).ok_or(Counter::PathNone)?;
        let link = self.net.outer.mtu;
        // RFC 9329, 3: over TCP the inner hosts see what UDP would carry over the link.
        let in_stream = peer.path.transport == Transport::Tcp;
        Ok((peer.path, if in_stream { link } else { peer.mtu.get(self.now_ns, link) }))
    }

    /// Takes the next sequence number: it is in the shared memory before anything is sealed with
    /// it, so that no death of any process makes it come twice.
    fn next_sequence(&mut self, slot: SlotRef) -> Result<u64, Counter> {
        let esn = self.sas.get(slot).ok_or(Counter::PolicyStale)?.esn;
        let writer = self.view.sa(slot.index).ok_or(Counter::PolicyStale)?;
        let counter = writer.sequence();
        let number = counter.next(esn).map_err(|_| Counter::EspSequenceExhausted)?;
        let left = counter.left(esn);
        if left <= SEQUENCE_LOW && left.is_multiple_of(SEQUENCE_REMINDER) {
            self.tell(&Up::SequenceNearlyExhausted { sa: slot });
        }
        Ok(number)
    }

    /// Writes length and ESP packet to `out`; octets written, 0 if it could not be sealed.
    fn frame(sa: &Sa, sequence: u64, next_header: u8, inner: &[u8], out: &mut [u8]) -> usize {
        let Some((head, body)) = out.split_first_chunk_mut::<ESP_OVERHEAD_BYTES>() else {
            return 0;
        };
        let sealed = sa.outbound.seal(sequence, next_header, inner, body);
        let header = sealed.ok().and_then(|len| Some((len, framing::esp_header(len).ok()?)));
        header.map_or(0, |(len, header)| {
            *head = header;
            len + ESP_OVERHEAD_BYTES
        })
    }

    fn count_sealed(&self, slot: SlotRef, octets: usize) {
        if let Some(writer) = self.view.sa(slot.index) {
            writer.count_out(octets as u64, self.now_ns);
        }
        self.count(Counter::EspSealed);
    }

    /// Seals straight into the send buffer of a connection of this worker's.
    fn seal_into_stream(
        &mut self,
        tcp: &mut Tcp,
        id: ConnId,
        inner: &[u8],
        slot: SlotRef,
        next_header: u8,
    ) -> Result<(), Counter> {
        let len = ESP_OVERHEAD_BYTES + OutboundSa::sealed_len(inner.len());
        if tcp.parts(id).is_none() {
            return Err(Counter::PathNone);
        }
        if tcp.room(id) < len {
            return Err(Counter::TcpBackpressure);
        }
        if !tcp.admits(id, self.now_ns) {
            return Err(Counter::TcpAged);
        }
        let sequence = self.next_sequence(slot)?;
        let sa = self.sas.get(slot).ok_or(Counter::PolicyStale)?;
        tcp.write_frame(id, len, |out| Self::frame(sa, sequence, next_header, inner, out))
            .map_err(|_| Counter::TcpBackpressure)?;
        self.count_sealed(slot, inner.len());
        Ok(())
    }

    /// Seals for a connection of another worker's, which has told how old its queue is and whose room
    /// is reserved before.
    fn seal_for_other(
        &mut self,
        conn: ConnRef,
        inner: &[u8],
        slot: SlotRef,
        next_header: u8,
    ) -> Result<(), Counter> {
        let len = ESP_OVERHEAD_BYTES + OutboundSa::sealed_len(inner.len());
        if !self.mesh.has_room(conn.worker) {
            return Err(Counter::HandoffFull);
        }
        let peer = self.sas.get(slot).ok_or(Counter::PolicyStale)?.peer;
        if !self.peers.admits(peer, &self.rooms, conn, self.now_ns) {
            return Err(Counter::TcpAged);
        }
        if !self.rooms.reserve(conn.worker, conn.index, len) {
            return Err(Counter::TcpBackpressure);
        }
        let frame = self.frame_for_other(inner, slot, next_header, len);
        let frame = frame.inspect_err(|_| self.rooms.give_back(conn.worker, conn.index, len))?;
        let id = ConnId { index: conn.index, generation: conn.generation };
        self.hand_over(conn.worker, Handed::Frame { frame, conn: id });
        self.count_sealed(slot, inner.len());
        Ok(())
    }

    /// Seals a frame of `len` octets into a buffer of its own.
    fn frame_for_other(
        &mut self,
        inner: &[u8],
        slot: SlotRef,
        next_header: u8,
        len: usize,
    ) -> Result<Mbuf, Counter> {
        let mut frame = self.pool.alloc().ok_or(Counter::PoolEmpty)?;
        let out = frame.append(len).ok_or(Counter::IpTooBig)?;
        let sequence = self.next_sequence(slot)?;
        let sa = self.sas.get(slot).ok_or(Counter::PolicyStale)?;
        let written = Self::frame(sa, sequence, next_header, inner, out);
        if written == len { Ok(frame) } else { Err(Counter::IpTooBig) }
    }

    /// Seals a packet where it lies, and sends it in UDP or natively.
    fn seal_datagram(
        &mut self,
        mut packet: Mbuf,
        slot: SlotRef,
        path: &Path,
        content: &Content,
    ) -> Result<(), Counter> {
        let (v4, in_udp) = (path.local.is_ipv4(), path.transport == Transport::Udp);
        let inner_len = packet.len();
        let sealed_len = OutboundSa::sealed_len(inner_len);
        let lead = encap::overhead(v4, in_udp);
        let behind = sealed_len - FRONT_LEN - inner_len;
        if packet.prepend(lead + FRONT_LEN).is_none() || packet.append(behind).is_none() {
            return Err(Counter::IpTooBig);
        }
        let sequence = self.next_sequence(slot)?;
        let sa = self.sas.get(slot).ok_or(Counter::PolicyStale)?;
        let octets = packet.data_mut();
        let esp = octets.get_mut(lead..).ok_or(Counter::IpTooBig)?;
        sa.outbound
            .seal_in_place(sequence, content.next_header, esp, inner_len)
            .map_err(|_| Counter::EspSequenceExhausted)?;
        let peer = sa.peer;
        let outer = self.outer_header(path, peer, content);
        let written = if in_udp {
            let (source, destination) = (path.local.port(), path.remote.port());
            encap::write_udp(octets, &outer, source, destination, Fill::Zero)
        } else {
            encap::write_native(octets, &outer)
        };
        match written {
            Ok(()) => {
                self.count_sealed(slot, inner_len);
                self.send_sealed(packet, path, peer);
            }
            Err(reason) => self.drop_for(reason),
        }
        Ok(())
    }

    /// Sends an outer packet, in fragments if that must be. Over IPv4 only one in transport mode that
    /// may be fragmented is too long for the link, and for a narrower path its routers cut it. Over
    /// IPv6 this gateway is the source that has to (RFC 2473, 7.1): the least that an IPv6 host
    /// sends is longer with what ESP adds.
    fn send_sealed(&mut self, packet: Mbuf, path: &Path, peer: SlotRef) {
        let link = self.net.outer.mtu;
        let mtu = if path.local.is_ipv4() {
            link
        } else {
            self.peers.get(peer).map_or(link, |peer| peer.mtu.get(self.now_ns, link))
        };
        if packet.len() <= mtu {
            return self.send_outer(packet, path.remote.ip());
        }
        if let Err(reason) = self.send_cut(packet.data(), path.remote.ip()) {
            self.drop_for(reason);
        }
    }

    fn outer_header(&mut self, path: &Path, peer: SlotRef, content: &Content) -> Outer {
        // Where DF is set the identification may be any (RFC 6864, 4). The label is the peer's,
        // whatever its address (RFC 6438, 3).
        if !content.dont_fragment {
            self.identification = self.identification.wrapping_add(1);
        }
        let flow_label = peer.index.wrapping_mul(0x9e37_79b1) ^ peer.generation;
        let dscp = self.peers.get(peer).and_then(|peer| peer.dscp).map(Dscp::bits);
        Outer {
            source: path.local.ip(),
            destination: path.remote.ip(),
            traffic_class: encap::outer_traffic_class(content.traffic_class, EcnMode::Normal, dscp),
            hop_limit: content.hop_limit,
            dont_fragment: content.dont_fragment,
            identification: if content.dont_fragment { 0 } else { self.identification },
            flow_label,
        }
    }
}

/// The largest inner packet that fits into an outer one of `outer_mtu` octets on this path.
///
/// Over TCP there is no such bound, but a frame should not be longer than UDP encapsulation would
/// allow (RFC 9329, 3): the inner hosts then see one MTU whatever the transport.
pub(crate) fn tunnel_mtu(outer_mtu: usize, path: &Path) -> usize {
    let in_udp = path.transport != Transport::Native;
    let room = outer_mtu.saturating_sub(encap::overhead(path.local.is_ipv4(), in_udp));
    let around = OutboundSa::sealed_len(2) - 2 - 2;
    // The encrypted part, of which two octets are pad length and next header, is a multiple of 4.
    (room.saturating_sub(around) & !3).saturating_sub(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 9329, 3: over TCP the bound of UDP encapsulation.
    #[test]
    fn the_tunnels_mtu_is_the_most_that_fits() {
        let ends = [("192.0.2.1:4500", "192.0.2.2:4500"), ("[2001:db8::1]:0", "[2001:db8::2]:0")];
        for (local, remote) in ends {
            for transport in [Transport::Native, Transport::Udp, Transport::Tcp] {
                let (local, remote) = (local.parse().unwrap(), remote.parse().unwrap());
                let path = Path { transport, local, remote, conn: None, pinned: false };
                for outer_mtu in 1280..1290 {
                    let in_udp = transport != Transport::Native;
                    let room = outer_mtu - encap::overhead(local.is_ipv4(), in_udp);
                    let mtu = tunnel_mtu(outer_mtu, &path);
                    assert!(OutboundSa::sealed_len(mtu) <= room);
                    assert!(OutboundSa::sealed_len(mtu + 1) > room);
                }
            }
        }
    }
}
