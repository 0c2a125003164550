//! The rendezvous in every combination of who has a region, and files that are none.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod support;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::thread;

use culvert_shm::rendezvous::{Bundle, Link, Listener, RendezvousError, connect};
use culvert_shm::{ControlView, Layout, Region, RegionError, Shelf};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, SealFlags};
use support::LAYOUT;

type Met = Result<(Link, Bundle), RendezvousError>;

/// Control with `control`'s region and layout meets a dataplane with `dataplane`'s.
fn meet(control: (Option<&Bundle>, Layout), dataplane: (Option<&Bundle>, Layout)) -> (Met, Met) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("shm.sock");
    let listener = Listener::bind(&socket).unwrap();
    thread::scope(|scope| {
        let caller = scope.spawn(|| connect(&socket, dataplane.0, &dataplane.1));
        let caller_side = loop {
            if let Some(caller) = listener.accept().unwrap() {
                break caller.settle(control.0, &control.1);
            }
            thread::yield_now();
        };
        (caller_side, caller.join().unwrap())
    })
}

fn identity(met: &Met) -> u64 {
    met.as_ref().unwrap().1.region.identity()
}

#[test]
fn control_makes_a_region_when_neither_has_one() {
    let (control, dataplane) = meet((None, LAYOUT), (None, LAYOUT));
    assert_eq!(identity(&control), identity(&dataplane));
    // One bell: what is rung on one side is heard on the other. It is one memory, too.
    let (_, ours) = control.unwrap();
    let (_, theirs) = dataplane.unwrap();
    let _view = ControlView::new(Arc::clone(&ours.region)).unwrap();
    assert_eq!(theirs.region.layout(), &LAYOUT);
}

/// What the kernel says of each mapping of a region that may not be touched.
fn closed_mappings() -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let parts = maps.split_inclusive("VmFlags").filter(|part| part.contains("/memfd:culvert"));
    parts.filter(|part| part.contains(" ---s ")).map(str::to_owned).collect()
}

/// The dataplane keeps the keys of IKE SAs in memory, and off the disk, without being able to read
/// them.
#[test]
fn the_store_is_closed_to_the_dataplane_and_stays_locked() {
    let (control, dataplane) = meet((None, LAYOUT), (None, LAYOUT));
    let (ours, theirs) = (control.unwrap().1, dataplane.unwrap().1);
    assert!(ControlView::new(Arc::clone(&theirs.region)).is_none(), "it is not control");
    let closed = closed_mappings();
    assert!(!closed.is_empty());
    for part in closed {
        let value = |name: &str| {
            let line = part.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        assert!(value("Size:") > 512 && value("Rss:") == value("Size:"), "{part}");
        // Each of two mappings of a page counts for half of it.
        assert_eq!(value("Locked:"), value("Pss:"), "{part}");
    }
    let mut control = ControlView::new(ours.region).unwrap();
    let slot = control.take_saved_slot(Shelf::Operator).unwrap();
    control.save(Shelf::Operator, slot, b"a key").unwrap();
}

#[test]
fn whoever_has_a_region_hands_it_over() {
    let bundle = Bundle::create(&LAYOUT).unwrap();
    let (control, dataplane) = meet((Some(&bundle), LAYOUT), (None, LAYOUT));
    assert_eq!(identity(&control), bundle.region.identity());
    assert_eq!(identity(&dataplane), bundle.region.identity());
    let (control, dataplane) = meet((None, LAYOUT), (Some(&bundle), LAYOUT));
    assert_eq!(identity(&control), bundle.region.identity());
    assert_eq!(identity(&dataplane), bundle.region.identity());
    let (control, dataplane) = meet((Some(&bundle), LAYOUT), (Some(&bundle), LAYOUT));
    assert_eq!(identity(&control), identity(&dataplane));
}

#[test]
fn two_different_regions_are_refused_on_both_sides() {
    let (one, other) = (Bundle::create(&LAYOUT).unwrap(), Bundle::create(&LAYOUT).unwrap());
    let (control, dataplane) = meet((Some(&one), LAYOUT), (Some(&other), LAYOUT));
    assert!(matches!(control, Err(RendezvousError::Different)));
    assert!(matches!(dataplane, Err(RendezvousError::Different)));
}

#[test]
fn other_sizes_are_refused_with_both_in_the_error() {
    let larger = Layout { sa_slots: 32, ..LAYOUT };
    let (control, dataplane) = meet((None, LAYOUT), (None, larger));
    for (error, want_ours, want_theirs) in
        [(control.err().unwrap(), LAYOUT, larger), (dataplane.err().unwrap(), larger, LAYOUT)]
    {
        let RendezvousError::Layout { ours, theirs } = error else { panic!("{error}") };
        assert_eq!((ours, theirs), (want_ours, want_theirs));
    }
}

#[test]
fn a_second_dataplane_is_turned_away_and_a_closed_link_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("shm.sock");
    let listener = Listener::bind(&socket).unwrap();
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(listener.accept().unwrap().is_none(), "nobody has called");
    thread::scope(|scope| {
        let accept = || loop {
            if let Some(caller) = listener.accept().unwrap() {
                break caller;
            }
            thread::yield_now();
        };
        let first = scope.spawn(|| connect(&socket, None, &LAYOUT));
        let (link, bundle) = accept().settle(None, &LAYOUT).unwrap();
        let (far_link, _) = first.join().unwrap().unwrap();
        assert!(!link.is_gone() && !far_link.is_gone());

        let second = scope.spawn(|| connect(&socket, None, &LAYOUT));
        accept().refuse(bundle.region.layout());
        assert!(matches!(second.join().unwrap(), Err(RendezvousError::Busy)));

        drop(far_link);
        assert!(link.is_gone());
    });
}

#[test]
fn a_name_left_behind_is_taken_over_but_a_living_listener_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("shm.sock");
    let missing = connect(&socket, None, &LAYOUT);
    assert!(matches!(missing, Err(RendezvousError::Socket { .. })));
    let listener = Listener::bind(&socket).unwrap();
    assert!(matches!(Listener::bind(&socket), Err(RendezvousError::InUse(path)) if path == socket));
    // The living one hangs up on the other's probe, which said nothing.
    assert!(matches!(listener.accept(), Err(RendezvousError::NoHello)));
    drop(listener);
    Listener::bind(&socket).unwrap();
}

/// A memfd of this content, sealed or not.
fn memfd(content: &[u8], octets: u64, seals: SealFlags) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("test", flags).unwrap());
    file.write_all(content).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.set_len(octets).unwrap();
    rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    file.into()
}

const SEALED: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The first octets of a true region.
fn header() -> Vec<u8> {
    let region = Region::create(&LAYOUT).unwrap();
    let mut header = vec![0; 72];
    rustix::io::pread(region.fd(), &mut header[..], 0).unwrap();
    header
}

#[test]
fn a_file_that_is_no_region_is_not_adopted() {
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    assert!(matches!(Region::adopt(reader), Err(RegionError::NotSealed)));
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(Region::adopt(file.into()), Err(RegionError::NotSealed)));
    let total = LAYOUT.region_bytes();
    let open = memfd(&header(), total, SealFlags::GROW);
    assert!(matches!(Region::adopt(open), Err(RegionError::NotSealed)));
    for octets in [0, 8, 71] {
        let short = memfd(&[], octets, SEALED);
        assert!(matches!(Region::adopt(short), Err(RegionError::NotCulvert)));
    }
    assert!(matches!(Region::adopt(memfd(&[0; 72], total, SEALED)), Err(RegionError::NotCulvert)));
    for octets in [72, total - 1, total + 4096] {
        let wrong_size = memfd(&header(), octets, SEALED);
        assert!(matches!(Region::adopt(wrong_size), Err(RegionError::Damaged { .. })));
    }
    let mut other_version = header();
    other_version[8] ^= 1;
    let adopted = Region::adopt(memfd(&other_version, total, SEALED));
    assert!(matches!(adopted, Err(RegionError::Version { .. })));
    assert!(Region::adopt(memfd(&header(), total, SEALED)).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_damaged_header_is_never_adopted(at in 0usize..72, octet in any::<u8>()) {
        let mut damaged = header();
        let changed = damaged[at] != octet;
        damaged[at] = octet;
        let adopted = Region::adopt(memfd(&damaged, LAYOUT.region_bytes(), SEALED));
        prop_assert_eq!(adopted.is_err(), changed);
    }

    #[test]
    fn layouts_out_of_bounds_make_no_region(
        workers in any::<u16>(), sa_slots in any::<u32>(), ring_bytes in any::<u32>(),
    ) {
        let layout = Layout { workers, sa_slots, ring_bytes, ..LAYOUT };
        let valid = (1..=128).contains(&workers)
            && sa_slots.is_power_of_two() && sa_slots <= 1 << 20
            && ring_bytes.is_power_of_two() && (1 << 18..=1 << 26).contains(&ring_bytes);
        prop_assert_eq!(layout.validate().is_ok(), valid);
    }
}

/// Tables that hold nonsense, as after a stray write: looked at, used, never a panic.
#[test]
fn a_region_full_of_noise_gives_errors_and_no_panic() {
    for seed in 0..4u64 {
        let mut content = header();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        while (content.len() as u64) < LAYOUT.region_bytes() {
            // xorshift
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            content.extend_from_slice(&state.to_ne_bytes());
        }
        let total = LAYOUT.region_bytes();
        let region = Arc::new(Region::adopt(memfd(&content, total, SEALED)).unwrap());
        let bell = Arc::new(culvert_shm::Bell::new().unwrap());
        let mut control = ControlView::new(Arc::clone(&region)).unwrap();
        let view = culvert_shm::DataplaneView::attach(region, bell).unwrap();
        for mut worker in view.into_workers() {
            for index in 0..20 {
                let _ = (worker.load_sa(index), worker.load_peer(index));
                let _ = (worker.load_policy(index), worker.sa(index));
            }
            let _ = worker.begin();
            while worker.receive().is_some() {}
            worker.batch_boundary();
        }
        for index in 0..20 {
            let _ = (control.sa(index), control.peer(index), control.policy(index));
            let _ = control.conn(0, index);
        }
        while control.receive().is_some() {}
        control.collect(false);
        assert!(control.reserve_sa(1).is_ok(), "slots of no meaning are free again");
    }
}
