//! The workers on their lcores.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::Context;
use culvert_dataplane_config::{Dataplane, Poll};
use culvert_dpdk::{Eal, LcoreHandle, Pool, tsc};
use culvert_esp::Provider;
use culvert_shm::{DataplaneView, monotonic_ns};
use culvert_tcpstack::TcpSecret;
use zeroize::Zeroize;

use super::hardening;
use super::ports::WorkerPorts;
use crate::net::{Nanos, SECOND};
use crate::worker::handoff::{HANDOFF_RING_ITEMS, Mesh};
use crate::worker::idle::Idle;
use crate::worker::link::QueuePair;
use crate::worker::rooms::Rooms;
use crate::worker::{Worker, WorkerParts, stack_time};

/// A worker that has not turned for so long is stuck.
const STUCK: Nanos = 2 * SECOND;

/// How a worker's thread is seen from outside.
#[derive(Default)]
struct Pulse {
    /// Time of the last batch.
    turned_ns: AtomicU64,
    ended: AtomicBool,
}

/// The running workers.
pub(super) struct Workers {
    handles: Vec<LcoreHandle<anyhow::Result<()>>>,
    pulses: Vec<Arc<Pulse>>,
    stop: Arc<AtomicBool>,
}

impl Workers {
    /// Starts one worker on each of the EAL's lcores.
    ///
    /// # Errors
    /// An lcore could not be used, or there is no randomness.
    pub(super) fn launch(
        eal: Eal,
        view: DataplaneView,
        queues: Vec<WorkerPorts>,
        pool: Pool,
        dataplane: Arc<Dataplane>,
        provider: Provider,
    ) -> anyhow::Result<Self> {
        let layout = *view.region().layout();
        let meshes = Mesh::between(queues.len(), HANDOFF_RING_ITEMS);
        let rooms = Arc::new(Rooms::new(layout.workers, layout.conn_slots));
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = Self { handles: Vec::new(), pulses: Vec::new(), stop };
        let views = view.into_workers();
        let mut octets = [0; 32];
        getrandom::fill(&mut octets).context("the kernel gives no random numbers")?;
        let tcp_secret = TcpSecret::new(octets, stack_time(monotonic_ns()));
        octets.zeroize();
        for (((view, (outer, inner)), mesh), lcore) in
            views.into_iter().zip(queues).zip(meshes).zip(eal.workers())
        {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed).context("the kernel gives no random numbers")?;
            let (rooms, dataplane) = (Arc::clone(&rooms), Arc::clone(&dataplane));
            let poll = dataplane.poll;
            let parts = WorkerParts {
                view,
                outer,
                inner,
                pool,
                mesh,
                rooms,
                dataplane,
                provider,
                seed,
                tcp_secret: tcp_secret.clone(),
            };
            let pulse = Arc::new(Pulse::default());
            pulse.turned_ns.store(monotonic_ns(), Ordering::Relaxed);
            workers.pulses.push(Arc::clone(&pulse));
            let stop = Arc::clone(&workers.stop);
            let work = move || {
                let result = work(parts, poll, &pulse, &stop);
                pulse.ended.store(true, Ordering::Relaxed);
                result
            };
            workers.handles.push(eal.launch(*lcore, work)?);
        }
        Ok(workers)
    }

    /// The number of a worker that has ended, if one has.
    #[must_use]
    pub(super) fn ended(&self) -> Option<usize> {
        self.pulses.iter().position(|pulse| pulse.ended.load(Ordering::Relaxed))
    }

    /// Whether every worker has turned lately.
    #[must_use]
    pub(super) fn are_alive(&self) -> bool {
        let now = monotonic_ns();
        let lately = |pulse: &Arc<Pulse>| {
            now.saturating_sub(pulse.turned_ns.load(Ordering::Relaxed)) < STUCK
        };
        self.pulses.iter().all(lately)
    }

    /// Stops the workers after their current batch and waits for them.
    pub(super) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for (worker, handle) in self.handles.drain(..).enumerate() {
            if let Err(error) = handle.join() {
                tracing::error!("worker {worker}: {error:#}");
            }
        }
    }
}

/// One worker's thread.
fn work(
    parts: WorkerParts<QueuePair>,
    poll: Poll,
    pulse: &Pulse,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    hardening::after_ports()?;
    let mut worker = Worker::new(parts)?;
    let mut idle = Idle::new(poll);
    while !stop.load(Ordering::Relaxed) {
        let (start, now_ns) = (tsc(), monotonic_ns());
        let worked = worker.poll(now_ns);
        pulse.turned_ns.store(now_ns, Ordering::Relaxed);
        worker.count_cycles(tsc().wrapping_sub(start), worked);
        if let Some(pause) = idle.after_batch(worked) {
            thread::sleep(pause);
        }
    }
    Ok(())
}
