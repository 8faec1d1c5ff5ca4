"""How long a start takes."""

import re
import statistics

from daemon import allow

from figures import say

STARTS = 5


def run(lab):
    """From exec to the last step, Docker's own calls counted apart by the step named network."""
    totals, networks = [], []
    for _ in range(STARTS):
        lab.begin("bench")
        daemon = lab.daemon(allow("example.com"))
        text = daemon.text()
        totals.append(int(re.search(r"outcalld \S+ is up.*?took_ms=(\d+)", text).group(1)))
        networks.append(int(re.search(r'step="network" took_ms=(\d+)', text).group(1)))
        lab.sweep()
    say("start, median of %d" % STARTS, f"{statistics.median(totals)} ms",
        f"of it {statistics.median(networks)} ms in the step that waits for Docker")
