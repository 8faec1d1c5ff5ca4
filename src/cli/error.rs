//! Why a command failed, and the exit code that follows.

use std::path::PathBuf;

/// Exit code: the command failed.
pub(super) const FAILED: u8 = 1;
/// Exit code: the command asks about the CA, and none is loaded.
pub(super) const NO_CA: u8 = 6;
/// Exit code: the arguments make no sense.
pub(super) const BAD_ARGUMENTS: u8 = 2;

/// A failed command.
#[derive(Debug)]
pub enum CliError {
    /// Nobody serves the socket, or this user may not use it.
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The connection broke, or the daemon did not answer in time.
    Talk {
        /// What was asked: method and path.
        call: String,
        /// What went wrong.
        source: Box<ureq::Error>,
    },
    /// The daemon said no; the text is the daemon's.
    Refused {
        /// HTTP status.
        status: u16,
        /// The daemon's error.
        message: String,
    },
    /// No CA is loaded; the text is the daemon's.
    NoCa(String),
    /// The answer is not what this version of the command understands.
    Answer {
        /// What was asked: method and path.
        call: String,
        /// What is odd about it.
        source: serde_json::Error,
    },
    /// An argument that cannot be right.
    Argument(String),
    /// A file or program this command needs.
    Local {
        /// What was being done, to what.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The command ran, and its answer is a failure that has been printed or is in the text.
    Unsuccessful(String),
    /// Standard output cannot be written.
    Output(std::io::Error),
}

impl CliError {
    /// The process's exit code; the only place that derives it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::Argument(_) => BAD_ARGUMENTS,
            CliError::NoCa(_) => NO_CA,
            CliError::Connect { .. }
            | CliError::Talk { .. }
            | CliError::Refused { .. }
            | CliError::Answer { .. }
            | CliError::Local { .. }
            | CliError::Unsuccessful(_)
            | CliError::Output(_) => FAILED,
        }
    }
}

impl std::fmt::Display for CliError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CliError::Connect { socket, source } => {
                write!(f, "cannot connect to outcalld at {} — is it running?", socket.display())?;
                match source.kind() {
                    std::io::ErrorKind::PermissionDenied => {
                        f.write_str("\n  permission denied: run this as root, or as a member of the group outcall")
                    }
                    std::io::ErrorKind::ConnectionRefused if is_no_socket(socket) => {
                        f.write_str("\n  that is no socket: give the path of outcalld's own --socket")
                    }
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => Ok(()),
                    _ => write!(f, "\n  {source}"),
                }
            }
            CliError::Talk { call, source } => match source.as_ref() {
                ureq::Error::Timeout(_) => write!(f, "{call}: outcalld did not answer in time"),
                other => write!(f, "{call}: the connection to outcalld broke: {other}"),
            },
            CliError::Refused { message, .. } => f.write_str(message),
            CliError::Answer { call, source } => {
                write!(
                    f,
                    "{call}: outcalld gave an answer that this outcall does not understand ({source}); are both of one version?"
                )
            }
            CliError::Argument(text) | CliError::NoCa(text) | CliError::Unsuccessful(text) => f.write_str(text),
            CliError::Local { what, source } => write!(f, "{what}: {source}"),
            CliError::Output(source) => write!(f, "cannot write the output: {source}"),
        }
    }
}

/// connect(2) refuses other files as it refuses a socket that nobody serves.
fn is_no_socket(path: &std::path::Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::metadata(path).is_ok_and(|found| !found.file_type().is_socket())
}

impl std::error::Error for CliError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CliError::Connect { source, .. } | CliError::Local { source, .. } | CliError::Output(source) => {
                Some(source)
            }
            CliError::Talk { source, .. } => Some(source),
            CliError::Answer { source, .. } => Some(source),
            CliError::Refused { .. } | CliError::Argument(_) | CliError::NoCa(_) | CliError::Unsuccessful(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(kind: std::io::ErrorKind) -> String {
        CliError::Connect { socket: "/run/x.sock".into(), source: kind.into() }.to_string()
    }

    #[test]
    fn an_absent_daemon_is_named_with_its_socket() {
        let expected = "cannot connect to outcalld at /run/x.sock — is it running?";
        assert_eq!(connect(std::io::ErrorKind::NotFound), expected);
        assert_eq!(connect(std::io::ErrorKind::ConnectionRefused), expected);
        assert!(connect(std::io::ErrorKind::PermissionDenied).contains("group outcall"));
    }

    #[test]
    fn only_arguments_exit_with_two() {
        assert_eq!(CliError::Argument(String::new()).exit_code(), 2);
        assert_eq!(CliError::Refused { status: 400, message: String::new() }.exit_code(), 1);
    }
}
