//! `outcall network`

use super::{count, yes};
use crate::api::{NetworkCreate, NetworkCreated, NetworkDestroyed, NetworkSelect, NetworkStatus};
use crate::cli::CliError;
use crate::cli::arguments::{NetworkCommand, NetworkName};
use crate::cli::client::{Client, encoded};
use crate::cli::output::{Cell, Output};

pub(super) fn run(command: &NetworkCommand, client: &Client, output: &mut Output) -> Result<(), CliError> {
    match command {
        NetworkCommand::Create { select, subnet, gateway } => {
            let wish = NetworkCreate { name: select.name.clone(), subnet: subnet.clone(), gateway: gateway.clone() };
            let made: NetworkCreated = client.post("/network/create", &wish)?;
            output.data(&made, |output, made| {
                output.labels(&[
                    ("Network", made.name.as_str().into()),
                    ("Created", if made.created { "yes".into() } else { "no, it existed".into() }),
                    ("Subnet", made.subnet.as_str().into()),
                    ("Gateway", made.gateway.as_str().into()),
                    ("Id", made.network_id.as_str().into()),
                ])
            })
        }
        NetworkCommand::Status(NetworkName { name }) => {
            let query = name.as_ref().map_or_else(String::new, |name| format!("?name={}", encoded(name)));
            let network: NetworkStatus = client.get(&format!("/network{query}"))?;
            output.data(&network, status)
        }
        NetworkCommand::List => {
            let networks: Vec<NetworkStatus> = client.get("/networks")?;
            output.data(&networks, |output, networks| list(output, networks))
        }
        NetworkCommand::Destroy(NetworkName { name }) => {
            let gone: NetworkDestroyed = client.post("/network/destroy", &NetworkSelect { name: name.clone() })?;
            output.data(&gone, |output, gone| {
                let text = if gone.destroyed { "Destroyed" } else { "Nothing to destroy: there is no" };
                output.line(&format!("{text} network {}.", gone.name))
            })
        }
    }
}

fn status(output: &mut Output, network: &NetworkStatus) -> Result<(), CliError> {
    output.labels(&[
        ("Network", network.name.as_str().into()),
        ("Exists", Cell::state(network.exists, yes(network.exists))),
        ("Subnet", or_dash(network.subnet.as_deref())),
        ("Gateway", or_dash(network.gateway.as_deref())),
        ("Bridge", or_dash(network.bridge.as_deref())),
        ("Id", or_dash(network.network_id.as_deref())),
        ("Containers", count(network.containers.len(), "container").into()),
    ])?;
    if network.containers.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let rows = network
        .containers
        .iter()
        .map(|container| vec![container.name.as_str().into(), container.ipv4_address.as_str().into()])
        .collect();
    output.table(&["CONTAINER", "ADDRESS"], rows)
}

fn list(output: &mut Output, networks: &[NetworkStatus]) -> Result<(), CliError> {
    if networks.is_empty() {
        return output.line("No managed networks. Make one: outcall network create --name NAME");
    }
    let rows = networks
        .iter()
        .map(|network| {
            vec![
                network.name.as_str().into(),
                or_dash(network.subnet.as_deref()),
                or_dash(network.gateway.as_deref()),
                or_dash(network.bridge.as_deref()),
                network.containers.len().to_string().into(),
            ]
        })
        .collect();
    output.table(&["NETWORK", "SUBNET", "GATEWAY", "BRIDGE", "CONTAINERS"], rows)
}

fn or_dash(text: Option<&str>) -> Cell {
    text.unwrap_or("-").into()
}
