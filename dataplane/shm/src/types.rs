//! Values that both processes speak of: paths, connections, selectors, names.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use num_enum::TryFromPrimitive;

use crate::words::{ADDRESS_WORDS, Record, SOCKET_WORDS, WordReader, WordWriter};

/// What carries the packets of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, TryFromPrimitive)]
#[repr(u16)]
pub enum Transport {
    /// ESP directly in IP (protocol 50), IKE on UDP 500.
    Native = 1,
    /// UDP encapsulation, RFC 3948.
    Udp = 2,
    /// TCP encapsulation, RFC 9329.
    Tcp = 3,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Native => "esp",
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        })
    }
}

/// A TCP connection, named so that a later one at the same index is not mistaken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnRef {
    /// The worker that owns the connection.
    pub worker: u16,
    /// Index in the worker's connection table.
    pub index: u32,
    /// Generation of that index.
    pub generation: u32,
}

impl Record for ConnRef {
    const WORDS: usize = 2;

    fn encode(&self, out: &mut WordWriter<'_>) {
        out.put(u64::from(self.worker));
        out.put_pair(self.index, self.generation);
    }

    fn decode(words: &mut WordReader<'_>) -> Option<ConnRef> {
        let worker = u16::try_from(words.take()?).ok()?;
        let (index, generation) = words.take_pair()?;
        Some(ConnRef { worker, index, generation })
    }
}

/// The way to a peer: transport, addresses and, over TCP, the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Path {
    /// What carries the packets.
    pub transport: Transport,
    /// This gateway's address and port (port 0 with [`Transport::Native`] ESP).
    pub local: SocketAddr,
    /// The peer's address and port.
    pub remote: SocketAddr,
    /// The connection, present with [`Transport::Tcp`] as long as there is one.
    pub conn: Option<ConnRef>,
    /// ESP that comes over UDP from another address does not move the peer there (RFC 7296, 2.23).
    /// Control's word; of no meaning in how a packet came.
    pub pinned: bool,
}

impl Record for Path {
    const WORDS: usize = 1 + 2 * SOCKET_WORDS + ConnRef::WORDS;

    fn encode(&self, out: &mut WordWriter<'_>) {
        out.put_quad([
            self.transport as u16,
            u16::from(self.conn.is_some()),
            u16::from(self.pinned),
            0,
        ]);
        out.put_socket(self.local);
        out.put_socket(self.remote);
        self.conn.unwrap_or(ConnRef { worker: 0, index: 0, generation: 0 }).encode(out);
    }

    fn decode(words: &mut WordReader<'_>) -> Option<Path> {
        let [transport, has_conn, pinned, _] = words.take_quad()?;
        let transport = Transport::try_from(transport).ok()?;
        let local = words.take_socket()?;
        let remote = words.take_socket()?;
        let conn = ConnRef::decode(words)?;
        let conn = (has_conn == 1).then_some(conn);
        Some(Path { transport, local, remote, conn, pinned: pinned == 1 })
    }
}

/// A traffic selector: a range of addresses of one family, a protocol, a range of ports
/// (RFC 7296, 3.13.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Selector {
    first: IpAddr,
    last: IpAddr,
    protocol: u8,
    ports: (u16, u16),
}

impl Selector {
    /// Everything of one family: any address, protocol and port.
    pub const ANY_V4: Selector = Selector {
        first: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        last: IpAddr::V4(Ipv4Addr::BROADCAST),
        protocol: 0,
        ports: (0, u16::MAX),
    };

    /// Everything of IPv6.
    pub const ANY_V6: Selector = Selector {
        first: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        last: IpAddr::V6(Ipv6Addr::from_bits(u128::MAX)),
        protocol: 0,
        ports: (0, u16::MAX),
    };

    /// A selector of the addresses `first..=last`, of `protocol` (0: any) and of the ports
    /// `ports.0..=ports.1` (for ICMP type and code as RFC 7296, 3.13.1 packs them).
    ///
    /// `None` when the families differ or `first` lies behind `last`. A port range whose start lies
    /// behind its end is RFC 7296's OPAQUE: it matches only packets without ports.
    pub fn new(first: IpAddr, last: IpAddr, protocol: u8, ports: (u16, u16)) -> Option<Selector> {
        let ordered = match (first, last) {
            (IpAddr::V4(a), IpAddr::V4(b)) => a <= b,
            (IpAddr::V6(a), IpAddr::V6(b)) => a <= b,
            _ => false,
        };
        ordered.then_some(Selector { first, last, protocol, ports })
    }

    /// First address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Last address, included.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// IP protocol, 0 for any.
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// First and last port, included; 0 to 65,535 is any.
    pub fn ports(&self) -> (u16, u16) {
        self.ports
    }

    /// Whether the selector takes this address, protocol and port.
    ///
    /// `port` is `None` for a packet whose ports are not known: another protocol, or a fragment
    /// that is not the first. Such a packet matches only selectors of any port and opaque ones.
    #[inline]
    pub fn contains(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        let inside = match (self.first, self.last, address) {
            (IpAddr::V4(first), IpAddr::V4(last), IpAddr::V4(address)) => {
                (first.to_bits()..=last.to_bits()).contains(&address.to_bits())
            }
            (IpAddr::V6(first), IpAddr::V6(last), IpAddr::V6(address)) => {
                (first.to_bits()..=last.to_bits()).contains(&address.to_bits())
            }
            _ => false,
        };
        inside && (self.protocol == 0 || self.protocol == protocol) && self.takes_port(port)
    }

    #[inline]
    fn takes_port(&self, port: Option<u16>) -> bool {
        match (self.ports, port) {
            ((0, u16::MAX), _) => true,
            ((start, end), Some(port)) => start <= port && port <= end,
            ((start, end), None) => start > end,
        }
    }
}

impl Record for Selector {
    const WORDS: usize = 1 + 2 * ADDRESS_WORDS;

    fn encode(&self, out: &mut WordWriter<'_>) {
        let family = if self.first.is_ipv4() { 4 } else { 6 };
        out.put_quad([family, u16::from(self.protocol), self.ports.0, self.ports.1]);
        out.put_address(self.first);
        out.put_address(self.last);
    }

    fn decode(words: &mut WordReader<'_>) -> Option<Selector> {
        let [family, protocol, start, end] = words.take_quad()?;
        let (first, last) = (words.take_address()?, words.take_address()?);
        let (first, last) = match family {
            4 => (first, last),
            // An IPv6 range may begin or end among the mapped addresses.
            6 => (IpAddr::V6(to_v6(first)), IpAddr::V6(to_v6(last))),
            _ => return None,
        };
        Selector::new(first, last, u8::try_from(protocol).ok()?, (start, end))
    }
}

fn to_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// Traffic selectors of one side of an SA: up to [`SelectorList::MAX`], in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelectorList {
    items: [Selector; SelectorList::MAX],
    used: u8,
}

impl SelectorList {
    /// Selectors at most on one side of an SA.
    pub const MAX: usize = 16;

    /// The list of these selectors; `None` when there are none or more than [`SelectorList::MAX`].
    pub fn new(selectors: &[Selector]) -> Option<SelectorList> {
        if selectors.is_empty() || selectors.len() > SelectorList::MAX {
            return None;
        }
        let mut items = [Selector::ANY_V4; SelectorList::MAX];
        items[..selectors.len()].copy_from_slice(selectors);
        Some(SelectorList { items, used: selectors.len() as u8 })
    }

    /// The selectors.
    pub fn as_slice(&self) -> &[Selector] {
        &self.items[..usize::from(self.used)]
    }

    /// Whether one of the selectors takes this address, protocol and port.
    #[inline]
    pub fn contains(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        self.as_slice().iter().any(|selector| selector.contains(address, protocol, port))
    }
}

impl Record for SelectorList {
    const WORDS: usize = 1 + SelectorList::MAX * Selector::WORDS;

    fn encode(&self, out: &mut WordWriter<'_>) {
        out.put(u64::from(self.used));
        self.items.iter().for_each(|selector| selector.encode(out));
    }

    fn decode(words: &mut WordReader<'_>) -> Option<SelectorList> {
        let used = usize::try_from(words.take()?).ok()?;
        let mut items = [Selector::ANY_V4; SelectorList::MAX];
        for item in &mut items {
            *item = Selector::decode(words)?;
        }
        SelectorList::new(items.get(..used)?)
    }
}

/// A destination prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The prefix of `length` bits; `None` when the family has fewer bits, or when a bit behind the
    /// prefix is set.
    pub fn new(address: IpAddr, length: u8) -> Option<Prefix> {
        let host_bits = match address {
            IpAddr::V4(v4) => {
                let host = 32u32.checked_sub(u32::from(length))?;
                u128::from(v4.to_bits()) & low_bits(host)
            }
            IpAddr::V6(v6) => v6.to_bits() & low_bits(128u32.checked_sub(u32::from(length))?),
        };
        (host_bits == 0).then_some(Prefix { address, length })
    }

    /// The network's address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Length in bits.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether the address lies in the prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let host = low_bits(32u32.saturating_sub(u32::from(self.length))) as u32;
                address.to_bits() & !host == network.to_bits()
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let host = low_bits(128u32.saturating_sub(u32::from(self.length)));
                address.to_bits() & !host == network.to_bits()
            }
            _ => false,
        }
    }
}

fn low_bits(count: u32) -> u128 {
    1u128.checked_shl(count).map_or(u128::MAX, |bit| bit - 1)
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Record for Prefix {
    const WORDS: usize = 1 + ADDRESS_WORDS;

    fn encode(&self, out: &mut WordWriter<'_>) {
        let family = if self.address.is_ipv4() { 4 } else { 6 };
        out.put_quad([family, u16::from(self.length), 0, 0]);
        out.put_address(self.address);
    }

    fn decode(words: &mut WordReader<'_>) -> Option<Prefix> {
        let [family, length, _, _] = words.take_quad()?;
        let address = words.take_address()?;
        let address = if family == 6 { IpAddr::V6(to_v6(address)) } else { address };
        Prefix::new(address, u8::try_from(length).ok()?)
    }
}

/// A name for people, at most [`Name::MAX`] octets of UTF-8, in place.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    octets: [u8; Name::MAX],
}

impl Name {
    /// Octets of a name at most.
    pub const MAX: usize = 64;

    /// The name, cut at a character when it is longer than [`Name::MAX`] octets, or at a NUL.
    pub fn new(text: &str) -> Name {
        let text = text.split('\0').next().unwrap_or_default();
        let mut end = text.len().min(Name::MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut octets = [0; Name::MAX];
        octets[..end].copy_from_slice(&text.as_bytes()[..end]);
        Name { octets }
    }

    /// The name's text; empty when shared memory held no UTF-8.
    pub fn as_str(&self) -> &str {
        let end = self.octets.iter().position(|&octet| octet == 0).unwrap_or(Name::MAX);
        str::from_utf8(&self.octets[..end]).unwrap_or_default()
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

impl Record for Name {
    const WORDS: usize = Name::MAX / 8;

    fn encode(&self, out: &mut WordWriter<'_>) {
        out.put_octets(&self.octets);
    }

    fn decode(words: &mut WordReader<'_>) -> Option<Name> {
        let mut octets = [0; Name::MAX];
        words.take_octets(&mut octets)?;
        Some(Name { octets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v4(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    // RFC 7296, 3.13.1
    #[test]
    fn a_selector_takes_its_range_protocol_and_ports() {
        let selector = Selector::new(v4("10.1.0.5"), v4("10.1.0.9"), 6, (80, 443)).unwrap();
        assert!(selector.contains(v4("10.1.0.5"), 6, Some(80)));
        assert!(selector.contains(v4("10.1.0.9"), 6, Some(443)));
        assert!(!selector.contains(v4("10.1.0.4"), 6, Some(80)));
        assert!(!selector.contains(v4("10.1.0.10"), 6, Some(80)));
        assert!(!selector.contains(v4("10.1.0.5"), 17, Some(80)));
        assert!(!selector.contains(v4("10.1.0.5"), 6, Some(79)));
        assert!(!selector.contains(v4("10.1.0.5"), 6, Some(444)));
        assert!(!selector.contains(v4("10.1.0.5"), 6, None), "ports are asked for, none are known");
        assert!(!selector.contains("::ffff:10.1.0.5".parse().unwrap(), 6, Some(80)));
    }

    // RFC 7296, 3.13.1: OPAQUE is start 65,535 and end 0.
    #[test]
    fn an_opaque_selector_takes_packets_without_ports() {
        let opaque = Selector::new(v4("10.1.0.0"), v4("10.1.0.9"), 17, (u16::MAX, 0)).unwrap();
        assert!(opaque.contains(v4("10.1.0.1"), 17, None));
        assert!(!opaque.contains(v4("10.1.0.1"), 17, Some(500)));
        assert!(Selector::ANY_V4.contains(v4("10.1.0.1"), 17, None));
    }

    #[test]
    fn a_range_of_two_families_or_backwards_is_no_selector() {
        let v6 = "2001:db8::1".parse().unwrap();
        assert!(Selector::new(v4("10.1.0.0"), v6, 0, (0, u16::MAX)).is_none());
        assert!(Selector::new(v4("10.1.0.1"), v4("10.1.0.0"), 0, (0, u16::MAX)).is_none());
        assert!(SelectorList::new(&[]).is_none());
        assert!(SelectorList::new(&[Selector::ANY_V4; SelectorList::MAX + 1]).is_none());
    }

    #[test]
    fn a_prefix_has_no_bits_behind_its_length() {
        assert!(Prefix::new(v4("10.1.0.0"), 16).is_some());
        assert!(Prefix::new(v4("10.1.0.0"), 15).is_none());
        assert!(Prefix::new(v4("10.1.0.0"), 33).is_none());
        assert!(Prefix::new("2001:db8::".parse().unwrap(), 129).is_none());
        let all = Prefix::new(v4("0.0.0.0"), 0).unwrap();
        assert!(all.contains(v4("255.1.2.3")) && !all.contains("::".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn a_prefix_contains_what_its_range_does(
            address in any::<u32>(), length in 0u8..=32, probe in any::<u32>(),
        ) {
            let host = low_bits(32 - u32::from(length)) as u32;
            let network = address & !host;
            let prefix = Prefix::new(Ipv4Addr::from_bits(network).into(), length).unwrap();
            let inside = (network..=network | host).contains(&probe);
            prop_assert_eq!(prefix.contains(Ipv4Addr::from_bits(probe).into()), inside);
        }

        #[test]
        fn a_name_is_the_beginning_of_its_text(text in any::<String>()) {
            let name = Name::new(&text);
            prop_assert!(name.as_str().len() <= Name::MAX);
            prop_assert!(text.starts_with(name.as_str()));
        }
    }
}
