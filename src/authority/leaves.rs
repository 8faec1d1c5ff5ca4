//! The proxy's side of leaves: the cache, and who waits for what. Sans-I/O but for a bounded channel to the signer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;
use rustls::ServerConfig;
use rustls::pki_types::ServerName;

use crate::proxy::SessionId;

use super::certificate::CaCertificate;
use super::mint::{MintError, Minted};
use super::signer::LeavesCommand;

/// Leaves that are kept, as vendor-docs/tls-interception.md says; the one that was not used for longest goes first.
pub const LEAVES_MAX: usize = 1024;

/// Names that are being signed for at once: a tenth of a second of work for an RSA key of 4096 bits.
pub(super) const PENDING_MAX: usize = 64;

/// Sessions that wait for one name: as many as one container may have connections, by the flag's default.
const WAITING_MAX: usize = 256;

/// A host's leaf.
pub enum Leaf {
    /// Shown with these settings.
    Ready(Arc<ServerConfig>),
    /// Being made: the session is named by [`Leaves::minted`] when it is.
    Pending,
    /// There will be none, and why.
    Refused(&'static str),
}

/// The leaves that the proxy has and waits for.
pub struct Leaves {
    ca: Arc<CaCertificate>,
    signer: Sender<LeavesCommand>,
    cache: HashMap<Box<str>, Cached>,
    pending: HashMap<Box<str>, Vec<SessionId>>,
    /// Counts uses, for the order of eviction.
    uses: u64,
}

struct Cached {
    config: Arc<ServerConfig>,
    until: Instant,
    used: u64,
}

impl Leaves {
    pub(super) fn new(ca: Arc<CaCertificate>, signer: Sender<LeavesCommand>) -> Self {
        Leaves { ca, signer, cache: HashMap::new(), pending: HashMap::new(), uses: 0 }
    }

    /// The leaf of `name`, a DNS name in normal form or an IP literal without brackets. After [`Leaf::Pending`],
    /// `session` waits until [`Leaves::minted`] names it.
    pub fn leaf(&mut self, name: &str, session: SessionId, now: Instant) -> Leaf {
        self.uses += 1;
        if let Some(cached) = self.cache.get_mut(name) {
            if now < cached.until {
                cached.used = self.uses;
                return Leaf::Ready(Arc::clone(&cached.config));
            }
            self.cache.remove(name);
        }
        if let Some(waiting) = self.pending.get_mut(name) {
            if waiting.len() >= WAITING_MAX {
                return Leaf::Refused("too many connections wait for this certificate");
            }
            waiting.push(session);
            return Leaf::Pending;
        }
        if self.pending.len() >= PENDING_MAX {
            return Leaf::Refused("too many certificates are being made");
        }
        if ServerName::try_from(name).is_err() {
            return Leaf::Refused("the name cannot stand in a certificate");
        }
        if !self.ca.allows(name) {
            return Leaf::Refused("the CA may not sign for this name (name constraints)");
        }
        if self.signer.try_send(LeavesCommand::Mint(name.into())).is_err() {
            return Leaf::Refused("the signer takes no more names");
        }
        self.pending.insert(name.into(), vec![session]);
        Leaf::Pending
    }

    /// Takes a leaf that the signer made: the sessions that wait for it, and what they get.
    pub fn minted(&mut self, minted: Minted, now: Instant) -> (Vec<SessionId>, Result<Arc<ServerConfig>, MintError>) {
        let Minted { name, result } = minted;
        let waiting = self.pending.remove(&name).unwrap_or_default();
        let result = result.map(|made| {
            let config = Arc::clone(&made.config);
            self.uses += 1;
            self.make_room(now);
            self.cache.insert(name, Cached { config: made.config, until: now + made.lasts, used: self.uses });
            config
        });
        (waiting, result)
    }

    /// Forgets every leaf; how many there were. Connections that show one go on with it.
    pub fn flush(&mut self) -> usize {
        let count = self.cache.len();
        self.cache = HashMap::new();
        count
    }

    /// How many leaves are kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    /// True when none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cache.is_empty()
    }

    /// Makes room for one more: what is past its time goes, else what was not used for longest. A look at all of them,
    /// which is little beside the signature that each new one costs.
    fn make_room(&mut self, now: Instant) {
        if self.cache.len() < LEAVES_MAX {
            return;
        }
        self.cache.retain(|_, cached| now < cached.until);
        if self.cache.len() >= LEAVES_MAX {
            let oldest = self.cache.iter().min_by_key(|(_, cached)| cached.used).map(|(name, _)| name.clone());
            oldest.and_then(|name| self.cache.remove(&name));
        }
    }
}
