#!/usr/bin/python3
"""Builds the lab, runs the scenarios, says what happened.

Usage: run.py [--list] [PATTERN...]   (a pattern is a part of `file.scenario`)

One line a scenario; failures with the daemon's log; the last line is `N passed, N failed`.
"""

import importlib
import os
import signal
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True

import harness  # noqa: E402
from daemon import binary  # noqa: E402
from lab import Lab  # noqa: E402

# Sweeping has a deadline of its own, seconds: a stuck container must not stop the run.
SWEEP_DEADLINE = 90


class Late(BaseException):
    """A deadline struck. Not an Exception, so that no `except Exception` swallows it."""


def strike(*_):
    raise Late()


def leave(*_):
    raise KeyboardInterrupt()


def collect(patterns):
    """All scenarios whose name holds one of the patterns, in the order of files and lines."""
    for file in sorted(os.listdir(os.path.join(HERE, "scenarios"))):
        if file.endswith(".py") and not file.startswith("_"):
            importlib.import_module("scenarios." + file[:-3])
    found = harness.SCENARIOS
    return [s for s in found if not patterns or any(pattern in s.name for pattern in patterns)]


def say(text=""):
    print(text, flush=True)


def explain(problem):
    """The problem, with the lines of scenario code that led to it."""
    if isinstance(problem, Late):
        what = "deadline passed"
    else:
        what = f"{type(problem).__name__}: {problem}"
    frames = [f for f in traceback.extract_tb(problem.__traceback__) if f.filename.startswith(HERE)]
    where = [f"    {os.path.relpath(f.filename, HERE)}:{f.lineno}: {f.line}" for f in frames[1:]]
    return "\n".join([f"    {what}", *where])


def run_one(lab, scenario):
    """Runs one scenario; gives (verdict, details)."""
    verdict, details = "ok", ""
    lab.begin()
    signal.setitimer(signal.ITIMER_REAL, scenario.deadline)
    try:
        scenario.function(lab)
    except harness.Skip as reason:
        verdict, details = "skip", f"    {reason}"
    except (Exception, Late) as problem:
        verdict, details = "FAIL", explain(problem)
        for daemon in lab.daemons:
            details += f"\n    --- log of {os.path.basename(daemon.directory)}:\n"
            details += "\n".join("    | " + line for line in daemon.tail(40).splitlines())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    signal.setitimer(signal.ITIMER_REAL, SWEEP_DEADLINE)
    try:
        lab.sweep()
    except (Exception, Late) as problem:
        verdict, details = "FAIL", details + "\n    while sweeping: " + explain(problem).strip()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return verdict, details


def main(arguments):
    """Exit code: 0 if nothing failed."""
    scenarios = collect([a for a in arguments if not a.startswith("-")])
    if "--list" in arguments:
        for scenario in scenarios:
            say(scenario.name)
        return 0
    if os.geteuid() != 0:
        say("lab: must be root (namespaces, Docker Engine, nftables)")
        return 1
    if any(s.needs_daemon for s in scenarios):
        missing = [name for name in ("outcalld", "outcall") if not binary(name)]
        if missing:
            say(f"lab: {', '.join(missing)} not built: run `cargo build --release` first")
            return 1
    signal.signal(signal.SIGALRM, strike)
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
    say("lab: making namespaces, Docker Engine, images and the internet")
    began = time.monotonic()
    lab = Lab(say)
    say(f"lab: up after {time.monotonic() - began:.1f} s; {len(scenarios)} scenarios")
    counts = {"ok": 0, "FAIL": 0, "skip": 0}
    failures = []
    try:
        for scenario in scenarios:
            start = time.monotonic()
            verdict, details = run_one(lab, scenario)
            counts[verdict] += 1
            say(f"{verdict:4} {time.monotonic() - start:6.2f} s  {scenario.name}")
            if verdict != "ok":
                say(details)
            if verdict == "FAIL":
                failures.append(scenario.name)
    except KeyboardInterrupt:
        say("lab: interrupted")
        failures.append("(interrupted)")
        counts["FAIL"] += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        lab.close()
    if failures:
        say("failed: " + " ".join(failures))
    skipped = f", {counts['skip']} skipped" if counts["skip"] else ""
    say(f"{counts['ok']} passed, {counts['FAIL']} failed{skipped}")
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
