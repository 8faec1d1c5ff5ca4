//! `outcall ca init`: makes a CA for interception. Asks no daemon.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize, SerialNumber,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::cli::CliError;
use crate::cli::arguments::CaAlgorithm;
use crate::cli::output::Output;

/// What the two files are called.
const CERTIFICATE: &str = "ca-cert.pem";
const KEY: &str = "ca-key.pem";

/// How long a CA counts: ten years, leap days included.
const LIFE: Duration = Duration::from_secs(3652 * 24 * 3600);
/// How long before its making it counts, for machines whose clock is behind.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

/// What was made.
#[derive(Serialize)]
struct Made {
    certificate: PathBuf,
    key: PathBuf,
    algorithm: &'static str,
    fingerprint_sha256: String,
    not_after: String,
    constrained_to: Vec<String>,
}

pub(super) fn run(
    directory: &Path,
    algorithm: CaAlgorithm,
    constrain: &[String],
    output: &mut Output,
) -> Result<(), CliError> {
    let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
    // Before the seconds that an RSA key takes; the files are put in place without overwriting all the same.
    for path in [&certificate, &key] {
        if path.symlink_metadata().is_ok() {
            return Err(exists(path));
        }
    }
    let pair = make_key(algorithm)?;
    let (params, not_after) = params(constrain)?;
    let made = params.self_signed(&pair).map_err(failed)?;
    let text = Zeroizing::new(pair.serialize_pem());
    make_directory(directory)?;
    put(directory, &[(&key, text.as_bytes(), 0o600), (&certificate, made.pem().as_bytes(), 0o644)])?;
    let digest = Sha256::digest(made.der());
    let fingerprint: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    let made = Made {
        certificate,
        key,
        algorithm: match algorithm {
            CaAlgorithm::Rsa => "RSA 4096",
            CaAlgorithm::Ecdsa => "ECDSA P-384",
        },
        fingerprint_sha256: fingerprint.join(":"),
        not_after,
        constrained_to: constrain.to_vec(),
    };
    output.data(&made, print)
}

fn print(output: &mut Output, made: &Made) -> Result<(), CliError> {
    let (certificate, key) = (made.certificate.display(), made.key.display());
    let mut rows = vec![
        ("Certificate", certificate.to_string().into()),
        ("Key", format!("{key} (mode 0600)").into()),
        ("Algorithm", made.algorithm.into()),
        ("SHA-256", made.fingerprint_sha256.as_str().into()),
        ("Valid until", made.not_after.as_str().into()),
    ];
    if !made.constrained_to.is_empty() {
        rows.push(("Only for", made.constrained_to.join(", ").into()));
    }
    output.labels(&rows)?;
    output.line("")?;
    output.line(
        "Whoever has the key can read and change what every machine that trusts the certificate sends over TLS.",
    )?;
    output.line("")?;
    output
        .line(&format!("Next: start outcalld with --ca-cert {certificate} --ca-key {key}, and give the rules that"))?;
    output.line("need to look inside `mode: intercept`. Containers made by outcalld then trust it; for others,")?;
    output.line("`outcall ca bundle` prints what they need.")
}

fn make_key(algorithm: CaAlgorithm) -> Result<KeyPair, CliError> {
    match algorithm {
        CaAlgorithm::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096),
        CaAlgorithm::Ecdsa => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
    }
    .map_err(failed)
}

/// The certificate's contents, and its last day.
fn params(constrain: &[String]) -> Result<(CertificateParams, String), CliError> {
    let mut random = [0; 20];
    getrandom::fill(&mut random).map_err(|error| CliError::Local {
        what: "no random bytes".to_owned(),
        source: std::io::Error::other(error),
    })?;
    let (serial, tag) = random.split_at_mut(16);
    // Positive and never short (RFC 5280 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(serial));
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Outcall");
    // A name of its own: a trust store may hold this CA and the one before it.
    let tag: String = tag.iter().map(|byte| format!("{byte:02x}")).collect();
    subject.push(DnType::CommonName, format!("Outcall interception CA {tag}"));
    params.distinguished_name = subject;
    let now = SystemTime::now();
    params.not_before = now.checked_sub(BACKDATED).unwrap_or(now).into();
    params.not_after = (now + LIFE).into();
    let not_after = params.not_after.date().to_string();
    // No CA below it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    if !constrain.is_empty() {
        // A constraint on one kind of name leaves the others free, so addresses are excluded.
        let everything = [CidrSubnet::from_v4_prefix([0; 4], 0), CidrSubnet::from_v6_prefix([0; 16], 0)]
            .map(GeneralSubtree::IpAddress);
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: constrain.iter().cloned().map(GeneralSubtree::DnsName).collect(),
            excluded_subtrees: everything.into(),
        });
    }
    Ok((params, not_after))
}

fn make_directory(directory: &Path) -> Result<(), CliError> {
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(local("cannot make", directory))
}

/// Puts all files in place or none, overwriting nothing: each is written whole under another name, then linked.
fn put(directory: &Path, files: &[(&PathBuf, &[u8], u32)]) -> Result<(), CliError> {
    let mut hidden = Vec::new();
    let mut placed: Vec<&Path> = Vec::new();
    let mut work = || -> Result<(), CliError> {
        for (path, bytes, mode) in files {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let temporary = directory.join(format!(".{name}.{}.tmp", std::process::id()));
            write(&temporary, bytes, *mode, &mut hidden)?;
        }
        for ((path, ..), temporary) in files.iter().zip(&hidden) {
            // link(2) fails where a file is, and nothing is between the look and the deed.
            std::fs::hard_link(temporary, path).map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => exists(path),
                _ => local("cannot make", path)(error),
            })?;
            placed.push(path);
        }
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(local("cannot sync", directory))
    };
    let done = work();
    if done.is_err() {
        for path in placed {
            let _ = std::fs::remove_file(path);
        }
    }
    for path in hidden {
        let _ = std::fs::remove_file(path);
    }
    done
}

fn write(path: &Path, bytes: &[u8], mode: u32, made: &mut Vec<PathBuf>) -> Result<(), CliError> {
    // `create_new` follows no link and takes no file that somebody else made.
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(local("cannot make", path))?;
    made.push(path.to_owned());
    // The umask may have taken from it.
    file.set_permissions(Permissions::from_mode(mode))
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.sync_all())
        .map_err(local("cannot write", path))
}

fn exists(path: &Path) -> CliError {
    CliError::Unsuccessful(format!(
        "{} exists and is left alone, nothing was made; choose another directory with --out, or move both files away",
        path.display()
    ))
}

fn local(what: &'static str, path: &Path) -> impl Fn(std::io::Error) -> CliError {
    move |source| CliError::Local { what: format!("{what} {}", path.display()), source }
}

fn failed(error: rcgen::Error) -> CliError {
    CliError::Unsuccessful(format!("the CA cannot be made: {error}"))
}
