//! IKEv2 (RFC 7296), without I/O.
#![forbid(unsafe_code)]
