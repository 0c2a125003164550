//! ESP seal and open, replay window, ESN, and the AEAD seam, without I/O.
#![forbid(unsafe_code)]
