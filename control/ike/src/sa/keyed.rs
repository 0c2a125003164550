//! One IKE SA on the wire: a pair of SPIs, its keys, and its windows of Message IDs.
//!
//! Both windows have the size 1 (RFC 7296, 2.3): one request of this side is outstanding, and of
//! the peer's requests the last response is kept to answer repetitions.

use crate::crypto::{IV_LEN, SkKey};
use crate::keys::IkeKeys;
use crate::message::{CodecError, ExchangeType, Header, Message, Payload, Reassembly};
use crate::proposal::IkeSuite;
use crate::time::Instant;
use serde::{Deserialize, Serialize};

/// Where a Message ID of a request lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// The next one.
    New,
    /// The last one once more.
    Repeated,
    /// Neither.
    Outside,
}

/// An IKE SA with keys.
#[derive(Serialize, Deserialize)]
pub(crate) struct IkeSa {
    pub(crate) spi_local: u64,
    pub(crate) spi_remote: u64,
    /// Whether this side is the initiator of this SA (the I flag; a rekey may turn it round).
    pub(crate) initiator: bool,
    pub(crate) suite: IkeSuite,
    pub(crate) keys: IkeKeys,
    /// When the keys were made.
    pub(crate) keyed: Instant,
    /// Longest message over UDP that is not cut, where the peer takes fragments (RFC 7383).
    pub(crate) fragment: Option<usize>,
    next_iv: u64,
    /// Message ID of this side's next request.
    next_out: u32,
    /// Message ID of the peer's next request.
    next_in: u32,
    /// The response to the peer's last request.
    cached: Option<Wire>,
    /// Fragments of the peer's request and of its response.
    #[serde(skip)]
    incoming: [Option<Reassembly>; 2],
}

/// A sealed message as it goes over the wire.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Wire {
    pub(crate) whole: Vec<u8>,
    /// How it goes over UDP where it is too long; else empty.
    pub(crate) fragments: Vec<Vec<u8>>,
}

impl IkeSa {
    /// An SA whose first requests have the Message ID `first`: 1 behind IKE_SA_INIT, 0 after a rekey
    /// (RFC 7296, 2.2).
    pub(crate) const fn new(
        (spi_local, spi_remote): (u64, u64),
        initiator: bool,
        suite: IkeSuite,
        keys: IkeKeys,
        now: Instant,
        first: (u32, u32),
    ) -> Self {
        Self {
            spi_local,
            spi_remote,
            initiator,
            suite,
            keys,
            keyed: now,
            fragment: None,
            next_iv: 0,
            next_out: first.0,
            next_in: first.1,
            cached: None,
            incoming: [None, None],
        }
    }

    /// Uses Message IDs up: those of this side's requests before `next_out`, of the peer's before
    /// `next_in`.
    #[cfg(test)]
    pub(crate) const fn use_up(&mut self, next_out: u32, next_in: u32) {
        (self.next_out, self.next_in) = (next_out, next_in);
    }

    /// The IKE SA at its other end: what it asks next is new here, and what it answers is the last
    /// request of this side.
    #[cfg(test)]
    pub(crate) fn of_the_peer(&self) -> Option<Self> {
        let mut buffer = vec![0; 4096];
        let keys = postcard::to_slice(&self.keys, &mut buffer).ok()?;
        let keys = postcard::from_bytes(keys).ok()?;
        let ids = (self.next_in, self.next_out.wrapping_sub(1));
        let (spis, now) = ((self.spi_remote, self.spi_local), self.keyed);
        Some(Self::new(spis, !self.initiator, self.suite, keys, now, ids))
    }

    /// Leaves IVs out; `false` if none below `limit` is left.
    pub(super) const fn skip_ivs(&mut self, step: u64, limit: u64) -> bool {
        self.next_iv = self.next_iv.saturating_add(step);
        self.next_iv < limit
    }

    /// The SPIs of initiator and responder.
    pub(crate) const fn spis(&self) -> (u64, u64) {
        if self.initiator {
            (self.spi_local, self.spi_remote)
        } else {
            (self.spi_remote, self.spi_local)
        }
    }

    const fn sending_key(&self) -> &SkKey {
        if self.initiator { &self.keys.sk_ei } else { &self.keys.sk_er }
    }

    const fn receiving_key(&self) -> &SkKey {
        if self.initiator { &self.keys.sk_er } else { &self.keys.sk_ei }
    }

    /// Seals a message of this side.
    fn seal(
        &mut self,
        exchange: ExchangeType,
        response: bool,
        message_id: u32,
        payloads: Vec<Payload>,
    ) -> Result<Wire, CodecError> {
        let (spi_i, spi_r) = self.spis();
        let header = Header {
            spi_i,
            spi_r,
            major: 2,
            minor: 0,
            exchange,
            from_initiator: self.initiator,
            response,
            higher_version: false,
            message_id,
        };
        let message = Message::new(header, payloads);
        // RFC 5282, 3.1: a counter never repeats within the life of the key.
        let mut next = self.next_iv;
        let mut iv = || -> [u8; IV_LEN] {
            next += 1;
            (next - 1).to_be_bytes()
        };
        let whole = message.seal(self.sending_key(), iv())?;
        let fragments = match self.fragment {
            Some(limit) if whole.len() > limit => {
                message.seal_fragments(self.sending_key(), &mut iv, limit)?
            }
            _ => Vec::new(),
        };
        self.next_iv = next;
        Ok(Wire { whole, fragments })
    }

    /// Seals the next request; gives its Message ID too.
    pub(crate) fn request(
        &mut self,
        exchange: ExchangeType,
        payloads: Vec<Payload>,
    ) -> Result<(u32, Wire), CodecError> {
        let message_id = self.next_out;
        let octets = self.seal(exchange, false, message_id, payloads)?;
        self.next_out = self.next_out.wrapping_add(1);
        Ok((message_id, octets))
    }

    /// Seals the response to the peer's request `message_id`, which must be new, keeps it for
    /// repetitions and moves the window.
    pub(crate) fn response(
        &mut self,
        exchange: ExchangeType,
        payloads: Vec<Payload>,
    ) -> Result<Wire, CodecError> {
        let octets = self.seal(exchange, true, self.next_in, payloads)?;
        self.next_in = self.next_in.wrapping_add(1);
        self.cached = Some(octets.clone());
        Ok(octets)
    }

    /// Checks, decrypts and decodes a message of the peer. [`CodecError::Syntax`] and
    /// [`CodecError::Critical`] are the peer's fault for certain: what is wrong before the integrity
    /// check, anybody may have sent, and is [`CodecError::Header`] or [`CodecError::Icv`].
    ///
    /// Of a message in fragments (RFC 7383) the last one gives the whole, the others `None`.
    pub(crate) fn open(&mut self, octets: &[u8]) -> Result<Option<Message>, CodecError> {
        let mut octets = octets.to_vec();
        let message = Message::decode(&octets).map_err(|_| CodecError::Header)?;
        if !message.is_sealed() {
            return Err(CodecError::Header);
        }
        let key = if self.initiator { &self.keys.sk_er } else { &self.keys.sk_ei };
        let Some(numbers) = message.fragment() else {
            return message.open(&mut octets, key).map(Some);
        };
        let part = message.open_fragment(&mut octets, key).map_err(|_| CodecError::Icv)?;
        let slot = &mut self.incoming[usize::from(message.header.response)];
        Reassembly::take(slot, &message.header, numbers, part)
    }

    /// Waits until then for the rest of a message of which a fragment has come (RFC 7383, 2.6).
    pub(crate) fn await_rest(&mut self, until: Instant) {
        self.incoming.iter_mut().flatten().for_each(|message| message.wait_until(until));
    }

    /// When fragments are given up.
    pub(crate) fn fragments_due(&self) -> Option<Instant> {
        self.incoming.iter().flatten().filter_map(Reassembly::until).min()
    }

    /// Forgets fragments whose rest has not come in time.
    pub(crate) fn forget_fragments(&mut self, now: Instant) {
        let over = |message: &mut Reassembly| message.until().is_some_and(|until| until <= now);
        for slot in &mut self.incoming {
            let _ = slot.take_if(over);
        }
    }

    /// Whether a request that was answered before is to be answered again: it is authentic, and
    /// whole or its first fragment (RFC 7383, 2.6.1).
    pub(crate) fn repeats(&self, octets: &[u8]) -> Result<bool, CodecError> {
        let mut octets = octets.to_vec();
        let message = Message::decode(&octets).map_err(|_| CodecError::Header)?;
        message.open_fragment(&mut octets, self.receiving_key())?;
        Ok(message.fragment().is_none_or(|numbers| numbers.number == 1))
    }

    /// Where a request's Message ID lies.
    pub(crate) const fn window(&self, message_id: u32) -> Window {
        if message_id == self.next_in {
            Window::New
        } else if message_id.wrapping_add(1) == self.next_in && self.cached.is_some() {
            Window::Repeated
        } else {
            Window::Outside
        }
    }

    /// The response for a repeated request.
    pub(crate) const fn cached(&self) -> Option<&Wire> {
        self.cached.as_ref()
    }

    /// Whether a Message ID space is used up, so that the SA must not be used any more (RFC 7296,
    /// 2.2: IDs never wrap).
    pub(crate) const fn is_exhausted(&self) -> bool {
        self.next_out == u32::MAX || self.next_in == u32::MAX
    }
}
