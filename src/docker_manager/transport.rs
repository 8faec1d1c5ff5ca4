//! HTTP/1.1 over a Unix stream socket, as a transport of `ureq`.
//!
//! Owns: connecting with a deadline, socket timeouts, the handle that unblocks a reader from another thread.
//! Does not own: requests, answers, retries. ureq's transport interface is unversioned; its version is pinned.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt::SendTimeout,
};
use nix::sys::time::TimeVal;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, ShutdownHandle, Transport,
};

/// How long a connect may take when the request has no deadline of its own (the event stream).
/// A Unix connect blocks only while the listener's backlog is full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects every request to one socket path.
#[derive(Debug)]
pub(super) struct UnixConnector(pub(super) PathBuf);

/// There is no name to resolve: the path is the address.
#[derive(Debug)]
pub(super) struct NoNames;

impl Resolver for NoNames {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let mut addresses = self.empty();
        // ureq wants one address at least; the connector never looks at it.
        addresses.push(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
        Ok(addresses)
    }
}

impl Connector<()> for UnixConnector {
    type Out = UnixTransport;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> Result<Option<UnixTransport>, ureq::Error> {
        let limit = details.timeout.not_zero().map_or(CONNECT_TIMEOUT, |left| (*left).min(CONNECT_TIMEOUT));
        let stream = open(&self.0, limit).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => ureq::Error::Timeout(ureq::Timeout::Connect),
            _ => ureq::Error::Io(error),
        })?;
        let stream = Arc::new(Shared(stream));
        let handle: Weak<dyn ShutdownHandle> = Arc::<Shared>::downgrade(&stream);
        (details.register_shutdown)(handle)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        // `open` left a send timeout on the socket: the first write sets its own.
        Ok(Some(UnixTransport { stream, buffers, read_timeout: None, write_timeout: Some(limit) }))
    }
}

/// connect(2) with a deadline: SO_SNDTIMEO bounds the wait for room in the listener's backlog (EAGAIN past it).
fn open(path: &std::path::Path, limit: Duration) -> io::Result<UnixStream> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let micros = i64::try_from(limit.as_micros().max(1)).unwrap_or(i64::MAX);
    setsockopt(&fd, SendTimeout, &TimeVal::new(micros / 1_000_000, micros % 1_000_000))?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

#[derive(Debug)]
struct Shared(UnixStream);

impl ShutdownHandle for Shared {
    fn shutdown(&self) {
        // An error means that it is closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// One connection to the Engine.
#[derive(Debug)]
pub(super) struct UnixTransport {
    stream: Arc<Shared>,
    buffers: LazyBuffers,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl Transport for UnixTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let timeout = timeout.for_write();
        let limit = timeout.not_zero().map(|left| *left);
        if limit != self.write_timeout {
            self.stream.0.set_write_timeout(limit)?;
            self.write_timeout = limit;
        }
        let output = &self.buffers.output()[..amount];
        (&self.stream.0).write_all(output).map_err(|error| timed(error, &timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let timeout = timeout.for_read();
        if timeout.after.is_zero() {
            return Err(ureq::Error::Timeout(timeout.reason));
        }
        let limit = timeout.not_zero().map(|left| *left);
        if limit != self.read_timeout {
            self.stream.0.set_read_timeout(limit)?;
            self.read_timeout = limit;
        }
        let read = loop {
            match (&self.stream.0).read(self.buffers.input_append_buf()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let amount = read.map_err(|error| timed(error, &timeout))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    /// True when a pooled connection can carry another request: not closed, and nothing unasked for to read.
    fn is_open(&mut self) -> bool {
        let mut byte = [0];
        let flags = nix::sys::socket::MsgFlags::MSG_PEEK | nix::sys::socket::MsgFlags::MSG_DONTWAIT;
        nix::sys::socket::recv(self.stream.0.as_raw_fd(), &mut byte, flags) == Err(nix::errno::Errno::EAGAIN)
    }
}

fn timed(error: io::Error, timeout: &NextTimeout) -> ureq::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ureq::Error::Timeout(timeout.reason),
        _ => ureq::Error::Io(error),
    }
}
