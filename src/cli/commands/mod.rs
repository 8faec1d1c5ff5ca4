//! One file for each group of commands: a call to the API and the layout of its answer.

mod bridge;
mod ca;
mod ca_init;
mod container;
mod dns;
mod dynamic;
mod events;
mod explain;
mod network;
mod overview;
mod proxy;
mod ready;
mod requests;
mod rules;

use super::CliError;
use super::arguments::{Arguments, Group};
use super::client::Client;
use super::doctor;
use super::output::Output;

/// Runs the command of `arguments`.
pub(super) fn run(arguments: &Arguments, output: &mut Output) -> Result<(), CliError> {
    let client = Client::new(&arguments.socket);
    match &arguments.group {
        None => overview::run(&client, output),
        Some(Group::Doctor) => doctor::run(arguments, output),
        Some(Group::Ready) => ready::run(&client, output),
        Some(Group::Bridge(command)) => bridge::run(command, &client, output),
        Some(Group::Dns(command)) => dns::run(command, &client, output),
        Some(Group::Proxy(command)) => proxy::run(command, &client, output),
        Some(Group::Ca(command)) => ca::run(command, &client, output),
        Some(Group::Network(command)) => network::run(command, &client, output),
        Some(Group::Container(command)) => container::run(command, &client, output),
        Some(Group::Requests(command)) => requests::run(command, &client, output),
        Some(Group::Explain(arguments)) => explain::run(arguments, &client, output),
        Some(Group::Events(arguments)) => events::run(arguments, &client, output),
        Some(Group::Rules(command)) => rules::run(command, &client, output),
        Some(Group::Ui { port, no_open }) => crate::cli::ui::run(&arguments.socket, *port, !no_open, output),
    }
}

/// `yes` or `no`.
fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// `1 rule`, `2 rules`.
fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}
