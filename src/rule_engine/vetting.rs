//! The guarded child: limits first, then it parses what it is given, and says what it thinks.
//!
//! It holds nothing worth taking: no descriptor but its three, no environment, no way to open another.

use std::io::{Read, Write};

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;

use super::guarded::{ANSWER_MAX, JOB_CEL, JOB_FILE, JOB_YAML, PASSED, READY, REFUSED, options_of};
use super::load::COMPILE_STACK;
use super::{expression, installs, load_sources, yaml};

/// Address space in bytes. A load of 10,000 rules needs about a tenth; the allocator reserves 64 MiB a thread.
const ADDRESS_SPACE_MAX: u64 = 512 * 1024 * 1024;
/// CPU time in seconds. The parent's clock is stricter; this holds if the parent is stopped.
const CPU_SECONDS_MAX: u64 = 30;
/// Standard input, output and error: there is nothing else, and nothing else can be opened.
const DESCRIPTORS_MAX: u64 = 3;
/// Errors of a submission that are told: more than whoever sent it is shown.
const FILE_ERRORS_MAX: usize = 32;
/// Bytes of one job: the largest rule file.
const JOB_MAX: u64 = 8 * 1024 * 1024;

/// What `outcalld` does when its first argument is [`super::GUARDED_ARGUMENT`]: call it before anything else, in
/// particular before any thread or descriptor is made. It never returns.
pub fn guarded_child_main() -> ! {
    // The exit status is for a human with strace: the parent goes by the answers alone.
    let status = match confine().and_then(|()| serve_on_half_the_stack()) {
        Ok(()) => 0,
        Err(_) => 70,
    };
    std::process::exit(status)
}

/// Takes away what a child that was taken over could use.
fn confine() -> std::io::Result<()> {
    close_inherited();
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE_MAX, ADDRESS_SPACE_MAX)?;
    setrlimit(Resource::RLIMIT_CPU, CPU_SECONDS_MAX, CPU_SECONDS_MAX)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    setrlimit(Resource::RLIMIT_FSIZE, 0, 0)?;
    setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX, DESCRIPTORS_MAX)?;
    // A panic is an answer here, and standard error is /dev/null anyway.
    std::panic::set_hook(Box::new(|_| ()));
    Ok(())
}

/// Closes every descriptor but the first three. The daemon opens all of its own close-on-exec; this is for what
/// whoever started the daemon left open.
fn close_inherited() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: closing descriptors touches no memory. Nothing in this process owns a descriptor from 3 on: this is the
    // first thing it does, and the standard streams are below.
    let closed = unsafe { libc::close_range(FIRST, libc::c_uint::MAX, 0) };
    if closed != 0 {
        // Kernels before 5.9, and sandboxes that hide the call. More than this nobody leaves open.
        for descriptor in 3..4096 {
            // SAFETY: as above.
            unsafe { libc::close(descriptor) };
        }
    }
}

/// What survives half of the stack here survives the whole there, whatever the difference between two runs.
fn serve_on_half_the_stack() -> std::io::Result<()> {
    let thread = std::thread::Builder::new().stack_size(COMPILE_STACK / 2).spawn(|| {
        let (input, output) = (std::io::stdin().lock(), std::io::stdout().lock());
        serve(input, output)
    })?;
    thread.join().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()))
}

fn serve(input: impl Read, mut output: impl Write) -> std::io::Result<()> {
    let mut input = std::io::BufReader::new(input);
    output.write_all(&[READY])?;
    output.flush()?;
    let mut kind = [0];
    while input.read(&mut kind)? == 1 {
        let mut length = [0; 4];
        input.read_exact(&mut length)?;
        let length = u64::from(u32::from_le_bytes(length));
        let mut text = String::new();
        input.by_ref().take(length.min(JOB_MAX)).read_to_string(&mut text)?;
        let reasons = match kind {
            // Whatever is wrong with the file, the parser survived it: the parent says what, with the line.
            [JOB_YAML] => {
                drop(yaml::parse(&text));
                Vec::new()
            }
            [JOB_CEL] => expression::compile(&text).err().unwrap_or_default(),
            [JOB_FILE] => whole_file(&text),
            _ => return Err(std::io::ErrorKind::InvalidData.into()),
        };
        // One write an answer, and none held back: the next job may be the last.
        output.write_all(&answer(&reasons))?;
        output.flush()?;
    }
    Ok(())
}

/// What is wrong with a submission, told after its flags.
fn whole_file(job: &str) -> Vec<String> {
    let Some((flags, text)) = job.split_at_checked(1) else { return vec!["no file was given".to_owned()] };
    let options = options_of(flags.bytes().next().unwrap_or_default());
    let errors = load_sources(&[installs::submitted(text)], &options, None).err();
    errors.into_iter().flat_map(|errors| errors.0).take(FILE_ERRORS_MAX).map(|error| error.to_string()).collect()
}

fn answer(reasons: &[String]) -> Vec<u8> {
    let mut text = String::new();
    for reason in reasons {
        if text.len() + reason.len() + 1 > ANSWER_MAX {
            break;
        }
        text.push_str(reason);
        text.push('\n');
    }
    let verdict = if reasons.is_empty() { PASSED } else { REFUSED };
    let mut bytes = vec![verdict];
    // Under ANSWER_MAX, so it fits.
    bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::LoadOptions;
    use super::super::guarded::{Guard, flags_of};
    use super::*;

    #[test]
    fn jobs_are_answered_in_order() {
        let mut input = Vec::new();
        for (kind, text) in [(JOB_CEL, "true"), (JOB_CEL, "ip.dst == 'x'"), (JOB_YAML, "a: *b"), (JOB_CEL, "(")] {
            input.push(kind);
            input.extend_from_slice(&u32::try_from(text.len()).unwrap().to_le_bytes());
            input.extend_from_slice(text.as_bytes());
        }
        let mut output = Vec::new();
        serve(input.as_slice(), &mut output).unwrap();
        let text = String::from_utf8_lossy(&output);
        assert!(text.starts_with("R+\0\0\0\0-"), "{text:?}");
        assert!(text.contains("network.ip"), "{text:?}");
        assert!(text.contains("CEL: "), "{text:?}");
    }

    #[test]
    fn a_whole_file_is_judged_under_its_options() {
        let file = |flags: &str, mode: &str| {
            let rule = format!("{{id: a, condition: 'true', action: allow, egress: {{mode: {mode}}}}}");
            whole_file(&format!("{flags}version: '1'\nrules:\n- {rule}\n")).join(" ")
        };
        let flags = |proxy, interception| {
            let options = LoadOptions { proxy, interception, guard: Guard::InProcess };
            char::from(flags_of(&options)).to_string()
        };
        assert_eq!(file(&flags(true, true), "intercept"), "");
        assert!(file(&flags(true, false), "intercept").contains("--ca-cert"));
        assert!(file(&flags(false, true), "proxy").contains("--no-proxy"));
        assert_eq!(file(&flags(false, false), "direct_ip"), "");
        assert!(file(&flags(true, true), "other").starts_with("rule_file:3: rule a: unknown mode"));
        assert!(!whole_file("").is_empty());
    }

    #[test]
    fn an_endless_answer_is_cut() {
        let bytes = answer(&vec!["x".repeat(1000); 1000]);
        assert!(bytes.len() <= ANSWER_MAX + 5);
    }
}
