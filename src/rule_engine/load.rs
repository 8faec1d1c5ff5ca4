//! Loading: from files to a rule set, with every error of every file, or none.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::api::RuleFinding;

use super::condition::Condition;
use super::definitions::Definitions;
use super::file::{FileRule, Problem, RuleFile};
use super::guarded::{Guard, Job};
use super::index;
use super::lint::Places;
use super::ruleset::Compiled;
use super::source::{self, Source};
use super::{EgressMode, Rule, RuleSet, expression, lint};

/// Rules of one set; the index and every reload are linear in it.
const RULES_MAX: usize = 50_000;

/// Stack of the thread that compiles for real, in bytes; used only as far as it is needed. The guarded child has half
/// of it, room for three times the brackets that are accepted.
pub(super) const COMPILE_STACK: usize = 32 * 1024 * 1024;

/// Conditions that wait between the child and the compiler.
const COMPILE_QUEUE: usize = 256;

/// What the daemon can enforce, and how sources are vetted.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// False with `--no-proxy`.
    pub proxy: bool,
    /// Whether `intercept` rules load: false without a CA.
    pub interception: bool,
    /// Where hostile input is tried first.
    pub guard: Guard,
}

/// A successful load.
pub struct Loaded {
    /// The rules.
    pub set: Arc<RuleSet>,
    /// How many files were read.
    pub files: usize,
    /// What the operator should hear, one line each.
    pub warnings: Vec<String>,
    /// The same, in parts.
    notices: Vec<LoadError>,
    places: Places,
}

impl Loaded {
    /// The warnings in parts.
    pub(super) fn notices(&self) -> &[LoadError] {
        &self.notices
    }

    /// What loads but does not do what it seems to; costs more than a load.
    #[must_use]
    pub fn remarks(&self) -> Vec<RuleFinding> {
        lint::remarks(&self.set, &self.places)
    }
}

/// One thing that is wrong; prints as `FILE:LINE: rule ID: reason`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// The file's name; `None` when it is about the directory.
    pub file: Option<String>,
    /// From 1.
    pub line: Option<usize>,
    /// The rule's id.
    pub rule: Option<String>,
    /// What is wrong and what to do.
    pub reason: String,
}

impl LoadError {
    pub(super) fn of_directory(reason: String) -> Self {
        LoadError { file: None, line: None, rule: None, reason }
    }

    pub(super) fn of_file(file: &str, line: Option<usize>, reason: String) -> Self {
        LoadError { file: Some(file.to_owned()), line, rule: None, reason }
    }
}

impl std::fmt::Display for LoadError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}")?;
            if let Some(line) = self.line {
                write!(f, ":{line}")?;
            }
            f.write_str(": ")?;
        }
        if let Some(rule) = &self.rule {
            write!(f, "rule {rule}: ")?;
        }
        f.write_str(&self.reason)
    }
}

/// Everything that is wrong: never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadErrors(pub Vec<LoadError>);

impl std::fmt::Display for LoadErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (number, error) in self.0.iter().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadErrors {}

impl LoadErrors {
    /// One line for each error.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

/// Loads the rules of `directory`. Rules that `previous` has unchanged keep their counters, and their conditions are
/// not compiled again.
///
/// # Errors
/// Every error of every file. Nothing is half loaded.
pub fn load(directory: &Path, options: &LoadOptions, previous: Option<&RuleSet>) -> Result<Loaded, LoadErrors> {
    let shown = directory.display();
    let sources = source::read(directory).map_err(LoadErrors)?;
    let empty = match &sources {
        None => Some(format!("the rules directory {shown} does not exist: everything is blocked")),
        Some(sources) if sources.is_empty() => {
            Some(format!("there are no rule files in {shown}: everything is blocked"))
        }
        Some(_) => None,
    };
    let mut loaded = load_sources(&sources.unwrap_or_default(), options, previous)?;
    loaded.warnings.extend(empty.iter().cloned());
    loaded.notices.extend(empty.map(LoadError::of_directory));
    Ok(loaded)
}

/// Loads rules from texts, in the order of their names.
///
/// # Errors
/// As [`load`].
pub fn load_sources(
    sources: &[Source],
    options: &LoadOptions,
    previous: Option<&RuleSet>,
) -> Result<Loaded, LoadErrors> {
    let mut load = Load { options, errors: Vec::new(), warnings: Vec::new(), rules: Vec::new() };
    let mut sources: Vec<&Source> = sources.iter().collect();
    sources.sort_by(|left, right| left.name.cmp(&right.name));
    load.read(&sources);
    load.check_ids();
    let conditions = load.compile(previous);
    load.check_egress();
    if !load.errors.is_empty() {
        // By file, then line; what is about a directory or a whole file comes first.
        load.errors.sort_by(|left, right| (&left.file, left.line).cmp(&(&right.file, right.line)));
        return Err(LoadErrors(load.errors));
    }
    let mut places = Places::default();
    for draft in &load.rules {
        places.note(&draft.rule.id, draft.rule.condition_line);
    }
    let set = load.build(&conditions, previous);
    load.warnings.extend(lint::blind_blocks(&set, &places));
    let warnings = load.warnings.iter().map(ToString::to_string).collect();
    Ok(Loaded { set: Arc::new(set), files: sources.len(), warnings, notices: load.warnings, places })
}

/// A rule of one of the files, its condition expanded.
struct Draft {
    file: Arc<str>,
    rule: FileRule,
    expanded: String,
}

struct Load<'o> {
    options: &'o LoadOptions,
    errors: Vec<LoadError>,
    warnings: Vec<LoadError>,
    rules: Vec<Draft>,
}

impl Load<'_> {
    fn error(&mut self, file: &str, line: Option<usize>, rule: Option<&str>, reason: String) {
        let rule = rule.map(str::to_owned);
        self.errors.push(LoadError { file: Some(file.to_owned()), line, rule, reason });
    }

    fn warn(&mut self, file: &str, line: Option<usize>, rule: Option<&str>, reason: String) {
        let rule = rule.map(str::to_owned);
        self.warnings.push(LoadError { file: Some(file.to_owned()), line, rule, reason });
    }

    /// Files to drafts.
    fn read(&mut self, sources: &[&Source]) {
        let jobs: Vec<Job<'_>> = sources.iter().map(|source| Job::Yaml(&source.text)).collect();
        let mut vetted = Vec::with_capacity(jobs.len());
        self.options.guard.vet(&jobs, |_, answer| vetted.push(answer));
        for (source, vetted) in sources.iter().zip(vetted) {
            let name = source.name.as_str();
            if let Err(reasons) = vetted {
                reasons.into_iter().for_each(|reason| self.error(name, None, None, reason));
                continue;
            }
            let file = RuleFile::parse(&source.text);
            if file.rules.is_empty() && file.problems.is_empty() {
                self.warn(name, None, None, "the file has no rules".to_owned());
            }
            self.take_problems(name, file.problems);
            self.expand(name, file.definitions, file.rules);
        }
        if self.rules.len() > RULES_MAX {
            let reason = format!("{} rules; at most {RULES_MAX} are accepted", self.rules.len());
            self.errors.push(LoadError::of_directory(reason));
        }
    }

    fn take_problems(&mut self, file: &str, problems: Vec<Problem>) {
        for Problem { line, rule, reason } in problems {
            self.error(file, line, rule.as_deref(), reason);
        }
    }

    fn expand(&mut self, name: &str, written: Vec<(String, String, Option<usize>)>, rules: Vec<FileRule>) {
        let file: Arc<str> = name.into();
        let sources: BTreeMap<String, String> =
            written.iter().map(|(definition, text, _)| (definition.clone(), text.clone())).collect();
        let mut definitions = Definitions::new(sources);
        let mut reported = Vec::new();
        for rule in rules {
            match definitions.expand(&rule.condition) {
                Ok(expanded) => self.rules.push(Draft { file: Arc::clone(&file), rule, expanded }),
                Err(reason) => {
                    self.error(name, rule.condition_line, Some(&rule.id), reason.clone());
                    reported.push(reason);
                }
            }
        }
        let unused: Vec<String> = definitions.unused().map(str::to_owned).collect();
        for (definition, _, line) in written {
            let is_unused = unused.contains(&definition);
            match definitions.check(&definition) {
                // An error in what a rule uses was reported for that rule, with the chain that leads to it.
                Err(_) if !is_unused => {}
                Err(reason) => self.error(name, line, None, format!("definition `{definition}`: {reason}")),
                Ok(()) if is_unused => {
                    self.warn(name, line, None, format!("the definition `{definition}` is used by no rule"));
                }
                Ok(()) => {}
            }
        }
    }

    fn check_ids(&mut self) {
        let mut first: HashMap<&str, &Draft> = HashMap::new();
        let mut found = Vec::new();
        for draft in &self.rules {
            match first.get(draft.rule.id.as_str()) {
                Some(other) => {
                    let place = LoadError::of_file(&other.file, other.rule.line, String::new());
                    let place = place.to_string();
                    let reason = format!("the id is taken already, at {}", place.trim_end_matches([':', ' ']));
                    found.push((Arc::clone(&draft.file), draft.rule.line, draft.rule.id.clone(), reason));
                }
                None => {
                    first.insert(&draft.rule.id, draft);
                }
            }
        }
        for (file, line, id, reason) in found {
            self.error(&file, line, Some(&id), reason);
        }
    }

    /// Compiles each distinct condition once. Gives what compiled, by its expanded source.
    fn compile(&mut self, previous: Option<&RuleSet>) -> HashMap<String, Arc<Condition>> {
        let mut known: HashMap<&str, Arc<Condition>> = HashMap::new();
        for (rule, compiled) in previous.into_iter().flat_map(RuleSet::entries) {
            known.insert(&rule.expanded, Arc::clone(&compiled.condition));
        }
        let mut wanted: Vec<&str> = self.rules.iter().map(|draft| draft.expanded.as_str()).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let (old, new): (Vec<&str>, Vec<&str>) = wanted.into_iter().partition(|source| known.contains_key(source));
        let mut conditions: HashMap<String, Arc<Condition>> = HashMap::with_capacity(old.len() + new.len());
        for source in old {
            if let Some(condition) = known.get(source) {
                conditions.insert(source.to_owned(), Arc::clone(condition));
            }
        }
        let mut refused: HashMap<&str, Vec<String>> = HashMap::new();
        for (source, compiled) in new.iter().zip(vet_and_compile(&new, &self.options.guard)) {
            match compiled {
                Ok(condition) => {
                    conditions.insert((*source).to_owned(), Arc::new(condition));
                }
                Err(reasons) => {
                    refused.insert(source, reasons);
                }
            }
        }
        let mut errors = Vec::new();
        let mut warnings = Vec::new();
        for draft in &self.rules {
            let about = |reason: &String| LoadError {
                file: Some(draft.file.to_string()),
                line: draft.rule.condition_line,
                rule: Some(draft.rule.id.clone()),
                reason: reason.clone(),
            };
            if let Some(reasons) = refused.get(draft.expanded.as_str()) {
                errors.extend(reasons.iter().map(about));
            }
            if let Some(condition) = conditions.get(&draft.expanded) {
                warnings.extend(condition.warnings.iter().map(about));
            }
        }
        self.errors.extend(errors);
        self.warnings.extend(warnings);
        conditions
    }

    /// A rule that cannot be enforced must not load.
    fn check_egress(&mut self) {
        let mut errors = Vec::new();
        let mut warnings = Vec::new();
        for draft in &self.rules {
            let Some(egress) = &draft.rule.egress else { continue };
            let about = |reason: &str| LoadError {
                file: Some(draft.file.to_string()),
                line: draft.rule.explicit_egress.or(draft.rule.line),
                rule: Some(draft.rule.id.clone()),
                reason: reason.to_owned(),
            };
            if egress.mode == EgressMode::Intercept && !self.options.interception {
                errors.push(about("`mode: intercept` needs a CA: start outcalld with --ca-cert and --ca-key"));
            }
            match egress.mode {
                EgressMode::Proxy | EgressMode::Intercept if self.options.proxy => {}
                EgressMode::DirectIp => {}
                mode if draft.rule.explicit_mode => errors.push(about(&format!(
                    "`mode: {}` cannot be enforced: there is no proxy (--no-proxy); use `mode: direct_ip`",
                    mode.as_str()
                ))),
                _ => warnings.push(about("there is no proxy (--no-proxy): only the DNS part of this rule works")),
            }
        }
        self.errors.extend(errors);
        self.warnings.extend(warnings);
    }

    fn build(&mut self, conditions: &HashMap<String, Arc<Condition>>, previous: Option<&RuleSet>) -> RuleSet {
        let mut drafts = std::mem::take(&mut self.rules);
        // Stable: within a file the position decides.
        drafts.sort_by(|left, right| (left.rule.priority, &left.file).cmp(&(right.rule.priority, &right.file)));
        let mut rules = Vec::with_capacity(drafts.len());
        for draft in drafts {
            // Every draft's condition is there, or there was an error and we are not here.
            let Some(condition) = conditions.get(&draft.expanded) else { continue };
            let order = rules.len();
            let rule = draft.into_rule(order);
            let kept = previous.and_then(|previous| previous.rule(&rule.id)).filter(|old| is_same(old, &rule));
            let rule = match kept {
                Some(old) if old.order == order => Arc::clone(old),
                Some(old) => {
                    rule.hits.store(old.hits.load(Ordering::Relaxed), Ordering::Relaxed);
                    rule.errors.store(old.errors.load(Ordering::Relaxed), Ordering::Relaxed);
                    rule.last_hit_ms.store(old.last_hit_ms.load(Ordering::Relaxed), Ordering::Relaxed);
                    Arc::new(rule)
                }
                None => Arc::new(rule),
            };
            let compiled = Compiled {
                guard: index::guard(condition).map(Into::into),
                condition: Arc::clone(condition),
                error_logged_ms: AtomicI64::new(0),
            };
            rules.push((rule, compiled));
        }
        RuleSet::new(rules)
    }
}

impl Draft {
    fn into_rule(self, order: usize) -> Rule {
        let explicit_egress = self.rule.explicit_egress.is_some();
        Rule {
            id: self.rule.id.into(),
            file: self.file.as_ref().into(),
            order,
            description: self.rule.description.map(Into::into),
            condition: self.rule.condition.into(),
            expanded: self.expanded.into(),
            action: self.rule.action,
            priority: self.rule.priority,
            log: self.rule.log,
            egress: self.rule.egress,
            explicit_egress,
            hits: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            last_hit_ms: AtomicI64::new(0),
        }
    }
}

/// True when nothing but the place among the others changed.
fn is_same(old: &Rule, new: &Rule) -> bool {
    old.file == new.file
        && old.expanded == new.expanded
        && old.condition == new.condition
        && old.action == new.action
        && old.priority == new.priority
        && old.log == new.log
        && old.description == new.description
        && old.egress == new.egress
        && old.explicit_egress == new.explicit_egress
}

/// Tries each source in the guarded child, and compiles what it survived, at the same time, on a thread whose stack is
/// twice what the child has. Gives one result for each source, in order.
pub(super) fn vet_and_compile(sources: &[&str], guard: &Guard) -> Vec<Result<Condition, Vec<String>>> {
    if sources.is_empty() {
        return Vec::new();
    }
    let not_compiled = || Err(vec!["not compiled: the compiler's thread ended early".to_owned()]);
    let mut results: Vec<Result<Condition, Vec<String>>> = sources.iter().map(|_| not_compiled()).collect();
    let jobs: Vec<Job<'_>> = sources.iter().map(|source| Job::Cel(source)).collect();
    let (passed, to_compile) = crossbeam_channel::bounded::<usize>(COMPILE_QUEUE);
    let compiled = std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("rule_compile".to_owned()).stack_size(COMPILE_STACK);
        let thread = builder.spawn_scoped(scope, move || {
            let sources = to_compile.iter().filter_map(|position| Some((position, sources.get(position)?)));
            sources.map(|(position, source)| (position, expression::compile(source))).collect::<Vec<_>>()
        })?;
        guard.vet(&jobs, |position, vetted| match vetted {
            // Not taken only if the thread is gone: then its results are missing, and stay "not compiled".
            Ok(()) => drop(passed.send(position)),
            Err(reasons) => {
                if let Some(result) = results.get_mut(position) {
                    *result = Err(reasons);
                }
            }
        });
        drop(passed);
        Ok::<_, std::io::Error>(thread.join().unwrap_or_default())
    });
    match compiled {
        Ok(compiled) => {
            for (position, result) in compiled {
                if let Some(slot) = results.get_mut(position) {
                    *slot = result;
                }
            }
        }
        Err(error) => {
            let reason = format!("no thread to compile on: {error}");
            results.fill_with(|| Err(vec![reason.clone()]));
        }
    }
    results
}
