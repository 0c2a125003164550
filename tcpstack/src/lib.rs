//! The TCP engine and RFC 9329 framing, without I/O.
//!
//! [`Stack`] holds the TCP connections of one worker. It knows no clock, socket, thread or random
//! source: time and packets are arguments, and what it wants to send it gives out when asked.
//! [`framing`] takes the streams of these connections apart into IKE and ESP messages.
//!
//! # The way of a packet
//! In: [`Stack::handle_segment`] checks the headers of an IP packet (`segment`), finds its
//! connection by the 4-tuple in one look-up (`table`) and gives it to the TCP engine (`engine`).
//! Octets in order go to the caller where they lie in the packet; [`Stack::recv`] lends those that
//! it did not take then, and a [`framing::Decoder`] makes frames of them.
//!
//! Out: [`Stack::send_with`] lends room in the send buffer, into which a frame is sealed;
//! [`Stack::poll_transmit`] makes segments of it and writes each into the packet that the device
//! lends ([`Transmit`]). Timers of all connections are in one wheel (`wheel`), so that neither a
//! packet nor a tick costs more with more connections.
//!
//! # The seam
//! Nothing of the engine is visible here, so that it can be replaced. Limits are in [`StackConfig`] and, where nobody needs to set them, in named
//! constants.
//!
//! ```
//! use culvert_tcpstack::{Event, Instant, Packet, RxChecksum, Stack, StackConfig, Transmit};
//!
//! /// Carries packets from one stack to another by hand.
//! #[derive(Default)]
//! struct Wire(Vec<Vec<u8>>);
//!
//! impl Transmit for Wire {
//!     fn has_room(&mut self) -> bool {
//!         true
//!     }
//!     fn packet(&mut self, packet: Packet, mut fill: impl FnMut(&mut [u8])) {
//!         let mut octets = vec![0; packet.bytes];
//!         fill(&mut octets);
//!         self.0.push(octets);
//!     }
//! }
//!
//! let now = Instant(1);
//! let mut stacks = [Stack::new(StackConfig::default(), [1; 32])?,
//!                   Stack::new(StackConfig::default(), [2; 32])?];
//! stacks[1].listen(4500);
//! let id = stacks[0].connect(now, "192.0.2.1".parse()?, "192.0.2.2:4500".parse()?)?;
//! for turn in 0..3 {
//!     let mut wire = Wire::default();
//!     stacks[turn % 2].poll_transmit(now, &mut wire);
//!     for mut packet in wire.0 {
//!         let stack = &mut stacks[(turn + 1) % 2];
//!         stack.handle_segment(now, &mut packet, RxChecksum::Unknown, &mut |_, _| 0);
//!     }
//! }
//! assert!(matches!(stacks[0].poll_event(), Some(Event::Opened { originator: true, .. })));
//! assert!(matches!(stacks[1].poll_event(), Some(Event::Opened { originator: false, .. })));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod api;
mod config;
mod engine;
pub mod framing;
mod secret;
mod stack;
mod table;
mod time;
mod wheel;

pub use api::{
    CloseReason, ConnError, ConnId, ConnInfo, ConnectError, DropReason, Event, HEADERS_BYTES_MAX,
    Packet, SegmentOutcome, Stats, Transmit,
};
pub use config::{
    BUFFER_BYTES_MAX, BUFFER_BYTES_MIN, ConfigError, EphemeralPorts, MTU_MIN, RxChecksum,
    SEGMENTATION_BYTES_MAX, StackConfig, TcpSecret, TxChecksum,
};
pub use engine::congestion::CongestionControl;
pub use engine::segment::Marking;
pub use stack::Stack;
pub use time::Instant;
