//! The named counters: what the workers saw and what they dropped, under which name.
//!
//! This is the one list. Each worker has a row with one number for each counter, which only it
//! writes; readers add the rows up. Names are stable: tables and metrics use them as they are.

/// Counters of a row, including room to grow.
pub const COUNTERS_MAX: usize = 256;

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $variant:ident = $name:literal,)+) => {
        /// A named counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum Counter {
            $($(#[doc = $help])+ $variant,)+
        }

        impl Counter {
            /// All counters, in the order of a row.
            pub const ALL: &'static [Counter] = &[$(Counter::$variant,)+];

            /// The counter's stable name: area and fact, in `snake_case`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Counter::$variant => $name,)+
                }
            }

            /// What the counter counts, in a sentence for people.
            pub fn help(self) -> &'static str {
                match self {
                    $(Counter::$variant => concat!($($help,)+).trim_ascii(),)+
                }
            }
        }
    };
}

counters! {
    /// Packets received on the outer port.
    OuterRxPackets = "outer_rx_packets",
    /// Octets received on the outer port.
    OuterRxOctets = "outer_rx_octets",
    /// Packets sent on the outer port.
    OuterTxPackets = "outer_tx_packets",
    /// Octets sent on the outer port.
    OuterTxOctets = "outer_tx_octets",
    /// Packets for the outer port that its full transmit queue refused.
    OuterTxFull = "outer_tx_full",
    /// Packets received on the inner port.
    InnerRxPackets = "inner_rx_packets",
    /// Octets received on the inner port.
    InnerRxOctets = "inner_rx_octets",
    /// Packets sent on the inner port.
    InnerTxPackets = "inner_tx_packets",
    /// Octets sent on the inner port.
    InnerTxOctets = "inner_tx_octets",
    /// Packets for the inner port that its full transmit queue refused.
    InnerTxFull = "inner_tx_full",
    /// No packet buffer was left in the pool.
    PoolEmpty = "pool_empty",
    /// Packets dropped because more of them were made in one batch than are kept.
    BatchFull = "batch_full",
    /// Packets dropped because they do not fit into a buffer.
    NoRoom = "no_room",

    /// Frames shorter than an Ethernet header.
    EthernetShort = "ethernet_short",
    /// Frames for another station's address.
    EthernetNotOurs = "ethernet_not_ours",
    /// Frames of a type other than IPv4, IPv6 and ARP.
    EthernetTypeUnknown = "ethernet_type_unknown",
    /// Frames whose source is no station's address.
    EthernetBadSource = "ethernet_bad_source",
    /// Frames with a VLAN tag.
    EthernetVlan = "ethernet_vlan",

    /// IP packets whose header is cut off or has impossible lengths.
    IpMalformed = "ip_malformed",
    /// IPv4 packets with a wrong header checksum.
    Ipv4BadChecksum = "ipv4_bad_checksum",
    /// IPv6 packets with extension headers that are malformed or too many.
    Ipv6BadExtension = "ipv6_bad_extension",
    /// Packets to an address on the outer side that is not ours.
    IpNotOurs = "ip_not_ours",
    /// Packets to us of a protocol that we do not take.
    IpProtocolUnknown = "ip_protocol_unknown",
    /// Fragments on the outer side, which are refused.
    OuterFragment = "outer_fragment",
    /// Inner packets whose time to live or hop limit ran out.
    IpTimeExceeded = "ip_time_exceeded",
    /// Inner packets too big for the tunnel that may not be fragmented.
    IpTooBig = "ip_too_big",
    /// Inner IPv4 packets that were cut into fragments to fit the tunnel.
    Ipv4Fragmented = "ipv4_fragmented",
    /// Outer IPv6 packets that were sent in fragments, because their path or the link takes no more.
    OuterIpv6Fragmented = "outer_ipv6_fragmented",
    /// Packets for which there is no route.
    IpNoRoute = "ip_no_route",
    /// Packets whose IP version contradicts the frame's type.
    IpBadVersion = "ip_bad_version",
    /// Packets with IPv4 options that are malformed.
    IpBadOptions = "ip_bad_options",
    /// Packets with a source route.
    IpSourceRoute = "ip_source_route",
    /// Fragments with an impossible offset or length.
    IpBadFragment = "ip_bad_fragment",
    /// Packets with a source that cannot be on the wire.
    IpMartianSource = "ip_martian_source",
    /// Packets with a destination that is never forwarded to.
    IpMartianDestination = "ip_martian_destination",
    /// Packets whose upper-layer header is incomplete.
    TransportTruncated = "transport_truncated",
    /// Inner packets that cannot tell of the congestion that the outer ones met (RFC 6040, 4.2).
    EcnIllegal = "ecn_illegal",
    /// Packets from the tunnel that are not IPv4 or IPv6, or are malformed.
    InnerMalformed = "inner_malformed",

    /// ICMP echo requests answered.
    IcmpEchoAnswered = "icmp_echo_answered",
    /// ICMP messages that are cut off or have a wrong checksum.
    IcmpMalformed = "icmp_malformed",
    /// ICMP messages that say that a TCP segment or an ESP packet of ours was too big, and were
    /// believed.
    IcmpTooBig = "icmp_too_big",
    /// ICMP messages that say that a TCP segment of ours could not be delivered, and were believed.
    IcmpUnreachable = "icmp_unreachable",
    /// ICMP messages to us of other types.
    IcmpIgnored = "icmp_ignored",
    /// ICMP errors sent.
    IcmpErrorSent = "icmp_error_sent",
    /// ICMP errors not sent because of their rate limit.
    IcmpErrorLimited = "icmp_error_limited",

    /// ARP packets that are malformed.
    ArpMalformed = "arp_malformed",
    /// ARP requests answered.
    ArpAnswered = "arp_answered",
    /// ARP packets that are not for us.
    ArpIgnored = "arp_ignored",
    /// Neighbour discovery messages that are malformed (RFC 4861, 7.1).
    NdMalformed = "nd_malformed",
    /// Neighbour solicitations answered.
    NdAnswered = "nd_answered",
    /// Neighbour discovery messages that are not for us.
    NdIgnored = "nd_ignored",
    /// Neighbours learnt or refreshed.
    NeighbourLearnt = "neighbour_learnt",
    /// Requests for a neighbour's address sent.
    NeighbourRequested = "neighbour_requested",
    /// Packets dropped because their next hop did not answer.
    NeighbourFailed = "neighbour_failed",
    /// Packets dropped because too many wait for their next hop.
    NeighbourQueueFull = "neighbour_queue_full",
    /// Claims of other stations to have one of our addresses.
    NeighbourClaimsOurs = "neighbour_claims_ours",

    /// UDP datagrams that are cut off or have impossible lengths.
    UdpMalformed = "udp_malformed",
    /// UDP datagrams with a wrong checksum.
    UdpBadChecksum = "udp_bad_checksum",
    /// UDP datagrams to a port that nobody listens on.
    UdpNoPort = "udp_no_port",
    /// NAT keepalives (RFC 3948, 2.3).
    UdpKeepalive = "udp_keepalive",

    /// TCP segments received.
    TcpSegmentsIn = "tcp_segments_in",
    /// TCP segments sent.
    TcpSegmentsOut = "tcp_segments_out",
    /// TCP segments that are cut off or have impossible lengths.
    TcpMalformed = "tcp_malformed",
    /// TCP segments with a wrong checksum.
    TcpBadChecksum = "tcp_bad_checksum",
    /// TCP segments to a port that nobody listens on, or of no connection.
    TcpNoConnection = "tcp_no_connection",
    /// TCP segments that their connection did not accept.
    TcpNotAccepted = "tcp_not_accepted",
    /// Connections opened, by either side.
    TcpOpened = "tcp_opened",
    /// Connections closed in order.
    TcpClosed = "tcp_closed",
    /// Connections reset or timed out.
    TcpAborted = "tcp_aborted",
    /// Connections refused because the table is full.
    TcpTableFull = "tcp_table_full",
    /// Connections refused because their source network has as many as it may.
    TcpPrefixFull = "tcp_prefix_full",
    /// Data of TCP segments that no buffer could be had for; it comes again.
    TcpNoMemory = "tcp_no_memory",
    /// SYNs answered by a cookie.
    TcpCookiesSent = "tcp_cookies_sent",
    /// Handshakes completed by a cookie.
    TcpCookiesAccepted = "tcp_cookies_accepted",
    /// Acknowledgments to a listening port that carried no valid cookie.
    TcpCookiesFailed = "tcp_cookies_failed",
    /// Connections without a prefix that made room for newer ones.
    TcpEvicted = "tcp_evicted",
    /// Connections whose octets behind holes were forgotten for want of memory (RFC 2018, 8).
    TcpReneged = "tcp_reneged",
    /// RSTs sent to strangers.
    TcpResetsSent = "tcp_resets_sent",

    /// Frames of IKE messages in TCP streams.
    FramingIke = "framing_ike",
    /// Frames of ESP packets in TCP streams.
    FramingEsp = "framing_esp",
    /// Keepalives and empty frames in TCP streams, which are ignored (RFC 9329, 3).
    FramingKeepalive = "framing_keepalive",
    /// Frames too short for what they should be.
    FramingShort = "framing_short",
    /// Frames that were received in part when their connection ended (RFC 9329, 6.1).
    FramingPartial = "framing_partial",
    /// Streams closed because too many messages in a row were nobody's, or because a packet of a
    /// known SPI failed its check (RFC 9329, 6.1).
    FramingCorrupt = "framing_corrupt",
    /// Streams closed because they do not begin with the prefix.
    FramingBadPrefix = "framing_bad_prefix",
    /// Streams closed because of a length of 0 or 1.
    FramingBadLength = "framing_bad_length",
    /// Streams closed because the prefix did not come in time.
    FramingSilent = "framing_silent",
    /// Inner packets dropped before sealing because their connection could take no more.
    TcpBackpressure = "tcp_backpressure",
    /// Inner packets not sealed because frames have waited on their TCP connection for too long.
    TcpAged = "tcp_aged",

    /// ESP packets opened.
    EspOpened = "esp_opened",
    /// ESP packets sealed.
    EspSealed = "esp_sealed",
    /// ESP packets of an SPI that no SA has.
    EspSpiUnknown = "esp_spi_unknown",
    /// ESP packets of an SA that is past its deadline.
    EspSaExpired = "esp_sa_expired",
    /// ESP packets too short to hold header, IV, trailer and ICV.
    EspTooShort = "esp_too_short",
    /// ESP packets whose ciphertext is not a multiple of 4 octets.
    EspMisaligned = "esp_misaligned",
    /// ESP packets received before (RFC 4303, 3.4.3).
    EspReplayed = "esp_replayed",
    /// ESP packets behind the replay window (RFC 4303, 3.4.3).
    EspTooOld = "esp_too_old",
    /// ESP packets with a wrong ICV.
    EspIcvFailed = "esp_icv_failed",
    /// Authentic ESP packets whose padding is not 1, 2, 3 and so on (RFC 4303, 2.4).
    EspBadPadding = "esp_bad_padding",
    /// Dummy ESP packets, which are dropped (RFC 4303, 2.6).
    EspDummy = "esp_dummy",
    /// ESP packets whose inner packets were dropped because the TCP segment met congestion (RFC 9329,
    /// 9.5).
    EspCongestion = "esp_congestion",
    /// Authentic ESP packets that hold neither IPv4 nor IPv6.
    EspNextHeader = "esp_next_header",
    /// Packets that transport mode cannot carry: fragments, with options or extension headers.
    EspTransportUnfit = "esp_transport_unfit",
    /// Authentic inner packets outside the SA's selectors (RFC 4301, 5.2).
    EspSelector = "esp_selector",
    /// Inner packets dropped because the SA has no sequence number left.
    EspSequenceExhausted = "esp_sequence_exhausted",
    /// Peers whose path moved because an authentic packet came another way.
    PathMoved = "path_moved",
    /// Packets dropped because their peer has no usable path.
    PathNone = "path_none",

    /// Inner packets that no policy takes.
    PolicyNone = "policy_none",
    /// Inner packets whose policy has no SA yet; control is told to set one up.
    PolicyTrapped = "policy_trapped",
    /// Inner packets whose policy names an SA that is gone.
    PolicyStale = "policy_stale",

    /// Packets handed to another worker.
    HandoffSent = "handoff_sent",
    /// Packets taken from other workers.
    HandoffReceived = "handoff_received",
    /// Packets dropped because the other worker's ring was full.
    HandoffFull = "handoff_full",
    /// Sealed frames of other workers dropped because their connection was gone or full.
    HandoffTcpLost = "handoff_tcp_lost",

    /// IKE messages passed to the control process.
    IkeUp = "ike_up",
    /// IKE messages sent for the control process.
    IkeDown = "ike_down",
    /// Messages for the control process dropped because the ring was full.
    RingUpFull = "ring_up_full",
    /// Records of the control process that had no meaning.
    RingDownMalformed = "ring_down_malformed",
    /// IKE messages not sent because their connection or route is gone.
    IkeDownNoPath = "ike_down_no_path",
    /// IKE messages not sent because their TCP connection has no room for more: its peer takes
    /// nothing, or the worker's memory for TCP is used up.
    IkeDownFull = "ike_down_full",
    /// IKE messages not sent because they are longer than their path can carry.
    IkeTooBig = "ike_too_big",
    /// Messages in TCP streams that have the marker of IKE but cannot be IKE messages.
    IkeMalformed = "ike_malformed",
    /// SAs of the control process that cannot be used: bad keys or window.
    SaUnusable = "sa_unusable",
    /// Policies of the control process that cannot be used: too many to one destination.
    PolicyRefused = "policy_refused",
}

impl Counter {
    /// How many counters there are.
    pub const COUNT: usize = Counter::ALL.len();

    /// A fingerprint of all names in their order: two builds whose rows differ refuse each other.
    pub(crate) const fn fingerprint() -> u32 {
        // FNV-1a.
        let mut hash = 0x811c_9dc5_u32;
        let mut index = 0;
        while index < Counter::COUNT {
            let name = Counter::ALL[index].name().as_bytes();
            let mut octet = 0;
            while octet < name.len() {
                hash = (hash ^ name[octet] as u32).wrapping_mul(0x0100_0193);
                octet += 1;
            }
            hash = (hash ^ 0xff).wrapping_mul(0x0100_0193);
            index += 1;
        }
        hash
    }
}

const _: () = assert!(Counter::COUNT <= COUNTERS_MAX, "the row of counters is too short");

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_stable_in_form() {
        let names: HashSet<_> = Counter::ALL.iter().map(|counter| counter.name()).collect();
        assert_eq!(names.len(), Counter::COUNT);
        for counter in Counter::ALL {
            assert!(
                counter
                    .name()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                "{}",
                counter.name()
            );
            assert!(counter.help().ends_with('.'), "{}", counter.help());
        }
    }

    #[test]
    fn a_counter_is_its_place_in_the_row() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
