//! Logs: `tracing` to stderr, level from `RUST_LOG` alone, targets named after the subsystems.

use tracing_subscriber::EnvFilter;

/// The stable targets, beside `outcalld` for the daemon's own start, control and stop.
pub const TARGETS: [&str; 8] =
    ["bridge", "network", "rule_engine", "dns", "proxy", "agent_api", "host_api", "docker_manager"];

/// Starts logging. A `RUST_LOG` that cannot be read is said so and taken as `info`.
pub fn start() {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let directives = expand(&wanted);
    let (filter, complaint) = match EnvFilter::builder().parse(&directives) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let json = std::env::var("OUTCALL_LOG_FORMAT").is_ok_and(|format| format == "json");
    if json {
        lines.json().flatten_event(true).with_current_span(false).init();
    } else {
        use std::io::IsTerminal as _;
        lines.with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()).init();
    }
    if let Some(error) = complaint {
        tracing::warn!(target: "outcalld", "RUST_LOG={wanted:?} is not understood ({error}); logging at info");
    }
}

/// `outcalld=LEVEL` (or a bare `outcalld`) stands for every target of the daemon; it is written out first, so that
/// a directive for one target wins over it. Nothing given means `info`.
fn expand(wanted: &str) -> String {
    let mut all = Vec::new();
    let mut rest = Vec::new();
    for directive in wanted.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let level = directive.strip_prefix("outcalld=").or((directive == "outcalld").then_some("trace"));
        match level {
            Some(level) => {
                all.push(format!("outcalld={level}"));
                all.extend(TARGETS.iter().map(|target| format!("{target}={level}")));
            }
            None => rest.push(directive.to_owned()),
        }
    }
    all.extend(rest);
    if all.is_empty() { "info".to_owned() } else { all.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcalld_stands_for_every_target_and_a_single_target_wins() {
        let text = expand("dns=trace,outcalld=debug");
        assert!(text.starts_with("outcalld=debug,bridge=debug,"));
        assert!(text.ends_with(",dns=trace"));
        assert_eq!(expand(""), "info");
        assert_eq!(expand("dns=debug"), "dns=debug");
        for target in TARGETS {
            assert!(text.contains(&format!(",{target}=debug")), "{target}");
        }
    }
}
