//! The TCP engine against forged, lost, repeated and damaged segments: what each end reads is held
//! against a model of both streams, and the connection must go on and end in order.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Err(wrong) = culvert_sim::forged::run(data) {
        panic!("{wrong:#}");
    }
});
