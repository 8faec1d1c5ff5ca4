//! What the operator API shows of rules, and the questions it asks them.
//!
//! `evaluate` and `test` go through the same evaluation as the wire, without its counters.

use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use crate::api;

use super::condition::Outcome;
use super::document::ContextDocument;
use super::facts::Facts;
use super::field::FieldSet;
use super::guarded::Guard;
use super::{Rule, RuleSet, load};

/// Characters of a condition in a list of rules.
const PREVIEW_MAX: usize = 80;

impl RuleSet {
    /// `GET /rules`: in evaluation order.
    #[must_use]
    pub fn summaries(&self) -> Vec<api::RuleSummary> {
        self.rules().iter().map(|rule| summary(rule)).collect()
    }

    /// `GET /rule/ID`
    #[must_use]
    pub fn detail(&self, id: &str) -> Option<api::RuleDetail> {
        let rule = self.rule(id)?;
        Some(api::RuleDetail {
            id: rule.id.to_string(),
            file: rule.file.to_string(),
            condition: rule.expanded.to_string(),
            action: rule.action.as_str().to_owned(),
            log: rule.log,
            description: rule.description.as_deref().map(str::to_owned),
            priority: rule.priority,
            egress: rule.egress.as_ref().map(|egress| api::EgressView {
                mode: egress.mode.as_str().to_owned(),
                ports: egress.ports.clone(),
                allow_private_ips: egress.allow_private_ips,
                match_body: egress.match_body,
            }),
        })
    }

    /// `POST /rule/evaluate`
    ///
    /// # Errors
    /// What is wrong with the context: the caller's fault.
    pub fn evaluate(&self, request: &api::EvaluateRequest) -> Result<api::Evaluated, String> {
        let decision = ContextDocument::parse(&request.context)?.with(|context| self.peek(context));
        Ok(api::Evaluated {
            decision: decision.action.as_str().to_owned(),
            matched_rule: decision.rule.as_ref().map(|rule| rule.id.to_string()),
            file: decision.rule.as_ref().map(|rule| rule.file.to_string()),
            logged: decision.rule.as_ref().is_some_and(|rule| rule.log),
        })
    }
}

fn summary(rule: &Rule) -> api::RuleSummary {
    let last = u64::try_from(rule.last_hit_ms.load(Ordering::Relaxed)).unwrap_or(0);
    let last = (last > 0).then(|| UNIX_EPOCH + Duration::from_millis(last));
    api::RuleSummary {
        id: rule.id.to_string(),
        file: rule.file.to_string(),
        action: rule.action.as_str().to_owned(),
        condition_preview: preview(&rule.condition),
        description: rule.description.as_deref().map(str::to_owned),
        priority: rule.priority,
        hits: rule.hits.load(Ordering::Relaxed),
        errors: rule.errors.load(Ordering::Relaxed),
        last_hit: last.map(|last| humantime::format_rfc3339_millis(last).to_string()),
    }
}

/// One line, cut.
fn preview(condition: &str) -> String {
    let line = condition.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(PREVIEW_MAX) {
        Some((cut, _)) => format!("{}…", &line[..cut]),
        None => line,
    }
}

/// `POST /rule/test`: compiles an expression, in the guarded child first, and evaluates it. Blocks for some
/// milliseconds: not for a thread on a packet's path.
#[must_use]
pub fn test_expression(request: &api::RuleTest, guard: &Guard) -> api::RuleTested {
    match tested(request, guard) {
        Ok(result) => api::RuleTested { result: Some(result), error: None },
        Err(error) => api::RuleTested { result: None, error: Some(error) },
    }
}

fn tested(request: &api::RuleTest, guard: &Guard) -> Result<bool, String> {
    let document = ContextDocument::parse(&request.context)?;
    let source = request.expression.as_str();
    let condition = match load::vet_and_compile(&[source], guard).pop() {
        Some(compiled) => compiled.map_err(|reasons| reasons.join("; "))?,
        None => return Err("the expression was not compiled".to_owned()),
    };
    document.with(|context| match condition.evaluate(&Facts::new(context), FieldSet::EMPTY) {
        Outcome::True => Ok(true),
        Outcome::False => Ok(false),
        Outcome::Unknown(fields) => Err(format!("unknown: it needs {}", fields.names().join(", "))),
        Outcome::Failed(fault) => Err(format!("evaluation error: {fault}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(expression: &str, context: &str) -> api::RuleTested {
        let context = serde_json::from_str(context).unwrap();
        test_expression(&api::RuleTest { expression: expression.to_owned(), context }, &Guard::InProcess)
    }

    #[test]
    fn an_expression_is_tested_as_rules_are() {
        assert_eq!(test("http.host == 'A.com'", r#"{"http":{"host":"a.COM"}}"#).result, Some(true));
        assert_eq!(test("!!(1 == 2)", "{}").result, Some(false));
        let unknown = test("http.method == 'GET' && http.host == 'a'", "{}");
        assert_eq!(unknown.error.as_deref(), Some("unknown: it needs http.method, http.host"));
        let failed = test("http.headers['x'] == 'y'", r#"{"http":{"headers":{}}}"#);
        assert!(failed.error.unwrap().starts_with("evaluation error: a map has no such key"));
        assert!(test("1 + 1", "{}").error.unwrap().contains("not a bool"));
        assert!(test("http.host ==", "{}").error.unwrap().starts_with("CEL: "));
        assert!(test("true", r#"{"x":{}}"#).error.unwrap().contains("no namespace"));
    }

    #[test]
    fn expressions_mean_what_cel_says() {
        let context = r#"{"http":{"host":"a.com","headers":{"Accept":"*/*"},"body":null,"body_size":3},
            "network":{"port":443},"tls":{"alpn":["h2","http/1.1"],"ech":false},
            "run":{"args":["--force","x"],"flags":[],"context":{"n":4,"list":[{"y":1},{"y":2}],"deep":{"a":"b"}}}}"#;
        for (expression, result) in [
            ("http.headers['accept'] == '*/*'", true),
            ("http.headers.ACCEPT == '*/*' && size(http.headers) == 1", true),
            ("has(http.headers.accept) && !has(http.headers.cookie)", true),
            ("'Accept' in http.headers && !('cookie' in http.headers)", true),
            ("http.body == null && http.body_size == 3", true),
            ("network.port in [80, 443] && network.port != 80 && network.port > 442 && network.port <= 443", true),
            ("'h2' in tls.alpn && tls.alpn[1] == 'http/1.1' && tls.alpn.size() == 2 && !tls.ech", true),
            ("run.args.exists(a, a.startsWith('--')) && run.args.all(a, size(a) > 0)", true),
            ("run.flags.all(f, f == 'x') && !run.flags.exists(f, true)", true),
            ("['b.com', 'com'].exists(end, http.host.endsWith(end))", true),
            ("run.context.n > 3 && run.context.list.exists(e, e.y == 2) && run.context['deep'].a == 'b'", true),
            ("run.context.list.exists(e, e.y == 3)", false),
            ("run.args == ['--force', 'x']", true),
            ("string(network.port) + ':' + http.host == '443:a.com' && int('4') % 3 == 1", true),
            ("http.host.matches('^[a-z][.]com$') && !http.host.matches('^b')", true),
            ("http.host == 'b.com' ? false : http.host.contains('.')", true),
            ("http.host > 'a' && -network.port < 0 && 7 / 2 == 3 && 2 * 3 - 1 == 5", true),
            ("run.context.x == 1 || true", true),
            ("1 / 0 == 1 && false", false),
        ] {
            assert_eq!(test(expression, context).result, Some(result), "{expression}: {:?}", test(expression, context));
        }
    }

    #[test]
    fn the_deepest_expression_evaluates_on_a_small_stack() {
        let deep = |n: usize| {
            [
                format!("{} == {n}", vec!["1"; n].join(" + ")),
                format!("{}true{}", "!(false == ".repeat(n / 2), ")".repeat(n / 2)),
                format!("run.context{} == 1 || true", ".a".repeat(n)),
                format!("{}true{}", "(true ? ".repeat(n), " : false)".repeat(n)),
            ]
        };
        let small = std::thread::Builder::new().stack_size(2 * 1024 * 1024);
        let evaluated = small.spawn(move || {
            for expression in deep(28) {
                assert_eq!(test(&expression, r#"{"run":{"context":{}}}"#).error, None, "{expression}");
            }
            deep(200).iter().all(|expression| test(expression, "{}").result.is_none())
        });
        assert!(evaluated.unwrap().join().unwrap());
    }

    #[test]
    fn a_preview_is_one_line() {
        assert_eq!(preview("a\n  && b"), "a && b");
        assert_eq!(preview(&"ä".repeat(100)).chars().count(), PREVIEW_MAX + 1);
    }
}
