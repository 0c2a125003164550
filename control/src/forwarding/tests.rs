//! What a control process makes of the SAs that the one before has left.

use std::sync::Arc;

use culvert_ike::{ChildClaim, TrafficSelector};
use culvert_shm::sa::Algorithm;
use culvert_shm::{KeyMaterial, Layout, Mode, Region, Transport};

use super::*;

const LAYOUT: Layout = Layout {
    workers: 1,
    sa_slots: 8,
    policy_slots: 8,
    peer_slots: 8,
    conn_slots: 8,
    ring_bytes: 1 << 18,
};

fn selectors() -> Vec<TrafficSelector> {
    vec!["10.0.0.0/8".parse().expect("a selector")]
}

/// A process that dies and leaves pairs of one child, each of an IKE SA of its own, as after a
/// reauthentication: packets are sent into the first `sending` of them. Gives what the next process
/// finds, and the inbound SPIs.
fn left_behind(pairs: u32, sending: u32) -> (Forwarding, Vec<u32>) {
    left_behind_in(&LAYOUT, pairs, sending)
}

fn left_behind_in(layout: &Layout, pairs: u32, sending: u32) -> (Forwarding, Vec<u32>) {
    let region = Arc::new(Region::create(layout).expect("memory"));
    let mut view = ControlView::new(Arc::clone(&region)).expect("nobody else's");
    let ends = ["192.0.2.1:4500", "192.0.2.2:4500"].map(|end| end.parse().expect("an address"));
    let path = Path {
        transport: Transport::Udp,
        local: ends[0],
        remote: ends[1],
        conn: None,
        pinned: false,
    };
    let list = policies::selectors(&selectors()).expect("few");
    let found = policies::matches(&selectors(), &selectors()).expect("few")[0];
    let mut spis = Vec::new();
    for number in 0..pairs {
        let name = Name::new("branch");
        let peer = PeerConfig { connection: name, remote_id: name, owner: 0, path, dscp: None };
        let peer = view.install_peer(&peer).expect("room");
        let (sa, spi_in) = view.reserve_sa(number).expect("room");
        let keys = || KeyMaterial::new(&[7; 20]).expect("20 octets");
        let config = SaConfig {
            peer,
            owner: 0,
            algorithm: Algorithm::Aes128Gcm16,
            esn: true,
            mode: Mode::Tunnel,
            replay_window: 64,
            spi_in,
            spi_out: !spi_in,
            keymat_in: keys(),
            keymat_out: keys(),
            name: Name::new("net"),
            created_ns: 0,
            deadline_ns: u64::MAX,
            local: list,
            remote: list,
        };
        view.install_sa(sa, &config).expect("room");
        if number < sending {
            let Match { remote, remote_ports, local } = found;
            let priority = next_priority(&HashMap::new(), &found);
            let policy = Policy { remote, remote_ports, local, sa, owner: 0, priority };
            view.install_policy(&policy).expect("room");
        }
        spis.push(spi_in);
    }
    let memory = region.fd().try_clone_to_owned().expect("a descriptor");
    let next = Arc::new(Region::adopt(memory).expect("the same memory"));
    let mut forwarding = Forwarding::default();
    forwarding.attach(ControlView::new(next).expect("nobody else's"));
    (forwarding, spis)
}

/// Claims a pair into which packets may be sent, for an IKE SA of the same number.
fn claim(forwarding: &mut Forwarding, number: u64, spi_in: u32) {
    let selectors = selectors();
    let claimed = forwarding.claim(&ChildClaim {
        id: ChildId(100 + number),
        ike: IkeSaId(number),
        spi_in,
        spi_out: !spi_in,
        local_ts: &selectors,
        remote_ts: &selectors,
        outbound: true,
    });
    assert!(claimed, "it was left");
}

/// The pair that packets are sent into.
fn used(forwarding: &Forwarding) -> Option<u32> {
    let view = forwarding.view()?;
    let policies = (0..LAYOUT.policy_slots).filter_map(|index| view.policy(index));
    let (.., policy) = policies.min_by_key(|(.., policy)| policy.priority)?;
    view.sa(policy.sa.index).map(|(.., sa)| sa.spi_in)
}

/// RFC 7296, 2.8.3: the peer has asked for another pair beside the one that serves, and has it when
/// it gets the answer, which the process that died may not have sent.
#[test]
fn a_pair_that_waited_for_its_answer_waits_for_the_next_process_too() {
    let (mut forwarding, spis) = left_behind(2, 1);
    // In whatever order they are restored.
    claim(&mut forwarding, 2, spis[1]);
    claim(&mut forwarding, 1, spis[0]);
    forwarding.end_unclaimed(false);
    assert_eq!(used(&forwarding), Some(spis[0]), "the answer may be on its way");
    let later_ns = culvert_shm::monotonic_ns() + ANSWER_NS;
    forwarding.tend(later_ns, false);
    assert_eq!(used(&forwarding), Some(spis[1]));
}

#[test]
fn a_pair_that_nothing_serves_beside_does_not_wait() {
    let (mut forwarding, spis) = left_behind(2, 1);
    claim(&mut forwarding, 2, spis[1]);
    forwarding.end_unclaimed(false);
    assert_eq!(used(&forwarding), Some(spis[1]), "the other one is nobody's, and ended");
}

/// As many as a table holds: what systemd's watchdog waits for must not grow with the square of what was
/// left (it took 7 s here, and takes a fraction of one).
#[test]
fn a_full_table_is_found_and_claimed() {
    const PAIRS: u32 = 1 << 16;
    let layout = Layout {
        sa_slots: PAIRS,
        policy_slots: PAIRS,
        peer_slots: PAIRS,
        ring_bytes: 1 << 25,
        ..LAYOUT
    };
    let (left, spis) = left_behind_in(&layout, PAIRS, PAIRS);
    let region = Arc::clone(left.view().expect("attached").region());
    let memory = region.fd().try_clone_to_owned().expect("a descriptor");
    let next = Arc::new(Region::adopt(memory).expect("the same memory"));
    let view = ControlView::new(next).expect("the next process");
    let mut forwarding = Forwarding::default();
    forwarding.attach(view);
    for (number, spi_in) in (1..).zip(&spis) {
        claim(&mut forwarding, number, *spi_in);
    }
    forwarding.end_unclaimed(false);
    assert_eq!((forwarding.orphans().len(), forwarding.installed.len()), (0, spis.len()));
}
