//! The command line: what is asked of the daemon, and what is run when it says yes. Pure.

use std::ffi::OsString;

use serde_json::{Map, Value};

use crate::api::{ActionType, PermissionCheck};

/// Shown for `--help` and after a mistake.
pub const USAGE: &str = "\
usage: outcall bash|sh|shell COMMAND...    ask, then run the command with a shell
       outcall exec TOOL [ARGUMENT...]     ask, then run the tool
       outcall TOOL [ARGUMENT...]          the same, for any word that is not listed here
       outcall fetch|http|https|curl|wget URL [METHOD]
                                           ask whether a request may be made
       outcall file|read|write PATH        ask whether a file may be used
exit:  0 allowed and done, 1 denied, 2 bad arguments, 5 no verdict and nothing run,
       else the exit code of the command (128+N when signal N ended it)
environment: OUTCALL_TIMEOUT_SECS, how long to wait for the daemon (default 30);
       OUTCALL_AGENT_SOCKET, its socket (default /run/outcall/agent.sock)";

/// What the command line means.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Ask, and maybe run.
    Ask(Ask),
    /// `--help`
    Help,
    /// `--version`
    Version,
}

/// One question, and what follows a yes.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Sent to the daemon.
    pub check: PermissionCheck,
    /// The program and its arguments; `None`: nothing is run.
    pub run: Option<Vec<String>>,
}

/// A command line or an environment that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UsageError {
    /// No word at all.
    Nothing,
    /// A command that lacks what it acts on.
    Missing {
        /// The command.
        word: String,
        /// What is missing.
        what: &'static str,
    },
    /// More words than the command takes.
    TooMany {
        /// The command.
        word: String,
        /// The first word too many.
        extra: String,
    },
    /// An option that does not exist.
    Option(String),
    /// The daemon is asked in JSON: what is not UTF-8 could not be judged as it is run.
    NotUtf8(String),
    /// A method that is no HTTP token.
    Method(String),
    /// `OUTCALL_TIMEOUT_SECS`
    Timeout(String),
}

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            UsageError::Nothing => f.write_str("a command is missing"),
            UsageError::Missing { word, what } => write!(f, "{word}: {what} is missing"),
            UsageError::TooMany { word, extra } => write!(f, "{word}: one argument too many: {extra:?}"),
            UsageError::Option(option) => write!(f, "there is no option {option:?}"),
            UsageError::NotUtf8(argument) => {
                write!(f, "an argument is not UTF-8 and could not be judged as it would be run: {argument:?}")
            }
            UsageError::Method(method) => write!(f, "{method:?} is no HTTP method"),
            UsageError::Timeout(text) => {
                write!(f, "OUTCALL_TIMEOUT_SECS={text:?}: a number of seconds from 1 to 3600 is accepted")
            }
        }
    }
}

impl std::error::Error for UsageError {}

/// Reads `arguments`, the program's name left out.
///
/// # Errors
/// [`UsageError`]
pub fn parse(arguments: Vec<OsString>) -> Result<Command, UsageError> {
    let mut words = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let text = argument.into_string();
        words.push(text.map_err(|argument| UsageError::NotUtf8(argument.to_string_lossy().into_owned()))?);
    }
    if words.is_empty() {
        return Err(UsageError::Nothing);
    }
    let rest = words.split_off(1);
    // The vector had a first word.
    let word = words.swap_remove(0);
    let ask = match word.as_str() {
        "-h" | "--help" => return Ok(Command::Help),
        "-V" | "--version" => return Ok(Command::Version),
        "bash" | "sh" => shell(&word, &word, rest)?,
        "shell" => shell(&word, "sh", rest)?,
        "exec" => tool(&word, rest)?,
        "fetch" | "http" | "https" | "curl" | "wget" => network_call(&word, rest)?,
        "file" | "read" | "write" => file_access(&word, rest)?,
        option if option.starts_with('-') => return Err(UsageError::Option(word)),
        _ => tool("exec", std::iter::once(word).chain(rest).collect())?,
    };
    Ok(Command::Ask(ask))
}

/// `bash ls -la` runs `bash -c "ls -la"`, as ssh(1) does with its words; `bash -c "ls -la"` is taken as it is.
fn shell(word: &str, program: &str, rest: Vec<String>) -> Result<Ask, UsageError> {
    if rest.is_empty() {
        return Err(UsageError::Missing { word: word.to_owned(), what: "the command" });
    }
    let own_options = rest[0].starts_with('-');
    let mut argv = vec![program.to_owned()];
    if own_options {
        argv.extend(rest.iter().cloned());
    } else {
        argv.extend(["-c".to_owned(), rest.join(" ")]);
    }
    let check = PermissionCheck {
        action_type: ActionType::ShellExec,
        target: program.to_owned(),
        metadata: Some(run_metadata(&rest)),
    };
    Ok(Ask { check, run: Some(argv) })
}

fn tool(word: &str, argv: Vec<String>) -> Result<Ask, UsageError> {
    let Some(target) = argv.first().filter(|target| !target.is_empty()) else {
        return Err(UsageError::Missing { word: word.to_owned(), what: "the tool" });
    };
    let metadata = Some(run_metadata(&argv[1..]));
    let check = PermissionCheck { action_type: ActionType::ToolExec, target: target.clone(), metadata };
    Ok(Ask { check, run: Some(argv) })
}

fn network_call(word: &str, rest: Vec<String>) -> Result<Ask, UsageError> {
    let mut rest = rest.into_iter();
    let url = rest.next().ok_or_else(|| UsageError::Missing { word: word.to_owned(), what: "the URL" })?;
    if url.starts_with('-') {
        return Err(UsageError::Option(url));
    }
    let method = rest.next().unwrap_or_else(|| "GET".to_owned());
    let letters = !method.is_empty() && method.bytes().all(|byte| byte.is_ascii_alphabetic());
    if !letters {
        return Err(UsageError::Method(method));
    }
    if let Some(extra) = rest.next() {
        return Err(UsageError::TooMany { word: word.to_owned(), extra });
    }
    let target = match word {
        "http" | "https" if !url.contains("://") => format!("{word}://{url}"),
        _ => url,
    };
    let metadata = Map::from_iter([("method".to_owned(), Value::String(method.to_ascii_uppercase()))]);
    let check = PermissionCheck { action_type: ActionType::NetworkCall, target, metadata: Some(metadata) };
    Ok(Ask { check, run: None })
}

fn file_access(word: &str, rest: Vec<String>) -> Result<Ask, UsageError> {
    let mut rest = rest.into_iter();
    let path = rest.next().ok_or_else(|| UsageError::Missing { word: word.to_owned(), what: "the path" })?;
    if let Some(extra) = rest.next() {
        return Err(UsageError::TooMany { word: word.to_owned(), extra });
    }
    let mut metadata = Map::new();
    if word != "file" {
        metadata.insert("operation".to_owned(), Value::String(word.to_owned()));
    }
    insert_cwd(&mut metadata);
    let check = PermissionCheck { action_type: ActionType::FileAccess, target: path, metadata: Some(metadata) };
    Ok(Ask { check, run: None })
}

fn run_metadata(arguments: &[String]) -> Map<String, Value> {
    let list = Value::Array(arguments.iter().cloned().map(Value::String).collect());
    let mut metadata = Map::from_iter([("args_json".to_owned(), Value::String(list.to_string()))]);
    insert_cwd(&mut metadata);
    metadata
}

/// A directory that is gone or not UTF-8 is left out: rules that ask for it then do not match.
fn insert_cwd(metadata: &mut Map<String, Value>) {
    let cwd = std::env::current_dir().ok().and_then(|cwd| cwd.into_os_string().into_string().ok());
    if let Some(cwd) = cwd {
        metadata.insert("cwd".to_owned(), Value::String(cwd));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    fn read(words: &[&str]) -> Result<Command, UsageError> {
        parse(words.iter().map(OsString::from).collect())
    }

    fn ask(words: &[&str]) -> Ask {
        match read(words) {
            Ok(Command::Ask(ask)) => ask,
            other => panic!("{words:?}: {other:?}"),
        }
    }

    fn meta(ask: &Ask, key: &str) -> Option<String> {
        ask.check.metadata.as_ref()?.get(key)?.as_str().map(str::to_owned)
    }

    #[test]
    fn shells_run_their_words_as_one_command() {
        let asked = ask(&["bash", "ls", "-la"]);
        assert_eq!(asked.check.action_type, ActionType::ShellExec);
        assert_eq!(asked.check.target, "bash");
        assert_eq!(meta(&asked, "args_json").unwrap(), r#"["ls","-la"]"#);
        assert_eq!(asked.run.unwrap(), ["bash", "-c", "ls -la"]);
        assert_eq!(ask(&["bash", "-c", "ls -la"]).run.unwrap(), ["bash", "-c", "ls -la"]);
        let asked = ask(&["shell", "true"]);
        assert_eq!((asked.check.target.as_str(), asked.run.unwrap()[0].as_str()), ("sh", "sh"));
    }

    #[test]
    fn any_other_word_is_a_tool() {
        for asked in [ask(&["exec", "git", "push", "--force"]), ask(&["git", "push", "--force"])] {
            assert_eq!(asked.check.action_type, ActionType::ToolExec);
            assert_eq!(asked.check.target, "git");
            assert_eq!(meta(&asked, "args_json").unwrap(), r#"["push","--force"]"#);
            assert_eq!(asked.run.unwrap(), ["git", "push", "--force"]);
        }
        assert_eq!(ask(&["exec", "bash"]).check.action_type, ActionType::ToolExec);
    }

    #[test]
    fn network_calls_and_files_are_only_asked_about() {
        let asked = ask(&["fetch", "https://example.com/x"]);
        assert_eq!((asked.check.action_type, asked.run.as_ref()), (ActionType::NetworkCall, None));
        assert_eq!(meta(&asked, "method").unwrap(), "GET");
        assert_eq!(meta(&ask(&["curl", "https://example.com", "post"]), "method").unwrap(), "POST");
        assert_eq!(ask(&["https", "example.com"]).check.target, "https://example.com");
        assert_eq!(ask(&["wget", "example.com"]).check.target, "example.com");
        let asked = ask(&["write", "/etc/passwd"]);
        assert_eq!((asked.check.action_type, asked.run.as_ref()), (ActionType::FileAccess, None));
        assert_eq!(meta(&asked, "operation").unwrap(), "write");
        assert_eq!(meta(&ask(&["file", "x"]), "operation"), None);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(read(&[]), Err(UsageError::Nothing));
        assert_eq!(read(&["--help"]), Ok(Command::Help));
        assert_eq!(read(&["--frobnicate"]), Err(UsageError::Option("--frobnicate".to_owned())));
        for words in [&["bash"][..], &["exec"], &["exec", ""], &["fetch"], &["read"], &[""]] {
            assert!(matches!(read(words), Err(UsageError::Missing { .. })), "{words:?}");
        }
        assert!(matches!(read(&["fetch", "http://x", "GET", "y"]), Err(UsageError::TooMany { .. })));
        assert!(matches!(read(&["curl", "-s", "http://x"]), Err(UsageError::Option(_))));
        assert!(matches!(read(&["fetch", "http://x", "G T"]), Err(UsageError::Method(_))));
        let odd = parse(vec!["exec".into(), OsString::from_vec(vec![0xff])]);
        assert!(matches!(odd, Err(UsageError::NotUtf8(_))));
    }
}
