//! `culvert check`: the control process knows what a right configuration is, so it is asked. It
//! need not be running for that.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The program that checks.
const PROGRAM: &str = "culvert-control";

/// The check could not be made.
#[derive(Debug)]
pub(crate) struct CheckError {
    program: PathBuf,
    cause: io::Error,
}

impl std::fmt::Display for CheckError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let program = self.program.display();
        write!(
            f,
            "{program} cannot be run: {}. It checks the configuration; install it beside this \
             command or put it into PATH.",
            self.cause
        )
    }
}

/// Runs the check; its exit code is 0 for a right file and 1 for a wrong one.
pub(crate) fn run(file: &Path) -> Result<ExitCode, CheckError> {
    let program = program();
    let status = Command::new(&program).arg("--check").arg("--config").arg(file).status();
    match status {
        Ok(status) if status.success() => Ok(ExitCode::SUCCESS),
        Ok(_) => Ok(ExitCode::FAILURE),
        Err(cause) => Err(CheckError { program, cause }),
    }
}

/// The program beside this one if there is one, else whatever PATH has.
fn program() -> PathBuf {
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|own| Some(own.parent()?.join(PROGRAM)));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PROGRAM.into())
}
