//! The octets of IKEv2 messages (RFC 7296, 3) and their values.

mod types;

pub use types::{ExchangeType, NotifyType, PayloadType, Protocol};
