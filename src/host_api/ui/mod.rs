//! `/ui/`: the dashboard, embedded in the daemon.
//!
//! Owns: its files and the header fields that bind a browser. Does not own: any data; the page asks `/api/v1` like
//! every other client. No file is outside the binary, none is built, and none may load anything from elsewhere.

use crate::unix_http::{Answer, Response};

use super::api::Api;
use super::call::Call;
use super::respond::failed;

/// Where the dashboard is.
const PREFIX: &str = "/ui/";

/// Nothing but our own files, no inline script or style, no frame around it. Agents write names, paths and rules that
/// the page shows: should one ever be taken for markup, the browser still runs nothing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file: its name below `/ui/`, its type, its bytes.
struct File(&'static str, &'static str, &'static [u8]);

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

/// All of them; the empty name is the page.
static FILES: &[File] = &[
    File("", HTML, include_bytes!("index.html")),
    File("index.html", HTML, include_bytes!("index.html")),
    File("style.css", STYLE, include_bytes!("style.css")),
    File("icon.svg", IMAGE, include_bytes!("icon.svg")),
    File("app.js", SCRIPT, include_bytes!("app.js")),
    File("api.js", SCRIPT, include_bytes!("api.js")),
    File("dom.js", SCRIPT, include_bytes!("dom.js")),
    File("stream.js", SCRIPT, include_bytes!("stream.js")),
    File("virtual.js", SCRIPT, include_bytes!("virtual.js")),
    File("chart.js", SCRIPT, include_bytes!("chart.js")),
    File("dialog.js", SCRIPT, include_bytes!("dialog.js")),
    File("overview.js", SCRIPT, include_bytes!("overview.js")),
    File("decisions.js", SCRIPT, include_bytes!("decisions.js")),
    File("networks.js", SCRIPT, include_bytes!("networks.js")),
    File("rules.js", SCRIPT, include_bytes!("rules.js")),
    File("requests.js", SCRIPT, include_bytes!("requests.js")),
    File("grants.js", SCRIPT, include_bytes!("grants.js")),
];

/// Whether a path is a file of the dashboard.
pub(super) fn has(path: &str) -> bool {
    find(path).is_some()
}

/// `GET /ui/…`
pub(super) fn show(_api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let path = &call.request.path;
    let File(_, kind, bytes) = find(path).ok_or_else(|| failed(404, format!("no such resource: {path}")))?;
    Ok(Answer::Now(bound(Response::whole(200, kind, bytes.to_vec()))))
}

fn find(path: &str) -> Option<&'static File> {
    let name = path.strip_prefix(PREFIX)?;
    FILES.iter().find(|File(known, _, _)| *known == name)
}

/// With the fields that say what a browser may do with it.
fn bound(response: Response) -> Response {
    response
        .with("Content-Security-Policy", POLICY)
        .with("X-Content-Type-Options", "nosniff")
        .with("Referrer-Policy", "no-referrer")
        .with("Cross-Origin-Opener-Policy", "same-origin")
        .with("Cross-Origin-Resource-Policy", "same-origin")
        // A daemon of another version must not meet the scripts of this one.
        .with("Cache-Control", "no-store")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each file as text.
    fn texts() -> impl Iterator<Item = (&'static str, &'static str)> {
        FILES.iter().map(|File(name, _, bytes)| (*name, std::str::from_utf8(bytes).unwrap()))
    }

    #[test]
    fn agents_text_has_no_way_to_become_markup_or_script() {
        let forbidden = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "createContextualFragment",
            "DOMParser",
            "setHTML",
            "srcdoc",
            "eval(",
            "new Function",
            "javascript:",
        ];
        for (name, text) in texts() {
            for word in forbidden {
                assert!(!text.contains(word), "{name} has {word}");
            }
        }
    }

    #[test]
    fn the_page_has_no_inline_script_or_style_and_asks_nobody_else() {
        for (name, text) in texts() {
            // The name of the SVG vocabulary is no address that anybody asks.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            for word in ["http://", "https://", "//cdn", "@import", "url(", "sourceMappingURL"] {
                assert!(!text.contains(word), "{name} has {word}");
            }
        }
        let page = std::str::from_utf8(include_bytes!("index.html")).unwrap();
        for word in ["<style", "style=", " onclick", " onload", " onerror"] {
            assert!(!page.contains(word), "index.html has {word}");
        }
        assert_eq!(page.matches("<script").count(), page.matches("<script type=\"module\" src=\"").count());
    }

    #[test]
    fn what_a_file_names_is_there() {
        let mut named = 0;
        for (name, text) in texts() {
            let quoted = text.split(['"', '\'']).filter(|word| {
                let (stem, end) = word.rsplit_once('.').unwrap_or(("", ""));
                !stem.is_empty() && !stem.contains(' ') && ["js", "css", "svg"].contains(&end)
            });
            for word in quoted {
                let word = word.trim_start_matches("./");
                assert!(has(&format!("/ui/{word}")), "{name} names {word}");
                named += 1;
            }
        }
        assert!(named > FILES.len(), "{named}");
    }

    #[test]
    fn only_known_names_are_files() {
        assert!(has("/ui/"));
        for path in ["/ui", "/ui/../api", "/ui//app.js", "/ui/app.js/", "/ui/mod.rs", "/uiapp.js", "/"] {
            assert!(!has(path), "{path}");
        }
    }
}
