//! RFC 9329 framing: any octets, cut anywhere, give the same frames, and what is gathered is
//! bounded.
#![no_main]

use culvert_tcpstack::framing::{Decoder, Frame, FramingError, Gathering};
use libfuzzer_sys::fuzz_target;

/// What a stream says: its frames by kind and length, and the error that ended it.
fn frames(octets: &[u8], cut: usize, responder: bool) -> (Vec<(u8, usize)>, Option<FramingError>) {
    let mut decoder = if responder { Decoder::for_responder() } else { Decoder::for_originator() };
    let (mut found, mut gathering) = (Vec::new(), Gathering::new());
    for piece in octets.chunks(cut) {
        let mut piece = piece.to_vec();
        let mut rest = piece.as_mut_slice();
        loop {
            match decoder.next_frame(&mut gathering, &mut rest) {
                Ok(Some(frame)) => found.push(match frame {
                    Frame::Ike(message) => (0, message.len()),
                    Frame::Esp(packet) => (1, packet.len()),
                    Frame::Keepalive => (2, 1),
                    Frame::Empty => (3, 0),
                    Frame::Short => (4, 0),
                }),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
        assert!(rest.is_empty(), "all octets are taken");
        assert!(decoder.partial_bytes() <= usize::from(u16::MAX));
    }
    (found, None)
}

fuzz_target!(|data: &[u8]| {
    let Some((&[cut, flags], octets)) = data.split_first_chunk() else { return };
    let responder = flags & 1 != 0;
    let whole = frames(octets, octets.len().max(1), responder);
    assert_eq!(whole, frames(octets, usize::from(cut) + 1, responder));
});
