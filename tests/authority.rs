//! CAs as openssl(1) makes them, and leaves as clients see them.

mod authority_support;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant, SystemTime};

use authority_support::{CA, Directory, Signing, client, handshake};
use outcall::authority::{Authority, LEAVES_MAX, Leaf, MintError, Published, SystemRoots, leaves, upstream_config};
use outcall::event_loop::mailbox;
use outcall::proxy::SessionId;

const TTL: Duration = Duration::from_secs(3600);

#[test]
fn leaves_of_both_algorithms_verify_in_openssl_and_in_rustls() {
    for kind in ["rsa", "p256", "p384"] {
        let directory = Directory::new();
        directory.pair(kind, &CA);
        let mut signing = Signing::new(directory.load().unwrap(), TTL);
        for (name, check) in
            [("api.example.com", "-verify_hostname"), ("192.0.2.7", "-verify_ip"), ("2001:db8::7", "-verify_ip")]
        {
            let server = signing.ready(name);
            for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
                let client = client(&directory.path("ca.pem"), version, &[b"h2", b"http/1.1"]);
                let seen = handshake(&client, &server, name).unwrap();
                assert_eq!((seen.version, seen.alpn.as_deref()), (version.version, Some(&b"http/1.1"[..])));
                assert_eq!(seen.chain.len(), 2);
                std::fs::write(directory.path("leaf.der"), &seen.chain[0]).unwrap();
            }
            directory.openssl("x509 -inform DER -in leaf.der -out leaf.pem");
            let strict = format!("verify -x509_strict -purpose sslserver {check} {name} -CAfile ca.pem leaf.pem");
            assert!(directory.openssl(&strict).contains("leaf.pem: OK"), "{kind} {name}");
            let text = directory.openssl("x509 -in leaf.pem -noout -text");
            for part in ["CA:FALSE", "TLS Web Server Authentication", "Digital Signature", "prime256v1"] {
                assert!(text.contains(part), "{part}: {text}");
            }
            for part in ["X509v3 Subject Key Identifier", "X509v3 Authority Key Identifier"] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }
}

#[test]
fn no_connection_resumes_another() {
    let directory = Directory::new();
    directory.pair("p256", &CA);
    let mut signing = Signing::new(directory.load().unwrap(), TTL);
    let server = signing.ready("api.example.com");
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        // This client keeps what servers hand out for resumption.
        let client = client(&directory.path("ca.pem"), version, &[b"http/1.1"]);
        for _ in 0..3 {
            let seen = handshake(&client, &server, "api.example.com").unwrap();
            assert_eq!(seen.handshake, rustls::HandshakeKind::Full);
        }
    }
}

#[test]
fn every_form_of_key_is_taken() {
    for (kind, command, label) in [
        ("rsa", "rsa -in key.pem -traditional -out other.pem", "BEGIN RSA PRIVATE KEY"),
        ("rsa", "pkey -in key.pem -out other.pem", "BEGIN PRIVATE KEY"),
        ("p256", "ec -in key.pem -out other.pem", "BEGIN EC PRIVATE KEY"),
        ("p384", "ec -in key.pem -out other.pem", "BEGIN EC PRIVATE KEY"),
        ("p384", "pkey -in key.pem -out other.pem", "BEGIN PRIVATE KEY"),
    ] {
        let directory = Directory::new();
        directory.pair(kind, &CA);
        directory.openssl(command);
        let text = std::fs::read_to_string(directory.path("other.pem")).unwrap();
        assert!(text.contains(label), "{command}");
        // As `openssl ecparam -genkey` writes it: parameters first.
        let text = format!("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{text}");
        std::fs::write(directory.path("key.pem"), text).unwrap();
        let authority = directory.load().unwrap();
        assert_eq!(authority.certificate().subject(), "O=Lab, CN=CA");
        assert!(!format!("{authority:?}").contains("PRIVATE"));
        let shown = directory.openssl("x509 -in ca.pem -noout -fingerprint -sha256");
        assert!(shown.contains(authority.certificate().fingerprint()), "{shown}");
    }
}

#[test]
fn a_loaded_ca_leaves_no_core_dump() {
    let directory = Directory::new();
    directory.pair("p256", &CA);
    directory.load().unwrap();
    assert!(!nix::sys::prctl::get_dumpable().unwrap());
}

#[test]
fn a_key_file_that_others_could_read_or_swap_stops_the_start() {
    let directory = Directory::new();
    directory.pair("p256", &CA);
    for mode in [0o640, 0o604, 0o620, 0o700, 0o4600] {
        directory.chmod("key.pem", mode);
        let error = directory.load().unwrap_err();
        assert!(error.contains("key.pem") && error.contains(&format!("{mode:04o}")) && error.contains("chmod 600"));
    }
    directory.chmod("key.pem", 0o400);
    directory.load().unwrap();
    let load = |name: &str| Authority::load(&directory.path("ca.pem"), &directory.path(name)).unwrap_err();
    std::os::unix::fs::symlink(directory.path("key.pem"), directory.path("link.pem")).unwrap();
    assert!(load("link.pem").to_string().contains("symbolic link"));
    nix::unistd::mkfifo(&directory.path("fifo.pem"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(load("fifo.pem").to_string().contains("no regular file"));
    std::fs::create_dir(directory.path("dir.pem")).unwrap();
    assert!(load("dir.pem").to_string().contains("no regular file"));
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(directory.path("key.pem"), Some(12_345), None).unwrap();
        let error = load("key.pem");
        assert!(error.to_string().contains("belongs to user 12345"), "{error}");
        assert!(!error.is_unreadable());
    }
}

#[test]
fn files_that_cannot_be_read_are_told_from_bad_ones() {
    let directory = Directory::new();
    assert!(Authority::load(&directory.path("ca.pem"), &directory.path("key.pem")).unwrap_err().is_unreadable());
    directory.pair("p256", &CA);
    std::fs::remove_file(directory.path("key.pem")).unwrap();
    let error = Authority::load(&directory.path("ca.pem"), &directory.path("key.pem")).unwrap_err();
    assert!(error.is_unreadable() && error.to_string().contains("key.pem"));
}

#[test]
fn a_pair_that_does_not_match_stops_the_start() {
    for kind in ["rsa", "p256", "p384"] {
        let (directory, other) = (Directory::new(), Directory::new());
        directory.pair("p256", &CA);
        other.pair(kind, &CA);
        let error = Authority::load(&directory.path("ca.pem"), &other.path("key.pem")).unwrap_err();
        assert!(error.to_string().contains("is not that of the certificate") && !error.is_unreadable(), "{error}");
    }
}

#[test]
fn a_certificate_that_clients_would_not_take_as_a_ca_stops_the_start() {
    for (extensions, reason) in [
        (&["basicConstraints=CA:FALSE"][..], "not a CA's"),
        (&["keyUsage=keyCertSign"][..], "not a CA's"),
        (&["basicConstraints=CA:TRUE", "keyUsage=digitalSignature"][..], "keyCertSign"),
        (&["basicConstraints=CA:TRUE", "extendedKeyUsage=clientAuth"][..], "serverAuth"),
    ] {
        let directory = Directory::new();
        directory.pair("p256", extensions);
        let error = directory.load().unwrap_err();
        assert!(error.contains("ca.pem") && error.contains(reason), "{error}");
    }
    let directory = Directory::new();
    directory.pair("p256", &CA);
    directory.certificate("req -x509 -new -key key.pem -out ca.pem -days 30 -subj /OU=a/OU=b/CN=CA", &CA);
    assert!(directory.load().unwrap_err().contains("subject that cannot be written"));
    directory.certificate("req -x509 -new -key key.pem -out ca.pem -days 30 -subj /O=Lab/CN=CA", &CA);
    let text = std::fs::read_to_string(directory.path("ca.pem")).unwrap();
    for (text, reason) in [
        (text.repeat(2), "more than one certificate"),
        (String::new(), "no certificate in PEM form"),
        ("\u{0}garbage".repeat(999), "no certificate in PEM form"),
        (text.replacen("MII", "MIA", 1), "damaged"),
        ("-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n".to_owned(), "no X.509"),
        ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n".to_owned(), "damaged"),
        ("x".repeat(2 << 20), "more than the"),
    ] {
        std::fs::write(directory.path("ca.pem"), text).unwrap();
        let error = directory.load().unwrap_err();
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

#[test]
fn a_ca_counts_from_its_first_moment_to_its_last() {
    let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
    let directory = Directory::new();
    directory.pair_valid((now - 2 * day, now - day));
    assert!(directory.load().unwrap_err().contains("expired at"));
    directory.pair_valid((now + day, now + 2 * day));
    assert!(directory.load().unwrap_err().contains("counts only from"));
}

#[test]
fn no_leaf_outlives_its_ca() {
    let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
    let directory = Directory::new();
    directory.pair_valid((now - hour, now + hour));
    let mut signing = Signing::new(directory.load().unwrap(), 24 * hour);
    let server = signing.ready("a.example");
    let client = client(&directory.path("ca.pem"), &rustls::version::TLS13, &[]);
    std::fs::write(directory.path("leaf.der"), &handshake(&client, &server, "a.example").unwrap().chain[0]).unwrap();
    let end = |file: &str| directory.openssl(&format!("x509 -in {file} -noout -enddate"));
    assert_eq!(end("leaf.der"), end("ca.pem"));
    // And it is not shown after that, whatever the flag says.
    let later = Instant::now() + hour;
    assert!(matches!(signing.leaves.leaf("a.example", SessionId::new(1, 0), later), Leaf::Pending));
}

#[test]
fn a_ca_that_expires_while_it_runs_makes_no_more_leaves() {
    let (now, second) = (SystemTime::now(), Duration::from_secs(1));
    let directory = Directory::new();
    directory.pair_valid((now - second, now + 3 * second));
    let mut signing = Signing::new(directory.load().unwrap(), TTL);
    let deadline = Instant::now() + 20 * second;
    loop {
        assert!(Instant::now() < deadline);
        let now = Instant::now();
        if let Leaf::Pending = signing.leaves.leaf("a.example", SessionId::new(0, 0), now)
            && let (_, Err(error)) = signing.next(now)
        {
            assert!(matches!(error, MintError::Expired), "{error}");
            break;
        }
        std::thread::yield_now();
    }
}

#[test]
fn equal_names_are_signed_for_once_and_all_who_wait_are_named() {
    let directory = Directory::new();
    directory.pair("p256", &CA);
    let mut signing = Signing::new(directory.load().unwrap(), Duration::from_secs(60));
    let now = Instant::now();
    let ids: Vec<SessionId> = (0..5).map(|slot| SessionId::new(slot, 0)).collect();
    for id in &ids {
        assert!(matches!(signing.leaves.leaf("a.example", *id, now), Leaf::Pending));
    }
    assert!(matches!(signing.leaves.leaf("b.example", ids[0], now), Leaf::Pending));
    let (waiting, config) = signing.next(now);
    assert_eq!(waiting, ids);
    let first = config.unwrap();
    assert_eq!(signing.next(now).0, [ids[0]]);
    // Within its time the same one is shown; then another is made.
    let just_before = now + Duration::from_secs(59);
    let Leaf::Ready(again) = signing.leaves.leaf("a.example", ids[0], just_before) else { panic!() };
    assert!(std::sync::Arc::ptr_eq(&first, &again));
    assert!(matches!(signing.leaves.leaf("a.example", ids[0], now + Duration::from_secs(60)), Leaf::Pending));
    signing.next(now).1.unwrap();
    assert_eq!(signing.leaves.flush(), 2);
    assert!(signing.leaves.is_empty());
    // Another key and another serial.
    let client = client(&directory.path("ca.pem"), &rustls::version::TLS13, &[]);
    let second = signing.ready("a.example");
    let chains = [first, second].map(|server| handshake(&client, &server, "a.example").unwrap().chain[0].clone());
    let serials: BTreeSet<String> = chains
        .iter()
        .map(|leaf| {
            std::fs::write(directory.path("leaf.der"), leaf).unwrap();
            directory.openssl("x509 -in leaf.der -noout -serial -pubkey")
        })
        .collect();
    assert_eq!(serials.len(), 2);
}

#[test]
fn the_least_recently_used_leaf_makes_room() {
    let directory = Directory::new();
    directory.pair("p256", &CA);
    let mut signing = Signing::new(directory.load().unwrap(), TTL);
    let name = |number: usize| format!("h{number}.example");
    for number in 0..LEAVES_MAX {
        signing.ready(&name(number));
    }
    assert_eq!(signing.leaves.len(), LEAVES_MAX);
    // 0 is used again, so that 1 is the oldest.
    signing.ready(&name(0));
    signing.ready("one.more.example");
    assert_eq!(signing.leaves.len(), LEAVES_MAX);
    let (now, id) = (Instant::now(), SessionId::new(0, 0));
    assert!(matches!(signing.leaves.leaf(&name(0), id, now), Leaf::Ready(_)));
    assert!(matches!(signing.leaves.leaf(&name(2), id, now), Leaf::Ready(_)));
    assert!(matches!(signing.leaves.leaf(&name(1), id, now), Leaf::Pending));
}

#[test]
fn a_flood_of_names_or_connections_is_refused_and_forgotten() {
    let directory = Directory::new();
    directory.pair("p256", &CA);
    let poll = mio::Poll::new().unwrap();
    let (address, _mailbox) = mailbox(&poll, 4).unwrap();
    // Nobody signs.
    let (mut cache, _signer, _commands) = leaves(directory.load().unwrap(), TTL, address);
    let now = Instant::now();
    let outcomes: Vec<Leaf> =
        (0..1000).map(|number| cache.leaf(&format!("h{number}.example"), SessionId::new(number, 0), now)).collect();
    let pending = outcomes.iter().filter(|leaf| matches!(leaf, Leaf::Pending)).count();
    assert_eq!(pending, 64);
    assert!(outcomes[64..].iter().all(|leaf| matches!(leaf, Leaf::Refused(_))));
    let same =
        (0..1000).filter(|slot| matches!(cache.leaf("h0.example", SessionId::new(*slot, 1), now), Leaf::Pending));
    assert!(same.count() < 256);
    assert!(cache.is_empty());
}

#[test]
fn names_that_no_certificate_may_hold_are_refused() {
    let directory = Directory::new();
    let constraints =
        "nameConstraints=critical,permitted;DNS:example.com,excluded;IP:0.0.0.0/0.0.0.0,excluded;DNS:no.example.com";
    directory.pair("p384", &[&CA[..], &[constraints]].concat());
    let mut signing = Signing::new(directory.load().unwrap(), TTL);
    let now = Instant::now();
    for name in [
        "",
        "a..b",
        "*.example.com",
        "a b.example.com",
        "example.org",
        "notexample.com",
        "192.0.2.1",
        "x.no.example.com",
    ] {
        assert!(matches!(signing.leaves.leaf(name, SessionId::new(0, 0), now), Leaf::Refused(_)), "{name}");
    }
    for name in ["example.com", "a.b.example.com", "under_score.example.com"] {
        let server = signing.ready(name);
        let client = client(&directory.path("ca.pem"), &rustls::version::TLS13, &[]);
        std::fs::write(directory.path("leaf.der"), &handshake(&client, &server, name).unwrap().chain[0]).unwrap();
        directory.openssl("x509 -in leaf.der -out leaf.pem");
        assert!(directory.openssl("verify -x509_strict -CAfile ca.pem leaf.pem").contains("OK"), "{name}");
    }
}

#[test]
fn upstreams_are_held_to_the_roots_given() {
    let (directory, other) = (Directory::new(), Directory::new());
    directory.pair("p256", &CA);
    other.pair("p256", &CA);
    let mut signing = Signing::new(directory.load().unwrap(), TTL);
    let server = signing.ready("origin.example");
    let system = SystemRoots::default();
    let with = |extra: Option<&str>| upstream_config(&system, extra.map(|name| directory.path(name)).as_deref());
    let trusting = with(Some("ca.pem")).unwrap();
    let seen = handshake(&trusting, &server, "origin.example").unwrap();
    assert_eq!((seen.alpn.as_deref(), seen.handshake), (Some(&b"http/1.1"[..]), rustls::HandshakeKind::Full));
    // Another connection does not resume, though the settings are shared.
    assert_eq!(handshake(&trusting, &server, "origin.example").unwrap().handshake, rustls::HandshakeKind::Full);
    assert!(handshake(&trusting, &server, "other.example").is_err());
    assert!(handshake(&with(None).unwrap(), &server, "origin.example").is_err());
    let untrusting = upstream_config(&system, Some(&other.path("ca.pem"))).unwrap();
    assert!(handshake(&untrusting, &server, "origin.example").is_err());
    std::fs::write(directory.path("empty.pem"), "no certificate").unwrap();
    std::fs::write(directory.path("bad.pem"), "-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n")
        .unwrap();
    for (name, reason) in
        [("empty.pem", "no certificate"), ("bad.pem", "cannot be a root"), ("absent.pem", "cannot read --upstream-ca")]
    {
        let error = with(Some(name)).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(reason), "{error}");
    }
}

#[test]
fn the_bundle_holds_the_system_and_the_ca_and_everyone_may_read_it() {
    let directory = Directory::new();
    directory.pair("p256", &CA);
    let authority = directory.load().unwrap();
    let published = Published::new(authority.certificate().clone(), &SystemRoots::read());
    let state = directory.path("state");
    published.write(&state).unwrap();
    // Again, over the first one.
    published.write(&state).unwrap();
    let path = Published::path(&state);
    assert_eq!(path, state.join("ca/bundle.pem"));
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&path), mode(&state.join("ca"))), (0o644, 0o755));
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(&std::fs::read_to_string(directory.path("ca.pem")).unwrap()));
    assert_eq!(std::fs::read_dir(state.join("ca")).unwrap().count(), 1);
    let mut signing = Signing::new(authority, TTL);
    let server = signing.ready("a.example");
    let client = client(&directory.path("ca.pem"), &rustls::version::TLS13, &[]);
    std::fs::write(directory.path("leaf.der"), &handshake(&client, &server, "a.example").unwrap().chain[0]).unwrap();
    directory.openssl("x509 -in leaf.der -out leaf.pem");
    assert!(directory.openssl("verify -CAfile state/ca/bundle.pem leaf.pem").contains("OK"));
}

/// Runs `outcall ca init` into `out`; exit code, and what it said.
fn ca_init(directory: &Directory, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_outcall"));
    let output = command.args(["ca", "init", "--out"]).arg(directory.path("made")).args(arguments).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code(), said)
}

#[test]
fn ca_init_makes_a_pair_that_loads_and_overwrites_nothing() {
    for (arguments, algorithm) in [(&[][..], "rsaEncryption"), (&["--algorithm", "ecdsa"][..], "secp384r1")] {
        let directory = Directory::new();
        let (code, said) = ca_init(&directory, arguments);
        assert_eq!(code, Some(0), "{said}");
        let (cert, key) = (directory.path("made/ca-cert.pem"), directory.path("made/ca-key.pem"));
        let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&cert), mode(&key)), (0o644, 0o600));
        assert_eq!(std::fs::read_dir(directory.path("made")).unwrap().count(), 2);
        let authority = Authority::load(&cert, &key).unwrap();
        assert!(said.contains(authority.certificate().fingerprint()) && said.contains("--ca-cert"), "{said}");
        let text = directory.openssl("x509 -in made/ca-cert.pem -noout -text");
        for part in [algorithm, "CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let life = authority.certificate().not_after().duration_since(SystemTime::now()).unwrap();
        assert_eq!(life.as_secs() / 86_400, 3651);
        let before = std::fs::read(&key).unwrap();
        for missing in [None, Some("ca-cert.pem"), Some("ca-key.pem")] {
            let copy = missing.map(|name| (name, std::fs::read(directory.path("made").join(name)).unwrap()));
            if let Some((name, _)) = &copy {
                std::fs::remove_file(directory.path("made").join(name)).unwrap();
            }
            let (code, said) = ca_init(&directory, arguments);
            assert!(code == Some(1) && said.contains("exists and is left alone"), "{said}");
            if let Some((name, bytes)) = copy {
                assert!(!directory.path("made").join(name).exists(), "nothing half done");
                std::fs::write(directory.path("made").join(name), bytes).unwrap();
            }
        }
        assert_eq!(std::fs::read(&key).unwrap(), before);
    }
}

#[test]
fn a_constrained_ca_is_good_for_its_domain_alone() {
    let directory = Directory::new();
    let (code, said) = ca_init(&directory, &["--algorithm", "ecdsa", "--constrain", "Example.com"]);
    assert!(code == Some(0) && said.contains("Only for:"), "{said}");
    let made = directory.path("made");
    let authority = Authority::load(&made.join("ca-cert.pem"), &made.join("ca-key.pem")).unwrap();
    assert!(authority.certificate().allows("api.example.com"));
    for name in ["example.org", "192.0.2.1", "2001:db8::1"] {
        assert!(!authority.certificate().allows(name), "{name}");
    }
    let mut signing = Signing::new(authority, TTL);
    let server = signing.ready("api.example.com");
    let client = client(&made.join("ca-cert.pem"), &rustls::version::TLS13, &[]);
    handshake(&client, &server, "api.example.com").unwrap();
    let text = directory.openssl("x509 -in made/ca-cert.pem -noout -text");
    assert!(text.contains("Name Constraints: critical") && text.contains("DNS:example.com"), "{text}");
    let (code, said) = ca_init(&directory, &["--constrain", "*.example.com"]);
    assert!(code == Some(2) && said.contains("--constrain"), "{said}");
}
