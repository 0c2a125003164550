//! Whose turn it is: one lab at a time runs on a machine, whichever process it belongs to. Labs
//! share the cores, and a busy neighbour would make every bound meaningless.
//!
//! Each lab takes its turn for itself, so that several test runs on one machine go on side by side.
//! Two locks keep it fair: whoever waits first in line holds the door, and who has just ended a lab
//! has to pass the door, too, before it can have the next one.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a lab waits for its turn: for several runs of ordinary tests before it.
const PATIENCE: Duration = Duration::from_secs(900);
const POLL: Duration = Duration::from_millis(20);

/// The right to run a lab; it ends when this is dropped, and with the process in any case.
#[derive(Debug)]
pub(crate) struct Turn {
    _lock: File,
}

impl Turn {
    /// Waits until no other lab runs on this machine.
    pub(crate) fn take() -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let door = lock("culvert-lab.door", deadline)?;
        let turn = lock("culvert-lab.lock", deadline)?;
        drop(door);
        Ok(Self { _lock: turn })
    }
}

fn lock(name: &str, deadline: Instant) -> Result<File> {
    let path = std::env::temp_dir().join(name);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    while file.try_lock().is_err() {
        if Instant::now() >= deadline {
            bail!("other labs have held {} for {PATIENCE:?}", path.display());
        }
        thread::sleep(POLL);
    }
    Ok(file)
}
