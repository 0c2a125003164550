//! A flood of first requests: well-formed IKE_SA_INIT, each with another SPI and nonce, from addresses
//! that are not their sender's. Who answers one speaks to nobody.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

use crate::datagram::datagram;
use crate::namespace::Namespace;
use crate::relay::PORT;

/// Requests a second.
pub const PER_SECOND: u32 = 1_000;
/// From one burst to the next.
const INTERVAL: Duration = Duration::from_millis(2);
/// Where the requests seem to come from, and how many addresses each prefix has. No host of the lab
/// is there (RFC 6890).
const PREFIXES: [(Ipv4Addr, u32, u32); 3] = [
    (Ipv4Addr::new(198, 18, 0, 0), 15, 1 << 17),
    (Ipv4Addr::new(100, 64, 0, 0), 10, 1 << 22),
    (Ipv4Addr::new(203, 0, 113, 0), 24, 1 << 8),
];
const IKE_PORT: u16 = 500;
/// What tells IKE from ESP on port 4500 (RFC 3948, 2.2).
const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// An IKE_SA_INIT request after its initiator's SPI: header, then aes128gcm16-prfsha256-x25519 as the
/// only proposal, a public value and a nonce (RFC 7296, 3.1 to 3.9).
const INIT_HEADER: [u8; 20] =
    [0, 0, 0, 0, 0, 0, 0, 0, 33, 0x20, 34, 0x08, 0, 0, 0, 0, 0, 0, 0, 144];
const PROPOSAL: [u8; 40] = [
    34, 0, 0, 40, 0, 0, 0, 36, 1, 1, 0, 3, // SA payload; proposal 1 for IKE, three transforms
    3, 0, 0, 12, 1, 0, 0, 20, 0x80, 14, 0, 128, // ENCR_AES_GCM_16 with 128 bits
    3, 0, 0, 8, 2, 0, 0, 5, // PRF_HMAC_SHA2_256
    0, 0, 0, 8, 4, 0, 0, 31, // Curve25519
];
const KEY_EXCHANGE: [u8; 8] = [40, 0, 0, 40, 0, 31, 0, 0];
const NONCE: [u8; 4] = [0, 0, 0, 36];

/// An IKE_SA_INIT request that the lab's gateways and strongSwan accept. `spi` is not zero.
pub fn init_request(spi: u64) -> Vec<u8> {
    let spi = spi.to_be_bytes();
    let (public, nonce) = ([9; 32], spi.repeat(4));
    [&spi[..], &INIT_HEADER, &PROPOSAL, &KEY_EXCHANGE, &public, &NONCE, &nonce].concat()
}

/// A running flood. Dropping it ends it.
#[derive(Debug)]
pub struct Flood {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
}

impl Flood {
    /// Starts to send [`PER_SECOND`] requests to `to`, from a router that can reach it. Answers that
    /// come to the router are thrown away there.
    pub fn start(router: &Namespace, to: Ipv4Addr) -> Result<Self> {
        for (prefix, bits, _) in PREFIXES {
            router.run(&format!("ip route replace blackhole {prefix}/{bits}"))?;
        }
        // Of this protocol number: the sender writes the IP header itself.
        let raw = || Ok(socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW))?);
        let socket = router.enter(raw).context("a raw socket")?;
        let shared = Arc::new(Shared::default());
        let sender = Arc::clone(&shared);
        let thread = Some(thread::spawn(move || send(&sender, &socket, to)));
        Ok(Self { shared, thread })
    }

    /// Requests sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// Ends it. Fails if it had ended before.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the flood has ended")?;
        thread.join().map_err(|_| anyhow!("the flood panicked"))?
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // Whoever drops it does not care how it went.
            let _ = self.end();
        }
    }
}

fn send(shared: &Shared, socket: &OwnedFd, to: Ipv4Addr) -> Result<()> {
    let start = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        let due = start.elapsed().as_micros() * u128::from(PER_SECOND) / 1_000_000;
        for number in shared.sent.load(Ordering::Relaxed)..u64::try_from(due)? {
            let packet = request(number, to)?;
            match sendto(socket, &packet, SendFlags::empty(), &SocketAddrV4::new(to, 0)) {
                // What finds no room on the way is lost, as much else of a flood.
                Ok(_) | Err(Errno::NOBUFS) => {}
                Err(error) => return Err(error).context("the flood sends"),
            }
            shared.sent.store(number + 1, Ordering::Relaxed);
        }
        thread::sleep(INTERVAL);
    }
    Ok(())
}

/// The request of this number: from another address each time, to both ports in turn.
fn request(number: u64, to: Ipv4Addr) -> Result<Vec<u8>> {
    let low = u32::try_from(number & u64::from(u32::MAX))?;
    let (prefix, _, addresses) = PREFIXES[number as usize % PREFIXES.len()];
    // Any two numbers that are not far apart give two addresses, by an odd factor (Knuth).
    let mixed = low.wrapping_mul(2_654_435_761);
    let address = Ipv4Addr::from_bits(prefix.to_bits() + mixed % addresses);
    let from = SocketAddrV4::new(address, 1024 | (mixed >> 16) as u16);
    let request = init_request(number + 1);
    if number.is_multiple_of(2) {
        return datagram(from, SocketAddrV4::new(to, IKE_PORT), &request);
    }
    datagram(from, SocketAddrV4::new(to, PORT), &[&NON_ESP_MARKER[..], &request].concat())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn requests_come_from_thousands_of_addresses_of_every_prefix() {
        let to = Ipv4Addr::LOCALHOST;
        let from = |number| {
            let packet = request(number, to).unwrap();
            Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15])
        };
        let all: HashSet<Ipv4Addr> = (0..9_000).map(from).collect();
        assert!(all.len() > 6_000, "{} addresses", all.len());
        for (prefix, bits, _) in PREFIXES {
            let inside = |a: &&Ipv4Addr| (a.to_bits() ^ prefix.to_bits()) >> (32 - bits) == 0;
            assert!(all.iter().filter(inside).count() > 200, "{prefix}/{bits}");
        }
    }
}
