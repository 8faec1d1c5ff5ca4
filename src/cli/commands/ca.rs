//! `outcall ca status`, `outcall ca bundle`

use crate::api::{CaBundle, CaStatus};
use crate::cli::CliError;
use crate::cli::arguments::CaCommand;
use crate::cli::client::Client;
use crate::cli::output::{Cell, Output};

use super::ca_init;

/// The API's status when no CA is loaded.
const NO_CA: u16 = 404;

pub(super) fn run(command: &CaCommand, client: &Client, output: &mut Output) -> Result<(), CliError> {
    match command {
        CaCommand::Init { out, algorithm, constrain } => ca_init::run(out, *algorithm, constrain, output),
        CaCommand::Status => {
            let status: CaStatus = client.get("/ca").map_err(without_ca)?;
            output.data(&status, text)
        }
        CaCommand::Bundle => {
            let bundle: CaBundle = client.get("/ca/bundle").map_err(without_ca)?;
            output.data(&bundle, |output, bundle| bundle.pem_bundle.lines().try_for_each(|line| output.line(line)))
        }
    }
}

fn text(output: &mut Output, status: &CaStatus) -> Result<(), CliError> {
    output.labels(&[
        ("CA", Cell::state(status.loaded, if status.loaded { "loaded" } else { "not loaded" })),
        ("Subject", status.subject.as_str().into()),
        ("SHA-256", status.fingerprint_sha256.as_str().into()),
        ("Valid from", status.not_before.as_str().into()),
        ("Valid until", status.not_after.as_str().into()),
        ("Certificates", format!("{} of at most {} kept", status.leaf_cache_size, status.leaf_cache_max).into()),
    ])
}

/// No CA has an exit code of its own, for scripts that may do without.
fn without_ca(error: CliError) -> CliError {
    match error {
        CliError::Refused { status: NO_CA, message } => CliError::NoCa(message),
        other => other,
    }
}
