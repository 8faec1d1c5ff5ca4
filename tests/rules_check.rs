//! `rules check` has nothing to say about the rules that are given as examples.

use std::path::{Path, PathBuf};

use outcall::rule_engine::{Guard, LoadOptions, Source, load_sources};

/// Every rule file in `text`: fenced as YAML in a document, or from its version line on in a program.
fn files_in(path: &Path, text: &str) -> Vec<String> {
    let name = path.to_string_lossy();
    if name.ends_with(".md") {
        let fenced = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
        return fenced.filter(|file| file.contains("\nrules:")).map(str::to_owned).collect();
    }
    if name.ends_with(".py") {
        let quoted = text.split("\"\"\"").skip(1).step_by(2);
        return quoted.filter_map(|text| Some(text[text.find("version: \"1\"\n")?..].to_owned())).collect();
    }
    // A compose file has none.
    if text.contains("\nrules:") { vec![text.to_owned()] } else { Vec::new() }
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            walk(&path, found);
        } else if path.to_string_lossy().contains(".yaml")
            || path.extension().is_some_and(|end| end == "md" || end == "py")
        {
            found.push(path);
        }
    }
}

#[test]
fn the_examples_of_the_documents_and_of_integration_are_clean() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![root.join("README.md")];
    walk(&root.join("vendor-docs"), &mut paths);
    walk(&root.join("integration"), &mut paths);
    let options = LoadOptions { proxy: true, interception: true, guard: Guard::InProcess };
    let mut seen = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        for text in files_in(&path, &text) {
            let source = Source { name: "example.yaml".to_owned(), text: text.clone() };
            let loaded = load_sources(&[source], &options, None)
                .unwrap_or_else(|errors| panic!("{}: {errors}\n{text}", path.display()));
            let remarks: Vec<String> = loaded.remarks().iter().map(ToString::to_string).collect();
            assert!(remarks.is_empty(), "{}: {remarks:#?}\n{text}", path.display());
            seen.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    for wanted in ["rules.md", "10-example.yaml.disabled", "demo.py"] {
        assert!(seen.iter().any(|name| name == wanted), "{wanted} is not in {seen:?}");
    }
}
