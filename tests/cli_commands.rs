//! The `outcall` binary against a daemon played by a thread: what it asks, what it prints, how it exits.

#![cfg(feature = "cli")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};

/// What was asked: method, path and body.
type Asked = (String, String, String);

/// A daemon that gives set answers by method and path.
struct Daemon {
    directory: PathBuf,
    socket: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    fn new(answers: Vec<(&'static str, u16, Value)>) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("outcall-cli-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let socket = directory.join("host.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, ended) = (Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                serve(stream, &answers, &log);
            }
        });
        Daemon { directory, socket, asked, stop, thread: Some(thread) }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        outcall().arg("--socket").arg(&self.socket).args(arguments).output().unwrap()
    }

    /// Runs a command that must succeed and gives what it printed.
    fn prints(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*stderr), (Some(0), ""), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn last_asked(&self) -> Asked {
        self.asked.lock().unwrap().last().cloned().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the accept.
        let _ = std::os::unix::net::UnixStream::connect(&self.socket);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn serve(stream: std::os::unix::net::UnixStream, answers: &[(&str, u16, Value)], log: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let (method, path) = match line.split(' ').collect::<Vec<_>>()[..] {
        [method, path, _] => (method.to_owned(), path.to_owned()),
        _ => panic!("no request line: {line}"),
    };
    let mut length = 0;
    loop {
        let mut field = String::new();
        reader.read_line(&mut field).unwrap();
        if let Some(value) = field.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if field == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let key = format!("{method} {path}");
    log.lock().unwrap().push((method, path, String::from_utf8(body).unwrap()));
    let missing = (404, json!({"success":false,"error":format!("no such resource: {key}")}));
    let (status, answer) = answers
        .iter()
        .find(|(known, _, _)| *known == key)
        .map_or(missing, |(_, status, answer)| (*status, answer.clone()));
    let text = format!("{answer}\n");
    let head =
        format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", text.len());
    let _ = reader.get_mut().write_all(format!("{head}{text}").as_bytes());
}

fn outcall() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outcall"));
    command.stdin(Stdio::null()).env_remove("NO_COLOR");
    command
}

fn ok(data: &Value) -> Value {
    json!({"success":true,"data":data})
}

fn bridge() -> Value {
    json!({"name":"outcall0","up":true,"index":12,"nftables_active":true,"nftables":"active"})
}

fn text_of(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

#[test]
fn bridge_status_for_people_and_for_scripts() {
    let daemon = Daemon::new(vec![("GET /api/v1/bridge", 200, ok(&bridge()))]);
    let text = daemon.prints(&["bridge", "status"]);
    assert_eq!(text, "Bridge:    outcall0\nState:     up\nIndex:     12\nnftables:  active\n");
    let data: Value = serde_json::from_str(&daemon.prints(&["bridge", "status", "--json"])).unwrap();
    assert_eq!(data, bridge());
}

#[test]
fn bridge_up_and_down_post_without_a_body() {
    let daemon = Daemon::new(vec![
        ("POST /api/v1/bridge/up", 200, ok(&bridge())),
        ("POST /api/v1/bridge/down", 500, json!({"success":false,"error":"cannot delete outcall0: busy"})),
    ]);
    daemon.prints(&["bridge", "up"]);
    assert_eq!(daemon.last_asked().2, "");
    let output = daemon.run(&["bridge", "down"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text_of(&output.stderr), "error: cannot delete outcall0: busy\n");
    assert!(output.stdout.is_empty());
}

#[test]
fn an_absent_daemon_is_named_with_exit_code_one() {
    for arguments in [&["bridge", "status"][..], &[]] {
        let output = outcall().args(["--socket", "/nonexistent/host.sock"]).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let expected = "error: cannot connect to outcalld at /nonexistent/host.sock — is it running?\n";
        assert_eq!(text_of(&output.stderr), expected);
    }
    let output = outcall().args(["--socket", "/etc/passwd", "bridge", "status"]).output().unwrap();
    assert!(text_of(&output.stderr).contains("no socket"), "{}", text_of(&output.stderr));
}

#[test]
fn bad_arguments_exit_with_two_and_a_suggestion() {
    let run = |arguments: &[&str]| {
        let output = outcall().args(arguments).output().unwrap();
        (output.status.code(), text_of(&output.stderr))
    };
    let (code, text) = run(&["brige", "status"]);
    assert!(code == Some(2) && text.contains("'bridge'"), "{text}");
    assert_eq!(run(&["bridge"]).0, Some(2));
    assert_eq!(run(&["dns", "test"]).0, Some(2));
    assert_eq!(run(&["dns", "test", "a", "--type", "no type"]).0, Some(2));
    assert_eq!(run(&["rules", "test", "true"]).0, Some(2));
    let help = outcall().arg("--help").output().unwrap();
    assert_eq!(help.status.code(), Some(0));
    for group in ["bridge", "dns", "proxy", "network", "rules"] {
        assert!(text_of(&help.stdout).contains(group), "{group}");
    }
}

#[test]
fn dns_test_asks_the_rules_about_the_name() {
    let verdict = json!({"decision":"allow","matched_rule":"allow-x","file":"x.yaml","logged":false});
    let daemon = Daemon::new(vec![("POST /api/v1/rule/evaluate", 200, ok(&verdict))]);
    let text = daemon.prints(&["dns", "test", "Example.com", "--type", "aaaa"]);
    assert_eq!(text, "Query:     Example.com AAAA\nDecision:  allow\nRule:      allow-x\nFile:      x.yaml\n");
    let asked: Value = serde_json::from_str(&daemon.last_asked().2).unwrap();
    assert_eq!(asked, json!({"context":{"dns":{"query":"Example.com","record_type":"AAAA"}}}));
}

#[test]
fn dns_cache_with_and_without_entries() {
    let stats = json!({"entries":1,"max_entries":10000,"hits":2,"misses":3,"evictions":0});
    let entry =
        json!({"hostname":"example.com","record_type":"A","ttl_remaining_secs":60,"cached_at":"2026-11-24T00:00:00Z"});
    let both = json!({"stats":stats,"entries":[entry]});
    let daemon = Daemon::new(vec![
        ("GET /api/v1/dns/cache", 200, ok(&stats)),
        ("GET /api/v1/dns/cache?entries=true", 200, ok(&both)),
        ("POST /api/v1/dns/cache/flush", 200, ok(&json!({"entries_flushed":1}))),
    ]);
    assert!(daemon.prints(&["dns", "cache"]).starts_with("Entries:    1 of 10000\n"));
    let text = daemon.prints(&["dns", "cache", "--entries"]);
    assert!(
        text.contains("NAME         TYPE  TTL   CACHED AT\nexample.com  A     60 s  2026-11-24T00:00:00Z\n"),
        "{text}"
    );
    let data: Value = serde_json::from_str(&daemon.prints(&["dns", "cache", "--entries", "--json"])).unwrap();
    assert_eq!(data, both);
    assert_eq!(daemon.prints(&["dns", "flush"]), "Flushed 1 answer from the DNS cache.\n");
}

#[test]
fn network_commands_send_what_was_typed() {
    let status = json!({"exists":true,"network_id":"abc","name":"outcall-x","subnet":"10.200.0.0/24","gateway":"10.200.0.1",
        "bridge":"oc-1","containers":[{"name":"writer-1","ipv4_address":"10.200.0.2"}]});
    let made =
        json!({"network_id":"abc","name":"outcall-x","subnet":"10.9.0.0/24","gateway":"10.9.0.1","created":true});
    let daemon = Daemon::new(vec![
        ("GET /api/v1/network?name=x%2Fy", 200, ok(&status)),
        ("GET /api/v1/networks", 200, ok(&json!([status]))),
        ("POST /api/v1/network/create", 201, ok(&made)),
        ("POST /api/v1/network/destroy", 409, json!({"success":false,"error":"in use by writer-1"})),
    ]);
    let text = daemon.prints(&["network", "status", "--name", "x/y"]);
    assert!(text.contains("CONTAINER  ADDRESS\nwriter-1   10.200.0.2\n"), "{text}");
    assert!(
        daemon.prints(&["network", "list"]).starts_with("NETWORK    SUBNET         GATEWAY     BRIDGE  CONTAINERS\n")
    );
    daemon.prints(&["network", "create", "--name", "x", "--subnet", "10.9.0.0/24"]);
    let asked: Value = serde_json::from_str(&daemon.last_asked().2).unwrap();
    assert_eq!(asked, json!({"name":"x","subnet":"10.9.0.0/24"}));
    let output = daemon.run(&["network", "destroy"]);
    assert_eq!((output.status.code(), text_of(&output.stderr).as_str()), (Some(1), "error: in use by writer-1\n"));
    assert_eq!(daemon.last_asked().2, "{}");
}

#[test]
fn rules_are_listed_shown_reloaded_and_tested() {
    let row = json!({"id":"a","file":"x.yaml","action":"block","condition_preview":"true","description":null,"priority":10,
        "hits":3,"errors":0,"last_hit":null});
    let one = json!({"id":"a","file":"x.yaml","condition":"true","action":"allow","log":true,"description":"d","priority":10,
        "egress":{"mode":"direct_ip","ports":[80,443],"allow_private_ips":false,"match_body":false}});
    let errors = "a.yaml:3: rule x: unknown action\nb.yaml:1: no version";
    let daemon = Daemon::new(vec![
        ("GET /api/v1/rules", 200, ok(&json!([row]))),
        ("GET /api/v1/rule/a", 200, ok(&one)),
        ("POST /api/v1/rules/reload", 422, json!({"success":false,"error":errors})),
        ("POST /api/v1/rule/test", 200, ok(&json!({"result":null,"error":"http.host is unknown"}))),
    ]);
    assert!(daemon.prints(&["rules", "list"]).contains("10    a   block   3     0       -         x.yaml  true\n"));
    let text = daemon.prints(&["rules", "show", "a"]);
    assert!(text.contains("Ports:        80, 443\n") && text.contains("Egress:       direct_ip\n"), "{text}");
    let output = daemon.run(&["rules", "show", "none"]);
    assert_eq!(output.status.code(), Some(1));
    let output = daemon.run(&["rules", "reload"]);
    assert_eq!((output.status.code(), text_of(&output.stderr)), (Some(1), format!("error: {errors}\n")));

    let context = daemon.directory.join("context.json");
    std::fs::write(&context, r#"{"http":{"host":"a"}}"#).unwrap();
    let output = daemon.run(&["rules", "test", "http.host == 'a'", "--context", context.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text_of(&output.stdout).contains("Error:   http.host is unknown\n"));
    let asked: Value = serde_json::from_str(&daemon.last_asked().2).unwrap();
    assert_eq!(asked, json!({"expression":"http.host == 'a'","context":{"http":{"host":"a"}}}));
    std::fs::write(&context, "[1]").unwrap();
    assert_eq!(daemon.run(&["rules", "test", "true", "--context", context.to_str().unwrap()]).status.code(), Some(2));
    assert_eq!(daemon.run(&["rules", "test", "true", "--context", "/nonexistent"]).status.code(), Some(1));
}

#[test]
fn rules_check_runs_the_daemon_beside_the_command() {
    use std::os::unix::fs::PermissionsExt as _;
    let daemon = Daemon::new(Vec::new());
    let beside = daemon.directory.join("outcall");
    std::fs::copy(env!("CARGO_BIN_EXE_outcall"), &beside).unwrap();
    let script = daemon.directory.join("outcalld");
    let check = |body: &str, arguments: &[&str]| {
        std::fs::write(&script, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new(&beside).args(["rules", "check"]).args(arguments).output().unwrap();
        (output.status.code(), text_of(&output.stdout), text_of(&output.stderr))
    };
    let finding = r#"{"level":"lint","file":"a.yaml","line":3,"rule":"a","what":"odd","instead":"`x`"}"#;
    let asked = r#"echo "{\"valid\":true,\"findings\":[],\"report\":[\"asked: $*\"]}""#;
    let (code, stdout, stderr) = check(asked, &["/some/dir"]);
    let expected = "asked: --check --check-json --rules-dir /some/dir\n";
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (Some(0), expected, ""));
    let (_, stdout, _) = check(asked, &["d", "--ca-key", "/k", "--ca-cert", "/c"]);
    assert_eq!(stdout, "asked: --check --check-json --rules-dir d --ca-cert /c --ca-key /k\n");
    assert_eq!(check("exit 0", &["d", "--ca-cert", "/c"]).0, Some(2));
    let json = format!(r#"{{"valid":false,"findings":[{finding}],"report":["a.yaml:3: bad"]}}"#);
    let (code, stdout, _) = check(&format!("echo '{json}'; exit 1"), &["d", "--json"]);
    assert_eq!((code, stdout.trim_end()), (Some(1), json.as_str()));
    let (code, stdout, stderr) = check(&format!("echo '{json}'; exit 1"), &["d"]);
    assert_eq!((code, stdout.as_str()), (Some(1), "a.yaml:3: bad\n"));
    assert!(stderr.contains("would not load"), "{stderr}");
    let (code, _, stderr) = check("echo 'error: unexpected argument' >&2; exit 2", &["d"]);
    assert!(code == Some(1) && stderr.contains("unexpected argument"), "{stderr}");
    let (code, _, stderr) = check("kill -9 $$", &["d"]);
    assert!(code == Some(1) && stderr.contains("did not finish"), "{stderr}");
}

#[test]
fn the_bare_command_shows_the_state_and_the_next_step() {
    let parts = json!({"bridge":{"ok":true},"docker":{"ok":false,"reason":"connect: no such file"}});
    let ready = json!({"ready":false,"parts":parts,"warnings":["w1"]});
    let daemon = Daemon::new(vec![
        ("GET /api/v1/ready", 503, json!({"success":false,"error":"not ready: docker","data":ready})),
        ("GET /api/v1/bridge", 200, ok(&bridge())),
        ("GET /api/v1/rules", 200, ok(&json!([]))),
        ("GET /api/v1/networks", 503, json!({"success":false,"error":"docker is away"})),
    ]);
    let text = daemon.prints(&[]);
    assert!(text.contains("Bridge:     outcall0 up, nftables active\n"), "{text}");
    assert!(text.contains("Not ready:  docker: connect: no such file\n"), "{text}");
    assert!(text.contains("Error:      docker is away\n") && text.contains("\nNext: "), "{text}");
    let data: Value = serde_json::from_str(&daemon.prints(&["--json"])).unwrap();
    assert_eq!((&data["ready"]["ready"], &data["rules"]["rules"]), (&json!(false), &json!(0)));
}

#[test]
fn ready_exits_as_the_daemon_says() {
    let state = |ready: bool, docker: Value| json!({"ready":ready,"parts":{"docker":docker},"warnings":[]});
    let data = state(true, json!({"ok":true}));
    let daemon = Daemon::new(vec![("GET /api/v1/ready", 200, ok(&data))]);
    assert_eq!(daemon.prints(&["ready"]), "outcalld:  ready\n");
    assert_eq!(serde_json::from_str::<Value>(&daemon.prints(&["ready", "--json"])).unwrap(), data);

    let data = state(false, json!({"ok":false,"reason":"no socket"}));
    let refusal = json!({"success":false,"error":"not ready: docker: no socket","data":data});
    let daemon = Daemon::new(vec![("GET /api/v1/ready", 503, refusal)]);
    let output = daemon.run(&["ready"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text_of(&output.stdout), "outcalld:   not ready\nNot ready:  docker: no socket\n");
    assert_eq!(text_of(&output.stderr), "error: outcalld is not ready\n");
    let output = daemon.run(&["ready", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), data);

    // A server in trouble, or none at all.
    let daemon = Daemon::new(vec![("GET /api/v1/ready", 500, json!({"success":false,"error":"bug"}))]);
    let output = daemon.run(&["ready"]);
    assert_eq!((output.status.code(), text_of(&output.stderr).as_str()), (Some(1), "error: bug\n"));
    let output = outcall().args(["--socket", "/nonexistent/host.sock", "ready"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let rows: Vec<Value> = (0..20_000)
        .map(|n| {
            json!({"id":format!("r{n}"),"file":"x.yaml","action":"block","condition_preview":"true","description":null,
                "priority":10,"hits":3,"errors":0,"last_hit":null})
        })
        .collect();
    let daemon = Daemon::new(vec![("GET /api/v1/rules", 200, ok(&Value::from(rows)))]);
    let mut child = outcall()
        .arg("--socket")
        .arg(&daemon.socket)
        .args(["rules", "list"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("PRIO"));
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text_of(&output.stderr).as_str()), (Some(0), ""));
}

#[test]
fn text_from_the_daemon_cannot_drive_the_terminal() {
    let evil = json!({"name":"x\u{1b}]0;owned\u{7}","up":true,"index":1,"nftables_active":true,"nftables":"active"});
    let daemon = Daemon::new(vec![
        ("GET /api/v1/bridge", 200, ok(&evil)),
        ("GET /api/v1/dns", 500, json!({"success":false,"error":"\u{1b}[2J"})),
    ]);
    assert!(!daemon.prints(&["bridge", "status"]).contains('\u{1b}'));
    assert!(!text_of(&daemon.run(&["dns", "status"]).stderr).contains('\u{1b}'));
}

#[test]
fn an_answer_that_is_no_envelope_is_said_so() {
    let daemon = Daemon::new(vec![("GET /api/v1/bridge", 200, json!(["what"]))]);
    let output = daemon.run(&["bridge", "status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text_of(&output.stderr).contains("GET /bridge"), "{}", text_of(&output.stderr));
}

#[test]
fn rule_requests_are_shown_before_they_are_decided() {
    let request = |installs: &str| {
        ok(
            &json!([{"id":"rr-0123456789abcdef","container_id":"c".repeat(64),"container":"coder-1","rule_file":"raw \u{1b}[2J",
            "installs":installs,"status":"pending","submitted_at":"2026-11-24T00:00:00.000Z"}]),
        )
    };
    let limited = "# x\nversion: \"1\"\nrules:\n  - id: \"a\"\n    condition: |-\n      agent.container == \"coder-1\" && (true)\n";
    let daemon = Daemon::new(vec![
        ("GET /api/v1/requests/rules", 200, request(limited)),
        ("GET /api/v1/requests/rules?all_agents=true", 200, request("# for all\n")),
        (
            "POST /api/v1/requests/rules/rr-0123456789abcdef/approve",
            200,
            ok(&json!({"id":"rr-0123456789abcdef","rules_loaded":1})),
        ),
        ("POST /api/v1/requests/rules/rr-0123456789abcdef/reject", 200, ok(&json!({"id":"rr-0123456789abcdef"}))),
    ]);
    let id = "rr-0123456789abcdef";
    let text = daemon.prints(&["requests", "list"]);
    assert!(text.contains("rr-0123456789abcdef  coder-1    1      2026-11-24T00:00:00.000Z"), "{text}");
    let text = daemon.prints(&["requests", "show", id]);
    assert!(text.ends_with(limited) && text.contains("coder-1 (cccccccccccc)"), "{text}");
    assert!(daemon.prints(&["requests", "show", id, "--all-agents"]).ends_with("# for all\n"));
    let text = daemon.prints(&["requests", "approve", id]);
    assert!(text.starts_with("Approved rr-0123456789abcdef; 1 rule in force.") && text.ends_with(limited), "{text}");
    assert_eq!(daemon.last_asked().2, r#"{"all_agents":false}"#);
    let text = daemon.prints(&["requests", "approve", id, "--all-agents"]);
    assert!(text.ends_with("# for all\n"), "{text}");
    assert_eq!(daemon.last_asked().2, r#"{"all_agents":true}"#);
    assert_eq!(daemon.prints(&["requests", "reject", id, "--reason", "too wide"]), "Rejected rr-0123456789abcdef.\n");
    assert_eq!(daemon.last_asked().2, r#"{"reason":"too wide"}"#);
    let output = daemon.run(&["requests", "show", "rr-0000000000000000"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text_of(&output.stderr).contains("outcall requests list"));
}

#[test]
fn direct_flows_are_listed_opened_and_ended() {
    let row = json!({"container":"coder-1","destination":"9.9.9.9","port":53,"protocol":"udp","nft_handle":4,
        "inserted_at":"2026-11-24T00:00:00.000Z","expires_in_secs":60,"packets":2,"bytes":120});
    let attached = |address: &str| json!({"name":"coder-1","ipv4_address":address});
    let network = |containers: &[Value]| {
        json!({"exists":true,"network_id":"abc","name":"outcall-x","subnet":"10.200.0.0/24","gateway":"10.200.0.1",
            "bridge":"oc-1","containers":containers})
    };
    let answers = |networks: Value| {
        Daemon::new(vec![
            ("GET /api/v1/rules/active", 200, ok(&json!([row]))),
            ("POST /api/v1/rules/flush", 200, ok(&json!({"removed":2}))),
            ("POST /api/v1/rule/allow", 201, ok(&row)),
            ("GET /api/v1/networks", 200, ok(&networks)),
        ])
    };
    let daemon = answers(json!([network(&[attached("10.200.0.2/24")])]));
    let text = daemon.prints(&["rules", "active"]);
    assert!(text.contains("coder-1    9.9.9.9      53    udp    60 s     2        120    2026"), "{text}");
    assert_eq!(daemon.prints(&["rules", "flush"]), "Closed 2 direct flows; what ran of them is ended.\n");
    let typed = ["rules", "allow", "coder-1", "9.9.9.9", "53", "--protocol", "udp", "--expires-in-secs", "60"];
    assert!(daemon.prints(&typed).starts_with("coder-1 may reach 9.9.9.9:53 (udp) for 60 s.\n"));
    let asked: Value = serde_json::from_str(&daemon.last_asked().2).unwrap();
    let sent = json!({"container":"coder-1","src_ip":"10.200.0.2","destination":"9.9.9.9","protocol":"udp","port":53,
        "expires_in_secs":60});
    assert_eq!(asked, sent);
    let data: Value = serde_json::from_str(&daemon.prints(&["rules", "active", "--json"])).unwrap();
    assert_eq!(data, json!([row]));

    let two = answers(json!([network(&[attached("10.200.0.2/24")]), network(&[attached("10.200.1.2/24")])]));
    let output = two.run(&typed);
    let stderr = text_of(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("10.200.0.2, 10.200.1.2"), "{stderr}");
    two.prints(&["rules", "allow", "coder-1", "9.9.9.9", "53", "--src-ip", "10.200.1.2"]);
    assert!(two.last_asked().2.contains(r#""src_ip":"10.200.1.2""#));
    for wrong in [["9.9.9.9", "0"], ["9.9.9.9", "65536"], ["example.com", "53"], ["::1", "53"]] {
        assert_eq!(two.run(&["rules", "allow", "coder-1", wrong[0], wrong[1]]).status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(answers(json!([])).run(&typed).status.code(), Some(2));
}

#[test]
fn explain_shows_the_layers_what_failed_and_the_rule_that_would_help() {
    let near = json!({"rule":"allow-a","file":"a.yaml","action":"allow","failed":[
        {"part":"network.port == 8443","is":"false","values":{"network.port":"443"}},
        {"part":"tls.ech","is":"unknown","values":{"tls.ech":null}}]});
    let explained = json!({"steps":[
        {"layer":"dns","verdict":"allow","rule":"d","reason":"rule d allows it","near":[]},
        {"layer":"proxy","verdict":"block","rule":null,"reason":"no rule allows it","near":[near]}],
        "verdict":"block","suggestion":"version: \"1\"\nrules: []\n","notes":["no container"]});
    let daemon = Daemon::new(vec![("POST /api/v1/explain", 200, ok(&explained))]);
    let text = daemon.prints(&["explain", "https://a.com/", "--method", "PUT", "--container", "w-1"]);
    assert_eq!(
        text,
        "LAYER  VERDICT  RULE  REASON\ndns    allow    d     rule d allows it\nproxy  block    -     no rule allows it\n\n\
         Close at proxy:\n  allow-a (allow, a.yaml)\n    false: network.port == 8443; network.port is 443\n    \
         unknown: tls.ech; tls.ech is not known here\n\nVerdict:  block\nNote: no container\n\n\
         The smallest rule that would allow it:\n\nversion: \"1\"\nrules: []\n"
    );
    let asked: Value = serde_json::from_str(&daemon.last_asked().2).unwrap();
    assert_eq!(asked, json!({"target":"https://a.com/","method":"PUT","container":"w-1"}));
    let data: Value = serde_json::from_str(&daemon.prints(&["explain", "a.com", "--json"])).unwrap();
    assert_eq!(data, explained);
    let asked: Value = serde_json::from_str(&daemon.last_asked().2).unwrap();
    assert_eq!(asked, json!({"target":"a.com"}));
}

#[test]
fn ca_status_and_bundle_tell_a_missing_ca_apart() {
    let status = json!({
        "loaded":true,"subject":"O=Outcall, CN=CA","fingerprint_sha256":"AB:CD","not_before":"2026-01-01T00:00:00Z",
        "not_after":"2036-01-01T00:00:00Z","leaf_cache_size":3,"leaf_cache_max":1024
    });
    let pem = "-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n";
    let daemon = Daemon::new(vec![
        ("GET /api/v1/ca", 200, ok(&status)),
        ("GET /api/v1/ca/bundle", 200, ok(&json!({"pem_bundle":pem}))),
    ]);
    let text = daemon.prints(&["ca", "status"]);
    assert!(
        text.contains("O=Outcall, CN=CA") && text.contains("AB:CD") && text.contains("3 of at most 1024"),
        "{text}"
    );
    let data: Value = serde_json::from_str(&daemon.prints(&["ca", "status", "--json"])).unwrap();
    assert_eq!(data, status);
    assert_eq!(daemon.prints(&["ca", "bundle"]), pem);
    let absent = json!({"success":false,"error":"no CA is loaded: start outcalld with --ca-cert and --ca-key"});
    let daemon = Daemon::new(vec![("GET /api/v1/ca", 404, absent.clone()), ("GET /api/v1/ca/bundle", 404, absent)]);
    for command in ["status", "bundle"] {
        let output = daemon.run(&["ca", command]);
        assert_eq!(output.status.code(), Some(6), "{command}");
        assert!(text_of(&output.stderr).contains("--ca-cert"));
    }
}
