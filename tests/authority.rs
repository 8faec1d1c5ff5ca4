//! CAs as openssl(1) makes them, and leaves as clients see them.

mod authority_support;

use std::time::Duration;

use authority_support::{CA, Directory, Signing, client, handshake};

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
