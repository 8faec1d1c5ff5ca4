//! The operator's command `outcall`: asks the daemon over its Unix socket and prints what it said.
//!
//! Owns: arguments, text layout, exit codes. Does not own: any decision; what the daemon says is what is printed.
//! Built without the `daemon` feature, so that it links no kernel library.

mod arguments;
mod client;
mod commands;
mod daemon_program;
mod doctor;
mod error;
mod output;
mod transport;
mod ui;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

pub use arguments::{Arguments, DEFAULT_SOCKET};
pub use error::CliError;

/// Parses `arguments` (the program's name first), runs the command and gives the exit code: 0 done, 1 failed,
/// 2 bad arguments.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(refusal) => {
            // Help and version are "errors" that go to stdout with code 0; a closed stdout is the reader's choice.
            let _ = refusal.print();
            return ExitCode::from(u8::try_from(refusal.exit_code()).unwrap_or(error::BAD_ARGUMENTS));
        }
    };
    let mut output = output::Output::stdout(arguments.json);
    let outcome = commands::run(&arguments, &mut output).and_then(|()| output.flush().map_err(CliError::Output));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            // `outcall … | head`: the reader has what it wanted.
            ExitCode::SUCCESS
        }
        Err(error) => {
            // What was printed before the failure comes first; neither stream has another place to complain to.
            let _ = output.flush();
            let _ = writeln!(std::io::stderr(), "error: {}", output::printable(&error.to_string()));
            ExitCode::from(error.exit_code())
        }
    }
}
