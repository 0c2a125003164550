//! What a [`Stack`](crate::Stack) is told once.

use std::time::Duration;

use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::engine::congestion::CongestionControl;
use crate::engine::segment::Marking;
use crate::time::Instant;

/// The least MTU that lets a peer use IPv6 (RFC 8200, 5). Outer IPv4 paths below it carry so little
/// of a tunnelled packet that they are refused too.
pub const MTU_MIN: u16 = 1280;

/// The greatest buffer of one direction of a connection: 2^30 octets is what window scaling can
/// express (RFC 7323, 2.3).
pub const BUFFER_BYTES_MAX: usize = 1 << 30;

/// The least buffer of one direction: one frame of RFC 9329 of the greatest length fits in it.
pub const BUFFER_BYTES_MIN: usize = 1 << 16;

/// The longest IP packet: its length has 16 bits.
pub const SEGMENTATION_BYTES_MAX: usize = u16::MAX as usize;

/// The secret of one gateway's TCP, common to all its workers. What follows from it changes with
/// time, so it comes with the time from which it counts. A [`Stack`](crate::Stack) forgets it once
/// it has derived its first keys.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct TcpSecret {
    octets: [u8; 32],
    #[zeroize(skip)]
    since: Instant,
}

impl TcpSecret {
    /// `octets` from a good random source; `since`, in the stacks' time, not after their first
    /// packet, best when the gateway starts.
    #[must_use]
    pub fn new(octets: [u8; 32], since: Instant) -> Self {
        Self { octets, since }
    }

    pub(crate) fn octets(&self) -> &[u8; 32] {
        &self.octets
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }
}

/// Limits and sizes of one stack, that is of one worker.
#[derive(Clone)]
pub struct StackConfig {
    /// Connections of all states together, those that linger after a close included. The table of
    /// connections is sized by it once. While there are some for which the caller has not vouched,
    /// a sixteenth of the places, at most 64, is kept free for those that come.
    pub connections_max: u32,
    /// Connections with one source network (an IPv4 /24 or an IPv6 /56): high enough for a large NAT.
    /// Those that linger after a close do not count.
    pub prefix_connections_max: u32,
    /// Incoming connections for which the caller has not vouched ([`Stack::vouch`](crate::Stack)).
    /// When another comes, the oldest of those from the source network that has most of them makes
    /// room, so that a flood cannot lock out peers that prove themselves in time.
    pub unproven_max: u32,
    /// Memory of all send and receive buffers together, in octets. Octets behind holes get at most
    /// half of it, what waits to be sent or acknowledged at most three quarters.
    pub buffers_bytes: usize,
    /// The secret behind initial sequence numbers and SYN cookies, the same for all workers of a
    /// gateway, because a handshake may end on another worker than it began.
    pub secret: TcpSecret,
    /// The congestion control of connections for which [`Stack::set_congestion_control`] chooses no
    /// other.
    ///
    /// [`Stack::set_congestion_control`]: crate::Stack::set_congestion_control
    pub congestion_control: CongestionControl,
    /// DSCP of every packet, and what IPv6 flow labels follow from.
    pub marking: Marking,
    /// Silence after which the peer is asked whether it is there (RFC 9293, 3.8.4); `None` for
    /// never. It says nothing of the IKE peer (RFC 9329, 6.7).
    pub keepalive: Option<Duration>,
    /// Receive buffer of a connection at the most, and therefore the greatest window that a peer
    /// sees; it grows to that with what the peer sends once the caller has vouched for it
    /// ([`Stack::vouch`](crate::Stack)). Goodput is at most this for each round
    /// trip: 4 MiB carry 1 Gbit/s over 32 ms.
    pub rx_buffer_bytes: usize,
    /// Send buffer of a connection at the most: what is not acknowledged yet. It follows twice the
    /// congestion window. It bounds goodput like the receive buffer, and it bounds how long a
    /// sealed frame may wait.
    pub tx_buffer_bytes: usize,
    /// The greatest IP packet to send, in octets; the MSS follows from it (RFC 9293, 3.7.1).
    pub mtu: u16,
    /// Who fills in the checksums of packets that the stack sends.
    pub tx_checksum: TxChecksum,
    /// The longest IP packet that the device cuts into segments itself, in octets; 0 if it does
    /// not. Only with [`TxChecksum::Device`]. How much of it is used follows from each connection's
    /// window and pacing.
    pub segmentation_bytes: usize,
    /// Local ports for connections of our own.
    pub ephemeral_ports: EphemeralPorts,
    /// How long a connection of our own may take to open.
    pub connect_timeout: Duration,
    /// How long octets may stay unacknowledged while the peer says nothing at all
    /// (RFC 9293, 3.8.3).
    pub user_timeout: Duration,
}

impl Default for StackConfig {
    /// The gateway's defaults: 10,240 connections of up to 4 MiB each way, 512 MiB in all. The
    /// secret must be replaced by a random one.
    fn default() -> Self {
        Self {
            connections_max: 10_240,
            prefix_connections_max: 4_096,
            unproven_max: 1_024,
            buffers_bytes: 512 << 20,
            secret: TcpSecret::new([0; 32], Instant::ZERO),
            congestion_control: CongestionControl::default(),
            marking: Marking::default(),
            keepalive: None,
            rx_buffer_bytes: 4 << 20,
            tx_buffer_bytes: 4 << 20,
            mtu: 1500,
            tx_checksum: TxChecksum::Software,
            segmentation_bytes: 0,
            ephemeral_ports: EphemeralPorts::default(),
            connect_timeout: Duration::from_secs(10),
            user_timeout: Duration::from_secs(100),
        }
    }
}

/// Who fills in the checksums of outgoing packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxChecksum {
    /// The stack: packets leave it complete.
    Software,
    /// The device: the TCP checksum is zero. The IPv4 header's is right for the packet as it is; a
    /// device that cuts a packet makes it anew for each segment.
    Device,
}

/// Whether the device has verified the checksums of a received packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RxChecksum {
    /// It has, and they are right.
    Verified,
    /// It has not: the stack does.
    Unknown,
}

/// The local ports of outgoing connections: those of `first..=last` that leave the remainder
/// `offset` when divided by `stride`. With one stride for all workers and an offset for each, a
/// port names the worker that owns its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EphemeralPorts {
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
    /// The number of workers.
    pub stride: u16,
    /// The number of this worker, below `stride`.
    pub offset: u16,
}

impl Default for EphemeralPorts {
    /// The range that RFC 6335, 6 calls dynamic, all of it for one worker.
    fn default() -> Self {
        Self { first: 49_152, last: 65_535, stride: 1, offset: 0 }
    }
}

impl EphemeralPorts {
    /// How many ports there are. The range is valid.
    pub(crate) fn count(&self) -> u16 {
        self.base().map_or(0, |base| (self.last - base) / self.stride + 1)
    }

    /// The port of this index below [`EphemeralPorts::count`].
    pub(crate) fn port(&self, index: u16) -> u16 {
        self.base().unwrap_or(self.first) + index * self.stride
    }

    /// The lowest port of this worker, if there is any.
    fn base(&self) -> Option<u16> {
        let stride = self.stride.max(1);
        let missing = (stride + self.offset % stride - self.first % stride) % stride;
        self.first.checked_add(missing).filter(|base| *base <= self.last)
    }
}

/// A configuration that no stack can work with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// No connection is allowed, or more than an index can name.
    #[error("connections_max must be between 1 and 16,777,216")]
    Connections,
    /// No connection could be accepted.
    #[error("unproven_max and prefix_connections_max must be at least 1")]
    Unproven,
    /// A buffer cannot hold a frame, or is beyond what window scaling can express.
    #[error("a buffer must have between {BUFFER_BYTES_MIN} and {BUFFER_BYTES_MAX} octets")]
    Buffer,
    /// IPv6 could not be used.
    #[error("the MTU must be at least {MTU_MIN}")]
    Mtu,
    /// More than an IP packet can have, or checksums that nobody would fill in.
    #[error(
        "segmentation needs checksums by the device and at most {SEGMENTATION_BYTES_MAX} octets"
    )]
    Segmentation,
    /// The range is empty, begins at 0 or holds no port for this worker.
    #[error("the ephemeral port range holds no port for this worker")]
    Ports,
}

/// More connections than this no worker can have: the index of a connection leaves room for
/// flags.
const CONNECTIONS_LIMIT: u32 = 1 << 24;

impl StackConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let buffer = BUFFER_BYTES_MIN..=BUFFER_BYTES_MAX;
        let ports = &self.ephemeral_ports;
        if !(1..=CONNECTIONS_LIMIT).contains(&self.connections_max) {
            Err(ConfigError::Connections)
        } else if self.unproven_max == 0 || self.prefix_connections_max == 0 {
            Err(ConfigError::Unproven)
        } else if !buffer.contains(&self.rx_buffer_bytes) || !buffer.contains(&self.tx_buffer_bytes)
        {
            Err(ConfigError::Buffer)
        } else if self.mtu < MTU_MIN {
            Err(ConfigError::Mtu)
        } else if self.segmentation_bytes > SEGMENTATION_BYTES_MAX
            || (self.segmentation_bytes > 0 && self.tx_checksum != TxChecksum::Device)
        {
            Err(ConfigError::Segmentation)
        } else if ports.first == 0 || ports.offset >= ports.stride || ports.count() == 0 {
            Err(ConfigError::Ports)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ports: EphemeralPorts) -> Vec<u16> {
        (0..ports.count()).map(|index| ports.port(index)).collect()
    }

    #[test]
    fn workers_share_the_port_range_without_overlap() {
        let share = |offset| all(EphemeralPorts { first: 1001, last: 1010, stride: 3, offset });
        assert_eq!(share(0), [1002, 1005, 1008]);
        assert_eq!(share(1), [1003, 1006, 1009]);
        assert_eq!(share(2), [1001, 1004, 1007, 1010]);
    }

    #[test]
    fn the_range_may_end_at_the_last_port() {
        let ports = all(EphemeralPorts { first: 65_533, last: 65_535, stride: 2, offset: 1 });
        assert_eq!(ports, [65_533, 65_535]);
        let none = EphemeralPorts { first: 65_535, last: 65_535, stride: 2, offset: 0 };
        assert_eq!(none.count(), 0);
    }

    #[test]
    fn segmentation_is_for_devices_that_fill_in_checksums() {
        let check = |tx_checksum, segmentation_bytes| {
            StackConfig { tx_checksum, segmentation_bytes, ..StackConfig::default() }.check()
        };
        assert_eq!(check(TxChecksum::Device, SEGMENTATION_BYTES_MAX), Ok(()));
        let over = check(TxChecksum::Device, SEGMENTATION_BYTES_MAX + 1);
        assert_eq!(over, Err(ConfigError::Segmentation));
        assert_eq!(check(TxChecksum::Software, 1), Err(ConfigError::Segmentation));
    }

    #[test]
    fn each_mistake_has_its_name() {
        let check = |change: fn(&mut StackConfig)| {
            let mut config = StackConfig::default();
            change(&mut config);
            config.check()
        };
        assert_eq!(check(|_| {}), Ok(()));
        assert_eq!(check(|c| c.connections_max = 0), Err(ConfigError::Connections));
        assert_eq!(check(|c| c.connections_max = u32::MAX), Err(ConfigError::Connections));
        assert_eq!(check(|c| c.unproven_max = 0), Err(ConfigError::Unproven));
        assert_eq!(check(|c| c.rx_buffer_bytes = 65_535), Err(ConfigError::Buffer));
        assert_eq!(check(|c| c.tx_buffer_bytes = (1 << 30) + 1), Err(ConfigError::Buffer));
        assert_eq!(check(|c| c.mtu = 1279), Err(ConfigError::Mtu));
        assert_eq!(check(|c| c.ephemeral_ports.offset = 1), Err(ConfigError::Ports));
        assert_eq!(check(|c| c.ephemeral_ports.first = 0), Err(ConfigError::Ports));
        assert_eq!(check(|c| c.ephemeral_ports.last = 1), Err(ConfigError::Ports));
    }
}
