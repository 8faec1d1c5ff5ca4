//! Where hostile input is tried first: the parent's side of the guarded child.
//!
//! A few hundred bytes can make a parser overflow its stack or use gigabytes. So every rule file and every condition
//! is parsed in a child process with limits before this process parses it. One child serves a whole load; the answers
//! come in order, so the first one missing names the culprit, and a new child goes on behind it.
//!
//! `vetting` is the child's side.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::LoadOptions;

/// The one argument that makes `outcalld` the child instead of the daemon; see [`super::guarded_child_main`].
pub const GUARDED_ARGUMENT: &str = "--internal-vet-rules";

/// Time for one condition or file. The slowest sane one takes a few milliseconds.
const JOB_WITHIN: Duration = Duration::from_secs(2);
/// Time for a submission with all that is in it: an agent has its answer within two seconds.
const FILE_WITHIN: Duration = Duration::from_millis(1500);
/// Time for all of a load.
const LOAD_WITHIN: Duration = Duration::from_secs(30);
/// Children of one load: with more culprits than that, the rest is not looked at.
const CHILDREN_MAX: usize = 8;
/// Bytes of one answer; what a child says beyond it is not believed.
pub(super) const ANSWER_MAX: usize = 64 * 1024;

/// What the child says before its first answer: it started, and its limits are in force.
pub(super) const READY: u8 = b'R';
/// The first byte of an answer.
pub(super) const PASSED: u8 = b'+';
/// The first byte of a refusal.
pub(super) const REFUSED: u8 = b'-';
/// The first byte of a job.
pub(super) const JOB_YAML: u8 = b'Y';
/// The first byte of a job.
pub(super) const JOB_CEL: u8 = b'C';
/// The first byte of a job whose text begins with [`flags_of`] the options.
pub(super) const JOB_FILE: u8 = b'F';

/// Where sources are tried before this process parses them.
#[derive(Clone, Debug)]
pub enum Guard {
    /// In a child that executes this `outcalld`.
    Exec(PathBuf),
    /// Nowhere: for tests whose sources are their own.
    InProcess,
}

/// One thing to try.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job<'t> {
    /// A rule file.
    Yaml(&'t str),
    /// A condition, expanded.
    Cel(&'t str),
    /// A rule file and all that is in it, under options that are told by [`flags_of`].
    File(&'t str, u8),
}

/// What the child must know to load a whole file, as a digit: its two lowest bits.
pub(super) fn flags_of(options: &LoadOptions) -> u8 {
    b'0' + u8::from(options.proxy) + 2 * u8::from(options.interception)
}

/// The options that [`flags_of`] told, in the child.
pub(super) fn options_of(flags: u8) -> LoadOptions {
    LoadOptions { proxy: flags & 1 != 0, interception: flags & 2 != 0, guard: Guard::InProcess }
}

/// `Err` holds every reason, each in one line.
pub(super) type Vetted = Result<(), Vec<String>>;

impl Guard {
    /// The daemon's own guard: the running executable, also when its file was replaced since.
    #[must_use]
    pub fn own() -> Self {
        Guard::Exec(PathBuf::from("/proc/self/exe"))
    }

    /// Tries each job; `take` gets one answer for each, in order, as soon as it is there.
    pub(super) fn vet(&self, jobs: &[Job<'_>], mut take: impl FnMut(usize, Vetted)) {
        match self {
            Guard::InProcess => (0..jobs.len()).for_each(|position| take(position, Ok(()))),
            Guard::Exec(executable) => vet(executable, jobs, &mut Answers { next: 0, take: &mut take }),
        }
    }
}

/// Numbers the answers.
struct Answers<'t> {
    next: usize,
    take: &'t mut dyn FnMut(usize, Vetted),
}

impl Answers<'_> {
    fn push(&mut self, answer: Vetted) {
        (self.take)(self.next, answer);
        self.next += 1;
    }

    fn fill(&mut self, up_to: usize, reason: &str) {
        while self.next < up_to {
            self.push(Err(vec![reason.to_owned()]));
        }
    }
}

fn vet(executable: &Path, jobs: &[Job<'_>], answers: &mut Answers<'_>) {
    let deadline = Instant::now() + LOAD_WITHIN;
    for _ in 0..CHILDREN_MAX {
        let Some(left) = jobs.get(answers.next..).filter(|left| !left.is_empty()) else { return };
        match Guarded::start(executable, left).and_then(|child| child.collect(left, deadline, answers)) {
            Ok(()) => return,
            Err(Stop::Culprit(reason)) => answers.push(Err(vec![reason])),
            Err(Stop::Broken(reason)) => return answers.fill(jobs.len(), &reason),
        }
    }
    answers.fill(jobs.len(), &format!("not checked: {CHILDREN_MAX} others crashed the checker; mend those first"));
}

/// Why a child gave no further answer.
enum Stop {
    /// The job it was at did it.
    Culprit(String),
    /// It is not the job: there is no working child to be had.
    Broken(String),
}

/// A running child; killed and reaped when dropped.
struct Guarded {
    child: Child,
    answers: ChildStdout,
    buffer: Vec<u8>,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Both fail only if it is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Guarded {
    /// Starts a child on `jobs`. They are in a file in memory, its standard input, so that neither side ever waits
    /// for the other to read.
    fn start(executable: &Path, jobs: &[Job<'_>]) -> Result<Self, Stop> {
        let broken = |what: &str, error: std::io::Error| Stop::Broken(format!("the rule checker: {what}: {error}"));
        let input = memfd_create(c"outcall-rules", MFdFlags::MFD_CLOEXEC)
            .map_err(|errno| broken("cannot make a memory file", errno.into()))?;
        let mut input = File::from(input);
        write_jobs(&mut input, jobs).map_err(|error| broken("cannot write to a memory file", error))?;
        let mut child = Command::new(executable)
            .arg(GUARDED_ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(input))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| broken(&format!("cannot execute {}", executable.display()), error))?;
        match child.stdout.take() {
            Some(answers) => Ok(Guarded { child, answers, buffer: Vec::new() }),
            // `spawn` gives a pipe where one was asked for.
            None => Err(Stop::Broken("the rule checker has no output".to_owned())),
        }
    }

    /// Takes one answer for each job.
    fn collect(mut self, jobs: &[Job<'_>], deadline: Instant, answers: &mut Answers<'_>) -> Result<(), Stop> {
        let began = Instant::now();
        match self.take(1, deadline.min(began + JOB_WITHIN)) {
            Ok(byte) if byte == [READY] => {}
            _ => {
                let how =
                    self.child.try_wait().ok().flatten().map_or_else(String::new, |status| format!(" ({status})"));
                return Err(Stop::Broken(format!("the rule checker does not start{how}")));
            }
        }
        for job in jobs {
            let due = Instant::now() + job.within();
            let answer = self.answer(deadline.min(due)).map_err(|silence| match silence {
                Silence::Late if due > deadline => {
                    Stop::Broken(format!("the rules take over {} s to check", LOAD_WITHIN.as_secs()))
                }
                Silence::Late => {
                    Stop::Culprit(format!("{} takes over {} s to parse", job.noun(), job.within().as_secs_f32()))
                }
                Silence::Ended => {
                    Stop::Culprit(format!("{} is too complex: its parser ran out of stack, memory or time", job.noun()))
                }
                Silence::Nonsense => Stop::Broken("the rule checker answers nonsense".to_owned()),
            })?;
            answers.push(answer);
        }
        Ok(())
    }

    fn answer(&mut self, deadline: Instant) -> Result<Vetted, Silence> {
        let head = self.take(5, deadline)?;
        let [verdict, length @ ..] = head.as_slice() else { return Err(Silence::Nonsense) };
        let length = <[u8; 4]>::try_from(length).map(u32::from_le_bytes).map_err(|_| Silence::Nonsense)?;
        let length = usize::try_from(length).ok().filter(|length| *length <= ANSWER_MAX).ok_or(Silence::Nonsense)?;
        let text = self.take(length, deadline)?;
        match *verdict {
            PASSED if text.is_empty() => Ok(Ok(())),
            REFUSED => {
                let text = String::from_utf8(text).map_err(|_| Silence::Nonsense)?;
                Ok(Err(text.lines().map(str::to_owned).collect()))
            }
            _ => Err(Silence::Nonsense),
        }
    }

    /// The next `length` bytes.
    fn take(&mut self, length: usize, deadline: Instant) -> Result<Vec<u8>, Silence> {
        while self.buffer.len() < length {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Silence::Late);
            }
            // Rounded up, so that the last millisecond is not spun away.
            let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            let mut ready = [PollFd::new(self.answers.as_fd(), PollFlags::POLLIN)];
            match poll(&mut ready, timeout) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
                Ok(_) => {}
                Err(_) => return Err(Silence::Ended),
            }
            let mut chunk = [0; 16 * 1024];
            match self.answers.read(&mut chunk) {
                Ok(0) | Err(_) => return Err(Silence::Ended),
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
            }
        }
        let rest = self.buffer.split_off(length);
        Ok(std::mem::replace(&mut self.buffer, rest))
    }
}

/// Why an answer did not come.
enum Silence {
    Late,
    Ended,
    Nonsense,
}

impl Job<'_> {
    fn noun(&self) -> &'static str {
        match self {
            Job::Yaml(_) | Job::File(..) => "the file",
            Job::Cel(_) => "the condition",
        }
    }

    fn within(&self) -> Duration {
        match self {
            Job::Yaml(_) | Job::Cel(_) => JOB_WITHIN,
            Job::File(..) => FILE_WITHIN,
        }
    }
}

fn write_jobs(input: &mut File, jobs: &[Job<'_>]) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    for job in jobs {
        let (kind, flags, text) = match job {
            Job::Yaml(text) => (JOB_YAML, None, text),
            Job::Cel(text) => (JOB_CEL, None, text),
            Job::File(text, flags) => (JOB_FILE, Some(*flags), text),
        };
        let length = text.len() + usize::from(flags.is_some());
        let length = u32::try_from(length).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
        bytes.push(kind);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend(flags);
        bytes.extend_from_slice(text.as_bytes());
    }
    input.write_all(&bytes)?;
    input.seek(SeekFrom::Start(0)).map(|_| ())
}
