//! From a rule file that an agent submits to the file that an approval writes.
//!
//! Owns: the check of the submission, and the one way it is written down again. What is installed is not the
//! agent's text but what the daemon understood of it, so that no comment, look-alike character or YAML trick stands
//! between what the operator reads and what is enforced. Does not own: requests, files, approvals.

use super::file::{FileRule, RuleFile};
use super::guarded::{Guard, Job, flags_of};
use super::load::{LoadError, LoadErrors, LoadOptions};
use super::{EgressMode, Source, load_sources};

/// The name under which a submission's own text appears in messages.
const SUBMITTED: &str = "rule_file";
/// Bytes of what is written: a submission of 64 KiB, its other characters written as escapes.
const INSTALLS_MAX: usize = 256 * 1024;
/// Words that YAML 1.1 readers take for something else than text.
const YAML_WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];

/// Rules of a submission that are remarked on, at most: shadowing compares each with each, and agents write the file.
const REMARKED_MAX: usize = 64;

/// A file to install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installs {
    /// Its bytes: ASCII.
    pub text: String,
    /// The ids of its rules.
    pub ids: Vec<String>,
    /// What in it does not do what it seems to, one line each; `None` for a file of too many rules to look into.
    pub remarks: Option<Vec<String>>,
}

/// Checks `submitted` as a load would, and gives the file to install. With `container`, each condition is limited to
/// that container; without, it holds for all. `heading` becomes a comment at its top.
///
/// Runs the guarded child: a blocking call of up to some seconds.
///
/// # Errors
/// Everything that is wrong with the submission.
pub fn installs(
    submitted: &str,
    container: Option<&str>,
    heading: &str,
    options: &LoadOptions,
) -> Result<Installs, LoadErrors> {
    // As it stands first: a condition that is whole by itself is whole inside parentheses too.
    loads(submitted, options)?;
    let file = RuleFile::parse(submitted);
    if file.rules.is_empty() {
        return Err(refused("the file has no rules"));
    }
    let prefix = match container {
        Some(name) if is_container_name(name) => Some(format!("agent.container == \"{name}\" && (")),
        Some(_) => return Err(refused("the container's name cannot be written in a condition")),
        None => None,
    };
    let text = write(&file, prefix.as_deref(), heading);
    if text.len() > INSTALLS_MAX {
        return Err(refused("the file to install would be too large; submit fewer rules"));
    }
    let written = Source { name: SUBMITTED.to_owned(), text };
    let loaded = load_sources(std::slice::from_ref(&written), options, None)?;
    let limited = |expanded: &str| prefix.as_deref().is_none_or(|prefix| expanded.starts_with(prefix));
    if loaded.set.rules().len() != file.rules.len() || !loaded.set.rules().iter().all(|rule| limited(&rule.expanded)) {
        return Err(refused("the file cannot be limited to its container"));
    }
    let remarks = (file.rules.len() <= REMARKED_MAX).then(|| {
        let remarks = loaded.remarks();
        loaded.warnings.iter().cloned().chain(remarks.iter().map(ToString::to_string)).collect()
    });
    Ok(Installs { text: written.text, ids: file.rules.into_iter().map(|rule| rule.id).collect(), remarks })
}

/// The text of a submission as a file.
pub(super) fn submitted(text: &str) -> Source {
    Source { name: SUBMITTED.to_owned(), text: text.to_owned() }
}

/// Whether a submission would load. The child alone finds out: what it refuses is never parsed here, so that the
/// memory that a hostile text takes is the child's.
fn loads(text: &str, options: &LoadOptions) -> Result<(), LoadErrors> {
    if matches!(options.guard, Guard::InProcess) {
        return load_sources(&[submitted(text)], options, None).map(drop);
    }
    let mut answer = Err(vec!["the rule checker did not answer".to_owned()]);
    options.guard.vet(&[Job::File(text, flags_of(options))], |_, vetted| answer = vetted);
    answer.map_err(|reasons| {
        // A reason too long for the checker's answer is left out of it.
        let none = reasons.is_empty().then(|| "the file is refused".to_owned());
        LoadErrors(reasons.into_iter().chain(none).map(LoadError::of_directory).collect())
    })
}

fn refused(reason: &str) -> LoadErrors {
    LoadErrors(vec![LoadError::of_file(SUBMITTED, None, reason.to_owned())])
}

/// Docker's own rule for names: nothing in it ends or escapes a string.
fn is_container_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn write(file: &RuleFile, prefix: Option<&str>, heading: &str) -> String {
    let heading: String = heading.chars().filter(|c| *c == ' ' || c.is_ascii_graphic()).collect();
    let mut out = format!("# {heading}\nversion: \"1\"\n");
    if !file.definitions.is_empty() {
        out.push_str("definitions:\n");
        for (name, text, _) in &file.definitions {
            let is_word = !name.starts_with(|c: char| c.is_ascii_alphabetic())
                || YAML_WORDS.contains(&name.to_ascii_lowercase().as_str());
            let key = if is_word { quoted(name) } else { name.clone() };
            out.push_str(&format!("  {key}: {}\n", scalar(text, "    ")));
        }
    }
    out.push_str("rules:\n");
    for rule in &file.rules {
        write_rule(&mut out, rule, prefix);
    }
    out
}

fn write_rule(out: &mut String, rule: &FileRule, prefix: Option<&str>) {
    const INDENT: &str = "      ";
    out.push_str(&format!("  - id: {}\n", quoted(&rule.id)));
    if let Some(description) = rule.description.as_deref().filter(|text| !text.is_empty()) {
        out.push_str(&format!("    description: {}\n", quoted(description)));
    }
    let condition = match prefix {
        // A comment would swallow the closing parenthesis if it stood on the same line.
        Some(prefix) if rule.condition.contains("//") => format!("{prefix}{}\n)", rule.condition),
        Some(prefix) => format!("{prefix}{})", rule.condition),
        None => rule.condition.clone(),
    };
    out.push_str(&format!("    condition: {}\n", scalar(&condition, INDENT)));
    out.push_str(&format!("    action: {}\n    priority: {}\n", rule.action.as_str(), rule.priority));
    if rule.log {
        out.push_str("    log: true\n");
    }
    let Some(egress) = rule.egress.as_ref().filter(|_| rule.explicit_egress.is_some()) else { return };
    let mut fields = Vec::new();
    if rule.explicit_mode {
        fields.push(format!("mode: {}", egress.mode.as_str()));
    }
    if egress.mode == EgressMode::DirectIp {
        let ports: Vec<String> = egress.ports.iter().map(u16::to_string).collect();
        fields.push(format!("ports: [{}]", ports.join(", ")));
    }
    if egress.allow_private_ips {
        fields.push("allow_private_ips: true".to_owned());
    }
    if egress.match_body {
        fields.push("match_body: true".to_owned());
    }
    if fields.is_empty() {
        return;
    }
    out.push_str("    egress:\n");
    for field in fields {
        out.push_str(&format!("      {field}\n"));
    }
}

/// A literal block where every character is one that can be seen, else a quoted text.
fn scalar(text: &str, indent: &str) -> String {
    let visible = |line: &str| !line.is_empty() && line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    let plain = text.split('\n').all(visible) && !text.starts_with(' ');
    if !plain {
        return quoted(text);
    }
    let mut out = "|-".to_owned();
    for line in text.split('\n') {
        out.push_str(&format!("\n{indent}{line}"));
    }
    out
}

/// A double-quoted YAML text in ASCII (YAML 1.2, 5.7): whatever else it holds is written as an escape.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            c if u32::from(c) <= 0xffff => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rule_engine::{Action, Agent, Context, Guard, Http};

    const OPTIONS: LoadOptions = LoadOptions { proxy: true, interception: false, guard: Guard::InProcess };

    fn one(condition: &str) -> String {
        format!("version: \"1\"\nrules:\n  - id: a\n    action: allow\n    condition: {}\n", quoted(condition))
    }

    fn allows(text: &str, container: &str, host: &str) -> bool {
        let source = Source { name: "x.yaml".to_owned(), text: text.to_owned() };
        let set = load_sources(&[source], &OPTIONS, None).unwrap().set;
        let context = Context {
            agent: Agent { name: Some(container), container: Some(container) },
            http: Http { host: Some(host), ..Http::default() },
            ..Context::default()
        };
        set.decide(&context).action == Action::Allow
    }

    #[test]
    fn the_operator_is_told_what_a_rule_really_opens() {
        let remarks = |text: &str| installs(text, Some("agent-1"), "", &OPTIONS).unwrap().remarks;
        let loose = remarks(&one("http.host.endsWith(\"example.com\")")).unwrap();
        assert!(loose.iter().any(|remark| remark.contains("rule a") && remark.contains("endsWith")), "{loose:?}");
        assert_eq!(remarks(&one("http.host == \"example.com\"")), Some(Vec::new()));
        let rule = |n| format!("  - {{ id: r{n}, action: allow, condition: 'http.host == \"{n}.example\"' }}\n");
        let many: String = (0..=REMARKED_MAX).map(rule).collect();
        assert_eq!(remarks(&format!("version: \"1\"\nrules:\n{many}")), None);
    }

    #[test]
    fn the_installed_file_is_readable_and_limited() {
        let submitted = "version: '1'\ndefinitions:\n  gh: 'http.host == \"github.com\"' # hi\nrules:\n- {id: a, condition: \
                         $gh, action: allow, egress: {mode: direct_ip}}\n";
        let done = installs(submitted, Some("coder-1"), "Rule request rr-1", &OPTIONS).unwrap();
        assert_eq!(
            done.text,
            "# Rule request rr-1\nversion: \"1\"\ndefinitions:\n  gh: |-\n    http.host == \"github.com\"\nrules:\n  \
             - id: \"a\"\n    condition: |-\n      agent.container == \"coder-1\" && ($gh)\n    action: allow\n    \
             priority: 100\n    egress:\n      mode: direct_ip\n      ports: [80, 443]\n"
        );
        assert_eq!(done.ids, ["a"]);
        assert!(allows(&done.text, "coder-1", "github.com"));
        assert!(!allows(&done.text, "coder-2", "github.com"));
        let all = installs(submitted, None, "h", &OPTIONS).unwrap();
        assert!(allows(&all.text, "coder-2", "github.com"));
    }

    #[test]
    fn a_condition_cannot_break_out_of_its_limit() {
        for condition in [
            "true) || (true",
            "true || true",
            "true // )",
            "true // )\n|| true",
            "true /* x */",
            "true) // (",
            "http.host == \"x\" || true",
            "true ? true : false",
            "\"a\" == \"a\" || http.host == \"\\\") || (true\"",
        ] {
            if let Ok(done) = installs(&one(condition), Some("mine"), "h", &OPTIONS) {
                assert!(!allows(&done.text, "other", "x"), "{condition}");
            }
        }
        let by_definition = "version: '1'\ndefinitions:\n  a: 'true) || (true'\nrules:\n- {id: a, condition: $a, action: \
                             allow}\n";
        if let Ok(done) = installs(by_definition, Some("mine"), "h", &OPTIONS) {
            assert!(!allows(&done.text, "other", "x"));
        }
    }

    #[test]
    fn what_cannot_be_seen_is_written_as_an_escape() {
        let done =
            installs(&one("http.host == 'x' || http.path == '\u{202e}\u{200b}\u{1f600}'"), None, "a\nb", &OPTIONS);
        let text = done.unwrap().text;
        assert!(text.is_ascii() && text.contains("\\u202e\\u200b\\U0001f600"), "{text}");
        assert!(text.starts_with("# ab\n"));
        assert!(allows(&text, "any", "x"));
    }

    #[test]
    fn every_error_of_the_submission_is_told() {
        let errors = installs("version: \"2\"\nrulez: []\n", Some("c"), "h", &OPTIONS).unwrap_err();
        assert_eq!(errors.0.len(), 2, "{errors}");
        assert!(errors.to_string().contains("rule_file:1"));
        let empty = installs("version: \"1\"\n", Some("c"), "h", &OPTIONS).unwrap_err();
        assert!(empty.to_string().contains("no rules"));
        assert!(installs(&one("true"), Some("a\" || true"), "h", &OPTIONS).is_err());
    }

    proptest! {
        #[test]
        fn any_text_comes_back_out_of_its_yaml(text in "\\PC{0,40}|[ -~\n\t\u{0}-\u{1f}]{0,40}|(true|\\)|\\(|//|\n| |&&|\\|\\|){0,12}") {
            for form in [quoted(&text), scalar(&text, "  ")] {
                let back: std::collections::BTreeMap<String, String> = serde_yaml::from_str(&format!("k: {form}\n")).unwrap();
                prop_assert_eq!(&back["k"], &text);
            }
        }

        #[test]
        fn no_accepted_condition_holds_for_another_container(
            condition in "(true|false|\\)|\\(|//|\n| |&&|\\|\\||!|\"|'|\\?|:|http\\.host|==|\\$d){1,10}",
            definition in "(true|false|\\)|\\(|//|\n| |&&|\\|\\||\"|'){1,8}",
        ) {
            let submitted = format!(
                "version: \"1\"\ndefinitions:\n  d: {}\nrules:\n  - id: a\n    action: allow\n    condition: {}\n",
                quoted(&definition), quoted(&condition)
            );
            if let Ok(done) = installs(&submitted, Some("mine"), "h", &OPTIONS) {
                prop_assert!(!allows(&done.text, "other", "x"), "{}", done.text);
            }
        }
    }
}
