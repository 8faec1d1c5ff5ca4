//! `outcall container`

use std::io::{IsTerminal as _, Write as _};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::count;
use crate::api::{
    ContainerCreate, ContainerCreated, ContainerDetail, ContainerPull, ContainerPulled, ContainerRemove,
    ContainerRemoved, ContainerStop, ContainerStopped, ContainerSummary, Environment, Words,
};
use crate::cli::CliError;
use crate::cli::arguments::{ContainerArguments, ContainerCommand};
use crate::cli::client::{Client, encoded};
use crate::cli::output::{Cell, Output, printable};

/// How long each may take: a little more than the daemon's own deadline, so that its own words arrive.
const CREATE_LIMIT: Duration = Duration::from_secs(130);
const STOP_LIMIT: Duration = Duration::from_secs(340);
const PULL_LIMIT: Duration = Duration::from_secs(3610);
/// How often a pull's line on the terminal is written anew.
const TICK: Duration = Duration::from_secs(1);

pub(super) fn run(command: &ContainerCommand, client: &Client, output: &mut Output) -> Result<(), CliError> {
    match command {
        ContainerCommand::Create(arguments) => {
            let wish = wish(arguments)?;
            let made: ContainerCreated = client.post_within("/container/create", &wish, CREATE_LIMIT)?;
            output.data(&made, created)
        }
        ContainerCommand::List => {
            let containers: Vec<ContainerSummary> = client.get("/containers")?;
            output.data(&containers, |output, containers| list(output, containers))
        }
        ContainerCommand::Inspect { name } => {
            let container: ContainerDetail = client.get(&format!("/container?name={}", encoded(name)))?;
            output.data(&container, detail)
        }
        ContainerCommand::Stop { name, timeout } => {
            let request = ContainerStop { name: name.clone(), timeout: *timeout };
            let stopped: ContainerStopped = client.post_within("/container/stop", &request, STOP_LIMIT)?;
            output.data(&stopped, |output, stopped| {
                let text = if stopped.stopped { "Stopped" } else { "It did not run:" };
                output.line(&format!("{text} container {}.", stopped.name))
            })
        }
        ContainerCommand::Remove { name, force } => {
            let request = ContainerRemove { name: name.clone(), force: *force };
            let removed: ContainerRemoved = client.post("/container/remove", &request)?;
            output.data(&removed, |output, removed| output.line(&format!("Removed container {}.", removed.name)))
        }
        ContainerCommand::Pull { image } => {
            let pulled = pull(client, image)?;
            output.data(&pulled, |output, pulled| output.line(&format!("Pulled image {}.", pulled.image)))
        }
    }
}

fn wish(arguments: &ContainerArguments) -> Result<ContainerCreate, CliError> {
    let command = (!arguments.command.is_empty()).then(|| Words(arguments.command.clone()));
    Ok(ContainerCreate {
        image: arguments.image.clone(),
        network: arguments.network.clone(),
        name: arguments.name.clone(),
        user: arguments.user.clone(),
        memory_limit: arguments.memory,
        cpu_shares: arguments.cpu_shares,
        env: environment(&arguments.env)?,
        cmd: command,
        entrypoint: arguments.entrypoint.clone().map(|program| Words(vec![program])),
        working_dir: arguments.workdir.clone(),
        volumes: arguments.volume.clone(),
        include_outcall_helper_mounts: arguments.helper_mounts,
        interactive: arguments.interactive,
        tty: arguments.tty,
        read_only: arguments.read_only,
    })
}

/// `NAME=VALUE`, or `NAME` for the value that this process has: a secret then stands in no list of processes.
fn environment(entries: &[String]) -> Result<Environment, CliError> {
    let read = |entry: &String| match entry.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => match std::env::var(entry) {
            Ok(value) => Ok((entry.clone(), value)),
            Err(std::env::VarError::NotPresent) => {
                Err(CliError::Argument(format!("--env {entry}: there is no such variable here; give {entry}=VALUE")))
            }
            Err(std::env::VarError::NotUnicode(_)) => {
                Err(CliError::Argument(format!("--env {entry}: its value here is no UTF-8")))
            }
        },
    };
    entries.iter().map(read).collect::<Result<_, _>>().map(Environment)
}

fn created(output: &mut Output, made: &ContainerCreated) -> Result<(), CliError> {
    output.labels(&[("Container", made.name.as_str().into()), ("Id", made.container_id.as_str().into())])?;
    made.notes.iter().try_for_each(|note| output.line(&format!("Note: {note}")))
}

fn list(output: &mut Output, containers: &[ContainerSummary]) -> Result<(), CliError> {
    if containers.is_empty() {
        return output.line("No containers made by outcalld. Make one: outcall container create IMAGE");
    }
    let rows = containers
        .iter()
        .map(|container| {
            vec![
                container.name.as_str().into(),
                short(&container.container_id).into(),
                container.image.as_str().into(),
                state(&container.state),
                container.network.as_str().into(),
                container.created_at.as_str().into(),
            ]
        })
        .collect();
    output.table(&["CONTAINER", "ID", "IMAGE", "STATE", "NETWORK", "CREATED"], rows)
}

fn detail(output: &mut Output, container: &ContainerDetail) -> Result<(), CliError> {
    let summary = &container.summary;
    output.labels(&[
        ("Container", summary.name.as_str().into()),
        ("Id", summary.container_id.as_str().into()),
        ("Image", summary.image.as_str().into()),
        ("State", state(&summary.state)),
        ("Network", summary.network.as_str().into()),
        ("Address", container.ip_address.as_deref().unwrap_or("-").into()),
        ("Created", summary.created_at.as_str().into()),
        ("Mounts", count(container.mounts.len(), "mount").into()),
        ("Environment", if container.env.is_empty() { "-".into() } else { container.env.join("\n").into() }),
    ])?;
    if container.mounts.is_empty() {
        return Ok(());
    }
    output.line("")?;
    let rows = container
        .mounts
        .iter()
        .map(|mount| {
            let mode = if mount.read_only { "ro" } else { "rw" };
            vec![mount.source.as_str().into(), mount.target.as_str().into(), mode.into()]
        })
        .collect();
    output.table(&["SOURCE", "TARGET", "MODE"], rows)
}

fn state(state: &str) -> Cell {
    if state == "running" { Cell::good(state) } else { state.into() }
}

fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// Waits for a pull; on a terminal a line says for how long already.
fn pull(client: &Client, image: &str) -> Result<ContainerPulled, CliError> {
    let request = ContainerPull { image: image.to_owned() };
    let stderr = std::io::stderr();
    if !stderr.is_terminal() {
        return client.post_within("/container/pull", &request, PULL_LIMIT);
    }
    let (done, wait) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let begun = Instant::now();
            // The terminal may be gone; the pull is what counts.
            while wait.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let _ = write!(std::io::stderr(), "\rpulling {} … {} s", printable(image), begun.elapsed().as_secs());
            }
            if begun.elapsed() >= TICK {
                let _ = write!(std::io::stderr(), "\r\x1b[K");
            }
        });
        let pulled = client.post_within("/container/pull", &request, PULL_LIMIT);
        drop(done);
        pulled
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_given_or_taken_from_here() {
        let path = std::env::var("PATH").unwrap();
        let env = environment(&["A=b=c".to_owned(), "PATH".to_owned()]).unwrap();
        assert_eq!(env.0, [("A".to_owned(), "b=c".to_owned()), ("PATH".to_owned(), path)]);
        let error = environment(&["OUTCALL_NO_SUCH".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("OUTCALL_NO_SUCH") && error.exit_code() == 2);
    }
}
