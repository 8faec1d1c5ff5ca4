//! The proxy's own responses.

use crate::http1::{RequestHead, Version};

use super::judge::Refused;
use super::session::Request;

/// Why something was refused, in words: a refusal's code and the id of its rule.
#[must_use]
pub fn why(reason: &str, rule: Option<&str>) -> String {
    let id = rule.unwrap_or("default");
    match reason {
        "rule" => format!("rule {id}"),
        "default" => "no rule allows it".to_owned(),
        "private_address" => format!("the address is a special-purpose one, and rule {id} has no allow_private_ips"),
        "port_not_in_rule" => format!("rule {id} does not name this port"),
        reason => format!("{reason} ({id})"),
    }
}

/// What the client is told.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// `X-Outcall-Block-Reason`, for refusals by policy.
    pub(super) block_reason: Option<Box<str>>,
    /// `X-Outcall-Failure-Reason`, for failures of interception.
    pub(super) failure_reason: Option<&'static str>,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

impl Answer {
    /// The refusal of `request`, in the form that its client asks for. It names the rule and never what is in it.
    pub(super) fn refusal(refused: &Refused, request: &Request) -> Self {
        let facts = &request.facts;
        let text = Self::blocked(refused, &format!("{} {}:{}", facts.method, facts.host_text, facts.port));
        if !wants_json(&request.head) {
            return text;
        }
        let decrypted = facts.scheme == "https" && &*facts.method != "CONNECT";
        let layer = if decrypted { "intercept" } else { "proxy" };
        let why = why(refused.reason, refused.rule.as_ref().map(|rule| &*rule.id));
        let body = serde_json::json!({
            "error": "blocked by outcall",
            "reason": format!("{layer}: {why}"),
            "rule": text.block_reason.as_deref(),
            "host": &*facts.host_text,
        });
        Answer { content_type: "application/json", body: format!("{body}\n"), ..text }
    }

    /// A refusal by policy. `what` is what was asked for: a host and port, never a path.
    fn blocked(refused: &Refused, what: &str) -> Self {
        let id: Box<str> = refused.rule.as_ref().map_or("default".into(), |rule| rule.id.clone());
        let why = why(refused.reason, refused.rule.as_ref().map(|rule| &*rule.id));
        Answer {
            status: 403,
            block_reason: Some(id),
            failure_reason: None,
            content_type: "text/plain",
            body: format!("Blocked by outcall: {what}: {why}\n"),
        }
    }

    /// Somebody the proxy does not serve.
    pub(super) fn stranger() -> Self {
        Answer {
            status: 403,
            block_reason: Some("default".into()),
            failure_reason: None,
            content_type: "text/plain",
            body: "Blocked by outcall: this peer is no container of a managed network\n".to_owned(),
        }
    }

    /// A failure that is not policy's.
    pub(super) fn failure(status: u16, text: &str) -> Self {
        let body = format!("outcall: {text}\n");
        Answer { status, block_reason: None, failure_reason: None, content_type: "text/plain", body }
    }

    /// The same, with the reason for programs.
    pub(super) fn with_reason(self, reason: &'static str) -> Self {
        Answer { failure_reason: Some(reason), ..self }
    }

    /// `GET /outcall-health`.
    pub(super) fn health() -> Self {
        let body = r#"{"status":"ok"}"#.to_owned();
        Answer { status: 200, block_reason: None, failure_reason: None, content_type: "application/json", body }
    }

    /// Appends the response to a request with `method` from a client of `version`.
    pub(super) fn write(&self, out: &mut Vec<u8>, method: &str, version: Version, keep_alive: bool) {
        let mut head =
            format!("HTTP/1.1 {} {}\r\nContent-Type: {}\r\n", self.status, phrase(self.status), self.content_type);
        if let Some(reason) = &self.block_reason {
            head.push_str(&format!("X-Outcall-Block-Reason: {reason}\r\n"));
        }
        if let Some(reason) = self.failure_reason {
            head.push_str(&format!("X-Outcall-Failure-Reason: {reason}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        head.push_str(match (keep_alive, version) {
            (false, _) => "Connection: close\r\n",
            (true, Version::Http10) => "Connection: keep-alive\r\n",
            (true, Version::Http11) => "",
        });
        head.push_str("\r\n");
        out.extend_from_slice(head.as_bytes());
        if method != "HEAD" {
            out.extend_from_slice(self.body.as_bytes());
        }
    }
}

/// Whether `Accept` names JSON (RFC 9110 12.5.1). A wildcard does not: what every client sends asks for nothing.
fn wants_json(head: &RequestHead) -> bool {
    let accepts = head.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("accept"));
    let mut ranges = accepts.flat_map(|(_, value)| value.split(|byte| *byte == b','));
    ranges.any(|range| {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let named = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(b"application/json"));
        // Weight zero: anything but this.
        named && !parts.any(|part| matches!(part, b"q=0" | b"q=0." | b"q=0.0" | b"q=0.00" | b"q=0.000"))
    })
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        408 => "Request Timeout",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_for_who_names_it() {
        for (accept, json) in [
            ("application/json", true),
            ("text/html, Application/JSON;q=0.9", true),
            ("*/*", false),
            ("application/*", false),
            ("application/json;q=0", false),
            ("application/jsonp", false),
        ] {
            let text = format!("GET http://a.com/ HTTP/1.1\r\nHost: a.com\r\nAccept: {accept}\r\n\r\n");
            let crate::http1::Parse::Parsed { head, .. } = RequestHead::parse(text.as_bytes()) else { panic!() };
            assert_eq!(wants_json(&head), json, "{accept}");
        }
    }

    #[test]
    fn a_refusal_names_its_rule() {
        let mut out = Vec::new();
        let refused = Refused::because("default");
        Answer::blocked(&refused, "example.com:80").write(&mut out, "GET", Version::Http11, true);
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nX-Outcall-Block-Reason: default\r\nContent-Length: 54\r\n\r\n\
             Blocked by outcall: example.com:80: no rule allows it\n"
        );
    }
}
