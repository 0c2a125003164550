//! The lab: one harness for the demonstration, the whole-system tests and the benchmarks.
//!
//! It builds two sites and a firewall between them out of network namespaces ([`topology`]), lets
//! the firewall drop, rewrite and cut ([`firewall`]), starts the real programs or strongSwan in the
//! gateways' places ([`gateway`], [`strongswan`], with [`relay`] to make a TCP peer of it and
//! [`guest`] to give it Linux's ESP), sends traffic whose every octet is compared ([`traffic`]) or
//! whose every packet is accounted for ([`flow`]), has strangers ask for tunnels from everywhere
//! ([`flood`]), and reads what passed on the wire ([`capture`]). Nothing touches the machine's own
//! interfaces, and everything goes when a [`topology::Lab`] is dropped, when the process is
//! interrupted, or at the latest when the next lab starts ([`cleanup`]).
//!
//! It needs root, and the packages that `scripts/setup` installs.
#![forbid(unsafe_code)]

pub mod capture;
pub mod cleanup;
pub mod command;
mod datagram;
pub mod demo;
pub mod firewall;
pub mod flood;
pub mod flow;
pub mod gateway;
pub mod guest;
pub mod namespace;
pub mod process;
pub mod relay;
pub mod strongswan;
pub mod topology;
pub mod traffic;
pub mod tshark;
mod turn;
