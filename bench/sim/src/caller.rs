//! The callers of a host: one for each connection, with habits that follow from a seed.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_tcpstack::{CloseReason, ConnId, Event, Instant};

use crate::host::Host;
use crate::random::Random;
use crate::stream::{FRAME_MIN, Kind, Ledger, Reader, Stream};

/// The longest urgent frame, as long as most IKE messages.
const URGENT_MAX: usize = 2_000;

/// How a caller ends its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Closes when it has written everything and read everything.
    Polite,
    /// Closes when it has written everything: what the peer still sends is lost.
    Rude,
    /// Waits for the peer to close.
    Passive,
    /// Aborts at some time.
    Abort,
}

/// The habits of all callers of one end.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// Frames that each writes.
    pub frames: u32,
    /// The longest frame.
    pub frame_max: usize,
    /// The time between two bouts of writing, at the most.
    pub pause: Duration,
    /// Frames in a million that are urgent.
    pub urgent: u32,
    /// Segments in a million of which a caller consumes only a part, or nothing, when they come.
    pub hesitates: u32,
    /// How long it then leaves them, at the most.
    pub reading_pause: Duration,
    /// How it ends.
    pub end: End,
}

/// The caller of one connection.
#[derive(Debug)]
struct Call {
    stream: Stream,
    reader: Reader,
    frames_left: u32,
    opened: bool,
    /// Octets wait in the stack.
    unread: bool,
    wake_at: Instant,
    abort_at: Option<Instant>,
}

/// All callers of one end.
#[derive(Debug)]
pub struct Callers {
    end: u8,
    habits: Habits,
    random: Random,
    calls: HashMap<ConnId, Call>,
    streams: u32,
    now: Instant,
    /// From then on everyone closes.
    curfew: Instant,
    /// What the oracle found while octets were delivered.
    error: Option<anyhow::Error>,
    /// Why connections ended.
    pub reasons: Vec<CloseReason>,
    /// How many of them ended by a RST before the peer had read all that was written to it.
    pub cut_short: usize,
}

impl Callers {
    /// Nobody yet.
    #[must_use]
    pub fn new(end: u8, habits: Habits, random: Random, curfew: Instant) -> Self {
        Self {
            end,
            habits,
            random,
            calls: HashMap::new(),
            streams: 0,
            now: Instant::ZERO,
            curfew,
            error: None,
            reasons: Vec::new(),
            cut_short: 0,
        }
    }

    /// The connections that have not ended, in their order.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnId> {
        let mut all: Vec<ConnId> = self.calls.keys().copied().collect();
        all.sort_unstable_by_key(|id| (id.index, id.generation));
        all
    }

    /// It is now so late.
    pub fn clock(&mut self, now: Instant) {
        self.now = now;
    }

    /// A connection has begun.
    pub fn begin(&mut self, now: Instant, id: ConnId) {
        self.now = now;
        self.call(id);
    }

    fn call(&mut self, id: ConnId) -> &mut Call {
        self.calls.entry(id).or_insert_with(|| {
            self.streams += 1;
            let abort_at = (self.habits.end == End::Abort)
                .then(|| self.now + Duration::from_micros(self.random.within(0..=3_000_000)));
            Call {
                stream: (self.end, self.streams),
                reader: Reader::default(),
                frames_left: self.habits.frames,
                opened: false,
                unread: false,
                wake_at: self.now,
                abort_at,
            }
        })
    }

    /// Octets have come in order; says how many it consumes.
    pub fn deliver(&mut self, ledger: &mut Ledger, id: ConnId, octets: &mut [u8]) -> usize {
        let (end, now) = (self.end, self.now);
        let hesitates = self.random.happens(self.habits.hesitates);
        let most = octets.len() as u64;
        let take = if hesitates { self.random.within(0..=most) as usize } else { octets.len() };
        let pause = self.habits.reading_pause.as_micros() as u64;
        let wake_at = now + Duration::from_micros(self.random.within(0..=pause));
        let call = self.call(id);
        if hesitates {
            call.wake_at = call.wake_at.max(wake_at);
        }
        let read = call.reader.read(ledger, end, &octets[..take]);
        // A caller decrypts where the octets lie: whatever is left in them, nobody may read again.
        octets[..take].fill(0);
        if let Err(error) = read {
            self.error.get_or_insert(error);
        }
        take
    }

    /// When a caller wants to do something.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let times = self.calls.values().flat_map(|call| {
            let busy = call.opened && (call.frames_left > 0 || call.unread);
            [busy.then_some(call.wake_at), call.abort_at, Some(self.curfew)]
        });
        times.flatten().min()
    }

    /// Lets every caller do what it wants by now.
    ///
    /// # Errors
    /// The oracle found that something is wrong.
    pub fn act(&mut self, now: Instant, host: &mut dyn Host, ledger: &mut Ledger) -> Result<()> {
        self.now = now;
        self.hear(host, ledger)?;
        for id in self.connections() {
            self.act_on(id, host, ledger)?;
        }
        self.hear(host, ledger)?;
        self.error.take().map_or(Ok(()), Err)
    }

    fn act_on(&mut self, id: ConnId, host: &mut dyn Host, ledger: &mut Ledger) -> Result<()> {
        let (now, habits) = (self.now, self.habits);
        let Some(call) = self.calls.get_mut(&id) else { return Ok(()) };
        if call.abort_at.is_some_and(|at| at <= now) {
            call.abort_at = None;
            host.abort(id);
            return Ok(());
        }
        if now >= self.curfew {
            ledger.close(call.stream);
            host.close(id);
            return Ok(());
        }
        if !call.opened || call.wake_at > now {
            return Ok(());
        }
        self.read(id, host, ledger);
        self.write(id, host, ledger);
        let Some(call) = self.calls.get_mut(&id) else { return Ok(()) };
        let ends = match habits.end {
            End::Polite => call.frames_left == 0 && ledger.is_read(&call.reader),
            End::Rude => call.frames_left == 0,
            End::Passive | End::Abort => false,
        };
        if ends {
            ledger.close(call.stream);
            host.close(id);
        }
        Ok(())
    }

    fn read(&mut self, id: ConnId, host: &mut dyn Host, ledger: &mut Ledger) {
        let (end, error) = (self.end, &mut self.error);
        let Some(call) = self.calls.get_mut(&id) else { return };
        call.unread = false;
        let reader = &mut call.reader;
        let mut take = |octets: &mut [u8]| {
            if let Err(wrong) = reader.read(ledger, end, octets) {
                error.get_or_insert(wrong);
            }
            octets.fill(0);
            octets.len()
        };
        while host.read(id, &mut take) > 0 {}
    }

    /// A bout of writing: until it is enough or the stack refuses.
    fn write(&mut self, id: ConnId, host: &mut dyn Host, ledger: &mut Ledger) {
        let habits = self.habits;
        if self.random.happens(100_000) {
            host.vouch(id);
        }
        let bout = self.random.within(1..=20);
        for _ in 0..bout {
            let Some(call) = self.calls.get_mut(&id).filter(|call| call.frames_left > 0) else {
                break;
            };
            let urgent = self.random.happens(habits.urgent);
            let kind = if urgent { Kind::Urgent } else { Kind::Plain };
            let frame_max = if urgent { URGENT_MAX } else { habits.frame_max };
            let most = self.random.within(FRAME_MIN as u64..=frame_max as u64);
            let len = self.random.within(FRAME_MIN as u64..=most) as usize;
            let frame = ledger.write(call.stream, kind, len);
            let taken = match kind {
                Kind::Plain => host.write(id, &frame),
                Kind::Urgent => host.write_urgent(id, &frame),
            };
            if taken {
                call.frames_left -= 1;
            } else {
                ledger.refused(call.stream, kind);
                break;
            }
        }
        let pause =
            Duration::from_micros(self.random.within(1_000..=habits.pause.as_micros() as u64));
        let now = self.now;
        if let Some(call) = self.calls.get_mut(&id) {
            if call.frames_left == 0 {
                ledger.finish(call.stream);
            }
            call.wake_at = now + pause;
        }
    }

    /// Takes the host's events.
    fn hear(&mut self, host: &mut dyn Host, ledger: &mut Ledger) -> Result<()> {
        while let Some(event) = host.event() {
            match event {
                Event::Opened { id, .. } => self.call(id).opened = true,
                Event::Readable(id) => self.call(id).unread = true,
                Event::Writable(id) => {
                    let now = self.now;
                    self.call(id).wake_at = now;
                }
                Event::Closed { id, reason } => {
                    let end = self.end;
                    let call = self.calls.remove(&id).context("closed twice")?;
                    self.reasons.push(reason);
                    self.cut_short += usize::from(
                        reason == CloseReason::PeerReset && ledger.is_cut_short(call.stream),
                    );
                    if reason == CloseReason::PeerClosed {
                        ledger
                            .check_end(&call.reader, end)
                            .with_context(|| format!("{id:?} of end {end} is {reason:?}"))?;
                    }
                }
            }
        }
        Ok(())
    }
}
