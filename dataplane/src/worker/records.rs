//! What control and the other workers ask of this one.

use culvert_esp::OpenError;
use culvert_shm::{ConnectFailure, Counter, Down, Load, Up};
use culvert_tcpstack::ConnId;

use super::Worker;
use super::handoff::Handed;
use super::inbound::Refused;
use super::link::Link;
use super::outbound::Origin;
use crate::net::ether::Cast;
use crate::net::ip;

/// Records of control that one batch takes, so that packets do not wait for them.
const RECORDS_PER_BATCH: usize = 64;

/// Items of other workers that one batch takes.
const HANDED_PER_BATCH: usize = 128;

impl<L: Link> Worker<L> {
    /// Acts on what control has written; returns how many records there were.
    pub(crate) fn take_records(&mut self) -> usize {
        for taken in 0..RECORDS_PER_BATCH {
            let record = match self.core.view.receive() {
                None => return taken,
                Some(Ok(record)) => detach(record, &mut self.message),
                Some(Err(_)) => {
                    self.core.count(Counter::RingDownMalformed);
                    continue;
                }
            };
            self.obey(record);
        }
        RECORDS_PER_BATCH
    }

    fn obey(&mut self, record: Down<'static>) {
        match record {
            Down::IkeSend { path, dscp, .. } => {
                let message = std::mem::take(&mut self.message);
                self.ike_down(&path, dscp, &message);
                self.message = message;
            }
            Down::IkeSendBehind { path, .. } => {
                let message = std::mem::take(&mut self.message);
                self.ike_down_behind(&path, &message);
                self.message = message;
            }
            Down::TcpConnect { token, local, remote, congestion, flow_label, dscp } => {
                let local = local.or_else(|| self.core.net.outer.own.source_for(remote.ip()));
                let own = local.filter(|&local| self.core.net.outer.own.contains(local));
                let now = super::stack_time(self.core.now_ns);
                let begun = own.ok_or(ConnectFailure::NoAddress).and_then(|local| {
                    self.tcp.connect(now, token, (local, remote), (congestion, flow_label, dscp))
                });
                if let Err(reason) = begun {
                    self.core.tell(&Up::TcpConnectFailed { token, reason });
                }
            }
            Down::TcpClose { conn, abort } => {
                let id = ConnId { index: conn.index, generation: conn.generation };
                if conn.worker == self.core.view.worker()
                    && !self.tcp.close(&self.core.view, id, abort)
                {
                    self.core.tell_gone(conn);
                }
            }
            Down::TcpProven { conn, congestion, dscp } => {
                let id = ConnId { index: conn.index, generation: conn.generation };
                if conn.worker == self.core.view.worker() {
                    self.tcp.proven(&self.core.view, id, (congestion, dscp));
                }
            }
            Down::SaChanged { index } => self.reload_sa(index),
            Down::PolicyChanged { index } => self.reload_policy(index),
            Down::PeerChanged { index } => self.core.peers.reload(&self.core.view, index),
            Down::PathSet { peer, path } => {
                // The record may have overtaken the one that announced the peer.
                if self.core.peers.get(peer).is_none() {
                    self.core.peers.reload(&self.core.view, peer.index);
                }
                self.core.peers.set_path(&self.core.view, peer, path);
            }
        }
    }

    /// Reads an SA's slot again, and its peer's when that is not known yet.
    pub(crate) fn reload_sa(&mut self, index: u32) {
        let core = &mut self.core;
        match core.sas.reload(&core.view, index) {
            Ok(Some(peer)) if core.peers.get(peer).is_none() => {
                core.peers.reload(&core.view, peer.index);
            }
            Ok(_) => {}
            Err(_) => core.count(Counter::SaUnusable),
        }
    }

    /// Reads a policy's slot again.
    pub(crate) fn reload_policy(&mut self, index: u32) {
        let core = &mut self.core;
        let policy = match core.view.load_policy(index) {
            Load::Live(_, policy) => Some(policy),
            Load::Gone => None,
        };
        if core.policies.set(index, policy.as_ref()).is_err() {
            core.count(Counter::PolicyRefused);
        }
    }

    /// Takes what other workers have handed over; returns how much it was.
    pub(crate) fn take_handed(&mut self) -> usize {
        for taken in 0..HANDED_PER_BATCH {
            let Some(item) = self.core.mesh.receive() else { return taken };
            self.core.count(Counter::HandoffReceived);
            self.take_item(item);
        }
        HANDED_PER_BATCH
    }

    fn take_item(&mut self, item: Handed) {
        match item {
            Handed::Esp { packet, arrival } => {
                let refused = self.core.take_esp(packet, &arrival).err();
                let corrupt = matches!(refused, Some(Refused::Esp(OpenError::IcvFailed)));
                if let (true, Some(conn)) = (corrupt, arrival.path.conn) {
                    let id = ConnId { index: conn.index, generation: conn.generation };
                    self.core.hand_over(conn.worker, Handed::Corrupt { conn: id });
                }
            }
            Handed::Inner { packet, sa } => match ip::parse(packet.data()) {
                // Its hop limit is still to be taken off, by whoever seals it.
                Ok(header) => {
                    let origin = Origin::Forwarded(Cast::Unicast);
                    self.protect(packet, &header, sa, origin);
                }
                Err(reason) => self.core.drop_for(reason),
            },
            Handed::IcmpError(told) => self.take_icmp_error(&told),
            Handed::Segment { packet } => self.take_segment(packet),
            Handed::Frame { frame, conn } => self.send_handed_frame(&frame, conn),
            Handed::Corrupt { conn } => self.break_off_corrupt(conn),
            Handed::Neighbour { port, learnt } => self.core.learnt_elsewhere(port, &learnt),
        }
    }
}

/// The record without its payload, which is copied into `message`: the ring's memory is free for
/// the next one.
fn detach(record: Down<'_>, message: &mut Vec<u8>) -> Down<'static> {
    match record {
        Down::IkeSend { path, dscp, payload } => {
            message.clear();
            message.extend_from_slice(payload);
            Down::IkeSend { path, dscp, payload: &[] }
        }
        Down::IkeSendBehind { path, payload } => {
            message.clear();
            message.extend_from_slice(payload);
            Down::IkeSendBehind { path, payload: &[] }
        }
        Down::TcpConnect { token, local, remote, congestion, flow_label, dscp } => {
            Down::TcpConnect { token, local, remote, congestion, flow_label, dscp }
        }
        Down::TcpClose { conn, abort } => Down::TcpClose { conn, abort },
        Down::TcpProven { conn, congestion, dscp } => Down::TcpProven { conn, congestion, dscp },
        Down::SaChanged { index } => Down::SaChanged { index },
        Down::PolicyChanged { index } => Down::PolicyChanged { index },
        Down::PeerChanged { index } => Down::PeerChanged { index },
        Down::PathSet { peer, path } => Down::PathSet { peer, path },
    }
}
