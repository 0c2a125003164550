//! What the process tells systemd.

#![allow(clippy::panic, reason = "helpers of tests fail the test")]

mod support;

use std::os::unix::net::UnixDatagram;

use support::pair::{LEFT, config};
use support::{Gateway, PATIENCE};

/// Ready once its sockets are open, then alive as long as its loop turns: `WatchdogSec` counts on it.
#[test]
fn systemd_hears_that_it_is_ready_and_that_it_is_alive() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("set");
    let hear = || {
        let mut octets = [0; 256];
        let length = socket.recv(&mut octets).expect("told");
        String::from_utf8_lossy(&octets[..length]).trim_end().to_owned()
    };
    let gateway = Gateway::start_with(&config(&LEFT, "udp", "shared"), |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    assert_eq!(hear(), "READY=1");
    let first = std::time::Instant::now();
    assert_eq!([hear(), hear(), hear()], ["WATCHDOG=1"; 3]);
    let took = first.elapsed().as_secs();
    assert!((1..=10).contains(&took), "a few in a minute would do: {took} s");
    drop(gateway);
}
