//! `outcall rules`

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{count, dynamic, yes};
use crate::api::{Reloaded, RuleDetail, RuleSummary, RuleTest, RuleTested};
use crate::cli::CliError;
use crate::cli::arguments::RulesCommand;
use crate::cli::client::{Client, encoded};
use crate::cli::daemon_program;
use crate::cli::output::{Cell, Output};

/// Largest context file taken, in bytes: the daemon takes no larger request either.
const CONTEXT_LIMIT: u64 = 64 * 1024;

pub(super) fn run(command: &RulesCommand, client: &Client, output: &mut Output) -> Result<(), CliError> {
    match command {
        RulesCommand::List => {
            let rules: Vec<RuleSummary> = client.get("/rules")?;
            output.data(&rules, |output, rules| list(output, rules))
        }
        RulesCommand::Show { id } => {
            let rule: RuleDetail = client.get(&format!("/rule/{}", encoded(id)))?;
            output.data(&rule, show)
        }
        RulesCommand::Reload => {
            let reloaded: Reloaded = client.post_empty("/rules/reload")?;
            output.data(&reloaded, |output, reloaded| {
                let (files, rules) = (count(reloaded.files_loaded, "file"), count(reloaded.rules_loaded, "rule"));
                output.line(&format!("Loaded {rules} from {files}."))?;
                reloaded.warnings.iter().try_for_each(|warning| output.line(&format!("warning: {warning}")))
            })
        }
        RulesCommand::Active => dynamic::active(client, output),
        RulesCommand::Flush => dynamic::flush(client, output),
        RulesCommand::Allow(arguments) => dynamic::allow(arguments, client, output),
        RulesCommand::Check { directory, ca_cert, ca_key } => {
            let ca = [("--ca-cert", ca_cert), ("--ca-key", ca_key)];
            check(directory, &ca, output)
        }
        RulesCommand::Test { expression, context } => test(expression, context, client, output),
    }
}

fn list(output: &mut Output, rules: &[RuleSummary]) -> Result<(), CliError> {
    if rules.is_empty() {
        return output.line("No rules: everything is blocked.");
    }
    let rows = rules
        .iter()
        .map(|rule| {
            vec![
                rule.priority.to_string().into(),
                rule.id.as_str().into(),
                Cell::state(rule.action == "allow", rule.action.as_str()),
                rule.hits.to_string().into(),
                rule.errors.to_string().into(),
                rule.last_hit.as_deref().unwrap_or("-").into(),
                rule.file.as_str().into(),
                rule.condition_preview.as_str().into(),
            ]
        })
        .collect();
    output.table(&["PRIO", "ID", "ACTION", "HITS", "ERRORS", "LAST HIT", "FILE", "CONDITION"], rows)
}

fn show(output: &mut Output, rule: &RuleDetail) -> Result<(), CliError> {
    let mut rows: Vec<(&str, Cell)> = vec![
        ("Rule", rule.id.as_str().into()),
        ("File", rule.file.as_str().into()),
        ("Description", rule.description.as_deref().unwrap_or("-").into()),
        ("Priority", rule.priority.to_string().into()),
        ("Action", Cell::state(rule.action == "allow", rule.action.as_str())),
        ("Logged", yes(rule.log).into()),
    ];
    if let Some(egress) = &rule.egress {
        rows.push(("Egress", egress.mode.as_str().into()));
        if !egress.ports.is_empty() {
            let ports: Vec<String> = egress.ports.iter().map(u16::to_string).collect();
            rows.push(("Ports", ports.join(", ").into()));
        }
        rows.push(("Private IPs", yes(egress.allow_private_ips).into()));
        if egress.match_body {
            rows.push(("Match body", yes(true).into()));
        }
    }
    rows.push(("Condition", rule.condition.as_str().into()));
    output.labels(&rows)
}

fn test(expression: &str, context: &Path, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let question = RuleTest { expression: expression.to_owned(), context: read_context(context)? };
    let tested: RuleTested = client.post("/rule/test", &question)?;
    output.data(&tested, |output, tested| {
        let result = match tested.result {
            Some(true) => Cell::good("true"),
            Some(false) => "false".into(),
            None => Cell::bad("none"),
        };
        output.labels(&[("Result", result), ("Error", tested.error.as_deref().unwrap_or("-").into())])
    })?;
    match tested.result {
        Some(_) => Ok(()),
        None => Err(CliError::Unsuccessful("the condition gave no result".to_owned())),
    }
}

/// The context file: one JSON object; `-` is standard input.
fn read_context(path: &Path) -> Result<Map<String, Value>, CliError> {
    let what = || format!("context {}", path.display());
    let local = |source| CliError::Local { what: what(), source };
    let mut text = String::new();
    let source: Box<dyn std::io::Read> = if path.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(local)?)
    };
    source.take(CONTEXT_LIMIT + 1).read_to_string(&mut text).map_err(local)?;
    if text.len() as u64 > CONTEXT_LIMIT {
        return Err(CliError::Argument(format!("{}: larger than {CONTEXT_LIMIT} bytes", what())));
    }
    serde_json::from_str(&text).map_err(|error| CliError::Argument(format!("{}: not a JSON object: {error}", what())))
}

fn check(directory: &Path, ca: &[(&str, &Option<PathBuf>)], output: &mut Output) -> Result<(), CliError> {
    let checked = daemon_program::check_rules(directory, ca)?;
    output.data(&checked, |output, checked| checked.report.iter().try_for_each(|line| output.line(line)))?;
    if checked.valid {
        Ok(())
    } else {
        Err(CliError::Unsuccessful(format!("the rules in {} would not load", directory.display())))
    }
}
