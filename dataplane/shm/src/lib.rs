//! The shared memory between the two processes: SA table, policies, rings, statistics.
//!
//! # What it is
//! One sealed memfd without a name. Control creates it, [`rendezvous`] passes it on, and whichever
//! process survives hands it to the one that starts again. Both map all of it, but to the dataplane
//! the last section is closed: it keeps it for the next control process and cannot read it.
//!
//! ```text
//! Header | SA slots | policy slots | peer slots
//!        | for each worker: block, connections, rings
//!        | the store: snapshots of IKE SAs | what an operator said
//! ```
//!
//! # How an SA passes through
//! Control reserves a slot ([`ControlView::reserve_sa`]), which gives the inbound SPI: random high
//! bits, the slot's index below. When IKE has the keys, [`ControlView::install_sa`] writes the
//! configuration and publishes it, and an [`Down::SaChanged`] record tells the owner worker to look.
//! The worker reads it ([`WorkerView::load_sa`]), expands the keys into memory of its own and from
//! then on touches only its own half of the slot: sequence number, replay window, counts. To end
//! it, [`ControlView::retire_sa`] marks it, and [`ControlView::collect`] overwrites the keys once
//! every worker has passed a batch boundary after the mark.
//!
//! # How a control process follows another
//! Before control sends anything it saves the IKE SAs that changed ([`ControlView::save`]), and only
//! after sending it lets go of the record that asked for it ([`ControlView::receive`]). Its successor
//! reads the snapshots ([`ControlView::saved`]), claims the slots that they name, ends the rest, and
//! acts on the record again, which the exchange's Message ID shows to be a repetition.
//!
//! # What holds it together
//! - **One writer for each octet.** [`ControlView`] writes control's halves, a [`WorkerView`] writes
//!   those of its worker. Neither can be cloned, and a region gives out each only once.
//! - **No half-read values.** Everything in the mapping is an atomic integer, so any bit pattern is
//!   a valid one and no access is a data race. Values of several words are kept in two copies,
//!   or read under a slot's state word, and a writer that dies in the middle leaves the old value, or a
//!   slot that is not yet live.
//! - **No pointers.** Index and generation only; what the other side wrote is parsed, never
//!   trusted: a corrupted region gives errors and drops, never a panic.

mod bell;
mod cell;
pub mod conn;
mod control;
pub mod counters;
mod dataplane;
mod dscp;
pub mod layout;
pub mod message;
pub mod peer;
pub mod policy;
mod region;
pub mod rendezvous;
pub mod ring;
pub mod sa;
pub mod saved;
pub mod slot;
mod time;
pub mod types;
mod words;

pub use bell::Bell;
pub use conn::{Congestion, ConnInfo, ConnState, ConnStats};
pub use control::{Collected, ControlView, InstallError, TableFull};
pub use counters::Counter;
pub use dataplane::{AttachError, DataplaneView, Load, WorkerView};
pub use dscp::Dscp;
pub use layout::{Layout, LayoutError};
pub use message::{CloseReason, ConnectFailure, Down, Malformed, NAT_KEEPALIVE, Standing, Up};
pub use peer::{PeerConfig, PeerState, PeerWriter};
pub use policy::Policy;
pub use region::{Region, RegionError, WorkerStats};
pub use ring::RingFull;
pub use sa::{
    Algorithm, KeyMaterial, Mode, SaConfig, SaCounts, SaDrop, SaWriter, SequenceCounter,
    SequenceExhausted, TransportEnds,
};
pub use saved::{SaveError, Saved, Shelf};
pub use slot::{SlotRef, SlotState};
pub use time::monotonic_ns;
pub use types::{ConnRef, Name, Path, Prefix, Selector, SelectorList, Transport};

/// Version of what lies in the memory. Raise it with every change of layout or meaning; two
/// processes of different versions refuse each other in the rendezvous.
pub const ABI_VERSION: u32 = 9;
