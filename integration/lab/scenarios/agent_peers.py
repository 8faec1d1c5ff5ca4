"""Who the agents' socket takes a peer for, and what one container's requests cost another."""

import json

from harness import *
from scenarios.agents import SOCKET, TOOLS, Said, agent, ask, permitted, shim, token_of


@scenario()
def a_user_namespace_inside_changes_nothing(lab):
    """Root of a namespace of its own, with its own pids: the peer is the container's process all the same."""
    daemon = lab.daemon(TOOLS)
    alpha = agent(lab, daemon, "alpha-1", user_flags=("--security-opt", "seccomp=unconfined",
                                                      "--security-opt", "apparmor=unconfined"))
    token = token_of(alpha)
    for words in (("unshare", "-U"), ("unshare", "-Ur"), ("unshare", "-Urpf"), ("unshare", "-Urn")):
        tried = alpha.run(*words, "true")
        if tried.code:
            skip(f"{' '.join(words)} is not possible here: {tried.errors.strip()}")
        seen = Said(alpha.run(*words, "curl", "-s", "--unix-socket", SOCKET, "-w", "\n@@%{http_code}", "-d", "{}",
                              "http://outcall/v1/checkin"))
        check(seen.status == 200 and seen.json["container_id"] == alpha.details["Id"], (words, seen))
        check(seen.json["session_token"] == token, words)


@scenario(deadline=90)
def a_container_on_two_networks_is_one_agent(lab):
    daemon = lab.daemon(TOOLS)
    second = lab.network(daemon, "second")
    alpha = agent(lab, daemon, "alpha-1")
    token = token_of(alpha)
    lab.engine.docker("network", "connect", second, "alpha-1")
    wait_for(lambda: any(c["name"] == "alpha-1" for n in daemon.api("GET", "/api/v1/networks").data
                         if n["name"] == second for c in n["containers"]), "the second attachment", 5)
    check(token_of(alpha) == token)
    check(permitted(alpha, token, "tool_exec", "echo", args="x")["allowed"] is True)
    # It stays the same agent while it is on any managed network, and is a stranger after the last.
    lab.engine.docker("network", "disconnect", DEFAULT_NETWORK, "alpha-1")
    wait_for(lambda: not daemon.api("GET", "/api/v1/network").data["containers"], "the first to be left", 5)
    check(token_of(alpha) == token)
    lab.engine.docker("network", "disconnect", second, "alpha-1")
    wait_for(lambda: ask(alpha, "/v1/checkin", {}).status == 403, "403 after the last", 5)


@scenario()
def a_managed_and_an_unmanaged_network_are_one_agent_and_a_warning(lab):
    daemon = lab.daemon(TOOLS)
    alpha = agent(lab, daemon, "alpha-1")
    token = token_of(alpha)
    lab.engine.docker("network", "create", "open")
    lab.engine.docker("network", "connect", "open", "alpha-1")
    wait_for(lambda: "alpha-1" in daemon.api("GET", "/api/v1/ready").body, "/ready to warn", 5)
    check(token_of(alpha) == token)
    check(permitted(alpha, token, "tool_exec", "echo", args="x")["allowed"] is True)


@scenario()
def a_daemon_that_does_not_see_pids_says_what_to_change(lab):
    """As in a container without the host's pid namespace: agents are refused, everything else works."""
    daemon = lab.daemon(TOOLS, wait=False, wrapper=["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"])
    wait_for(lambda: "is up" in daemon.text(), "outcalld to be up", 20)
    check("--pid=host" in daemon.text(), daemon.text())
    # Its operator is whoever it can see: a process of its own namespaces.
    with open(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children") as file:
        inner = file.read().split()[0]
    ready = run(["nsenter", "-t", inner, "-p", "-m", "curl", "-s", "--unix-socket", daemon.socket,
                 "http://localhost/api/v1/ready"])
    warnings = json.loads(ready.text)["data"]["warnings"]
    check(any("--pid=host" in warning for warning in warnings), ready)
    alpha = agent(lab, daemon, "alpha-1")
    seen = ask(alpha, "/v1/checkin", {})
    check(seen.status == 403, seen)
    if binary("outcall-agent"):
        done = shim(alpha, "echo", "hello", env={"OUTCALL_TIMEOUT_SECS": "2"})
        check(done.code == 5 and done.text == "", done)


@scenario(deadline=90, alone=True)
def half_sent_requests_of_one_container_do_not_delay_another(lab):
    """500 connections that stop in the middle of a request, made anew whenever the daemon ends one."""
    daemon = lab.daemon(TOOLS, flags=["--agent-perm-rate", "100000/10"])
    alpha, hostile = agent(lab, daemon, "alpha-1"), agent(lab, daemon, "hostile-1")
    token = token_of(alpha)
    flood = hostile.start("/usr/bin/python3", "-c", (
        "import socket, time\n"
        "half = b'POST /v1/permissions/check HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 60\\r\\n\\r\\n{\"action'\n"
        "held, end = [], time.monotonic() + 25\n"
        "while time.monotonic() < end:\n"
        " while len(held) < 500:\n"
        f"  s = socket.socket(socket.AF_UNIX); s.connect({SOCKET!r}); s.send(half); s.setblocking(False); held.append(s)\n"
        " open('/tmp/ready', 'w').close(); time.sleep(0.05)\n"
        " def alive(s):\n"
        "  try: return s.recv(4096) != b''\n"
        "  except BlockingIOError: return True\n"
        "  except OSError: return False\n"
        " held = [s for s in held if alive(s)]\n"))
    wait_for(lambda: hostile.run("test", "-e", "/tmp/ready").code == 0, "500 half-sent requests", 20)
    seen = alpha.py('''
import json
body = json.dumps({"action_type": "tool_exec", "target": "echo"}).encode()
head = ("POST /v1/permissions/check HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Bearer %s\\r\\n"
        "Content-Length: %d\\r\\n\\r\\n" % (token, len(body))).encode()
took, answers = [], set()
with socket.socket(socket.AF_UNIX) as s:
    s.settimeout(10); s.connect(path)
    for _ in range(1000):
        since = time.monotonic()
        s.sendall(head + body)
        answer = b""
        while not answer.endswith(b"}\\n") and not answer.endswith(b"}"): answer += s.recv(4096)
        took.append(time.monotonic() - since)
        answers.add(answer.split(b" ")[1].decode())
took.sort()
result = [sorted(answers), took[500] * 1000, took[990] * 1000, took[-1] * 1000]
''', seconds=40, token=token, path=SOCKET)
    answers, median, p99, worst = seen
    print(f"     checks beside 500 half-sent requests: median {median:.2f} ms, p99 {p99:.2f} ms, worst {worst:.2f} ms", flush=True)
    check(answers == ["200"] and worst < 1000, seen)
    # The hostile one is at its cap: the next connection of it is turned away, and only its own.
    flood.kill()
    check(daemon.api("GET", "/api/v1/health").status == 200)
