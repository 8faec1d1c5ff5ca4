//! Sockets that the service manager made and passed on (sd_listen_fds(3)), so that clients wait through a restart
//! instead of failing.
//!
//! Owns: `$LISTEN_PID`, `$LISTEN_FDS`, `$LISTEN_FDNAMES` and the descriptors from 3 upwards. Does not own: the sockets'
//! files; whoever made them removes them.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};

/// The first one passed on.
const FIRST: RawFd = 3;
/// More than these are no unit of ours: there are two sockets.
const COUNT_MAX: usize = 16;

/// The sockets passed on that nobody has taken yet.
#[derive(Default)]
pub struct Inherited(Vec<(String, UnixListener)>);

impl Inherited {
    /// Takes what the environment announces; called once, before anything opens a descriptor.
    ///
    /// # Errors
    /// What is announced and is no listening Unix stream socket.
    pub fn take() -> Result<Self, String> {
        let variable = |name: &str| std::env::var(name).ok();
        let names = announced(std::process::id(), variable)?;
        let mut sockets = Vec::new();
        for (descriptor, name) in (FIRST..).zip(names) {
            let problem =
                |what: &str| format!("descriptor {descriptor} ({name}), passed on by the service manager, {what}");
            // The probe before ownership is taken: an empty slot must not be closed later as somebody else's.
            let borrowed = unsafe {
                // SAFETY: used for one fcntl, which answers EBADF for a descriptor that is not open.
                std::os::fd::BorrowedFd::borrow_raw(descriptor)
            };
            fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|_| problem("is not open"))?;
            // SAFETY: open, as just seen, and passed to this process for its own use: nothing else here owns it.
            let owned = unsafe { OwnedFd::from_raw_fd(descriptor) };
            let listening = getsockopt(&owned, sockopt::AcceptConn).unwrap_or(false);
            let stream = getsockopt(&owned, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream);
            let listener = UnixListener::from(owned);
            if !listening || !stream || listener.local_addr().is_err() {
                return Err(problem("is no listening Unix stream socket"));
            }
            sockets.push((name, listener));
        }
        Ok(Inherited(sockets))
    }

    /// The socket called `name` (FileDescriptorName=), else the one bound to `path`.
    ///
    /// # Errors
    /// One that is called so and is bound elsewhere: clients would look for it in vain.
    pub fn socket(&mut self, name: &str, path: &Path) -> Result<Option<UnixListener>, String> {
        let bound = |listener: &UnixListener| {
            listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned))
        };
        let by_name = self.0.iter().position(|(known, _)| known == name);
        let place =
            by_name.or_else(|| self.0.iter().position(|(_, listener)| bound(listener).as_deref() == Some(path)));
        let Some(place) = place else { return Ok(None) };
        let (_, listener) = self.0.remove(place);
        match bound(&listener) {
            Some(there) if there == path => Ok(Some(listener)),
            there => Err(format!(
                "the socket `{name}` passed on by the service manager is bound to {}, and the flags say {}: make both one",
                there.map_or_else(|| "no path".to_owned(), |there| there.display().to_string()),
                path.display()
            )),
        }
    }

    /// What nobody asked for, by name and descriptor; closed when this is dropped.
    pub fn left(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(name, listener)| format!("{name} ({})", listener.as_raw_fd()))
    }
}

/// The names of the sockets passed on to the process `pid`, in the order of their descriptors.
fn announced(pid: u32, variable: impl Fn(&str) -> Option<String>) -> Result<Vec<String>, String> {
    let for_us = variable("LISTEN_PID").is_some_and(|text| text == pid.to_string());
    let Some(count) = variable("LISTEN_FDS").filter(|_| for_us) else { return Ok(Vec::new()) };
    let count = count.parse().ok().filter(|count| *count <= COUNT_MAX);
    let count = count.ok_or_else(|| format!("LISTEN_FDS is no number up to {COUNT_MAX}"))?;
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names: Vec<String> = names.split(':').map(str::to_owned).collect();
    names.resize(count, "unknown".to_owned());
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pid: u32, variables: &[(&str, &str)]) -> Result<Vec<String>, String> {
        announced(pid, |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn only_what_is_announced_to_this_process_is_taken() {
        assert_eq!(told(7, &[]), Ok(vec![]));
        assert_eq!(told(7, &[("LISTEN_PID", "8"), ("LISTEN_FDS", "2")]), Ok(vec![]));
        let two = [("LISTEN_PID", "7"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "host:agent")];
        assert_eq!(told(7, &two), Ok(vec!["host".to_owned(), "agent".to_owned()]));
        assert_eq!(told(7, &two[..2]).map(|names| names.len()), Ok(2), "names are optional");
        assert!(told(7, &[("LISTEN_PID", "7"), ("LISTEN_FDS", "17")]).is_err());
        assert!(told(7, &[("LISTEN_PID", "7"), ("LISTEN_FDS", "-1")]).is_err());
    }

    #[test]
    fn a_socket_is_found_by_name_or_path_and_must_be_where_the_flags_say() {
        let path = std::env::temp_dir().join(format!("outcall-inherited-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let inherited = |name: &str| Inherited(vec![(name.to_owned(), UnixListener::bind(&path).unwrap())]);
        assert!(inherited("host").socket("host", &path).unwrap().is_some());
        std::fs::remove_file(&path).unwrap();
        assert!(inherited("unknown").socket("host", &path).unwrap().is_some());
        std::fs::remove_file(&path).unwrap();
        let mut elsewhere = inherited("host");
        let error = elsewhere.socket("host", Path::new("/run/other.sock")).unwrap_err();
        assert!(error.contains("/run/other.sock"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(inherited("x").socket("host", Path::new("/run/other.sock")).unwrap().is_none());
        std::fs::remove_file(&path).unwrap();
    }
}
