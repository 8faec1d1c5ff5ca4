//! The real shim against a socket that plays the daemon.
#![cfg(feature = "agent")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A directory with a socket whose connections are handed to `play`, one at a time.
struct FakeDaemon {
    directory: PathBuf,
    requests: mpsc::Receiver<String>,
}

impl FakeDaemon {
    fn start(name: &str, mut play: impl FnMut(&str) -> Option<Vec<u8>> + Send + 'static) -> Self {
        let directory = std::env::temp_dir().join(format!("outcall-shim-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("agent.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let (seen, requests) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                while let Some(request) = read_request(&mut stream) {
                    let answer = play(&request);
                    let _ = seen.send(request);
                    match answer {
                        Some(bytes) if stream.write_all(&bytes).is_ok() => {}
                        _ => break,
                    }
                }
            }
        });
        FakeDaemon { directory, requests }
    }

    /// One that knows its caller and answers every check with `verdict`.
    fn deciding(name: &str, verdict: &'static str) -> Self {
        Self::start(name, move |request| {
            Some(if request.starts_with("POST /v1/checkin ") { checked_in() } else { ok(verdict) })
        })
    }

    fn shim(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outcall-agent"));
        command.env("OUTCALL_AGENT_SOCKET", self.directory.join("agent.sock")).env("OUTCALL_TIMEOUT_SECS", "5");
        command
    }

    fn ask(&self, words: &[&str]) -> Output {
        self.shim().args(words).stdin(Stdio::null()).output().unwrap()
    }

    fn check(&self) -> String {
        let wait = Duration::from_secs(5);
        loop {
            let request = self.requests.recv_timeout(wait).expect("no permission check came");
            if request.starts_with("POST /v1/permissions/check ") {
                return request;
            }
        }
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn read_request(stream: &mut UnixStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut byte = [0; 1];
    while !bytes.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        bytes.push(byte[0]);
    }
    let head = String::from_utf8(bytes).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(head + std::str::from_utf8(&body).unwrap())
}

fn answer(status: &str, fields: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{fields}\r\n{body}", body.len()).into_bytes()
}

fn ok(body: &str) -> Vec<u8> {
    answer("200 OK", "", body)
}

fn checked_in() -> Vec<u8> {
    let id = "a".repeat(64);
    ok(&format!(r#"{{"container_id":"{id}","session_token":"{TOKEN}","context_keys":["action_type"]}}"#))
}

/// An answer to the check, after a good check-in.
fn at_check(request: &str, bytes: Vec<u8>) -> Option<Vec<u8>> {
    Some(if request.starts_with("POST /v1/checkin ") { checked_in() } else { bytes })
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const YES: &str = r#"{"allowed":true,"matched_rule":"r","reason":"rule r allows"}"#;
const NO: &str = r#"{"allowed":false,"matched_rule":null,"reason":"no rule allows this"}"#;

#[test]
fn a_permitted_command_runs_with_its_own_streams_and_status() {
    let daemon = FakeDaemon::deciding("runs", YES);
    let mut child = daemon
        .shim()
        .args(["sh", "cat; echo err >&2; exit 7"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(output.stdout, b"through\n");
    assert_eq!(output.stderr, b"err\n");
    let request = daemon.check();
    assert!(request.contains(&format!("Authorization: Bearer {TOKEN}\r\n")), "{request}");
    assert!(request.contains(r#""action_type":"shell_exec","target":"sh""#), "{request}");
}

#[test]
fn a_denied_command_does_not_run() {
    let daemon = FakeDaemon::deciding("denied", NO);
    let mark = daemon.directory.join("ran");
    let output = daemon.ask(&["exec", "touch", mark.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(stderr(&output).contains("no rule allows this"));
    assert!(!mark.exists());
}

#[test]
fn questions_without_a_command_are_answered_by_the_exit_code_alone() {
    let daemon = FakeDaemon::deciding("ask", YES);
    for (words, expected) in [
        (
            &["fetch", "https://example.com/", "POST"][..],
            r#""action_type":"network_call","target":"https://example.com/""#,
        ),
        (&["read", "/etc/hosts"], r#""action_type":"file_access","target":"/etc/hosts""#),
    ] {
        let output = daemon.ask(words);
        assert_eq!(output.status.code(), Some(0));
        assert!(output.stdout.is_empty() && output.stderr.is_empty());
        assert!(daemon.check().contains(expected));
    }
}

#[test]
fn whatever_is_no_verdict_is_exit_5_and_nothing_runs() {
    type Play = fn(&str) -> Option<Vec<u8>>;
    let plays: [(&str, Play); 11] = [
        ("hangs-up", |_| None),
        ("unknown-peer", |_| Some(answer("403 Forbidden", "", r#"{"error":"unknown"}"#))),
        ("no-session", |_| Some(ok("{}"))),
        ("evil-token", |_| Some(ok("{\"container_id\":\"\",\"session_token\":\"a\\r\\nX: y\",\"context_keys\":[]}"))),
        ("noise", |_| Some(b"220 mail.example ESMTP\r\n\r\n".to_vec())),
        ("closes", |request| request.starts_with("POST /v1/checkin ").then(checked_in)),
        ("truthy", |request| at_check(request, ok(r#"{"allowed":"true","matched_rule":null,"reason":""}"#))),
        ("missing", |request| at_check(request, ok(r#"{"matched_rule":"r","reason":""}"#))),
        ("twice", |request| {
            at_check(request, ok(r#"{"allowed":false,"allowed":true,"matched_rule":null,"reason":""}"#))
        }),
        ("error", |request| at_check(request, answer("500 Internal Server Error", "", r#"{"error":"x"}"#))),
        ("html", |request| at_check(request, ok("<html></html>"))),
    ];
    for (name, play) in plays {
        let daemon = FakeDaemon::start(name, play);
        let mark = daemon.directory.join("ran");
        let output = daemon.ask(&["exec", "touch", mark.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(5), "{name}: {}", stderr(&output));
        assert!(stderr(&output).contains("nothing was run"), "{name}");
        assert!(output.stdout.is_empty() && !mark.exists(), "{name}");
    }
}

#[test]
fn a_daemon_that_is_not_there_or_says_nothing_is_exit_5_in_time() {
    let nowhere = Command::new(env!("CARGO_BIN_EXE_outcall-agent"))
        .env("OUTCALL_AGENT_SOCKET", "/nonexistent/agent.sock")
        .args(["exec", "true"])
        .output()
        .unwrap();
    assert_eq!(nowhere.status.code(), Some(5));

    let directory = std::env::temp_dir().join(format!("outcall-shim-{}-silent", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let socket = directory.join("agent.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let begun = Instant::now();
    let silent = Command::new(env!("CARGO_BIN_EXE_outcall-agent"))
        .env("OUTCALL_AGENT_SOCKET", &socket)
        .env("OUTCALL_TIMEOUT_SECS", "1")
        .args(["exec", "true"])
        .output()
        .unwrap();
    assert_eq!(silent.status.code(), Some(5));
    assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(4));
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn too_often_is_asked_again_when_the_daemon_says() {
    let mut checks = 0;
    let daemon = FakeDaemon::start("429", move |request| {
        if request.starts_with("POST /v1/checkin ") {
            return Some(checked_in());
        }
        checks += 1;
        let busy = answer("429 Too Many Requests", "Retry-After: 1\r\n", r#"{"error":"too often"}"#);
        Some(if checks == 1 { busy } else { ok(YES) })
    });
    let begun = Instant::now();
    assert_eq!(daemon.ask(&["exec", "true"]).status.code(), Some(0));
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[test]
fn signals_reach_the_command_and_its_end_is_told() {
    let daemon = FakeDaemon::deciding("signals", YES);
    for (signal, script, expected) in [
        ("TERM", "trap 'kill $!; exit 42' TERM; sleep 60 & echo ready; wait", 42),
        ("INT", "echo ready; exec sleep 60", 130),
        ("USR1", "echo ready; exec sleep 60", 138),
        ("KILL", "echo ready; kill -KILL $$", 137),
    ] {
        let mut child = daemon.shim().args(["sh", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        if signal != "KILL" {
            let sent = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
            assert!(sent.success());
        }
        assert_eq!(child.wait().unwrap().code(), Some(expected), "{signal}");
    }
}

#[test]
fn a_command_that_cannot_be_run_ends_as_in_a_shell() {
    let daemon = FakeDaemon::deciding("cannot", YES);
    assert_eq!(daemon.ask(&["exec", "/nonexistent/tool"]).status.code(), Some(127));
    assert_eq!(daemon.ask(&["exec", "/"]).status.code(), Some(126));
}

#[test]
fn bad_arguments_ask_nobody() {
    let daemon = FakeDaemon::deciding("usage", YES);
    for words in [&[][..], &["exec"], &["--what"], &["curl", "-s", "http://x"]] {
        let output = daemon.ask(words);
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
    let output = daemon.shim().env("OUTCALL_TIMEOUT_SECS", "soon").args(["exec", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let help = daemon.ask(&["--help"]);
    assert_eq!((help.status.code(), help.stdout.len()), (Some(0), 0));
    assert!(daemon.requests.try_recv().is_err());
}
