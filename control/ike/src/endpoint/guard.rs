//! Cookies (RFC 7296, 2.6) and puzzles (RFC 8019): what a peer has to return before this side keeps
//! anything for it.
//!
//! A cookie shows that the peer receives at its address. Over TCP the connection has shown that, so
//! that there a cookie only comes with a puzzle, and never holds the port (RFC 9329, 6.3).
//!
//! None is asked for in IKE_AUTH (RFC 8019, 7.2), where it is optional: until IKE_AUTH comes nothing is
//! computed for a peer that the puzzle of IKE_SA_INIT would not have paid for, and the number of
//! half-open SAs of one source is limited.

use std::net::IpAddr;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{DropReason, Received};
use crate::crypto::{equal, prf};
use crate::host::Host;
use crate::message::{Message, NotifyType, Payload, TransformType};
use crate::path::{Path, Transport};
use crate::proposal::Prf;
use crate::puzzle;
use crate::time::Instant;

/// How long a secret makes cookies; those of the one before are still taken.
const SECRET_LIFE: Duration = Duration::from_secs(60);

/// A secret that makes cookies, and the octet that names it in them.
struct CookieSecret {
    name: u8,
    octets: Zeroizing<[u8; 32]>,
}

/// Makes and checks cookies.
#[derive(Default)]
pub(super) struct Guard {
    secrets: Vec<CookieSecret>,
    since: Option<Instant>,
}

/// What a first request may do.
pub(super) enum Verdict {
    /// It is let in.
    Pass,
    /// It is to come again with these.
    Return(Vec<Payload>),
    /// Nothing is answered.
    Drop(DropReason),
}

/// What is asked of peers at present.
#[derive(Clone, Copy)]
pub(super) enum Demand {
    Cookie,
    /// A cookie and a puzzle of this many bits.
    Puzzle(u8),
}

impl Demand {
    /// What becomes of a request that was answered with it.
    pub(super) fn received(self) -> Received {
        match self {
            Self::Cookie => Received::CookieDemanded,
            Self::Puzzle(_) => Received::PuzzleDemanded,
        }
    }
}

impl Guard {
    fn renew(&mut self, now: Instant, host: &mut dyn Host) {
        if self.since.is_some_and(|since| now.since(since) < SECRET_LIFE) {
            return;
        }
        let name = self.secrets.first().map_or(0, |secret| secret.name.wrapping_add(1));
        let mut octets = Zeroizing::new([0; 32]);
        host.random(&mut *octets);
        // One that is long out of use is not kept for the first cookie after a quiet time.
        let recent = self.since.is_some_and(|since| now.since(since) < SECRET_LIFE * 2);
        self.secrets.truncate(usize::from(recent));
        self.secrets.insert(0, CookieSecret { name, octets });
        self.since = Some(now);
    }

    /// `name | bits | MAC(Ni | IPi | SPIi | bits)`.
    fn cookie(secret: &CookieSecret, bits: u8, spi_i: u64, nonce: &[u8], from: IpAddr) -> Vec<u8> {
        let address = match from {
            IpAddr::V4(a) => a.octets().to_vec(),
            IpAddr::V6(a) => a.octets().to_vec(),
        };
        let spi = spi_i.to_be_bytes();
        let mac = prf(Prf::HmacSha256, &*secret.octets, &[nonce, &address, &spi, &[bits]]);
        [&[secret.name, bits][..], &mac].concat()
    }

    /// Judges a first request.
    pub(super) fn judge(
        &mut self,
        now: Instant,
        host: &mut dyn Host,
        path: &Path,
        message: &Message,
        demand: Demand,
    ) -> Verdict {
        let bits = match demand {
            Demand::Cookie if path.transport == Transport::Tcp => return Verdict::Pass,
            Demand::Cookie => 0,
            Demand::Puzzle(bits) => bits,
        };
        let unusable = Verdict::Drop(DropReason::BadPayload);
        let Some(nonce) = message.nonce() else { return unusable };
        self.renew(now, host);
        let (spi_i, from) = (message.header.spi_i, path.remote.ip());
        let function = puzzle_prf(message);
        if let Some(returned) = message.notify(NotifyType::COOKIE).map(|n| &n.data[..]) {
            let good = self.secrets.iter().any(|secret| {
                let asked = returned.get(1).copied().unwrap_or_default();
                let cookie = Self::cookie(secret, asked, spi_i, nonce, from);
                asked >= bits && equal(&cookie, returned)
            });
            match (good, bits, function) {
                (true, 0, _) => return Verdict::Pass,
                (true, _, Some(f)) if solved(message, f, returned, bits) => return Verdict::Pass,
                // A wrong solution costs its sender another cookie; nothing here.
                (true, ..) => return Verdict::Drop(DropReason::PuzzleUnsolved),
                (false, ..) => {}
            }
        }
        let Some(secret) = self.secrets.first() else { return unusable };
        let cookie = Self::cookie(secret, bits, spi_i, nonce, from);
        let mut payloads = vec![Payload::notify(NotifyType::COOKIE, cookie)];
        if bits > 0 {
            let Some(f) = function else { return unusable };
            let [high, low] = f.transform_id().to_be_bytes();
            payloads.push(Payload::notify(NotifyType::PUZZLE, [high, low, bits]));
        }
        Verdict::Return(payloads)
    }
}

/// The PRF of the puzzle: the first known one that the peer offers (RFC 8019, 7.1.1.1).
fn puzzle_prf(message: &Message) -> Option<Prf> {
    message.payloads.iter().find_map(|payload| match payload {
        Payload::Sa(proposals) => proposals
            .iter()
            .flat_map(|p| p.of_type(TransformType::PRF))
            .find_map(|transform| Prf::from_transform_id(transform.id)),
        _ => None,
    })
}

fn solved(message: &Message, f: Prf, cookie: &[u8], bits: u8) -> bool {
    let solution = message.payloads.iter().find_map(|payload| match payload {
        Payload::PuzzleSolution(keys) => Some(&keys[..]),
        _ => None,
    });
    solution.is_some_and(|keys| puzzle::verify(f, cookie, bits, keys))
}
