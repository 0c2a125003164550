//! The one list of reasons for which the packet modules refuse a packet.

/// Declares [`DropReason`] so that variant, name and explanation cannot drift apart.
macro_rules! drop_reasons {
    ($($variant:ident $name:literal $help:literal,)*) => {
        /// Why a packet was refused. Fieldless and dense, so that `reason as usize` indexes a
        /// counter row of [`DropReason::COUNT`] entries.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
        #[repr(u8)]
        pub enum DropReason {
            $(#[doc = $help] #[error($help)] $variant,)*
        }

        impl DropReason {
            /// Every reason in the order of its index.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// Number of reasons.
            pub const COUNT: usize = Self::ALL.len();

            /// The name of its counter: lower case, underscores, never changed once released.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    // Ethernet
    EtherTruncated "ether_truncated" "frame shorter than an Ethernet header",
    EtherBadSource "ether_bad_source" "Ethernet source is a group address or zero",
    EtherNotOurs "ether_not_ours" "unicast frame for another station",
    EtherVlan "ether_vlan" "VLAN tag: tagged frames are not accepted on this port",
    EtherUnknownType "ether_unknown_type" "EtherType is not IPv4, IPv6 or ARP",
    // IP
    IpBadVersion "ip_bad_version" "IP version is not 4 or 6, or contradicts the EtherType",
    IpTruncated "ip_truncated" "IP header or payload reaches beyond the frame",
    IpBadLength "ip_bad_length" "IP length fields contradict each other",
    IpBadChecksum "ip_bad_checksum" "IPv4 header checksum wrong",
    IpBadOptions "ip_bad_options" "IPv4 or IPv6 options malformed",
    IpSourceRoute "ip_source_route" "IPv4 source route option or IPv6 routing header type 0",
    IpTooManyExtensions "ip_too_many_extensions" "IPv6 extension header chain beyond the limit",
    IpJumbogram "ip_jumbogram" "IPv6 jumbogram",
    IpBadFragment "ip_bad_fragment" "fragment with impossible offset or length",
    IpFragmentForUs "ip_fragment_for_us" "fragment for an own address: not reassembled here",
    IpMartianSource "ip_martian_source" "source address that cannot be on the wire",
    IpMartianDestination "ip_martian_destination" "destination address that cannot be on the wire",
    IpNotOurs "ip_not_ours" "outer packet for an address that is not ours",
    IpHopLimit "ip_hop_limit" "TTL or hop limit used up",
    IpNoRoute "ip_no_route" "no route to the destination",
    IpTooBig "ip_too_big" "larger than the path allows and must not be fragmented",
    IpUnknownProtocol "ip_unknown_protocol" "upper-layer protocol that is not served here",
    TransportTruncated "transport_truncated" "upper-layer header incomplete",
    // ARP
    ArpMalformed "arp_malformed" "ARP message malformed or not Ethernet/IPv4",
    ArpBadSender "arp_bad_sender" "ARP sender address is not a station's or contradicts the frame",
    ArpNotOurs "arp_not_ours" "ARP request for an address that is not ours",
    ArpOwnAddress "arp_own_address" "another station claims our IPv4 address by ARP",
    // ICMP
    IcmpTruncated "icmp_truncated" "ICMP message incomplete",
    IcmpBadChecksum "icmp_bad_checksum" "ICMP checksum wrong",
    IcmpNotServed "icmp_not_served" "ICMP message that is not answered here",
    // Neighbour discovery
    NdHopLimit "nd_hop_limit" "neighbour discovery from beyond the link (hop limit is not 255)",
    NdMalformed "nd_malformed" "neighbour discovery message or option malformed",
    NdBadAddress "nd_bad_address" "neighbour discovery with an address that RFC 4861 forbids",
    NdNotOurs "nd_not_ours" "neighbour solicitation for an address that is not ours",
    NdOwnAddress "nd_own_address" "another station claims our IPv6 address by advertisement",
    NdNotServed "nd_not_served" "router advertisement, redirect or another unserved ND message",
    // UDP
    UdpBadLength "udp_bad_length" "UDP length contradicts the IP length",
    UdpBadChecksum "udp_bad_checksum" "UDP checksum wrong",
    UdpZeroChecksum "udp_zero_checksum" "UDP over IPv6 without checksum where it is required",
    // Tunnel
    EcnIllegal "ecn_illegal" "outer CE over an inner packet that is not ECN-capable",
    // Neighbour cache
    NeighbourPending "neighbour_pending" "next hop's address is being resolved",
    NeighbourFailed "neighbour_failed" "next hop does not answer",
    // Policy
    PolicyNone "policy_none" "no policy selects the packet",
    PolicyInbound "policy_inbound" "decrypted packet outside of its SA's selectors",
    // Building
    NoRoom "no_room" "buffer too small for the packet to be built",
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn index_is_dense_and_names_are_unique() {
        let mut names = HashSet::new();
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(names.insert(reason.name()), "{} twice", reason.name());
        }
        assert_eq!(names.len(), DropReason::COUNT);
    }
}
