"""Agents: what a check, a check-in, an identity and a grant cost, and the shim's size and start."""

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import sh
from daemon import REPOSITORY, binary, rule
from scenarios.agents import agent, token_of

from figures import say

# Small runs show that the part works; the real figures come from the default.
SCALE = float(os.environ.get("OUTCALL_BENCH_SCALE", "1"))
CHECKS = max(200, int(20000 * SCALE))
STARTS = max(2, int(20 * SCALE))
# One answer of a name: 25 addresses on 10 ports.
FLOWS_OF_A_NAME = 250
# Names of one flow each: below what a container may have open.
SINGLES = [f"n{number}.one.example.com" for number in range(200)]

LOAD = '''
import json, select
body = json.dumps({"action_type": "tool_exec", "target": "git", "metadata": {"args": "status"}}).encode()
request = ("POST /v1/permissions/check HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Bearer %s\\r\\n"
           "Content-Length: %d\\r\\n\\r\\n" % (token, len(body))).encode() + body
poll, sockets, sent, took = select.epoll(), {}, {}, []
for _ in range(connections):
    s = socket.socket(socket.AF_UNIX); s.connect(path)
    sockets[s.fileno()] = s; poll.register(s.fileno(), select.EPOLLIN)
begun = time.monotonic()
for number, s in sockets.items():
    sent[number] = time.monotonic(); s.send(request)
bad = 0
while len(took) < checks:
    for number, _ in poll.poll():
        answer = sockets[number].recv(4096)
        now = time.monotonic()
        bad += not answer.startswith(b"HTTP/1.1 200")
        took.append(now - sent[number])
        sent[number] = now; sockets[number].send(request)
whole = time.monotonic() - begun
took.sort()
result = [len(took) / whole, took[len(took) // 2] * 1e6, took[len(took) * 99 // 100] * 1e6, bad]
'''

CHECK_IN = '''
def once(s):
    since = time.monotonic()
    s.send(b"POST /v1/checkin HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\n\\r\\n{}"); s.recv(4096)
    return time.monotonic() - since
kept, fresh = [], []
with socket.socket(socket.AF_UNIX) as s:
    s.connect(path)
    kept = [once(s) for _ in range(times)]
for _ in range(times):
    since = time.monotonic()
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path); once(s)
    fresh.append(time.monotonic() - since)
result = [kept, fresh]
'''

# Prints when its first instruction ran and when it was known, both by the clock of all.
FIRST = (
    "import socket, time; first = time.time()\n"
    "while True:\n"
    " s = socket.socket(socket.AF_UNIX); s.connect('/run/outcall/agent.sock')\n"
    " s.send(b'POST /v1/checkin HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 2\\r\\n\\r\\n{}')\n"
    " if s.recv(4096).startswith(b'HTTP/1.1 200'): break\n"
    "print(first, time.time())\n")

# The time from each question to its answer.
ASK = '''
import dns.message, dns.query, dns.rcode
result = []
for name in names:
    query = dns.message.make_query(name, "A")
    since = time.monotonic()
    answer = dns.query.udp(query, GATEWAY, timeout=10)
    result.append(time.monotonic() - since)
    if answer.rcode() != dns.rcode.NOERROR: raise RuntimeError(f"{name}: {answer.rcode()}")
'''


def run(lab):
    """All of them, one after the other."""
    lab.begin("bench")
    ports = list(range(7000, 7010))
    daemon = lab.daemon([
        rule("git", 'run.tool == "git" && agent.name == "alpha"'),
        rule("one", 'dns.query.endsWith(".one.example.com")', egress={"mode": "direct_ip", "ports": [7000]}),
        rule("many", 'dns.query == "many.example.com"', egress={"mode": "direct_ip", "ports": ports}),
        rule("proxy", 'dns.query.endsWith(".plain.example.com")')],
        ["--agent-perm-rate", "1000000/1"])
    checks(lab, daemon)
    identities(lab, daemon)
    grants(lab, daemon, len(ports))
    shim(lab)
    lab.sweep()


def spread(took):
    """Median and p99 of seconds, as text."""
    took = sorted(took)
    return f"median {took[len(took) // 2] * 1e6:.0f} us, p99 {took[len(took) * 99 // 100] * 1e6:.0f} us"


def checks(lab, daemon):
    """Permission checks and check-ins, from inside a container."""
    alpha = agent(lab, daemon, "alpha-1")
    token = token_of(alpha)
    path = "/run/outcall/agent.sock"
    for connections in (1, 64):
        rate, median, p99, bad = alpha.py(LOAD, seconds=300, token=token, path=path, connections=connections, checks=CHECKS)
        note = f"median {median:.0f} us, p99 {p99:.0f} us; one Python process asks" + (f"; {bad} NOT 200" if bad else "")
        say(f"permission checks, {connections} connection{'s' * (connections > 1)}", f"{rate:.0f}/s", note)
    kept, fresh = alpha.py(CHECK_IN, seconds=300, path=path, times=max(50, CHECKS // 20))
    say("check-in", spread(kept))
    say("check-in with its connection", spread(fresh))
    alpha.remove()


def identities(lab, daemon):
    """From `docker run` to the first answer that knows the container."""
    run_to_first, run_to_known, first_to_known = [], [], []
    for number in range(STARTS):
        begun = time.time()
        client = agent(lab, daemon, f"start-{number}", command=("/usr/bin/python3", "-c", FIRST))
        sh.wait_for(lambda: not client.details["State"]["Running"], "the container to have asked", 30)
        first, known = map(float, lab.engine.docker("logs", client.name).text.split())
        run_to_first.append(first - begun)
        run_to_known.append(known - begun)
        first_to_known.append(known - first)
        client.remove()
    say("docker run until identity known", f"{statistics.median(run_to_known) * 1000:.0f} ms",
        f"until its first instruction {statistics.median(run_to_first) * 1000:.0f} ms, from there to its answer "
        f"{statistics.median(first_to_known) * 1000:.1f} ms (worst {max(first_to_known) * 1000:.1f} ms)")


def grants(lab, daemon, ports):
    """Time from a question to its answer, which waits for the kernel to have the flows."""
    addresses = [f"5.60.0.{number + 1}" for number in range(FLOWS_OF_A_NAME // ports)]
    plain = [name.replace("one", "plain") for name in SINGLES]
    for name in (*SINGLES, *plain):
        lab.internet.names.set(name, "5.60.1." + name[1:].partition(".")[0])
    lab.internet.names.set("many.example.com", *addresses)
    wanted = 10000 if SCALE >= 1 else 1000
    with ThreadPoolExecutor(4) as pool:
        clients = list(pool.map(lambda number: lab.client(name=f"grants-{number}"), range(wanted // FLOWS_OF_A_NAME)))
    # The first answer fills the cache, so that no upstream is in the figures.
    clients[-1].py(ASK, seconds=120, names=[*SINGLES, *plain, "many.example.com"])
    daemon.api("POST", "/api/v1/rules/flush")
    say("a cached answer that opens nothing", spread(clients[0].py(ASK, names=plain)))
    say("a cached answer that opens 1 flow", spread(clients[0].py(ASK, names=SINGLES)))
    for count in [number for number in (1000, 10000) if number <= wanted]:
        daemon.api("POST", "/api/v1/rules/flush")
        took = [client.py(ASK, names=["many.example.com"])[0] for client in clients[:count // FLOWS_OF_A_NAME]]
        opened = len(daemon.api("GET", "/api/v1/rules/active").data)
        say(f"{count} flows by names", f"{sum(took) * 1000:.1f} ms",
            f"{len(took)} answers of {FLOWS_OF_A_NAME} flows, {spread(took)} each; open: {opened}")
    since = time.monotonic()
    flushed = daemon.api("POST", "/api/v1/rules/flush").data["removed"]
    say(f"flush of {flushed} flows", f"{(time.monotonic() - since) * 1000:.1f} ms")
    took = []
    for port in range(1, 51):
        since = time.monotonic()
        answer = daemon.api("POST", "/api/v1/rule/allow", {
            "container": clients[0].name, "src_ip": clients[0].ip, "destination": "5.60.2.1", "protocol": "tcp",
            "port": port})
        took.append(time.monotonic() - since)
        if answer.status != 201:
            raise RuntimeError(f"rule/allow: {answer}")
    say("one flow by hand", f"{statistics.median(took) * 1000:.1f} ms", "with its file on disk; median of 50")


def shim(lab):
    """Its size, and how long it takes to start and to say that it needs a command."""
    static = f"{REPOSITORY}/target/x86_64-unknown-linux-gnu/shim/outcall-agent"
    path = static if os.access(static, os.X_OK) else binary("outcall-agent")
    if not path:
        say("shim", "not built", "agent-api.md says how")
        return
    say("shim, size", f"{os.path.getsize(path) / 1024:.0f} KiB", "static build" if path == static else "NOT the static build")
    times = max(50, int(1000 * SCALE))

    def loop(program):
        # The shell forks and waits; the same with a program that does nothing is what it costs.
        since = time.monotonic()
        lab.space.run("sh", "-c", f'i=0; while [ $i -lt {times} ]; do {program} >/dev/null 2>&1; i=$((i+1)); done')
        return (time.monotonic() - since) / times

    nothing = loop("/bin/true")
    say("shim, start to exit", f"{loop(path) * 1e6:.0f} us", f"/bin/true: {nothing * 1e6:.0f} us")
