//! What a lab leaves on the machine, and how it is taken away whatever happens.
//!
//! Three ways lead here. Guards (`Namespace`, `Process`, `WorkDir`) take their own thing away when
//! they are dropped, which covers success, `?` and an unwinding panic. [`install`] adds a signal
//! thread and a panic hook for SIGINT, SIGTERM and aborting panics: they walk the same list.
//! [`reap`] covers what is left, a lab that was killed: namespaces whose name carries the id of a
//! process that no longer lives.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use rustix::process::{Pid, Signal};

/// Every namespace of a lab is named `cv<pid>-<lab>-<role>`, so that its owner can be told.
pub(crate) const PREFIX: &str = "cv";
/// Where kept labs are marked, one empty file named by the process id that built them.
const KEPT: &str = "/run/culvert-lab";
/// Most processes that are ended in one leftover namespace. A lab starts fewer than ten in each.
const LEFTOVERS_MAX: usize = 256;

/// One thing that has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Thing {
    Process(i32),
    Namespace(String),
    Directory(PathBuf),
}

static THINGS: Mutex<Vec<Thing>> = Mutex::new(Vec::new());

fn things() -> MutexGuard<'static, Vec<Thing>> {
    THINGS.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn remember(thing: Thing) {
    things().push(thing);
}

pub(crate) fn forget(thing: &Thing) {
    things().retain(|other| other != thing);
}

/// Installs the signal thread and the panic hook, once for the process.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            previous(info);
            if cfg!(panic = "abort") {
                everything();
            }
        }));
        let signals = [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];
        match signal_hook::iterator::Signals::new(signals) {
            Ok(mut signals) => {
                std::thread::spawn(move || {
                    if let Some(signal) = signals.forever().next() {
                        everything();
                        std::process::exit(128 + signal);
                    }
                });
            }
            Err(error) => eprintln!("lab: signals will not clean up: {error}"),
        }
    });
}

/// Takes away all that this process still owns: processes first, since they pin namespaces.
pub fn everything() {
    let mut list = std::mem::take(&mut *things());
    list.sort_by_key(|thing| match thing {
        Thing::Process(_) => 0,
        Thing::Namespace(_) => 1,
        Thing::Directory(_) => 2,
    });
    for thing in list {
        match thing {
            Thing::Process(pid) => kill(pid),
            Thing::Namespace(name) => delete_namespace(&name),
            Thing::Directory(path) => delete_directory(&path),
        }
    }
}

/// Hands everything over to whoever ends the lab later with [`end`]: nothing is taken away when
/// this process exits, and [`reap`] leaves it alone.
pub fn keep() -> anyhow::Result<()> {
    fs::create_dir_all(KEPT)?;
    let directories: Vec<String> = things()
        .iter()
        .filter_map(|thing| match thing {
            Thing::Directory(path) => Some(path.display().to_string()),
            Thing::Process(_) | Thing::Namespace(_) => None,
        })
        .collect();
    fs::write(kept_marker(std::process::id()), directories.join("\n"))?;
    things().clear();
    Ok(())
}

/// Ends the kept lab of process `pid`. Returns how many namespaces it had.
pub fn end(pid: u32) -> usize {
    let marker = kept_marker(pid);
    let names = namespaces_of(|owner| owner == pid);
    for name in &names {
        end_namespace(name);
    }
    for directory in fs::read_to_string(&marker).unwrap_or_default().lines() {
        delete_directory(Path::new(directory));
    }
    // A lab that was not kept has no marker.
    let _ = fs::remove_file(marker);
    names.len()
}

/// The process ids of labs that were kept and not yet ended.
pub fn kept() -> Vec<u32> {
    let Ok(entries) = fs::read_dir(KEPT) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Ends what labs left that were killed. Returns how many namespaces went.
pub fn reap() -> usize {
    let kept = kept();
    let dead =
        |owner: u32| !kept.contains(&owner) && !Path::new(&format!("/proc/{owner}")).exists();
    let names = namespaces_of(dead);
    for name in &names {
        end_namespace(name);
    }
    names.len()
}

fn kept_marker(pid: u32) -> PathBuf {
    Path::new(KEPT).join(pid.to_string())
}

/// Named namespaces whose owner, read from the name, satisfies `wanted`.
fn namespaces_of(wanted: impl Fn(u32) -> bool) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| owner(name).is_some_and(&wanted))
        .collect()
}

/// The process id in a namespace's name, if it is one of a lab.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

fn end_namespace(name: &str) {
    let pids = Command::new("ip").args(["netns", "pids", name]).output();
    let pids = pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    for pid in pids.unwrap_or_default().lines().take(LEFTOVERS_MAX) {
        if let Ok(pid) = pid.trim().parse() {
            kill(pid);
        }
    }
    delete_namespace(name);
}

fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended by itself: then there is nothing to do.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

pub(crate) fn delete_namespace(name: &str) {
    let result = Command::new("ip")
        .args(["netns", "del", name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if let Err(error) = result {
        eprintln!("lab: namespace {name} stays: {error}");
    }
}

pub(crate) fn delete_directory(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("lab: {} stays: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_labs_have_an_owner() {
        assert_eq!(owner("cv123-0-inside-a"), Some(123));
        for name in ["cv-0-x", "cvabc-0-x", "other", "cv123", "vc123-0-x"] {
            assert_eq!(owner(name), None, "{name}");
        }
    }
}
