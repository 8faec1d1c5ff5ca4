//! `outcall-agent`, the shim in containers: asks the daemon, then runs what was permitted.
//!
//! Owns: its command line, one conversation with the daemon, the permitted command and its signals. Does not own:
//! any decision. It is bind-mounted into images that may hold nothing else, so it needs no other file than the
//! agent socket, and nothing of the daemon's dependencies but the shared JSON vocabulary.
//!
//! | file | what it is |
//! |---|---|
//! | `command` | the command line: what is asked, what is run |
//! | `response` | the daemon's answers, sans-I/O |
//! | `client` | the conversation over the socket, within a deadline |
//! | `child` | the permitted command: started, signalled, waited for |
//! | `heartbeat` | check-ins while it runs |
//! | `sys` | the system calls that Rust counts as unsafe |
//!
//! Nothing is ever written to stdout: that belongs to the command.

mod child;
mod client;
mod command;
mod heartbeat;
mod response;
mod sys;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

pub use client::{AskError, Session};
pub use command::{Ask, Command, UsageError};

/// Where outcalld mounts the socket in containers.
const SOCKET: &str = "/run/outcall/agent.sock";
/// Names another socket, for containers that were not made by outcalld.
const SOCKET_VARIABLE: &str = "OUTCALL_AGENT_SOCKET";
const TIMEOUT_VARIABLE: &str = "OUTCALL_TIMEOUT_SECS";
const TIMEOUT_DEFAULT_SECS: u64 = 30;
/// An hour: longer, and a typing error looks like a hang.
const TIMEOUT_MAX_SECS: u64 = 3600;

const EXIT_DENIED: u8 = 1;
const EXIT_USAGE: u8 = 2;
const EXIT_UNREACHABLE: u8 = 5;

/// Where and how long to ask.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The agent socket.
    pub socket: PathBuf,
    /// For the whole conversation before the command runs, and for each heartbeat.
    pub timeout: Duration,
}

/// Runs the shim with `arguments` (without the program's name). Exit code: 0 allowed and done; 1 denied; 2 bad
/// arguments; 5 no verdict, nothing run; else the command's own, 128 and the signal's number when one ended it.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let command = match command::parse(arguments.collect()) {
        Ok(Command::Ask(ask)) => ask,
        Ok(Command::Help) => {
            say(command::USAGE);
            return ExitCode::SUCCESS;
        }
        Ok(Command::Version) => {
            say(concat!("outcall-agent ", env!("CARGO_PKG_VERSION")));
            return ExitCode::SUCCESS;
        }
        Err(error) => return usage(&error),
    };
    let settings = match settings() {
        Ok(settings) => settings,
        Err(error) => return usage(&error),
    };
    match client::ask(&settings, &command.check) {
        Ok((verdict, session)) if verdict.allowed => match command.run {
            Some(argv) => child::run(&argv, session),
            None => ExitCode::SUCCESS,
        },
        Ok((verdict, _)) => {
            say(&format!("outcall: denied: {}", printable(&verdict.reason)));
            ExitCode::from(EXIT_DENIED)
        }
        Err(error) => {
            let socket = settings.socket.display();
            say(&format!("outcall: no verdict from outcalld at {socket}: {error}; nothing was run"));
            ExitCode::from(EXIT_UNREACHABLE)
        }
    }
}

fn usage(error: &UsageError) -> ExitCode {
    say(&format!("outcall: {error}\n{}", command::USAGE));
    ExitCode::from(EXIT_USAGE)
}

fn settings() -> Result<Settings, UsageError> {
    let socket = std::env::var_os(SOCKET_VARIABLE).map_or_else(|| PathBuf::from(SOCKET), PathBuf::from);
    let secs = match std::env::var_os(TIMEOUT_VARIABLE) {
        None => TIMEOUT_DEFAULT_SECS,
        Some(text) => timeout_secs(&text).ok_or_else(|| UsageError::Timeout(text.to_string_lossy().into_owned()))?,
    };
    Ok(Settings { socket, timeout: Duration::from_secs(secs) })
}

fn timeout_secs(text: &std::ffi::OsStr) -> Option<u64> {
    let text = text.to_str()?;
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let secs = if digits { text.parse().ok()? } else { return None };
    (1..=TIMEOUT_MAX_SECS).contains(&secs).then_some(secs)
}

/// One message to stderr. A stderr that is gone is no reason to fail.
fn say(message: &str) {
    let _ = writeln!(std::io::stderr(), "{message}");
}

/// Text from the daemon, fit for a terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_is_a_whole_number_of_seconds_up_to_an_hour() {
        assert_eq!(timeout_secs("1".as_ref()), Some(1));
        assert_eq!(timeout_secs("3600".as_ref()), Some(3600));
        for bad in ["", "0", "3601", "-1", "+1", "1.5", "5s", " 5"] {
            assert_eq!(timeout_secs(bad.as_ref()), None, "{bad}");
        }
    }
}
