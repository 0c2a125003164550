//! SA slots: one for each CHILD SA pair.
//!
//! Control's half holds what IKE negotiated and does not change while the SA lives. The owner
//! worker's half holds what moves with every packet, split by direction so that each touches one
//! cache line besides the replay window's. The worker's half carries the generation that it belongs
//! to: a restarted dataplane goes on where its predecessor stopped when the generations agree, and
//! starts at sequence number 1 only for an SA with new keys.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use zeroize::Zeroize;

use crate::slot::{Slot, SlotRef};
use crate::types::{Name, SelectorList};
use crate::words::{ADDRESS_WORDS, Record, WordReader, WordWriter};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Algorithm {
    /// AES-GCM, 128-bit key, 16-octet ICV (RFC 4106).
    Aes128Gcm16 = 1,
    /// AES-GCM, 256-bit key, 16-octet ICV (RFC 4106).
    Aes256Gcm16 = 2,
}

impl Algorithm {
    fn from_number(number: u16) -> Option<Algorithm> {
        match number {
            1 => Some(Algorithm::Aes128Gcm16),
            2 => Some(Algorithm::Aes256Gcm16),
            _ => None,
        }
    }

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
            algorithm: Algorithm::from_number(algorithm)?,
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

/// Why a packet of an SA was dropped, as the SA's own counts tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum SaDrop {
    /// Received before, or behind the replay window.
    Replay,
    /// The ICV is wrong.
    Icv,
    /// The packet's form is wrong: length, padding, next header.
    Malformed,
    /// The inner packet is outside the selectors.
    Selector,
    /// The SA is past its deadline.
    Expired,
    /// No sequence number is left.
    Exhausted,
    /// The path could not take the packet: no connection, no room, no route.
    Path,
}

impl SaDrop {
    /// All of them, in the order of [`SaCounts::drops`].
    pub const ALL: [SaDrop; 7] = [
        SaDrop::Replay,
        SaDrop::Icv,
        SaDrop::Malformed,
        SaDrop::Selector,
        SaDrop::Expired,
        SaDrop::Exhausted,
        SaDrop::Path,
    ];

    /// Its name in tables and metrics.
    pub fn name(self) -> &'static str {
        match self {
            SaDrop::Replay => "replay",
            SaDrop::Icv => "icv",
            SaDrop::Malformed => "malformed",
            SaDrop::Selector => "selector",
            SaDrop::Expired => "expired",
            SaDrop::Exhausted => "exhausted",
            SaDrop::Path => "path",
        }
    }
}

/// Counts of one direction.
#[repr(C)]
struct Flow {
    packets: AtomicU64,
    octets: AtomicU64,
    last_ns: AtomicU64,
}

/// The owner worker's half of an SA slot.
#[repr(C, align(64))]
pub(crate) struct SaMoving {
    // Outbound.
    generation: AtomicU64,
    next_sequence: AtomicU64,
    outbound: Flow,
    _outbound_pad: [AtomicU64; 3],
    // Inbound.
    replay_top: AtomicU64,
    inbound: Flow,
    _inbound_pad: [AtomicU64; 4],
    replay_bits: [AtomicU64; REPLAY_WORDS],
    drops: [AtomicU64; 8],
}

/// An SA slot: control's half, then the worker's.
#[repr(C, align(64))]
pub(crate) struct SaSlot {
    pub(crate) config: Slot<{ SaConfig::WORDS }>,
    pub(crate) moving: SaMoving,
}

/// What an SA has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaCounts {
    /// Packets opened and let through.
    pub packets_in: u64,
    /// Octets of inner packets that were opened and let through.
    pub octets_in: u64,
    /// When the last packet came in, [`crate::monotonic_ns`]; 0: none yet.
    pub last_in_ns: u64,
    /// Packets sealed.
    pub packets_out: u64,
    /// Octets of inner packets that were sealed.
    pub octets_out: u64,
    /// When the last packet went out, [`crate::monotonic_ns`]; 0: none yet.
    pub last_out_ns: u64,
    /// The sequence number of the next packet out.
    pub next_sequence: u64,
    /// The highest sequence number received.
    pub replay_top: u64,
    /// Dropped packets, in the order of [`SaDrop::ALL`].
    pub drops: [u64; SaDrop::ALL.len()],
}

impl SaMoving {
    /// The counts, if they are those of this generation; `None` before the worker has taken the
    /// SA up. Each number is whole; together they are as of nearly the same time.
    pub(crate) fn counts(&self, generation: u32) -> Option<SaCounts> {
        if self.generation.load(Ordering::Acquire) != u64::from(generation) {
            return None;
        }
        let get = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let mut drops = [0; SaDrop::ALL.len()];
        for (count, value) in drops.iter_mut().zip(&self.drops) {
            *count = get(value);
        }
        Some(SaCounts {
            packets_in: get(&self.inbound.packets),
            octets_in: get(&self.inbound.octets),
            last_in_ns: get(&self.inbound.last_ns),
            packets_out: get(&self.outbound.packets),
            octets_out: get(&self.outbound.octets),
            last_out_ns: get(&self.outbound.last_ns),
            next_sequence: get(&self.next_sequence),
            replay_top: get(&self.replay_top),
            drops,
        })
    }
}

/// Adds to a count that has only this writer.
#[inline]
pub(crate) fn add(count: &AtomicU64, amount: u64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// The owner worker's hand on an SA slot. Not `Sync`: it belongs to its worker's thread.
#[derive(Clone, Copy)]
pub struct SaWriter<'a> {
    moving: &'a SaMoving,
    _one_thread: std::marker::PhantomData<&'a std::cell::Cell<()>>,
}

impl<'a> SaWriter<'a> {
    pub(crate) fn new(moving: &'a SaMoving) -> SaWriter<'a> {
        SaWriter { moving, _one_thread: std::marker::PhantomData }
    }

    /// Takes up the SA of `generation`: goes on with its numbers and window if they are already
    /// that generation's, else starts afresh. Dying in the middle starts afresh again, and no
    /// number was used in between.
    pub(crate) fn take_up(&self, generation: u32) {
        let moving = self.moving;
        if moving.generation.load(Ordering::Acquire) == u64::from(generation) {
            return;
        }
        moving.generation.store(0, Ordering::Release);
        // A window's and a flow's words below must not be seen as the old generation's.
        std::sync::atomic::fence(Ordering::Release);
        moving.next_sequence.store(1, Ordering::Relaxed);
        moving.replay_top.store(0, Ordering::Relaxed);
        let flows = [&moving.outbound, &moving.inbound];
        let flow_words =
            flows.into_iter().flat_map(|flow| [&flow.packets, &flow.octets, &flow.last_ns]);
        for word in flow_words.chain(&moving.replay_bits).chain(&moving.drops) {
            word.store(0, Ordering::Relaxed);
        }
        moving.generation.store(u64::from(generation), Ordering::Release);
    }

    /// The outbound sequence number's counter.
    #[inline]
    pub fn sequence(&self) -> SequenceCounter<'a> {
        SequenceCounter { next: &self.moving.next_sequence }
    }

    /// The replay window's storage: the highest number received, and [`REPLAY_WORDS`] words of bits.
    #[inline]
    pub fn replay(&self) -> (&'a AtomicU64, &'a [AtomicU64]) {
        (&self.moving.replay_top, &self.moving.replay_bits)
    }

    /// Counts an opened packet of `octets` inner octets.
    #[inline]
    pub fn count_in(&self, octets: u64, now_ns: u64) {
        count(&self.moving.inbound, octets, now_ns);
    }

    /// Counts a sealed packet of `octets` inner octets.
    #[inline]
    pub fn count_out(&self, octets: u64, now_ns: u64) {
        count(&self.moving.outbound, octets, now_ns);
    }

    /// Counts a dropped packet.
    #[inline]
    pub fn count_drop(&self, reason: SaDrop) {
        add(&self.moving.drops[reason as usize], 1);
    }
}

#[inline]
fn count(flow: &Flow, octets: u64, now_ns: u64) {
    add(&flow.packets, 1);
    add(&flow.octets, octets);
    flow.last_ns.store(now_ns, Ordering::Relaxed);
}

/// No outbound sequence number is left: the SA must be rekeyed (RFC 4303, 3.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the SA has used up its sequence numbers: rekey it")]
pub struct SequenceExhausted;

/// The outbound sequence number of an SA, which is also its AES-GCM nonce: it never repeats,
/// whatever process dies when.
///
/// The number behind the one given out is stored before it is returned, so before anything is
/// sealed with it. What was stored stays in the shared memory when the process is killed.
#[derive(Clone, Copy)]
pub struct SequenceCounter<'a> {
    next: &'a AtomicU64,
}

impl<'a> SequenceCounter<'a> {
    /// The counter over a word that holds the next number to give out.
    pub fn new(next: &'a AtomicU64) -> SequenceCounter<'a> {
        SequenceCounter { next }
    }

    /// The last number that may be sent: 2^32 - 1, or 2^64 - 2 with extended numbers.
    #[inline]
    pub fn last(esn: bool) -> u64 {
        if esn { u64::MAX - 1 } else { u64::from(u32::MAX) }
    }

    /// Gives out the next number, from 1.
    ///
    /// # Errors
    /// [`SequenceExhausted`] when the last number has been given out: it does not wrap
    /// (RFC 4303, 3.3.3). Also when the word is 0, which no SA that was taken up has.
    #[inline]
    pub fn next(&self, esn: bool) -> Result<u64, SequenceExhausted> {
        let number = self.next.load(Ordering::Relaxed);
        if number == 0 || number > SequenceCounter::last(esn) {
            return Err(SequenceExhausted);
        }
        self.next.store(number + 1, Ordering::Release);
        // Nothing that follows, the sealing above all, is moved before the store.
        compiler_fence(Ordering::SeqCst);
        Ok(number)
    }

    /// Numbers that are left.
    #[inline]
    pub fn left(&self, esn: bool) -> u64 {
        let next = self.next.load(Ordering::Relaxed);
        SequenceCounter::last(esn).saturating_add(1).saturating_sub(next)
    }
}
