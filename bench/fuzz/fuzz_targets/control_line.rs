//! The control socket: lines of any octets, fed in any pieces, give requests or refusals; a line
//! that never ends is refused instead of gathered.
#![no_main]

use culvert_api::{LineBuffer, REQUEST_OCTETS_MAX, Reply, Request, to_line};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&cut, octets)) = data.split_first() else { return };
    let mut lines = LineBuffer::new(REQUEST_OCTETS_MAX);
    for piece in octets.chunks(usize::from(cut) + 1) {
        lines.feed(piece);
        loop {
            match lines.next_line() {
                Ok(Some(line)) => check(line),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});

fn check(line: &[u8]) {
    match Request::parse(line) {
        Ok(request) => {
            let again = to_line(&request).expect("a request is JSON");
            assert_eq!(Request::parse(&again).ok(), Some(request));
        }
        Err(reply) => drop(to_line(&reply).expect("a reply is JSON")),
    }
    // A client reads lines, too.
    let reply: Result<Reply, _> = serde_json::from_slice(line);
    drop(reply);
}
