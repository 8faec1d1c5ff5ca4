//! The loop's own turns, on real sockets of the loopback; what it answers is tested in `tests/dns_wire.rs`.

use std::net::TcpStream;

use super::*;
use crate::daemon::Readiness;
use crate::docker_manager::Directory;
use crate::event_loop::{self, Address};
use crate::events::EventSink;
use crate::rule_engine::{Guard, LoadOptions, load_sources};

/// A server that does only what a test tells it.
struct World {
    server: DnsServer,
    listener: usize,
    now: Instant,
}

/// The near end of a link that nobody serves.
fn link<T>() -> Address<T> {
    event_loop::mailbox(&Poll::new().unwrap(), 1).unwrap().0
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let options = LoadOptions { proxy: true, interception: false, guard: Guard::InProcess };
        let rules = load_sources(&[], &options, None).unwrap().set;
        let snapshot = Arc::new(Snapshot { generation: 1, rules, directory: Arc::new(Directory::empty(now)) });
        let poll = Poll::new().unwrap();
        let (own, mailbox) = event_loop::mailbox(&poll, 1).unwrap();
        let links = DnsLinks {
            control: link(),
            docker: link(),
            bridge: link(),
            own,
            events: EventSink::discard(),
            readiness: Readiness::default(),
        };
        let config = DnsConfig {
            listen: "127.0.0.1".parse().unwrap(),
            port: 0,
            upstreams: vec!["192.0.2.53:53".parse().unwrap()],
            extra_peers: vec!["127.0.0.0/8".parse().unwrap()],
        };
        let server = DnsServer::start(config, links, poll, mailbox, snapshot).unwrap();
        let listener = server.served[0].tcp;
        World { server, listener, now }
    }

    /// Connections that wait to be accepted.
    fn connect(&self, count: usize) -> Vec<TcpStream> {
        (0..count).map(|_| TcpStream::connect(self.server.local_addresses()[0]).unwrap()).collect()
    }
}

#[test]
fn whoever_connects_without_end_leaves_others_their_turn() {
    let mut world = World::new();
    let _waiting = world.connect(ACCEPTS + 1);
    world.server.accept(world.listener, world.now);
    assert_eq!(world.server.unread, [world.listener], "the rest waits for the next turn");
    assert_eq!(world.server.timeout(world.now), Some(Duration::ZERO));
    // An event of the same listener in the same turn asks for no second one.
    let _more = world.connect(ACCEPTS);
    world.server.accept(world.listener, world.now);
    assert_eq!(world.server.unread, [world.listener]);
    world.server.unread.clear();
    world.server.accept(world.listener, world.now);
    assert_eq!(world.server.unread, [] as [usize; 0]);
    assert_eq!(world.server.sessions.len(), SESSIONS_PER_PEER);
}

#[test]
fn what_waits_after_a_failed_accept_is_accepted_without_another_event() {
    let mut world = World::new();
    let _waiting = world.connect(1);
    world.server.accept_at = Some(world.now + ACCEPT_PAUSE);
    world.server.accept(world.listener, world.now);
    world.server.due(world.now);
    assert!(world.server.sessions.is_empty() && world.server.unread.is_empty(), "it does not spin");
    assert!(world.server.timeout(world.now).is_some_and(|timeout| timeout <= ACCEPT_PAUSE));
    world.server.due(world.now + ACCEPT_PAUSE);
    assert_eq!((world.server.sessions.len(), world.server.accept_at), (1, None));
}
