//! `dynamic-rules.json`: the flows that operators opened by hand, on disk.
//!
//! Owns: the file, its shape and its caps. Does not own: whether such a flow may be opened, or is open
//! ([`crate::bridge`]).

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::bridge::{MAX_OPERATED, OperatorGrant, OwnedFlow, Protocol};

use super::disk::{self, Disk};

const FILE: &str = "dynamic-rules.json";
const VERSION: u32 = 1;
/// Bytes read of it: a record is some 300.
const FILE_MAX: u64 = 1024 * 1024;
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
/// Hex digits of a container's id.
const CONTAINER_ID: usize = 64;

/// The file's shape.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    grants: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    container_id: String,
    container: String,
    src_ip: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: String,
    port: u16,
    /// Seconds since 1970, as the next.
    inserted_at: u64,
    expires_at: u64,
}

/// The grants and their file.
pub struct DynamicRules {
    disk: Box<dyn Disk>,
    file: PathBuf,
    grants: Result<Vec<OperatorGrant>, String>,
    /// The file holds more than is in force: the last change was not written.
    behind: bool,
}

impl DynamicRules {
    /// Reads the file of `state`. Never fails: a damaged file is set aside with its bytes; the second part holds what
    /// the operator should hear, one line each. `now_secs` (since 1970) names the file that is set aside.
    #[must_use]
    pub fn open(mut disk: Box<dyn Disk>, state: &Path, now_secs: u64) -> (Self, Vec<String>) {
        let file = state.join(FILE);
        let mut said = Vec::new();
        let grants = read(disk.as_mut(), &file, now_secs, &mut said);
        if let Err(why) = &grants {
            said.push(format!("grants by hand are not taken: {why}"));
        }
        (DynamicRules { disk, file, grants, behind: false }, said)
    }

    /// What is kept and has not expired.
    #[must_use]
    pub fn kept(&self, now: SystemTime) -> Vec<OperatorGrant> {
        let grants = self.grants.as_deref().unwrap_or_default();
        grants.iter().filter(|grant| grant.expires_at > now).cloned().collect()
    }

    /// Whether grants can be kept.
    ///
    /// # Errors
    /// Why not.
    pub fn usable(&self) -> Result<(), String> {
        self.grants.as_ref().map(drop).map_err(Clone::clone)
    }

    /// Keeps a grant, instead of an earlier one of the same flow; it is durable when this returns.
    ///
    /// # Errors
    /// What was not written, and why; what is kept is as before.
    pub fn keep(&mut self, grant: OperatorGrant, now: SystemTime) -> Result<(), String> {
        self.usable()?;
        let mut next = self.kept(now);
        next.retain(|other| other.flow != grant.flow);
        next.push(grant);
        self.write(&next)?;
        self.grants = Ok(next);
        Ok(())
    }

    /// Forgets grants; durable when this returns.
    ///
    /// # Errors
    /// What was not written, and why: they are forgotten all the same, and the file follows with the next change.
    pub fn forget(&mut self, flows: &[OwnedFlow], now: SystemTime) -> Result<(), String> {
        let mut next = self.kept(now);
        let before = next.len();
        next.retain(|grant| !flows.contains(&grant.flow));
        if next.len() == before && !self.behind {
            return Ok(());
        }
        self.shrink(next)
    }

    /// Forgets all of them.
    ///
    /// # Errors
    /// As [`DynamicRules::forget`].
    pub fn clear(&mut self) -> Result<(), String> {
        if self.grants.as_ref().is_ok_and(Vec::is_empty) && !self.behind {
            return Ok(());
        }
        self.shrink(Vec::new())
    }

    fn shrink(&mut self, next: Vec<OperatorGrant>) -> Result<(), String> {
        self.usable()?;
        let written = self.write(&next);
        self.behind = written.is_err();
        self.grants = Ok(next);
        written
    }

    fn write(&mut self, grants: &[OperatorGrant]) -> Result<(), String> {
        let failed = |error: std::io::Error| format!("cannot write {}: {error}", self.file.display());
        let file = File { version: VERSION, grants: grants.iter().map(Record::from).collect() };
        let mut bytes = serde_json::to_vec(&file).map_err(|error| failed(error.into()))?;
        bytes.push(b'\n');
        if let Some(directory) = self.file.parent() {
            disk::make_directory(directory, DIRECTORY_MODE).map_err(failed)?;
        }
        disk::replace(self.disk.as_mut(), &self.file, &bytes, FILE_MODE).map_err(failed)
    }
}

fn read(disk: &mut dyn Disk, file: &Path, now_secs: u64, said: &mut Vec<String>) -> Result<Vec<OperatorGrant>, String> {
    let parsed = match disk::read(file, FILE_MAX) {
        Ok(None) => return Ok(Vec::new()),
        Ok(Some(bytes)) => parse(&bytes),
        Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => Err(error.to_string()),
        Err(error) => return Err(format!("cannot read {}: {error}", file.display())),
    };
    let why = match parsed {
        Ok(grants) => return Ok(grants),
        Err(why) => why,
    };
    let kept = disk::set_aside(disk, file, now_secs)
        .map_err(|error| format!("{} is damaged ({why}) and cannot be set aside: {error}", file.display()))?;
    let (file, kept) = (file.display(), kept.display());
    said.push(format!("{file} is damaged ({why}); its bytes are kept in {kept}, and the grants in it are gone"));
    Ok(Vec::new())
}

fn parse(bytes: &[u8]) -> Result<Vec<OperatorGrant>, String> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if file.version != VERSION {
        return Err(format!("version {} is not {VERSION}", file.version));
    }
    if file.grants.len() > MAX_OPERATED {
        return Err(format!("more than {MAX_OPERATED} grants"));
    }
    file.grants.into_iter().enumerate().map(|(at, record)| record.checked().ok_or(format!("grant {at}"))).collect()
}

impl Record {
    fn checked(self) -> Option<OperatorGrant> {
        let id = &self.container_id;
        let hex = id.len() == CONTAINER_ID && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let time = |secs| UNIX_EPOCH.checked_add(Duration::from_secs(secs));
        let flow = OwnedFlow {
            container_id: Arc::from(id.as_str()),
            source: self.src_ip,
            destination: self.destination,
            protocol: Protocol::named(&self.protocol)?.number(),
            port: self.port,
        };
        let (inserted_at, expires_at) = (time(self.inserted_at)?, time(self.expires_at)?);
        let sound = hex && self.port != 0 && expires_at >= inserted_at;
        sound.then(|| OperatorGrant { flow, container: self.container.into(), inserted_at, expires_at })
    }
}

impl From<&OperatorGrant> for Record {
    fn from(grant: &OperatorGrant) -> Self {
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Record {
            container_id: grant.flow.container_id.to_string(),
            container: grant.container.to_string(),
            src_ip: grant.flow.source,
            destination: grant.flow.destination,
            protocol: Protocol::numbered(grant.flow.protocol).map_or("", Protocol::name).to_owned(),
            port: grant.flow.port,
            inserted_at: seconds(grant.inserted_at),
            expires_at: seconds(grant.expires_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"version":1,"grants":[{"container_id":"ID","container":"a-1","src_ip":"10.200.0.2",
        "destination":"9.9.9.9","protocol":"udp","port":53,"inserted_at":100,"expires_at":200}]}"#;

    fn text() -> String {
        TEXT.replace("ID", &"a".repeat(64))
    }

    #[test]
    fn the_file_is_read_strictly() {
        let grants = parse(text().as_bytes()).unwrap();
        assert_eq!((grants.len(), grants[0].flow.protocol, grants[0].flow.port), (1, 17, 53));
        let written = serde_json::to_string(&File { version: 1, grants: grants.iter().map(Record::from).collect() });
        assert_eq!(parse(written.unwrap().as_bytes()).unwrap(), grants);
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("aaaa", "AAAA"),
            ("10.200.0.2", "::1"),
            ("udp", "icmp"),
            ("53", "0"),
            ("53", "65536"),
            ("200}", "99}"),
            ("200}", "200,\"more\":1}"),
            ("]}", "]"),
        ] {
            assert!(parse(text().replacen(from, to, 1).as_bytes()).is_err(), "{from} -> {to}");
        }
        assert!(parse(b"").is_err());
    }

    #[test]
    fn no_more_than_the_cap_is_read() {
        let grant = text();
        let (start, end) = (grant.find('[').unwrap() + 1, grant.find(']').unwrap());
        let many = vec![&grant[start..end]; MAX_OPERATED + 1].join(",");
        assert!(parse(format!("{{\"version\":1,\"grants\":[{many}]}}").as_bytes()).is_err());
    }
}
