"""Running programs and waiting for conditions.

Owns: how the lab starts a process (always dying with the runner), how it reads a command's output,
and the one way to wait: poll a condition until a deadline. Owns no namespace and no Docker.
"""

import ctypes
import os
import signal
import subprocess
import time

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class CommandFailed(Exception):
    """A command of the lab itself failed; carries what it printed."""


class Timeout(Exception):
    """A condition did not come true before its deadline."""


class Result:
    """Exit status and output of a finished command."""

    def __init__(self, code, out, err):
        self.code = code
        self.out = out
        self.err = err

    @property
    def text(self):
        """Standard output as text."""
        return self.out.decode("utf-8", "replace")

    @property
    def errors(self):
        """Standard error as text."""
        return self.err.decode("utf-8", "replace")

    def __repr__(self):
        return f"exit {self.code}, out {self.text[-600:]!r}, err {self.errors[-600:]!r}"


def die_with_parent(sig=signal.SIGKILL):
    """Returns a preexec function that has the kernel signal the child when the runner dies."""

    def set_signal():
        os.setsid()
        _libc.prctl(PR_SET_PDEATHSIG, int(sig))

    return set_signal


def run(command, check=True, input=None, timeout=60, env=None):
    """Runs `command` (a list) to its end; raises CommandFailed on a non-zero exit if `check`."""
    if isinstance(input, str):
        input = input.encode()
    try:
        done = subprocess.run(
            [str(word) for word in command],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=timeout,
            env=env,
        )
    except subprocess.TimeoutExpired as late:
        raise CommandFailed(f"{' '.join(map(str, command))}: not done after {timeout} s") from late
    if check and done.returncode != 0:
        what = " ".join(str(word) for word in command)
        detail = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        what = what if len(what) < 300 else what[:290] + " …"
        raise CommandFailed(f"{what}: exit {done.returncode}: {detail[-2000:]}")
    return Result(done.returncode, done.stdout, done.stderr)


def start(command, log=None, stdin=None, stdout=None, sig=signal.SIGKILL, env=None):
    """Starts `command` in the background; stderr (and stdout, unless given) go to file `log`."""
    sink = open(log, "ab") if log else subprocess.DEVNULL
    try:
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=stdin if stdin is not None else subprocess.DEVNULL,
            stdout=stdout if stdout is not None else sink,
            stderr=sink,
            preexec_fn=die_with_parent(sig),
            env=env,
        )
    finally:
        if log:
            sink.close()


def stop(process, sig=signal.SIGTERM, grace=10):
    """Signals `process` and reaps it; SIGKILL after `grace` seconds. Returns its exit code."""
    if process.poll() is None:
        process.send_signal(sig)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


def wait_for(condition, what, seconds=10, interval=0.02):
    """Polls `condition()` until it gives something true, which is returned; raises Timeout."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Timeout(f"{what}: not within {seconds} s (last: {value!r})")
        time.sleep(interval)


def stays(condition, what, seconds=1.0, interval=0.02):
    """Polls `condition()` for `seconds` and raises as soon as it is false: for what must not happen."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not condition():
            raise AssertionError(f"{what}: stopped being true")
        time.sleep(interval)
