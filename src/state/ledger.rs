//! The ledger of rule requests: what may follow what, and how much there may be. Pure.
//!
//! A change takes a ledger and gives the next one; the shell writes that down before it believes it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Requests of one container that wait for the operator.
pub const PENDING_PER_CONTAINER: usize = 8;
/// Requests of all containers that wait for the operator: more than one reads.
pub const PENDING_MAX: usize = 256;
/// Bytes of all texts that wait: the file is written anew with each change.
pub const PENDING_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Requests that are remembered, decided ones included; the oldest decided are forgotten first.
pub const RECORDS_MAX: usize = 1024;
/// Bytes of an operator's reason.
pub const REASON_MAX: usize = 1024;

/// Where a request stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Status {
    /// Waits for the operator.
    Pending,
    /// An approval is being carried out: its file may be in the rules directory already.
    Approving,
    /// Installed.
    Approved,
    /// Refused.
    Rejected {
        /// What the operator said.
        reason: Option<String>,
    },
    /// Its container is gone, and room was needed.
    Expired,
}

impl Status {
    /// The word that agents and operators see.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            // To everybody but us it is still to be decided.
            Status::Pending | Status::Approving => "pending",
            Status::Approved => "approved",
            Status::Rejected { .. } => "rejected",
            Status::Expired => "expired",
        }
    }

    /// What the operator said.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            Status::Rejected { reason } => reason.as_deref(),
            Status::Expired => Some("the container is gone"),
            _ => None,
        }
    }

    fn is_open(&self) -> bool {
        matches!(self, Status::Pending | Status::Approving)
    }
}

/// One request. It never changes but in its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleRequest {
    /// `rr-` and 16 hex digits.
    pub id: String,
    /// Who asked.
    pub container_id: Arc<str>,
    /// Its name then, to which the installed rules are limited.
    pub container: Arc<str>,
    /// The text as submitted; empty once decided.
    pub rule_file: Arc<str>,
    /// The exact bytes that an approval writes; empty once decided.
    pub installs: Arc<str>,
    /// Where it stands.
    pub status: Status,
    /// RFC 3339, UTC.
    pub submitted_at: String,
    /// RFC 3339, UTC.
    pub decided_at: Option<String>,
}

impl RuleRequest {
    /// The name of the file that an approval writes.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("agent-{}.yaml", self.id)
    }

    fn bytes(&self) -> usize {
        self.rule_file.len() + self.installs.len()
    }

    fn decide(&mut self, status: Status, at: String) {
        self.status = status;
        self.decided_at = Some(at);
        self.rule_file = "".into();
        self.installs = "".into();
    }
}

/// Why a change is not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerError {
    /// The container has as many pending requests as it may.
    ContainerFull,
    /// All containers together have.
    Full,
    /// There is no such request.
    Unknown,
    /// It is decided already.
    Decided(&'static str),
    /// Its approval is under way.
    Busy,
}

impl std::fmt::Display for LedgerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LedgerError::ContainerFull => write!(
                f,
                "{PENDING_PER_CONTAINER} rule requests of this container wait already; wait for the operator to decide"
            ),
            LedgerError::Full => f.write_str("too many rule requests wait for the operator; try again later"),
            LedgerError::Unknown => f.write_str("there is no such rule request"),
            LedgerError::Decided(status) => write!(f, "the rule request is {status} already"),
            LedgerError::Busy => f.write_str("the rule request is being approved at this moment"),
        }
    }
}

impl std::error::Error for LedgerError {}

/// All requests, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// The file's own version.
    version: u32,
    requests: Vec<RuleRequest>,
}

/// The version of the file that this code writes and reads.
const VERSION: u32 = 1;

impl Ledger {
    /// Nothing asked yet.
    #[must_use]
    pub fn new() -> Self {
        Ledger { version: VERSION, requests: Vec::new() }
    }

    /// Reads what [`Ledger::to_bytes`] wrote.
    ///
    /// # Errors
    /// Why it is no ledger.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let ledger: Ledger = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if ledger.version != VERSION {
            return Err(format!("its version is {}, and {VERSION} is read here", ledger.version));
        }
        for (number, request) in ledger.requests.iter().enumerate() {
            // Ids become file names.
            if !is_id(&request.id) {
                return Err(format!("{:?} is no id of a rule request", request.id));
            }
            if ledger.requests[..number].iter().any(|other| other.id == request.id) {
                return Err(format!("{} is in it twice", request.id));
            }
        }
        Ok(ledger)
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// None that a ledger can cause; what the serializer says.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// The request with this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&RuleRequest> {
        self.requests.iter().find(|request| request.id == id)
    }

    /// What waits for the operator, oldest first.
    pub fn pending(&self) -> impl Iterator<Item = &RuleRequest> {
        self.requests.iter().filter(|request| request.status.is_open())
    }

    /// Whether another request of this container would be taken, before the work of checking it is done.
    ///
    /// # Errors
    /// [`LedgerError::ContainerFull`]
    pub fn room_for(&self, container_id: &str) -> Result<(), LedgerError> {
        let own = self.pending().filter(|request| &*request.container_id == container_id).count();
        if own >= PENDING_PER_CONTAINER { Err(LedgerError::ContainerFull) } else { Ok(()) }
    }

    /// With one more pending request. When all room is taken, those of containers that are gone (`lives` says no)
    /// make room, oldest first.
    ///
    /// # Errors
    /// [`LedgerError::ContainerFull`], [`LedgerError::Full`]
    pub fn submitted(
        &self,
        request: RuleRequest,
        lives: impl Fn(&str) -> bool,
        now: &str,
    ) -> Result<Self, LedgerError> {
        self.room_for(&request.container_id)?;
        let mut next = self.clone();
        while !next.fits(request.bytes()) {
            let gone = next
                .requests
                .iter_mut()
                .find(|old| old.status == Status::Pending && !lives(&old.container_id))
                .ok_or(LedgerError::Full)?;
            gone.decide(Status::Expired, now.to_owned());
        }
        next.requests.push(request);
        next.forget();
        Ok(next)
    }

    /// With an approval of `id` under way.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn approving(&self, id: &str) -> Result<Self, LedgerError> {
        self.changed(id, Status::Pending, |request| request.status = Status::Approving)
    }

    /// With the approval of `id` done.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn approved(&self, id: &str, now: &str) -> Result<Self, LedgerError> {
        self.changed(id, Status::Approving, |request| request.decide(Status::Approved, now.to_owned()))
    }

    /// With the approval of `id` given up.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn undone(&self, id: &str) -> Result<Self, LedgerError> {
        self.changed(id, Status::Approving, |request| request.status = Status::Pending)
    }

    /// With `id` refused.
    ///
    /// # Errors
    /// [`LedgerError`]
    pub fn rejected(&self, id: &str, reason: Option<String>, now: &str) -> Result<Self, LedgerError> {
        let status = Status::Rejected { reason };
        self.changed(id, Status::Pending, |request| request.decide(status, now.to_owned()))
    }

    /// Approvals that were cut short by the end of the process.
    pub fn half_done(&self) -> impl Iterator<Item = &RuleRequest> {
        self.requests.iter().filter(|request| request.status == Status::Approving)
    }

    fn changed(&self, id: &str, from: Status, change: impl FnOnce(&mut RuleRequest)) -> Result<Self, LedgerError> {
        let mut next = self.clone();
        let request = next.requests.iter_mut().find(|request| request.id == id).ok_or(LedgerError::Unknown)?;
        if request.status != from {
            return Err(match request.status {
                Status::Approving | Status::Pending => LedgerError::Busy,
                ref decided => LedgerError::Decided(decided.as_str()),
            });
        }
        change(request);
        Ok(next)
    }

    fn fits(&self, more: usize) -> bool {
        let (count, bytes) = self.pending().fold((0, 0), |(count, bytes), old| (count + 1, bytes + old.bytes()));
        count < PENDING_MAX && bytes + more <= PENDING_BYTES_MAX
    }

    fn forget(&mut self) {
        let mut over = self.requests.len().saturating_sub(RECORDS_MAX);
        self.requests.retain(|request| {
            let forgotten = over > 0 && !request.status.is_open();
            over -= usize::from(forgotten);
            !forgotten
        });
    }
}

/// `rr-` and 16 hex digits.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text.strip_prefix("rr-")
        .is_some_and(|hex| hex.len() == 16 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-24T00:00:00Z";

    fn request(number: usize, container: &str) -> RuleRequest {
        RuleRequest {
            id: format!("rr-{number:016x}"),
            container_id: container.into(),
            container: container.into(),
            rule_file: "version: \"1\"".into(),
            installs: "# x".into(),
            status: Status::Pending,
            submitted_at: NOW.to_owned(),
            decided_at: None,
        }
    }

    fn filled(count: usize) -> Ledger {
        let mut ledger = Ledger::new();
        for number in 0..count {
            let container = format!("c{}", number / PENDING_PER_CONTAINER);
            ledger = ledger.submitted(request(number, &container), |_| true, NOW).unwrap();
        }
        ledger
    }

    #[test]
    fn a_request_is_decided_once() {
        let ledger = filled(1);
        let id = request(0, "c0").id;
        let rejected = ledger.rejected(&id, Some("no".to_owned()), NOW).unwrap();
        assert_eq!(rejected.find(&id).unwrap().status.reason(), Some("no"));
        assert_eq!(rejected.approving(&id), Err(LedgerError::Decided("rejected")));
        assert_eq!(rejected.rejected(&id, None, NOW), Err(LedgerError::Decided("rejected")));
        let approving = ledger.approving(&id).unwrap();
        assert_eq!(approving.find(&id).unwrap().status.as_str(), "pending");
        assert_eq!(approving.rejected(&id, None, NOW), Err(LedgerError::Busy));
        assert_eq!(approving.undone(&id).unwrap(), ledger);
        let approved = approving.approved(&id, NOW).unwrap();
        assert_eq!(approved.approving(&id), Err(LedgerError::Decided("approved")));
        assert!(approved.find(&id).unwrap().rule_file.is_empty());
        assert_eq!(ledger.approved(&id, NOW), Err(LedgerError::Busy));
        assert_eq!(ledger.approving("rr-x"), Err(LedgerError::Unknown));
    }

    #[test]
    fn one_container_cannot_take_the_room_of_others() {
        let ledger = filled(PENDING_PER_CONTAINER);
        let more = ledger.submitted(request(999, "c0"), |_| true, NOW);
        assert_eq!(more, Err(LedgerError::ContainerFull));
        assert!(ledger.submitted(request(999, "c1"), |_| true, NOW).is_ok());
    }

    #[test]
    fn requests_of_gone_containers_make_room_when_all_is_taken() {
        let ledger = filled(PENDING_MAX);
        assert_eq!(ledger.submitted(request(999, "new"), |_| true, NOW), Err(LedgerError::Full));
        let next = ledger.submitted(request(999, "new"), |id| id != "c3", NOW).unwrap();
        assert_eq!(next.pending().count(), PENDING_MAX);
        let expired = &request(3 * PENDING_PER_CONTAINER, "").id;
        assert_eq!(next.find(expired).unwrap().status, Status::Expired);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut ledger = Ledger::new();
        let mut taken = 0;
        for number in 0..PENDING_MAX {
            let mut large = request(number, &format!("c{number}"));
            large.rule_file = "x".repeat(64 * 1024).into();
            match ledger.submitted(large, |_| true, NOW) {
                Ok(next) => ledger = next,
                Err(error) => {
                    assert_eq!(error, LedgerError::Full);
                    break;
                }
            }
            taken += 1;
        }
        assert_eq!(taken, PENDING_BYTES_MAX / (64 * 1024 + 3));
    }

    #[test]
    fn decided_requests_are_forgotten_and_pending_ones_never() {
        let mut ledger = filled(4);
        for number in 100..100 + RECORDS_MAX {
            ledger = ledger.submitted(request(number, "busy"), |_| true, NOW).unwrap();
            ledger = ledger.rejected(&request(number, "").id, None, NOW).unwrap();
        }
        assert!(ledger.requests.len() <= RECORDS_MAX);
        assert_eq!(ledger.pending().count(), 4);
        assert!(ledger.find(&request(100, "").id).is_none());
    }

    #[test]
    fn the_file_is_read_strictly() {
        let ledger = filled(3).rejected(&request(1, "").id, Some("no".to_owned()), NOW).unwrap();
        let bytes = ledger.to_bytes().unwrap();
        assert_eq!(Ledger::from_bytes(&bytes).unwrap(), ledger);
        let text = String::from_utf8(bytes).unwrap();
        for damaged in [
            String::new(),
            text[..text.len() - 1].to_owned(),
            text.replace("\"version\":1", "\"version\":2"),
            text.replace("rr-0000000000000000", "../../../etc/x"),
            text.replace("rr-0000000000000000", "rr-0000000000000001"),
            text.replace("\"decided_at\"", "\"decided\""),
        ] {
            assert!(Ledger::from_bytes(damaged.as_bytes()).is_err(), "{damaged}");
        }
    }
}
