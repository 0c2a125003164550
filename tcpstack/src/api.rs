//! The words in which a [`Stack`](crate::Stack) and its caller speak: names of connections,
//! events, reasons and errors. None of them says which TCP engine is behind.

use std::net::SocketAddr;

use thiserror::Error;

use crate::engine::congestion::CongestionControl;
use crate::time::Instant;

/// The name of a connection. An index is used again after its connection is gone, with another
/// generation, so that an old name never reaches a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// Below `connections_max`.
    pub index: u32,
    /// Counts the connections that had this index.
    pub generation: u32,
}

/// What [`Stack::poll_event`](crate::Stack::poll_event) tells. Of one connection the events come
/// in this order: `Opened` once, then `Readable` and `Writable` as often as they occur, then
/// `Closed` once. An outgoing connection may be `Closed` without having been `Opened`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The handshake is done.
    Opened {
        /// The connection.
        id: ConnId,
        /// Our address and port.
        local: SocketAddr,
        /// The peer's address and port.
        remote: SocketAddr,
        /// Whether we opened it, by [`Stack::connect`](crate::Stack::connect): then we are the
        /// TCP originator of RFC 9329.
        originator: bool,
    },
    /// Octets have arrived. Call [`Stack::recv`](crate::Stack::recv) until it gives 0: there is
    /// no other event for those that are left.
    Readable(ConnId),
    /// A [`Stack::send_with`](crate::Stack::send_with) that was refused for want of room would
    /// succeed now.
    Writable(ConnId),
    /// The connection is over and its name forgotten. Octets that the peer had sent before it
    /// closed have all been given out.
    Closed {
        /// The connection.
        id: ConnId,
        /// Why.
        reason: CloseReason,
    },
}

/// Why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// The peer sent FIN and everything before it has been received.
    PeerClosed,
    /// The peer sent RST.
    PeerReset,
    /// The peer answered our SYN with RST: nothing listens there.
    Refused,
    /// The network says that the peer cannot be reached: at once where it refuses our SYN for
    /// good, otherwise when the peer has not answered for as long as it may (RFC 9293, 3.9.2.2).
    Unreachable,
    /// The peer did not answer our SYN within `connect_timeout`.
    ConnectTimeout,
    /// Octets stayed unacknowledged and the peer silent for `user_timeout`.
    Timeout,
    /// We closed it, by [`Stack::close`](crate::Stack::close).
    LocalClosed,
    /// We aborted it, by [`Stack::abort`](crate::Stack::abort).
    LocalAborted,
    /// It gave way to a newer one before its peer had proven anything.
    Evicted,
}

impl CloseReason {
    /// A short name for counters and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PeerClosed => "peer-closed",
            Self::PeerReset => "peer-reset",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::ConnectTimeout => "connect-timeout",
            Self::Timeout => "timeout",
            Self::LocalClosed => "local-closed",
            Self::LocalAborted => "local-aborted",
            Self::Evicted => "evicted",
        }
    }
}

/// What became of a packet given to [`Stack::handle_segment`](crate::Stack::handle_segment).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentOutcome {
    /// It belongs to a connection, which has dealt with it, or begins one.
    Accepted,
    /// Nobody has dealt with it.
    Dropped(DropReason),
}

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// A header is cut, contradicts itself, or has an address that cannot be an endpoint.
    Malformed,
    /// A checksum is wrong.
    BadChecksum,
    /// An IP fragment: TCP with path MTU discovery sends none (RFC 9293, 3.7.2).
    Fragment,
    /// It carries no TCP.
    NotTcp,
    /// Octets of a connection whose first ones, or their ACK, have not come: they must come first,
    /// since nothing is kept of a SYN.
    HandshakeUnfinished,
    /// A SYN for a port on which nothing listens; answered by RST.
    PortClosed,
    /// No SYN, and of no connection that is known; answered by RST unless it is one.
    NoConnection,
    /// No room: `connections_max` are there, and all have proven themselves.
    ConnectionsMax,
    /// `prefix_connections_max` connections with this source network are there.
    PrefixMax,
    /// Outside the window (RFC 9293, 3.10.7.4); answered by an ACK.
    OutOfWindow,
    /// An old timestamp, or none where they were agreed on (RFC 7323, 5).
    OldTimestamp,
    /// It acknowledges what was never sent, or long ago (RFC 5961, 5).
    BadAcknowledgment,
    /// No memory for its data, or too many holes in what came; it will come again.
    NoMemory,
    /// A RST or SYN inside a connection's window that does not prove that its sender sees the
    /// connection; answered by a challenge ACK (RFC 5961, 3.2 and 4.2).
    Challenged,
}

impl DropReason {
    /// A short name for counters and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::BadChecksum => "bad-checksum",
            Self::Fragment => "fragment",
            Self::NotTcp => "not-tcp",
            Self::PortClosed => "port-closed",
            Self::NoConnection => "no-connection",
            Self::ConnectionsMax => "connections-max",
            Self::HandshakeUnfinished => "handshake-unfinished",
            Self::PrefixMax => "prefix-max",
            Self::OutOfWindow => "out-of-window",
            Self::OldTimestamp => "old-timestamp",
            Self::BadAcknowledgment => "bad-acknowledgment",
            Self::NoMemory => "no-memory",
            Self::Challenged => "challenged",
        }
    }
}

/// Why [`Stack::connect`](crate::Stack::connect) could not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// The addresses are of two families, or one of them cannot be an endpoint.
    #[error("local and remote address do not make a TCP connection: check the configuration")]
    Address,
    /// `connections_max` are there.
    #[error("this worker has as many TCP connections as it may: raise tcp_connections")]
    ConnectionsMax,
    /// Every local port of the range is in use towards this peer.
    #[error("every ephemeral port towards this peer is in use")]
    NoPort,
}

/// Why [`Stack::recv`](crate::Stack::recv) or [`Stack::send_with`](crate::Stack::send_with) did
/// nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConnError {
    /// No connection has this name any more.
    #[error("the TCP connection is gone")]
    Gone,
    /// The handshake is not done.
    #[error("the TCP connection is not open yet")]
    NotOpen,
    /// Less room than asked for. An [`Event::Writable`] follows when there is enough.
    #[error("the send buffer of the TCP connection is full")]
    Full,
}

/// What is known of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnInfo {
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// Whether we opened it.
    pub originator: bool,
    /// Which congestion control governs it.
    pub congestion_control: CongestionControl,
    /// When the handshake was done; before that, when it began.
    pub opened_at: Instant,
    /// When the peer's last segment came.
    pub heard_at: Instant,
    /// Octets given out by [`Stack::recv`](crate::Stack::recv). A connection on which none came
    /// for seconds after `opened_at` is one to close.
    pub octets_in: u64,
    /// Octets taken by [`Stack::send_with`](crate::Stack::send_with).
    pub octets_out: u64,
    /// Segments received.
    pub segments_in: u64,
    /// Segments sent, retransmissions included.
    pub segments_out: u64,
    /// Octets that arrived and have not been given out.
    pub unread_bytes: usize,
    /// Octets in the send buffer that have not been sent for the first time. Frames among them
    /// are sealed already and must be sent: what is to be dropped is dropped before sealing.
    pub unsent_bytes: usize,
    /// When the oldest frame among them was written.
    pub unsent_since: Option<Instant>,
    /// Octets that were sent and are not acknowledged.
    pub in_flight_bytes: usize,
}

/// What a stack has done since it was made. All of it only counts up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Packets given to the stack.
    pub segments_in: u64,
    /// Packets that the stack gave out.
    pub segments_out: u64,
    /// Times that a connection was asked whether it has something to send or when it will.
    /// Divided by `segments_in` and `segments_out` it tells whether the cost of a packet depends
    /// on the number of connections: it must not.
    pub connections_polled: u64,
    /// RST sent for packets of no connection.
    pub resets_sent: u64,
    /// RST not sent for these because there would have been too many.
    pub resets_suppressed: u64,
    /// Answers without data that were forgotten because the device took none for too long.
    pub replies_lost: u64,
    /// SYNs answered by a cookie.
    pub cookies_sent: u64,
    /// Handshakes completed by a valid cookie.
    pub cookies_accepted: u64,
    /// Acknowledgments of no connection that carried no valid cookie.
    pub cookies_failed: u64,
    /// Acknowledgments of a cookie that had opened a connection before: it opens no second one.
    pub cookies_replayed: u64,
    /// Connections without proof that made room for newer ones.
    pub unproven_evicted: u64,
    /// Connections whose octets behind holes were forgotten for want of memory (RFC 2018, 8).
    pub reneged: u64,
    /// Octets of buffers in use now.
    pub buffer_bytes: u64,
}

/// The longest headers of a packet: IPv6, and TCP with all options.
pub const HEADERS_BYTES_MAX: usize = 100;

/// One packet that leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Octets of the IP packet.
    pub bytes: usize,
    /// The device is to cut the packet's payload into segments of so many octets, each with its own
    /// headers and checksums (TCP segmentation offload); the packet is larger than the MTU then.
    /// Only ever with [`StackConfig::segmentation_bytes`](crate::StackConfig).
    pub segment_bytes: Option<u16>,
}

/// Where a stack puts the packets that it sends.
pub trait Transmit {
    /// Whether another packet can be taken just now. If not, the stack keeps what it has and
    /// offers it at the next [`Stack::poll_transmit`](crate::Stack::poll_transmit): nothing is
    /// lost, so that a full ring of the device costs no retransmission.
    fn has_room(&mut self) -> bool;

    /// Takes one IP packet. Each call of `fill` writes its next octets: all of them at once, or
    /// piece by piece where the device keeps a packet in several buffers; then the first piece has
    /// at least [`HEADERS_BYTES_MAX`] octets. Where there turns out to be no memory, `fill` is not
    /// called and the packet is lost, as it might have been on the wire. Called only after
    /// [`Transmit::has_room`] said yes.
    fn packet(&mut self, packet: Packet, fill: impl FnMut(&mut [u8]));
}
