"""What a scenario file imports: the decorator, the checks, the waiting, rule helpers.

    from harness import *

    @scenario()
    def a_denied_name_is_nxdomain(lab):
        lab.daemon(allow("example.com"))
        client = lab.client()
        check(client.dig("denied.example.net").status == "NXDOMAIN")
        lab.internet.not_asked("denied.example.net")
"""

import inspect

from daemon import UPSTREAM, allow, binary, rule
from lab import DEFAULT_NETWORK, GATEWAY
from sh import Timeout, run, stays, wait_for

SCENARIOS = []
DEFAULT_DEADLINE = 60


class Scenario:
    """One scenario: its name is `file.function`."""

    def __init__(self, function, deadline, needs_daemon, needs_machine, alone):
        self.function = function
        self.deadline = deadline
        self.needs_daemon = needs_daemon
        self.needs_machine = needs_machine
        self.alone = alone
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"


class Skip(Exception):
    """Raised by a scenario that cannot run on this machine; carries the reason."""


def scenario(deadline=DEFAULT_DEADLINE, needs_daemon=True, needs_machine=False, alone=False):
    """Registers the function below as a scenario, deadline in seconds; nothing runs beside one that is `alone`."""

    def register(function):
        SCENARIOS.append(Scenario(function, deadline, needs_daemon, needs_machine, alone))
        return function

    return register


def check(condition, seen=None):
    """Fails the scenario unless `condition`; shows the line that asked, and `seen`."""
    if condition:
        return condition
    frame = inspect.stack()[1]
    line = (frame.code_context or [""])[0].strip()
    raise AssertionError(f"{line}  [saw: {seen!r}]" if seen is not None else line)


def skip(reason):
    """Leaves the scenario, with a reason that is printed."""
    raise Skip(reason)


__all__ = [
    "scenario", "check", "skip", "wait_for", "stays", "Timeout", "run", "rule", "allow", "binary",
    "UPSTREAM", "GATEWAY", "DEFAULT_NETWORK",
]
