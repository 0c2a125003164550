//! Damaged, cut and random frames: counted or answered, never a panic, and the gateway goes on.

use proptest::prelude::*;
use proptest::sample::Index;

use culvert_shm::Transport;

use crate::fixture::{
    FAR_V4, Gateway, HOST_MAC, HOST_V4, HOST_V6, INNER_MAC, INNER_V6, OUTER_MAC, OUTER_V4,
    OUTER_V6, PEER_MAC, PEER_V4, PEER_V6, framed,
};
use crate::packets::{esp, first_fragment, may_fragment, ping, syn, udp};
use crate::peer::{Sa, Wanted, ike_message, path};

/// One frame of each kind, for the outer port (true) or the inner one.
fn frames(sa: &mut Sa) -> Vec<(bool, Vec<u8>)> {
    let sealed = sa.seal(&ping(FAR_V4, HOST_V4, &[1; 100]));
    let outer = [
        ping(PEER_V4, OUTER_V4, b"echo"),
        ping(PEER_V6, OUTER_V6, b"echo"),
        syn(PEER_V4, OUTER_V4, 1460),
        udp((PEER_V4, 500), (OUTER_V4, 500), &ike_message(100)),
        udp((PEER_V6, 4500), (OUTER_V6, 4500), &[0; 40]),
        udp((PEER_V4, 4500), (OUTER_V4, 4500), &sealed),
        esp(PEER_V4, OUTER_V4, &sealed),
        first_fragment(udp((PEER_V4, 500), (OUTER_V4, 500), &[0; 64])),
    ];
    let inner = [
        ping(HOST_V4, FAR_V4, &[2; 200]),
        ping(HOST_V6, INNER_V6, b"echo"),
        syn(HOST_V4, FAR_V4, 1460),
        may_fragment(ping(HOST_V4, FAR_V4, &[3; 1460])),
    ];
    let outer = outer.iter().map(|packet| (true, framed(PEER_MAC, OUTER_MAC, packet)));
    let inner = inner.iter().map(|packet| (false, framed(HOST_MAC, INNER_MAC, packet)));
    outer.chain(inner).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn damaged_frames_do_no_harm(
        damages in prop::collection::vec(
            (any::<Index>(), any::<Index>(), any::<u8>(), any::<Option<Index>>()), 40),
        random in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 10),
    ) {
        let mut gateway = Gateway::new();
        let mut sa = Sa::install(&mut gateway, Wanted::by(path(Transport::Udp, None)));
        let frames = frames(&mut sa);
        for (which, at, flip, cut) in damages {
            let (outer, mut frame) = which.get(&frames).clone();
            let at = at.index(frame.len());
            frame[at] ^= flip;
            if let Some(cut) = cut {
                frame.truncate(cut.index(frame.len()));
            }
            gateway.arrive(0, outer, &frame);
        }
        for frame in random {
            gateway.arrive(0, true, &[&OUTER_MAC.0[..], &PEER_MAC.0, &frame].concat());
            gateway.arrive(0, false, &[&INNER_MAC.0[..], &HOST_MAC.0, &frame].concat());
        }
        gateway.turn();
        gateway.pass(1_000, 100);
        let _ = (gateway.outer_frames(), gateway.inner_frames());

        let inbound = ping(FAR_V4, HOST_V4, b"all is well");
        let packet = sa.seal(&inbound);
        gateway.outer_packet(&udp((PEER_V4, 4500), (OUTER_V4, 4500), &packet));
        gateway.turn();
        prop_assert!(gateway.inner_packets().iter().any(|packet| packet.ends_with(b"all is well")));
    }
}
