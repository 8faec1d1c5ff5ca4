"""Size of each binary."""

import os

from daemon import binary

from figures import say


def run(lab):
    """Size of each binary."""
    for name in ("outcalld", "outcall", "outcall-agent"):
        path = binary(name)
        if path:
            say(f"size of {name}", f"{os.path.getsize(path) / 1e6:.2f} MB")
