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

    /// A number that means something to `T`.
    pub(crate) fn take_number<T: TryFrom<u16>>(&mut self) -> Option<T> {
        T::try_from(u16::try_from(self.take()?).ok()?).ok()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::ConnInfo;
    use crate::peer::PeerConfig;
    use crate::policy::Policy;
    use crate::sa::{Algorithm, KeyMaterial, Mode, SaConfig, TransportEnds};
    use crate::slot::SlotRef;
    use crate::types::{Name, Path, Prefix, Selector, SelectorList, Transport};
    use proptest::prelude::*;

    fn encoded<R: Record>(value: &R) -> Vec<u64> {
        let mut words = vec![0; R::WORDS];
        let mut out = WordWriter::new(&mut words);
        value.encode(&mut out);
        assert_eq!(out.used(), R::WORDS, "a record writes as many words as it says");
        words
    }

    fn assert_same<R: Record + PartialEq + std::fmt::Debug>(value: &R) {
        let words = encoded(value);
        let mut reader = WordReader::new(&words);
        assert_eq!(R::decode(&mut reader).as_ref(), Some(value));
        assert_eq!(reader.take(), None, "a record reads as many words as it says");
    }

    fn selector() -> Selector {
        let (first, last) = ("10.2.0.0".parse().unwrap(), "10.2.3.255".parse().unwrap());
        Selector::new(first, last, 17, (500, 4500)).unwrap()
    }

    fn mode() -> Mode {
        let address = |text: &str| text.parse().unwrap();
        Mode::Transport(TransportEnds {
            local: address("192.0.2.1"),
            remote: address("198.51.100.7"),
            local_at_peer: address("203.0.113.1"),
            remote_at_peer: address("10.0.0.1"),
        })
    }

    fn sa() -> SaConfig {
        SaConfig {
            peer: SlotRef { index: 3, generation: 9 },
            owner: 2,
            algorithm: Algorithm::Aes256Gcm16,
            esn: true,
            mode: mode(),
            replay_window: 1024,
            spi_in: 0xaabb_0001,
            spi_out: 0xccdd_eeff,
            keymat_in: KeyMaterial::new(&[1; 36]).unwrap(),
            keymat_out: KeyMaterial::new(&[2; 20]).unwrap(),
            name: Name::new("net"),
            created_ns: 5,
            deadline_ns: u64::MAX,
            local: SelectorList::new(&[selector(), Selector::ANY_V6]).unwrap(),
            remote: SelectorList::new(&[Selector::ANY_V4; SelectorList::MAX]).unwrap(),
        }
    }

    #[test]
    fn values_come_out_as_they_went_in() {
        let local = "192.0.2.1:4500".parse().unwrap();
        let remote = "[2001:db8::7]:4500".parse().unwrap();
        let path = Path { transport: Transport::Udp, local, remote, conn: None, pinned: true };
        assert_same(&path);
        assert_same(&ConnInfo { local, remote, originator: true, opened_ns: 7 });
        let (connection, remote_id) = (Name::new("branch"), Name::new("branch.example"));
        for dscp in [None, crate::Dscp::new(46)] {
            assert_same(&PeerConfig { connection, remote_id, owner: 1, path, dscp });
        }
        assert_same(&Policy {
            remote: Prefix::new("10.2.0.0".parse().unwrap(), 16).unwrap(),
            remote_ports: (0, u16::MAX),
            local: selector(),
            sa: SlotRef { index: 1, generation: 2 },
            owner: 3,
            priority: 4,
        });
        assert_same(&Prefix::new("::ffff:0:0".parse().unwrap(), 96).unwrap());
        let mapped = |text: &str| text.parse::<IpAddr>().unwrap();
        let last = mapped("::ffff:10.0.0.1");
        assert_same(&Selector::new(mapped("::"), last, 0, (0, u16::MAX)).unwrap());

        assert_same(&mode());
        assert_same(&Mode::Tunnel);
        let (before, words) = (sa(), encoded(&sa()));
        let after = SaConfig::decode(&mut WordReader::new(&words)).unwrap();
        assert_eq!((after.peer, after.owner, after.esn), (before.peer, 2, true));
        assert_eq!((after.spi_in, after.spi_out), (0xaabb_0001, 0xccdd_eeff));
        assert_eq!(after.keymat_in.as_bytes(), [1; 36]);
        assert_eq!(after.keymat_out.as_bytes(), [2; 20]);
        assert_eq!((after.local, after.remote), (before.local, before.remote));
        assert_eq!((after.created_ns, after.deadline_ns), (5, u64::MAX));
        assert_eq!((after.algorithm, after.replay_window), (Algorithm::Aes256Gcm16, 1024));
        assert_eq!(encoded(&after), words);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn words_that_mean_nothing_are_no_value(
            words in proptest::collection::vec(prop_oneof![0u64..20, any::<u64>()], 0..200),
            at in 0..SaConfig::WORDS,
            word in prop_oneof![0u64..20, any::<u64>()],
        ) {
            let reader = || WordReader::new(&words);
            let _ = Path::decode(&mut reader());
            let _ = PeerConfig::decode(&mut reader());
            let _ = ConnInfo::decode(&mut reader());
            if let Some(policy) = Policy::decode(&mut reader()) {
                prop_assert!(policy.remote.length() <= 128);
            }
            // One damaged word in a value that was whole.
            let mut damaged = encoded(&sa());
            damaged[at] = word;
            if let Some(sa) = SaConfig::decode(&mut WordReader::new(&damaged)) {
                prop_assert!(sa.keymat_in.as_bytes().len() <= KeyMaterial::MAX);
                prop_assert!(sa.local.as_slice().len() <= SelectorList::MAX);
                let _ = sa.name.as_str();
            }
        }
    }
}
