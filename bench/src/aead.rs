//! AES-GCM by itself, called as an ESP implementation has to: one packet at a time, in place, ICV
//! apart.

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes128Gcm, KeyInit};
use culvert_dpdk::tsc;
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::measure::{Case, SIZES};

const KEY: [u8; 16] = [1; 16];
const AAD: [u8; 12] = [2; 12];

/// One provider's seal.
trait Seal {
    fn seal(&self, nonce: [u8; 12], text: &mut [u8]) -> [u8; 16];
}

impl Seal for LessSafeKey {
    fn seal(&self, nonce: [u8; 12], text: &mut [u8]) -> [u8; 16] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.seal_in_place_separate_tag(nonce, Aad::from(AAD), text);
        // It fails for texts longer than any packet only.
        tag.ok().and_then(|tag| tag.as_ref().try_into().ok()).unwrap_or_default()
    }
}

impl Seal for Aes128Gcm {
    fn seal(&self, nonce: [u8; 12], text: &mut [u8]) -> [u8; 16] {
        let tag = self.encrypt_inout_detached(&nonce.into(), &AAD, text.into());
        tag.map(Into::into).unwrap_or_default()
    }
}

struct Aead<K> {
    name: &'static str,
    key: K,
    text: Vec<u8>,
    counter: u64,
}

impl<K: Seal> Case for Aead<K> {
    fn name(&self) -> String {
        format!("AES-128-GCM seal, {}", self.name)
    }

    fn size(&self) -> usize {
        self.text.len()
    }

    fn run(&mut self, packets: usize) -> u64 {
        let mut nonce = [0; 12];
        let start = tsc();
        for _ in 0..packets {
            self.counter += 1;
            nonce[4..].copy_from_slice(&self.counter.to_be_bytes());
            std::hint::black_box(self.key.seal(nonce, &mut self.text));
        }
        tsc().wrapping_sub(start)
    }
}

/// Every provider and size.
pub(crate) fn cases() -> anyhow::Result<Vec<Box<dyn Case>>> {
    let mut cases: Vec<Box<dyn Case>> = Vec::new();
    for size in SIZES {
        let text = vec![3; size];
        let key = UnboundKey::new(&AES_128_GCM, &KEY).map_err(|_| anyhow::anyhow!("ring"))?;
        let key = LessSafeKey::new(key);
        cases.push(Box::new(Aead { name: "ring", key, text: text.clone(), counter: 0 }));
        let key = Aes128Gcm::new(&KEY.into());
        cases.push(Box::new(Aead { name: "aes-gcm", key, text, counter: 0 }));
    }
    Ok(cases)
}
