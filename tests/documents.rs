//! What the documents name must exist: a claim whose test was renamed away is a claim nobody tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `file.function` of every scenario of the lab.
fn scenarios() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(root().join("integration/lab/scenarios")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "py") {
            continue;
        }
        let file = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = read(&path);
        let mut registered = false;
        for line in text.lines() {
            let function = line.strip_prefix("def ").and_then(|rest| rest.split_once('('));
            if let (true, Some((name, _))) = (registered, function) {
                found.insert(format!("{file}.{name}"));
            }
            // The decorator, which may go on over lines, stands above its function.
            registered = line.starts_with("@scenario") || registered && function.is_none();
        }
    }
    found
}

/// The texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// What `text` names and is not there, and how many tests it names in all.
fn missing(text: &str, scenarios: &BTreeSet<String>) -> (Vec<String>, usize) {
    let files: BTreeSet<&str> = scenarios.iter().filter_map(|name| name.split('.').next()).collect();
    let (mut absent, mut named) = (Vec::new(), 0);
    for name in quoted(text) {
        if let Some((file, test)) = name.split_once(": ").filter(|(file, _)| file.starts_with("tests/")) {
            named += 1;
            let path = root().join(file);
            let there = path.is_file() && read(&path).contains(&format!("#[test]\nfn {test}()"));
            if !there {
                absent.push(name.to_owned());
            }
        } else if ["tests/", "src/", "integration/"].iter().any(|room| name.starts_with(room)) {
            named += 1;
            // A command of ours goes on with its arguments.
            let path = name.split_whitespace().next().unwrap();
            if !root().join(path).exists() {
                absent.push(name.to_owned());
            }
        } else if let Some((file, function)) = name.split_once('.')
            && is_word(file)
            && is_word(function)
            && function.contains('_')
            && (files.contains(file) || function.split('_').count() > 2)
        {
            named += 1;
            if !scenarios.contains(name) {
                absent.push(name.to_owned());
            }
        }
    }
    (absent, named)
}

/// The documents that ship, by their paths from the root.
fn documents() -> Vec<String> {
    let mut found = vec!["README.md".to_owned()];
    for directory in ["vendor-docs", "vendor-docs/interfaces"] {
        for entry in std::fs::read_dir(root().join(directory)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".md") {
                found.push(format!("{directory}/{name}"));
            }
        }
    }
    found
}

#[test]
fn every_test_and_file_that_a_document_names_exists() {
    let scenarios = scenarios();
    assert!(scenarios.len() > 100, "{} scenarios found", scenarios.len());
    for document in documents() {
        let (absent, named) = missing(&read(&root().join(&document)), &scenarios);
        assert!(absent.is_empty(), "{document} names what does not exist: {absent:?}");
        let least = match document.as_str() {
            "vendor-docs/threat-model.md" => 50,
            "vendor-docs/agent-api.md" => 20,
            _ => 0,
        };
        assert!(named >= least, "{document}: only {named} names are found");
    }
}

#[test]
fn every_picture_is_shown_and_every_one_shown_exists() {
    let shown: BTreeSet<String> = documents()
        .iter()
        .flat_map(|document| {
            let text = read(&root().join(document));
            let pictures = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            let names =
                pictures.filter_map(|(target, _)| target.split_once("screenshots/").map(|(_, name)| name.to_owned()));
            names.collect::<Vec<_>>()
        })
        .collect();
    let kept: BTreeSet<String> = std::fs::read_dir(root().join("vendor-docs/screenshots"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(shown, kept);
}

#[test]
fn a_name_that_does_not_exist_is_found() {
    let scenarios = BTreeSet::from(["agents.the_whole_story".to_owned()]);
    let text = "`agents.the_whole_story` `agents.no_story` `gone.not_here_any_more` `tests/documents.rs: nothing` \
         `run.tool` `src/lib.rs` `src/gone.rs` `integration/test --help`";
    let (absent, named) = missing(text, &scenarios);
    assert_eq!(absent, ["agents.no_story", "gone.not_here_any_more", "tests/documents.rs: nothing", "src/gone.rs"]);
    assert_eq!(named, 7);
}
