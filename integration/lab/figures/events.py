"""Events: what a decision takes with and without ten stalled readers and a full disk."""

import os
import subprocess

from daemon import UnixConnection, allow

from figures import say

# Small runs show that the part works; the real figures come from the default.
SCALE = float(os.environ.get("OUTCALL_BENCH_SCALE", "1"))
QUESTIONS = max(200, int(20000 * SCALE))
READERS = 10

# The same allowed name over and over, from the cache: decision, answer, event.
ASK = '''
import time
question = b"\\x12\\x34\\x01\\x00\\x00\\x01" + bytes(6) + b"\\x01a\\x07example\\x03com\\x00\\x00\\x01\\x00\\x01"
took = []
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(5); s.connect((GATEWAY, 53))
    for _ in range(questions):
        since = time.monotonic()
        s.send(question); s.recv(4096)
        took.append(time.monotonic() - since)
took.sort()
result = [took[len(took) // 2] * 1e6, took[len(took) * 99 // 100] * 1e6]
'''


def measured(client):
    """Median and 99th percentile of a decision, microseconds; the better of three runs of each."""
    runs = [client.py(ASK, questions=QUESTIONS, seconds=120) for _ in range(3)]
    return [min(column) for column in zip(*runs)]


def run(lab):
    """Prints the figures."""
    figures = {}
    for hindered in (False, True):
        lab.begin("bench")
        daemon = lab.daemon(allow("a.example.com"), start=False)
        if hindered:
            mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", daemon.state_dir]
            subprocess.run([*lab.space.enter(), *mount], check=True)
        try:
            daemon.start()
            client = lab.client()
            readers = [UnixConnection(daemon.socket) for _ in range(READERS if hindered else 0)]
            for reader in readers:
                reader.request("GET", "/api/v1/events?follow=true")
            figures[hindered] = measured(client)
            text = daemon.api("GET", "/metrics").body
            lost = [line for line in text.splitlines() if line.startswith("outcall_events_lost_total")]
            label = "10 stalled readers, full disk" if hindered else "no readers, a disk with room"
            median, p99 = figures[hindered]
            say(f"decision, {label}", f"{median:.0f} us", f"99 %: {p99:.0f} us")
            for line in lost:
                say("  " + line.rpartition(" ")[0], line.rpartition(" ")[2])
        finally:
            if hindered:
                subprocess.run([*lab.space.enter(), "umount", "-l", daemon.state_dir], check=False)
            lab.sweep()
    ratios = [after / before for before, after in zip(figures[False], figures[True])]
    say("ratio, hindered to free", f"{ratios[0]:.2f}", f"99 %: {ratios[1]:.2f}")
