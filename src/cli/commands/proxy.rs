//! `outcall proxy`

use crate::api::ProxyStatus;
use crate::cli::CliError;
use crate::cli::arguments::ProxyCommand;
use crate::cli::client::Client;
use crate::cli::output::{Cell, Output};

pub(super) fn run(command: &ProxyCommand, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let ProxyCommand::Status = command;
    let status: ProxyStatus = client.get("/proxy")?;
    output.data(&status, |output, status| {
        output.labels(&[
            ("Proxy", Cell::state(status.running, if status.running { "running" } else { "off" })),
            ("Listens on", or_dash(&status.listen_address)),
            ("URL", or_dash(&status.proxy_url)),
            ("Connections", status.active_connections.to_string().into()),
            ("Requests", status.total_requests.to_string().into()),
            ("Blocked", status.total_blocked.to_string().into()),
        ])
    })
}

fn or_dash(text: &str) -> Cell {
    if text.is_empty() { "-".into() } else { text.into() }
}
