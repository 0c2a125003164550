//! Between the protocol's terms and those of the shared memory.

use std::net::SocketAddr;

use culvert_api as api;
use culvert_ike::{self as ike, ConnToken, IKE_PORT};
use culvert_shm::{self as shm, ConnRef};

/// Bits of a token that hold the generation of a connection.
const GENERATION_BITS: u32 = 32;
/// Bits of a token that hold its index: a table has at most 2^20 slots.
const INDEX_BITS: u32 = 20;

/// The protocol's name of a connection holds all of the dataplane's, so that a restarted control
/// process knows connections that it did not see opened.
#[must_use]
pub fn token(conn: ConnRef) -> ConnToken {
    let worker = u64::from(conn.worker) << (GENERATION_BITS + INDEX_BITS);
    ConnToken(worker | u64::from(conn.index) << GENERATION_BITS | u64::from(conn.generation))
}

/// The connection of a token that [`token`] made.
#[must_use]
pub fn conn(token: ConnToken) -> ConnRef {
    let ConnToken(bits) = token;
    let index = (bits >> GENERATION_BITS) & ((1 << INDEX_BITS) - 1);
    ConnRef {
        worker: (bits >> (GENERATION_BITS + INDEX_BITS)) as u16,
        index: index as u32,
        generation: bits as u32,
    }
}

/// The way of an IKE message that a worker handed up. Over TCP it must name its connection.
#[must_use]
pub fn ike_path(path: &shm::Path) -> Option<ike::Path> {
    match path.transport {
        shm::Transport::Tcp => Some(ike::Path::tcp(path.local, path.remote, token(path.conn?))),
        shm::Transport::Udp | shm::Transport::Native => {
            Some(ike::Path::udp(path.local, path.remote))
        }
    }
}

/// The way of an IKE message for a worker.
#[must_use]
pub fn shm_path(path: &ike::Path) -> shm::Path {
    shm::Path {
        transport: match path.transport {
            ike::Transport::Tcp => shm::Transport::Tcp,
            ike::Transport::Udp | ike::Transport::Native => shm::Transport::Udp,
        },
        local: path.local,
        remote: path.remote,
        conn: path.conn.map(conn),
        pinned: false,
    }
}

/// The way of a peer's ESP packets, for its worker. Native ESP has no ports.
#[must_use]
pub fn esp_path(path: &ike::ChildPath) -> shm::Path {
    let (transport, port) = match path.transport {
        ike::Transport::Native => (shm::Transport::Native, Some(0)),
        ike::Transport::Udp => (shm::Transport::Udp, None),
        ike::Transport::Tcp => (shm::Transport::Tcp, None),
    };
    let end = |end: SocketAddr| SocketAddr::new(end.ip(), port.unwrap_or(end.port()));
    let conn = path.conn.map(conn);
    let (local, remote) = (end(path.local), end(path.remote));
    shm::Path { transport, local, remote, conn, pinned: path.pinned }
}

/// The way that a worker moved a peer to.
#[must_use]
pub fn child_path(path: &shm::Path) -> ike::ChildPath {
    let (transport, port) = match path.transport {
        shm::Transport::Native => (ike::Transport::Native, Some(IKE_PORT)),
        shm::Transport::Udp => (ike::Transport::Udp, None),
        shm::Transport::Tcp => (ike::Transport::Tcp, None),
    };
    let end = |end: SocketAddr| SocketAddr::new(end.ip(), port.unwrap_or(end.port()));
    let conn = path.conn.map(token);
    let (local, remote) = (end(path.local), end(path.remote));
    ike::ChildPath { transport, local, remote, conn, pinned: path.pinned }
}

/// The algorithm of an SA.
#[must_use]
pub fn algorithm(encryption: ike::Encryption) -> shm::sa::Algorithm {
    match encryption {
        ike::Encryption::Aes128Gcm16 => shm::sa::Algorithm::Aes128Gcm16,
        ike::Encryption::Aes256Gcm16 => shm::sa::Algorithm::Aes256Gcm16,
    }
}

/// The mode of an SA.
#[must_use]
pub fn mode(mode: &ike::Mode) -> shm::Mode {
    match *mode {
        ike::Mode::Tunnel => shm::Mode::Tunnel,
        ike::Mode::Transport(ends) => {
            let ike::TransportEnds { local, remote, local_at_peer, remote_at_peer } = ends;
            let ends = shm::TransportEnds { local, remote, local_at_peer, remote_at_peer };
            shm::Mode::Transport(ends)
        }
    }
}

/// A transport as tables show it.
#[must_use]
pub fn transport(transport: ike::Transport) -> api::Transport {
    match transport {
        ike::Transport::Native => api::Transport::Native,
        ike::Transport::Udp => api::Transport::Udp,
        ike::Transport::Tcp => api::Transport::Tcp,
    }
}

/// How the packets of an IKE SA and its CHILD SAs go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// How ESP travels, which says more than how IKE does: beside native ESP, IKE is on UDP.
    pub transport: api::Transport,
    /// This gateway's address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
}

impl Way {
    /// Whether these differ in nothing that people care for: a new connection from another port of
    /// this gateway is the same way.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let key = |way: &Self| (way.transport, way.local.ip(), way.remote);
        key(self) == key(other)
    }
}

/// The way of an IKE SA.
#[must_use]
pub fn way(sa: &ike::IkeSnapshot) -> Way {
    let esp = sa.children.first().map_or(sa.path.transport, |child| child.transport);
    Way { transport: transport(esp), local: sa.path.local, remote: sa.path.remote }
}

/// A connection as tables show it: worker, index and generation.
#[must_use]
pub fn conn_name(conn: ConnRef) -> String {
    format!("{}/{}/{}", conn.worker, conn.index, conn.generation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_holds_all_of_a_connection() {
        for (worker, index, generation) in
            [(0, 0, 1), (127, (1 << 20) - 1, u32::MAX), (3, 77, 0x8000_0001)]
        {
            let named = ConnRef { worker, index, generation };
            assert_eq!(conn(token(named)), named);
        }
    }

    // RFC 7296, 2.23: without NAT, IKE stays on port 500 while ESP has none.
    #[test]
    fn native_esp_has_no_ports_and_ike_beside_it_has() {
        let (local, remote) = ("192.0.2.1:500", "192.0.2.2:500");
        let path = ike::ChildPath {
            transport: ike::Transport::Native,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            conn: None,
            pinned: true,
        };
        let esp = esp_path(&path);
        assert_eq!((esp.local.port(), esp.remote.port()), (0, 0));
        assert_eq!(child_path(&esp), path);
    }
}
