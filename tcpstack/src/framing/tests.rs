//! RFC 9329, 3 and 4, read as the wire shows it. The oracle for the captures is the splitter of
//! `culvert_captures`, which knows whole streams only.

use culvert_captures::{Kind, Session};
use proptest::prelude::*;

use super::*;

/// A frame that can be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Owned {
    Ike(Vec<u8>),
    Esp(Vec<u8>),
    Keepalive,
    Empty,
    Short,
}

impl From<Frame<'_>> for Owned {
    fn from(frame: Frame<'_>) -> Self {
        match frame {
            Frame::Ike(message) => Self::Ike(message.to_vec()),
            Frame::Esp(packet) => Self::Esp(packet.to_vec()),
            Frame::Keepalive => Self::Keepalive,
            Frame::Empty => Self::Empty,
            Frame::Short => Self::Short,
        }
    }
}

/// Feeds a stream in pieces and gives the frames, and how it ended.
fn decode<'a>(
    mut decoder: Decoder,
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Owned>, Result<(), FramingError>) {
    let mut frames = Vec::new();
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut rest = &mut piece[..];
        loop {
            match decoder.next_frame(&mut Gathering::new(), &mut rest) {
                Ok(Some(frame)) => frames.push(frame.into()),
                Ok(None) => break assert!(rest.is_empty(), "octets were left over"),
                Err(error) => return (frames, Err(error)),
            }
        }
    }
    (frames, Ok(()))
}

fn originator_stream(frames: &[u8]) -> Vec<u8> {
    [&PREFIX, frames].concat()
}

/// What a capture's stream holds, for one direction of one connection.
fn expected(session: &Session, connection: usize, from_originator: bool) -> Vec<Owned> {
    session
        .messages()
        .into_iter()
        .filter(|m| (m.connection, m.from_originator) == (Some(connection), from_originator))
        .map(|message| match message.kind {
            Kind::Ike => Owned::Ike(message.octets),
            Kind::Esp => Owned::Esp(message.octets),
            Kind::Short => Owned::Short,
        })
        .collect()
}

/// A stream: its name, a decoder for it, its octets, its frames.
type Stream = (String, fn() -> Decoder, Vec<u8>, Vec<Owned>);

/// Every stream of every capture.
fn streams() -> Vec<Stream> {
    let mut streams = Vec::new();
    for session in culvert_captures::sessions().unwrap() {
        for (index, connection) in session.connections.iter().enumerate() {
            let there = expected(&session, index, true);
            let back = expected(&session, index, false);
            let name = format!("{} {index}", session.name);
            let octets = connection.from_originator.octets.clone();
            streams.push((name.clone(), Decoder::for_responder as fn() -> Decoder, octets, there));
            let octets = connection.from_responder.octets.clone();
            streams.push((name, Decoder::for_originator, octets, back));
        }
    }
    assert_eq!(streams.len(), 16, "8 TCP connections in the captures");
    streams
}

/// R9329-3-01, R9329-3-02, R9329-4-02: libreswan's and strongSwan's streams, whole.
#[test]
fn every_captured_stream_comes_apart() {
    for (name, decoder, octets, frames) in streams() {
        assert!(frames.len() > 1, "{name}");
        let (decoded, end) = decode(decoder(), [&octets[..]]);
        assert_eq!((decoded, end), (frames, Ok(())), "{name}");
    }
}

/// R9329-3-07, R9329-6.1-03: the same streams, cut once at each octet, and into single octets.
#[test]
fn it_does_not_matter_where_a_captured_stream_is_cut() {
    for (name, decoder, octets, frames) in streams() {
        for cut in 0..=octets.len() {
            let (decoded, end) = decode(decoder(), [&octets[..cut], &octets[cut..]]);
            assert_eq!((&decoded, end), (&frames, Ok(())), "{name} cut at {cut}");
        }
        let (decoded, end) = decode(decoder(), octets.chunks(1));
        assert_eq!((decoded, end), (frames, Ok(())), "{name} in octets");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The same streams, cut at random.
    #[test]
    fn nor_at_random(stream in 0usize..16, cuts in prop::collection::vec(0usize..2000, 0..20)) {
        let (_, decoder, octets, frames) = streams().swap_remove(stream);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % octets.len()).collect();
        cuts.extend([0, octets.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &octets[pair[0]..pair[1]]);
        let (decoded, end) = decode(decoder(), pieces);
        prop_assert_eq!((decoded, end), (frames, Ok(())));
    }

    /// What is written by the headers of this module is read by the decoder, whatever the
    /// lengths and the cuts.
    #[test]
    fn what_is_framed_is_found(
        messages in prop::collection::vec((any::<bool>(), 4usize..3000), 1..8),
        piece in 1usize..4000,
    ) {
        let mut octets = PREFIX.to_vec();
        let mut frames = Vec::new();
        for (ike, length) in messages {
            let message = vec![7; length];
            if ike {
                octets.extend(ike_header(length).unwrap());
                octets.extend(&message);
                frames.push(Owned::Ike(message));
            } else {
                octets.extend(esp_header(length).unwrap());
                octets.extend(&message);
                frames.push(Owned::Esp(message));
            }
        }
        let (decoded, end) = decode(Decoder::for_responder(), octets.chunks(piece));
        prop_assert_eq!((decoded, end), (frames, Ok(())));
    }

    /// Anything at all ends in frames or a typed error, never in a panic, and never in more
    /// memory than one frame.
    #[test]
    fn noise_is_survived(octets in prop::collection::vec(any::<u8>(), 0..600), piece in 1usize..64) {
        let mut decoder = Decoder::for_originator();
        for piece in octets.chunks(piece) {
            let mut piece = piece.to_vec();
            let mut rest = &mut piece[..];
            while let Ok(Some(_)) = decoder.next_frame(&mut Gathering::new(), &mut rest) {}
            prop_assert!(decoder.partial_bytes() <= octets.len());
        }
    }
}

/// R9329-6.1-03: nothing is parsed before the prefix is whole, however slowly it comes.
#[test]
fn the_prefix_may_come_octet_by_octet() {
    let mut decoder = Decoder::for_responder();
    for octet in PREFIX {
        assert!(!decoder.is_begun());
        assert_eq!(decoder.next_frame(&mut Gathering::new(), &mut &mut [octet][..]), Ok(None));
    }
    assert!(decoder.is_begun());
    assert_eq!(
        decoder.next_frame(&mut Gathering::new(), &mut &mut [0, 3, 0xff][..]),
        Ok(Some(Frame::Keepalive))
    );
}

/// R9329-6.1-16: a stream that is wrong in any octet of the prefix is refused for good, and the
/// valid frame behind it is not looked at.
#[test]
fn a_prefix_that_is_wrong_anywhere_is_refused() {
    for wrong in 0..PREFIX.len() {
        let mut octets = originator_stream(&[0, 6, 0, 0, 1, 0]);
        octets[wrong] ^= 0x20;
        for piece in [1, 3, octets.len()] {
            let (frames, end) = decode(Decoder::for_responder(), octets.chunks(piece));
            assert_eq!((frames, end), (vec![], Err(FramingError::BadPrefix)), "octet {wrong}");
        }
        let mut decoder = Decoder::for_responder();
        assert!(decoder.next_frame(&mut Gathering::new(), &mut &mut octets[..]).is_err());
        assert_eq!(
            decoder.next_frame(&mut Gathering::new(), &mut &mut originator_stream(&[0, 2])[..]),
            Err(FramingError::BadPrefix)
        );
        assert!(!decoder.is_begun());
    }
}

/// R9329-6.1-16: an ESP frame without the prefix is no beginning.
#[test]
fn a_frame_in_the_place_of_the_prefix_is_refused() {
    let (frames, end) = decode(Decoder::for_responder(), [&[0, 8, 1, 2, 3, 4, 5, 6][..]]);
    assert_eq!((frames, end), (vec![], Err(FramingError::BadPrefix)));
}

/// R9329-4-02: the prefix is sent once and by the originator only; elsewhere it is data, whose
/// first two octets are a length.
#[test]
fn a_second_prefix_is_data() {
    let mut octets = originator_stream(&PREFIX);
    octets.resize(PREFIX.len() + 0x494b, 9);
    let (frames, end) = decode(Decoder::for_responder(), [&octets[..]]);
    assert_eq!((frames, end), (vec![Owned::Esp(octets[8..].to_vec())], Ok(())));
}

/// R9329-3.1-03, R9329-3.2-03: lengths 0 and 1 are fatal, also after good frames, and nothing
/// behind them is read.
#[test]
fn a_length_that_cannot_count_itself_is_fatal() {
    for length in [0, 1] {
        let octets = [0, 3, 0xff, 0, length, 0, 3, 0xff];
        for piece in 1..=octets.len() {
            let (frames, end) = decode(Decoder::for_originator(), octets.chunks(piece));
            let error = FramingError::BadLength(u16::from(length));
            assert_eq!((frames, end), (vec![Owned::Keepalive], Err(error)));
        }
    }
}

/// R9329-3-05, R9329-3-06 and what Linux does with messages of 1 to 3 octets: they are named, and
/// the stream goes on.
#[test]
fn messages_too_short_for_a_marker_are_told_apart() {
    let octets = [
        &[0, 2][..],
        &[0, 3, 0xff],
        &[0, 3, 0xfe],
        &[0, 4, 0xff, 0xff],
        &[0, 4, 0, 0],
        &[0, 5, 0, 0, 0],
        &[0, 6, 0, 0, 0, 0],
        &[0, 6, 0, 0, 0, 1],
    ]
    .concat();
    let frames = vec![
        Owned::Empty,
        Owned::Keepalive,
        Owned::Short,
        Owned::Short,
        Owned::Short,
        Owned::Short,
        Owned::Ike(vec![]),
        Owned::Esp(vec![0, 0, 0, 1]),
    ];
    for piece in 1..=octets.len() {
        let (decoded, end) = decode(Decoder::for_originator(), octets.chunks(piece));
        assert_eq!((&decoded, end), (&frames, Ok(())), "in pieces of {piece}");
    }
}

/// R9329-3-04: every length that the field can hold, and none that it cannot.
#[test]
fn every_length_is_taken_and_no_longer_one_is_made() {
    for length in 2..=u16::MAX {
        let mut octets = vec![0xff; usize::from(length)];
        octets[..2].copy_from_slice(&length.to_be_bytes());
        let mut decoder = Decoder::for_originator();
        let mut rest = &mut octets[..];
        let frame = decoder.next_frame(&mut Gathering::new(), &mut rest).unwrap().map(Owned::from);
        let message = usize::from(length) - LENGTH_BYTES;
        match (length, frame) {
            (2, frame) => assert_eq!(frame, Some(Owned::Empty)),
            (3, frame) => assert_eq!(frame, Some(Owned::Keepalive)),
            (4 | 5, frame) => assert_eq!(frame, Some(Owned::Short)),
            (_, Some(Owned::Esp(packet))) => assert_eq!(packet.len(), message),
            (_, frame) => panic!("length {length}: {frame:?}"),
        }
        assert_eq!(esp_header(message), Ok(length.to_be_bytes()));
    }
    assert_eq!(esp_header(MESSAGE_BYTES_MAX + 1), Err(TooLong(65_534)));
    assert_eq!(ike_header(MESSAGE_BYTES_MAX - 4), Ok([0xff, 0xff, 0, 0, 0, 0]));
    assert_eq!(ike_header(MESSAGE_BYTES_MAX - 3), Err(TooLong(65_530)));
}

/// A whole frame is lent where it lies, so that it can be decrypted there; a split one is
/// gathered, and is writable too.
#[test]
fn a_whole_frame_is_not_copied() {
    let mut octets = [0, 8, 1, 2, 3, 4, 5, 6, 0, 8, 7, 7, 7, 7, 7, 7];
    let mut decoder = Decoder::for_originator();
    let (head, tail) = octets.split_at_mut(12);
    let mut rest = head;
    match decoder.next_frame(&mut Gathering::new(), &mut rest) {
        Ok(Some(Frame::Esp(packet))) => packet.fill(0xaa),
        other => panic!("{other:?}"),
    }
    assert_eq!(decoder.next_frame(&mut Gathering::new(), &mut rest), Ok(None));
    assert_eq!(decoder.partial_bytes(), 4);
    let mut rest = tail;
    match decoder.next_frame(&mut Gathering::new(), &mut rest) {
        Ok(Some(Frame::Esp(packet))) => packet.fill(0xbb),
        other => panic!("{other:?}"),
    }
    assert_eq!(decoder.partial_bytes(), 0);
    assert_eq!(octets[..8], [0, 8, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0xaa]);
    assert_eq!(octets[8..], [0, 8, 7, 7, 7, 7, 7, 7], "a gathered frame is a copy");
}

/// Whatever length was announced, a small buffer is all that a frame gets before more has come; between
/// frames a decoder holds none, and the next split frame of any connection gets the same one.
#[test]
fn a_split_frame_costs_a_buffer_while_it_lasts() {
    let (mut decoder, mut gathering) = (Decoder::for_originator(), Gathering::new());
    assert_eq!(decoder.next_frame(&mut gathering, &mut &mut [0xff, 0xff, 1][..]), Ok(None));
    assert_eq!(decoder.gathered.capacity(), GATHERING_BYTES);
    let mut rest = vec![1; 65_532];
    let frame = decoder.next_frame(&mut gathering, &mut &mut rest[..]);
    assert!(matches!(frame, Ok(Some(Frame::Esp(_)))));
    assert_eq!(decoder.next_frame(&mut gathering, &mut &mut [][..]), Ok(None));
    assert_eq!(decoder.gathered.capacity(), 0);
    assert!(gathering.0.is_empty(), "what has grown is not kept");

    for _ in 0..3 {
        assert_eq!(decoder.next_frame(&mut gathering, &mut &mut [0][..]), Ok(None));
        assert!(gathering.0.is_empty());
        let mut rest = [3, 0xff];
        let frame = decoder.next_frame(&mut gathering, &mut &mut rest[..]);
        assert_eq!(frame, Ok(Some(Frame::Keepalive)));
        assert_eq!(decoder.next_frame(&mut gathering, &mut &mut [][..]), Ok(None));
        assert_eq!((decoder.gathered.capacity(), gathering.0.len()), (0, 1));
    }
}
