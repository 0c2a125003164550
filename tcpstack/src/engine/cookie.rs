//! Initial sequence numbers (RFC 6528) and SYN cookies.
//!
//! Every SYN to a listening port is answered by a cookie: a sequence number that only this
//! gateway can have made, so that nothing is kept until the handshake's last acknowledgment
//! (RFC 4987, 3.6; RFC 9329, 10). The cookie carries the segment size. Window scale and SACK
//! travel in the low bits of the timestamp, which the peer echoes; a peer without timestamps does
//! without them. All workers share the secret, because the acknowledgment may reach another one.
//!
//! The key of cookies changes with each period ([`keys`]), and a cookie opens one connection
//! ([`spent`]). The keys of sequence numbers and timestamps stay: both must grow from one
//! connection of a pair of ends to the next.

mod keys;
mod spent;

use super::connection::MSS_MIN;
use super::segment::{FourTuple, Options, timestamp};
use crate::config::TcpSecret;
use crate::time::Instant;
use keys::{Key, Keys, PERIOD};
use siphasher::sip::SipHasher13;
use spent::Spent;
use std::hash::{Hash, Hasher};

/// Segment sizes that a cookie can carry, in its low four bits. The peer's is rounded down to one of
/// them; the first is the least segment ever made.
const SEGMENT_SIZES: [u16; 16] = [
    MSS_MIN, 400, 536, 800, 1024, 1220, 1300, 1340, 1360, 1380, 1400, 1420, 1440, 1460, 4312, 8940,
];
const SIZE_BITS: u32 = 4;
const SIZE_MASK: u32 = (1 << SIZE_BITS) - 1;
/// The part of a cookie that depends on the high bits of the peer's sequence number alone, which its
/// first window hardly changes. All bits together keep strangers from guessing a cookie.
const REGION_MASK: u32 = 0xfff0_0000;
/// The low bits: what a peer sends before we have answered lies in a window of 16 bits.
const REGION_BITS: u32 = 16;
/// Rounds of the permutation of these (Luby and Rackoff: three make one that cannot be told from a
/// random one).
const ROUNDS: u8 = 3;
/// Age of the oldest cookie that is accepted, and of its timestamp, in milliseconds.
const COOKIE_AGE_MS: u32 = 2 * (PERIOD.as_millis() as u32) + (1 << OPTION_BITS);
/// The timestamp's low bits: window scale (15: none) and SACK.
const OPTION_BITS: u32 = 5;
const OPTION_MASK: u32 = (1 << OPTION_BITS) - 1;
const NO_SCALE: u32 = 15;

/// What the workers of one gateway make of their common secret.
pub(crate) struct Cookies {
    isn: Key,
    timestamp: Key,
    keys: Keys,
    spent: Spent,
}

/// What a valid cookie tells of the SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recalled {
    pub(crate) mss: u16,
    pub(crate) window_scale: Option<u8>,
    pub(crate) sack_permitted: bool,
    pub(crate) timestamps: bool,
}

impl Cookies {
    /// Derives the keys of each purpose for a stack of so many connections.
    pub(crate) fn new(secret: &TcpSecret, connections_max: u32) -> Self {
        let word = |at: usize| {
            let octets = &secret.octets()[at..at + 8];
            octets.iter().fold(0u64, |word, octet| word << 8 | u64::from(*octet))
        };
        let derive = |purpose: u64| {
            let half = |side: u64| {
                let mut hasher = SipHasher13::new_with_keys(word(0), word(8));
                (word(16), word(24), purpose, side).hash(&mut hasher);
                hasher.finish()
            };
            (half(0), half(1))
        };
        Self {
            isn: derive(0),
            timestamp: derive(2),
            keys: Keys::new(derive(1), secret.since()),
            spent: Spent::new(connections_max),
        }
    }

    /// Lets time pass.
    fn turn(&mut self, now: Instant) {
        if self.keys.turn(now) {
            self.spent.turn();
        }
    }

    /// An initial sequence number (RFC 6528, 3): a clock of 4 microseconds plus a keyed hash.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn isn(&self, tuple: &FourTuple, now: Instant) -> u32 {
        let clock = (now.micros() / 4) as u32;
        clock.wrapping_add(hash(self.isn, tuple) as u32)
    }

    /// The offset of a pair's timestamp clock (RFC 7323, 5.4 and 7.1).
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn timestamp_offset(&self, tuple: &FourTuple) -> u32 {
        hash(self.timestamp, tuple) as u32
    }

    /// The sequence number with which a SYN is answered.
    pub(crate) fn cookie(
        &mut self,
        tuple: &FourTuple,
        peer_isn: u32,
        mss: u16,
        now: Instant,
    ) -> u32 {
        self.turn(now);
        let size = SEGMENT_SIZES.iter().rposition(|held| *held <= mss).unwrap_or(0);
        #[allow(clippy::cast_possible_truncation)] // Sixteen sizes.
        mac(self.keys.current(), tuple, peer_isn, size as u32)
    }

    /// Whether `cookie` may have been given to these ends, and `seq` lies in the first window behind
    /// their SYN. A connection whose state is lost is taken for such a handshake once in 1,024 times
    /// (two keys and two regions for 12 bits): then its peer waits for its RST until it sends or
    /// acknowledges something else, or the keys have changed, at most two periods. With timestamps it
    /// must also echo one of ours that is as young as that.
    pub(crate) fn is_of(
        &mut self,
        tuple: &FourTuple,
        cookie: u32,
        seq: u32,
        timestamps: Option<(u32, u32)>,
        now: Instant,
    ) -> bool {
        self.turn(now);
        let last = seq.wrapping_sub(1);
        let isns = [last, last.wrapping_sub(1 << REGION_BITS)];
        let size = cookie & SIZE_MASK;
        let clock = timestamp(now, self.timestamp_offset(tuple));
        if timestamps.is_some_and(|(_, echo)| clock.wrapping_sub(echo) > COOKIE_AGE_MS) {
            return false;
        }
        self.keys.accepted().any(|key| {
            isns.iter().any(|isn| (mac(key, tuple, *isn, size) ^ cookie) & REGION_MASK == 0)
        })
    }

    /// Remembers that a cookie has opened a connection: it opens no other.
    pub(crate) fn spend(&mut self, tuple: &FourTuple, cookie: u32) {
        self.spent.add(hash(self.isn, (tuple, cookie)));
    }

    /// Whether a cookie has opened a connection before.
    pub(crate) fn is_spent(&self, tuple: &FourTuple, cookie: u32) -> bool {
        self.spent.contains(hash(self.isn, (tuple, cookie)))
    }

    /// The value of the timestamp that accompanies a cookie, with the SYN's options in its low
    /// bits. It may run a few milliseconds behind the clock, never ahead of it.
    pub(crate) fn cookie_timestamp(&self, tuple: &FourTuple, syn: &Options, now: Instant) -> u32 {
        let scale = syn.window_scale.map_or(NO_SCALE, u32::from);
        let bits = scale | u32::from(syn.sack_permitted) << 4;
        let clock = timestamp(now, 0);
        let mut value = clock & !OPTION_MASK | bits;
        if value > clock {
            value = value.wrapping_sub(1 << OPTION_BITS);
        }
        value.wrapping_add(self.timestamp_offset(tuple))
    }

    /// Checks the acknowledgment of a cookie, and recalls what the SYN offered.
    pub(crate) fn recall(
        &mut self,
        tuple: &FourTuple,
        peer_isn: u32,
        cookie: u32,
        timestamps: Option<(u32, u32)>,
        now: Instant,
    ) -> Option<Recalled> {
        self.turn(now);
        let size = cookie & SIZE_MASK;
        if !self.keys.accepted().any(|key| mac(key, tuple, peer_isn, size) == cookie) {
            return None;
        }
        let mss = *SEGMENT_SIZES.get(size as usize)?;
        let Some((_, echo)) = timestamps else {
            return Some(Recalled {
                mss,
                window_scale: None,
                sack_permitted: false,
                timestamps: false,
            });
        };
        let bits = echo.wrapping_sub(self.timestamp_offset(tuple)) & OPTION_MASK;
        #[allow(clippy::cast_possible_truncation)] // Four bits.
        let scale = (bits & 15) as u8;
        Some(Recalled {
            mss,
            window_scale: (u32::from(scale) != NO_SCALE).then_some(scale),
            sack_permitted: bits & 16 != 0,
            timestamps: true,
        })
    }
}

fn hash((k0, k1): Key, of: impl Hash) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(k0, k1);
    of.hash(&mut hasher);
    hasher.finish()
}

/// The high bits depend on a part of the SYN's number that the next segments share, the others on all
/// of it: so an acknowledgment that overtook the first octets can be told from one that is nobody's,
/// and is not taken for the first. In a region these others are a permutation of the number's low bits:
/// a hash would give one in so many of the segments behind the first the same, and the stream would
/// begin in its middle.
#[allow(clippy::cast_possible_truncation)] // A part of the hash, and of the number.
fn mac(key: Key, tuple: &FourTuple, peer_isn: u32, size: u32) -> u32 {
    let region = hash(key, (tuple, peer_isn >> REGION_BITS, size));
    let syn = permute((region, key.0), peer_isn as u16);
    (region as u32) & REGION_MASK | u32::from(syn) << SIZE_BITS | size
}

/// A permutation of the numbers of 16 bits: a Feistel network of keyed hashes.
#[allow(clippy::cast_possible_truncation)] // Halves, and a part of each hash.
fn permute(key: Key, number: u16) -> u16 {
    let (mut high, mut low) = ((number >> 8) as u8, number as u8);
    for round in 0..ROUNDS {
        (high, low) = (low, high ^ hash(key, (round, low)) as u8);
    }
    u16::from(high) << 8 | u16::from(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Duration;
    use std::net::SocketAddr;

    fn tuple(port: u16) -> FourTuple {
        let local: SocketAddr = "192.0.2.1:4500".parse().unwrap();
        FourTuple::new(local, SocketAddr::from(([198, 51, 100, 7], port)))
    }

    fn syn() -> Options {
        Options {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some((5, 0)),
            ..Options::default()
        }
    }

    const NOW: Instant = Instant::from_micros(1_000_000_000);

    fn cookies(octet: u8) -> Cookies {
        Cookies::new(&TcpSecret::new([octet; 32], NOW), 16)
    }

    #[test]
    fn rfc4987_a_cookie_recalls_the_syn_without_state() {
        let mut secret = cookies(7);
        let cookie = secret.cookie(&tuple(1), 99, 1460, NOW);
        let echo = secret.cookie_timestamp(&tuple(1), &syn(), NOW);
        let recalled = secret.recall(&tuple(1), 99, cookie, Some((6, echo)), NOW).unwrap();
        let all =
            Recalled { mss: 1460, window_scale: Some(7), sack_permitted: true, timestamps: true };
        assert_eq!(recalled, all);
        let bare = secret.recall(&tuple(1), 99, cookie, None, NOW).unwrap();
        assert!(!bare.sack_permitted && bare.window_scale.is_none());
    }

    #[test]
    fn another_worker_accepts_it_another_gateway_does_not() {
        let cookie = cookies(7).cookie(&tuple(1), 99, 1460, NOW);
        assert!(cookies(7).recall(&tuple(1), 99, cookie, None, NOW).is_some());
        assert!(cookies(8).recall(&tuple(1), 99, cookie, None, NOW).is_none());
    }

    #[test]
    fn a_cookie_serves_one_handshake_only() {
        let mut secret = cookies(7);
        let cookie = secret.cookie(&tuple(1), 99, 1460, NOW);
        assert!(secret.recall(&tuple(2), 99, cookie, None, NOW).is_none(), "another port");
        assert!(secret.recall(&tuple(1), 98, cookie, None, NOW).is_none(), "another SYN");
        let soon = NOW + PERIOD;
        assert!(secret.recall(&tuple(1), 99, cookie, None, soon).is_some());
        let late = NOW + PERIOD * 2;
        assert!(secret.recall(&tuple(1), 99, cookie, None, late).is_none(), "it ages");
    }

    #[test]
    fn octets_that_overtook_the_first_ones_are_not_a_strangers() {
        let mut secret = cookies(7);
        let cookie = secret.cookie(&tuple(1), 99, 1460, NOW);
        assert!(secret.recall(&tuple(1), 99 + 1448, cookie, None, NOW).is_none());
        assert!(secret.is_of(&tuple(1), cookie, 99 + 1448, None, NOW));
        assert!(secret.is_of(&tuple(1), cookie, 99 + 65_535, None, NOW), "the last of the window");
        assert!(!secret.is_of(&tuple(1), cookie, 99 + 200_000, None, NOW), "beyond it");
        assert!(!secret.is_of(&tuple(2), cookie, 99 + 1448, None, NOW));
        let echo = secret.cookie_timestamp(&tuple(1), &syn(), NOW);
        let late = NOW + PERIOD;
        assert!(secret.is_of(&tuple(1), cookie, 100, Some((6, echo)), late));
        for other in [echo.wrapping_add(100_000), echo.wrapping_sub(100_000), 0] {
            assert!(!secret.is_of(&tuple(1), cookie, 100, Some((6, other)), late), "{other}");
        }
    }

    /// Whoever has lost its connection with us learns so by a RST, hardly ever later than at once.
    #[test]
    fn a_lost_connection_is_hardly_ever_taken_for_a_handshake() {
        let mut secret = cookies(7);
        secret.turn(NOW + PERIOD); // Two keys are accepted.
        let mut taken = 0;
        for n in 0..100_000u32 {
            let (cookie, seq) = (n.wrapping_mul(0x9e37_79b9), n.wrapping_mul(0x85eb_ca6b));
            let now = NOW + PERIOD;
            let echo = timestamp(now, secret.timestamp_offset(&tuple(1)));
            let echo = (n % 2 == 0).then_some((6, echo));
            taken += u32::from(secret.is_of(&tuple(1), cookie, seq, echo, now));
        }
        assert!(taken < 150, "{taken} of 100,000, where 98 are expected");
    }

    /// RFC 9293, 3.10.7.4: of what a peer sends before we have answered, up to the largest first window,
    /// only the octets that follow its SYN begin the stream, however many come before them.
    #[test]
    fn nothing_in_the_first_window_is_taken_for_its_beginning() {
        let mut secret = cookies(7);
        for n in 0..40u16 {
            let isn = u32::from(n).wrapping_mul(0x9e37_79b9);
            let cookie = secret.cookie(&tuple(n), isn, 1460, NOW);
            for behind in 1..16_384 {
                let last = isn.wrapping_add(behind);
                let recalled = secret.recall(&tuple(n), last, cookie, None, NOW);
                assert_eq!(recalled, None, "{behind} octets behind the SYN {isn}");
            }
        }
    }

    #[test]
    fn a_permutation_takes_each_number_to_another() {
        let mut met = vec![false; 1 << 16];
        for number in 0..=u16::MAX {
            let to = usize::from(permute((3, 4), number));
            assert!(!std::mem::replace(&mut met[to], true), "{number} to {to} too");
        }
    }

    /// An evicted peer that goes on sending acknowledges the old cookie with every segment.
    #[test]
    fn the_middle_of_a_stream_is_not_its_beginning() {
        let mut secret = cookies(7);
        let cookie = secret.cookie(&tuple(1), 99, 1460, NOW);
        let taken = (1..200_000u32)
            .filter(|n| {
                secret
                    .recall(&tuple(1), n.wrapping_mul(1448).wrapping_add(99), cookie, None, NOW)
                    .is_some()
            })
            .count();
        assert_eq!(taken, 0, "of 200,000 segments");
    }

    #[test]
    fn guessing_is_hopeless() {
        let mut secret = cookies(7);
        let guessed = (0..1_000_000u32)
            .filter(|i| {
                secret.recall(&tuple(1), 99, i.wrapping_mul(0x9e37_79b9), None, NOW).is_some()
            })
            .count();
        assert!(guessed <= 1, "{guessed} of a million");
    }

    #[test]
    fn rfc6528_isns_of_one_pair_grow_and_of_two_pairs_differ() {
        let secret = cookies(7);
        let later = NOW + Duration::from_millis(1);
        assert_eq!(secret.isn(&tuple(1), later).wrapping_sub(secret.isn(&tuple(1), NOW)), 250);
        assert_ne!(secret.isn(&tuple(1), NOW), secret.isn(&tuple(2), NOW));
    }

    #[test]
    fn the_cookies_timestamp_is_never_ahead_of_the_clock() {
        let secret = cookies(7);
        for ms in 0..200 {
            let now = NOW + Duration::from_millis(ms);
            let clock = timestamp(now, secret.timestamp_offset(&tuple(1)));
            let value = secret.cookie_timestamp(&tuple(1), &syn(), now);
            assert!(clock.wrapping_sub(value) < 64);
        }
    }
}
