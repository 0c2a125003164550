//! The SAs that this worker owns, with their keys expanded, by slot.
//!
//! The table is a cache of the shared memory: what control wrote is read again whenever it says
//! that a slot changed, and all of it after a start. Sequence numbers and replay windows are not
//! here: they live in the shared memory and survive this process.

use culvert_esp::{
    Algorithm, InboundSa, KeymatError, OutboundSa, Provider, WINDOW_MAX, WINDOW_MIN,
};
use culvert_shm::{Load, Mode, SaConfig, SelectorList, SlotRef, WorkerView};

use crate::net::transport_mode::TransportMode;

/// What control wrote into a live slot cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SaError {
    #[error("the control process installed an SA with unusable keys: {0}")]
    Keymat(#[from] KeymatError),
    #[error("the control process installed an SA with a replay window of {0} packets")]
    Window(u32),
    #[error("the control process installed an SA between addresses of two families")]
    Families,
}

/// One CHILD SA pair.
pub(crate) struct Sa {
    pub(crate) slot: SlotRef,
    pub(crate) peer: SlotRef,
    pub(crate) inbound: InboundSa,
    pub(crate) outbound: OutboundSa,
    pub(crate) esn: bool,
    /// `None`: tunnel mode.
    pub(crate) transport_mode: Option<TransportMode>,
    /// Packets of the replay window.
    pub(crate) replay_window: u32,
    /// Nothing is sealed or opened from then on, nanoseconds of the monotonic clock.
    pub(crate) deadline_ns: u64,
    pub(crate) local: SelectorList,
    pub(crate) remote: SelectorList,
    spi_in: u32,
}

/// The owned SAs by slot. Memory for all of them is taken at the start.
pub(crate) struct SaTable {
    slots: Box<[Option<Sa>]>,
    /// The outbound SPI of each, 0 where there is none: close together, to be searched.
    spis_out: Box<[u32]>,
    provider: Provider,
}

impl SaTable {
    /// For `slots` slots, a power of two.
    pub(crate) fn new(slots: u32, provider: Provider) -> Self {
        let spis_out = vec![0; slots as usize].into_boxed_slice();
        Self { slots: (0..slots).map(|_| None).collect(), spis_out, provider }
    }

    /// Reads slot `index` again: takes a new SA up, forgets one that is gone. One that is still the
    /// same is left alone, so that saying "changed" twice costs nothing and changes nothing.
    /// Returns the peer of a live SA.
    ///
    /// # Errors
    /// The key material or the window of a live slot cannot be used: control's fault.
    pub(crate) fn reload(
        &mut self,
        view: &WorkerView,
        index: u32,
    ) -> Result<Option<SlotRef>, SaError> {
        let loaded = self.load(view, index);
        if let Some(spi) = self.spis_out.get_mut(index as usize) {
            let sa = self.slots.get(index as usize).and_then(Option::as_ref);
            *spi = sa.map_or(0, |sa| sa.outbound.spi());
        }
        loaded
    }

    fn load(&mut self, view: &WorkerView, index: u32) -> Result<Option<SlotRef>, SaError> {
        let Some(entry) = self.slots.get_mut(index as usize) else { return Ok(None) };
        match view.load_sa(index) {
            Load::Live(slot, config) => {
                if entry.as_ref().is_none_or(|sa| sa.slot != slot) {
                    *entry = None;
                    *entry = Some(expand(self.provider, slot, &config)?);
                }
                Ok(Some(config.peer))
            }
            Load::Gone => {
                *entry = None;
                Ok(None)
            }
        }
    }

    /// The owned SA of an inbound SPI, whose low bits are the slot.
    #[inline]
    pub(crate) fn by_spi(&self, spi: u32) -> Option<&Sa> {
        self.slots.get(self.index_of(spi) as usize)?.as_ref().filter(|sa| sa.spi_in == spi)
    }

    /// The owned SAs with this outbound SPI, which the peers have chosen: there may be several. Looks at
    /// a word of each slot.
    pub(crate) fn by_outbound_spi(&self, spi: u32) -> impl Iterator<Item = &Sa> {
        let found = self.spis_out.iter().zip(&self.slots).filter(move |(known, _)| **known == spi);
        found.filter_map(|(_, slot)| slot.as_ref())
    }

    /// The slot that an inbound SPI names.
    #[inline]
    pub(crate) fn index_of(&self, spi: u32) -> u32 {
        spi & (self.slots.len() as u32).wrapping_sub(1)
    }

    /// The owned SA of this slot and generation.
    #[inline]
    pub(crate) fn get(&self, slot: SlotRef) -> Option<&Sa> {
        self.slots.get(slot.index as usize)?.as_ref().filter(|sa| sa.slot == slot)
    }
}

fn expand(provider: Provider, slot: SlotRef, config: &SaConfig) -> Result<Sa, SaError> {
    let algorithm = match config.algorithm {
        culvert_shm::sa::Algorithm::Aes128Gcm16 => Algorithm::Aes128Gcm16,
        culvert_shm::sa::Algorithm::Aes256Gcm16 => Algorithm::Aes256Gcm16,
    };
    if !(WINDOW_MIN..=WINDOW_MAX).contains(&config.replay_window) {
        return Err(SaError::Window(config.replay_window));
    }
    let transport_mode = match &config.mode {
        Mode::Tunnel => None,
        Mode::Transport(ends) => Some(TransportMode::new(ends).ok_or(SaError::Families)?),
    };
    let (keymat_in, keymat_out) = (config.keymat_in.as_bytes(), config.keymat_out.as_bytes());
    Ok(Sa {
        slot,
        peer: config.peer,
        inbound: InboundSa::new(provider, algorithm, config.spi_in, keymat_in, config.esn)?,
        outbound: OutboundSa::new(provider, algorithm, config.spi_out, keymat_out, config.esn)?,
        esn: config.esn,
        transport_mode,
        replay_window: config.replay_window,
        deadline_ns: config.deadline_ns,
        local: config.local,
        remote: config.remote,
        spi_in: config.spi_in,
    })
}
