//! Traffic selectors (RFC 7296, 2.9 and 3.13): ranges of addresses and ports of one protocol.
//!
//! swanctl's spelling: `10.1.0.0/24`, `2001:db8::/32[tcp/80]`, `10.0.0.1-10.0.0.9[udp/5000-5010]`,
//! `192.0.2.7[icmp]`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Most selectors of one side of a CHILD SA, in a message and after narrowing.
pub const SELECTORS_MAX: usize = 16;

/// One range of addresses, ports and a protocol. Both addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TrafficSelector {
    /// IP protocol; 0: any.
    pub protocol: u8,
    /// First port; with ICMP, the type and code.
    pub port_start: u16,
    /// Last port. `port_start` 65535 with `port_end` 0 is OPAQUE: packets without a port.
    pub port_end: u16,
    /// First address.
    pub start: IpAddr,
    /// Last address.
    pub end: IpAddr,
}

/// Why a spelling is no traffic selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TsError {
    /// The addresses.
    #[error(
        "`{0}` is no address, network (10.1.0.0/24) or range of addresses of one family (10.1.0.1-10.1.0.9)"
    )]
    Addresses(String),
    /// The length of a prefix.
    #[error("`/{0}` is no prefix length of that address family")]
    PrefixLength(String),
    /// The protocol.
    #[error("`{0}` is no protocol; write tcp, udp, icmp, icmpv6, sctp or a number from 0 to 255")]
    Protocol(String),
    /// The ports.
    #[error("`{0}` is no port or range of ports (80, 5000-5010)")]
    Ports(String),
    /// A bracket.
    #[error("`{0}`: a bracket is not closed; write [tcp/80]")]
    Bracket(String),
    /// swanctl's `dynamic`.
    #[error("`dynamic` needs virtual addresses, which are not supported yet; name the network")]
    Dynamic,
}

impl TrafficSelector {
    /// All packets with an address of this network: any protocol, any port. Bits of the address
    /// behind the prefix are cleared; a length beyond the family's counts as the whole address.
    pub fn network(address: IpAddr, prefix_len: u8) -> Self {
        let (start, end) = match address {
            IpAddr::V4(a) => {
                let host = u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
                let bits = u32::from(a);
                (IpAddr::V4((bits & !host).into()), IpAddr::V4((bits | host).into()))
            }
            IpAddr::V6(a) => {
                let host = u128::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
                let bits = u128::from(a);
                (IpAddr::V6((bits & !host).into()), IpAddr::V6((bits | host).into()))
            }
        };
        Self { protocol: 0, port_start: 0, port_end: u16::MAX, start, end }
    }

    /// Whether it is well-formed: one family, and neither range turned round, save OPAQUE ports.
    pub fn is_valid(&self) -> bool {
        self.start.is_ipv4() == self.end.is_ipv4()
            && self.start <= self.end
            && (self.port_start <= self.port_end || self.is_opaque())
    }

    /// Whether it stands for packets whose ports cannot be seen (RFC 7296, 3.13.1).
    pub const fn is_opaque(&self) -> bool {
        self.port_start == u16::MAX && self.port_end == 0
    }

    const fn any_port(&self) -> bool {
        self.port_start == 0 && self.port_end == u16::MAX
    }

    /// Whether it stands for the packets between one address and port only, such as the one that
    /// triggered the negotiation (RFC 7296, 2.9).
    pub fn is_single_packet(&self) -> bool {
        self.start == self.end && (self.port_start == self.port_end && self.protocol != 0)
    }

    /// What both have in common.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        if self.start.is_ipv4() != other.start.is_ipv4() {
            return None;
        }
        let protocol = match (self.protocol, other.protocol) {
            (0, p) | (p, 0) => p,
            (a, b) if a == b => a,
            _ => return None,
        };
        let (port_start, port_end) = match (self.is_opaque(), other.is_opaque()) {
            (true, true) => (u16::MAX, 0),
            // OPAQUE is contained in "any" (RFC 4301, 4.4.1.1).
            (true, false) if other.any_port() => (u16::MAX, 0),
            (false, true) if self.any_port() => (u16::MAX, 0),
            (false, false) => {
                (self.port_start.max(other.port_start), self.port_end.min(other.port_end))
            }
            _ => return None,
        };
        let both = Self {
            protocol,
            port_start,
            port_end,
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        };
        both.is_valid().then_some(both)
    }

    /// Whether all that `other` stands for is in this one.
    pub fn contains(&self, other: &Self) -> bool {
        self.intersect(other) == Some(*other)
    }
}

/// The part of `wanted` that `allowed` allows, in the order of `wanted`; at most
/// [`SELECTORS_MAX`]. Empty: TS_UNACCEPTABLE.
///
/// The intersection keeps all that both want. Since the order is that of the peer, the selectors of
/// the packet that triggered it, which come first, are never the ones left out (RFC 7296, 2.9).
pub fn narrow(wanted: &[TrafficSelector], allowed: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let mut result: Vec<TrafficSelector> = Vec::new();
    for want in wanted {
        for common in allowed.iter().filter_map(|a| want.intersect(a)) {
            if result.iter().any(|r| r.contains(&common)) {
                continue;
            }
            // A wider one that follows the packet's own takes its place, so the set stays small.
            let covered = result.iter().position(|r| common.contains(r));
            result.retain(|r| !common.contains(r));
            result.insert(covered.unwrap_or(result.len()).min(result.len()), common);
        }
    }
    result.truncate(SELECTORS_MAX);
    result
}

/// Whether all of `inner` lies in `outer`, selector by selector: what an initiator asks of the
/// responder's narrowed answer (RFC 7296, 2.9).
pub fn is_subset(inner: &[TrafficSelector], outer: &[TrafficSelector]) -> bool {
    inner.iter().all(|i| outer.iter().any(|o| o.contains(i)))
}

impl FromStr for TrafficSelector {
    type Err = TsError;

    fn from_str(text: &str) -> Result<Self, TsError> {
        let text = text.trim();
        let (addresses, rest) = match text.split_once('[') {
            Some((addresses, rest)) => {
                let inside =
                    rest.strip_suffix(']').ok_or_else(|| TsError::Bracket(text.to_owned()))?;
                (addresses, Some(inside))
            }
            None => (text, None),
        };
        let mut ts = parse_addresses(addresses)?;
        if let Some(inside) = rest {
            let (protocol, ports) = match inside.split_once('/') {
                Some((protocol, ports)) => (protocol, Some(ports)),
                None => (inside, None),
            };
            ts.protocol = parse_protocol(protocol)?;
            if let Some(ports) = ports {
                (ts.port_start, ts.port_end) = parse_ports(ports)?;
            }
        }
        Ok(ts)
    }
}

fn parse_addresses(text: &str) -> Result<TrafficSelector, TsError> {
    let wrong = || TsError::Addresses(text.to_owned());
    if text == "dynamic" {
        return Err(TsError::Dynamic);
    }
    if let Some((start, end)) = text.split_once('-') {
        let start: IpAddr = start.parse().map_err(|_| wrong())?;
        let end = end.parse().map_err(|_| wrong())?;
        let ts = TrafficSelector { end, ..TrafficSelector::network(start, u8::MAX) };
        return if ts.is_valid() { Ok(ts) } else { Err(wrong()) };
    }
    let (address, len) = match text.split_once('/') {
        Some((address, len)) => (address, Some(len)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let full = if address.is_ipv4() { 32 } else { 128 };
    let len = match len {
        Some(len) => len
            .parse()
            .ok()
            .filter(|len| *len <= full)
            .ok_or_else(|| TsError::PrefixLength(len.to_owned()))?,
        None => full,
    };
    Ok(TrafficSelector::network(address, len))
}

fn parse_protocol(text: &str) -> Result<u8, TsError> {
    Ok(match text {
        "any" => 0,
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "icmpv6" | "ipv6-icmp" => 58,
        "sctp" => 132,
        number => number.parse().map_err(|_| TsError::Protocol(text.to_owned()))?,
    })
}

fn parse_ports(text: &str) -> Result<(u16, u16), TsError> {
    let wrong = || TsError::Ports(text.to_owned());
    match text {
        "any" => return Ok((0, u16::MAX)),
        "opaque" => return Ok((u16::MAX, 0)),
        _ => {}
    }
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let start = start.parse().map_err(|_| wrong())?;
    let end = end.parse().map_err(|_| wrong())?;
    if start <= end { Ok((start, end)) } else { Err(wrong()) }
}

impl fmt::Display for TrafficSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix_len() {
            Some(len) => write!(f, "{}/{len}", self.start)?,
            None => write!(f, "{}-{}", self.start, self.end)?,
        }
        if self.protocol == 0 && self.any_port() {
            return Ok(());
        }
        match self.protocol {
            0 => f.write_str("[any")?,
            1 => f.write_str("[icmp")?,
            6 => f.write_str("[tcp")?,
            17 => f.write_str("[udp")?,
            58 => f.write_str("[icmpv6")?,
            number => write!(f, "[{number}")?,
        }
        match (self.port_start, self.port_end) {
            (0, u16::MAX) => f.write_str("]"),
            (u16::MAX, 0) => f.write_str("/opaque]"),
            (start, end) if start == end => write!(f, "/{start}]"),
            (start, end) => write!(f, "/{start}-{end}]"),
        }
    }
}

impl TrafficSelector {
    /// The prefix length, where the range is exactly one network.
    pub fn prefix_len(&self) -> Option<u8> {
        let (differing, all) = match (self.start, self.end) {
            (IpAddr::V4(s), IpAddr::V4(e)) => (u128::from(u32::from(s) ^ u32::from(e)), 32),
            (IpAddr::V6(s), IpAddr::V6(e)) => (u128::from(s) ^ u128::from(e), 128),
            _ => return None,
        };
        let host_bits = u8::try_from(u128::BITS - differing.leading_zeros()).ok()?;
        let len = all - host_bits;
        (Self::network(self.start, len).start == self.start
            && Self::network(self.start, len).end == self.end)
            .then_some(len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ts(text: &str) -> TrafficSelector {
        text.parse().unwrap()
    }

    fn all(texts: &[&str]) -> Vec<TrafficSelector> {
        texts.iter().map(|t| ts(t)).collect()
    }

    #[test]
    fn spellings_are_read_and_printed() {
        for text in [
            "10.1.0.0/24",
            "0.0.0.0/0",
            "::/0",
            "2001:db8::/32[tcp/80]",
            "10.0.0.1-10.0.0.9[udp/5000-5010]",
            "192.0.2.7/32[icmp]",
            "192.0.2.7/32[any/opaque]",
            "192.0.2.7/32[47]",
        ] {
            assert_eq!(ts(text).to_string(), text);
        }
        assert_eq!(ts("192.0.2.7").to_string(), "192.0.2.7/32");
        assert_eq!(ts("10.1.2.3/8").to_string(), "10.0.0.0/8");
        let error = |text: &str| text.parse::<TrafficSelector>().unwrap_err();
        assert_eq!(error("10.0.0.0/33"), TsError::PrefixLength("33".into()));
        assert_eq!(error("10.0.0.0/24[tcp/9-8]"), TsError::Ports("9-8".into()));
        assert_eq!(error("10.0.0.0/24[http]"), TsError::Protocol("http".into()));
        assert_eq!(error("10.0.0.0/24[tcp"), TsError::Bracket("10.0.0.0/24[tcp".into()));
        assert_eq!(error("10.0.0.9-10.0.0.1"), TsError::Addresses("10.0.0.9-10.0.0.1".into()));
        assert_eq!(error("dynamic"), TsError::Dynamic);
    }

    // RFC 7296, 2.9: the responder's own example, 192.0.2.0/24 wanted with the packet first.
    #[test]
    fn narrowing_keeps_the_packet_that_came_first() {
        let wanted = all(&["198.51.100.43[tcp/80]", "198.51.100.0/24"]);
        assert_eq!(narrow(&wanted, &all(&["0.0.0.0/0"])), all(&["198.51.100.0/24"]));
        assert_eq!(
            narrow(&wanted, &all(&["198.51.100.0/26"])),
            all(&["198.51.100.0/26"]),
            "the packet is inside what is left"
        );
        assert_eq!(
            narrow(&wanted, &all(&["198.51.100.64/26", "198.51.100.43"])),
            all(&["198.51.100.43", "198.51.100.64/26"]),
            "the packet's part comes first"
        );
        assert_eq!(narrow(&wanted, &all(&["203.0.113.0/24", "::/0"])), []);
    }

    #[test]
    fn several_selectors_meet_several() {
        let narrowed = narrow(
            &all(&["10.0.0.0/8", "2001:db8::/32"]),
            &all(&["10.1.0.0/16[tcp]", "10.2.0.0/16", "2001:db8:1::/48"]),
        );
        assert_eq!(narrowed, all(&["10.1.0.0/16[tcp]", "10.2.0.0/16", "2001:db8:1::/48"]));
        let many: Vec<_> = (0..40).map(|i| ts(&format!("10.{i}.0.0/16"))).collect();
        assert_eq!(narrow(&many, &all(&["0.0.0.0/0"])), many[..SELECTORS_MAX]);
    }

    #[test]
    fn opaque_ports_lie_in_any_port_and_in_no_range() {
        let opaque = ts("10.0.0.1[tcp/opaque]");
        assert_eq!(ts("10.0.0.0/8").intersect(&opaque), Some(opaque));
        assert_eq!(ts("10.0.0.0/8[tcp/0-80]").intersect(&opaque), None);
    }

    fn selector() -> impl Strategy<Value = TrafficSelector> {
        (0u8..3, 0u16..8, 0u16..8, 0u32..32, 0u32..32).prop_map(|(protocol, p, q, a, b)| {
            TrafficSelector {
                protocol,
                port_start: p.min(q),
                port_end: p.max(q),
                start: IpAddr::V4(a.min(b).into()),
                end: IpAddr::V4(a.max(b).into()),
            }
        })
    }

    proptest! {
        #[test]
        fn narrowed_is_within_both(
            wanted in prop::collection::vec(selector(), 1..5),
            allowed in prop::collection::vec(selector(), 1..5),
        ) {
            let narrowed = narrow(&wanted, &allowed);
            prop_assert!(is_subset(&narrowed, &wanted) && is_subset(&narrowed, &allowed));
            for common in wanted.iter().flat_map(|w| allowed.iter().filter_map(|a| w.intersect(a))) {
                prop_assert!(narrowed.iter().any(|n| n.contains(&common)), "nothing common is lost");
            }
        }

        #[test]
        fn display_is_read_back(ts in selector()) {
            prop_assert_eq!(ts.to_string().parse(), Ok(ts));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}", near in "[0-9a-f:./\\-\\[\\]tcpud]{0,40}") {
            let _ = text.parse::<TrafficSelector>();
            let _ = near.parse::<TrafficSelector>();
        }
    }
}
