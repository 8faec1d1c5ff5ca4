//! `/api/v1/container…`

use std::fmt;

use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What stands in the place of every environment value that leaves the daemon.
pub const REDACTED: &str = "<redacted>";

/// `POST /container/create`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerCreate {
    /// Name, id or digest of an image that is on the host.
    pub image: String,
    /// Suffix or whole name of a managed network; absent: `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Absent: `outcall-` and 8 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `UID` or `UID:GID`, numbers other than 0; absent: `65532:65532`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Bytes, or text with `b`, `k`, `m` or `g`; absent: 512 MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<MemoryLimit>,
    /// Relative weight; absent: 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<i64>,
    /// `["NAME=value"]` or `{"NAME":"value"}`.
    #[serde(default, skip_serializing_if = "Environment::is_empty")]
    pub env: Environment,
    /// Arguments; absent: the image's. A text is one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Words>,
    /// Program and its first arguments; absent: the image's. A text is one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Words>,
    /// Absolute path in the container; absent: the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// `SOURCE:TARGET[:ro|rw]`; SOURCE is an absolute path of the host, or the name of a volume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// The agent socket and the shim; absent: yes where outcalld runs on the host, no where it runs in a container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_outcall_helper_mounts: Option<bool>,
    /// Keep standard input open.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interactive: bool,
    /// Give it a terminal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// A read-only root, with a tmpfs at `/tmp`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// The answer to [`ContainerCreate`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerCreated {
    /// Docker's id, 64 hex digits.
    pub container_id: String,
    /// The name, given or made up.
    pub name: String,
    /// Always `true`: what was not made is an error.
    pub created: bool,
    /// What a caller should know: ports that stay closed, warnings of Docker.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// `POST /container/stop`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerStop {
    /// Name or id.
    pub name: String,
    /// Seconds before it is killed, 0 to 300; absent: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
}

/// The answer to [`ContainerStop`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStopped {
    /// The container's name.
    pub name: String,
    /// `false` when it did not run.
    pub stopped: bool,
}

/// `POST /container/remove`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerRemove {
    /// Name or id.
    pub name: String,
    /// Kill it first if it runs.
    #[serde(default)]
    pub force: bool,
}

/// The answer to [`ContainerRemove`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRemoved {
    /// The name that it had.
    pub name: String,
    /// Always `true`: what was not removed is an error.
    pub removed: bool,
}

/// `POST /container/pull`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerPull {
    /// Name with a tag or digest; without one: `latest`.
    pub image: String,
}

/// The answer to [`ContainerPull`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPulled {
    /// As it was asked for.
    pub image: String,
    /// Always `true`: what was not pulled is an error.
    pub pulled: bool,
}

/// One container of `GET /containers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSummary {
    /// Docker's id, 64 hex digits.
    pub container_id: String,
    /// Without Docker's leading slash.
    pub name: String,
    /// As it was named when the container was made.
    pub image: String,
    /// Docker's word: `running`, `exited`, …
    pub state: String,
    /// Whole name of its managed network.
    pub network: String,
    /// RFC 3339.
    pub created_at: String,
}

/// `GET /container?name=`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerDetail {
    /// What the list says.
    #[serde(flatten)]
    pub summary: ContainerSummary,
    /// On its network, while it runs.
    pub ip_address: Option<String>,
    /// What is mounted into it.
    pub mounts: Vec<ContainerMount>,
    /// `NAME=<redacted>`
    pub env: Vec<String>,
}

/// A mount of [`ContainerDetail`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerMount {
    /// Path on the host, or the volume's.
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Whether the container cannot write there.
    pub read_only: bool,
}

/// An amount of memory in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct MemoryLimit(pub u64);

impl std::str::FromStr for MemoryLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let accepted = || "bytes are accepted, or a whole number with b, k, m or g".to_owned();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text.get(..digits).and_then(|digits| digits.parse().ok()).ok_or_else(accepted)?;
        let shift = match text.get(digits..).unwrap_or_default().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            _ => return Err(accepted()),
        };
        number.checked_mul(1 << shift).map(MemoryLimit).ok_or_else(accepted)
    }
}

impl<'de> Deserialize<'de> for MemoryLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Limit;
        impl Visitor<'_> for Limit {
            type Value = MemoryLimit;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes, or text such as \"512m\"")
            }
            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<MemoryLimit, E> {
                Ok(MemoryLimit(bytes))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<MemoryLimit, E> {
                text.parse().map_err(|reason| E::custom(format!("memory_limit: {reason}")))
            }
        }
        deserializer.deserialize_any(Limit)
    }
}

/// Words of a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Words(pub Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Words;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of words, or one word")
            }
            fn visit_str<E>(self, text: &str) -> Result<Words, E> {
                Ok(Words(vec![text.to_owned()]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Words, A::Error> {
                let mut words = Vec::new();
                while let Some(word) = items.next_element()? {
                    words.push(word);
                }
                Ok(Words(words))
            }
        }
        deserializer.deserialize_any(List)
    }
}

/// Environment variables in order. `Debug` and errors show names only: values may be secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(pub Vec<(String, String)>);

impl Environment {
    /// True when there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(name, _)| (name, REDACTED))).finish()
    }
}

impl Serialize for Environment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|(name, value)| format!("{name}={value}")))
    }
}

impl<'de> Deserialize<'de> for Environment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Read by hand: serde's own errors quote the text that they do not like, which may be a value.
        struct Variables;
        const WANTED: &str = "env is [\"NAME=value\", …] or {\"NAME\":\"value\", …}, all of it text";
        impl<'de> Visitor<'de> for Variables {
            type Value = Environment;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(WANTED)
            }
            fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Environment, E> {
                Err(E::custom(WANTED))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Environment, A::Error> {
                let mut variables = Vec::new();
                while let Some(item) = items.next_element::<serde_json::Value>()? {
                    let number = variables.len() + 1;
                    let text = item.as_str().ok_or_else(|| A::Error::custom(WANTED))?;
                    let (name, value) = text
                        .split_once('=')
                        .ok_or_else(|| A::Error::custom(format!("env: entry {number} has no `=`")))?;
                    variables.push((name.to_owned(), value.to_owned()));
                }
                Ok(Environment(variables))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Environment, A::Error> {
                let mut variables = Vec::new();
                while let Some((name, value)) = entries.next_entry::<String, serde_json::Value>()? {
                    let value = value.as_str().ok_or_else(|| A::Error::custom(WANTED))?;
                    variables.push((name, value.to_owned()));
                }
                Ok(Environment(variables))
            }
        }
        deserializer.deserialize_any(Variables)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_env_are_read_and_no_error_quotes_a_value() {
        let list: Environment = serde_json::from_str(r#"["A=1","B=x=y"]"#).unwrap();
        let map: Environment = serde_json::from_str(r#"{"A":"1","B":"x=y"}"#).unwrap();
        assert_eq!(list, map);
        assert_eq!(serde_json::to_string(&list).unwrap(), r#"["A=1","B=x=y"]"#);
        assert!(!format!("{list:?}").contains("x=y"));
        for bad in [r#"["hunter2"]"#, r#"{"A":["hunter2"]}"#, r#"[["hunter2"]]"#, r#""A=hunter2""#] {
            let error = serde_json::from_str::<Environment>(bad).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn memory_is_bytes_or_text_with_a_unit() {
        let read = |text: &str| serde_json::from_str::<MemoryLimit>(text).map(|limit| limit.0).ok();
        assert_eq!(read("6291456"), Some(6 << 20));
        assert_eq!(read("\"6m\""), Some(6 << 20));
        assert_eq!(read("\"1GiB\""), Some(1 << 30));
        for bad in ["-1", "1.5", "\"\"", "\"m\"", "\"6x\"", "\"99999999999g\"", "null"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
