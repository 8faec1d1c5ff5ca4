//! `outcall rules active|flush|allow`: flows that may leave directly.

use super::count;
use crate::api::{ActiveRule, NetworkStatus, RuleAllow, RulesFlushed};
use crate::cli::CliError;
use crate::cli::arguments::AllowArguments;
use crate::cli::client::Client;
use crate::cli::output::Output;

pub(super) fn active(client: &Client, output: &mut Output) -> Result<(), CliError> {
    let rules: Vec<ActiveRule> = client.get("/rules/active")?;
    output.data(&rules, |output, rules| list(output, rules))
}

pub(super) fn flush(client: &Client, output: &mut Output) -> Result<(), CliError> {
    let flushed: RulesFlushed = client.post_empty("/rules/flush")?;
    output.data(&flushed, |output, flushed| {
        output.line(&format!("Closed {}; what ran of them is ended.", count(flushed.removed, "direct flow")))
    })
}

pub(super) fn allow(arguments: &AllowArguments, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let src_ip = match arguments.src_ip {
        Some(address) => address.to_string(),
        None => address_of(&arguments.container, client)?,
    };
    let body = RuleAllow {
        container: arguments.container.clone(),
        src_ip,
        destination: arguments.destination.to_string(),
        protocol: arguments.protocol.clone(),
        port: arguments.port,
        expires_in_secs: Some(arguments.expires_in_secs),
    };
    let rule: ActiveRule = client.post("/rule/allow", &body)?;
    output.data(&rule, |output, rule| {
        let ActiveRule { container, destination, port, protocol, expires_in_secs, .. } = rule;
        output.line(&format!("{container} may reach {destination}:{port} ({protocol}) for {expires_in_secs} s."))?;
        output.line("`outcall rules active` shows it; `outcall rules flush` ends all such flows.")
    })
}

/// The container's only address on managed networks.
fn address_of(container: &str, client: &Client) -> Result<String, CliError> {
    let networks: Vec<NetworkStatus> = client.get("/networks")?;
    let own = networks.iter().flat_map(|network| &network.containers).filter(|attached| attached.name == container);
    let addresses: Vec<&str> = own.map(|attached| bare(&attached.ipv4_address)).collect();
    match addresses[..] {
        [address] => Ok(address.to_owned()),
        [] => Err(CliError::Argument(format!(
            "no container named {container} is on a managed network; with an id, give --src-ip too"
        ))),
        _ => Err(CliError::Argument(format!(
            "{container} has several addresses ({}): give --src-ip",
            addresses.join(", ")
        ))),
    }
}

/// An address without its prefix length.
fn bare(address: &str) -> &str {
    address.split_once('/').map_or(address, |(address, _)| address)
}

fn list(output: &mut Output, rules: &[ActiveRule]) -> Result<(), CliError> {
    if rules.is_empty() {
        return output.line("No flow is open directly.");
    }
    let rows = rules
        .iter()
        .map(|rule| {
            vec![
                rule.container.as_str().into(),
                rule.destination.as_str().into(),
                rule.port.to_string().into(),
                rule.protocol.as_str().into(),
                format!("{} s", rule.expires_in_secs).into(),
                rule.packets.to_string().into(),
                rule.bytes.to_string().into(),
                rule.inserted_at.as_str().into(),
            ]
        })
        .collect();
    output.table(&["CONTAINER", "DESTINATION", "PORT", "PROTO", "EXPIRES", "PACKETS", "BYTES", "SINCE"], rows)
}
