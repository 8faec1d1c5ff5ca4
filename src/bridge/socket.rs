//! A plain netlink socket with deadlines: requests, dumps, transactions, subscriptions.
//!
//! Owns: the file descriptor, sequence numbers and the meaning of acknowledgements. Does not own: what is said.
//! Links go through `neli` (`links.rs`); nf_tables, conntrack and the kernel log go through here.

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::wire::{self, DONE, F_DUMP_INTR, Message, Request};

/// Seconds until an unanswered request counts as failed: the kernel answers at once; this only bounds a bug.
const ANSWER_TIMEOUT_SECS: i64 = 3;
/// Bytes of socket buffers: a full replacement with ten thousand elements, and bursts of notifications, fit.
const BUFFER_BYTES: usize = 8 << 20;
/// Bytes read at once; the kernel's dump parts are at most 32 KiB, an extended batch of the kernel log 64 KiB.
const READ_BYTES: usize = 128 << 10;
/// Dumps of a table that changes under our eyes are repeated this often before that counts as an error.
const DUMP_ATTEMPTS: u32 = 16;

/// What the kernel refused, or could not be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelError {
    /// What was attempted, to what.
    pub operation: String,
    /// The kernel's answer.
    pub errno: Errno,
}

impl KernelError {
    pub(super) fn new(operation: impl Into<String>, errno: Errno) -> Self {
        KernelError { operation: operation.into(), errno }
    }
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.operation, self.errno.desc())?;
        match self.errno {
            Errno::EPERM => write!(f, "; outcalld needs the capability CAP_NET_ADMIN"),
            Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => {
                write!(f, "; this kernel lacks it: enable or load nf_tables (CONFIG_NF_TABLES) and nfnetlink")
            }
            _ => Ok(()),
        }
    }
}

impl std::error::Error for KernelError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.errno)
    }
}

/// A message of a dump, copied out of the socket.
#[derive(Clone, Debug)]
pub(super) struct Dumped {
    pub kind: u16,
    pub payload: Vec<u8>,
}

impl Dumped {
    /// The message as if it had just been read.
    pub fn message(&self) -> Message<'_> {
        Message { kind: self.kind, flags: 0, seq: 0, port: 0, payload: &self.payload }
    }
}

/// The socket.
pub(super) struct Socket {
    fd: OwnedFd,
    port: u32,
    seq: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// A blocking socket for questions of `protocol` whose answers are short; it needs no capability.
    pub fn questions(protocol: SockProtocol) -> Result<Self, KernelError> {
        Self::bound(protocol, 0, SockFlag::SOCK_CLOEXEC)
    }

    /// A blocking socket for requests of `protocol`.
    pub fn requests(protocol: SockProtocol) -> Result<Self, KernelError> {
        Self::open(protocol, 0, SockFlag::SOCK_CLOEXEC)
    }

    /// A non-blocking socket of `protocol` that hears the groups of the bit mask `groups`.
    pub fn listening(protocol: SockProtocol, groups: u32) -> Result<Self, KernelError> {
        Self::open(protocol, groups, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK)
    }

    fn open(protocol: SockProtocol, groups: u32, flags: SockFlag) -> Result<Self, KernelError> {
        let socket = Self::bound(protocol, groups, flags)?;
        let buffers = |errno| KernelError::new("enlarge the buffers of a netlink socket", errno);
        socket::setsockopt(&socket.fd, sockopt::SndBufForce, &BUFFER_BYTES).map_err(buffers)?;
        socket::setsockopt(&socket.fd, sockopt::RcvBufForce, &BUFFER_BYTES).map_err(buffers)?;
        Ok(socket)
    }

    fn bound(protocol: SockProtocol, groups: u32, flags: SockFlag) -> Result<Self, KernelError> {
        let failed = |errno| KernelError::new("open a netlink socket", errno);
        let fd = socket::socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).map_err(failed)?;
        socket::bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(failed)?;
        let own: NetlinkAddr = socket::getsockname(fd.as_raw_fd()).map_err(failed)?;
        socket::setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_TIMEOUT_SECS)).map_err(failed)?;
        Ok(Socket { fd, port: own.pid(), seq: 1, buffer: vec![0; READ_BYTES] })
    }

    /// The port id under which the kernel reports what this socket did.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends `request` (which asks for an acknowledgement) and waits for it.
    pub fn request(&mut self, operation: &str, request: Request) -> Result<(), KernelError> {
        let seq = self.next_seq();
        self.send(operation, &request.finish(seq))?;
        self.acknowledged(operation, seq)
    }

    /// Sends `request` and gives the first answer that is no acknowledgement.
    pub fn ask(&mut self, operation: &str, request: Request) -> Result<Dumped, KernelError> {
        let seq = self.next_seq();
        self.send(operation, &request.finish(seq))?;
        loop {
            let length = self.read(operation)?;
            for message in wire::messages(&self.buffer[..length]).filter(|message| message.seq == seq) {
                match message.error() {
                    Some(0) => {}
                    Some(errno) => return Err(KernelError::new(operation, Errno::from_raw(errno))),
                    None => return Ok(Dumped { kind: message.kind, payload: message.payload.to_vec() }),
                }
            }
        }
    }

    /// Sends one nf_tables batch in a single `sendmsg` and waits for the verdict on all of it.
    /// Only the message with sequence number `last` asks for an acknowledgement.
    pub fn transact(&mut self, operation: &str, batch: &[u8], last: u32) -> Result<(), KernelError> {
        self.send(operation, batch)?;
        self.acknowledged(operation, last)
    }

    /// Sends a dump request and gives all its answers, from one consistent reading.
    pub fn dump(&mut self, operation: &str, request: impl Fn() -> Request) -> Result<Vec<Dumped>, KernelError> {
        for _ in 0..DUMP_ATTEMPTS {
            let seq = self.next_seq();
            self.send(operation, &request().finish(seq))?;
            if let Some(answers) = self.dumped(operation, seq)? {
                return Ok(answers);
            }
        }
        Err(KernelError::new(operation, Errno::EINTR))
    }

    /// `None` when the kernel says that the dump was interrupted by a change.
    fn dumped(&mut self, operation: &str, seq: u32) -> Result<Option<Vec<Dumped>>, KernelError> {
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let length = self.read(operation)?;
            for message in wire::messages(&self.buffer[..length]).filter(|message| message.seq == seq) {
                interrupted |= message.flags & F_DUMP_INTR != 0;
                match message.error() {
                    // Some dumps report a change under way as EINTR or EAGAIN instead of by flag.
                    Some(errno) if errno == Errno::EINTR as i32 || errno == Errno::EAGAIN as i32 => return Ok(None),
                    Some(errno) if errno != 0 => return Err(KernelError::new(operation, Errno::from_raw(errno))),
                    _ if message.kind == DONE => return Ok((!interrupted).then_some(answers)),
                    _ => answers.push(Dumped { kind: message.kind, payload: message.payload.to_vec() }),
                }
            }
        }
    }

    /// Reads what waits on a listening socket; `Ok(None)` when nothing does. `ENOBUFS` means that messages were lost.
    pub fn heard(&mut self) -> Result<Option<&[u8]>, Errno> {
        match socket::recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
            Ok(length) => Ok(Some(&self.buffer[..length])),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Empties a listening socket; true when there was anything, lost messages included.
    pub fn drain(&mut self) -> bool {
        let mut any = false;
        loop {
            match self.heard() {
                Ok(None) => return any,
                Ok(Some(_)) | Err(Errno::ENOBUFS | Errno::EINTR) => any = true,
                Err(_) => return true,
            }
        }
    }

    fn acknowledged(&mut self, operation: &str, seq: u32) -> Result<(), KernelError> {
        let mut refused = None;
        loop {
            let length = self.read(operation)?;
            for message in wire::messages(&self.buffer[..length]) {
                match message.error() {
                    Some(0) if message.seq == seq => return Ok(()),
                    Some(0) | None => {}
                    Some(errno) => refused = Some(KernelError::new(operation, Errno::from_raw(errno))),
                }
            }
            if let Some(refused) = refused {
                self.discard();
                return Err(refused);
            }
        }
    }

    /// Throws away further answers to a request that has failed: a batch reports each refused message.
    fn discard(&mut self) {
        while socket::recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }

    fn send(&mut self, operation: &str, bytes: &[u8]) -> Result<(), KernelError> {
        let failed = |errno| KernelError::new(operation, errno);
        match socket::send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()).map_err(failed)? {
            sent if sent == bytes.len() => Ok(()),
            _ => Err(failed(Errno::EMSGSIZE)),
        }
    }

    fn read(&mut self, operation: &str) -> Result<usize, KernelError> {
        loop {
            match socket::recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(length) => return Ok(length),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(KernelError::new(operation, Errno::ETIMEDOUT)),
                Err(errno) => return Err(KernelError::new(operation, errno)),
            }
        }
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1).max(1);
        self.seq
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
