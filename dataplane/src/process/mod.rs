//! The process around the workers: start, watch, stop.
//!
//! In order: rights are given up, DPDK starts, the ports open, more rights are given up; then the
//! control process is waited for, because it brings the shared memory; then the workers run. From
//! there on this, the main thread, only watches: it logs what the workers may not, keeps the link
//! to control, and tells systemd.

pub mod hardening;
mod ports;
mod rendezvous;
mod workers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use culvert_dataplane_config::{Aead, Settings};
use culvert_dpdk::Port;
use culvert_esp::Provider;
use culvert_shm::DataplaneView;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};

use self::ports::{Ports, start_eal};
use self::rendezvous::Rendezvous;
use self::workers::Workers;

/// Time between two turns of the main thread.
const TURN: Duration = Duration::from_millis(100);

/// Runs the dataplane until it is told to stop.
///
/// # Errors
/// It could not start, or a worker ended by itself.
pub fn run(settings: &Settings) -> anyhow::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("cannot take signals")?;
    }
    hardening::before_ports()?;
    let dataplane = Arc::new(settings.dataplane.clone());
    let provider = provider(dataplane.aead);
    let eal = start_eal(&dataplane)?;
    let ports = Ports::open(eal, &dataplane)?;
    if let Err(error) = hardening::lock_memory() {
        tracing::warn!("{error}: keys may reach swap (set LimitMEMLOCK=infinity)");
    }
    hardening::after_ports()?;
    let Ports { ports, pool, workers: queues } = ports;
    for (side, port) in &ports {
        tracing::info!("the {side} port runs, offloads {:?}", port.offloads());
    }
    tracing::info!("ESP by {provider}, {} worker(s)", queues.len());
    notify(&[NotifyState::Ready, NotifyState::Status("waiting for the control process")]);

    let mut rendezvous = Rendezvous::new(settings);
    let Some(view) = wait_for_memory(&mut rendezvous, &stop) else { return Ok(()) };
    let mut workers = Workers::launch(eal, view, queues, pool, dataplane, provider)?;
    notify(&[NotifyState::Status("running")]);
    let ended = watch(&mut rendezvous, &workers, &ports, &stop);
    notify(&[NotifyState::Stopping]);
    workers.stop();
    tracing::info!("stopped; the tunnels stay in the shared memory for the next dataplane");
    ended
}

fn provider(aead: Aead) -> Provider {
    match aead {
        Aead::Auto => Provider::fastest(),
        Aead::Ring => Provider::Ring,
        Aead::AesGcm => Provider::AesGcm,
    }
}

/// Waits until control has brought the shared memory and this is its only dataplane; `None` when
/// the process is to stop.
fn wait_for_memory(rendezvous: &mut Rendezvous, stop: &AtomicBool) -> Option<DataplaneView> {
    let mut refused = false;
    while !stop.load(Ordering::Relaxed) {
        notify(&[NotifyState::Watchdog]);
        rendezvous.turn();
        if let Some(bundle) = rendezvous.bundle() {
            if let Some(errno) = bundle.region.protection_warning() {
                tracing::warn!("the shared memory is not fully protected: {errno}");
            }
            match DataplaneView::attach(Arc::clone(&bundle.region), Arc::clone(&bundle.bell)) {
                Ok(view) => return Some(view),
                Err(error) if !refused => {
                    refused = true;
                    tracing::warn!("cannot attach to the shared memory, trying on: {error}");
                }
                Err(_) => {}
            }
        }
        thread::sleep(TURN);
    }
    None
}

/// The main thread's loop.
fn watch(
    rendezvous: &mut Rendezvous,
    workers: &Workers,
    ports: &[(&'static str, Port)],
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut links = vec![None; ports.len()];
    while !stop.load(Ordering::Relaxed) {
        rendezvous.turn();
        for ((side, port), known) in ports.iter().zip(&mut links) {
            let up = port.link().up;
            if *known != Some(up) {
                *known = Some(up);
                let state = if up { "up" } else { "down" };
                tracing::info!("the {side} port's link is {state}");
            }
        }
        if let Some(worker) = workers.ended() {
            anyhow::bail!("worker {worker} has ended by itself: this is a fault of the program");
        }
        if workers.are_alive() {
            notify(&[NotifyState::Watchdog]);
        }
        thread::sleep(TURN);
    }
    Ok(())
}

/// Tells systemd, if it started the process; nobody else misses it.
fn notify(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
