//! CA pairs made with openssl(1), and a signer that runs.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use outcall::authority::{Authority, Leaf, Leaves, LeavesCommand, MintError, leaves};
use outcall::event_loop::{Mailbox, mailbox};
use outcall::proxy::{ProxyCommand, SessionId};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

/// A directory of its own, removed at the end.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Directory {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("outcall-authority-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Directory(path)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Runs openssl(1) here; its output.
    pub fn openssl(&self, words: &str) -> String {
        let output = Command::new("openssl").args(words.split(' ')).current_dir(&self.0).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {words}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned() + &said
    }

    pub fn chmod(&self, name: &str, mode: u32) {
        std::fs::set_permissions(self.path(name), PermissionsExt::from_mode(mode)).unwrap();
    }

    /// Makes `key.pem` of `kind` and `ca.pem` for it, with these extensions.
    pub fn pair(&self, kind: &str, extensions: &[&str]) {
        let algorithm = match kind {
            "rsa" => "RSA -pkeyopt rsa_keygen_bits:2048",
            "p256" => "EC -pkeyopt ec_paramgen_curve:P-256",
            "p384" => "EC -pkeyopt ec_paramgen_curve:P-384",
            other => panic!("{other}"),
        };
        self.openssl(&format!("genpkey -algorithm {algorithm} -out key.pem"));
        self.chmod("key.pem", 0o600);
        self.certificate("req -x509 -new -key key.pem -out ca.pem -days 30 -subj /O=Lab/CN=CA", extensions);
    }

    /// Runs `command` with the extensions as `-addext`, and no others.
    pub fn certificate(&self, command: &str, extensions: &[&str]) {
        let plain = "[req]\ndistinguished_name = dn\n[dn]\n";
        std::fs::write(self.path("plain.cnf"), plain).unwrap();
        let added: String = extensions.iter().map(|extension| format!(" -addext {extension}")).collect();
        self.openssl(&format!("{command} -config plain.cnf{added}"));
    }

    pub fn load(&self) -> Result<Authority, String> {
        Authority::load(&self.path("ca.pem"), &self.path("key.pem")).map_err(|error| error.to_string())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The extensions of a CA.
pub const CA: [&str; 3] =
    ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign", "subjectKeyIdentifier=hash"];

/// The leaves of a CA, with the thread that signs them.
pub struct Signing {
    pub leaves: Leaves,
    mailbox: Mailbox<ProxyCommand>,
    poll: mio::Poll,
    commands: crossbeam_channel::Sender<LeavesCommand>,
    thread: Option<std::thread::JoinHandle<Result<(), String>>>,
}

impl Signing {
    pub fn new(authority: Authority, ttl: Duration) -> Signing {
        let poll = mio::Poll::new().unwrap();
        let (address, mailbox) = mailbox(&poll, 64).unwrap();
        let (leaves, signer, commands) = leaves(authority, ttl, address);
        let thread = Some(std::thread::spawn(move || signer.run()));
        Signing { leaves, mailbox, poll, commands, thread }
    }

    /// The next leaf that the signer made, handed in at `now`.
    pub fn next(&mut self, now: Instant) -> (Vec<SessionId>, Result<Arc<ServerConfig>, MintError>) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(ProxyCommand::Minted(minted)) = self.mailbox.take() {
                return self.leaves.minted(minted, now);
            }
            assert!(Instant::now() < deadline, "nothing was signed");
            self.poll.poll(&mut mio::Events::with_capacity(4), Some(Duration::from_millis(100))).unwrap();
        }
    }

    /// The settings for `name`, waited for.
    pub fn ready(&mut self, name: &str) -> Arc<ServerConfig> {
        let now = Instant::now();
        match self.leaves.leaf(name, SessionId::new(0, 0), now) {
            Leaf::Ready(config) => config,
            Leaf::Pending => self.next(now).1.unwrap(),
            Leaf::Refused(reason) => panic!("{name}: {reason}"),
        }
    }
}

impl Drop for Signing {
    fn drop(&mut self) {
        let _ = self.commands.send(LeavesCommand::Stop);
        let ended = self.thread.take().unwrap().join().unwrap();
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// What a client that trusts `ca` sees of a server with `config`: chain, protocol version, ALPN.
pub struct Seen {
    pub chain: Vec<CertificateDer<'static>>,
    pub version: rustls::ProtocolVersion,
    pub alpn: Option<Vec<u8>>,
    pub handshake: rustls::HandshakeKind,
}

/// A client's settings: trusts `ca`, speaks `version` and offers `alpn`.
pub fn client(ca: &Path, version: &'static rustls::SupportedProtocolVersion, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    use rustls::pki_types::pem::PemObject;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// Both sides of a handshake in memory.
pub fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>, name: &str) -> Result<Seen, rustls::Error> {
    let mut client = ClientConnection::new(Arc::clone(client), name.to_owned().try_into().unwrap())?;
    let mut server = ServerConnection::new(Arc::clone(server))?;
    for _ in 0..16 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets()?;
        }
        if !client.wants_write() && !server.wants_write() && !client.is_handshaking() && !server.is_handshaking() {
            break;
        }
    }
    Ok(Seen {
        chain: client.peer_certificates().unwrap().to_vec(),
        version: client.protocol_version().unwrap(),
        alpn: client.alpn_protocol().map(<[u8]>::to_vec),
        handshake: client.handshake_kind().unwrap(),
    })
}

/// The validity of a certificate made by [`Directory::pair_valid`].
pub type Validity = (std::time::SystemTime, std::time::SystemTime);

impl Directory {
    /// A P-256 pair that counts within `validity`, which openssl(1) of this age cannot be told.
    pub fn pair_valid(&self, (from, until): Validity) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.not_before = from.into();
        params.not_after = until.into();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        std::fs::write(self.path("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
        self.chmod("key.pem", 0o600);
    }
}
