//! `culvert`: what the gateway does, and telling it what to do.
//!
//! Each command is one request over the control socket ([`culvert_api`]); the answer is printed as
//! a table for people, or with `--json` as it came, one object a line.
//!
//! Exit codes: 0 done, 1 the gateway said no, 2 the command line is wrong, 3 the gateway cannot be
//! reached.
#![forbid(unsafe_code)]

mod check;
mod cli;
mod table;
mod units;
mod views;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use culvert_api::{Client, ClientError, Command, Item, to_line};

use cli::{Arguments, Verb};

/// The gateway said no.
const EXIT_REFUSED: u8 = 1;
/// The gateway cannot be reached, or cannot be understood.
const EXIT_UNREACHABLE: u8 = 3;
/// How much longer than the gateway this command waits for an outcome.
const PATIENCE_EXTRA: Duration = Duration::from_secs(10);

/// Why a command did not do what was asked.
#[derive(Debug)]
enum Failure {
    Client(ClientError),
    Check(check::CheckError),
    Input(io::Error),
    Output(io::Error),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.verb {
        Verb::Check { file } => check::run(file).map_err(Failure::Check),
        _ => run(&arguments).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|failure| explain(&failure, &arguments))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let command = arguments.command().map_err(Failure::Input)?;
    let mut client = Client::connect(&arguments.socket).map_err(Failure::Client)?;
    match &command {
        Command::Events { follow: true } => client.patience(None),
        _ => client.patience(Some(Duration::from_secs(command.wait_s().into()) + PATIENCE_EXTRA)),
    }
    .map_err(|error| Failure::Client(error.into()))?;
    if arguments.json || matches!(command, Command::Events { .. }) {
        return stream(&mut client, command, arguments.json);
    }
    let mut rows = Vec::new();
    let asked = client.ask(command, |item| {
        if let Item::Row(row) = item {
            rows.push(*row);
        }
    });
    // What of several did work is told before that not all did.
    if asked.is_ok() || !rows.is_empty() {
        print(|out| views::rows(&rows, out))?;
    }
    asked.map_err(Failure::Client)
}

/// Prints each row or event as it comes.
fn stream(client: &mut Client, command: Command, json: bool) -> Result<(), Failure> {
    let mut written = Ok(());
    let asked = client.ask(command, |item| {
        if written.is_ok() {
            written = print(|out| item_line(&item, json, out));
        }
        if written.is_err() {
            // Nobody reads any more, so there is nothing to wait for.
            exit_quietly();
        }
    });
    written.and(asked.map_err(Failure::Client))
}

fn item_line(item: &Item, json: bool, out: &mut dyn Write) -> io::Result<()> {
    match item {
        Item::Row(row) if json => out.write_all(&to_line(row)?),
        Item::Event(event) if json => out.write_all(&to_line(event)?),
        Item::Row(row) => views::rows(std::slice::from_ref(row), out),
        Item::Event(event) => views::event(event, out),
    }
}

fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    write(&mut out).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// A reader such as `head` that has seen enough is no failure.
fn exit_quietly() -> ! {
    std::process::exit(0)
}

/// Says what went wrong and what to do; the exit code that goes with it.
fn explain(failure: &Failure, arguments: &Arguments) -> ExitCode {
    match failure {
        Failure::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => exit_quietly(),
        Failure::Output(error) => {
            eprintln!("culvert: the output cannot be written: {error}");
            ExitCode::from(EXIT_REFUSED)
        }
        Failure::Input(error) => {
            eprintln!("culvert: {error}");
            ExitCode::from(EXIT_REFUSED)
        }
        Failure::Check(error) => {
            eprintln!("culvert: {error}");
            ExitCode::from(EXIT_UNREACHABLE)
        }
        Failure::Client(error @ (ClientError::Refused(_) | ClientError::RequestTooLong(_))) => {
            // A file may have several mistakes, each on its line.
            for line in error.to_string().lines() {
                eprintln!("culvert: {}", table::printable(line));
            }
            ExitCode::from(EXIT_REFUSED)
        }
        Failure::Client(error) => {
            eprintln!("culvert: {}", table::printable(&error.to_string()));
            eprintln!("{}", advice(error, arguments));
            ExitCode::from(EXIT_UNREACHABLE)
        }
    }
}

fn advice(error: &ClientError, arguments: &Arguments) -> String {
    match error {
        ClientError::Unreachable { cause, .. } => match cause.kind() {
            io::ErrorKind::PermissionDenied => {
                "Your user may not use the socket: run this as root, or join the group that \
                 socket_group names in the configuration."
                    .into()
            }
            _ => format!(
                "Is the control process running? Start it with `systemctl start culvert-control` \
                 or `culvert-control --config {}`. If its runtime_dir is another one, name the \
                 socket with --socket.",
                culvert_api::CONFIG_PATH_DEFAULT
            ),
        },
        ClientError::Version(_) => {
            "Install the command and the gateway from the same build.".to_owned()
        }
        _ => format!(
            "See the control process's log; is it a Culvert that listens at {}?",
            arguments.socket.display()
        ),
    }
}
