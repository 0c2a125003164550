//! Processes that are killed at any moment, and what the other finds then.
//!
//! The tests run their own binary again as the process to be killed: a test named `child_…` does
//! nothing unless the parent has set [`SOCKET`], and else speaks to the parent over the rendezvous.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail a test")]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_shm::rendezvous::{Bundle, Link, Listener, connect};
use culvert_shm::{
    Bell, ControlView, DataplaneView, Down, Dscp, Load, Region, Saved, Shelf, SlotRef, Up,
};
use support::{LAYOUT, is_whole, path, peer, sa};

/// Names the rendezvous socket to a child.
const SOCKET: &str = "CULVERT_TEST_SOCKET";

/// Runs the test of this name in a process of its own.
fn spawn(child: &str, socket: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", child, "--nocapture"])
        .env(SOCKET, socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(process.stdout.take().unwrap());
    (process, output)
}

/// The next caller's handshake.
fn settle(listener: &Listener, own: Option<&Bundle>) -> (Link, Bundle) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(caller) = listener.accept().unwrap() {
            return caller.settle(own, &LAYOUT).unwrap();
        }
        assert!(Instant::now() < deadline, "the child has not called");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills a child (SIGKILL) and waits until it is gone.
fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// A dataplane that takes sequence numbers as fast as it can and reports each.
#[test]
fn child_takes_sequence_numbers() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    let (_link, bundle) = connect(Path::new(&socket), None, &LAYOUT).unwrap();
    let view = DataplaneView::attach(bundle.region, bundle.bell).unwrap();
    let workers = view.into_workers();
    assert!(matches!(workers[0].load_sa(0), Load::Live(..)));
    let counter = workers[0].sa(0).unwrap().sequence();
    loop {
        println!("number {}", counter.next(true).unwrap());
    }
}

// RFC 4106, 3.1: for a given key, the IV must not repeat, whatever process dies.
#[test]
fn sequence_numbers_never_repeat_over_killed_dataplanes() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("shm.sock");
    let listener = Listener::bind(&socket).unwrap();
    let bundle = Bundle::create(&LAYOUT).unwrap();
    let mut control = ControlView::new(Arc::clone(&bundle.region)).unwrap();
    let (slot, spi) = control.reserve_sa(0x7777_0000).unwrap();
    assert_eq!(slot.index, 0);
    control.install_sa(slot, &sa(spi, 0)).unwrap();

    let (mut last, mut numbers) = (0, 0);
    for round in 0..12u64 {
        let (child, mut output) = spawn("child_takes_sequence_numbers", &socket);
        let (link, _) = settle(&listener, Some(&bundle));
        // Kill it after some number of reports, or after some time: in the middle of anything.
        let reports = 50 + round * 777 % 3000;
        let mut text = String::new();
        let mut read = 0;
        while read < reports && output.read_line(&mut text).unwrap() > 0 {
            read += 1;
        }
        kill(child);
        output.read_to_string(&mut text).unwrap();
        assert!(link.is_gone(), "the link tells that the dataplane is gone");
        // The last line may be cut off.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            let Some(number) = line.strip_prefix("number ") else { continue };
            let number: u64 = number.parse().unwrap();
            assert!(number > last, "{number} after {last}");
            last = number;
            numbers += 1;
        }
    }
    assert!(numbers > 12 * 50, "{numbers} numbers");
    assert!(control.sa_counts(slot).unwrap().next_sequence > last);
    assert_eq!(control.dataplane_epoch(), 12);
}

/// A control process that installs, retires and sends without pause.
#[test]
fn child_installs_sas() {
    let Some(socket) = std::env::var_os(SOCKET) else { return };
    // The child comes as the dataplane does, since the parent has the socket; then it plays
    // control, which maps the store, too.
    let (_link, bundle) = connect(Path::new(&socket), None, &LAYOUT).unwrap();
    let memory = bundle.region.fd().try_clone_to_owned().unwrap();
    let mut control = ControlView::new(Arc::new(Region::adopt(memory).unwrap())).unwrap();
    control.release_unclaimed();
    let mut saved: Vec<u32> = Vec::new();
    for (slot, snapshot) in control.saved(Shelf::IkeSas) {
        match snapshot {
            Saved::Octets(octets) if octets.iter().all(|octet| octets.len() as u8 == *octet) => {}
            _ => println!("a torn snapshot in slot {slot}"),
        }
        saved.push(slot);
    }
    if let Ok(slot) = control.take_saved_slot(Shelf::IkeSas) {
        control.save(Shelf::IkeSas, slot, &[]).unwrap();
        saved.push(slot);
    }
    println!("ready with {} snapshots", saved.len());
    let mut installed: Vec<SlotRef> = Vec::new();
    for random in (0u32..).map(|n| n.wrapping_mul(0x9e37_79b9)) {
        // Of any length, and each octet says which.
        let octets = vec![random as u8; usize::from(random as u8) + 256 * (random as usize % 3)];
        let slot = saved[random as usize / 7 % saved.len()];
        control.save(Shelf::IkeSas, slot, &octets).unwrap();
        if let Ok((slot, spi)) = control.reserve_sa(random) {
            let _ = control.install_sa(slot, &sa(spi, (random % 2) as u16));
            installed.push(slot);
        }
        if installed.len() > 6 {
            control.retire_sa(installed.remove(random as usize % 6));
        }
        let _ = control.send(
            0,
            &Down::IkeSend { path: path(1), dscp: Dscp::DEFAULT, payload: &[random as u8; 999] },
        );
        let _ = control.install_peer(&peer(0)).map(|peer| control.retire_peer(peer));
        control.collect(false);
        control.receive();
    }
}

/// Reads everything that a control process writes, and checks that all of it is whole.
fn read_everything(workers: &mut [culvert_shm::WorkerView]) -> usize {
    let mut whole = 0;
    for worker in workers {
        while let Some(record) = worker.receive() {
            if let Down::IkeSend { payload, .. } = record.expect("records are whole") {
                assert_eq!(payload, vec![payload[0]; 999]);
            }
        }
        for index in 0..LAYOUT.sa_slots {
            if let Load::Live(_, config) = worker.load_sa(index) {
                assert!(is_whole(&config), "a torn SA in slot {index}");
                whole += 1;
            }
        }
        let _ = worker.send(&Up::PathMoved { peer: SlotRef { index: 0, generation: 1 } });
        worker.batch_boundary();
    }
    whole
}

#[test]
fn a_control_process_killed_in_the_middle_leaves_a_region_that_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("shm.sock");
    let listener = Listener::bind(&socket).unwrap();
    let bundle = Bundle::create(&LAYOUT).unwrap();
    let region = Arc::clone(&bundle.region);
    let dataplane = DataplaneView::attach(region, Arc::new(Bell::new().unwrap())).unwrap();
    let mut workers = dataplane.into_workers();

    for round in 0..12u64 {
        let (child, mut output) = spawn("child_installs_sas", &socket);
        let _link = settle(&listener, Some(&bundle));
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "the child has ended");
            assert!(!line.contains("torn"), "{line}");
        }
        let kept = format!("ready with {} snapshots", (round + 1).min(8));
        assert!(line.contains(&kept), "{kept} were expected: {line}");
        let until = Instant::now() + Duration::from_millis(5 + round * 3);
        let mut whole = 0;
        while Instant::now() < until || whole == 0 {
            whole += read_everything(&mut workers);
        }
        kill(child);
        read_everything(&mut workers);
    }
    // A successor settles what was left: every slot comes free, none is stuck half written.
    let copy = bundle.region.fd().try_clone_to_owned().unwrap();
    let mut control = ControlView::new(Arc::new(Region::adopt(copy).unwrap())).unwrap();
    control.release_unclaimed();
    for index in 0..LAYOUT.sa_slots {
        if let Some((slot, ..)) = control.sa(index) {
            control.retire_sa(slot);
        }
    }
    while control.collect(false).waiting > 0 {
        read_everything(&mut workers);
    }
    for _ in 0..LAYOUT.sa_slots {
        control.reserve_sa(0x8000_0000).unwrap();
    }
}
