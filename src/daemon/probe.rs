//! `outcalld` as the helper of `outcall doctor`: asks the kernel for each feature and prints the answers.
//!
//! A helper of the daemon and not a part of the command, which links no kernel library: what is asked is then the
//! daemon's own code. Owns: the output. Does not own: the questions (`bridge::probe`).

use std::process::ExitCode;

use clap::Parser as _;

use super::Flags;
use super::settings::bridge_config;
use crate::bridge;

/// Prints one JSON object a feature. Exit code 0: all were asked, whatever the answers; 1: none could be.
#[must_use]
pub fn probe_kernel() -> ExitCode {
    let config = bridge_config(&Flags::parse_from(["outcalld"]));
    match bridge::probe(&config) {
        Ok(probed) => {
            for feature in probed {
                // Three plain fields: this cannot fail.
                println!("{}", serde_json::to_string(&feature).unwrap_or_default());
            }
            ExitCode::SUCCESS
        }
        Err(errno) => {
            eprintln!("cannot make a network namespace to ask the kernel in: {}", errno.desc());
            ExitCode::FAILURE
        }
    }
}
