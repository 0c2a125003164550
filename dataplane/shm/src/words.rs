//! Values as 64-bit words: how everything of more than one word is written to the shared memory.
//!
//! A [`Record`] has a fixed number of words and encodes and decodes itself. Decoding is total:
//! words that mean nothing give `None`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A value of a fixed number of words.
pub(crate) trait Record: Sized {
    /// Words that [`Record::encode`] writes and [`Record::decode`] reads, no more.
    const WORDS: usize;
    fn encode(&self, out: &mut WordWriter<'_>);
    fn decode(words: &mut WordReader<'_>) -> Option<Self>;
}

/// Writes words one after the other; what does not fit is dropped (the sizes are tested).
pub(crate) struct WordWriter<'a> {
    words: &'a mut [u64],
    used: usize,
}

impl<'a> WordWriter<'a> {
    pub(crate) fn new(words: &'a mut [u64]) -> WordWriter<'a> {
        WordWriter { words, used: 0 }
    }

    pub(crate) fn put(&mut self, word: u64) {
        debug_assert!(self.used < self.words.len(), "a record is longer than it says");
        if let Some(slot) = self.words.get_mut(self.used) {
            *slot = word;
            self.used += 1;
        }
    }

    /// Four values of at most 16 bits share a word.
    pub(crate) fn put_quad(&mut self, quad: [u16; 4]) {
        let [a, b, c, d] = quad.map(u64::from);
        self.put(a | b << 16 | c << 32 | d << 48);
    }

    /// Two values of 32 bits share a word.
    pub(crate) fn put_pair(&mut self, low: u32, high: u32) {
        self.put(u64::from(low) | u64::from(high) << 32);
    }

    /// Octets, padded with zeros to whole words.
    pub(crate) fn put_octets(&mut self, octets: &[u8]) {
        for chunk in octets.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.put(u64::from_le_bytes(word));
        }
    }

    /// Two words: an address in the 16-octet form, IPv4 mapped (RFC 4291, 2.5.5.2).
    pub(crate) fn put_address(&mut self, address: IpAddr) {
        let value = address_bits(address);
        self.put(value as u64);
        self.put((value >> 64) as u64);
    }

    /// Three words: address and port.
    pub(crate) fn put_socket(&mut self, socket: SocketAddr) {
        self.put_address(socket.ip());
        self.put(u64::from(socket.port()));
    }

    /// Words written so far.
    pub(crate) fn used(&self) -> usize {
        self.used
    }
}

/// Reads what a [`WordWriter`] wrote.
pub(crate) struct WordReader<'a> {
    words: &'a [u64],
}

impl<'a> WordReader<'a> {
    pub(crate) fn new(words: &'a [u64]) -> WordReader<'a> {
        WordReader { words }
    }

    pub(crate) fn take(&mut self) -> Option<u64> {
        let (&first, rest) = self.words.split_first()?;
        self.words = rest;
        Some(first)
    }

    pub(crate) fn take_quad(&mut self) -> Option<[u16; 4]> {
        let word = self.take()?;
        Some([word as u16, (word >> 16) as u16, (word >> 32) as u16, (word >> 48) as u16])
    }

    pub(crate) fn take_pair(&mut self) -> Option<(u32, u32)> {
        let word = self.take()?;
        Some((word as u32, (word >> 32) as u32))
    }

    pub(crate) fn take_octets(&mut self, out: &mut [u8]) -> Option<()> {
        for chunk in out.chunks_mut(8) {
            let word = self.take()?.to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        Some(())
    }

    pub(crate) fn take_address(&mut self) -> Option<IpAddr> {
        let low = u128::from(self.take()?);
        let high = u128::from(self.take()?);
        Some(address_from_bits(low | high << 64))
    }

    pub(crate) fn take_socket(&mut self) -> Option<SocketAddr> {
        let address = self.take_address()?;
        let port = u16::try_from(self.take()?).ok()?;
        Some(SocketAddr::new(address, port))
    }
}

/// Words of an address.
pub(crate) const ADDRESS_WORDS: usize = 2;
/// Words of an address with a port.
pub(crate) const SOCKET_WORDS: usize = 3;

fn address_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address_from_bits(bits: u128) -> IpAddr {
    let v6 = Ipv6Addr::from_bits(bits);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), |v4: Ipv4Addr| IpAddr::V4(v4))
}
