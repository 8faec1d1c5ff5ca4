//! Rule requests from submission to rules in force: the keeper, the rule engine and their files.
#![cfg(feature = "daemon")]

mod owner;

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outcall::daemon::Snapshot;
use outcall::daemon::control::ControlMessage;
use outcall::docker_manager::{Directory, Endpoint, ManagedNetwork};
use outcall::event_loop::{Address, Reply, mailbox, reply_channel};
use outcall::rule_engine::{
    Action, Agent, Context, Guard, Http, LoadOptions, RuleEngine, RuleEngineCommand, RuleEngineConfig, RuleSet,
};
use outcall::state::{
    RealDisk, RequestFailure, RequestKeeper, RequestKeeperConfig, RequestStore, RequestsCommand, Submission,
};
use owner::owner;

const WITHIN: Duration = Duration::from_secs(20);
const WANTED: &str =
    "version: \"1\"\nrules:\n  - id: wanted\n    action: allow\n    condition: http.host == 'x.example'\n";

/// The keeper and the rule engine on threads, control played by a third that publishes at once.
struct World {
    base: PathBuf,
    keeper: Address<RequestsCommand>,
    engine: Address<RuleEngineCommand>,
    control: Address<ControlMessage>,
    rules: crossbeam_channel::Receiver<Arc<RuleSet>>,
    current: Arc<RuleSet>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

fn looped<T: Send + 'static>(
    work: impl FnOnce(mio::Poll, outcall::event_loop::Mailbox<T>) + Send + 'static,
) -> (Address<T>, std::thread::JoinHandle<()>) {
    let poll = mio::Poll::new().unwrap();
    let (address, inbox) = mailbox(&poll, 64).unwrap();
    (address, std::thread::spawn(move || work(poll, inbox)))
}

impl World {
    fn start(name: &str, guard: Guard) -> Self {
        let base = std::env::temp_dir().join(format!("outcall-requests-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&base);
        std::fs::create_dir_all(base.join("rules.d")).unwrap();
        let options = LoadOptions { proxy: true, interception: false, guard };
        let (published, rules) = crossbeam_channel::unbounded();
        let (control, control_thread) = owner(move |message| match message {
            ControlMessage::Rules { rules, published: reply } => {
                published.send(rules).unwrap();
                reply.send(2);
                false
            }
            _ => true,
        });
        let current = Arc::new(RuleSet::block_all());
        let config = RuleEngineConfig {
            directory: base.join("rules.d"),
            options: options.clone(),
            current: Arc::clone(&current),
        };
        let to_control = control.clone();
        let (engine, engine_thread) =
            looped(move |poll, inbox| RuleEngine::new(config, to_control, poll, inbox).run().unwrap());
        let (store, said) = RequestStore::open(Box::new(RealDisk), &base.join("state"), &base.join("rules.d"), 0);
        assert!(said.is_empty(), "{said:?}");
        let config = RequestKeeperConfig { store, options, rule_engine: engine.clone() };
        let (keeper, keeper_thread) = looped(move |poll, inbox| RequestKeeper::new(config, poll, inbox).run().unwrap());
        let threads = vec![keeper_thread, engine_thread, control_thread];
        World { base, keeper, engine, control, rules, current, threads }
    }

    fn ask<T: Send + 'static>(&self, command: impl FnOnce(Reply<T>) -> RequestsCommand) -> T {
        let (reply, answer) = reply_channel();
        assert!(self.keeper.send(command(reply)).is_ok());
        answer.recv_timeout(WITHIN).unwrap()
    }

    fn submit(&self, name: &str, text: &str) -> Result<String, RequestFailure> {
        let snapshot = Arc::new(Snapshot {
            generation: 1,
            rules: Arc::clone(&self.current),
            directory: Arc::new(Directory::empty(Instant::now())),
        });
        let submission = Submission { endpoint: endpoint(name), rule_file: text.to_owned(), snapshot };
        self.ask(|reply| RequestsCommand::Submit(submission, reply)).map(|state| state.id)
    }

    fn approve(&self, id: &str, all_agents: bool) -> Result<usize, RequestFailure> {
        let id = id.to_owned();
        self.ask(|reply| RequestsCommand::Approve { id, all_agents, reply }).map(|approved| approved.rules_loaded)
    }

    fn status(&self, name: &str, id: &str) -> Result<String, RequestFailure> {
        let (container_id, id) = (Arc::clone(&endpoint(name).container_id), id.to_owned());
        self.ask(|reply| RequestsCommand::Status { container_id, id, reply }).map(|state| state.status)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.keeper.send(RequestsCommand::Stop);
        let _ = self.engine.send(RuleEngineCommand::Stop);
        let ended = ControlMessage::Ended { subsystem: outcall::daemon::Subsystem::Control, outcome: Ok(()) };
        let _ = self.control.send(ended);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let _ = std::fs::remove_dir_all(&self.base);
    }
}

fn endpoint(name: &str) -> Arc<Endpoint> {
    let network = Arc::new(ManagedNetwork {
        name: "outcall-default".to_owned(),
        id: "f".repeat(64),
        bridge: "outcall0".to_owned(),
        subnet: "10.200.0.0/24".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 200, 0, 1),
    });
    Arc::new(Endpoint {
        container_id: format!("{:064x}", name.len()).into(),
        container: name.into(),
        agent: outcall::docker_manager::agent_name(name).into(),
        network,
        address: Ipv4Addr::new(10, 200, 0, 9),
        mac: [2; 6],
        sandbox_key: String::new(),
        pid: 1,
    })
}

fn allows(rules: &RuleSet, container: &str) -> bool {
    let context = Context {
        agent: Agent { name: Some(container), container: Some(container) },
        http: Http { host: Some("x.example"), ..Http::default() },
        ..Context::default()
    };
    rules.decide(&context).action == Action::Allow
}

#[test]
fn an_approved_request_is_in_force_for_its_container_alone() {
    let world = World::start("approve", Guard::InProcess);
    let id = world.submit("coder-1", WANTED).unwrap();
    assert_eq!(world.status("coder-1", &id).unwrap(), "pending");
    assert!(matches!(world.status("another-one", &id), Err(RequestFailure::Unknown(_))));
    let listed = world.ask(|reply| RequestsCommand::List { all_agents: false, reply }).unwrap();
    assert_eq!((listed.len(), listed[0].rule_file.as_str()), (1, WANTED));
    assert_eq!(world.approve(&id, false).unwrap(), 1);
    let file = world.base.join(format!("rules.d/agent-{id}.yaml"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), listed[0].installs);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    let rules = world.rules.recv_timeout(WITHIN).unwrap();
    assert!(allows(&rules, "coder-1") && !allows(&rules, "coder-2"));
    assert_eq!(world.status("coder-1", &id).unwrap(), "approved");
    assert!(matches!(world.approve(&id, false), Err(RequestFailure::Conflict(_))));
    assert!(world.ask(|reply| RequestsCommand::List { all_agents: false, reply }).unwrap().is_empty());
}

#[test]
fn an_approval_for_all_agents_installs_what_was_shown() {
    let world = World::start("all", Guard::InProcess);
    let id = world.submit("coder-1", WANTED).unwrap();
    let shown = world.ask(|reply| RequestsCommand::List { all_agents: true, reply }).unwrap().remove(0).installs;
    world.approve(&id, true).unwrap();
    assert_eq!(std::fs::read_to_string(world.base.join(format!("rules.d/agent-{id}.yaml"))).unwrap(), shown);
    let rules = world.rules.recv_timeout(WITHIN).unwrap();
    assert!(allows(&rules, "coder-1") && allows(&rules, "coder-2"));
}

#[test]
fn an_approval_that_does_not_load_changes_nothing() {
    let world = World::start("conflict", Guard::InProcess);
    let first = world.submit("coder-1", WANTED).unwrap();
    let second = world.submit("coder-22", WANTED).unwrap();
    world.approve(&first, false).unwrap();
    let refused = world.approve(&second, false);
    assert!(matches!(&refused, Err(RequestFailure::Invalid(why)) if why.contains("taken")), "{refused:?}");
    assert_eq!(world.status("coder-22", &second).unwrap(), "pending");
    let files: Vec<_> = std::fs::read_dir(world.base.join("rules.d")).unwrap().flatten().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert_eq!(world.rules.try_iter().count(), 1);
}

#[test]
fn weapons_are_refused_by_the_guarded_child_in_time() {
    let world = World::start("bombs", Guard::Exec(PathBuf::from(env!("CARGO_BIN_EXE_outcalld"))));
    let with = |condition: &str| {
        let quoted = serde_json::to_string(condition).unwrap();
        format!("version: \"1\"\nrules:\n  - id: bomb\n    action: allow\n    condition: {quoted}\n")
    };
    let aliases = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b]\n";
    let many: String = (0..900).map(|n| format!("  - {{id: r{n}, action: allow, condition: 'x.{n}'}}\n")).collect();
    for (name, text) in [
        ("brackets", with(&"(".repeat(60_000))),
        ("not", with(&"!".repeat(60_000))),
        ("calls", with(&"string(".repeat(5_000))),
        ("chain", with(&format!("'a'{}", "+'a'".repeat(12_000)))),
        ("yaml brackets", format!("version: {}", "[".repeat(60_000))),
        ("aliases", aliases.to_owned()),
        ("many", format!("version: \"1\"\nrules:\n{many}")),
        ("binary", "\u{0}\u{1}\u{feff}".repeat(1000)),
    ] {
        let begun = Instant::now();
        let refused = world.submit("coder-1", &text);
        let took = begun.elapsed();
        assert!(matches!(&refused, Err(RequestFailure::Invalid(why)) if why.len() < 16 * 1024), "{name}: {refused:?}");
        assert!(took < Duration::from_secs(4), "{name}: {took:?}");
    }
    world.submit("coder-1", WANTED).unwrap();
}

#[test]
fn a_container_has_only_so_many_pending_requests() {
    let world = World::start("full", Guard::InProcess);
    for number in 0..outcall::state::PENDING_PER_CONTAINER {
        world.submit("coder-1", &WANTED.replace("wanted", &format!("wanted-{number}"))).unwrap();
    }
    assert!(matches!(world.submit("coder-1", WANTED), Err(RequestFailure::TooMany(_))));
    world.submit("coder-22", WANTED).unwrap();
}
