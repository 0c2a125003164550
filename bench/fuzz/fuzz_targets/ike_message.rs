//! The IKEv2 codec: any octets give a message or an error, and what was decoded encodes to
//! something that decodes to the same.
#![no_main]

use culvert_ike::message::{Header, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = Header::decode(data);
    let Ok(message) = Message::decode(data) else { return };
    let Ok(octets) = message.encode() else { return };
    let again = Message::decode(&octets).expect("an encoded message decodes");
    assert_eq!(again.encode().expect("it was encoded before"), octets);
});
