//! An SA whose sequence numbers come to their end.

use culvert_shm::{Counter, Transport};

use crate::fixture::{FAR_V4, Gateway, HOST_V4, Told};
use crate::packets::ping;
use crate::peer::{Sa, Wanted, path};

/// Sends two packets, after the first of which so many numbers are `left`: how often control is told,
/// and how many packets leave.
fn send(gateway: &mut Gateway, sa: &Sa, left: u64) -> (usize, usize) {
    let moving = gateway.control.sa_counts(sa.slot).unwrap();
    let rest = [moving.packets_out, moving.octets_out, moving.last_out_ns];
    let words = |next: u64| [&[next][..], &rest].concat();
    gateway.rewrite(&words(moving.next_sequence), &words((1 << 32) - left - 1));
    for _ in 0..2 {
        gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[1; 100]));
    }
    gateway.turn();
    let low = gateway.told().into_iter().filter(|told| *told == Told::SequenceLow(sa.slot));
    (low.count(), gateway.outer_packets().len())
}

// RFC 4303, 3.3.3: a new SA has to be there before. The word that one is needed may get lost in a full
// ring, so it is not said only once; and the last number is the last.
#[test]
fn control_is_told_again_and_again_before_the_last_number() {
    let mut gateway = Gateway::new();
    let wanted = Wanted { esn: false, ..Wanted::by(path(Transport::Udp, None)) };
    let sa = Sa::install(&mut gateway, wanted);
    gateway.inner_packet(&ping(HOST_V4, FAR_V4, &[1; 100]));
    gateway.turn();
    assert_eq!((gateway.told(), gateway.outer_packets().len()), (vec![], 1));
    assert_eq!(send(&mut gateway, &sa, (1 << 28) + 9), (0, 2), "there is time");
    for part in (1..=16).rev() {
        assert_eq!(send(&mut gateway, &sa, part << 24), (1, 2), "{part} of 16 parts are left");
    }
    assert_eq!(send(&mut gateway, &sa, 1), (1, 2), "the last number is used");
    assert_eq!(gateway.count(Counter::EspSequenceExhausted), 0);
    assert_eq!(send(&mut gateway, &sa, 0), (1, 1), "and no other");
    assert_eq!(gateway.count(Counter::EspSequenceExhausted), 1);
}
