//! Long-running programs of a lab: started in a namespace, their output in a file, ended by id.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};

use crate::cleanup::{self, Thing};
use crate::command::wait_until;
use crate::namespace::Namespace;

/// How long a program may take to end after SIGTERM before it is killed.
const PATIENCE: Duration = Duration::from_secs(3);
/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 40;

/// Gives a program its own `/run`.
const PRIVATE_RUN: &str = "mount -t tmpfs lab /run && exec \"$0\" \"$@\"";

/// What to start.
#[derive(Debug)]
pub struct Program<'a> {
    /// Short name, used for the log file.
    pub name: &'a str,
    /// The executable.
    pub path: &'a Path,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Additions to its environment.
    pub environment: Vec<(String, String)>,
    /// Whether it sees an empty `/run` of its own: DPDK and charon keep files there that two
    /// instances must not share.
    pub private_run: bool,
}

/// A running program. Dropping it ends it: SIGTERM, then SIGKILL.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `program` inside `namespace`; standard output and error are appended to
    /// `<directory>/<name>.log`.
    pub fn spawn(namespace: &Namespace, program: &Program<'_>, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{}.log", program.name));
        let file = File::options().create(true).append(true).open(&log)?;
        let path = program.path.to_str().context("a program's path is not UTF-8")?;
        let mut command = if program.private_run {
            let mut command = namespace.command("sh");
            command.args(["-c", PRIVATE_RUN, path]);
            command
        } else {
            namespace.command(path)
        };
        command.args(&program.arguments).envs(program.environment.iter().cloned());
        Self::start(program.name, command, log, file)
    }

    fn start(name: &str, mut command: Command, log: PathBuf, file: File) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        cleanup::remember(Thing::Process(child.id().cast_signed()));
        Ok(Self { name: name.to_owned(), child, log, ended: None })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All that it has said so far.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// The end of its log, with a heading, for a failure's message.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        format!("---- {} (process {}) ----\n{}\n", self.name, self.id(), tail.join("\n"))
    }

    /// Fails with the end of its log if it has ended.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.poll()? {
            bail!("{} ended: {}\n{}", self.name, describe(status), self.log_tail());
        }
        Ok(())
    }

    /// Waits until the log holds `text`.
    pub fn wait_for_log(&mut self, text: &str, timeout: Duration) -> Result<()> {
        let what = format!("{} says {text:?}", self.name);
        let waited = wait_until(&what, timeout, || {
            if self.log().contains(text) {
                return Ok(true);
            }
            self.poll().map(|ended| ended.is_some())
        });
        if self.log().contains(text) {
            return Ok(());
        }
        self.check_alive()?;
        waited.with_context(|| self.log_tail())
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.check_alive()?;
        let pid = Pid::from_raw(self.child.id().cast_signed()).context("no process id")?;
        rustix::process::kill_process(pid, signal).with_context(|| format!("{signal:?}"))
    }

    /// `kill -9`: it gets no chance to tidy up. Returns when it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(PATIENCE).map(drop)
    }

    /// Asks it to end and waits. Fails if it has to be killed or ends with an error.
    pub fn terminate(&mut self, timeout: Duration) -> Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.wait(timeout)?;
        if !status.success() && status.signal() != Some(Signal::TERM.as_raw()) {
            bail!("{} ended badly: {}\n{}", self.name, describe(status), self.log_tail());
        }
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.poll()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} did not end within {timeout:?}\n{}", self.name, self.log_tail());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn poll(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
            if self.ended.is_some() {
                cleanup::forget(&Thing::Process(self.child.id().cast_signed()));
            }
        }
        Ok(self.ended)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        if matches!(self.poll(), Ok(None)) && self.terminate(PATIENCE).is_err() {
            // It did not end when asked, or ended badly; the second no longer matters here.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        cleanup::forget(&Thing::Process(self.child.id().cast_signed()));
    }
}

fn describe(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("killed by signal {signal}"),
        None => format!("exit code {}", status.code().unwrap_or(-1)),
    }
}
