//! `outcall doctor`: whether this host lets outcalld filter, each finding with a verdict and a remedy.
//!
//! Owns: the order of the findings, their layout and the exit code. Does not own: the questions. Those about the kernel,
//! the rules, the CA and resolvers are asked by `outcalld` itself, as a helper (`helper.rs`), so that what is asked is
//! what a start would do and this program links no kernel library; the rest is read from Docker, /proc and the files.

mod daemon;
mod docker;
mod files;
mod helper;
mod ports;

use crate::api::{DoctorVerdict, Finding, HostProbe, ProbedCa, ProbedRules};
use crate::cli::CliError;
use crate::cli::arguments::Arguments;
use crate::cli::output::{Cell, Output};

/// Looks at everything, prints it, and fails if something would keep outcalld from filtering.
pub(super) fn run(arguments: &Arguments, output: &mut Output) -> Result<(), CliError> {
    let mut findings = Vec::new();
    match helper::ask() {
        Ok(probe) => {
            findings.extend(kernel(&probe));
            findings.push(files::forwarding());
            findings.extend(foreign(&probe));
            findings.extend(docker::look(&probe.settings.docker_socket));
            findings.extend(resolvers(&probe));
            findings.extend(ports::look(&probe));
            findings.extend(files::look(&probe.settings));
            findings.push(rules(&probe.rules));
            findings.push(authority(&probe.ca));
            findings.extend(daemon::look(&arguments.socket, &probe));
        }
        // Nothing else can be asked without it.
        Err(finding) => findings.push(finding),
    }
    let problems = findings.iter().filter(|finding| finding.verdict == DoctorVerdict::Problem).count();
    output.data(&findings, |output, findings| text(output, findings))?;
    match problems {
        0 => Ok(()),
        1 => Err(CliError::Unsuccessful("1 problem keeps outcalld from filtering".to_owned())),
        many => Err(CliError::Unsuccessful(format!("{many} problems keep outcalld from filtering"))),
    }
}

fn text(output: &mut Output, findings: &[Finding]) -> Result<(), CliError> {
    let rows: Vec<(&str, Cell)> = findings
        .iter()
        .map(|finding| {
            let remedy = finding.remedy.as_ref().map(|remedy| format!("\n  -> {remedy}")).unwrap_or_default();
            let (word, tone): (_, fn(String) -> Cell) = match finding.verdict {
                DoctorVerdict::Ok => ("ok", |text| Cell::good(text)),
                DoctorVerdict::Warning => ("warning", |text| text.into()),
                DoctorVerdict::Problem => ("PROBLEM", |text| Cell::bad(text)),
                DoctorVerdict::Unknown => ("unknown", |text| text.into()),
            };
            (finding.area.as_str(), tone(format!("{word:<8} {}{remedy}", finding.found)))
        })
        .collect();
    output.labels(&rows)
}

/// A finding with nothing to do.
fn good(area: &str, found: impl Into<String>) -> Finding {
    Finding { area: area.to_owned(), verdict: DoctorVerdict::Ok, found: found.into(), remedy: None }
}

/// A finding with something to do.
fn bad(verdict: DoctorVerdict, area: &str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { area: area.to_owned(), verdict, found: found.into(), remedy: Some(remedy.into()) }
}

const KERNEL: &str = "kernel";

fn kernel(probe: &HostProbe) -> Vec<Finding> {
    if let Some(reason) = &probe.kernel_unasked {
        return vec![bad(DoctorVerdict::Unknown, KERNEL, reason.as_str(), "run `outcall doctor` as root")];
    }
    let refused: Vec<Finding> =
        probe.kernel.iter().filter_map(|tried| feature(&tried.feature, tried.error.as_ref()?)).collect();
    if refused.is_empty() {
        let names: Vec<&str> = probe.kernel.iter().map(|tried| tried.feature.as_str()).collect();
        return vec![good(KERNEL, format!("has {}", names.join(", ")))];
    }
    refused
}

/// A refused feature, with the kernel options and the module it comes from.
fn feature(name: &str, error: &str) -> Option<Finding> {
    let (verdict, options, module) = match name {
        "nf_tables" => {
            (DoctorVerdict::Problem, "NF_TABLES, NF_TABLES_INET, NFT_CT, NFT_NAT, NFT_MASQ, NFT_LOG", "nf_tables")
        }
        "bridge" => (DoctorVerdict::Problem, "BRIDGE", "bridge"),
        "veth" => (DoctorVerdict::Problem, "VETH", "veth"),
        "netdev ingress" => (DoctorVerdict::Problem, "NF_TABLES_NETDEV, NETFILTER_INGRESS", "nf_tables"),
        "conntrack" => (DoctorVerdict::Problem, "NF_CONNTRACK, NF_CT_NETLINK", "nf_conntrack_netlink"),
        // Without it drops are not shown, and still happen.
        "nflog" => (DoctorVerdict::Warning, "NETFILTER_NETLINK_LOG", "nfnetlink_log"),
        _ => (DoctorVerdict::Problem, "the option of that name", "the module of that name"),
    };
    let remedy = format!("modprobe {module}, or a kernel with {options}");
    Some(bad(verdict, KERNEL, format!("{name}: {error}"), remedy))
}

const TABLES: &str = "other tables";

/// What other tools' tables do to ours. Their accept opens nothing; a flowtable goes around the forward hook.
fn foreign(probe: &HostProbe) -> Vec<Finding> {
    let Some(hooks) = &probe.foreign else {
        return vec![bad(DoctorVerdict::Unknown, TABLES, "cannot be listed", "run `outcall doctor` as root")];
    };
    let named = |names: Vec<&str>| names.join(", ");
    let flowtables: Vec<&str> =
        hooks.iter().filter(|hook| hook.hook.is_none()).map(|hook| hook.name.as_str()).collect();
    let closed: Vec<&str> = hooks
        .iter()
        .filter(|hook| hook.drops && hook.hook.as_deref().is_some_and(|hook| hook == "input" || hook == "output"))
        .map(|hook| hook.name.as_str())
        .collect();
    let early: Vec<&str> =
        hooks.iter().filter(|hook| hook.hook.as_deref() == Some("ingress")).map(|hook| hook.name.as_str()).collect();
    let mut findings = Vec::new();
    if !flowtables.is_empty() {
        findings.push(bad(
            DoctorVerdict::Problem,
            TABLES,
            format!("flowtables carry flows past every forward rule: {}", named(flowtables)),
            "keep the bridges and containers' interfaces out of them, or remove them",
        ));
    }
    if !early.is_empty() {
        findings.push(bad(
            DoctorVerdict::Warning,
            TABLES,
            format!(
                "chains at the ingress of a device come before ours and could send packets elsewhere: {}",
                named(early)
            ),
            "see that none of them has `fwd` or `dup` on outcall0, oc-* or a container's veth",
        ));
    }
    if !closed.is_empty() {
        findings.push(bad(
            DoctorVerdict::Warning,
            TABLES,
            format!("drop what they do not know, so containers may not reach DNS and proxy: {}", named(closed)),
            "accept input from outcall0 and oc-* there; ours still drops all but DNS, proxy and ping",
        ));
    }
    if findings.is_empty() {
        findings.push(good(TABLES, "none that lets packets past ours, or keeps containers from DNS and proxy"));
    }
    findings
}

const RESOLVERS: &str = "resolvers";

fn resolvers(probe: &HostProbe) -> Vec<Finding> {
    let upstreams = match &probe.upstreams {
        Ok(servers) => good(RESOLVERS, format!("upstreams {}", servers.join(", "))),
        Err(reason) => {
            bad(DoctorVerdict::Problem, RESOLVERS, reason.as_str(), "--dns-upstream in /etc/default/outcalld")
        }
    };
    let trap = match &probe.resolver_trap {
        None => good(RESOLVERS, "Docker asks none of the host's past the rules"),
        Some(server) => bad(
            DoctorVerdict::Warning,
            RESOLVERS,
            format!(
                "Docker would ask {server} from the host's own namespace, past every rule: containers without --dns are disconnected"
            ),
            "start containers with `--dns GATEWAY`, or put \"dns\": [\"10.200.0.1\"] into /etc/docker/daemon.json",
        ),
    };
    vec![upstreams, trap]
}

fn rules(checked: &ProbedRules) -> Finding {
    const RULES: &str = "rules";
    const REMEDY: &str = "`outcall rules check` shows each with its file and line";
    let lines = |kind: &str| checked.report.lines().filter(|line| line.starts_with(kind)).collect::<Vec<_>>();
    let warnings = lines("warning").join("\n");
    match checked.valid {
        false => {
            let errors = lines("error");
            let first = errors.first().copied().unwrap_or("they do not load");
            bad(DoctorVerdict::Problem, RULES, first, REMEDY)
        }
        true if warnings.is_empty() => {
            good(RULES, checked.report.lines().last().unwrap_or_default().trim_start_matches("ok: "))
        }
        true => {
            let none = warnings.ends_with("everything is blocked");
            let remedy = if none { "write a rule there, and try it with `outcall rules check`" } else { REMEDY };
            bad(DoctorVerdict::Warning, RULES, warnings.trim_start_matches("warning: "), remedy)
        }
    }
}

fn authority(ca: &ProbedCa) -> Finding {
    const CA: &str = "CA";
    const REMEDY: &str = "`outcall ca init` makes a pair; --ca-cert and --ca-key name it";
    match ca {
        ProbedCa::On(warnings) if warnings.is_empty() => good(CA, "loads"),
        ProbedCa::On(warnings) => bad(DoctorVerdict::Warning, CA, warnings.join("; "), REMEDY),
        ProbedCa::Off(None) => good(CA, "none: interception is off"),
        ProbedCa::Off(Some(reason)) => bad(DoctorVerdict::Warning, CA, reason.as_str(), REMEDY),
        ProbedCa::Bad(reason) => bad(DoctorVerdict::Problem, CA, reason.as_str(), REMEDY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ForeignHook, ProbedFeature, ProbedSettings};

    fn probe() -> HostProbe {
        let tried = |feature: &str| ProbedFeature { feature: feature.to_owned(), error: None };
        HostProbe {
            running: None,
            settings: ProbedSettings {
                rules_dir: "/r".into(),
                state_dir: "/s".into(),
                docker_socket: "/d".into(),
                agent_socket: "/a".into(),
                shim: "/x".into(),
                dns_port: 53,
                proxy_port: Some(8080),
            },
            kernel: vec![tried("nf_tables"), tried("nflog")],
            kernel_unasked: None,
            foreign: Some(Vec::new()),
            resolver_trap: None,
            upstreams: Ok(vec!["9.9.9.9:53".to_owned()]),
            rules: ProbedRules { valid: true, report: "ok: 1 rule\n".to_owned() },
            ca: ProbedCa::Off(None),
        }
    }

    #[test]
    fn a_good_host_has_no_problem() {
        let probe = probe();
        let all = [kernel(&probe), foreign(&probe), resolvers(&probe), vec![rules(&probe.rules)]].concat();
        assert!(all.iter().all(|finding| finding.verdict == DoctorVerdict::Ok && finding.remedy.is_none()), "{all:?}");
    }

    #[test]
    fn what_is_missing_has_a_remedy_and_the_right_weight() {
        let mut probe = probe();
        for tried in &mut probe.kernel {
            tried.error = Some("refused".to_owned());
        }
        let verdicts: Vec<_> = kernel(&probe).iter().map(|finding| finding.verdict).collect();
        assert_eq!(verdicts, [DoctorVerdict::Problem, DoctorVerdict::Warning]);
        assert!(kernel(&probe)[0].remedy.as_ref().unwrap().contains("NF_TABLES"));
        probe.upstreams = Err("no nameserver".to_owned());
        probe.resolver_trap = Some("127.0.0.53".to_owned());
        let found = resolvers(&probe);
        assert_eq!((found[0].verdict, found[1].verdict), (DoctorVerdict::Problem, DoctorVerdict::Warning));
        assert!(found[1].remedy.as_ref().unwrap().contains("--dns"));
    }

    #[test]
    fn rules_that_do_not_load_are_a_problem_and_warnings_are_not() {
        let checked = |valid, report: &str| rules(&ProbedRules { valid, report: report.to_owned() });
        let found = checked(false, "error: a.yaml:3: bad\nerror: b.yaml:1: worse\n");
        assert_eq!((found.verdict, found.found.as_str()), (DoctorVerdict::Problem, "error: a.yaml:3: bad"));
        assert_eq!(checked(true, "warning: none\nok: 0 rules\n").verdict, DoctorVerdict::Warning);
        let none = checked(true, "warning: there are no rule files in /r: everything is blocked\nok: 0 rules\n");
        assert!(none.remedy.unwrap().starts_with("write a rule"));
    }

    #[test]
    fn only_a_flowtable_of_others_is_a_way_past_ours() {
        let hook = |name: &str, hook: Option<&str>, drops| ForeignHook {
            name: name.to_owned(),
            hook: hook.map(str::to_owned),
            drops,
        };
        let mut probe = probe();
        probe.foreign = Some(vec![hook("ip filter FORWARD", Some("forward"), true)]);
        assert_eq!(foreign(&probe)[0].verdict, DoctorVerdict::Ok);
        probe.foreign = Some(vec![hook("ip filter INPUT", Some("input"), true)]);
        assert_eq!(foreign(&probe)[0].verdict, DoctorVerdict::Warning);
        probe.foreign = Some(vec![hook("inet fast ft", None, false)]);
        assert_eq!(foreign(&probe)[0].verdict, DoctorVerdict::Problem);
    }
}
