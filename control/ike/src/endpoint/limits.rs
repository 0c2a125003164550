//! Limits of an endpoint.

use std::time::Duration;

/// Limits of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Most IKE SAs in all.
    pub ike_sas_max: usize,
    /// Most half-open IKE SAs that peers began, in all. Here and below one whose peer failed to
    /// authenticate itself is among them for the few seconds for which it is kept (RFC 8019, 4.2).
    pub half_open_max: usize,
    /// Most half-open IKE SAs that peers began from one IPv4 address or IPv6 /64. A large NAT must
    /// not trip over it.
    pub half_open_per_source_max: usize,
    /// Number of half-open IKE SAs that peers began from which on peers over UDP must return a cookie
    /// (RFC 7296, 2.6).
    pub cookie_threshold: usize,
    /// The number from which on everybody, also over TCP, must solve a puzzle (RFC 8019).
    pub puzzle_threshold: usize,
    /// Zero bits of that puzzle; each doubles the work. At least 1.
    pub puzzle_bits: u8,
    /// How long an IKE SA that a peer began may stay unauthenticated.
    pub half_open_timeout: Duration,
    /// Longest IKE message that is accepted, in octets.
    pub message_octets_max: usize,
    /// Most CHILD SAs of one IKE SA that the peer may ask for; while they are rekeyed, twice as many.
    pub children_per_ike_max: usize,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            ike_sas_max: 16_384,
            half_open_max: 4_096,
            half_open_per_source_max: 512,
            cookie_threshold: 256,
            puzzle_threshold: 2_048,
            puzzle_bits: 16,
            half_open_timeout: Duration::from_secs(30),
            message_octets_max: 32_768,
            children_per_ike_max: 64,
        }
    }
}
