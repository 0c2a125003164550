//! What the stack says to a hand-made peer, rule by rule, in scripts after the manner of
//! packetdrill. Each names the RFC and the section whose rule it shows.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail")]

mod attacks;
mod closing;
mod duplicates;
mod growth;
mod handshake;
mod needless;
mod offload;
mod options;
mod path;
mod play;
mod recovery;
mod simultaneous;
mod states;
mod tail;
mod text;
mod time_wait;
mod timers;
mod tunnel;
mod unreachable;
mod windows;
mod wire;
mod zero;
