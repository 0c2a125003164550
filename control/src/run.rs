//! The process's loop: sockets, signals, and the engine's turns.

use std::cell::RefCell;
use std::future::pending;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use culvert_api::SOCKET_NAME;
use culvert_ike::Instant;
use culvert_shm::ControlView;
use culvert_shm::rendezvous::{Bundle, Caller, Link, Listener, RendezvousError};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::clock;
use crate::config::Config;
use crate::engine::Engine;
use crate::log::Log;
use crate::process;
use crate::server::{self, Shared};

/// Name of the socket on which the dataplane is met.
pub const RENDEZVOUS_NAME: &str = "shm.sock";
/// How long peers may take to confirm that their SAs are deleted when the gateway stops.
const FAREWELL_MAX: Duration = Duration::from_secs(3);
/// Callers met at once; more than the rendezvous lets wait.
const CALLERS_MAX: usize = 16;
/// How often systemd is told that the process is alive.
const ALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// Where groups are listed.
const GROUP_FILE: &str = "/etc/group";

/// Why the process does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory or socket cannot be made.
    #[error("{}: {cause}", path.display())]
    Socket {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The control socket's group does not exist.
    #[error("there is no group {0:?}: create it, or correct socket_group in [control]")]
    NoGroup(String),
    /// The rendezvous cannot be held.
    #[error(transparent)]
    Rendezvous(#[from] RendezvousError),
    /// The system refuses something else.
    #[error("the control process cannot run: {0}")]
    System(#[from] io::Error),
}

/// The sockets of the process, open.
pub struct Sockets {
    rendezvous: Listener,
    control: UnixListener,
    control_path: PathBuf,
}

impl Sockets {
    /// Opens them in the configuration's runtime directory, which is made if it is missing.
    /// Whoever holds the rendezvous is the only control process, so a control socket that is
    /// there already is one that a dead process left.
    ///
    /// # Errors
    /// Another control process runs, or the system refuses.
    pub fn open(config: &Config) -> Result<Self, RunError> {
        let failed = |path: &Path, cause| RunError::Socket { path: path.to_owned(), cause };
        let dir = &config.runtime_dir;
        std::fs::create_dir_all(dir).map_err(|cause| failed(dir, cause))?;
        let rendezvous = Listener::bind(&dir.join(RENDEZVOUS_NAME))?;
        let path = dir.join(SOCKET_NAME);
        match std::fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&path, cause));
            }
            _ => {}
        }
        // Nobody but this user may connect before mode and group are what they should be.
        let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(&path);
        rustix::process::umask(mask);
        let control = bound.map_err(|cause| failed(&path, cause))?;
        if let Some(group) = &config.socket_group {
            let id = group_id(group).ok_or_else(|| RunError::NoGroup(group.clone()))?;
            std::os::unix::fs::chown(&path, None, Some(id))
                .map_err(|cause| failed(&path, cause))?;
        }
        let mode = PermissionsExt::from_mode(config.socket_mode);
        std::fs::set_permissions(&path, mode).map_err(|cause| failed(&path, cause))?;
        Ok(Self { rendezvous, control, control_path: path })
    }
}

/// Number of a group in the system's file.
fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string(GROUP_FILE).ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let id = (fields.next() == Some(name)).then(|| fields.nth(1))??;
        id.parse().ok()
    })
}

/// Runs until it is told to stop. With `harden` it gives up its rights as soon as the sockets are
/// open, which ends them for the whole process.
///
/// # Errors
/// It could not begin, or the system failed it.
pub async fn run(config: Config, harden: bool, log: Log) -> Result<(), RunError> {
    let signals = Signals::new()?;
    let sockets = Sockets::open(&config)?;
    if harden {
        process::give_up_rights()?;
    }
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let connections = config.connections.len();
    tracing::info!(config = %config.path.display(), connections, "control process ready");
    let engine = Rc::new(RefCell::new(Engine::new(config, log)));
    let shared = Shared { engine, wake: Rc::new(Notify::new()), readings: Rc::default() };
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let path = sockets.control_path;
    let mut dataplane = Dataplane::new(sockets.rendezvous)?;
    let result = LocalSet::new()
        .run_until(async {
            let server = tokio::task::spawn_local(server::serve(sockets.control, shared.clone()));
            let result = drive(&shared, &mut dataplane, signals).await;
            server.abort();
            result
        })
        .await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    // Its absence tells `culvert` that there is no gateway. As long as the rendezvous is held it is
    // this process's, and not already that of the next one.
    let _ = std::fs::remove_file(path);
    drop(dataplane);
    result
}

/// The signals that mean something.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    reload: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            reload: signal(SignalKind::hangup())?,
        })
    }
}

/// Takes turns until a signal ends it, then says farewell to the peers.
async fn drive(
    shared: &Shared,
    dataplane: &mut Dataplane,
    mut signals: Signals,
) -> Result<(), RunError> {
    let mut farewell = None;
    let mut alive = Alive::default();
    loop {
        alive.tell(clock::now());
        if turns(shared) {
            tokio::task::yield_now().await;
            continue;
        }
        if let Some(until) = farewell
            && (shared.engine.borrow().is_stopped() || clock::now() >= until)
        {
            shared.engine.borrow_mut().abandon();
            tracing::info!("control process stopped");
            return Ok(());
        }
        let due = shared.engine.borrow().next_timeout().since(clock::now());
        let stops = tokio::select! {
            () = tokio::time::sleep(due) => false,
            () = shared.wake.notified() => false,
            result = dataplane.wait(shared) => { result?; false }
            _ = signals.terminate.recv() => true,
            _ = signals.interrupt.recv() => true,
            _ = signals.reload.recv() => {
                let shared = shared.clone();
                tokio::task::spawn_local(async move { reload(&shared).await });
                false
            }
        };
        if stops && farewell.is_none() {
            shared.engine.borrow_mut().stop();
            farewell = Some(clock::now() + FAREWELL_MAX);
        }
    }
}

/// Tells systemd now and then that the loop turns, so that it can end a process that does not.
#[derive(Default)]
struct Alive {
    told: Instant,
}

impl Alive {
    fn tell(&mut self, now: Instant) {
        if now.since(self.told) >= ALIVE_INTERVAL {
            self.told = now;
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }
}

/// Reads the configuration again because of a signal: what became of it is in the log.
async fn reload(shared: &Shared) {
    match server::reload(shared).await {
        Ok(outcomes) => outcomes.iter().for_each(|done| tracing::info!("{}", done.message)),
        Err(refusal) => refusal.message.lines().for_each(|line| tracing::error!("{line}")),
    }
}

/// Takes a turn; when there was nothing, arms the bell and looks once more, so that no ringing is
/// missed. Whether there may be more.
fn turns(shared: &Shared) -> bool {
    let mut engine = shared.engine.borrow_mut();
    if engine.turn() {
        return true;
    }
    engine.arm_bell();
    engine.turn()
}

/// The other process: met, heard, and lost.
struct Dataplane {
    listener: Listener,
    callers: AsyncFd<OwnedFd>,
    bundle: Option<Bundle>,
    bell: Option<AsyncFd<OwnedFd>>,
    link: Option<Link>,
    gone: Option<AsyncFd<OwnedFd>>,
}

impl Dataplane {
    fn new(listener: Listener) -> io::Result<Self> {
        let callers = watch(listener.fd())?;
        Ok(Self { listener, callers, bundle: None, bell: None, link: None, gone: None })
    }

    /// Waits until the bell rings, a dataplane calls, or the present one goes.
    async fn wait(&mut self, shared: &Shared) -> Result<(), RunError> {
        tokio::select! {
            result = readable(self.bell.as_ref()) => {
                result?;
                if let Some(bundle) = &self.bundle {
                    bundle.bell.silence();
                }
            }
            result = readable(Some(&self.callers)) => { result?; self.accept(shared)?; }
            result = readable(self.gone.as_ref()) => { result?; self.check(shared); }
        }
        Ok(())
    }

    /// Meets all who call.
    fn accept(&mut self, shared: &Shared) -> io::Result<()> {
        for _ in 0..CALLERS_MAX {
            match self.listener.accept() {
                Ok(Some(caller)) => self.receive(shared, caller)?,
                Ok(None) => break,
                Err(error) => tracing::warn!(%error, "a caller at the rendezvous was turned away"),
            }
        }
        Ok(())
    }

    /// Meets one caller. One that does not fit is no reason to stop.
    fn receive(&mut self, shared: &Shared, caller: Caller) -> io::Result<()> {
        // The present one may have ended without this loop having seen it yet.
        self.check(shared);
        let layout = shared.engine.borrow().layout();
        if self.link.is_some() {
            caller.refuse(&layout);
            tracing::warn!("a second dataplane was turned away");
            return Ok(());
        }
        match caller.settle(self.bundle.as_ref(), &layout) {
            Ok((link, bundle)) => self.meet(shared, link, bundle),
            Err(error) => {
                tracing::error!(%error, "the dataplane was turned away");
                Ok(())
            }
        }
    }

    fn meet(&mut self, shared: &Shared, link: Link, bundle: Bundle) -> io::Result<()> {
        if let Some(errno) = bundle.region.protection_warning() {
            tracing::warn!(%errno, "the shared memory, with keys in it, may be swapped out");
        }
        // A region is taken up once; the same one comes again with each dataplane.
        let view = ControlView::new(bundle.region.clone());
        self.gone = Some(watch(link.fd())?);
        self.bell = Some(watch(bundle.bell.fd())?);
        self.link = Some(link);
        self.bundle = Some(bundle);
        shared.engine.borrow_mut().dataplane_met(view);
        Ok(())
    }

    /// Lets go of a dataplane that is gone.
    fn check(&mut self, shared: &Shared) {
        if self.link.as_ref().is_some_and(Link::is_gone) {
            self.link = None;
            self.gone = None;
            shared.engine.borrow_mut().dataplane_down();
        }
    }
}

/// A descriptor of its own for waiting, so that it can be waited for whoever owns the first.
#[expect(
    deprecated,
    reason = "its successor is unsafe for types that may give up their descriptor; OwnedFd may not"
)]
fn watch(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd.try_clone_to_owned()?, tokio::io::Interest::READABLE)
}

/// Waits until there is something to read; for ever without a descriptor.
async fn readable(fd: Option<&AsyncFd<OwnedFd>>) -> io::Result<()> {
    match fd {
        Some(fd) => {
            // What is readable is read completely by the caller, so the next edge counts again.
            fd.readable().await?.clear_ready();
            Ok(())
        }
        None => pending().await,
    }
}
