//! What containers trust: the system's roots and the CA, in one file.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::state::{RealDisk, make_directory, replace};

use super::certificate::{CaCertificate, to_pem};
use super::upstream::SystemRoots;

/// Under the state directory.
const DIRECTORY: &str = "ca";
/// In it. Containers get the directory, not the file: a bind-mounted file would stay the old one for ever.
const FILE: &str = "bundle.pem";

/// What is public of a loaded CA.
#[derive(Clone, Debug)]
pub struct Published {
    certificate: Arc<CaCertificate>,
    bundle: Arc<str>,
}

impl Published {
    /// The CA beside the roots that clients trusted before.
    #[must_use]
    pub fn new(certificate: Arc<CaCertificate>, system: &SystemRoots) -> Self {
        let mut bundle = String::new();
        for root in system.certificates() {
            bundle.push_str(&to_pem(root));
        }
        // Writing into memory does not fail.
        let _ = writeln!(bundle, "# Outcall interception CA: {}", printable(certificate.subject()));
        bundle.push_str(certificate.pem());
        Published { certificate, bundle: bundle.into() }
    }

    /// The CA's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CaCertificate {
        &self.certificate
    }

    /// The system's roots and the CA, PEM.
    #[must_use]
    pub fn bundle(&self) -> &Arc<str> {
        &self.bundle
    }

    /// Where [`Published::write`] puts the bundle.
    #[must_use]
    pub fn path(state_dir: &Path) -> PathBuf {
        state_dir.join(DIRECTORY).join(FILE)
    }

    /// Writes the bundle for containers to mount: readable by everyone, and whole at any moment.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write(&self, state_dir: &Path) -> std::io::Result<()> {
        make_directory(state_dir, 0o700)?;
        let (directory, path) = (state_dir.join(DIRECTORY), Self::path(state_dir));
        make_directory(&directory, 0o755)?;
        replace(&mut RealDisk, &path, self.bundle.as_bytes(), 0o644)?;
        // The umask may have taken from both, and containers read as users of their own.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644))?;
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755))
    }
}

/// A certificate's subject is the operator's own text, and still must not end the comment.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}
