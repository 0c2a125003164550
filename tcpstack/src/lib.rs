//! The TCP engine and RFC 9329 framing, without I/O.
#![forbid(unsafe_code)]
