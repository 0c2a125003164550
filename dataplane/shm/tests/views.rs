//! The two processes' views of one region: an SA's life, and what a restart of either leaves.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod support;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use culvert_shm::{
    AttachError, Bell, ControlView, Counter, DataplaneView, Down, Dscp, InstallError, Load,
    Malformed, Policy, Prefix, Region, SaDrop, Selector, SequenceCounter, Shelf, SlotRef,
    SlotState, Standing, Up, WorkerView,
};
use support::{LAYOUT, is_whole, path, peer, sa};

/// Both views of a new region.
fn gateway() -> (ControlView, Vec<WorkerView>, Arc<Bell>) {
    let region = Arc::new(Region::create(&LAYOUT).unwrap());
    let bell = Arc::new(Bell::new().unwrap());
    let control = ControlView::new(Arc::clone(&region)).unwrap();
    let dataplane = DataplaneView::attach(region, Arc::clone(&bell)).unwrap();
    (control, dataplane.into_workers(), bell)
}

/// The same memory, mapped again, as the other process or a successor would.
fn mapped_again(region: &Region) -> Arc<Region> {
    let fd: OwnedFd = region.fd().try_clone_to_owned().unwrap();
    Arc::new(Region::adopt(fd).unwrap())
}

fn install(control: &mut ControlView, random: u32, owner: u16) -> (SlotRef, u32) {
    let (slot, spi) = control.reserve_sa(random).unwrap();
    control.install_sa(slot, &sa(spi, owner)).unwrap();
    (slot, spi)
}

/// Whether the octets occur anywhere in the region's memory.
fn contains(region: &Region, octets: &[u8]) -> bool {
    let mut memory = vec![0; LAYOUT.region_bytes() as usize];
    let read = rustix::io::pread(region.fd(), &mut memory[..], 0).unwrap();
    assert_eq!(read, memory.len());
    memory.windows(octets.len()).any(|window| window == octets)
}

#[test]
fn an_sa_lives_from_its_spi_to_the_erasure_of_its_keys() {
    let (mut control, mut workers, _bell) = gateway();
    let (slot, spi) = install(&mut control, 0x1234_5678, 1);
    assert_eq!(spi & 15, slot.index, "the SPI holds the slot's index");
    assert_eq!(spi >> 4, 0x0123_4567, "and random bits above");

    assert_eq!(workers[1].receive(), Some(Ok(Down::SaChanged { index: slot.index })));
    let Load::Live(seen, config) = workers[1].load_sa(slot.index) else { panic!("not live") };
    assert_eq!(seen, slot);
    assert!(is_whole(&config));
    assert!(matches!(workers[0].load_sa(slot.index), Load::Gone), "it is another worker's");
    assert_eq!(workers[0].sa_owner(spi), Some(1), "and any worker can tell whose");
    assert_eq!(workers[0].sa_owner(spi ^ 0x100), None);
    assert_eq!(
        workers[0].sa_owner(spi),
        Some(1),
        "but it can be found by whoever gets its packets"
    );
    assert_eq!(workers[0].sa_owner(spi ^ 0x10), None, "by the whole SPI only");

    let writer = workers[1].sa(slot.index).unwrap();
    assert_eq!(writer.sequence().next(true), Ok(1));
    assert_eq!(writer.sequence().next(true), Ok(2));
    writer.count_out(100, 7);
    writer.count_in(50, 8);
    writer.count_drop(SaDrop::Icv);
    let counts = control.sa_counts(slot).unwrap();
    assert_eq!((counts.packets_out, counts.octets_out, counts.last_out_ns), (1, 100, 7));
    assert_eq!((counts.packets_in, counts.octets_in, counts.last_in_ns), (1, 50, 8));
    assert_eq!((counts.next_sequence, counts.drops[SaDrop::Icv as usize]), (3, 1));

    let key = config.keymat_in.as_bytes().to_vec();
    assert!(contains(control.region(), &key));
    control.retire_sa(slot);
    assert!(!workers[1].sa_in_use(slot));
    assert_eq!(workers[0].sa_owner(spi), None);
    // Only when both workers have passed a batch boundary behind the record does it go.
    assert_eq!(control.collect(false).waiting, 1);
    for worker in [0, 1] {
        assert!(contains(control.region(), &key));
        assert!(workers[worker].receive().is_some());
        workers[worker].receive();
        assert_eq!(control.collect(false).freed, 0, "the batch has not ended");
        workers[worker].batch_boundary();
        assert_eq!(control.collect(false).freed, worker);
    }
    assert!(!contains(control.region(), &key));
    assert!(control.sa(slot.index).is_none());
}

#[test]
fn spis_name_their_slot_and_are_never_reserved_ones() {
    // RFC 4303, 2.1: 0 to 255 are not to be used.
    for random in [0, 1, 0xf0, 0xff, 0x1ff, u32::MAX] {
        let (mut control, _workers, _bell) = gateway();
        for _ in 0..LAYOUT.sa_slots {
            let (slot, spi) = control.reserve_sa(random).unwrap();
            assert!(spi > 255, "{spi}");
            assert_eq!(spi & (LAYOUT.sa_slots - 1), slot.index);
        }
        let error = control.reserve_sa(random).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the table of SAs is full (16 slots): raise its size in the configuration"
        );
    }
}

#[test]
fn only_a_reserved_slot_is_filled_and_only_under_its_spi() {
    let (mut control, _workers, _bell) = gateway();
    let (slot, spi) = control.reserve_sa(0x7000_0000).unwrap();
    let wrong = InstallError::WrongSpi(spi ^ 1);
    assert_eq!(control.install_sa(slot, &sa(spi ^ 1, 0)), Err(wrong));
    let later = SlotRef { generation: slot.generation + 1, ..slot };
    assert_eq!(control.install_sa(later, &sa(spi, 0)), Err(InstallError::NotReserved));
    control.install_sa(slot, &sa(spi, 0)).unwrap();
    assert_eq!(control.install_sa(slot, &sa(spi, 0)), Err(InstallError::NotReserved));
}

#[test]
fn a_reserved_slot_that_is_given_back_is_free_at_once() {
    let (mut control, _workers, _bell) = gateway();
    for _ in 0..100 {
        let (slot, spi) = control.reserve_sa(0x7000_0000).unwrap();
        control.retire_sa(slot);
        assert_eq!(control.install_sa(slot, &sa(spi, 0)), Err(InstallError::NotReserved));
    }
    assert_eq!(control.collect(false).waiting, 0);
}

#[test]
fn a_slot_that_is_used_again_starts_at_one_with_an_empty_window() {
    let (mut control, mut workers, _bell) = gateway();
    let (first, _) = install(&mut control, 0x5000_0000, 0);
    workers[0].load_sa(first.index);
    let writer = workers[0].sa(first.index).unwrap();
    for number in 1..=10 {
        assert_eq!(writer.sequence().next(false), Ok(number));
    }
    writer.replay().0.store(99, std::sync::atomic::Ordering::Relaxed);
    writer.replay().1[3].store(99, std::sync::atomic::Ordering::Relaxed);
    control.retire_sa(first);
    for worker in &mut workers {
        while worker.receive().is_some() {}
        worker.batch_boundary();
    }
    assert_eq!(control.collect(false).freed, 1);

    let (second, _) = install(&mut control, 0x6000_0000, 0);
    assert_eq!((second.index, second.generation), (first.index, first.generation + 1));
    assert!(control.sa_counts(second).is_none(), "the owner has not taken it up");
    assert!(matches!(workers[0].load_sa(second.index), Load::Live(..)));
    let writer = workers[0].sa(second.index).unwrap();
    assert_eq!(writer.replay().0.load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(writer.replay().1[3].load(std::sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(writer.sequence().next(false), Ok(1));
    assert!(control.sa_counts(first).is_none());
}

#[test]
fn a_restarted_dataplane_goes_on_with_the_numbers() {
    let (mut control, workers, bell) = gateway();
    let (slot, _) = install(&mut control, 0x5000_0000, 0);
    workers[0].load_sa(slot.index);
    for number in 1..=5 {
        assert_eq!(workers[0].sa(slot.index).unwrap().sequence().next(true), Ok(number));
    }
    let region = mapped_again(control.region());
    // As long as one lives, there is no other: the two would send the same numbers.
    let second = DataplaneView::attach(Arc::clone(&region), Arc::clone(&bell));
    assert!(matches!(second, Err(AttachError::Busy)));
    drop(workers);

    let epoch = control.dataplane_epoch();
    let mut workers = DataplaneView::attach(region, bell).unwrap().into_workers();
    assert_eq!(control.dataplane_epoch(), epoch + 1);
    assert_eq!(workers[0].receive(), None, "what waited for the dead one is dropped");
    assert!(matches!(workers[0].load_sa(slot.index), Load::Live(..)));
    assert_eq!(workers[0].sa(slot.index).unwrap().sequence().next(true), Ok(6));
    workers[0].begin().unwrap();
    assert_eq!(control.receive(), Some((0, Ok(Up::Restarted { epoch: epoch + 1 }))));
}

#[test]
fn a_restarted_control_finds_orphans_and_clears_what_was_half_done() {
    let (mut control, mut workers, _bell) = gateway();
    let (live, _) = install(&mut control, 0x5000_0000, 0);
    let (retiring, _) = install(&mut control, 0x5000_0000, 0);
    let (reserved, _) = control.reserve_sa(0x5000_0000).unwrap();
    let known = control.install_peer(&peer(0)).unwrap();
    control.retire_sa(retiring);

    let mut successor = ControlView::new(mapped_again(control.region())).unwrap();
    successor.release_unclaimed();
    assert!(matches!(successor.sa(live.index), Some((slot, SlotState::Orphan, _)) if slot == live));
    assert!(matches!(workers[0].load_sa(live.index), Load::Live(..)), "its traffic goes on");
    assert!(successor.peer(known.index).is_some());
    for worker in &mut workers {
        while worker.receive().is_some() {}
        worker.batch_boundary();
    }
    // The successor tells the workers again, since it cannot know whom its predecessor told.
    assert_eq!(successor.collect(false).waiting, 1);
    for worker in &mut workers {
        while worker.receive().is_some() {}
        worker.batch_boundary();
    }
    assert_eq!(successor.collect(false).freed, 1);
    // 16 slots, of which one is the orphan's; the reserved one is free again.
    for _ in 0..15 {
        let (slot, _) = successor.reserve_sa(0x6000_0000).unwrap();
        assert!(slot != reserved && slot.index != live.index);
    }
    assert!(successor.reserve_sa(0).is_err());
    successor.claim_sa(live);
    assert!(matches!(successor.sa(live.index), Some((_, SlotState::Live, _))));
}

#[test]
fn a_peer_keeps_its_moved_path_but_not_over_its_generation() {
    let (mut control, mut workers, bell) = gateway();
    let first = control.install_peer(&peer(1)).unwrap();
    assert!(control.peer_state(first).is_none(), "the owner has not taken it up");
    let Load::Live(seen, (_, start)) = workers[1].load_peer(first.index) else { panic!("gone") };
    assert_eq!((seen, start), (first, path(4500)));
    workers[1].peer(first).unwrap().set_path(path(1111));
    workers[1].peer(first).unwrap().authentic(42);
    let state = control.peer_state(first).unwrap();
    assert_eq!((state.path, state.last_authentic_ns), (path(1111), 42));
    // Looking again does not move it back.
    let Load::Live(_, (_, again)) = workers[1].load_peer(first.index) else { panic!("gone") };
    assert_eq!(again, path(1111));

    control.retire_peer(first);
    assert_eq!(control.collect(true).waiting, 1, "the dataplane lives, linked or not");
    drop(workers);
    assert_eq!(control.collect(true).freed, 1);
    let region = mapped_again(control.region());
    workers = DataplaneView::attach(region, bell).unwrap().into_workers();
    let second = control.install_peer(&peer(1)).unwrap();
    assert_eq!(second.index, first.index);
    assert!(control.peer_state(second).is_none());
    let Load::Live(_, (_, fresh)) = workers[1].load_peer(second.index) else { panic!("gone") };
    assert_eq!(fresh, path(4500));
}

/// Leaves no room in the ring to worker 1.
fn fill(control: &mut ControlView) {
    let payload = vec![0; 60_000];
    let message = Down::IkeSend { path: path(1), dscp: Dscp::DEFAULT, payload: &payload };
    while control.send(1, &message).is_ok() {}
    while control.send(1, &Down::PeerChanged { index: 0 }).is_ok() {}
}

/// Packets that are for it would go on into an SA that is about to end.
fn policy() -> Policy {
    Policy {
        remote: Prefix::new("10.2.0.0".parse().unwrap(), 16).unwrap(),
        remote_ports: (0, u16::MAX),
        local: Selector::ANY_V4,
        sa: Policy::TRAP,
        owner: 0,
        priority: 1,
    }
}

/// What control was to tell its workers when it died, published and not told, its successor tells.
#[test]
fn what_a_successor_claims_is_told_again() {
    let (mut control, mut workers, _bell) = gateway();
    fill(&mut control);
    let (slot, spi) = control.reserve_sa(0x5000_0000).unwrap();
    assert!(control.install_sa(slot, &sa(spi, 1)).is_err());
    let policy = control.install_policy(&policy()).unwrap();
    let region = mapped_again(control.region());
    drop(control);

    let mut successor = ControlView::new(region).unwrap();
    successor.claim_sa(slot);
    successor.claim_policy(policy);
    let mut told = || {
        let (mut sas, mut policies) = (0, 0);
        while let Some(record) = workers[1].receive() {
            match record.unwrap() {
                Down::SaChanged { index } => sas += usize::from(index == slot.index),
                Down::PolicyChanged { index } => policies += usize::from(index == policy.index),
                _ => {}
            }
        }
        (sas, policies)
    };
    assert_eq!(told(), (0, 0), "its ring is still full");
    successor.collect(false);
    assert_eq!(told(), (1, 1));
    successor.collect(false);
    assert_eq!(told(), (0, 0), "it is told once");
}

#[test]
fn a_worker_whose_ring_is_full_hears_of_a_policy_later() {
    let (mut control, mut workers, _bell) = gateway();
    fill(&mut control);
    let slot = control.install_policy(&policy()).unwrap();
    let mut hears = |worker: usize| {
        let mut count = 0;
        while let Some(record) = workers[worker].receive() {
            let told = record.unwrap() == Down::PolicyChanged { index: slot.index };
            count += usize::from(told);
        }
        count
    };
    assert_eq!([hears(0), hears(1)], [1, 0]);
    control.collect(false);
    assert_eq!([hears(0), hears(1)], [0, 1]);
    control.collect(false);
    assert_eq!([hears(0), hears(1)], [0, 0], "it is told once");
}

#[test]
fn a_worker_whose_ring_is_full_holds_a_retired_slot() {
    let (mut control, mut workers, _bell) = gateway();
    let (slot, _) = install(&mut control, 0x5000_0000, 0);
    fill(&mut control);
    control.retire_sa(slot);
    for _ in 0..3 {
        workers[0].receive();
    }
    workers[0].batch_boundary();
    workers[1].batch_boundary();
    assert_eq!(control.collect(false).waiting, 1, "worker 1 has not been told yet");
    while workers[1].receive().is_some() {}
    workers[1].batch_boundary();
    assert_eq!(control.collect(false).waiting, 1, "told now, not passed yet");
    while workers[1].receive().is_some() {}
    workers[1].batch_boundary();
    assert_eq!(control.collect(false).freed, 1);
}

// Strangers can send without end: their records leave room for those of known peers, and these for
// the worker's own.
#[test]
fn a_ring_is_full_for_strangers_first_and_for_the_worker_last() {
    let (mut control, mut workers, _bell) = gateway();
    let message = Up::IkeMessage { path: path(1), payload: &[0; 1024] };
    let mut fill = |standing| {
        let send = |worker: &mut WorkerView| worker.send_for(standing, &message).is_ok();
        (0..).take_while(|_| send(&mut workers[0])).count()
    };
    let counts = [Standing::Stranger, Standing::Peer, Standing::Worker].map(&mut fill);
    let [strangers, peers, own] = counts;
    let quarter = strangers / 2;
    assert!(quarter > 10 && peers.abs_diff(quarter) < 2 && own.abs_diff(quarter) < 2, "{counts:?}");
    assert_eq!(fill(Standing::Stranger), 0);
    while control.receive().is_some() {}
    assert!(fill(Standing::Stranger) > strangers - 2);
}

#[test]
fn the_bell_rings_once_for_each_arming() {
    let (mut control, mut workers, bell) = gateway();
    assert!(!bell.silence());
    let mut send = |bell: &Bell| {
        workers[0].send(&Up::PathMoved { peer: SlotRef { index: 1, generation: 1 } }).unwrap();
        workers[0].batch_boundary();
        bell.silence()
    };
    send(&bell);
    assert!(!send(&bell), "it is not armed");
    control.arm_bell();
    assert!(send(&bell));
    assert!(!send(&bell), "it has rung since");
    control.arm_bell();
    assert!(send(&bell));
    let records = std::iter::from_fn(|| control.receive().map(|(worker, _)| worker)).count();
    assert_eq!(records, 5);
}

#[test]
fn counters_and_statistics_add_up_over_the_workers() {
    let (control, workers, _bell) = gateway();
    workers[0].count(Counter::EspIcvFailed, 2);
    workers[1].count(Counter::EspIcvFailed, 3);
    workers[1].count_cycles(500, true);
    workers[1].count_cycles(70, false);
    workers[1].heartbeat(9);
    let region = control.region();
    assert_eq!(region.counter(0, Counter::EspIcvFailed), 2);
    assert_eq!(region.counter_total(Counter::EspIcvFailed), 5);
    assert_eq!(region.counter_total(Counter::EspReplayed), 0);
    let stats = region.worker_stats(1).unwrap();
    assert_eq!((stats.cycles_busy, stats.cycles_idle, stats.bursts), (500, 70, 1));
    assert_eq!(stats.heartbeat_ns, 9);
    assert!(region.worker_stats(2).is_none());
}

// RFC 4303, 3.3.3
#[test]
fn sequence_numbers_end_instead_of_wrapping() {
    let next = std::sync::atomic::AtomicU64::new(u64::from(u32::MAX));
    let counter = SequenceCounter::new(&next);
    assert_eq!(counter.left(false), 1);
    assert_eq!(counter.next(false), Ok(u64::from(u32::MAX)));
    assert!(counter.next(false).is_err());
    assert!(counter.next(false).is_err());
    assert_eq!(counter.next(true), Ok(1 << 32), "extended numbers go on");
    next.store(u64::MAX - 1, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(counter.next(true), Ok(u64::MAX - 1));
    assert!(counter.next(true).is_err());
    assert_eq!(counter.left(true), 0);
    next.store(0, std::sync::atomic::Ordering::Relaxed);
    assert!(counter.next(true).is_err(), "a word that was never set up gives no number");
}

#[test]
fn each_view_is_given_out_once() {
    let region = Arc::new(Region::create(&LAYOUT).unwrap());
    let bell = Arc::new(Bell::new().unwrap());
    let _control = ControlView::new(Arc::clone(&region)).unwrap();
    assert!(ControlView::new(Arc::clone(&region)).is_none());
    let _dataplane = DataplaneView::attach(Arc::clone(&region), Arc::clone(&bell)).unwrap();
    assert!(matches!(DataplaneView::attach(region, bell), Err(AttachError::Busy)));
}

/// What a control process was acting on when it died comes to its successor again, and what it had
/// done with does not.
#[test]
fn a_record_is_let_go_of_when_the_next_one_is_asked_for() {
    let (mut control, mut workers, _bell) = gateway();
    for index in 1..=3 {
        workers[0].send(&Up::PathMoved { peer: SlotRef { index, generation: 1 } }).unwrap();
    }
    let moved = |index| Some((0, Ok(Up::PathMoved { peer: SlotRef { index, generation: 1 } })));
    assert_eq!(control.receive(), moved(1));
    assert_eq!(control.receive(), moved(2));
    let region = mapped_again(control.region());
    drop(control);
    let mut control = ControlView::new(region).unwrap();
    assert_eq!(control.receive(), moved(2), "the one before has nobody to act on it twice");
    assert_eq!(control.receive(), moved(3));
    assert_eq!(control.receive(), None);
}

/// A record that kills whoever acts on it must not do so for ever.
#[test]
fn a_record_that_killed_two_control_processes_is_passed_over() {
    let (mut control, mut workers, _bell) = gateway();
    for index in 1..=2 {
        workers[1].send(&Up::PathMoved { peer: SlotRef { index, generation: 1 } }).unwrap();
    }
    for _ in 0..2 {
        assert!(matches!(control.receive(), Some((1, Ok(_)))));
        let region = mapped_again(control.region());
        drop(control);
        control = ControlView::new(region).unwrap();
    }
    assert_eq!(control.receive(), Some((1, Err(Malformed::Deadly))));
    let next = Up::PathMoved { peer: SlotRef { index: 2, generation: 1 } };
    assert_eq!(control.receive(), Some((1, Ok(next))));
}

#[test]
fn a_successor_reads_snapshots_and_claims_what_they_name() {
    let (mut control, workers, _bell) = gateway();
    let (slot, spi) = install(&mut control, 0x5555_0000, 0);
    let peer = control.install_peer(&peer(0)).unwrap();
    let (reserved, awaited) = control.reserve_sa(0x6666_0000).unwrap();
    let (_, forgotten) = control.reserve_sa(0x7777_0000).unwrap();
    let saved = control.take_saved_slot(Shelf::IkeSas).unwrap();
    control.save(Shelf::IkeSas, saved, b"an IKE SA").unwrap();
    control.note_last_name(77);
    let region = mapped_again(control.region());
    drop(control);

    let mut control = ControlView::new(region).unwrap();
    let snapshots: Vec<u32> = control.saved(Shelf::IkeSas).map(|(slot, _)| slot).collect();
    assert_eq!((snapshots, control.last_name()), (vec![saved], 77));
    assert_ne!(control.take_saved_slot(Shelf::IkeSas), Ok(saved));
    control.claim_sa(slot);
    control.claim_peer(peer);
    assert_eq!(control.sa(slot.index).unwrap().1, SlotState::Live);
    assert_eq!(control.peer(peer.index).unwrap().1, SlotState::Live);
    assert_eq!(control.claim_reserved(awaited), Some(reserved));
    assert_eq!(control.claim_reserved(awaited), None, "once");
    assert_eq!(control.claim_reserved(spi), None, "it is installed");
    control.release_unclaimed();
    // It can be filled as if nothing had happened; the other is free again.
    control.install_sa(reserved, &sa(awaited, 0)).unwrap();
    assert!(matches!(workers[0].load_sa(reserved.index), Load::Live(..)));
    let free = (0..LAYOUT.sa_slots).filter_map(|_| control.reserve_sa(0x1000_0000).ok());
    let indices: Vec<u32> = free.map(|(slot, _)| slot.index).collect();
    assert_eq!(indices.len() as u32, LAYOUT.sa_slots - 2);
    assert!(indices.contains(&(forgotten & (LAYOUT.sa_slots - 1))));
}
