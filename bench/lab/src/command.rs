//! Short commands (`ip`, `nft`, `swanctl`): always bounded in time, and an error says what was run
//! and what it answered.

use std::io::{Read, Write};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A command that takes longer than this has hung.
pub const TIMEOUT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// What a finished command said.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
}

/// Runs `command` with `input` on its standard input. Fails if it cannot be started or does not end
/// within `timeout`; its exit status is the caller's to judge.
pub fn output(mut command: Command, input: &str, timeout: Duration) -> Result<Output> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input closes the pipe: its status tells whether it minds.
        let _ = stdin.write_all(input.as_bytes());
    }
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let deadline = Instant::now() + timeout;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("{shown} did not end within {timeout:?}");
        }
        thread::sleep(POLL);
    };
    let text = |thread: thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Ok(Output { status, stdout: text(stdout), stderr: text(stderr) })
}

/// Reads a pipe to its end on a thread of its own, so that a full pipe never blocks the command.
fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut octets = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            let _ = pipe.read_to_end(&mut octets);
        }
        String::from_utf8_lossy(&octets).into_owned()
    })
}

/// Runs `command` and expects success: returns its standard output.
pub fn succeed(command: Command, input: &str) -> Result<String> {
    let shown = format!("{command:?}");
    let output = output(command, input, TIMEOUT)?;
    if !output.status.success() {
        bail!("{shown}: {}\n{}{}", output.status, output.stdout, output.stderr);
    }
    Ok(output.stdout)
}

/// Runs a command line split at white space, on the machine itself, and expects success.
pub fn line(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("an empty command")?);
    command.args(words);
    succeed(command, "")
}

/// Asks `condition` until it holds. Fails after `timeout` with `what` in the message.
pub fn wait_until(
    what: &str,
    timeout: Duration,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let last = condition();
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            last.with_context(|| format!("{what}: not within {timeout:?}"))?;
            bail!("{what}: not within {timeout:?}");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_shows_what_it_said() {
        let error = line("ls /does/not/exist").unwrap_err().to_string();
        assert!(error.contains("/does/not/exist"), "{error}");
    }

    #[test]
    fn a_hanging_command_is_ended() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let error = output(command, "", Duration::from_millis(100)).unwrap_err().to_string();
        assert!(error.contains("did not end"), "{error}");
    }

    #[test]
    fn more_output_than_a_pipe_holds_does_not_block() {
        let mut command = Command::new("head");
        command.args(["-c", "300000", "/dev/zero"]);
        assert_eq!(succeed(command, "").unwrap().len(), 300_000);
    }
}
