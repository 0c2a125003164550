//! Whole transfers over the shim.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant as Clock};

use anyhow::{Context, Result, anyhow, bail, ensure};
use culvert_tcpstack::{CongestionControl, Instant, Stack, StackConfig, TcpSecret};

use super::engine::{Engine, Task};
use super::peer::{Flow, listen, receive, send};
use super::{ENGINE, Family, Lab, NAP, RIGHT};
use crate::bulk::BUFFER_BYTES;
use crate::link::LinkConfig;
use crate::random::Random;

/// The first port of the Linux listeners.
const PORT: u16 = 7000;

/// How long the links go on after a run.
const AFTERMATH: Duration = Duration::from_millis(700);
/// Stacks made so far: each has its own seed, so that no port or sequence number comes again.
static STACKS: AtomicU64 = AtomicU64::new(0);

/// Who sends.
#[derive(Debug, Clone, Copy)]
pub enum Sender<'a> {
    /// The engine, from its port.
    Engine,
    /// Linux on the left with this congestion control.
    Linux(&'a str),
}

impl Lab {
    /// Moves the octets of `senders` to Linux on the right for `duration` over a link that they
    /// share, with the losses of `seed`, and gives the Mbit/s of each, counted from `warm_up` on.
    ///
    /// # Errors
    /// A connection fails, or brings something else than was sent.
    pub fn goodput(
        &mut self,
        link: LinkConfig,
        seed: u64,
        control: CongestionControl,
        senders: &[Sender<'_>],
        [warm_up, duration]: [Duration; 2],
    ) -> Result<Vec<f64>> {
        let back = LinkConfig { loss: 0, ..link };
        self.shim.set_links(link, back, seed);
        let mut engine = Engine::new(stack(control)?, self.port.take().context("no port")?);
        let result = self.transfers(&mut engine, senders, warm_up, duration);
        self.port = Some(engine.into_port());
        result
    }

    fn transfers(
        &mut self,
        engine: &mut Engine,
        senders: &[Sender<'_>],
        warm_up: Duration,
        duration: Duration,
    ) -> Result<Vec<f64>> {
        let flows: Vec<Flow> = senders.iter().map(|_| Flow::default()).collect();
        let ports = PORT..;
        let listeners = ports
            .zip(senders)
            .map(|(port, _)| {
                listen(&self.right, SocketAddr::new(RIGHT.of(Family::V4), port), "cubic")
            })
            .collect::<Result<Vec<_>>>()?;
        let (left, shim) = (&self.left, &mut self.shim);
        let over = &AtomicBool::new(false);
        thread::scope(|scope| {
            let clock = Clock::now();
            for ((number, sender), listener) in (0..).zip(senders).zip(&listeners) {
                let (flow, to) = (
                    flows[usize::from(number)].clone(),
                    SocketAddr::new(RIGHT.of(Family::V4), PORT + number),
                );
                let receiver = flow.clone();
                scope.spawn(move || receive(listener, receiver));
                match *sender {
                    Sender::Engine => engine.connect(Instant(1), to, Task::SendOn)?,
                    Sender::Linux(control) => {
                        let stop = Flow::linked(&flow);
                        scope.spawn(move || send(left, to, control, u64::MAX, stop));
                    }
                }
            }
            scope.spawn(move || carry(shim, clock, over));
            let outcome = measure(engine, clock, &flows, warm_up, duration);
            flows.iter().for_each(Flow::stop);
            engine.abort();
            // The threads end by themselves; meanwhile RSTs tell the others' ends.
            let patience = Clock::now();
            let mut aftermath = Ok(false);
            while aftermath.is_ok() && patience.elapsed() < AFTERMATH {
                aftermath = engine.turn(since(clock));
                thread::sleep(NAP);
            }
            over.store(true, Ordering::Relaxed);
            aftermath?;
            outcome
        })
    }

    /// Sends `octets` each way, one after the other, between the engine and Linux on the right,
    /// and checks every one of them.
    ///
    /// # Errors
    /// They do not arrive within `limit`, or not as sent.
    pub fn exchange(
        &mut self,
        family: Family,
        links: [LinkConfig; 2],
        controls: (CongestionControl, &str),
        octets: u64,
        limit: Duration,
    ) -> Result<()> {
        self.shim.set_links(links[0], links[1], 5);
        let port = self.port.take().context("no port")?;
        let mut engine = Engine::new(stack(controls.0)?, port);
        let result = self
            .send_out(&mut engine, RIGHT.of(family), controls.1, octets, limit)
            .context("from the engine to Linux")
            .and_then(|now| {
                self.take_in(&mut engine, ENGINE.of(family), controls.1, octets, limit, now)
                    .context("from Linux to the engine")
            });
        self.port = Some(engine.into_port());
        result
    }

    fn send_out(
        &mut self,
        engine: &mut Engine,
        to: IpAddr,
        control: &str,
        octets: u64,
        limit: Duration,
    ) -> Result<Instant> {
        let (flow, to) = (Flow::default(), SocketAddr::new(to, PORT));
        let listener = listen(&self.right, to, control)?;
        let shim = &mut self.shim;
        engine.connect(Instant(1), to, Task::Send(octets))?;
        thread::scope(|scope| {
            let receiver = flow.clone();
            let thread = scope.spawn(|| receive(&listener, receiver));
            let now = turns(engine, shim, Instant(1), limit, |_| flow.ended());
            flow.stop();
            thread.join().map_err(|_| anyhow!("the receiver panicked"))??;
            let arrived = flow.octets();
            ensure!(arrived == octets, "{arrived} of {octets} octets");
            now
        })
    }

    fn take_in(
        &mut self,
        engine: &mut Engine,
        to: IpAddr,
        control: &str,
        octets: u64,
        limit: Duration,
        start: Instant,
    ) -> Result<()> {
        let flow = Flow::default();
        let (right, shim) = (&self.right, &mut self.shim);
        let finished = engine.finished;
        thread::scope(|scope| {
            let (sender, to) = (flow.clone(), SocketAddr::new(to, 4500));
            let thread = scope.spawn(move || send(right, to, control, octets, sender));
            let over = |engine: &Engine| engine.finished > finished;
            let now = turns(engine, shim, start, limit, over);
            flow.stop();
            thread.join().map_err(|_| anyhow!("the sender panicked"))??;
            ensure!(engine.received == octets, "{} of {octets} octets", engine.received);
            // The last ACKs of the close.
            now.and_then(|now| {
                turns(engine, shim, now, limit, |engine| engine.stack.stats().buffer_bytes == 0)
            })
            .map(drop)
        })
    }
}

/// The time of the links and the engine.
fn since(clock: Clock) -> Instant {
    Instant(1 + clock.elapsed().as_micros() as u64)
}

/// Moves packets over the links until `over`, on a thread of its own: what the engine does takes
/// the links no time, as it is with Linux's work in the kernel.
fn carry(shim: &mut super::Shim, clock: Clock, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        if !shim.turn(since(clock)) {
            thread::sleep(NAP);
        }
    }
}

/// Turns the engine's loop for `duration`. Gives the Mbit/s of each flow from `warm_up` on.
fn measure(
    engine: &mut Engine,
    clock: Clock,
    flows: &[Flow],
    warm_up: Duration,
    duration: Duration,
) -> Result<Vec<f64>> {
    let octets = || flows.iter().map(Flow::octets).collect::<Vec<_>>();
    let mut before = None;
    loop {
        if !engine.turn(since(clock))? {
            thread::sleep(NAP);
        }
        let elapsed = clock.elapsed();
        if before.is_none() && elapsed >= warm_up {
            before = Some((elapsed, octets()));
        }
        if elapsed < duration {
            continue;
        }
        let (start, from) = before.context("the warm-up is longer than the run")?;
        let seconds = (elapsed - start).as_secs_f64();
        let rate = |(now, then): (u64, u64)| (now - then) as f64 * 8e-6 / seconds;
        return Ok(octets().into_iter().zip(from).map(rate).collect());
    }
}

/// Turns the loop until `over`.
fn turns(
    engine: &mut Engine,
    shim: &mut super::Shim,
    start: Instant,
    limit: Duration,
    over: impl Fn(&Engine) -> bool,
) -> Result<Instant> {
    let clock = Clock::now();
    loop {
        let now = start + clock.elapsed();
        if !(engine.turn(now)? | shim.turn(now)) {
            thread::sleep(NAP);
        }
        if over(engine) {
            return Ok(now);
        }
        if clock.elapsed() > limit {
            bail!("not within {limit:?}; {:?}", shim.stats());
        }
    }
}

fn stack(control: CongestionControl) -> Result<Stack> {
    let number = STACKS.fetch_add(1, Ordering::Relaxed);
    let mut random = Random::new(u64::from(std::process::id()) << 32 | number);
    let config = StackConfig {
        connections_max: 64,
        congestion_control: control,
        rx_buffer_bytes: BUFFER_BYTES,
        tx_buffer_bytes: BUFFER_BYTES,
        buffers_bytes: 4 * BUFFER_BYTES,
        secret: TcpSecret::new(random.octets(), Instant::ZERO),
        ..StackConfig::default()
    };
    Ok(Stack::new(config, random.octets())?)
}
