//! Where messages and ESP packets of an SA go.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;

/// UDP port of IKE without NAT traversal (RFC 7296, 2).
pub const IKE_PORT: u16 = 500;
/// UDP and TCP port of IKE and ESP with encapsulation (RFC 3948; RFC 9329, 2).
pub const NAT_T_PORT: u16 = 4500;

/// How ESP or IKE is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Transport {
    /// ESP as an IP protocol of its own; never the transport of an IKE message.
    Native,
    /// UDP; ESP in UDP by RFC 3948.
    Udp,
    /// TCP by RFC 9329.
    Tcp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Udp => "udp",
            Self::Tcp => "tcp",
        })
    }
}

/// The host's name for one TCP connection; unique for as long as the endpoint may know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConnToken(pub u64);

/// Names one request of the endpoint to open a TCP connection; the host returns it with the
/// outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConnectRequest(pub u64);

/// The way an IKE message came or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Path {
    /// [`Transport::Udp`] or [`Transport::Tcp`].
    pub transport: Transport,
    /// This gateway's address and port.
    pub local: SocketAddr,
    /// The peer's address and port, as seen here (behind a NAT, the NAT's).
    pub remote: SocketAddr,
    /// The connection, exactly for [`Transport::Tcp`].
    pub conn: Option<ConnToken>,
}

impl Path {
    /// A UDP path.
    pub const fn udp(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { transport: Transport::Udp, local, remote, conn: None }
    }

    /// A path on the TCP connection `conn`.
    pub const fn tcp(local: SocketAddr, remote: SocketAddr, conn: ConnToken) -> Self {
        Self { transport: Transport::Tcp, local, remote, conn: Some(conn) }
    }

    /// Whether four zero octets precede each IKE message on this path.
    ///
    /// On TCP always (RFC 9329, 3.1); on UDP on every local port but 500 (RFC 7296, 2.23).
    pub const fn has_non_esp_marker(&self) -> bool {
        matches!(self.transport, Transport::Tcp) || self.local.port() != IKE_PORT
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} - {}", self.transport, self.local, self.remote)
    }
}

/// The way ESP packets of a peer go: as [`Path`], but ESP may also be native.
///
/// With [`Transport::Native`] the ports are those of IKE and mean nothing to ESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChildPath {
    /// How ESP is carried.
    pub transport: Transport,
    /// This gateway's address and, with UDP and TCP, port.
    pub local: SocketAddr,
    /// The peer's address and, with UDP and TCP, port.
    pub remote: SocketAddr,
    /// The connection, exactly for [`Transport::Tcp`].
    pub conn: Option<ConnToken>,
    /// ESP that comes over UDP from another address than `remote` does not move the peer there
    /// (RFC 7296, 2.23).
    pub pinned: bool,
}
