//! The TCP engine against a peer that sends whatever the input says: text, acknowledgments, SACK
//! blocks, options and headers of all kinds. What the engine delivers, acknowledges and sends is
//! held against a model of both streams, and in the end nothing of the connection is left.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Err(wrong) = culvert_sim::wild::run(data) {
        panic!("{wrong:#}");
    }
});
