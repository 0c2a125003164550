//! The puzzle of RFC 8019, 7.1.2: four keys under which the PRF of a cookie ends with so many zero
//! bits.

use crate::crypto::prf;
use crate::proposal::Prf;

/// Keys of a solution.
const KEYS: usize = 4;
/// Octets of each key that this side finds.
const KEY_LEN: usize = 8;
/// Most octets of a solution of a peer.
const SOLUTION_MAX: usize = 4 * 64;
/// The hardest puzzle that this side solves: some millions of PRFs (RFC 8019, 9).
pub(crate) const BITS_MAX: u8 = 20;
/// What it chooses where the responder leaves it the choice.
const BITS_OWN: u8 = 8;
/// Keys tried in one go, before others get their turn.
const SLICE: u64 = 4096;

fn zero_bits(f: Prf, key: &[u8], cookie: &[u8]) -> u32 {
    let mut zeros = 0;
    for octet in prf(f, key, &[cookie]).iter().rev() {
        zeros += octet.trailing_zeros();
        if *octet != 0 {
            break;
        }
    }
    zeros
}

/// Whether these are four different keys of one size that each solve the puzzle.
pub(crate) fn verify(f: Prf, cookie: &[u8], bits: u8, solution: &[u8]) -> bool {
    let len = solution.len() / KEYS;
    if len == 0 || solution.len() > SOLUTION_MAX || !solution.len().is_multiple_of(KEYS) {
        return false;
    }
    let keys: Vec<&[u8]> = solution.chunks(len).collect();
    let different = keys.iter().enumerate().all(|(n, key)| !keys[..n].contains(key));
    different && keys.iter().all(|key| zero_bits(f, key, cookie) >= u32::from(bits))
}

/// A puzzle that is being solved.
pub(crate) struct Solving {
    f: Prf,
    cookie: Vec<u8>,
    bits: u8,
    next: u64,
    solution: Vec<u8>,
}

impl Solving {
    /// The puzzle of a PUZZLE notification; `None` where it is malformed or too hard.
    pub(crate) fn new(notify: &[u8], cookie: &[u8]) -> Option<Self> {
        let [high, low, bits] = *notify else { return None };
        let f = Prf::from_transform_id(u16::from_be_bytes([high, low]))?;
        let bits = if bits == 0 { BITS_OWN } else { bits };
        let cookie = cookie.to_vec();
        (bits <= BITS_MAX).then_some(Self { f, cookie, bits, next: 0, solution: Vec::new() })
    }

    /// Goes on for a while; the solution once it is there.
    pub(crate) fn go_on(&mut self) -> Option<&[u8]> {
        for _ in 0..SLICE {
            if self.solution.len() == KEYS * KEY_LEN {
                return Some(&self.solution);
            }
            let key = self.next.to_be_bytes();
            self.next += 1;
            if zero_bits(self.f, &key, &self.cookie) >= u32::from(self.bits) {
                self.solution.extend_from_slice(&key);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 8019, 7.1.3: trailing zero bits of PRF(key, cookie), of four different keys of one size.
    #[test]
    fn four_different_keys_must_each_reach_the_bits() {
        let f = Prf::HmacSha256;
        let trailing = |key: &[u8]| {
            let result = prf(f, key, &[b"cookie"]);
            u128::from_be_bytes(result[16..].try_into().unwrap()).trailing_zeros()
        };
        let good: Vec<[u8; 4]> =
            (0..9999u32).map(u32::to_be_bytes).filter(|key| trailing(key) >= 6).take(4).collect();
        let bits = good.iter().map(|key| trailing(key)).min().unwrap() as u8;
        assert!(verify(f, b"cookie", bits, &good.concat()));
        assert!(!verify(f, b"cookie", bits + 1, &good.concat()), "the least counts");
        assert!(!verify(f, b"cookie", bits, &[good[0], good[1], good[2], good[0]].concat()));
        assert!(!verify(f, b"cookie", bits, &good[..3].concat()), "three");
        assert!(!verify(f, b"cookie", 0, &[]));
    }

    #[test]
    fn what_is_found_is_right() {
        let mut solving = Solving::new(&[0, 5, 10], b"cookie").unwrap();
        let solution = (0..100).find_map(|_| solving.go_on().map(<[u8]>::to_vec)).unwrap();
        assert!(verify(Prf::HmacSha256, b"cookie", 10, &solution));
        assert!(!verify(Prf::HmacSha256, b"another", 10, &solution));
        assert!(Solving::new(&[0, 5, BITS_MAX + 1], b"cookie").is_none(), "too hard");
        assert!(Solving::new(&[0, 2, 1], b"cookie").is_none(), "an unknown PRF");
    }
}
