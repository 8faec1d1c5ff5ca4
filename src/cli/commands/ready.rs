//! `outcall ready`: what `/ready` says, as an exit code. The image's health check.

use crate::api::Ready;
use crate::cli::CliError;
use crate::cli::client::Client;
use crate::cli::output::{Cell, Output};

pub(super) fn run(client: &Client, output: &mut Output) -> Result<(), CliError> {
    let ready = ask(client)?;
    output.data(&ready, |output, ready| {
        let mut rows = vec![state(ready)];
        rows.extend(faults(ready));
        output.labels(&rows)
    })?;
    if ready.ready { Ok(()) } else { Err(CliError::Unsuccessful("outcalld is not ready".to_owned())) }
}

/// The readiness, which is in the answer whether it is 200 or 503.
pub(super) fn ask(client: &Client) -> Result<Ready, CliError> {
    let answer = client.get_any::<Ready>("/ready")?;
    answer.envelope.data.ok_or_else(|| {
        let message = answer.envelope.error.unwrap_or_else(|| format!("GET /ready: status {}", answer.status));
        CliError::Refused { status: answer.status, message }
    })
}

/// One line for the whole.
pub(super) fn state(ready: &Ready) -> (&'static str, Cell) {
    ("outcalld", Cell::state(ready.ready, if ready.ready { "ready" } else { "not ready" }))
}

/// One line for each part that does not work.
pub(super) fn faults(ready: &Ready) -> impl Iterator<Item = (&'static str, Cell)> {
    ready.parts.iter().filter(|(_, part)| !part.ok).map(|(name, part)| {
        let reason = part.reason.as_deref().unwrap_or("no reason given");
        ("Not ready", Cell::bad(format!("{name}: {reason}")))
    })
}
