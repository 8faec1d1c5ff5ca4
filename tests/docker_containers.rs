//! Containers through the real Docker manager, against an Engine that hangs, lies, refuses and dies: the manager stays
//! alive and answers pings, the caller reads the cause, and nothing half-made remains.

#![cfg(feature = "daemon")]

mod docker_fake;
mod owner;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use docker_fake::{Fake, Trouble};
use mio::Poll;
use outcall::api::{self, ContainerCreate, ContainerCreated, Environment};
use outcall::bridge::BridgeCommand;
use outcall::daemon::Readiness;
use outcall::daemon::control::ControlMessage;
use outcall::docker_manager::{
    ContainerCommand, DockerCommand, DockerConfig, DockerFailure, DockerLinks, DockerManager, HostFiles,
};
use outcall::event_loop::{Address, Reply, mailbox, reply_channel};
use outcall::events::EventSink;
use outcall::rule_engine::{Guard, LoadOptions, RuleSet, Source, load_sources};
use owner::owner;
use serde_json::json;

/// Longer than any of the manager's own limits of one command here.
const PATIENCE: Duration = Duration::from_secs(40);

struct World {
    fake: Fake,
    directory: PathBuf,
    own: Address<DockerCommand>,
    bridge: Address<BridgeCommand>,
    control: Address<ControlMessage>,
    threads: Vec<JoinHandle<()>>,
}

impl World {
    fn new() -> Self {
        Self::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut DockerConfig)) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("outcall-containers-{}-{number}", std::process::id()));
        std::fs::create_dir_all(directory.join("data")).unwrap();
        // The Engine's own directory: on a machine that is a container itself, it says that both see the same files.
        std::fs::create_dir_all(directory.join("containers")).unwrap();
        let directory = std::fs::canonicalize(directory).unwrap();
        let fake = Fake::start(&directory.join("docker.sock"));
        let (bridge, bridge_thread) = owner(|command| match command {
            BridgeCommand::EnsureNetwork { done, .. } => {
                done.send(Ok(()));
                false
            }
            other => matches!(other, BridgeCommand::Stop(_)),
        });
        let (control, control_thread) = owner(|message| matches!(message, ControlMessage::Ended { .. }));
        let poll = Poll::new().unwrap();
        let (own, inbox) = mailbox(&poll, 64).unwrap();
        let mut config = DockerConfig {
            socket: fake.socket.clone(),
            bridge: "outcall0".to_owned(),
            subnet_block: "10.200.0.0/16".parse().unwrap(),
            files: HostFiles::default(),
            operator_socket: directory.join("host.sock"),
            protected: vec![directory.join("state")],
            agent_directory: directory.join("agent"),
            shim: directory.join("shim"),
            proxy: Some("0.0.0.0:8080".parse().unwrap()),
            ca_bundle: None,
        };
        change(&mut config);
        let links = DockerLinks {
            control: control.clone(),
            bridge: bridge.clone(),
            events: EventSink::discard(),
            readiness: Readiness::default(),
            own: own.clone(),
        };
        let manager = DockerManager::start(config, links, poll, inbox).unwrap();
        let manager = std::thread::spawn(move || manager.run().unwrap());
        World { fake, directory, own, bridge, control, threads: vec![bridge_thread, control_thread, manager] }
    }

    /// Sends a command; meanwhile, and afterwards, the manager answers pings.
    fn ask<T: Send + 'static>(
        &self,
        command: impl FnOnce(Reply<Result<T, DockerFailure>>) -> ContainerCommand,
    ) -> Result<T, DockerFailure> {
        let (reply, answer) = reply_channel();
        assert!(self.own.send(DockerCommand::Container(command(reply))).is_ok());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(answer) = answer.recv_timeout(Duration::from_millis(200)) {
                self.ping();
                return answer;
            }
            assert!(Instant::now() < deadline, "no answer");
            self.ping();
        }
    }

    fn ping(&self) {
        let (reply, pong) = reply_channel();
        assert!(self.own.send(DockerCommand::Ping(reply)).is_ok());
        pong.recv_timeout(Duration::from_secs(2)).expect("the manager answers pings");
    }

    fn create(&self, change: impl FnOnce(&mut ContainerCreate)) -> Result<ContainerCreated, DockerFailure> {
        self.judged(&Arc::new(RuleSet::block_all()), change)
    }

    fn judged(
        &self,
        rules: &Arc<RuleSet>,
        change: impl FnOnce(&mut ContainerCreate),
    ) -> Result<ContainerCreated, DockerFailure> {
        let mut wish = ContainerCreate {
            image: "lab/busybox".to_owned(),
            name: Some("writer-1".to_owned()),
            include_outcall_helper_mounts: Some(false),
            ..ContainerCreate::default()
        };
        change(&mut wish);
        self.ask(|reply| ContainerCommand::Create(Box::new(wish), Arc::clone(rules), reply))
    }

    fn refused(&self, change: impl FnOnce(&mut ContainerCreate)) -> (u16, String) {
        let failure = self.create(change).expect_err("refused");
        (failure.status, failure.message)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.own.send(DockerCommand::Stop);
        let _ = self.bridge.send(BridgeCommand::Stop(outcall::bridge::StopMode::Keep));
        let ended = ControlMessage::Ended { subsystem: outcall::daemon::Subsystem::DockerManager, outcome: Ok(()) };
        let manager = self.threads.pop().unwrap().join();
        let _ = self.control.send(ended);
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
        let _ = std::fs::remove_dir_all(&self.directory);
        if !std::thread::panicking() {
            manager.expect("the manager lives to its stop");
        }
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn rules(text: &str) -> Arc<RuleSet> {
    let options = LoadOptions { proxy: true, interception: false, guard: Guard::InProcess };
    load_sources(&[Source { name: "a.yaml".to_owned(), text: text.to_owned() }], &options, None).unwrap().set
}

#[test]
fn a_container_is_made_shown_stopped_and_removed() {
    let world = World::new();
    let made = world.create(|wish| wish.env = Environment(vec![("KEY".to_owned(), "hunter2".to_owned())])).unwrap();
    assert!(made.created && made.name == "writer-1");
    assert!(made.notes.iter().any(|note| note.contains("8000/tcp") && note.contains("closed")), "{:?}", made.notes);
    assert_eq!(world.fake.containers()[0].status, "running");
    assert_eq!(world.fake.containers()[0].body["HostConfig"]["NetworkMode"], "n1");

    let listed = world.ask(ContainerCommand::List).unwrap();
    assert_eq!((listed.len(), listed[0].state.as_str(), listed[0].network.as_str()), (1, "running", "outcall-default"));
    let shown = world.ask(|reply| ContainerCommand::Inspect("writer-1".to_owned(), reply)).unwrap();
    assert!(shown.env.contains(&"KEY=<redacted>".to_owned()) && !format!("{shown:?}").contains("hunter2"));
    let by_id = world.ask(|reply| ContainerCommand::Inspect(made.container_id[..12].to_owned(), reply)).unwrap();
    assert_eq!(by_id.summary.container_id, made.container_id);

    let remove = |force| api::ContainerRemove { name: "writer-1".to_owned(), force };
    let running = world.ask(|reply| ContainerCommand::Remove(remove(false), reply)).unwrap_err();
    assert_eq!(running.status, 409);
    let stop = || api::ContainerStop { name: "writer-1".to_owned(), timeout: Some(0) };
    assert!(world.ask(|reply| ContainerCommand::Stop(stop(), reply)).unwrap().stopped);
    assert!(!world.ask(|reply| ContainerCommand::Stop(stop(), reply)).unwrap().stopped);
    assert!(world.ask(|reply| ContainerCommand::Remove(remove(false), reply)).unwrap().removed);
    assert_eq!(world.ask(|reply| ContainerCommand::Remove(remove(true), reply)).unwrap_err().status, 404);
    assert!(world.fake.containers().is_empty());
}

#[test]
fn containers_of_others_are_not_touched() {
    let world = World::new();
    world.fake.put(&"d".repeat(64), "database", "running", &json!({}));
    assert!(world.ask(ContainerCommand::List).unwrap().is_empty());
    for name in ["database".to_owned(), "d".repeat(64), "d".repeat(12)] {
        let named = name.clone();
        assert_eq!(world.ask(|reply| ContainerCommand::Inspect(named, reply)).unwrap_err().status, 404);
        let stop = api::ContainerStop { name: name.clone(), timeout: None };
        assert_eq!(world.ask(|reply| ContainerCommand::Stop(stop, reply)).unwrap_err().status, 404);
        let remove = api::ContainerRemove { name, force: true };
        assert_eq!(world.ask(|reply| ContainerCommand::Remove(remove, reply)).unwrap_err().status, 404);
    }
    assert_eq!(world.fake.containers()[0].status, "running");
}

#[test]
fn bad_requests_and_binds_are_refused_before_docker_is_asked() {
    let world = World::new();
    let asked = |world: &World| world.fake.asked("GET /images") + world.fake.asked("POST");
    std::fs::create_dir_all(world.directory.join("state/sub")).unwrap();
    std::os::unix::fs::symlink(&world.directory, world.directory.join("data/up")).unwrap();
    let path = |name: &str| format!("{}/{name}:/x", world.directory.display());
    for volume in [
        path("docker.sock"),
        path(""),
        path("state"),
        path("state/sub"),
        path("data/up"),
        path("data/up/state"),
        path("data/../state"),
        path("absent"),
        "/:/x".to_owned(),
        "/run:/x".to_owned(),
        "/proc/1/root:/x".to_owned(),
        "/proc/self/root:/x".to_owned(),
        "data:x".to_owned(),
        "../x:/x".to_owned(),
        format!("{}:/run/outcall", world.directory.join("data").display()),
    ] {
        let (status, message) = world.refused(|wish| wish.volumes = vec![volume.clone()]);
        assert!(status == 400 && message.contains("volume"), "{volume}: {status} {message}");
    }
    for change in [
        (|wish: &mut ContainerCreate| wish.user = Some("root".to_owned())) as fn(&mut ContainerCreate),
        |wish| wish.user = Some("0:0".to_owned()),
        |wish| wish.memory_limit = Some(api::MemoryLimit(1024)),
        |wish| wish.cpu_shares = Some(1),
        |wish| wish.env = Environment(vec![("https_proxy".to_owned(), "http://evil".to_owned())]),
        |wish| wish.name = Some("../x".to_owned()),
        |wish| wish.image = "../../networks".to_owned(),
    ] {
        assert_eq!(world.refused(change).0, 400);
    }
    assert_eq!(asked(&world), 0);
    let (status, message) = world.refused(|wish| wish.volumes = vec!["tricky:/x".to_owned()]);
    assert!(status == 400 && message.contains("tricky"), "{message}");
    assert!(world.fake.containers().is_empty());
    world.create(|wish| wish.volumes = vec![path("data"), "cache:/c".to_owned()]).unwrap();
    let mounts = &world.fake.containers()[0].body["HostConfig"]["Mounts"];
    assert_eq!(mounts[0]["Source"], world.directory.join("data").display().to_string());
    assert_eq!(mounts[1], json!({"Type": "volume", "Source": "cache", "Target": "/c", "ReadOnly": false}));
}

#[test]
fn the_causes_reach_the_caller() {
    let world = World::new();
    let (status, message) = world.refused(|wish| wish.image = "nowhere:1".to_owned());
    assert!(status == 404 && message.contains("outcall container pull nowhere:1"), "{message}");
    let (status, message) = world.refused(|wish| wish.network = Some("absent".to_owned()));
    assert!(status == 404 && message.contains("outcall network create --name absent"), "{message}");
    assert_eq!(world.fake.asked("POST /images"), 0, "no implicit pull");
    world.create(|_| ()).unwrap();
    let (status, message) = world.refused(|_| ());
    assert!(status == 409 && message.contains("already in use"), "{message}");
    assert_eq!(world.fake.containers().len(), 1, "the one that has the name stays");
    for status in [500, 507] {
        let words = "write /var/lib/docker: no space left on device".to_owned();
        world.fake.trouble("POST /containers/create", Trouble::Refuse(status, words));
        let (status, message) = world.refused(|wish| wish.name = Some("other".to_owned()));
        assert!(status == 500 && message.contains("no space left on device"), "{message}");
        world.fake.well();
    }
}

#[test]
fn a_start_that_fails_leaves_no_container() {
    let world = World::new();
    let words = "OCI runtime create failed: exec: \"nosuch\": not found".to_owned();
    world.fake.trouble("POST /containers/00", Trouble::Refuse(400, words));
    let (status, message) = world.refused(|_| ());
    assert!(status == 400 && message.contains("nosuch"), "{message}");
    assert!(world.fake.containers().is_empty());
}

#[test]
fn answers_that_are_no_answers() {
    for (call, trouble) in [
        ("POST /containers/create", Trouble::Garbage),
        ("POST /containers/create", Trouble::Noise),
        ("POST /containers/create", Trouble::CutShort),
        ("GET /images", Trouble::Garbage),
        ("GET /images", Trouble::CutShort),
        ("GET /containers/00", Trouble::Garbage),
        ("GET /containers/00", Trouble::Say("{\"Config\":{\"Env\":\"KEY=hunter2\"}}".to_owned())),
    ] {
        let world = World::new();
        world.fake.trouble(call, trouble.clone());
        let (status, message) =
            world.refused(|wish| wish.env = Environment(vec![("KEY".to_owned(), "hunter2".to_owned())]));
        assert!(status >= 500 && message.contains("cannot be used"), "{call} {trouble:?}: {status} {message}");
        assert!(!message.contains("hunter2"), "{message}");
        world.fake.well();
        wait_for("nothing half-made", || world.fake.containers().is_empty());
    }
}

#[test]
fn an_engine_that_hangs_costs_its_caller_time_and_nobody_else() {
    let world = World::new();
    world.fake.trouble("GET /images", Trouble::Hang);
    let (status, message) = world.refused(|_| ());
    assert!(status == 503 && message.contains("did not answer"), "{message}");
    world.fake.well();
    world.fake.trouble("POST /containers/create", Trouble::Hang);
    let (status, message) = world.refused(|_| ());
    assert!(status == 503 && message.contains("POST /containers/create"), "{message}");
    world.fake.well();
    world.create(|_| ()).unwrap();
}

#[test]
fn an_engine_killed_in_the_middle_of_a_create_leaves_nothing_half_made() {
    let mut world = World::new();
    world.fake.trouble("POST /containers/create", Trouble::DieAfter);
    let (status, message) = world.refused(|_| ());
    assert!(status >= 500, "{message}");
    assert_eq!(world.fake.containers()[0].status, "created", "the Engine has it");
    world.ping();
    world.fake.well();
    world.fake.revive();
    wait_for("swept", || world.fake.containers().is_empty());
    world.create(|_| ()).unwrap();
    assert_eq!(world.fake.containers()[0].status, "running");
}

#[test]
fn what_an_earlier_daemon_left_half_made_is_removed_and_nothing_else() {
    let mut world = World::new();
    let ours = json!({"managed-by": "outcalld", "outcall.created-at": "2026-01-01T00:00:00.000Z"});
    world.fake.put("aa", "half", "created", &ours);
    world.fake.put("bb", "ran", "exited", &ours);
    world.fake.put("cc", "foreign", "created", &json!({}));
    world.fake.trouble("GET /_ping", Trouble::DieAfter);
    let _ = world.ask(ContainerCommand::List);
    // Dead: what was agreed with it is asked anew.
    world.fake.well();
    world.fake.trouble("GET /containers/json", Trouble::DieAfter);
    let _ = world.ask(ContainerCommand::List);
    world.fake.well();
    world.fake.revive();
    wait_for("swept", || world.fake.containers().len() == 2);
    let names: Vec<String> = world.fake.containers().into_iter().map(|container| container.name).collect();
    assert_eq!(names, ["ran", "foreign"]);
}

#[test]
fn a_block_rule_that_matches_refuses_and_names_itself() {
    let world = World::new();
    let rules = rules(
        r#"
version: "1"
rules:
  - {id: no-latest, condition: 'docker.image.endsWith(":latest")', action: block, priority: 10}
  - {id: no-env, condition: '"AWS_KEY" in docker.env_keys', action: block}
  - {id: no-data, condition: 'docker.volumes.exists(v, v.startsWith("/srv/secret"))', action: block}
  - {id: no-shell, condition: 'docker.command[0] == "sh" && agent.name == "reader"', action: block}
  - {id: caps, condition: 'docker.capabilities.size() > 0', action: block}
  - {id: web, condition: 'http.host == "example.com"', action: allow}
"#,
    );
    // The name that was given has no tag, but the image has.
    let failure = world.judged(&rules, |_| ()).unwrap_err();
    assert_eq!(failure.status, 403);
    assert!(failure.message.contains("no-latest") && failure.message.contains("a.yaml"), "{}", failure.message);
    assert!(world.fake.containers().is_empty());
    assert_eq!(rules.rule("no-latest").unwrap().hits.load(Ordering::Relaxed), 1);

    let others = self::rules(
        "version: \"1\"\nrules:\n  - {id: no-env, condition: '\"AWS_KEY\" in docker.env_keys', action: block}\n  - {id: no-shell, condition: 'docker.command[0] == \"sh\" && agent.name == \"reader\"', action: block}\n  - {id: web, condition: 'http.host == \"a\"', action: block}\n",
    );
    let env = |name: &str| Environment(vec![(name.to_owned(), "x".to_owned())]);
    assert!(world.judged(&others, |wish| wish.env = env("AWS_KEY")).unwrap_err().message.contains("no-env"));
    assert!(
        world.judged(&others, |wish| wish.name = Some("reader-7".to_owned())).unwrap_err().message.contains("no-shell")
    );
    world.judged(&others, |wish| wish.env = env("OTHER")).unwrap();
}

#[test]
fn pulls_say_what_the_registry_said() {
    let world = World::new();
    let pull =
        |image: &str| world.ask(|reply| ContainerCommand::Pull(api::ContainerPull { image: image.to_owned() }, reply));
    let lines = "{\"status\":\"Pulling from lab/busybox\"}\r\n{\"status\":\"Downloading\",\"progressDetail\":{\"current\":1}}\r\n";
    world.fake.trouble("POST /images/create", Trouble::Say(lines.to_owned()));
    assert!(pull("lab/busybox").unwrap().pulled);
    assert_eq!(world.fake.asked("POST /images/create?fromImage=lab/busybox&tag=latest"), 1);
    // The stream ended well and the image is not there: an Engine that was killed in between.
    let failure = pull("lab/absent").unwrap_err();
    assert!(failure.status == 500 && failure.message.contains("does not have it"), "{}", failure.message);
    world.fake.well();
    for (trouble, status, words) in [
        (
            Trouble::Say("{\"error\":\"manifest for x:y not found: manifest unknown\"}\n".to_owned()),
            404,
            "manifest unknown",
        ),
        (Trouble::Say("{\"error\":\"write /d: no space left on device\"}\n".to_owned()), 500, "no space left"),
        (Trouble::Refuse(500, "Get https://registry: connection refused".to_owned()), 500, "connection refused"),
        (Trouble::Say("{\"status\": [[".to_owned()), 500, "cannot be used"),
        (Trouble::CutShort, 500, "cannot be used"),
    ] {
        world.fake.trouble("POST /images/create", trouble);
        let failure = pull("lab/x:y").unwrap_err();
        assert!(failure.status == status && failure.message.contains(words), "{words}: {failure:?}");
        world.fake.well();
    }
    assert_eq!(pull("../x").unwrap_err().status, 400);
}

#[test]
fn the_certificates_are_mounted_and_their_variables_are_ours() {
    let scratch = std::env::temp_dir().join(format!("outcall-ca-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).unwrap();
    std::fs::write(scratch.join("bundle.pem"), "x").unwrap();
    let world = World::with(|config| config.ca_bundle = Some(scratch.join("bundle.pem")));
    let env = Environment(vec![("CURL_CA_BUNDLE".to_owned(), "/x".to_owned())]);
    assert_eq!(world.refused(|wish| wish.env = env).0, 400);
    world.create(|_| ()).unwrap();
    let body = &world.fake.containers()[0].body;
    assert!(body["Env"].as_array().unwrap().contains(&json!("SSL_CERT_FILE=/etc/outcall/ca/bundle.pem")));
    let mount = &body["HostConfig"]["Mounts"][0];
    assert_eq!((&mount["Target"], &mount["ReadOnly"]), (&json!("/etc/outcall/ca"), &json!(true)));
    std::fs::remove_dir_all(&scratch).unwrap();
    assert!(world.refused(|wish| wish.name = Some("b-1".to_owned())).1.contains("certificates"));
}
