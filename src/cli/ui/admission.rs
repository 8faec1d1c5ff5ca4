//! Who may pass: a pure look at one request's head.
//!
//! The attacker is a page in the operator's browser, a name that was rebound to 127.0.0.1, or another user's program on
//! this host. Against them, each alone: a secret of 256 bits at the beginning of every path, the exact `Host`, an
//! `Origin` that is our own, and the browser's word on where the request was made.
//!
//! The secret is in the path and not in a cookie: browsers send a cookie of 127.0.0.1 to every port of it, so also to
//! a server of another user. They never add a path by themselves, so there is nothing for another page to ride on; the
//! page names everything relative to its own address and sends no `Referer`.

/// Bytes of the secret.
const SECRET_BYTES: usize = 32;
/// Longest target taken, the secret included: the longest that the API knows is a few hundred bytes.
const TARGET_MAX: usize = 4096;

/// What nobody but the operator knows: 64 hex digits.
#[derive(Clone)]
pub(super) struct Secret(String);

impl Secret {
    /// A new one, out of the kernel's random source.
    ///
    /// # Errors
    /// What getrandom(2) says.
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; SECRET_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Secret(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The text of it.
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// Compares in a time that says nothing about where two texts differ.
    pub(super) fn is(&self, text: &str) -> bool {
        let (own, theirs) = (self.0.as_bytes(), text.as_bytes());
        if own.len() != theirs.len() {
            return false;
        }
        let differences = own.iter().zip(theirs).fold(0, |found, (one, other)| found | (one ^ other));
        std::hint::black_box(differences) == 0
    }
}

/// The head of a request.
pub(super) struct Head<'r> {
    pub(super) method: &'r str,
    pub(super) target: &'r str,
    /// Names and values as sent.
    pub(super) fields: &'r [(&'r str, &'r [u8])],
}

impl Head<'_> {
    /// The value of a field that may be there once.
    fn single(&self, name: &str) -> Result<Option<&str>, Refusal> {
        let mut values = self.fields.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let first = values.next();
        if values.next().is_some() {
            return Err(refused(format!("{name} is there twice")));
        }
        let text = first.map(|(_, value)| std::str::from_utf8(value));
        text.transpose().map_err(|_| refused(format!("{name} is no text")))
    }
}

/// What an admitted request wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// This target of the daemon.
    Forward(String),
    /// The link that was given to the browser, with the code that it has.
    Open(String),
}

/// Why a request does not pass; always 403.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub(super) String);

fn refused(message: impl Into<String>) -> Refusal {
    Refusal(message.into())
}

/// Judges a request that came to `port`.
///
/// # Errors
/// [`Refusal`]: it does not pass.
pub(super) fn admit(head: &Head<'_>, secret: &Secret, port: u16) -> Result<Wanted, Refusal> {
    let host = own_host(head, port)?;
    own_origin(head, host)?;
    let target = head.target;
    let readable = target.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'#'));
    if target.len() > TARGET_MAX || !readable {
        return Err(refused("the path is not one that is taken here"));
    }
    let (first, rest) = target.strip_prefix('/').and_then(|path| path.split_once('/')).unwrap_or(("", ""));
    if first == "open" && head.method == "GET" {
        return Ok(Wanted::Open(rest.to_owned()));
    }
    if !secret.is(first) {
        return Err(refused("the address lacks this session's secret: open the one that `outcall ui` printed"));
    }
    let path = rest.split('?').next().unwrap_or("");
    if path.split('/').any(is_dots) || path.contains("//") {
        return Err(refused("the path is not one that is taken here"));
    }
    match head.method {
        "GET" if path.starts_with("ui/") || path.starts_with("api/v1/") => {}
        "POST" if path.starts_with("api/v1/") => json(head)?,
        _ => return Err(refused("only GET of /ui/ and /api/v1/, and POST of /api/v1/, pass here")),
    }
    Ok(Wanted::Forward(format!("/{rest}")))
}

/// `Host` is the address that was opened, so that no other name leads here (DNS rebinding).
fn own_host<'h>(head: &'h Head<'_>, port: u16) -> Result<&'h str, Refusal> {
    let host = head.single("Host")?.ok_or_else(|| refused("Host is missing"))?;
    let known = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
    if known.iter().any(|known| known.eq_ignore_ascii_case(host)) {
        return Ok(host);
    }
    Err(refused(format!("Host is neither {} nor {}; forward a port to the same number", known[0], known[1])))
}

/// What a browser says about the page that asks: it is our own, or the operator's address bar.
fn own_origin(head: &Head<'_>, host: &str) -> Result<(), Refusal> {
    if let Some(origin) = head.single("Origin")?
        && !origin.strip_prefix("http://").is_some_and(|origin| origin.eq_ignore_ascii_case(host))
    {
        return Err(refused("another page asks (Origin)"));
    }
    match head.single("Sec-Fetch-Site")? {
        None | Some("same-origin") => Ok(()),
        Some("none") if head.method == "GET" => Ok(()),
        Some(_) => Err(refused("another page asks (Sec-Fetch-Site)")),
    }
}

/// A page of another origin cannot send this type without asking first, and nobody answers that here.
fn json(head: &Head<'_>) -> Result<(), Refusal> {
    let kind = head.single("Content-Type")?.unwrap_or("").split(';').next().unwrap_or("").trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(refused("a POST has the Content-Type application/json"))
}

/// `.` or `..`, percent-encoded or not.
fn is_dots(segment: &str) -> bool {
    let plain = segment.to_ascii_lowercase().replace("%2e", ".");
    plain == "." || plain == ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 7000;
    const HOST: (&str, &str) = ("Host", "127.0.0.1:7000");

    fn ask(secret: &Secret, method: &str, target: &str, fields: &[(&str, &str)]) -> Result<Wanted, Refusal> {
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        admit(&Head { method, target, fields: &fields }, secret, PORT)
    }

    fn secret() -> Secret {
        Secret("ab".repeat(SECRET_BYTES))
    }

    #[test]
    fn the_page_and_the_api_pass_with_the_secret() {
        let own = secret();
        let forward = |target: &str| Ok(Wanted::Forward(target.to_owned()));
        let at = |path: &str| format!("/{}{path}", own.text());
        assert_eq!(ask(&own, "GET", &at("/ui/"), &[HOST, ("Sec-Fetch-Site", "none")]), forward("/ui/"));
        assert_eq!(ask(&own, "GET", &at("/ui/app.js"), &[("host", "LOCALHOST:7000")]), forward("/ui/app.js"));
        let events = "/api/v1/events?follow=true";
        assert_eq!(ask(&own, "GET", &at(events), &[HOST, ("Sec-Fetch-Site", "same-origin")]), forward(events));
        let fields = [HOST, ("Origin", "http://127.0.0.1:7000"), ("Content-Type", "application/json")];
        assert_eq!(ask(&own, "POST", &at("/api/v1/rules/reload"), &fields), forward("/api/v1/rules/reload"));
        assert_eq!(ask(&own, "GET", "/open/x", &[HOST]), Ok(Wanted::Open("x".to_owned())));
    }

    #[test]
    fn without_the_secret_nothing_passes() {
        let own = secret();
        let close = format!("/{}c/ui/", &own.text()[1..]);
        for target in ["/", "/ui/", "/api/v1/bridge", "//ui/", "*", "", "http://127.0.0.1:7000/ui/", &close] {
            assert!(ask(&own, "GET", target, &[HOST]).is_err(), "{target}");
        }
    }

    #[test]
    fn a_rebound_name_and_another_page_do_not_pass_even_with_the_secret() {
        let own = secret();
        let page = format!("/{}/ui/", own.text());
        for host in [
            "evil.example",
            "evil.example:7000",
            "127.0.0.1",
            "localhost",
            "127.0.0.1:7001",
            "[::1]:7000",
            "0:7000",
            "",
        ] {
            assert!(ask(&own, "GET", &page, &[("Host", host)]).is_err(), "{host}");
        }
        assert!(ask(&own, "GET", &page, &[]).is_err());
        assert!(ask(&own, "GET", &page, &[HOST, HOST]).is_err());
        for origin in [
            "null",
            "http://evil.example",
            "https://127.0.0.1:7000",
            "http://localhost:7000",
            "http://127.0.0.1:7001",
            "",
        ] {
            assert!(ask(&own, "GET", &page, &[HOST, ("Origin", origin)]).is_err(), "{origin}");
        }
        for site in ["cross-site", "same-site", "", "NONE"] {
            assert!(ask(&own, "GET", &page, &[HOST, ("Sec-Fetch-Site", site)]).is_err(), "{site}");
        }
    }

    #[test]
    fn only_get_and_post_of_two_places_pass() {
        let own = secret();
        let at = |path: &str| format!("/{}{path}", own.text());
        let kind = ("Content-Type", "application/json");
        for method in ["PUT", "DELETE", "OPTIONS", "HEAD", "CONNECT", "TRACE", "get"] {
            assert!(ask(&own, method, &at("/api/v1/bridge"), &[HOST, kind]).is_err(), "{method}");
        }
        for path in [
            "",
            "/",
            "/ui",
            "/metrics",
            "/v1/checkin",
            "/ui/../v1/x",
            "/ui/%2E%2e/x",
            "/ui//x",
            "/api/v2/x",
            "/api/v1/./x",
        ] {
            assert!(ask(&own, "GET", &at(path), &[HOST]).is_err(), "{path}");
        }
        assert!(ask(&own, "POST", &at("/ui/"), &[HOST, kind]).is_err());
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""] {
            assert!(ask(&own, "POST", &at("/api/v1/bridge/down"), &[HOST, ("Content-Type", kind)]).is_err(), "{kind}");
        }
        assert!(ask(&own, "POST", &at("/api/v1/bridge/down"), &[HOST, kind, ("Sec-Fetch-Site", "none")]).is_err());
        assert!(ask(&own, "GET", &at(&format!("/ui/{}", "x".repeat(TARGET_MAX))), &[HOST]).is_err());
        assert!(ask(&own, "GET", &at("/ui/a\\b"), &[HOST]).is_err());
    }

    #[test]
    fn secrets_are_new_and_long() {
        let (one, other) = (Secret::new().unwrap(), Secret::new().unwrap());
        assert_eq!(one.text().len(), 64);
        assert!(one.is(one.text()) && !one.is(other.text()) && !one.is("") && !one.is(&one.text()[1..]));
    }
}
