//! A proxy that decrypts, clients that trust it or not, and origins with certificates good and bad.

// Each test file uses a part of this.
#![allow(dead_code)]

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outcall::authority::{Authority, Counters, Interception, SystemRoots, leaves, upstream_config};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, SupportedProtocolVersion};

use crate::proxy_support::{Origin, Running, Setup, Wire};

/// A certificate authority of a test.
pub struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pub certificate: CertificateDer<'static>,
    pem: String,
}

/// What is odd about an origin's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    None,
    Expired,
    SelfSigned,
    UnknownCa,
    OtherName,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        Self::constrained(name, None)
    }

    /// One that may sign for names below `domain` only.
    pub fn constrained(name: &str, domain: Option<&str>) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.name_constraints = domain.map(|domain| rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName(domain.to_owned())],
            excluded_subtrees: Vec::new(),
        });
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        Ca { certificate: certificate.der().clone(), pem: certificate.pem(), params, key }
    }

    /// A certificate for these names, with its key.
    pub fn leaf(&self, names: &[&str], flaw: Flaw) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let names = if flaw == Flaw::OtherName { vec!["elsewhere.example".to_owned()] } else { owned(names) };
        let mut params = CertificateParams::new(names).unwrap();
        if flaw == Flaw::Expired {
            params.not_before = rcgen::date_time_ymd(2019, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        }
        let certificate = match flaw {
            Flaw::SelfSigned => params.self_signed(&key).unwrap(),
            Flaw::UnknownCa => {
                let other = Ca::new("unknown");
                params.signed_by(&key, &Issuer::from_params(&other.params, &other.key)).unwrap()
            }
            _ => params.signed_by(&key, &Issuer::from_params(&self.params, &self.key)).unwrap(),
        };
        (certificate.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        roots
    }
}

fn serial() -> u32 {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A client that trusts `ca` and offers these protocols.
pub fn client_config(ca: &Ca, alpn: &[&str]) -> ClientConfig {
    let mut config = ClientConfig::builder().with_root_certificates(ca.roots()).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    config
}

/// A server for `ok.example`, `other.example` and 127.0.0.1.
pub fn server_config(
    ca: &Ca,
    flaw: Flaw,
    versions: &[&'static SupportedProtocolVersion],
    mtls: Option<bool>,
) -> ServerConfig {
    let (certificate, key) = ca.leaf(&["ok.example", "other.example", "127.0.0.1"], flaw);
    let builder = ServerConfig::builder_with_protocol_versions(versions);
    let builder = match mtls {
        None => builder.with_no_client_auth(),
        Some(required) => {
            let verifier = WebPkiClientVerifier::builder(Arc::new(ca.roots()));
            let verifier = if required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    builder.with_single_cert(vec![certificate], key).unwrap()
}

/// The world of a test: our CA, the internet's CA.
pub struct World {
    pub ours: Arc<Ca>,
    pub theirs: Arc<Ca>,
}

impl World {
    pub fn new() -> Self {
        World { ours: Arc::new(Ca::new("ours")), theirs: Arc::new(Ca::new("theirs")) }
    }

    /// A setup with rules and a CA.
    pub fn setup(&self, rules: &[&str]) -> Setup {
        self.setup_with_cap(rules, 1024 * 1024)
    }

    pub fn setup_with_cap(&self, rules: &[&str], body_cap: usize) -> Setup {
        let (ours, theirs) = (Arc::clone(&self.ours), Arc::clone(&self.theirs));
        let mut setup = Setup::new(rules);
        setup.interception = Some(Box::new(move |proxy| {
            let directory = std::env::temp_dir().join(format!("outcall-intercept-{}-{}", std::process::id(), serial()));
            std::fs::create_dir(&directory).unwrap();
            let write = |name: &str, text: &str| {
                let path = directory.join(name);
                let mut file =
                    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
                file.write_all(text.as_bytes()).unwrap();
                path
            };
            let (cert, key) = (write("ca.pem", &ours.pem), write("key.pem", &ours.key.serialize_pem()));
            let authority = Authority::load(&cert, &key).unwrap_or_else(|error| panic!("{error}"));
            let upstream = upstream_config(&SystemRoots::default(), Some(&write("roots.pem", &theirs.pem))).unwrap();
            std::fs::remove_dir_all(&directory).unwrap();
            let (leaves, signer, _) = leaves(authority, Duration::from_secs(3600), proxy);
            // Ends when the proxy does, which alone can ask it.
            std::thread::spawn(move || signer.run());
            Interception { leaves, upstream, body_cap, counters: Counters::default() }
        }));
        setup
    }

    /// An origin that speaks TLS with a good certificate and echoes.
    pub fn origin(&self) -> Origin {
        self.origin_with(server_config(&self.theirs, Flaw::None, rustls::ALL_VERSIONS, None))
    }

    pub fn origin_with(&self, config: ServerConfig) -> Origin {
        self.origin_that(config, |mut wire, log| wire.serve_echo(log))
    }

    /// An origin that speaks TLS and then runs `serve`.
    pub fn origin_that(
        &self,
        config: ServerConfig,
        serve: impl Fn(Wire, &Mutex<Vec<String>>) + Send + Sync + 'static,
    ) -> Origin {
        let config = Arc::new(config);
        Origin::with(move |wire, log| {
            if let Ok(wire) = wire.secure(ServerConnection::new(Arc::clone(&config)).unwrap()) {
                serve(wire, log);
            }
        })
    }

    /// A client inside TLS, at `host` of `origin`, with our CA trusted.
    pub fn client(&self, proxy: &Running, host: &str, origin: &Origin) -> Wire {
        self.try_client(proxy, host, host, origin, client_config(&self.ours, &["http/1.1"])).unwrap()
    }

    /// A CONNECT to `host`, then TLS with the server name `sni`.
    pub fn try_client(
        &self,
        proxy: &Running,
        host: &str,
        sni: &str,
        origin: &Origin,
        config: ClientConfig,
    ) -> io::Result<Wire> {
        let mut wire = proxy.client();
        let seen = wire.connect(&format!("{host}:{}", origin.port));
        assert_eq!(seen.status, 200, "{}", seen.text());
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        wire.secure(ClientConnection::new(Arc::new(config), name).unwrap())
    }
}

/// The certificate that a client was shown.
pub fn shown(wire: &Wire) -> CertificateDer<'static> {
    wire.tls.as_ref().unwrap().peer_certificates().unwrap()[0].clone().into_owned()
}

/// A request, with the port in its Host left out.
pub fn request(method: &str, host: &str, path: &str, fields: &str, body: &str) -> String {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{fields}{length}\r\n{body}")
}
