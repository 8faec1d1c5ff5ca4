//! `outcall requests`

use crate::api::{PendingRuleRequest, RuleRequestApprove, RuleRequestApproved, RuleRequestReject, RuleRequestRejected};
use crate::cli::CliError;
use crate::cli::arguments::RequestsCommand;
use crate::cli::client::{Client, encoded};
use crate::cli::output::Output;

use super::count;

pub(super) fn run(command: &RequestsCommand, client: &Client, output: &mut Output) -> Result<(), CliError> {
    match command {
        RequestsCommand::List => {
            let requests: Vec<PendingRuleRequest> = client.get("/requests/rules")?;
            output.data(&requests, |output, requests| list(output, requests))
        }
        RequestsCommand::Show { id, all_agents } => {
            let request = find(client, id, *all_agents)?;
            output.data(&request, show)
        }
        RequestsCommand::Approve { id, all_agents } => {
            // A request never changes: what is shown here is what is installed.
            let request = find(client, id, *all_agents)?;
            let body = RuleRequestApprove { all_agents: *all_agents };
            let approved: RuleRequestApproved =
                client.post(&format!("/requests/rules/{}/approve", encoded(id)), &body)?;
            output.data(&approved, |output, approved| {
                let rules = count(approved.rules_loaded, "rule");
                output.line(&format!("Approved {}; {rules} in force. Installed as agent-{0}.yaml:", approved.id))?;
                file(output, &request.installs)
            })
        }
        RequestsCommand::Reject { id, reason } => {
            let body = RuleRequestReject { reason: reason.clone() };
            let rejected: RuleRequestRejected =
                client.post(&format!("/requests/rules/{}/reject", encoded(id)), &body)?;
            output.data(&rejected, |output, rejected| output.line(&format!("Rejected {}.", rejected.id)))
        }
    }
}

fn find(client: &Client, id: &str, all_agents: bool) -> Result<PendingRuleRequest, CliError> {
    let path = if all_agents { "/requests/rules?all_agents=true" } else { "/requests/rules" };
    let requests: Vec<PendingRuleRequest> = client.get(path)?;
    let found = requests.into_iter().find(|request| request.id == id);
    found.ok_or_else(|| {
        CliError::Unsuccessful(format!("no rule request {id} waits; `outcall requests list` shows those that do"))
    })
}

fn list(output: &mut Output, requests: &[PendingRuleRequest]) -> Result<(), CliError> {
    if requests.is_empty() {
        return output.line("No rule requests wait.");
    }
    let rows = requests
        .iter()
        .map(|request| {
            let rules = request.installs.lines().filter(|line| line.starts_with("  - id: ")).count();
            vec![
                request.id.as_str().into(),
                request.container.as_str().into(),
                rules.to_string().into(),
                request.submitted_at.as_str().into(),
            ]
        })
        .collect();
    output.table(&["ID", "CONTAINER", "RULES", "SUBMITTED"], rows)?;
    output.line("`outcall requests show ID` prints the file that an approval installs.")
}

fn show(output: &mut Output, request: &PendingRuleRequest) -> Result<(), CliError> {
    let container_id: String = request.container_id.chars().take(12).collect();
    output.labels(&[
        ("Request", request.id.as_str().into()),
        ("Container", format!("{} ({container_id})", request.container).into()),
        ("Submitted", request.submitted_at.as_str().into()),
        ("Installs", format!("agent-{}.yaml", request.id).into()),
    ])?;
    for remark in request.lint.iter().flatten() {
        output.labels(&[("Look at", remark.as_str().into())])?;
    }
    output.line("")?;
    file(output, &request.installs)
}

fn file(output: &mut Output, text: &str) -> Result<(), CliError> {
    text.lines().try_for_each(|line| output.line(line))
}
