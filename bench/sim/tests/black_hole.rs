//! A path that swallows large packets without a word, under frames of all sizes.

use std::time::Duration;

use culvert_sim::caller::{End, Habits};
use culvert_sim::link::LinkConfig;
use culvert_sim::scenario::{Ends, Scenario};
use culvert_tcpstack::CongestionControl::{self, Bbr, Cubic};

/// A call over a path of 50 ms and packets of up to 1400 octets: every 20 ms up to twenty small frames,
/// which make a full segment now and then.
fn call(seed: u64, control: CongestionControl) -> Scenario {
    let mtu = 1400;
    let link = LinkConfig { mtu, ..LinkConfig::clean(100, Duration::from_millis(50)) };
    let listening = Habits {
        frames: 0,
        frame_max: 300,
        pause: Duration::from_millis(40),
        urgent: 0,
        hesitates: 0,
        reading_pause: Duration::ZERO,
        end: End::Passive,
    };
    Scenario {
        ends: Ends::Engines,
        controls: [control; 2],
        v6: seed.is_multiple_of(2),
        connections: 1,
        unproven_max: 64,
        buffer_bytes: [1 << 20; 2],
        buffers_bytes: 64 << 20,
        room: usize::MAX,
        links: [link; 2],
        rebindings: None,
        segmentation_bytes: [0; 2],
        habits: [Habits { frames: 2000, end: End::Rude, ..listening }, listening],
        ..Scenario::new(seed)
    }
}

/// RFC 4821, 7.7: the small ones arrive, and each shows again that the large one did not. They keep the
/// retransmission timer from firing, and yet nobody waits for longer than for what finds the hole in a
/// silence: a tail loss probe after two round trips, a timeout (50 ms and at most 160 for the variance)
/// and a second one that is twice as long.
#[test]
fn small_frames_do_not_hide_a_black_hole() {
    for control in [Bbr, Cubic] {
        let stood_still = |seed| call(seed, control).run().unwrap().stood_still;
        let longest = (1..=16).map(stood_still).max().unwrap();
        println!("{control:?}: {longest:?}");
        assert!(longest > Duration::from_millis(100), "a large segment was swallowed");
        assert!(longest < Duration::from_millis(2 * 50 + 3 * 210), "{control:?}: {longest:?}");
    }
}
