//! `outcalld --check` and `outcall rules check`: everything that is wrong with a directory of rules, and what is not as
//! it seems.

use std::path::Path;

use crate::api::{RuleFinding, RulesChecked};

use super::Action;
use super::load::{LoadError, LoadOptions, load};

/// Loads the rules of `directory` as a start would, and remarks on them.
#[must_use]
pub fn check(directory: &Path, options: &LoadOptions) -> RulesChecked {
    let shown = directory.display();
    let (valid, findings, summary) = match load(directory, options, None) {
        Ok(loaded) => {
            let mut findings: Vec<RuleFinding> =
                loaded.notices().iter().map(|notice| finding("warning", notice)).collect();
            findings.extend(loaded.remarks());
            let rules = loaded.set.rules().len();
            let allows = loaded.set.rules().iter().filter(|rule| rule.action == Action::Allow).count();
            let blocks = rules - allows;
            let files = loaded.files;
            (true, findings, format!("ok: {rules} rules ({allows} allow, {blocks} block) in {files} files of {shown}"))
        }
        Err(errors) => {
            let findings: Vec<RuleFinding> = errors.0.iter().map(|error| finding("error", error)).collect();
            let count = findings.len();
            (false, findings, format!("{count} error(s): the rules in {shown} do not load"))
        }
    };
    let mut report: Vec<String> = findings.iter().map(|finding| format!("{}: {finding}", finding.level)).collect();
    report.push(summary);
    RulesChecked { valid, findings, report }
}

fn finding(level: &str, error: &LoadError) -> RuleFinding {
    RuleFinding {
        level: level.to_owned(),
        file: error.file.clone(),
        line: error.line,
        rule: error.rule.clone(),
        what: error.reason.clone(),
        instead: None,
    }
}
