//! The operator's command.

use std::process::ExitCode;

fn main() -> ExitCode {
    outcall::cli::run(std::env::args_os())
}
