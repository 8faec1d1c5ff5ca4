//! A Docker Engine played by threads: as much of its API as the manager uses, and misbehaviour on demand.
//!
//! Owns: the socket, containers as a table, what was asked. Does not own: networks beyond the default one, namespaces.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

/// How a call is answered instead of properly.
#[derive(Clone, Debug)]
#[allow(dead_code)] // each test uses some
pub enum Trouble {
    /// Never; the connection stays open.
    Hang,
    /// Bytes that are no HTTP.
    Noise,
    /// 200 with a body that is no JSON.
    Garbage,
    /// A head that promises more body than comes.
    CutShort,
    /// This status and message.
    Refuse(u16, String),
    /// This body, word for word, with status 200.
    Say(String),
    /// The call is done, and the Engine dies before it answers.
    DieAfter,
}

/// A container of the fake.
#[derive(Clone, Debug)]
pub struct Container {
    pub name: String,
    pub status: String,
    pub body: Value,
}

#[derive(Default)]
struct State {
    containers: BTreeMap<String, Container>,
    troubles: Vec<(String, Trouble)>,
    asked: Vec<String>,
    connections: Vec<UnixStream>,
    made: usize,
}

/// The Engine.
pub struct Fake {
    pub socket: PathBuf,
    state: Arc<Mutex<State>>,
    /// Raised at each death, so that old threads end.
    dead: Arc<AtomicBool>,
}

impl Fake {
    /// Starts it on `socket`.
    pub fn start(socket: &Path) -> Self {
        let fake = Fake { socket: socket.to_owned(), state: Arc::default(), dead: Arc::default() };
        fake.listen();
        fake
    }

    fn listen(&self) {
        let _ = std::fs::remove_file(&self.socket);
        let listener = UnixListener::bind(&self.socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (state, dead, socket) = (Arc::clone(&self.state), Arc::clone(&self.dead), self.socket.clone());
        std::thread::spawn(move || {
            while !dead.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).unwrap();
                        state.lock().unwrap().connections.push(stream.try_clone().unwrap());
                        let engine =
                            Engine { state: Arc::clone(&state), dead: Arc::clone(&dead), socket: socket.clone() };
                        std::thread::spawn(move || engine.serve(stream));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(2)),
                }
            }
        });
    }

    /// Calls whose `METHOD path` begins so are answered with `trouble`, until [`Fake::well`].
    pub fn trouble(&self, call: &str, trouble: Trouble) {
        self.state().troubles.push((call.to_owned(), trouble));
    }

    /// No more trouble.
    pub fn well(&self) {
        self.state().troubles.clear();
    }

    /// Alive again after a death, with the containers it had.
    pub fn revive(&mut self) {
        self.dead = Arc::default();
        self.listen();
    }

    /// The containers there are.
    pub fn containers(&self) -> Vec<Container> {
        self.state().containers.values().cloned().collect()
    }

    /// Puts a container there that the manager did not make.
    pub fn put(&self, id: &str, name: &str, status: &str, labels: &Value) {
        let body = json!({"Image": "lab/busybox", "Labels": labels, "Env": ["A=hunter2"]});
        let container = Container { name: name.to_owned(), status: status.to_owned(), body };
        self.state().containers.insert(id.to_owned(), container);
    }

    /// Calls whose `METHOD path` begins so.
    pub fn asked(&self, call: &str) -> usize {
        self.state().asked.iter().filter(|asked| asked.starts_with(call)).count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        die(&self.dead, &self.state, &self.socket);
    }
}

fn die(dead: &AtomicBool, state: &Mutex<State>, socket: &Path) {
    dead.store(true, Ordering::Relaxed);
    let _ = std::fs::remove_file(socket);
    for connection in state.lock().unwrap().connections.drain(..) {
        let _ = connection.shutdown(Shutdown::Both);
    }
}

struct Engine {
    state: Arc<Mutex<State>>,
    dead: Arc<AtomicBool>,
    socket: PathBuf,
}

impl Engine {
    fn serve(&self, stream: UnixStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some((call, body)) = request(&mut reader) {
            let trouble = {
                let mut state = self.state.lock().unwrap();
                state.asked.push(call.clone());
                let found = state.troubles.iter().find(|(prefix, _)| call.starts_with(prefix.as_str()));
                found.map(|(_, trouble)| trouble.clone())
            };
            let sent = match trouble {
                None if call.starts_with("GET /events") => {
                    let head =
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
                    let _ = writer.write_all(head.as_bytes());
                    return self.park();
                }
                None => {
                    let (status, content) = self.answer(&call, &body);
                    write(&mut writer, status, content.to_string().as_bytes())
                }
                Some(Trouble::Hang) => return self.park(),
                Some(Trouble::Noise) => writer.write_all(b"\x16\x03\x01 no HTTP at all\r\n\r\n"),
                Some(Trouble::Garbage) => write(&mut writer, 200, b"{\"Id\": [[[ garbage"),
                Some(Trouble::CutShort) => {
                    let _ = writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4096\r\n\r\n{\"Id\":\"");
                    // The table of connections holds it open.
                    let _ = writer.shutdown(Shutdown::Both);
                    return;
                }
                Some(Trouble::Refuse(status, message)) => {
                    write(&mut writer, status, json!({ "message": message }).to_string().as_bytes())
                }
                Some(Trouble::Say(text)) => write(&mut writer, 200, text.as_bytes()),
                Some(Trouble::DieAfter) => {
                    self.answer(&call, &body);
                    return die(&self.dead, &self.state, &self.socket);
                }
            };
            if sent.is_err() {
                return;
            }
        }
    }

    /// Keeps the connection open until the Engine dies.
    fn park(&self) {
        while !self.dead.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn answer(&self, call: &str, body: &[u8]) -> (u16, Value) {
        let (method, target) = call.split_once(' ').unwrap();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut state = self.state.lock().unwrap();
        match (method, path) {
            ("GET", "/_ping") => (200, json!("OK")),
            ("GET", "/networks") => (200, json!([network()])),
            ("GET", "/networks/n1") => (200, network()),
            ("GET", "/info") => (200, json!({"DockerRootDir": self.socket.parent()})),
            ("GET", "/images/lab/busybox/json") => (200, image()),
            ("GET", _) if path.starts_with("/images/") => (404, json!({"message": "No such image"})),
            ("GET", _) if path.starts_with("/volumes/") => match path {
                "/volumes/tricky" => {
                    let options = json!({"type": "none", "o": "bind", "device": "/var/run"});
                    (200, json!({"Driver": "local", "Options": options}))
                }
                _ => (404, json!({"message": "no such volume"})),
            },
            ("GET", "/containers/json") => {
                let created = query.contains("%22created%22");
                let listed = state.containers.iter().filter(|(_, container)| {
                    container.body["Labels"]["managed-by"] == "outcalld" && (!created || container.status == "created")
                });
                let listed: Vec<Value> = listed
                    .map(|(id, c)| {
                        json!({"Id": id, "Names": [format!("/{}", c.name)], "Image": c.body["Image"], "State": c.status,
                            "Created": 0, "Labels": c.body["Labels"]})
                    })
                    .collect();
                (200, json!(listed))
            }
            ("POST", "/containers/create") => {
                let name = query.strip_prefix("name=").unwrap_or_default().to_owned();
                if state.containers.values().any(|container| container.name == name) {
                    let message = format!("Conflict. The container name \"/{name}\" is already in use");
                    return (409, json!({ "message": message }));
                }
                state.made += 1;
                let id = format!("{:064x}", 0xc0ff_ee00 + state.made);
                let body = serde_json::from_slice(body).unwrap();
                state.containers.insert(id.clone(), Container { name, status: "created".to_owned(), body });
                (201, json!({"Id": id, "Warnings": []}))
            }
            _ => self.container(&mut state, method, path),
        }
    }

    fn container(&self, state: &mut State, method: &str, path: &str) -> (u16, Value) {
        let absent = || (404, json!({"message": "No such container"}));
        let Some(rest) = path.strip_prefix("/containers/") else { return (404, json!({"message": "page not found"})) };
        let (key, verb) = rest.split_once('/').unwrap_or((rest, ""));
        let found = state.containers.iter().find(|(id, container)| *id == key || container.name == key);
        let Some(id) = found.map(|(id, _)| id.clone()) else { return absent() };
        let Some(container) = state.containers.get_mut(&id) else { return absent() };
        match (method, verb) {
            ("GET", "json") => (200, inspected(&id, container)),
            ("POST", "start") => {
                container.status = "running".to_owned();
                (204, Value::Null)
            }
            ("POST", "stop") if container.status != "running" => (304, Value::Null),
            ("POST", "stop") => {
                container.status = "exited".to_owned();
                (204, Value::Null)
            }
            ("DELETE", "") => {
                state.containers.remove(&id);
                (204, Value::Null)
            }
            _ => absent(),
        }
    }
}

fn network() -> Value {
    json!({"Name": "outcall-default", "Id": "n1", "Scope": "local", "Driver": "bridge", "EnableIPv6": false,
        "IPAM": {"Config": [{"Subnet": "10.200.0.0/24", "Gateway": "10.200.0.1"}]}, "Containers": {},
        "Options": {"com.docker.network.bridge.enable_ip_masquerade": "false",
            "com.docker.network.bridge.name": "outcall0"},
        "Labels": {"managed-by": "outcalld"}})
}

fn image() -> Value {
    json!({"Id": "sha256:feed", "RepoTags": ["lab/busybox:latest"], "RepoDigests": null,
        "Config": {"Cmd": ["sh"], "Entrypoint": null, "ExposedPorts": {"8000/tcp": {}}}})
}

fn inspected(id: &str, container: &Container) -> Value {
    json!({"Id": id, "Name": format!("/{}", container.name), "Image": "sha256:feed", "Created": "2026-01-01T00:00:00Z",
        "State": {"Status": container.status, "Running": container.status == "running", "Pid": 0},
        "Config": {"Image": container.body["Image"], "Env": container.body["Env"], "Labels": container.body["Labels"]},
        "Mounts": [], "NetworkSettings": {"Networks": {"outcall-default": {"IPAddress": "10.200.0.2"}}}})
}

/// One request: `METHOD path` without the version, and the body.
fn request(reader: &mut BufReader<UnixStream>) -> Option<(String, Vec<u8>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let target = target.strip_prefix("/v1.41").map_or(target.clone(), str::to_owned);
    let (mut length, mut chunked) = (0, false);
    loop {
        let mut field = String::new();
        reader.read_line(&mut field).ok()?;
        let field = field.trim().to_ascii_lowercase();
        if field.is_empty() {
            break;
        }
        if let Some(value) = field.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        chunked |= field.starts_with("transfer-encoding:");
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    while chunked {
        let mut size = String::new();
        reader.read_line(&mut size).ok()?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).ok()?;
        body.extend_from_slice(&chunk[..size]);
        chunked = size > 0;
    }
    Some((format!("{method} {target}"), body))
}

fn write(writer: &mut UnixStream, status: u16, body: &[u8]) -> std::io::Result<()> {
    let empty = matches!(status, 204 | 304);
    let length = if empty { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    write!(writer, "HTTP/1.1 {status} X\r\nApi-Version: 1.41\r\n{length}\r\n")?;
    if empty { Ok(()) } else { writer.write_all(body) }
}
