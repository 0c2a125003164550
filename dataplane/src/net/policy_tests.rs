//! Tests of the policy table.

use super::super::ip::Ports;
use super::*;
use culvert_shm::{Prefix, Selector, SlotRef};
use proptest::prelude::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn any_source(v4: bool) -> Selector {
    if v4 { Selector::ANY_V4 } else { Selector::ANY_V6 }
}

/// A policy to a destination prefix; `mark` tells it from the others.
fn policy(to: &str, length: u8, priority: u32, mark: u32) -> Policy {
    Policy {
        remote: Prefix::new(ip(to), length).unwrap(),
        remote_ports: (0, u16::MAX),
        local: any_source(ip(to).is_ipv4()),
        sa: SlotRef { index: mark, generation: 1 },
        owner: 0,
        priority,
    }
}

fn tcp(source: &str, destination: &str, ports: Option<(u16, u16)>) -> Flow {
    let ports = ports.map(|(source, destination)| Ports { source, destination });
    Flow { source: ip(source), destination: ip(destination), protocol: 6, ports }
}

fn table(policies: &[Policy]) -> PolicyTable {
    let mut table = PolicyTable::new(64, [3; 16]);
    for (index, policy) in policies.iter().enumerate() {
        table.set(index as u32, Some(policy)).unwrap();
    }
    table
}

fn mark(table: &PolicyTable, flow: &Flow) -> Option<u32> {
    table.lookup(flow).ok().map(|policy| policy.sa.index)
}

#[test]
fn a_trap_is_told_of_once_a_second() {
    let trap = Policy { sa: Policy::TRAP, ..policy("10.2.0.0", 16, 5, 0) };
    let mut table = table(&[policy("10.0.0.0", 8, 1, 1), trap, policy("10.2.3.0", 24, 9, 3)]);
    let flow = tcp("10.1.0.1", "10.2.0.1", Some((1, 2)));
    assert!(table.lookup(&flow).unwrap().is_trap(), "the longer prefix wins, SA or not");
    assert_eq!(table.acquire(&flow, 5), Some(1));
    assert_eq!(table.acquire(&flow, 5 + ACQUIRE_INTERVAL - 1), None);
    assert_eq!(table.acquire(&flow, 5 + ACQUIRE_INTERVAL), Some(1));
    let others = ["10.2.3.4", "10.9.0.1", "192.0.2.1"].map(|to| tcp("10.1.0.1", to, None));
    assert!(others.iter().all(|flow| table.acquire(flow, u64::MAX).is_none()), "no traps");
    // The SA is there: the same slot as before says so, or another one that comes first.
    let first = policy("10.2.0.0", 16, 4, 7);
    table.set(3, Some(&first)).unwrap();
    assert_eq!((mark(&table, &flow), table.acquire(&flow, u64::MAX)), (Some(7), None));
}

#[test]
fn longest_destination_then_lowest_priority_number() {
    let mut table = table(&[
        policy("0.0.0.0", 0, 1, 10),
        policy("10.0.0.0", 8, 9, 11),
        policy("10.0.0.0", 8, 2, 12),
        policy("10.0.0.0", 8, 5, 13),
        policy("10.2.0.1", 32, 99, 14),
        policy("2001:db8::", 32, 1, 15),
        policy("::", 0, 1, 16),
    ]);
    let to = |destination| {
        let source = if ip(destination).is_ipv4() { "10.1.0.1" } else { "fd00::1" };
        tcp(source, destination, Some((1, 2)))
    };
    for (destination, expected) in [
        ("192.0.2.1", 10),
        ("10.2.0.2", 12),
        ("10.2.0.1", 14),
        ("2001:db8:ffff::1", 15),
        ("2001:db9::1", 16),
    ] {
        assert_eq!(mark(&table, &to(destination)), Some(expected), "{destination}");
    }
    table.set(2, None).unwrap();
    assert_eq!(mark(&table, &to("10.2.0.2")), Some(13));
    table.set(0, None).unwrap();
    assert_eq!(table.lookup(&to("192.0.2.1")), Err(DropReason::PolicyNone));
}

#[test]
fn policy_that_does_not_fit_is_passed_over() {
    let narrow = Policy {
        remote_ports: (80, 443),
        local: Selector::new(ip("10.1.0.0"), ip("10.1.0.9"), 6, (1024, u16::MAX)).unwrap(),
        ..policy("10.2.0.0", 24, 1, 1)
    };
    let table = table(&[narrow, policy("10.0.0.0", 8, 1, 2)]);
    let fits = tcp("10.1.0.9", "10.2.0.7", Some((1024, 443)));
    assert_eq!(mark(&table, &fits), Some(1));
    for other in [
        Flow { source: ip("10.1.0.10"), ..fits },
        Flow { protocol: 17, ..fits },
        tcp("10.1.0.9", "10.2.0.7", Some((1023, 443))),
        tcp("10.1.0.9", "10.2.0.7", Some((1024, 444))),
        // RFC 4301, 7: a later fragment has no ports to match.
        Flow { ports: None, ..fits },
    ] {
        assert_eq!(mark(&table, &other), Some(2), "{other:?}");
    }
}

/// RFC 7296, 3.13.1: a start behind the end is OPAQUE, which takes what has no ports.
#[test]
fn opaque_ports_take_packets_without_ports() {
    let local = Selector::new(ip("0.0.0.0"), ip("255.255.255.255"), 0, (u16::MAX, 0)).unwrap();
    let opaque = Policy { remote_ports: (u16::MAX, 0), local, ..policy("10.0.0.0", 8, 1, 1) };
    let table = table(&[opaque]);
    assert_eq!(mark(&table, &tcp("10.1.0.1", "10.2.0.1", None)), Some(1));
    assert_eq!(mark(&table, &tcp("10.1.0.1", "10.2.0.1", Some((1, 2)))), None);
}

#[test]
fn setting_again_replaces() {
    let mut table = table(&[policy("10.0.0.0", 8, 1, 1)]);
    table.set(0, Some(&policy("10.0.0.0", 8, 1, 1))).unwrap();
    table.set(0, Some(&policy("172.16.0.0", 12, 1, 2))).unwrap();
    assert_eq!(mark(&table, &tcp("10.1.0.1", "10.2.0.1", None)), None);
    assert_eq!(mark(&table, &tcp("10.1.0.1", "172.16.0.1", None)), Some(2));
    let beyond = table.set(64, None);
    assert_eq!(beyond, Err(PolicyError::BeyondTable { index: 64, slots: 64 }));
}

#[test]
fn chains_are_limited() {
    let mut table = PolicyTable::new(CHAIN_MAX + 2, [0; 16]);
    let same = policy("10.0.0.0", 8, 1, 1);
    for index in 0..CHAIN_MAX as u32 {
        table.set(index, Some(&same)).unwrap();
    }
    let last = CHAIN_MAX as u32;
    assert_eq!(table.set(last, Some(&same)), Err(PolicyError::ChainFull));
    table.set(0, None).unwrap();
    assert_eq!(table.set(last, Some(&same)), Ok(()));
}

#[test]
fn table_without_slots_finds_nothing() {
    let table = PolicyTable::new(0, [0; 16]);
    assert_eq!(mark(&table, &tcp("10.1.0.1", "10.2.0.1", None)), None);
}

/// RFC 4301, 5.2, step 4: each side against its own selectors.
#[test]
fn inbound_check_knows_the_sides() {
    let list = |first: &str, last: &str, protocol, ports| {
        SelectorList::new(&[Selector::new(ip(first), ip(last), protocol, ports).unwrap()]).unwrap()
    };
    let local = list("10.1.0.0", "10.1.0.255", 6, (80, 80));
    let remote = list("10.2.0.0", "10.2.0.255", 0, (0, u16::MAX));
    let fits = tcp("10.2.0.7", "10.1.0.1", Some((40_000, 80)));
    assert_eq!(permits(&local, &remote, &fits), Ok(()));
    for other in [
        tcp("10.1.0.1", "10.2.0.7", Some((40_000, 80))),
        tcp("10.3.0.7", "10.1.0.1", Some((40_000, 80))),
        tcp("10.2.0.7", "10.1.1.1", Some((40_000, 80))),
        tcp("10.2.0.7", "10.1.0.1", Some((80, 81))),
        Flow { protocol: 17, ..fits },
        Flow { ports: None, ..fits },
    ] {
        assert_eq!(permits(&local, &remote, &other), Err(DropReason::PolicyInbound), "{other:?}");
    }
}

proptest! {
    /// Against the definition, while policies come and go.
    #[test]
    fn lookup_is_what_a_scan_would_find(
        steps in proptest::collection::vec(
            (0u32..24, any::<bool>(), 0u32..16, 26u8..=32, any::<bool>(), 0u32..3, 0u32..20),
            1..200,
        ),
        seed in any::<[u8; 16]>(),
    ) {
        let address = |low: u32, v4: bool| -> IpAddr {
            if v4 { std::net::Ipv4Addr::from_bits(0x0a00_0000 | low << 1).into() }
            else { std::net::Ipv6Addr::from_bits(u128::from(low) << 1).into() }
        };
        let mut table = PolicyTable::new(24, seed);
        let mut model: Vec<Option<Policy>> = vec![None; 24];
        for (index, insert, low, length, v4, priority, probe) in steps {
            let length = if v4 { length } else { length + 96 };
            let to = super::super::prefix::Prefix::new(address(low, v4), length).unwrap();
            let policy = policy(&to.address().to_string(), length, priority, index);
            let slot = insert.then_some(policy);
            table.set(index, slot.as_ref()).unwrap();
            model[index as usize] = slot;
            for v4 in [true, false] {
                let probe = address(probe, v4);
                let best = model.iter().flatten().filter(|policy| policy.remote.contains(probe))
                    .min_by_key(|policy| {
                        (u8::MAX - policy.remote.length(), policy.priority, policy.sa.index)
                    });
                let source = if v4 { "10.1.0.1" } else { "fd00::1" };
                let flow = Flow { destination: probe, ..tcp(source, source, None) };
                prop_assert_eq!(mark(&table, &flow), best.map(|policy| policy.sa.index));
            }
        }
    }
}
