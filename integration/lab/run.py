#!/usr/bin/python3
"""Builds the lab, runs the scenarios, says what happened.

Usage: run.py [--list] [PATTERN...]   (a pattern is a part of `file.scenario`)

One line a scenario; failures with the daemon's log; the last line is `N passed, N failed`. A long
run has two lanes: two labs side by side, each with a Docker Engine of its own, that take the next
scenario as they get free; those that measure run when the other lane is done.
"""

import importlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True

import harness  # noqa: E402
import machine  # noqa: E402
import sh  # noqa: E402
from daemon import binary  # noqa: E402
from lab import Lab  # noqa: E402

# Labs side by side, and how many scenarios make a second one worth its start.
LANES = 2
LANE_WORTH = 20
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
    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
    if any(s.needs_machine for s in scenarios):
        machine.base(say)
    counts = {"ok": 0, "FAIL": 0, "skip": 0}
    failures = []
    try:
        for name, verdict, seconds, details in results(scenarios):
            counts[verdict] += 1
            say(f"{verdict:4} {seconds:6.2f} s  {name}")
            if verdict != "ok":
                say(details)
            if verdict == "FAIL":
                failures.append(name)
    except KeyboardInterrupt:
        say("lab: interrupted")
        failures.append("(interrupted)")
        counts["FAIL"] += 1
    if failures:
        say("failed: " + " ".join(failures))
    skipped = f", {counts['skip']} skipped" if counts["skip"] else ""
    say(f"{counts['ok']} passed, {counts['FAIL']} failed{skipped}")
    return 1 if counts["FAIL"] else 0


def results(scenarios):
    """Runs the scenarios in as many lanes as they are worth; yields (name, verdict, seconds, details) as each ends."""
    count = max(1, min(LANES, len(scenarios) // LANE_WORTH))
    say(f"lab: making namespaces, Docker Engine, images and the internet, {count} of each")
    together = [s for s in scenarios if count == 1 or not s.alone]
    alone = [s for s in scenarios if s not in together]
    turn, quiet = multiprocessing.Value("i", 0), multiprocessing.Event()
    lanes, ends = {}, {}
    for number in range(count):
        reading, writing = multiprocessing.Pipe(duplex=False)
        last = alone if number == 0 else []
        process = multiprocessing.Process(target=lane, args=(together, last, turn, quiet, writing.send))
        process.start()
        writing.close()
        lanes[reading], ends[process.sentinel] = process, process
    done = 0
    try:
        while ends or lanes:
            if len(ends) <= 1:
                quiet.set()
            for ready in multiprocessing.connection.wait([*lanes, *ends]):
                if ready in ends:
                    ends.pop(ready).join()
                elif (message := received(ready)) is None:
                    lanes.pop(ready)
                else:
                    done += 1
                    yield message
    finally:
        for process in ends.values():
            process.terminate()
        for process in ends.values():
            process.join()
    if done < len(scenarios):
        yield "(the lab itself)", "FAIL", 0.0, f"    {len(scenarios) - done} scenarios did not run"


def received(pipe):
    """The next message, or None at the end."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def lane(together, alone, turn, quiet, tell):
    """One lab of its own: takes scenarios by turn, then, when all is quiet, those that run alone."""
    sh.die_with_parent(signal.SIGTERM)()
    for ending in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(ending, leave)
    signal.signal(signal.SIGALRM, strike)
    lab = None
    try:
        began = time.monotonic()
        lab = Lab(say)
        say(f"lab: up after {time.monotonic() - began:.1f} s")
        while (index := taken(turn)) < len(together):
            tell(timed(lab, together[index]))
        if alone:
            quiet.wait()
        for scenario in alone:
            tell(timed(lab, scenario))
    except KeyboardInterrupt:
        pass
    except Exception:
        say(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        if lab:
            lab.close()


def taken(turn):
    """The number of the next scenario that nobody has taken."""
    with turn.get_lock():
        turn.value += 1
        return turn.value - 1


def timed(lab, scenario):
    """Runs one scenario; gives (name, verdict, seconds, details)."""
    start = time.monotonic()
    verdict, details = run_one(lab, scenario)
    return scenario.name, verdict, time.monotonic() - start, details


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
