//! ESP by itself: seal from one buffer into another, open in place with replay check.

use std::sync::atomic::AtomicU64;

use culvert_dpdk::tsc;
use culvert_esp::{Algorithm, InboundSa, NEXT_HEADER_IPV4, OutboundSa, Provider, ReplayWindow};

use crate::measure::{Case, SIZES};

/// Packets sealed in advance of being opened: few enough to stay in the cache.
const BATCH: usize = 32;
const WINDOW: u32 = 1024;
const SPI: u32 = 0x1000_0001;
const KEYMAT: [u8; 20] = [9; 20];

/// Both halves of one SA, as the stream benchmarks use them, too.
pub(crate) struct Pair {
    pub(crate) outbound: OutboundSa,
    pub(crate) inbound: InboundSa,
    pub(crate) sequence: u64,
    top: AtomicU64,
    bits: Vec<AtomicU64>,
}

impl Pair {
    pub(crate) fn new(provider: Provider) -> anyhow::Result<Self> {
        let algorithm = Algorithm::Aes128Gcm16;
        Ok(Self {
            outbound: OutboundSa::new(provider, algorithm, SPI, &KEYMAT, true)?,
            inbound: InboundSa::new(provider, algorithm, SPI, &KEYMAT, true)?,
            sequence: 0,
            top: AtomicU64::new(0),
            bits: (0..WINDOW / 32).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// Seals `inner` with the next sequence number into `out`; octets written.
    pub(crate) fn seal(&mut self, inner: &[u8], out: &mut [u8]) -> usize {
        self.sequence += 1;
        // The caller's buffer is long enough, and the numbers last for centuries.
        self.outbound.seal(self.sequence, NEXT_HEADER_IPV4, inner, out).unwrap_or(0)
    }

    /// Opens `packet` in place; whether that succeeded.
    pub(crate) fn open(&self, packet: &mut [u8]) -> bool {
        ReplayWindow::new(&self.top, &self.bits, WINDOW)
            .is_some_and(|window| self.inbound.open(packet, &window).is_ok())
    }
}

struct Seal {
    provider: Provider,
    pair: Pair,
    inner: Vec<u8>,
    out: Vec<u8>,
}

impl Case for Seal {
    fn name(&self) -> String {
        format!("ESP seal, {}", self.provider)
    }

    fn size(&self) -> usize {
        self.inner.len()
    }

    fn run(&mut self, packets: usize) -> u64 {
        let start = tsc();
        for _ in 0..packets {
            std::hint::black_box(self.pair.seal(&self.inner, &mut self.out));
        }
        tsc().wrapping_sub(start)
    }
}

struct Open {
    provider: Provider,
    pair: Pair,
    inner: Vec<u8>,
    sealed: Vec<Vec<u8>>,
}

impl Case for Open {
    fn name(&self) -> String {
        format!("ESP open, {}", self.provider)
    }

    fn size(&self) -> usize {
        self.inner.len()
    }

    fn run(&mut self, packets: usize) -> u64 {
        let mut cycles = 0;
        for _ in 0..packets / BATCH {
            for sealed in &mut self.sealed {
                self.pair.seal(&self.inner, sealed);
            }
            let start = tsc();
            let opened =
                self.sealed.iter_mut().filter_map(|sealed| self.pair.open(sealed).then_some(()));
            let opened = opened.count();
            cycles += tsc().wrapping_sub(start);
            assert_eq!(opened, BATCH, "every packet opens");
        }
        cycles
    }
}

/// Every provider, direction and size.
pub(crate) fn cases() -> anyhow::Result<Vec<Box<dyn Case>>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for size in SIZES {
        for provider in Provider::ALL {
            let (inner, out) = (vec![3; size], vec![0; OutboundSa::sealed_len(size)]);
            let sealed = vec![out.clone(); BATCH];
            let pair = Pair::new(provider)?;
            cases.push(Box::new(Seal { provider, pair, inner: inner.clone(), out }));
            let pair = Pair::new(provider)?;
            cases.push(Box::new(Open { provider, pair, inner, sealed }));
        }
    }
    Ok(cases)
}
