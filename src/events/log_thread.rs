//! The thread that writes decisions down. The enforcing threads never wait for it.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender};

use super::live::{Publisher, Recent};
use super::{DecisionLog, Event, EventSink, Filter, Line, Live, Publish, Tally};
use crate::api::EventRecord;
use crate::event_loop::Reply;

/// Events that are formatted before one write.
const BATCH_MAX: usize = 512;

/// How long events gather once they come faster than this: whoever decides then need not wake this thread for each of
/// its decisions, which costs more than the decision's own answer. Far less than the channel holds comes in that time.
const GATHER: Duration = Duration::from_millis(1);

/// What the events thread is asked to do.
pub enum EventsCommand {
    /// The last events that pass, as lines of JSON.
    Recent(Filter, Reply<Vec<u8>>),
    /// The counters.
    Tally(Reply<Box<Tally>>),
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// Write down what waits, then finish.
    Stop,
}

/// The events thread's state.
pub struct EventLog {
    events: Receiver<Event>,
    commands: Receiver<EventsCommand>,
    log: DecisionLog,
    lost: Arc<AtomicU64>,
    seq: u64,
    buffer: Vec<u8>,
    recent: Recent,
    publisher: Publisher,
    tally: Tally,
}

impl EventLog {
    /// The thread's state, the sink that the enforcing threads share, and the way to command it.
    #[must_use]
    pub fn new(log: DecisionLog) -> (Self, EventSink, Sender<EventsCommand>) {
        // Bounded by the sink: a bounded channel would hold room for all of them from the start.
        let (event_sender, events) = crossbeam_channel::unbounded();
        let (command_sender, commands) = crossbeam_channel::bounded(16);
        let sink = EventSink::new(event_sender);
        let lost = Arc::clone(&sink.lost);
        let log = EventLog {
            events,
            commands,
            log,
            lost,
            seq: 0,
            buffer: Vec::new(),
            recent: Recent::default(),
            publisher: Publisher::default(),
            tally: Tally::default(),
        };
        (log, sink, command_sender)
    }

    /// Hands what comes to `publish` while somebody follows; gives where the number of those is set.
    pub fn publish_to(&mut self, publish: Publish) -> Arc<Live> {
        self.publisher.publish = Some(publish);
        Arc::clone(&self.publisher.live)
    }

    /// Writes until told to stop.
    ///
    /// # Errors
    /// When every sender is gone without a stop: a bug.
    pub fn run(mut self) -> Result<(), String> {
        let mut lost_said = 0;
        let mut written = Instant::now();
        loop {
            crossbeam_channel::select! {
                recv(self.events) -> event => match event {
                    Ok(event) => {
                        if written.elapsed() < GATHER {
                            std::thread::sleep(GATHER);
                        }
                        self.write_with_followers(event);
                        written = Instant::now();
                    }
                    Err(_) => return Err("every sender of events is gone".to_owned()),
                },
                recv(self.commands) -> command => match command {
                    Ok(EventsCommand::Recent(filter, reply)) => reply.send(self.recent.lines(&filter)),
                    Ok(EventsCommand::Tally(reply)) => reply.send(Box::new(Tally {
                        lost_in_channel: self.lost.load(Ordering::Relaxed),
                        lost_on_disk: self.log.lost(),
                        ..self.tally.clone()
                    })),
                    Ok(EventsCommand::Ping(reply)) => reply.send(()),
                    Ok(EventsCommand::Stop) => {
                        while let Ok(event) = self.events.try_recv() {
                            self.write_with_followers(event);
                        }
                        return Ok(());
                    }
                    Err(_) => return Err("the commander of the events thread is gone".to_owned()),
                },
            }
            let lost = self.lost.load(Ordering::Relaxed);
            if lost != lost_said {
                tracing::warn!(target: "outcalld", lost, "events were lost: they came faster than they could be written");
                lost_said = lost;
            }
        }
    }

    fn write_with_followers(&mut self, first: Event) {
        let mut lines = Vec::new();
        let mut next = Some(first);
        while let Some(event) = next {
            self.tally.count(&event);
            lines.push(Arc::new(self.format(&event)));
            next = if lines.len() < BATCH_MAX { self.events.try_recv().ok() } else { None };
        }
        let count = lines.len() as u64;
        lines.iter().for_each(|line| self.recent.push(Arc::clone(line)));
        // Before the disk, which may take its time.
        self.publisher.publish(lines);
        self.log.append(&self.buffer, count, Instant::now());
        self.buffer.clear();
    }

    fn format(&mut self, event: &Event) -> Line {
        self.seq += 1;
        let record = record(event, self.seq);
        let begin = self.buffer.len();
        // Strings and numbers only: serialising them into memory does not fail.
        if serde_json::to_writer(&mut self.buffer, &record).is_ok() {
            self.buffer.push(b'\n');
        }
        let container = event.endpoint.as_ref().map(|it| (Arc::clone(&it.container), Arc::clone(&it.container_id)));
        Line::new(event.verdict, container, &self.buffer[begin..])
    }
}

/// The form of an event that vendor-docs/events.md describes.
#[must_use]
pub fn record(event: &Event, seq: u64) -> EventRecord<'_> {
    let endpoint = event.endpoint.as_ref();
    let rule = event.rule.as_ref();
    EventRecord {
        ts: rfc3339(event.at).into(),
        seq,
        flow: event.flow,
        layer: event.layer.name().into(),
        verdict: event.verdict.name().into(),
        container: endpoint.map(|endpoint| Cow::from(&*endpoint.container)),
        container_id: endpoint.map(|endpoint| Cow::from(&*endpoint.container_id)),
        agent: endpoint.map(|endpoint| Cow::from(&*endpoint.agent)),
        rule: rule.map(|rule| Cow::from(&*rule.id)),
        file: rule.map(|rule| Cow::from(&*rule.file)),
        reason: event.reason.into(),
        host: event.host.as_deref().map(Cow::from),
        ip: event.destination.map(|destination| destination.ip().to_string().into()),
        // Port 0 is the destination of a protocol that has none: ARP, ICMP.
        port: event.destination.map(|destination| destination.port()).filter(|port| *port != 0).or(event.port),
        protocol: event.protocol.map(Cow::from),
        method: event.method.as_deref().map(Cow::from),
        path: event.path.as_deref().map(Cow::from),
        record_type: event.record_type.as_deref().map(Cow::from),
        bytes_up: event.bytes_up,
        bytes_down: event.bytes_down,
        duration_us: event.duration_us,
    }
}

/// RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::{Layer, Verdict};
    use super::*;

    #[test]
    fn an_event_is_written_as_one_line_without_empty_fields() {
        let dir = std::env::temp_dir().join(format!("outcall-events-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let (log, sink, commands) = EventLog::new(DecisionLog::new(&dir, 1 << 20, 2));
        let mut event = Event::new(Layer::Dns, Verdict::Block, "default");
        event.host = Some("evil.example".into());
        event.record_type = Some("A".into());
        sink.record(event);
        let mut portless = Event::new(Layer::Kernel, Verdict::Block, "unvetted");
        portless.destination = Some("10.200.0.1:0".parse().unwrap());
        sink.record(portless);
        commands.send(EventsCommand::Stop).unwrap();
        log.run().unwrap();
        let text = std::fs::read_to_string(dir.join("decisions.jsonl")).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let [value, portless] = lines.as_slice() else { panic!("{text}") };
        assert!(portless["ip"] == "10.200.0.1" && portless.get("port").is_none(), "{portless}");
        assert_eq!(value["layer"], "dns");
        assert_eq!(value["verdict"], "block");
        assert_eq!(value["host"], "evil.example");
        assert_eq!(value["seq"], 1);
        assert!(value.get("rule").is_none() && value.get("ip").is_none());
        assert!(value["ts"].as_str().unwrap().ends_with('Z'));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
