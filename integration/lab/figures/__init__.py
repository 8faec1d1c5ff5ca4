"""The figures that `integration/bench` prints: one module a part, whose `run(lab)` measures and says.

Owns what several parts need. A part says what it measured with `say`; it passes or fails nothing.
"""

import re


def say(label, value, note=""):
    """One figure."""
    print(f"{label + ':':44} {value}{'   ' + note if note else ''}", flush=True)


def status(pid, field):
    """A number from /proc/PID/status."""
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(rf"^{field}:\s+(\d+)", file.read(), re.M).group(1))


def anonymous_kib(pid):
    """Private anonymous memory, KiB: what the process itself has written."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return int(re.search(r"^Anonymous:\s+(\d+)", file.read(), re.M).group(1))
