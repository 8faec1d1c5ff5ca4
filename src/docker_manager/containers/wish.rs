//! What a caller wants of a new container, checked: limits, names, texts. Pure; neither Docker nor the host is asked.
//!
//! Owns: every rule about the request that needs no look at the host. Does not own: where a bind leads (`binds`).

use std::path::PathBuf;

use super::super::DockerFailure;
use super::super::network_ops::failure;
use crate::api::{ContainerCreate, Environment};
use crate::network;

/// Who a container's process is unless told otherwise: `nobody` of distroless images.
const DEFAULT_USER: u32 = 65532;
/// The largest user and group id that the Engine takes: 2³¹-1.
const ID_MAX: u32 = i32::MAX as u32;
/// Bytes of memory unless told otherwise, and the least: the Engine's own minimum.
const MEMORY_DEFAULT: u64 = 512 << 20;
const MEMORY_MIN: u64 = 6 << 20;
/// CPU weight unless told otherwise, the least and the most (cgroup v1 `cpu.shares`).
const CPU_SHARES_DEFAULT: i64 = 1024;
const CPU_SHARES: std::ops::RangeInclusive<i64> = 2..=262_144;
/// Entries of a list in a request: the body is 64 KiB, and each entry costs the Engine a mount or a line.
const VOLUMES_MAX: usize = 64;
const ENTRIES_MAX: usize = 1024;
/// Characters of a container's name: a DNS label's 63 would be too few for names in use, more than this is no name.
const NAME_MAX: usize = 128;
/// Characters of an image reference: registry, path, tag and digest.
const IMAGE_MAX: usize = 512;
/// Variables that steer a client past or to the proxy. Some clients read them in any mix of cases.
pub(super) const PROXY_VARIABLES: [&str; 6] =
    ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "NO_PROXY", "no_proxy"];
/// Variables by which clients find the certificates they trust.
pub(super) const CA_VARIABLES: [&str; 9] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "PIP_CERT",
    "DENO_CERT",
];
/// Paths in the container that no volume may take, hold or lie in.
const RESERVED_TARGETS: [(&str, &str); 4] = [
    (super::AGENT_SOCKET_TARGET, "the agents' socket"),
    (super::SHIM_TARGET, "the shim"),
    ("/etc/resolv.conf", "the resolver's configuration"),
    (super::CA_TARGET, "the certificates"),
];

/// A checked request.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) image: String,
    /// Docker's name of the network.
    pub(super) network: String,
    pub(super) name: String,
    /// `UID:GID`, both given: the Engine adds the image's supplementary groups only where the group is left out.
    pub(super) user: String,
    pub(super) memory: i64,
    pub(super) cpu_shares: i64,
    pub(super) env: Environment,
    pub(super) cmd: Option<Vec<String>>,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) working_dir: Option<String>,
    pub(super) volumes: Vec<Volume>,
    pub(super) helpers: Option<bool>,
    pub(super) interactive: bool,
    pub(super) tty: bool,
    pub(super) read_only: bool,
}

/// One entry of `volumes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) source: Source,
    pub(super) target: String,
    pub(super) read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// An absolute path of the host, as given.
    Path(PathBuf),
    /// A volume of Docker's.
    Named(String),
}

impl Wish {
    /// Checks `request`; `fresh` is the name of a container that was given none, `trusts_ca` whether the daemon has a CA
    /// that containers trust.
    ///
    /// # Errors
    /// 400, saying what is accepted.
    pub(super) fn check(request: ContainerCreate, fresh: String, trusts_ca: bool) -> Result<Wish, DockerFailure> {
        Wish::checked(request, fresh, trusts_ca).map_err(|reason| failure(400, reason))
    }

    fn checked(request: ContainerCreate, fresh: String, trusts_ca: bool) -> Result<Wish, String> {
        let memory = request.memory_limit.map_or(MEMORY_DEFAULT, |limit| limit.0);
        if memory < MEMORY_MIN {
            return Err(format!("memory_limit is {memory} bytes; at least {MEMORY_MIN} (6 MiB) are accepted"));
        }
        let memory = i64::try_from(memory).map_err(|_| format!("memory_limit {memory} is more than there can be"))?;
        let cpu_shares = request.cpu_shares.unwrap_or(CPU_SHARES_DEFAULT);
        if !CPU_SHARES.contains(&cpu_shares) {
            let (least, most) = (CPU_SHARES.start(), CPU_SHARES.end());
            return Err(format!("cpu_shares is {cpu_shares}; {least} to {most} are accepted"));
        }
        if request.volumes.len() > VOLUMES_MAX {
            return Err(format!("{} volumes; at most {VOLUMES_MAX} are accepted", request.volumes.len()));
        }
        let volumes: Vec<Volume> = request.volumes.iter().map(|text| volume(text)).collect::<Result<_, _>>()?;
        for (index, one) in volumes.iter().enumerate() {
            if volumes[..index].iter().any(|other| other.target == one.target) {
                return Err(format!("two volumes have the target {}", one.target));
            }
            if request.read_only && one.target == "/tmp" {
                return Err("with read_only there is a tmpfs at /tmp: no volume can have that target".to_owned());
            }
        }
        environment(&request.env, trusts_ca)?;
        let name = request.name.unwrap_or(fresh);
        container_name(&name)?;
        image_reference(&request.image)?;
        Ok(Wish {
            network: network::network_name(request.network.as_deref())?,
            name,
            image: request.image,
            user: user(request.user.as_deref())?,
            memory,
            cpu_shares,
            cmd: words("cmd", request.cmd.map(|words| words.0))?,
            entrypoint: words("entrypoint", request.entrypoint.map(|words| words.0))?,
            working_dir: request.working_dir.map(|path| inside("working_dir", &path)).transpose()?,
            env: request.env,
            volumes,
            helpers: request.include_outcall_helper_mounts,
            interactive: request.interactive,
            tty: request.tty,
            read_only: request.read_only,
        })
    }
}

/// Docker's rule for names.
fn container_name(name: &str) -> Result<(), String> {
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let good = (2..=NAME_MAX).contains(&name.len())
        && name.bytes().all(rest)
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    if good {
        return Ok(());
    }
    Err(format!(
        "container name {:?} is not 2 to {NAME_MAX} of A-Z a-z 0-9 _ . - beginning with a letter or digit",
        shown(name)
    ))
}

/// An image reference is part of a path of the Engine's API: only its own characters, and no dots that climb.
pub(super) fn image_reference(image: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@+".contains(&byte);
    let good = (1..=IMAGE_MAX).contains(&image.len())
        && image.bytes().all(plain)
        && image.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && image.split('/').all(|part| !part.is_empty() && !part.contains(".."));
    if good { Ok(()) } else { Err(format!("image {:?} is no image reference", shown(image))) }
}

fn user(text: Option<&str>) -> Result<String, String> {
    let Some(text) = text else { return Ok(format!("{DEFAULT_USER}:{DEFAULT_USER}")) };
    let id = |text: &str| {
        let digits = (1..=10).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u32>().ok().filter(|id| digits && (1..=ID_MAX).contains(id))
    };
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    match (id(uid), id(gid)) {
        (Some(uid), Some(gid)) => Ok(format!("{uid}:{gid}")),
        _ => Err(format!(
            "user {:?} is not UID or UID:GID; numbers from 1 to {ID_MAX} are accepted, no names and not root",
            shown(text)
        )),
    }
}

fn words(field: &str, words: Option<Vec<String>>) -> Result<Option<Vec<String>>, String> {
    let Some(words) = words else { return Ok(None) };
    if words.len() > ENTRIES_MAX {
        return Err(format!("{field} has {} words; at most {ENTRIES_MAX} are accepted", words.len()));
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(format!("{field} has a NUL character in it"));
    }
    Ok(Some(words))
}

/// No message here shows a value.
fn environment(env: &Environment, trusts_ca: bool) -> Result<(), String> {
    if env.0.len() > ENTRIES_MAX {
        return Err(format!("{} environment variables; at most {ENTRIES_MAX} are accepted", env.0.len()));
    }
    for (index, (name, value)) in env.0.iter().enumerate() {
        let good = (1..=256).contains(&name.len()) && !name.chars().any(|c| c == '=' || c.is_control());
        if !good {
            return Err(format!("env: the name of entry {} is empty, too long, or has `=` or controls", index + 1));
        }
        if value.contains('\0') {
            return Err(format!("env: the value of {name} has a NUL character in it"));
        }
        if env.0[..index].iter().any(|(other, _)| other == name) {
            return Err(format!("env: {name} is given twice"));
        }
        let ours = |names: &[&str]| names.iter().any(|ours| ours.eq_ignore_ascii_case(name));
        if ours(&PROXY_VARIABLES) {
            return Err(format!("env: {name} is set by outcalld and cannot be overridden"));
        }
        if trusts_ca && ours(&CA_VARIABLES) {
            return Err(format!("env: {name} is set by outcalld, whose CA containers trust, and cannot be overridden"));
        }
    }
    Ok(())
}

/// `SOURCE:TARGET[:ro|rw]`
fn volume(text: &str) -> Result<Volume, String> {
    let wrong = |why: &str| format!("volume {:?}: {why}; SOURCE:TARGET[:ro|rw] is accepted", shown(text));
    let mut parts = text.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else { return Err(wrong("it has no target")) };
    let read_only = match (parts.next(), parts.next()) {
        (None, _) | (Some("rw"), None) => false,
        (Some("ro"), None) => true,
        _ => return Err(wrong("its options are not `ro` or `rw`")),
    };
    if text.chars().any(char::is_control) {
        return Err(wrong("it has control characters"));
    }
    let source = if source.starts_with('/') {
        Source::Path(PathBuf::from(source))
    } else if volume_name(source) {
        Source::Named(source.to_owned())
    } else {
        return Err(wrong("its source is neither an absolute path of the host nor the name of a volume"));
    };
    let target = inside("target", target).map_err(|reason| wrong(&reason))?;
    // The usual link of distributions, which an image may have.
    let effective = target.strip_prefix("/var/run").map_or(target.clone(), |rest| format!("/run{rest}"));
    for (reserved, what) in RESERVED_TARGETS {
        let (effective, reserved) = (std::path::Path::new(&effective), std::path::Path::new(reserved));
        if reserved.starts_with(effective) || effective.starts_with(reserved) {
            return Err(wrong(&format!("its target would shadow {what} at {}", reserved.display())));
        }
    }
    Ok(Volume { source, target, read_only })
}

/// Docker's rule for names of volumes.
fn volume_name(name: &str) -> bool {
    (2..=NAME_MAX).contains(&name.len())
        && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// An absolute path in the container, in its one plain form.
fn inside(field: &str, path: &str) -> Result<String, String> {
    if !path.starts_with('/') || path.chars().any(char::is_control) || path.len() > 4096 {
        return Err(format!("{field} {:?} is no absolute path", shown(path)));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(format!("{field} {:?} has `..` in it", shown(path)));
    }
    Ok(format!("/{}", parts.join("/")))
}

fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::MemoryLimit;

    fn request(change: impl FnOnce(&mut ContainerCreate)) -> Result<Wish, String> {
        let mut request = ContainerCreate { image: "lab/busybox".to_owned(), ..ContainerCreate::default() };
        change(&mut request);
        Wish::check(request, "outcall-0123abcd".to_owned(), true).map_err(|failure| failure.message)
    }

    #[test]
    fn the_defaults_are_the_contracts() {
        let wish = request(|_| ()).unwrap();
        assert_eq!((wish.name.as_str(), wish.network.as_str()), ("outcall-0123abcd", "outcall-default"));
        assert_eq!((wish.user.as_str(), wish.memory, wish.cpu_shares), ("65532:65532", 536_870_912, 1024));
    }

    #[test]
    fn users_are_numbers_and_never_root() {
        for (text, expected) in [("1000", "1000:1000"), ("1000:7", "1000:7"), ("2147483647", "2147483647:2147483647")] {
            assert_eq!(request(|r| r.user = Some(text.to_owned())).unwrap().user, expected);
        }
        for bad in
            ["0", "root", "1000:0", "0:0", "00", "", ":", "1:", ":1", "+5", "-1", "4294967296", "2147483648", "1:2:3"]
        {
            assert!(request(|r| r.user = Some(bad.to_owned())).unwrap_err().contains("user"), "{bad}");
        }
    }

    #[test]
    fn limits_have_minimums() {
        let memory = |bytes| request(|r| r.memory_limit = Some(MemoryLimit(bytes)));
        assert_eq!(memory(6 << 20).unwrap().memory, 6 << 20);
        assert!(memory((6 << 20) - 1).unwrap_err().contains("6 MiB"));
        assert!(memory(u64::MAX).is_err());
        for (shares, good) in [(2, true), (1, false), (0, false), (-1, false), (262_144, true), (262_145, false)] {
            assert_eq!(request(|r| r.cpu_shares = Some(shares)).is_ok(), good, "{shares}");
        }
    }

    #[test]
    fn our_variables_cannot_be_overridden_in_any_case() {
        let env = |name: &str| request(|r| r.env = Environment(vec![(name.to_owned(), "hunter2".to_owned())]));
        for name in ["HTTP_PROXY", "https_proxy", "Http_Proxy", "NO_PROXY", "no_proxy", "SSL_CERT_FILE", "DENO_CERT"] {
            let error = env(name).unwrap_err();
            assert!(error.contains(name) && !error.contains("hunter2"), "{error}");
        }
        for bad in ["", "A=B", "A\nB"] {
            assert!(!env(bad).unwrap_err().contains("hunter2"));
        }
        assert!(env("API_KEY").is_ok());
    }

    #[test]
    fn volumes_are_parsed_and_shadow_nothing() {
        assert_eq!(
            volume("/srv/a:/data/./x/:ro"),
            Ok(Volume { source: Source::Path("/srv/a".into()), target: "/data/x".to_owned(), read_only: true })
        );
        assert!(matches!(volume("cache:/c").unwrap().source, Source::Named(name) if name == "cache"));
        for target in [
            "/",
            "/run",
            "/run/outcall",
            "/run/outcall/agent.sock",
            "/var/run/outcall",
            "/var/run",
            "//run//outcall/",
            "/usr/local/bin/outcall",
            "/usr/local/bin",
            "/usr",
            "/etc",
            "/etc/resolv.conf",
            "/etc/outcall",
            "/etc/outcall/ca/bundle.pem",
            "/run/./outcall",
        ] {
            assert!(volume(&format!("/srv/a:{target}")).unwrap_err().contains("shadow"), "{target}");
        }
        for bad in [
            "",
            "/a",
            ":/b",
            "a:/b",
            "./a:/b",
            "../a:/b",
            "/a:b",
            "/a:",
            "/a:/b:x",
            "/a:/b:ro:x",
            "/a:/b/../run",
            "/a:/b:",
            "a/b:/c",
            "/a\n:/b",
            "/a:/b:rshared",
        ] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        assert!(volume("/a:/runtime").is_ok() && volume("/a:/etc/outcallx").is_ok());
        let twice = request(|r| r.volumes = vec!["/a:/x".to_owned(), "/b:/x/".to_owned()]);
        assert!(twice.unwrap_err().contains("two volumes"));
    }

    #[test]
    fn names_and_images_are_plain() {
        for bad in ["", "a", "-a", ".a", "a b", "a/b", "ä-1", &"a".repeat(129)] {
            assert!(request(|r| r.name = Some(bad.to_owned())).is_err(), "{bad}");
        }
        for good in ["alpine", "alpine:3.20", "r.example:5000/a/b_c:t", "sha256:00ff", "a@sha256:00ff"] {
            assert!(image_reference(good).is_ok(), "{good}");
        }
        for bad in ["", "../x", "a/../b", "a//b", "/a", "a?b", "a b", "a%2e", "a\n", "-a", "a/"] {
            assert!(image_reference(bad).is_err(), "{bad}");
        }
        assert!(request(|r| r.network = Some("x y".to_owned())).is_err());
        assert!(request(|r| r.working_dir = Some("tmp".to_owned())).is_err());
    }
}
