//! The shared memory: whatever the other process writes into a ring, records and positions, ends in
//! records or errors, never in a panic or an endless loop.
#![no_main]

use std::sync::{Arc, OnceLock};

use culvert_shm::{Bell, ControlView, DataplaneView, Down, Layout, Region, WorkerView};
use libfuzzer_sys::fuzz_target;
use rustix::io::{pread, pwrite};

/// More pops than a ring of the smallest size has words would be an endless loop.
const POPS_MAX: usize = 1 << 16;

const LAYOUT: Layout = Layout {
    workers: 1,
    sa_slots: 16,
    policy_slots: 4,
    peer_slots: 4,
    conn_slots: 4,
    ring_bytes: culvert_shm::layout::RING_BYTES_MIN,
};

fn image(region: &Region) -> Vec<u8> {
    let mut octets = vec![0; usize::try_from(LAYOUT.region_bytes()).expect("a small region")];
    pread(region.fd(), &mut octets, 0).expect("the region can be read");
    octets
}

/// Writes a record and returns the octets of the region that it changed: its words, and the
/// producer's position.
fn changed_by(region: &Region, write: impl FnOnce()) -> Vec<u64> {
    let before = image(region);
    write();
    let after = image(region);
    let changed = before.iter().zip(&after).enumerate().filter(|(_, (old, new))| old != new);
    changed.map(|(at, _)| at as u64).collect()
}

fn drain(control: &mut ControlView, worker: &mut WorkerView) {
    for pops in 0.. {
        assert!(pops < POPS_MAX, "the ring never empties");
        let more = control.receive().is_some() | worker.receive().is_some();
        if !more {
            break;
        }
    }
}

/// Both ends of a new region, both rings empty.
fn ends() -> (Arc<Region>, ControlView, WorkerView) {
    let region = Arc::new(Region::create(&LAYOUT).expect("a region"));
    let mut control = ControlView::new(Arc::clone(&region)).expect("the first control");
    let bell = Arc::new(Bell::new().expect("a bell"));
    let dataplane = DataplaneView::attach(Arc::clone(&region), bell).expect("the first dataplane");
    let mut worker = dataplane.into_workers().remove(0);
    drain(&mut control, &mut worker);
    (region, control, worker)
}

fn write_down(control: &mut ControlView) {
    control.send(0, &Down::SaChanged { index: 0x0101_0101 }).expect("room in the ring");
}

fn write_up(worker: &mut WorkerView) {
    worker.begin().expect("room in the ring");
}

/// Where a record down and a record up lie in a new region.
fn places() -> &'static [Vec<u64>; 2] {
    static PLACES: OnceLock<[Vec<u64>; 2]> = OnceLock::new();
    PLACES.get_or_init(|| {
        let (region, mut control, mut worker) = ends();
        let down = changed_by(&region, || write_down(&mut control));
        [down, changed_by(&region, || write_up(&mut worker))]
    })
}

fuzz_target!(|data: &[u8]| {
    let (region, mut control, mut worker) = ends();
    write_down(&mut control);
    write_up(&mut worker);
    // Each triple of the input changes an octet near those that a record changes.
    for change in data.chunks_exact(3) {
        let places = &places()[usize::from(change[0] & 1)];
        let place = places[usize::from(change[0] >> 1) % places.len()];
        let place = (place + u64::from(change[1] & 0x3f)).min(LAYOUT.region_bytes() - 1);
        pwrite(region.fd(), &change[2..], place).expect("the region can be written");
    }
    drain(&mut control, &mut worker);
});
