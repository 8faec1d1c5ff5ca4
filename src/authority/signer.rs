//! The thread `leaves`: it alone has the CA's key. It takes names and gives back leaves.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender};
use rustls::crypto::CryptoProvider;

use crate::event_loop::{Address, Reply};
use crate::proxy::ProxyCommand;

use super::leaves::{Leaves, PENDING_MAX};
use super::load::Authority;
use super::mint::{self, Minted};
use super::provider;

/// Commands that may wait besides names: pings and the stop.
const COMMANDS_MAX: usize = 16;

/// How long a leaf waits for room in the proxy's mailbox. Past it the proxy is stuck, and control ends the daemon.
const DELIVER_WITHIN: Duration = Duration::from_secs(5);

/// What the thread is asked to do.
pub enum LeavesCommand {
    /// Make a leaf for this name.
    Mint(Box<str>),
    /// Answered at once by a living thread.
    Ping(Reply<()>),
    /// Finish; the key is zeroed.
    Stop,
}

/// The thread's state.
pub struct Signer {
    authority: Authority,
    provider: Arc<CryptoProvider>,
    ttl: Duration,
    commands: Receiver<LeavesCommand>,
    proxy: Address<ProxyCommand>,
}

/// The proxy's side, the thread's side, and the way to command the thread. `ttl` is `--intercept-leaf-ttl-secs`.
#[must_use]
pub fn leaves(
    authority: Authority,
    ttl: Duration,
    proxy: Address<ProxyCommand>,
) -> (Leaves, Signer, Sender<LeavesCommand>) {
    let (sender, commands) = crossbeam_channel::bounded(PENDING_MAX + COMMANDS_MAX);
    let leaves = Leaves::new(Arc::clone(authority.certificate()), sender.clone());
    (leaves, Signer { authority, provider: provider(), ttl, commands, proxy }, sender)
}

impl Signer {
    /// Signs until told to stop.
    ///
    /// # Errors
    /// When the proxy does not take what was made, or everyone who could ask is gone.
    pub fn run(self) -> Result<(), String> {
        loop {
            match self.commands.recv() {
                Ok(LeavesCommand::Mint(name)) => {
                    let minted = self.mint(name);
                    let sent = self.proxy.send_within(ProxyCommand::Minted(minted), DELIVER_WITHIN);
                    if sent.is_err() {
                        // Told to stop, the proxy may be gone first.
                        return match self.commands.try_iter().any(|command| matches!(command, LeavesCommand::Stop)) {
                            true => Ok(()),
                            false => Err("the proxy does not take certificates".to_owned()),
                        };
                    }
                }
                Ok(LeavesCommand::Ping(reply)) => reply.send(()),
                Ok(LeavesCommand::Stop) => return Ok(()),
                Err(_) => return Err("the commander of the certificates is gone".to_owned()),
            }
        }
    }

    fn mint(&self, name: Box<str>) -> Minted {
        let begun = Instant::now();
        let result = mint::leaf(&self.authority, &self.provider, &name, SystemTime::now(), self.ttl);
        match &result {
            Ok(_) => {
                let took_us = begun.elapsed().as_micros() as u64;
                tracing::debug!(target: "proxy", %name, took_us, "certificate made");
            }
            Err(error) => tracing::error!(target: "proxy", %name, "no certificate: {error}"),
        }
        Minted { name, result }
    }
}
