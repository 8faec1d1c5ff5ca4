//! `outcall bridge`

use crate::api::BridgeStatus;
use crate::cli::CliError;
use crate::cli::arguments::BridgeCommand;
use crate::cli::client::Client;
use crate::cli::output::{Cell, Output};

pub(super) fn run(command: &BridgeCommand, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let status: BridgeStatus = match command {
        BridgeCommand::Status => client.get("/bridge")?,
        BridgeCommand::Up => client.post_empty("/bridge/up")?,
        BridgeCommand::Down => client.post_empty("/bridge/down")?,
    };
    output.data(&status, |output, status| {
        output.labels(&[
            ("Bridge", status.name.as_str().into()),
            ("State", Cell::state(status.up, if status.up { "up" } else { "down" })),
            ("Index", status.index.map_or_else(|| "-".to_owned(), |index| index.to_string()).into()),
            ("nftables", Cell::state(status.nftables_active, status.nftables.as_str())),
        ])
    })
}
