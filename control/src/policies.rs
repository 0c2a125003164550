//! From traffic selectors to outbound policies.
//!
//! Workers look destinations up by longest match, so ranges of the peer's addresses are cut into
//! the fewest prefixes that cover them exactly. Each prefix is joined with each selector of this
//! side that fits it: same family, protocols that agree (RFC 4301, 4.4.1).

use std::net::IpAddr;

use culvert_ike::TrafficSelector;
use culvert_shm::{Prefix, Selector, SelectorList};

/// Most policies of one CHILD SA. A range of any bounds makes at most 62 prefixes of IPv4 and 254
/// of IPv6.
pub const POLICIES_MAX: usize = 512;

/// A priority's upper part is a policy's width, so that narrower ones win; below it newer ones win
/// over older ones of the same width.
pub const WIDTH_SHIFT: u32 = 22;

/// Why selectors make no policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// There are too many.
    #[error(
        "local_ts and remote_ts together make more than {POLICIES_MAX} policies: use fewer \
         selectors, or ranges that are networks"
    )]
    TooMany,
    /// No pair of selectors fits together.
    #[error("no entry of local_ts has the address family and protocol of one of remote_ts")]
    Apart,
    /// A selector is turned round or there are none.
    #[error("a traffic selector has no addresses")]
    Malformed,
}

/// Where packets go, and which: a policy without its SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Match {
    /// Destinations.
    pub remote: Prefix,
    /// Destination ports.
    pub remote_ports: (u16, u16),
    /// Sources, protocol, and source ports.
    pub local: Selector,
}

impl Match {
    /// How much it leaves open, in doublings: a narrower one takes precedence.
    #[must_use]
    pub fn width(&self) -> u32 {
        let ports = |(first, last): (u16, u16)| u32::from(last.saturating_sub(first)) + 1;
        let protocol = if self.local.protocol() == 0 { 8 } else { 0 };
        let bits = if self.remote.address().is_ipv4() { 32 } else { 128 };
        bits - u32::from(self.remote.length())
            + size_bits(self.local.first(), self.local.last())
            + ports(self.local.ports()).ilog2()
            + ports(self.remote_ports).ilog2()
            + protocol
    }
}

/// Doublings in a range of addresses.
fn size_bits(first: IpAddr, last: IpAddr) -> u32 {
    let (_, first) = number(first);
    let (_, last) = number(last);
    (last - first.min(last)).checked_ilog2().map_or(0, |bits| bits + 1)
}

/// Whether these selectors can be installed.
///
/// # Errors
/// They make no policy, or too many.
pub fn check(local: &[TrafficSelector], remote: &[TrafficSelector]) -> Result<(), PolicyError> {
    matches(local, remote).map(|_| ())
}

/// The policies of a CHILD SA.
///
/// # Errors
/// They make no policy, or too many.
pub fn matches(
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
) -> Result<Vec<Match>, PolicyError> {
    let mut list = Vec::new();
    for theirs in remote {
        for prefix in prefixes(theirs.start, theirs.end) {
            for ours in local {
                let Some(protocol) = common_protocol(ours, theirs) else { continue };
                let local_selector = selector(ours, protocol).ok_or(PolicyError::Malformed)?;
                let ports = (theirs.port_start, theirs.port_end);
                let found = Match { remote: prefix, remote_ports: ports, local: local_selector };
                if list.contains(&found) {
                    continue;
                }
                if list.len() == POLICIES_MAX {
                    return Err(PolicyError::TooMany);
                }
                list.push(found);
            }
        }
    }
    if list.is_empty() { Err(PolicyError::Apart) } else { Ok(list) }
}

/// The selectors of one side as the shared memory holds them.
///
/// # Errors
/// There are none or too many, or one is turned round.
pub fn selectors(list: &[TrafficSelector]) -> Result<SelectorList, PolicyError> {
    let selectors: Option<Vec<Selector>> =
        list.iter().map(|ts| selector(ts, ts.protocol)).collect();
    let selectors = selectors.ok_or(PolicyError::Malformed)?;
    SelectorList::new(&selectors).ok_or(PolicyError::Malformed)
}

fn selector(ts: &TrafficSelector, protocol: u8) -> Option<Selector> {
    Selector::new(ts.start, ts.end, protocol, (ts.port_start, ts.port_end))
}

/// The protocol that both select, if they are of one family and agree; 0 is any.
fn common_protocol(ours: &TrafficSelector, theirs: &TrafficSelector) -> Option<u8> {
    let same_family = ours.start.is_ipv4() == theirs.start.is_ipv4();
    match (ours.protocol, theirs.protocol) {
        _ if !same_family => None,
        (one, 0) => Some(one),
        (0, other) => Some(other),
        (one, other) => (one == other).then_some(one),
    }
}

/// The fewest prefixes that cover `first..=last` exactly, ascending; none if it is no range.
fn prefixes(first: IpAddr, last: IpAddr) -> Vec<Prefix> {
    let ((bits, mut at), (other_bits, last)) = (number(first), number(last));
    let mut list = Vec::new();
    if bits != other_bits {
        return list;
    }
    // At most two prefixes of each length.
    while at <= last {
        let left = last - at;
        let aligned = if at == 0 { bits } else { at.trailing_zeros().min(bits) };
        let fitting = if left == u128::MAX { 128 } else { (left + 1).ilog2() };
        let host_bits = aligned.min(fitting);
        let length = u8::try_from(bits - host_bits).unwrap_or(0);
        list.extend(Prefix::new(address(bits, at), length));
        let Some(next) = 1u128.checked_shl(host_bits).and_then(|size| at.checked_add(size)) else {
            break;
        };
        at = next;
    }
    list
}

/// An address as its number of bits and its value.
fn number(address: IpAddr) -> (u32, u128) {
    match address {
        IpAddr::V4(address) => (32, u32::from(address).into()),
        IpAddr::V6(address) => (128, address.into()),
    }
}

fn address(bits: u32, value: u128) -> IpAddr {
    match u32::try_from(value) {
        Ok(value) if bits == 32 => IpAddr::V4(value.into()),
        _ => IpAddr::V6(value.into()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ts(text: &str) -> TrafficSelector {
        text.parse().expect(text)
    }

    fn cut(first: &str, last: &str) -> Vec<String> {
        let list = prefixes(first.parse().unwrap(), last.parse().unwrap());
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_are_cut_into_the_fewest_prefixes() {
        assert_eq!(cut("10.1.0.0", "10.1.0.255"), ["10.1.0.0/24"]);
        assert_eq!(
            cut("10.0.0.1", "10.0.0.6"),
            ["10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"]
        );
        assert_eq!(cut("0.0.0.0", "255.255.255.255"), ["0.0.0.0/0"]);
        assert_eq!(cut("255.255.255.255", "255.255.255.255"), ["255.255.255.255/32"]);
        assert_eq!(cut("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), ["::/0"]);
        assert_eq!(cut("2001:db8::1", "2001:db8::2"), ["2001:db8::1/128", "2001:db8::2/128"]);
        assert_eq!(cut("10.0.0.2", "10.0.0.1"), Vec::<String>::new());
        assert_eq!(cut("10.0.0.1", "::1"), Vec::<String>::new());
    }

    /// The worst ranges make 62 and 254 prefixes, as [`POLICIES_MAX`] counts on.
    #[test]
    fn the_worst_ranges_are_bounded() {
        assert_eq!(cut("0.0.0.1", "255.255.255.254").len(), 62);
        assert_eq!(cut("::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe").len(), 254);
    }

    #[test]
    fn selectors_pair_only_within_family_and_protocol() {
        let local = [ts("10.1.0.0/24"), ts("fd00:1::/64")];
        let remote = [ts("10.2.0.0/24[tcp/443]"), ts("fd00:2::/64")];
        let list = matches(&local, &remote).expect("two pairs");
        let pairs: Vec<(String, u8, (u16, u16))> = list
            .iter()
            .map(|found| (found.remote.to_string(), found.local.protocol(), found.remote_ports))
            .collect();
        assert_eq!(
            pairs,
            [("10.2.0.0/24".into(), 6, (443, 443)), ("fd00:2::/64".into(), 0, (0, 65535)),]
        );
        let apart = matches(&[ts("10.1.0.0/24[udp]")], &[ts("10.2.0.0/24[tcp]")]);
        assert_eq!(apart, Err(PolicyError::Apart));
    }

    #[test]
    fn too_many_policies_are_refused() {
        let worst = ts("::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe");
        let local = [ts("fd00:1::/64"), ts("fd00:2::/64"), ts("fd00:3::/64")];
        assert_eq!(check(&local, &[worst]), Err(PolicyError::TooMany));
        assert_eq!(check(&local[..2], &[worst]), Ok(()));
    }

    #[test]
    fn a_narrower_policy_has_less_width() {
        let width = |local: &str, remote: &str| {
            matches(&[ts(local)], &[ts(remote)]).expect("one")[0].width()
        };
        let net = width("10.1.0.0/24", "10.2.0.0/24");
        assert!(width("10.1.0.0/24", "10.2.0.0/25") < net);
        assert!(width("10.1.0.0/25", "10.2.0.0/24") < net);
        assert!(width("10.1.0.0/24", "10.2.0.0/24[tcp]") < net);
        assert!(
            width("10.1.0.0/24", "10.2.0.0/24[tcp/80]") < width("10.1.0.0/24", "10.2.0.0/24[tcp]")
        );
        assert!(width("::/0", "::/0") < 1 << 10, "widths fit the upper bits of a priority");
    }

    proptest! {
        /// The prefixes follow each other without gap or overlap from first to last.
        #[test]
        fn prefixes_cover_exactly(one in any::<u32>(), other in any::<u32>()) {
            let (first, last) = (one.min(other), one.max(other));
            let list = prefixes(IpAddr::V4(first.into()), IpAddr::V4(last.into()));
            let mut next = u64::from(first);
            for prefix in &list {
                let (_, start) = number(prefix.address());
                prop_assert_eq!(start, u128::from(next));
                next += 1 << (32 - prefix.length());
            }
            prop_assert_eq!(next, u64::from(last) + 1);
            prop_assert!(list.len() <= 62);
        }
    }
}
