"""kill -9 at random moments, under load: never open, no state lost, serving again at once.

`OUTCALL_CRASH_SECONDS` (default 40; 300 for the long run) and `OUTCALL_CRASH_SEED` (default: drawn, and printed)."""

import glob
import json
import os
import random
import time

from harness import *
from scenarios.agents import rule_file, submit, token_of

SECONDS = int(os.environ.get("OUTCALL_CRASH_SECONDS", "40"))
# Seconds from the start of the new process to the first allowed request that is served: 1 s is the aim on a quiet machine with
# a release build; tests share two cores with the load, and may run a debug build.
SERVING_BOUND = 6.0
FORBIDDEN = "5.66.0.1"
SECRET = b"outcall-crash-secret"


def load(client, log):
    """What a busy agent does, for ever: allowed and denied requests, and everything it must not reach.

    Writes the time of each allowed request that was served, on the clock that all of the host shares, into `log`."""
    return client.start("/usr/bin/python3", "-c", (
        "import sys, threading, time, socket; sys.path.insert(0, '/lab/inside'); from net import *\n"
        "def proxied(host):\n"
        "  while True:\n"
        "    try:\n"
        "      s = socket.create_connection(('10.200.0.1', 8080), 0.1); s.settimeout(1)\n"
        "      s.sendall(f'GET http://{host}/ HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n'.encode()); \n"
        "      if s.recv(4096).startswith(b'HTTP/1.1 200'): print(time.monotonic(), flush=True)\n"
        "      s.close()\n"
        "    except OSError: pass\n"
        "    time.sleep(0.02)\n"
        "def tunnel():\n"
        "  while True:\n"
        "    try:\n"
        "      s = socket.create_connection(('10.200.0.1', 8080), 0.1); s.settimeout(1)\n"
        "      s.sendall(b'CONNECT example.com:443 HTTP/1.1\\r\\nHost: example.com:443\\r\\n\\r\\n'); s.recv(4096); time.sleep(0.2); s.close()\n"
        "    except OSError: time.sleep(0.02)\n"
        "for host in ('example.com', 'denied.example.net'):\n"
        "  threading.Thread(target=proxied, args=(host,), daemon=True).start()\n"
        "threading.Thread(target=tunnel, daemon=True).start()\n"
        "while True:\n"
        f"  tcp('{FORBIDDEN}', 443, 0.03); udp('{FORBIDDEN}', 53, {SECRET!r}, 0.01); udp('8.8.8.8', 53, {SECRET!r}, 0.01)\n"), log=log)


def served_since(log, moment):
    """When the first request after `moment` was served, or None."""
    with open(log) as file:
        file.seek(max(0, os.path.getsize(log) - 4000))
        times = [float(line) for line in file.read().split("\n")[1:-1]]
    return next((at for at in times if at > moment), None)


def state(daemon):
    """What must survive, as the API tells it: rules, pending requests, the flow that was opened by hand."""
    rules = [r["id"] for r in daemon.api("GET", "/api/v1/rules").data]
    requests = [(r["id"], r["installs"]) for r in daemon.api("GET", "/api/v1/requests/rules").data]
    by_hand = [(r["destination"], r["port"]) for r in daemon.api("GET", "/api/v1/rules/active").data if r["port"] == 7000]
    return rules, requests, by_hand


def whole_lines(daemon):
    """The decision log's events; only the last line before a kill may be cut."""
    events, cut = 0, 0
    for path in glob.glob(f"{daemon.state_dir}/decisions.jsonl*"):
        with open(path, "rb") as file:
            for line in file.read().split(b"\n"):
                try:
                    events += bool(line and json.loads(line))
                except ValueError:
                    cut += 1
    return events, cut


@scenario(deadline=SECONDS + 120, alone=True)
def kill_9_at_random_moments_under_load(lab):
    seed = int(os.environ.get("OUTCALL_CRASH_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"     seed {seed}, {SECONDS} s", flush=True)
    dice = random.Random(seed)
    daemon = lab.daemon([
        *allow("example.com"),
        rule("direct", 'dns.query == "direct.example.com"', egress={"mode": "direct_ip", "ports": [80]}),
    ], flags=["--on-exit", "keep"])
    lab.internet.names.set("direct.example.com", "5.66.1.1")
    client = lab.client(flags=["-v", f"{daemon.directory}/agent/agent:/run/outcall"])
    token_of(client)
    for n in range(3):
        submit(client, rule_file(rule(f"asked-{n}", f'http.host == "a{n}.example.com"')))
    answer = daemon.api("POST", "/api/v1/rule/allow", {
        "container": client.name, "src_ip": client.ip, "destination": "5.66.2.1", "protocol": "tcp", "port": 7000})
    check(answer.status == 201, answer)
    wanted = state(daemon)
    check(len(wanted[1]) == 3 and wanted[2] == [("5.66.2.1", 7000)], wanted)
    log = lab.path("served")
    busy = load(client, log)
    kills, took = 0, []
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        # Also in the middle of a start, of a reload, of an approval that is on its way to the disk.
        moment = dice.random()
        if moment < 0.2:
            daemon.kill()
            daemon.start(wait=False)
            time.sleep(dice.uniform(0, 0.4))
        else:
            time.sleep(dice.uniform(0.1, 1.5))
            if moment < 0.5:
                try:
                    daemon.api("POST", "/api/v1/rules/reload")
                    client.dig("direct.example.com", seconds=1)
                except OSError:
                    pass
        daemon.kill()
        kills += 1
        lab.internet.nothing_for(FORBIDDEN)
        check(("inet", "outcall") in lab.tables(), "a crash left no table")
        began = time.monotonic()
        daemon.start(wait=False)
        at = wait_for(lambda: served_since(log, began), "an allowed request to be served", SERVING_BOUND + 4, 0.01)
        took.append(at - began)
        check(daemon.process.poll() is None, daemon.tail(3))
        wait_for(lambda: state(daemon) == wanted, f"the state {wanted}", 5)
    daemon.wait_ready()
    check(busy.poll() is None, "the load ended early")
    lab.internet.nothing_for(FORBIDDEN)
    check(not lab.internet.packets.carrying(SECRET))
    events, cut = whole_lines(daemon)
    took.sort()
    print(f"     {kills} kills, {events} decisions logged, {cut} lines cut; serving again after {took[len(took) // 2]:.2f} s "
          f"(median), {took[-1]:.2f} s (most)", flush=True)
    check(kills >= SECONDS // 8 and events > 0, (kills, events))
    check(cut <= 2 * kills, (cut, kills))
    check(took[len(took) // 2] < SERVING_BOUND / 2 and took[-1] < SERVING_BOUND, took)
