//! SA slots: one for each CHILD SA pair.
//!
//! Control's half holds what IKE negotiated and does not change while the SA lives. The owner
//! worker's half holds what moves with every packet, split by direction so that each touches one
//! cache line besides the replay window's. The worker's half carries the generation that it belongs
//! to: a restarted dataplane goes on where its predecessor stopped when the generations agree, and
//! starts at sequence number 1 only for an SA with new keys.

mod moving;
mod sequence;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};

use num_enum::TryFromPrimitive;
use zeroize::Zeroize;

use crate::slot::{Slot, SlotRef};
use crate::types::{Name, SelectorList};
use crate::words::{ADDRESS_WORDS, Record, WordReader, WordWriter};

pub use moving::{SaCounts, SaDrop, SaWriter};
pub(crate) use moving::{SaMoving, add};
pub use sequence::{SequenceCounter, SequenceExhausted};

/// Packets of the largest replay window.
pub const REPLAY_WINDOW_MAX: u32 = 4096;

/// Words of the replay window's bits.
pub const REPLAY_WORDS: usize = REPLAY_WINDOW_MAX as usize / 64;

/// SPIs below this are reserved (RFC 4303, 2.1).
pub const SPI_MIN: u32 = 256;

/// Key and salt of one direction (RFC 4106, 8.1); overwritten when dropped, never shown.
#[derive(Clone, Zeroize)]
#[zeroize(drop)]
pub struct KeyMaterial {
    octets: [u8; KeyMaterial::MAX],
    used: u8,
}

impl KeyMaterial {
    /// Octets at most: an AES-256 key and the salt.
    pub const MAX: usize = 36;

    /// A copy of the key material; `None` when it is longer than [`KeyMaterial::MAX`].
    pub fn new(octets: &[u8]) -> Option<KeyMaterial> {
        let mut material = KeyMaterial { octets: [0; KeyMaterial::MAX], used: 0 };
        material.octets.get_mut(..octets.len())?.copy_from_slice(octets);
        material.used = octets.len() as u8;
        Some(material)
    }

    /// Key, then salt.
    pub fn as_bytes(&self) -> &[u8] {
        &self.octets[..usize::from(self.used)]
    }
}

impl Record for KeyMaterial {
    const WORDS: usize = 1 + KeyMaterial::MAX.div_ceil(8);

    fn encode(&self, out: &mut WordWriter<'_>) {
        out.put(u64::from(self.used));
        out.put_octets(&self.octets);
    }

    fn decode(words: &mut WordReader<'_>) -> Option<KeyMaterial> {
        let used = u8::try_from(words.take()?).ok()?;
        let mut material = KeyMaterial { octets: [0; KeyMaterial::MAX], used };
        words.take_octets(&mut material.octets)?;
        (usize::from(used) <= KeyMaterial::MAX).then_some(material)
    }
}

/// The algorithm of an SA, both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, TryFromPrimitive)]
#[repr(u16)]
pub enum Algorithm {
    /// AES-GCM, 128-bit key, 16-octet ICV (RFC 4106).
    Aes128Gcm16 = 1,
    /// AES-GCM, 256-bit key, 16-octet ICV (RFC 4106).
    Aes256Gcm16 = 2,
}

impl Algorithm {
    /// Octets of key material of one direction, salt included.
    pub fn keymat_len(self) -> usize {
        match self {
            Algorithm::Aes128Gcm16 => 20,
            Algorithm::Aes256Gcm16 => 36,
        }
    }
}

/// What an SA's packets hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Whole IP packets.
    Tunnel,
    /// What packets between these addresses carry (RFC 4301, 4.1).
    Transport(TransportEnds),
}

/// The addresses of an SA in transport mode, all of one family. Without a NAT in between, both
/// views are one (RFC 7296, 2.23.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransportEnds {
    /// Address of this end in inner packets.
    pub local: IpAddr,
    /// Address of the peer in inner packets.
    pub remote: IpAddr,
    /// This end as the peer sees it.
    pub local_at_peer: IpAddr,
    /// The peer as it sees itself.
    pub remote_at_peer: IpAddr,
}

impl Record for Mode {
    const WORDS: usize = 1 + 4 * ADDRESS_WORDS;

    fn encode(&self, out: &mut WordWriter<'_>) {
        let (number, addresses) = match self {
            Mode::Tunnel => (1, [IpAddr::V4(Ipv4Addr::UNSPECIFIED); 4]),
            Mode::Transport(ends) => {
                (2, [ends.local, ends.remote, ends.local_at_peer, ends.remote_at_peer])
            }
        };
        out.put(number);
        addresses.into_iter().for_each(|address| out.put_address(address));
    }

    fn decode(words: &mut WordReader<'_>) -> Option<Mode> {
        let number = words.take()?;
        let mut next = || words.take_address();
        let (local, remote) = (next()?, next()?);
        let (local_at_peer, remote_at_peer) = (next()?, next()?);
        match number {
            1 => Some(Mode::Tunnel),
            2 => Some(Mode::Transport(TransportEnds {
                local,
                remote,
                local_at_peer,
                remote_at_peer,
            })),
            _ => None,
        }
    }
}

/// What control says of an SA; it does not change while the SA lives.
#[derive(Clone)]
pub struct SaConfig {
    /// The peer at the other end, whose path the packets take.
    pub peer: SlotRef,
    /// The worker that owns the SA (and all of the peer's).
    pub owner: u16,
    /// The algorithm of both directions.
    pub algorithm: Algorithm,
    /// Whether sequence numbers are extended (RFC 4303, 2.2.1), both directions.
    pub esn: bool,
    /// What the packets hold.
    pub mode: Mode,
    /// Packets of the replay window: a multiple of 64, at most [`REPLAY_WINDOW_MAX`].
    pub replay_window: u32,
    /// SPI of packets from the peer; its low bits are the slot's index.
    pub spi_in: u32,
    /// SPI of packets to the peer.
    pub spi_out: u32,
    /// Key and salt for packets from the peer.
    pub keymat_in: KeyMaterial,
    /// Key and salt for packets to the peer.
    pub keymat_out: KeyMaterial,
    /// The child's name in the configuration.
    pub name: Name,
    /// When it was installed, [`crate::monotonic_ns`].
    pub created_ns: u64,
    /// No packet is sealed or opened from then on, [`crate::monotonic_ns`]; `u64::MAX`: never.
    /// It ends an SA whose control process does not come back.
    pub deadline_ns: u64,
    /// Selectors of this side: sources of outbound, destinations of inbound packets.
    pub local: SelectorList,
    /// Selectors of the peer's side.
    pub remote: SelectorList,
}

impl SaConfig {
    /// Owner and inbound SPI, from the first words of the encoded configuration.
    pub(crate) fn owner_and_spi(words: &[AtomicU64]) -> Option<(u16, u32)> {
        let word = |index: usize| Some(words.get(index)?.load(Ordering::Relaxed));
        let (peer, replay_window) = (SlotRef::WORDS, 1);
        let quad = word(peer)?;
        let pair = word(peer + 1 + replay_window)?;
        Some((quad as u16, pair as u32))
    }
}

impl Record for SaConfig {
    const WORDS: usize = 1
        + 1
        + 1
        + 1
        + 2 * KeyMaterial::WORDS
        + Name::WORDS
        + 2
        + 2 * SelectorList::WORDS
        + Mode::WORDS;

    fn encode(&self, out: &mut WordWriter<'_>) {
        self.peer.encode(out);
        out.put_quad([self.owner, self.algorithm as u16, u16::from(self.esn), 0]);
        out.put(u64::from(self.replay_window));
        out.put_pair(self.spi_in, self.spi_out);
        self.keymat_in.encode(out);
        self.keymat_out.encode(out);
        self.name.encode(out);
        out.put(self.created_ns);
        out.put(self.deadline_ns);
        self.local.encode(out);
        self.remote.encode(out);
        self.mode.encode(out);
    }

    fn decode(words: &mut WordReader<'_>) -> Option<SaConfig> {
        let peer = SlotRef::decode(words)?;
        let [owner, algorithm, esn, _] = words.take_quad()?;
        let replay_window = u32::try_from(words.take()?).ok()?;
        let (spi_in, spi_out) = words.take_pair()?;
        Some(SaConfig {
            peer,
            owner,
            algorithm: Algorithm::try_from(algorithm).ok()?,
            esn: esn == 1,
            replay_window,
            spi_in,
            spi_out,
            keymat_in: KeyMaterial::decode(words)?,
            keymat_out: KeyMaterial::decode(words)?,
            name: Name::decode(words)?,
            created_ns: words.take()?,
            deadline_ns: words.take()?,
            local: SelectorList::decode(words)?,
            remote: SelectorList::decode(words)?,
            mode: Mode::decode(words)?,
        })
    }
}

/// An SA slot: control's half, then the worker's.
#[repr(C, align(64))]
pub(crate) struct SaSlot {
    pub(crate) config: Slot<{ SaConfig::WORDS }>,
    pub(crate) moving: SaMoving,
}
