//! Which counter a refused packet falls under. Every match is total: a new reason does not compile
//! until it has a name.

use culvert_esp::OpenError;
use culvert_shm::{Counter, SaDrop};
use culvert_tcpstack as tcpstack;

use crate::net::DropReason;

/// The counter of a packet that the packet modules refused.
pub(crate) fn counter(reason: DropReason) -> Counter {
    match reason {
        DropReason::EtherTruncated => Counter::EthernetShort,
        DropReason::EtherBadSource => Counter::EthernetBadSource,
        DropReason::EtherNotOurs => Counter::EthernetNotOurs,
        DropReason::EtherVlan => Counter::EthernetVlan,
        DropReason::EtherUnknownType => Counter::EthernetTypeUnknown,
        DropReason::IpBadVersion => Counter::IpBadVersion,
        DropReason::IpTruncated | DropReason::IpBadLength => Counter::IpMalformed,
        DropReason::IpBadChecksum => Counter::Ipv4BadChecksum,
        DropReason::IpBadOptions => Counter::IpBadOptions,
        DropReason::IpSourceRoute => Counter::IpSourceRoute,
        DropReason::IpTooManyExtensions | DropReason::IpJumbogram => Counter::Ipv6BadExtension,
        DropReason::IpBadFragment => Counter::IpBadFragment,
        DropReason::IpFragmentForUs => Counter::OuterFragment,
        DropReason::IpMartianSource => Counter::IpMartianSource,
        DropReason::IpMartianDestination => Counter::IpMartianDestination,
        DropReason::IpNotOurs => Counter::IpNotOurs,
        DropReason::IpHopLimit => Counter::IpTimeExceeded,
        DropReason::IpNoRoute => Counter::IpNoRoute,
        DropReason::IpTooBig => Counter::IpTooBig,
        DropReason::IpUnknownProtocol => Counter::IpProtocolUnknown,
        DropReason::TransportTruncated => Counter::TransportTruncated,
        DropReason::ArpMalformed | DropReason::ArpBadSender => Counter::ArpMalformed,
        DropReason::ArpNotOurs => Counter::ArpIgnored,
        DropReason::ArpOwnAddress | DropReason::NdOwnAddress => Counter::NeighbourClaimsOurs,
        DropReason::IcmpTruncated | DropReason::IcmpBadChecksum => Counter::IcmpMalformed,
        DropReason::IcmpNotServed => Counter::IcmpIgnored,
        DropReason::NdHopLimit | DropReason::NdMalformed | DropReason::NdBadAddress => {
            Counter::NdMalformed
        }
        DropReason::NdNotOurs | DropReason::NdNotServed => Counter::NdIgnored,
        DropReason::UdpBadLength => Counter::UdpMalformed,
        DropReason::UdpBadChecksum | DropReason::UdpZeroChecksum => Counter::UdpBadChecksum,
        DropReason::EcnIllegal => Counter::EcnIllegal,
        DropReason::NeighbourPending => Counter::NeighbourQueueFull,
        DropReason::NeighbourFailed => Counter::NeighbourFailed,
        DropReason::PolicyNone => Counter::PolicyNone,
        DropReason::PolicyInbound => Counter::EspSelector,
        DropReason::NoRoom => Counter::NoRoom,
    }
}

/// The counter of a segment that the TCP stack did not take.
pub(crate) fn segment(reason: tcpstack::DropReason) -> Counter {
    match reason {
        tcpstack::DropReason::Malformed
        | tcpstack::DropReason::Fragment
        | tcpstack::DropReason::NotTcp => Counter::TcpMalformed,
        tcpstack::DropReason::BadChecksum => Counter::TcpBadChecksum,
        tcpstack::DropReason::PortClosed
        | tcpstack::DropReason::NoConnection
        | tcpstack::DropReason::HandshakeUnfinished => Counter::TcpNoConnection,
        tcpstack::DropReason::ConnectionsMax => Counter::TcpTableFull,
        tcpstack::DropReason::PrefixMax => Counter::TcpPrefixFull,
        tcpstack::DropReason::NoMemory => Counter::TcpNoMemory,
        tcpstack::DropReason::Challenged
        | tcpstack::DropReason::OutOfWindow
        | tcpstack::DropReason::OldTimestamp
        | tcpstack::DropReason::BadAcknowledgment => Counter::TcpNotAccepted,
    }
}

/// The counter of an ESP packet that was not opened, and how its SA counts it.
pub(crate) fn open_error(error: &OpenError) -> (Counter, SaDrop) {
    match error {
        OpenError::TooShort => (Counter::EspTooShort, SaDrop::Malformed),
        OpenError::Misaligned => (Counter::EspMisaligned, SaDrop::Malformed),
        OpenError::WrongSpi => (Counter::EspSpiUnknown, SaDrop::Malformed),
        OpenError::Replayed => (Counter::EspReplayed, SaDrop::Replay),
        OpenError::TooOld => (Counter::EspTooOld, SaDrop::Replay),
        OpenError::IcvFailed => (Counter::EspIcvFailed, SaDrop::Icv),
        OpenError::BadPadding => (Counter::EspBadPadding, SaDrop::Malformed),
        OpenError::Dummy => (Counter::EspDummy, SaDrop::Malformed),
    }
}
