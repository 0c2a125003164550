//! Whole-system tests: every one builds the lab's network, starts real programs in it and judges
//! them by what arrives. They need root and the packages of `scripts/setup`; they run one at a time
//! and each ends by itself.

mod foreign;
