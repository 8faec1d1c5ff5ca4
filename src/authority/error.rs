//! Why an authority does not load: what is wrong, with which file, and what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Why an authority does not load.
#[derive(Debug)]
pub enum AuthorityError {
    /// A file cannot be read. Interception is then off; every other error stops the start.
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The key's file, or the key in it, is none that may be used.
    Key {
        /// Which.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The certificate is none that can sign leaves now.
    Certificate {
        /// Which.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The key is another certificate's.
    Mismatch {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// The kernel refuses to protect the key.
    Protection {
        /// What failed.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl AuthorityError {
    /// Whether interception is off for it, with a warning: a file that is not there to be read.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        matches!(self, AuthorityError::Unreadable { .. })
    }

    pub(super) fn key(path: &Path, reason: impl Into<String>) -> Self {
        AuthorityError::Key { path: path.to_owned(), reason: reason.into() }
    }

    pub(super) fn certificate(path: &Path, reason: impl Into<String>) -> Self {
        AuthorityError::Certificate { path: path.to_owned(), reason: reason.into() }
    }
}

impl std::fmt::Display for AuthorityError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AuthorityError::Unreadable { path, source } => write!(f, "cannot read {}: {source}", path.display()),
            AuthorityError::Key { path, reason } => write!(f, "the CA key {} {reason}", path.display()),
            AuthorityError::Certificate { path, reason } => {
                write!(f, "the CA certificate {} {reason}", path.display())
            }
            AuthorityError::Mismatch { certificate, key } => write!(
                f,
                "the CA key {} is not that of the certificate {}; give the two files of one pair",
                key.display(),
                certificate.display()
            ),
            AuthorityError::Protection { operation, source } => {
                write!(f, "the CA key cannot be protected: {operation}: {source}")
            }
        }
    }
}

impl std::error::Error for AuthorityError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            AuthorityError::Unreadable { source, .. } | AuthorityError::Protection { source, .. } => Some(source),
            AuthorityError::Key { .. } | AuthorityError::Certificate { .. } | AuthorityError::Mismatch { .. } => None,
        }
    }
}
