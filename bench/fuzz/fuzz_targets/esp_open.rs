//! ESP: any octets are refused or opened without a panic, and a sealed packet with one octet
//! changed never opens.
#![no_main]

use std::sync::atomic::{AtomicU64, Ordering};

use culvert_esp::{Algorithm, InboundSa, OutboundSa, Provider, ReplayWindow, WINDOW_MIN};
use libfuzzer_sys::fuzz_target;

const SPI: u32 = 0x0102_0304;
const KEYMAT: [u8; 20] = [7; 20];

fn window<'a>(top: &'a AtomicU64, bits: &'a [AtomicU64]) -> ReplayWindow<'a> {
    ReplayWindow::new(top, bits, WINDOW_MIN).expect("a valid window")
}

fuzz_target!(|data: &[u8]| {
    let Some((&[flags, at, change], rest)) = data.split_first_chunk() else { return };
    let provider = if flags & 1 == 0 { Provider::Ring } else { Provider::AesGcm };
    let esn = flags & 2 != 0;
    let inbound = InboundSa::new(provider, Algorithm::Aes128Gcm16, SPI, &KEYMAT, esn)
        .expect("key material of the right length");
    let (top, bits) = (AtomicU64::new(0), [const { AtomicU64::new(0) }; 64]);

    let mut foreign = rest.to_vec();
    if let Some(spi) = foreign.first_chunk_mut() {
        *spi = SPI.to_be_bytes();
    }
    assert!(inbound.open(&mut foreign, &window(&top, &bits)).is_err(), "a forged packet");
    assert_eq!(top.load(Ordering::Relaxed), 0, "a forged packet moved the window");

    let outbound = OutboundSa::new(provider, Algorithm::Aes128Gcm16, SPI, &KEYMAT, esn)
        .expect("key material of the right length");
    let mut sealed = vec![0; OutboundSa::sealed_len(rest.len())];
    let length = outbound.seal(1, 4, rest, &mut sealed).expect("room for the packet");
    assert_eq!(length, sealed.len());
    let mut changed = sealed.clone();
    let at = usize::from(at) % changed.len();
    changed[at] ^= change;
    let opened = inbound.open(&mut changed, &window(&top, &bits));
    assert_eq!(opened.is_ok(), change == 0, "one octet decides");
    if change != 0 {
        let opened = inbound.open(&mut sealed, &window(&top, &bits)).expect("an authentic packet");
        assert_eq!(&sealed[opened.inner], rest);
    }
});
