//! ESP between the ends of the simulation's tunnels, as their data planes would send and take it.

use std::net::SocketAddr;

use culvert_ike::{ChildPath, ConnToken, IkeSaId, KeyMaterial, Transport};

use crate::world::{HUB, HUB_ADDRESS, LATENCY, What, World};

/// An ESP packet.
pub(crate) struct Sealed {
    spi: u32,
    key: KeyMaterial,
}

impl World {
    /// Sends ESP from one end of a tunnel to the other.
    ///
    /// # Errors
    /// It cannot be sent, or does not get there, and why.
    pub(crate) fn send_esp(&mut self, from: usize, spoke: usize, due: bool) -> Result<(), String> {
        let other = if from == HUB { spoke } else { HUB };
        let sender = &self.nodes[from];
        let sa = sender.host.outbound(&self.nodes[other].id).ok_or("it has no SA")?;
        let sealed = Sealed { spi: sa.spi_out, key: sa.keymat_out.clone() };
        let path = *sender.host.paths.get(&sa.ike).ok_or("it has no path")?;
        let seen = self.esp_way(from, spoke, &path)?;
        self.put(self.now + LATENCY, other, What::Esp { spoke, sealed, seen, due });
        Ok(())
    }

    /// How ESP on this path looks where it arrives.
    fn esp_way(&self, from: usize, spoke: usize, path: &ChildPath) -> Result<ChildPath, String> {
        let other = if from == HUB { spoke } else { HUB };
        if path.transport == Transport::Tcp {
            let conn = path.conn.and_then(|token| Some((token, self.conns.get(&token)?)));
            let (token, conn) = conn.ok_or("its connection is gone")?;
            let hub = SocketAddr::new(HUB_ADDRESS, 4500);
            let (local, remote) = if other == HUB { (hub, conn.seen) } else { (conn.own, hub) };
            return Ok(ChildPath { local, remote, conn: Some(token), ..*path });
        }
        // A firewall that lets no UDP pass lets no native ESP pass either, nor does a NAT.
        let native = path.transport == Transport::Native;
        if self.links[spoke].udp_blocked || native && self.links[spoke].nat.is_some() {
            return Err(format!("{} does not pass", path.transport));
        }
        let way = self.way(from, path.local, path.remote).filter(|(to, ..)| *to == other);
        let (.., seen) =
            way.ok_or_else(|| format!("{} - {} leads nowhere", path.local, path.remote))?;
        Ok(ChildPath { local: seen.local, remote: seen.remote, ..*path })
    }

    /// Whether a gateway takes an ESP packet.
    pub(crate) fn takes_esp(
        &mut self,
        to: usize,
        sealed: &Sealed,
        seen: &ChildPath,
    ) -> Result<(), String> {
        if seen.conn.is_some_and(|token| self.is_lost(to, token)) {
            return Err("its connection was closed before".into());
        }
        let pair = self.nodes[to].host.pairs.get(&sealed.spi).ok_or("the SA is not there")?;
        if pair.sa.keymat_in != sealed.key {
            return Err("the SA has other keys there".into());
        }
        if to == HUB {
            let ike = pair.sa.ike;
            self.follow(ike, seen);
        }
        Ok(())
    }

    pub(crate) fn is_lost(&self, to: usize, token: ConnToken) -> bool {
        self.conns.get(&token).is_none_or(|conn| conn.closed_by == Some(to))
    }

    /// The hub's data plane follows a spoke, as `dataplane` does.
    fn follow(&mut self, ike: IkeSaId, seen: &ChildPath) {
        let Some(path) = self.nodes[HUB].host.paths.get_mut(&ike) else { return };
        let follows = match (path.transport, seen.transport) {
            (Transport::Tcp, Transport::Tcp) => path.conn != seen.conn,
            (Transport::Udp, Transport::Udp) => !path.pinned && path.remote != seen.remote,
            _ => false,
        };
        if follows {
            *path = *seen;
            if self.nodes[HUB].kept.is_away() {
                // The next process will ask for it.
                return;
            }
            self.act(HUB, |e, now, host| e.path_moved(now, ike, seen, host));
        }
    }
}
