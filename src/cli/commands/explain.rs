//! `outcall explain`

use crate::api::{ExplainFailed, ExplainNear, ExplainRequest, Explained};
use crate::cli::CliError;
use crate::cli::arguments::ExplainArguments;
use crate::cli::client::Client;
use crate::cli::output::{Cell, Output};

pub(super) fn run(arguments: &ExplainArguments, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let ExplainArguments { target, method, container } = arguments.clone();
    let explained: Explained = client.post("/explain", &ExplainRequest { target, method, container })?;
    output.data(&explained, print)
}

fn print(output: &mut Output, explained: &Explained) -> Result<(), CliError> {
    let rows = explained.steps.iter().map(|step| {
        vec![
            step.layer.as_str().into(),
            Cell::state(step.verdict == "allow", step.verdict.as_str()),
            step.rule.as_deref().unwrap_or("-").into(),
            step.reason.as_str().into(),
        ]
    });
    output.table(&["LAYER", "VERDICT", "RULE", "REASON"], rows.collect())?;
    for step in explained.steps.iter().filter(|step| !step.near.is_empty()) {
        output.line("")?;
        output.line(&format!("Close at {}:", step.layer))?;
        step.near.iter().try_for_each(|near| print_near(output, near))?;
    }
    output.line("")?;
    output.labels(&[("Verdict", Cell::state(explained.verdict == "allow", explained.verdict.as_str()))])?;
    explained.notes.iter().try_for_each(|note| output.line(&format!("Note: {note}")))?;
    match &explained.suggestion {
        None => Ok(()),
        Some(rule) => {
            output.line("")?;
            output.line("The smallest rule that would allow it:")?;
            output.line("")?;
            output.line(rule.trim_end())
        }
    }
}

fn print_near(output: &mut Output, near: &ExplainNear) -> Result<(), CliError> {
    output.line(&format!("  {} ({}, {})", near.rule, near.action, near.file))?;
    near.failed.iter().try_for_each(|failed| output.line(&format!("    {}", describe(failed))))
}

/// `false: http.method == "POST"; http.method is "GET"`
fn describe(failed: &ExplainFailed) -> String {
    let values = failed.values.iter().map(|(name, value)| match value {
        Some(value) => format!("{name} is {value}"),
        None => format!("{name} is not known here"),
    });
    let values = values.collect::<Vec<_>>().join(", ");
    if values.is_empty() {
        return format!("{}: {}", failed.is, failed.part);
    }
    format!("{}: {}; {values}", failed.is, failed.part)
}
