//! What `--ca-cert`, `--ca-key` and `--upstream-ca` mean: a CA that is loaded, or why there is none.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Flags, Readiness};
use crate::authority::{Authority, Published, SystemRoots, upstream_config};

/// How long before its end a CA is warned of: time to make a new one and to bring it to every client.
const EXPIRY_NEAR: Duration = Duration::from_secs(30 * 24 * 3600);

/// Everything that interception needs.
pub(super) struct Loaded {
    pub(super) authority: Authority,
    pub(super) upstream: Arc<rustls::ClientConfig>,
    pub(super) published: Published,
}

/// What the flags gave: a CA, or the warning why interception is off though it was asked for.
pub(super) enum Interception {
    /// Asked for and loaded; with what an operator should know.
    On(Box<Loaded>, Vec<String>),
    /// Off, with the reason when the flags asked for it.
    Off(Option<String>),
}

/// Loads what the flags name. Without `--ca-cert` and `--ca-key` nothing is read and nothing is made.
///
/// # Errors
/// A pair that must not be used, or a bad `--upstream-ca`: the start stops.
pub(super) fn load(flags: &Flags) -> Result<Interception, Box<dyn std::error::Error>> {
    let (certificate, key) = match (&flags.ca_cert, &flags.ca_key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (None, None) if flags.upstream_ca.is_some() => {
            return Ok(off("--upstream-ca has no effect without --ca-cert and --ca-key"));
        }
        (None, None) => return Ok(Interception::Off(None)),
        (Some(_), None) => return Ok(off("interception is off: --ca-cert is given without --ca-key")),
        (None, Some(_)) => return Ok(off("interception is off: --ca-key is given without --ca-cert")),
    };
    if flags.no_proxy {
        return Ok(off("interception is off: it is the proxy's work, and --no-proxy is given"));
    }
    match Authority::load(certificate, key) {
        Ok(authority) => with_upstreams(authority, flags.upstream_ca.as_deref()),
        Err(error) if error.is_unreadable() => Ok(off(&format!(
            "interception is off: {error}; give the paths of a pair that the daemon can read, `outcall ca init` makes one"
        ))),
        Err(error) => Err(error.into()),
    }
}

fn with_upstreams(authority: Authority, extra: Option<&Path>) -> Result<Interception, Box<dyn std::error::Error>> {
    let system = SystemRoots::read();
    let upstream = upstream_config(&system, extra)?;
    let mut warnings = system.warnings().to_vec();
    let not_after = authority.certificate().not_after();
    if not_after < SystemTime::now() + EXPIRY_NEAR {
        let at = humantime::format_rfc3339_seconds(not_after);
        warnings.push(format!("the CA expires at {at}; make a new pair with `outcall ca init` and roll it out before"));
    }
    let published = Published::new(Arc::clone(authority.certificate()), &system);
    Ok(Interception::On(Box::new(Loaded { authority, upstream, published }), warnings))
}

/// Puts the file that containers mount in place.
pub(super) fn write_bundle(published: &Published, state_dir: &Path) -> Result<(), String> {
    published.write(state_dir).map_err(|error| {
        let path = Published::path(state_dir);
        format!(
            "cannot write {}, which containers trust the CA by: {error}; choose another --state-dir",
            path.display()
        )
    })
}

fn off(reason: &str) -> Interception {
    Interception::Off(Some(reason.to_owned()))
}

impl Interception {
    /// What was loaded; the warnings go to the log and to `/ready`.
    pub(super) fn announce(self, readiness: &Readiness) -> Option<Loaded> {
        let (loaded, warnings) = match self {
            Interception::On(loaded, warnings) => {
                let certificate = loaded.authority.certificate();
                tracing::info!(
                    target: "proxy",
                    subject = certificate.subject(),
                    fingerprint_sha256 = certificate.fingerprint(),
                    "interception is on for rules that ask for it"
                );
                (Some(*loaded), warnings)
            }
            Interception::Off(reason) => (None, reason.into_iter().collect()),
        };
        for warning in &warnings {
            tracing::warn!(target: "proxy", "{warning}");
        }
        if !warnings.is_empty() {
            readiness.warn("interception", Some(warnings.join("; ")));
        }
        loaded
    }
}
