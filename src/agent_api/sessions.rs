//! What is kept for each container: its token and its windows. Pure but for the random numbers.
//!
//! Keyed by the container's id, and gone with it: a restarted container, another one of the same name or address
//! begins anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::daemon::Rate;
use crate::docker_manager::{Directory, Endpoint};

use super::window::Window;

/// Bytes of a token before they become hex digits: not to be guessed.
const TOKEN_BYTES: usize = 32;

/// How soon a container is told to come back while a submission of it is under way.
const SUBMISSION_GAP: Duration = Duration::from_secs(1);
/// How long a submission may be under way: longer than its request waits for the answer.
const SUBMITTING_MAX: Duration = Duration::from_secs(120);

/// A token: 64 hex digits.
type Token = [u8; 2 * TOKEN_BYTES];

#[derive(Default)]
struct Session {
    token: Option<Token>,
    /// The container's first process: another one is another life of it.
    life: i32,
    checks: Window,
    submissions: Window,
    /// A submission is under way; should its answer be lost, until then.
    submitting_until: Option<Instant>,
}

/// The sessions of all containers of the directory that ever asked.
#[derive(Default)]
pub(super) struct Sessions(HashMap<Arc<str>, Session>);

impl Sessions {
    /// The token of a container, made at its first check-in.
    ///
    /// # Errors
    /// When the kernel gives no random numbers.
    pub(super) fn check_in(&mut self, endpoint: &Endpoint) -> Result<String, getrandom::Error> {
        let session = self.of(endpoint);
        let token = match session.token {
            Some(token) => token,
            None => *session.token.insert(fresh_token()?),
        };
        Ok(String::from_utf8_lossy(&token).into_owned())
    }

    /// Whether `given` is the token of this container.
    pub(super) fn knows(&self, endpoint: &Endpoint, given: &[u8]) -> bool {
        let own = self.0.get(&endpoint.container_id).filter(|session| session.life == endpoint.pid);
        own.and_then(|session| session.token.as_ref()).is_some_and(|token| equal(token, given))
    }

    /// Takes one permission check, or says how long to wait.
    pub(super) fn take_check(&mut self, endpoint: &Endpoint, rate: Rate, now: Instant) -> Result<(), Duration> {
        self.of(endpoint).checks.take(rate, now)
    }

    /// Takes one submission, or says how long to wait. One at a time: each costs a checker process.
    pub(super) fn take_submission(&mut self, endpoint: &Endpoint, rate: Rate, now: Instant) -> Result<(), Duration> {
        let session = self.of(endpoint);
        if session.submitting_until.is_some_and(|until| now < until) {
            return Err(SUBMISSION_GAP);
        }
        session.submissions.take(rate, now)?;
        session.submitting_until = Some(now + SUBMITTING_MAX);
        Ok(())
    }

    /// The submission under way is answered.
    pub(super) fn submitted(&mut self, container_id: &str) {
        if let Some(session) = self.0.get_mut(container_id) {
            session.submitting_until = None;
        }
    }

    /// Forgets containers that are gone, and earlier lives of those that are there.
    pub(super) fn retain(&mut self, directory: &Directory) {
        let lives: HashMap<&str, i32> =
            directory.endpoints.values().map(|endpoint| (&*endpoint.container_id, endpoint.pid)).collect();
        self.0.retain(|id, session| lives.get(&**id) == Some(&session.life));
    }

    fn of(&mut self, endpoint: &Endpoint) -> &mut Session {
        let session = self.0.entry(Arc::clone(&endpoint.container_id)).or_default();
        if session.life != endpoint.pid {
            *session = Session { life: endpoint.pid, ..Session::default() };
        }
        session
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

fn fresh_token() -> Result<Token, getrandom::Error> {
    let mut random = [0; TOKEN_BYTES];
    getrandom::fill(&mut random)?;
    let mut token = [0; 2 * TOKEN_BYTES];
    for (place, byte) in random.iter().enumerate() {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        token[2 * place] = DIGITS[usize::from(byte >> 4)];
        token[2 * place + 1] = DIGITS[usize::from(byte & 15)];
    }
    Ok(token)
}

/// Compares in a time that does not depend on where the two differ. The length of a token is no secret.
fn equal(token: &Token, given: &[u8]) -> bool {
    let Ok(given) = <&Token>::try_from(given) else { return false };
    let difference = token.iter().zip(given).fold(0, |all, (left, right)| std::hint::black_box(all | (left ^ right)));
    difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent_api::tests::{directory, endpoint};

    #[test]
    fn a_token_is_bound_to_its_container_and_its_life() {
        let mut sessions = Sessions::default();
        let (one, two) = (endpoint("one", 1, 100), endpoint("two", 2, 200));
        let token = sessions.check_in(&one).unwrap();
        assert_eq!(token.len(), 64);
        assert_eq!(sessions.check_in(&one).unwrap(), token);
        assert_ne!(sessions.check_in(&two).unwrap(), token);
        assert!(sessions.knows(&one, token.as_bytes()));
        assert!(!sessions.knows(&two, token.as_bytes()));
        let restarted = Endpoint { pid: 101, ..(*one).clone() };
        assert!(!sessions.knows(&restarted, token.as_bytes()));
        assert_ne!(sessions.check_in(&restarted).unwrap(), token);
        assert!(!sessions.knows(&one, token.as_bytes()));
    }

    #[test]
    fn only_the_whole_token_is_the_token() {
        let mut sessions = Sessions::default();
        let one = endpoint("one", 1, 100);
        let token = sessions.check_in(&one).unwrap();
        for wrong in ["", &token[1..], &token.to_uppercase(), &format!("{token}0"), &format!("{}g", &token[1..])] {
            assert!(wrong == token || !sessions.knows(&one, wrong.as_bytes()), "{wrong}");
        }
    }

    #[test]
    fn what_is_kept_goes_with_the_container() {
        let mut sessions = Sessions::default();
        let (one, two) = (endpoint("one", 1, 100), endpoint("two", 2, 200));
        let token = sessions.check_in(&one).unwrap();
        sessions.check_in(&two).unwrap();
        sessions.retain(&directory(&[&one, &two]));
        assert_eq!(sessions.len(), 2);
        sessions.retain(&directory(&[&two]));
        assert_eq!(sessions.len(), 1);
        assert!(!sessions.knows(&one, token.as_bytes()));
    }

    #[test]
    fn one_submission_of_a_container_at_a_time() {
        let rate = Rate { count: 10, window: Duration::from_secs(60) };
        let mut sessions = Sessions::default();
        let one = endpoint("one", 1, 100);
        let now = Instant::now();
        assert!(sessions.take_submission(&one, rate, now).is_ok());
        assert!(sessions.take_submission(&one, rate, now).is_err());
        sessions.submitted(&one.container_id);
        assert!(sessions.take_submission(&one, rate, now).is_ok());
    }
}
