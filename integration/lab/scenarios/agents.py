"""Agents that ask before they act, and propose rules: real containers at the agent socket."""

import json
import os
import shutil

from figures import anonymous_kib
from harness import *

# Anonymous memory that rounds of all parser bombs may add to the daemon's, KiB: in all, and in a round after the first.
# A tree of one of these texts is some megabytes; what is left is heap that a thread used for the first time, the Docker
# manager's at its look every 30 s included.
BOMBS_MAY_LEAVE, A_ROUND_MAY_LEAVE = 768, 64
SOCKET = "/run/outcall/agent.sock"
TOOLS = [
    rule("tool-echo", 'run.tool == "echo" && agent.name == "alpha"'),
    rule("tool-status", 'run.tool == "sh" && run.context["action_type"] == "tool_exec"'),
    rule("read-tmp", 'run.tool == "file" && run.args[0].startsWith("/tmp/")'),
    rule("calls", 'run.tool == "network_call" && http.host == "example.com" && http.method == "GET"'),
]


def agent(lab, daemon, name, user_flags=(), **options):
    """A container as the documentation starts it: the socket's directory, the shim."""
    flags = [*user_flags, "-v", f"{daemon.directory}/agent/agent:/run/outcall:ro"]
    if binary("outcall-agent"):
        # The container has the host's /usr, read-only: no place for a file, so the directory is put over it.
        programs = f"{daemon.directory}/programs"
        if not os.path.exists(programs):
            os.mkdir(programs)
            shutil.copy(binary("outcall-agent"), f"{programs}/outcall")
        flags += ["-v", f"{programs}:/usr/local/bin:ro"]
    return lab.client(name=name, flags=flags, **options)


class Said:
    """An answer of the agent API."""

    def __init__(self, result):
        self.exit = result.code
        text, _, numbers = result.text.rpartition("\n@@")
        # As curl counts them, without the time that it takes to start curl in a container.
        status, _, seconds = numbers.partition(" ")
        self.status, self.seconds = int(status or 0), float(seconds or 0)
        self.text = text
        try:
            self.json = json.loads(text)
        except ValueError:
            self.json = None

    def __repr__(self):
        return f"curl exit {self.exit}, {self.status} {self.text[:600]!r}"


def ask(client, path, body=None, token=None, method=None, raw=None):
    """One call of the agent API, by curl inside the container."""
    words = ["curl", "-s", "--max-time", "15", "--unix-socket", SOCKET, "-w", "\n@@%{http_code} %{time_total}"]
    if token:
        words += ["-H", f"Authorization: Bearer {token}"]
    if method:
        words += ["-X", method]
    data = raw if raw is not None else (json.dumps(body) if body is not None else None)
    if data is not None:
        words += ["--data-binary", "@-"]
    return Said(client.run(*words, f"http://outcall{path}", input=data))


def token_of(client):
    """Checks in; gives the token."""
    seen = ask(client, "/v1/checkin", {})
    check(seen.status == 200, seen)
    return seen.json["session_token"]


def permitted(client, token, action, target, **metadata):
    """A permission check; gives the verdict."""
    body = {"action_type": action, "target": target}
    if metadata:
        body["metadata"] = metadata
    seen = ask(client, "/v1/permissions/check", body, token)
    check(seen.status == 200, seen)
    return seen.json


def rule_file(*rules):
    """A rule file's text."""
    return json.dumps({"version": "1", "rules": list(rules)})


def submit(client, text):
    """Submits a rule file; gives the request's id."""
    seen = ask(client, "/v1/requests/rules", {"rule_file": text})
    check(seen.status == 201 and seen.json["status"] == "pending" and seen.json["reason"] is None, seen)
    check(seen.json["id"].startswith("rr-"), seen)
    return seen.json["id"]


def shim(client, *words, env=None):
    """Runs the shim; skips where it is not built."""
    if not binary("outcall-agent"):
        skip("outcall-agent is not built")
    return client.run("/usr/local/bin/outcall", *words, env=env)


@scenario()
def checking_in_and_asking_by_curl(lab):
    daemon = lab.daemon(TOOLS)
    alpha, beta = agent(lab, daemon, "alpha-1"), agent(lab, daemon, "beta-1")
    seen = ask(alpha, "/v1/checkin", {})
    check(seen.status == 200 and seen.json["container_id"] == alpha.details["Id"], seen)
    check(seen.json["context_keys"] == ["action_type", "target", "metadata"], seen)
    token = seen.json["session_token"]
    check(len(token) == 64 and token_of(alpha) == token)
    other = token_of(beta)
    check(other != token)

    verdict = permitted(alpha, token, "tool_exec", "echo", args="hello")
    check(verdict["allowed"] is True and verdict["matched_rule"] == "tool-echo", verdict)
    verdict = permitted(beta, other, "tool_exec", "echo", args="hello")
    check(verdict["allowed"] is False and verdict["matched_rule"] is None, verdict)
    for action, target, metadata, expected in (
            ("file_access", "/tmp/x", {}, "read-tmp"), ("file_access", "/etc/shadow", {}, None),
            ("file_access", "/tmp/../etc/shadow", {}, None), ("tool_exec", "rm", {"args": "-rf /"}, None),
            ("network_call", "https://example.com/", {"method": "GET"}, "calls"),
            ("network_call", "https://example.com/", {"method": "POST"}, None),
            ("network_call", "https://example.com@denied.example.net/", {"method": "GET"}, None),
            ("network_call", "https://denied.example.net/", {"method": "GET"}, None)):
        verdict = permitted(alpha, token, action, target, **metadata)
        check((verdict["allowed"], verdict["matched_rule"]) == (expected is not None, expected), (target, verdict))
    check(token not in daemon.text() and other not in daemon.text())


@scenario()
def tokens_hold_for_one_container_and_one_life(lab):
    daemon = lab.daemon(TOOLS)
    alpha, beta = agent(lab, daemon, "alpha-1"), agent(lab, daemon, "alpha-2")
    body = {"action_type": "tool_exec", "target": "echo"}
    mine, other = token_of(alpha), token_of(beta)
    check(ask(alpha, "/v1/permissions/check", body, mine).status == 200)
    for wrong in (other, None, "0" * 64, mine[:-1], mine + "0", mine.upper() if mine.upper() != mine else "x"):
        seen = ask(alpha, "/v1/permissions/check", body, wrong)
        check(seen.status == 401, (wrong and len(wrong), seen))
    check(ask(beta, "/v1/permissions/check", body, mine).status == 401)

    lab.engine.docker("restart", "-t", "0", "alpha-1")
    wait_for(lambda: ask(alpha, "/v1/permissions/check", body, mine).status == 401, "the token of the life before", 5)
    fresh = token_of(alpha)
    check(fresh != mine)
    check(ask(alpha, "/v1/permissions/check", body, fresh).status == 200)


@scenario()
def strangers_are_forbidden(lab):
    daemon = lab.daemon([rule("all", "true")])
    for path, body in (("/v1/checkin", "{}"), ("/v1/requests/rules", '{"rule_file":"x"}'),
                       ("/v1/permissions/check", '{"action_type":"tool_exec","target":"ls"}')):
        seen = lab.space.run("curl", "-s", "-w", "\n@@%{http_code}", "--unix-socket",
                             f"{daemon.directory}/agent/agent.sock", "-d", body, f"http://outcall{path}", check=False)
        check(Said(seen).status == 403, (path, seen))
    for network in ("bridge", "none", "host"):
        stranger = agent(lab, daemon, f"stranger-{network}", network=network, dns=None, proxy=False)
        for path, body in (("/v1/checkin", {}), ("/v1/requests/rules", {"rule_file": "x"}),
                           ("/v1/permissions/check", {"action_type": "tool_exec", "target": "ls"})):
            check(ask(stranger, path, body, "0" * 64).status == 403, (network, path))
    # A container that leaves the managed network is a stranger from then on.
    alpha = agent(lab, daemon, "alpha-1")
    token_of(alpha)
    lab.engine.docker("network", "disconnect", DEFAULT_NETWORK, "alpha-1")
    wait_for(lambda: ask(alpha, "/v1/checkin", {}).status == 403, "403 after leaving", 3)


@scenario()
def the_shim_and_its_exit_codes(lab):
    daemon = lab.daemon(TOOLS)
    alpha = agent(lab, daemon, "alpha-1")
    done = shim(alpha, "echo", "hello", "world")
    check(done.code == 0 and done.text == "hello world\n", done)
    done = shim(alpha, "exec", "sh", "-c", "echo out; exit 7")
    check(done.code == 7 and done.text == "out\n", done)
    done = shim(alpha, "exec", "sh", "-c", "kill -KILL $$")
    check(done.code == 137, done)
    done = shim(alpha, "touch", "/tmp/must-not-be")
    check(done.code == 1 and done.text == "" and done.errors.strip(), done)
    check(alpha.run("test", "-e", "/tmp/must-not-be").code == 1)
    check(shim(alpha, "fetch", "https://example.com/").code == 0)
    check(shim(alpha, "fetch", "https://example.com/", "POST").code == 1)
    check(shim(alpha, "file", "/tmp/x").code == 0)
    check(shim(alpha, "read", "/etc/shadow").code == 1)
    check(shim(alpha).code == 2)

    daemon.stop()
    done = shim(alpha, "echo", "hello", env={"OUTCALL_TIMEOUT_SECS": "2"})
    check(done.code == 5 and done.text == "" and done.errors.strip(), done)


@scenario()
def the_shim_finds_the_socket_of_a_daemon_that_came_back(lab):
    daemon = lab.daemon(TOOLS, flags=["--on-exit", "keep"])
    alpha = agent(lab, daemon, "alpha-1")
    before = token_of(alpha)
    check(shim(alpha, "echo", "one").text == "one\n")
    daemon.stop()
    daemon.start()
    check(shim(alpha, "echo", "two").text == "two\n")
    check(ask(alpha, "/v1/permissions/check", {"action_type": "tool_exec", "target": "echo"}, before).status == 401)


@scenario(deadline=90)
def the_whole_story(lab):
    """Denied, submitted, read and approved by the operator, allowed, still denied to the other, removed."""
    daemon = lab.daemon()
    alpha, other = agent(lab, daemon, "alpha-1"), agent(lab, daemon, "alpha-2")
    check(alpha.curl("http://example.com/").status == 403)
    request = submit(alpha, rule_file(*allow("example.com")))
    check(ask(alpha, f"/v1/requests/rules/{request}").json == {"id": request, "status": "pending", "reason": None})
    check(ask(other, f"/v1/requests/rules/{request}").status == 404)
    check(alpha.curl("http://example.com/").status == 403)

    listed = daemon.cli("requests", "list")
    check(listed.code == 0 and request in listed.text and "alpha-1" in listed.text, listed)
    pending = daemon.api("GET", "/api/v1/requests/rules").data
    check([(r["id"], r["container"], r["container_id"]) for r in pending]
          == [(request, "alpha-1", alpha.details["Id"])], pending)
    check('agent.container == "alpha-1"' in pending[0]["installs"], pending)
    shown = daemon.cli("requests", "show", request)
    check(shown.code == 0 and 'agent.container == "alpha-1"' in shown.text, shown)

    done = daemon.cli("requests", "approve", request)
    check(done.code == 0, done)
    path = f"{daemon.rules_dir}/agent-{request}.yaml"
    check(open(path).read() == pending[0]["installs"])
    check(os.stat(path).st_mode & 0o777 == 0o600)
    check(alpha.curl("http://example.com/").status == 200)
    check(alpha.dig("example.com").status == "NOERROR")
    check(ask(alpha, f"/v1/requests/rules/{request}").json["status"] == "approved")
    check(other.curl("http://example.com/").status == 403)
    check(other.dig("example.com").status == "NXDOMAIN")
    check(daemon.api("GET", "/api/v1/requests/rules").data == [])
    check(daemon.api("POST", f"/api/v1/requests/rules/{request}/approve", {}).status == 409)
    check(daemon.api("POST", f"/api/v1/requests/rules/{request}/reject", {}).status == 409)
    check(daemon.cli("requests", "approve", request).code == 1)

    # And gone: of the container itself, only the record stays.
    done = daemon.cli("rules", "allow", "alpha-1", "5.42.0.1", "7000")
    check(done.code == 0 and alpha.connects("5.42.0.1", 7000) == "connected", done)
    address, mac, container_id = alpha.ip, alpha.mac, alpha.details["Id"]
    alpha.remove()
    wait_for(lambda: nothing_left(lab, daemon, address, mac), "no trace of the container", 3)
    with open(f"{daemon.state_dir}/rule-requests.json") as file:
        record = json.load(file)["requests"]
    check([(r["id"], r["container_id"], r.get("rule_file") or "") for r in record] == [(request, container_id, "")], record)
    with open(f"{daemon.state_dir}/dynamic-rules.json") as file:
        check(json.load(file)["grants"] == [])
    with open(f"{daemon.state_dir}/decisions.jsonl") as file:
        check(sum(f'"container_id":"{container_id}"' in line for line in file) >= 4, "the decisions are recorded")


def nothing_left(lab, daemon, address, mac):
    """Whether neither kernel nor directory knows of a container that is gone."""
    table = lab.nft("list", "ruleset").text
    tracked = lab.space.run("conntrack", "-L", "-s", address, check=False).text
    members = daemon.api("GET", "/api/v1/network").data["containers"]
    active = daemon.api("GET", "/api/v1/rules/active").data
    known = [member["ipv4_address"].split("/")[0] for member in members]
    flows = [line for line in tracked.splitlines() if "dst=5." in line]
    return f"{address} " not in table and mac not in table and address not in known and not active and not flows


@scenario(deadline=90)
def the_whole_story_by_curl(lab):
    """The same over the raw sockets, in the words of the README: no command of ours on either side."""
    daemon = lab.daemon()
    alpha, other = agent(lab, daemon, "alpha-1"), agent(lab, daemon, "alpha-2")

    def inside(script, who=alpha):
        return who.sh('S="curl -s --unix-socket /run/outcall/agent.sock"\n' + script)

    def operator(path, *words):
        done = lab.space.run("curl", "-s", "--unix-socket", daemon.socket, *words, f"http://localhost/api/v1{path}")
        return json.loads(done.text)

    token = inside("$S -d '{}' http://outcall/v1/checkin").text
    token = json.loads(token)["session_token"]
    asked = (f"$S -H 'Authorization: Bearer {token}' -d "
             "'{\"action_type\":\"network_call\",\"target\":\"http://example.com/\"}' http://outcall/v1/permissions/check")
    check(json.loads(inside(asked).text)["allowed"] is False)
    check(inside("curl -s -o /dev/null -w '%{http_code}' http://example.com/").text == "403")
    request = inside(r"""$S -d @- http://outcall/v1/requests/rules <<'JSON'
{"rule_file":"version: \"1\"\nrules:\n  - id: need-example\n    condition: 'http.host == \"example.com\"'\n    action: allow\n"}
JSON""")
    request = json.loads(request.text)
    check(request["status"] == "pending", request)
    path = f"/requests/rules/{request['id']}"

    pending = operator("/requests/rules")["data"]
    check([row["id"] for row in pending] == [request["id"]] and "need-example" in pending[0]["installs"], pending)
    approved = operator(f"{path}/approve", "-X", "POST")
    check(approved == {"success": True, "data": {"id": request["id"], "rules_loaded": 1}}, approved)
    with open(f"{daemon.rules_dir}/agent-{request['id']}.yaml") as file:
        check(file.read() == pending[0]["installs"])

    check(json.loads(inside(f"$S http://outcall/v1{path}").text)["status"] == "approved")
    check(json.loads(inside(asked).text) == {"allowed": True, "matched_rule": "need-example",
                                             "reason": json.loads(inside(asked).text)["reason"]})
    check(inside("curl -s -o /dev/null -w '%{http_code}' http://example.com/").text == "200")
    check(inside("curl -s -o /dev/null -w '%{http_code}' http://example.com/", other).text == "403")
    check(inside(f"$S -o /dev/null -w '%{{http_code}}' http://outcall/v1{path}", other).text == "404")
    check(len(lab.internet.connections("93.184.216.34")) == 1, lab.internet.connections("93.184.216.34"))


@scenario()
def an_approved_direct_rule_opens_for_its_container_alone(lab):
    daemon = lab.daemon()
    lab.internet.names.set("git.example.com", "5.40.0.1")
    alpha, other = agent(lab, daemon, "alpha-1"), agent(lab, daemon, "alpha-2")
    request = submit(alpha, rule_file(rule("git", 'dns.query == "git.example.com"',
                                           egress={"mode": "direct_ip", "ports": [7000]})))
    check(daemon.cli("requests", "approve", request).code == 0)
    check(other.dig("git.example.com").status == "NXDOMAIN")
    check(alpha.dig("git.example.com").addresses == ["5.40.0.1"])
    check(alpha.connects("5.40.0.1", 7000) == "connected")
    check(other.connects("5.40.0.1", 7000, 1) != "connected")
    check(len(lab.internet.connections("5.40.0.1")) == 1)


@scenario()
def all_agents_is_the_operators_word(lab):
    daemon = lab.daemon()
    alpha, other = agent(lab, daemon, "alpha-1"), agent(lab, daemon, "beta-1")
    request = submit(alpha, rule_file(*allow("example.com")))
    shown = daemon.cli("requests", "show", request, "--all-agents")
    check(shown.code == 0 and "agent.container" not in shown.text, shown)
    check(daemon.cli("requests", "approve", request, "--all-agents").code == 0)
    check("agent.container" not in open(f"{daemon.rules_dir}/agent-{request}.yaml").read())
    check(alpha.curl("http://example.com/").status == 200)
    check(other.curl("http://example.com/").status == 200)


@scenario()
def a_rejection_keeps_its_reason(lab):
    daemon = lab.daemon()
    alpha = agent(lab, daemon, "alpha-1")
    request = submit(alpha, rule_file(*allow("example.com")))
    done = daemon.cli("requests", "reject", request, "--reason", "too broad")
    check(done.code == 0, done)
    check(ask(alpha, f"/v1/requests/rules/{request}").json
          == {"id": request, "status": "rejected", "reason": "too broad"})
    check(alpha.curl("http://example.com/").status == 403)
    check(os.listdir(daemon.rules_dir) == ["rules.yaml"], os.listdir(daemon.rules_dir))
    check(daemon.api("POST", f"/api/v1/requests/rules/{request}/approve", {}).status == 409)


@scenario()
def an_approval_that_does_not_load_is_undone(lab):
    daemon = lab.daemon(allow("github.com"))
    alpha = agent(lab, daemon, "alpha-1")
    request = submit(alpha, rule_file(rule("mine", 'http.host == "example.com"')))
    daemon.write_rules("version: '1'\nrules: [\n", name="broken.yaml")
    check(daemon.api("POST", f"/api/v1/requests/rules/{request}/approve", {}).status == 422)
    check(not os.path.exists(f"{daemon.rules_dir}/agent-{request}.yaml"))
    check(ask(alpha, f"/v1/requests/rules/{request}").json["status"] == "pending")
    check(alpha.curl("http://example.com/").status == 403)
    os.remove(f"{daemon.rules_dir}/broken.yaml")
    check(daemon.cli("requests", "approve", request).code == 0)
    check(alpha.curl("http://example.com/").status == 200)


@scenario()
def requests_survive_a_crash_of_the_daemon(lab):
    daemon = lab.daemon(flags=["--on-exit", "keep"])
    alpha = agent(lab, daemon, "alpha-1")
    kept = submit(alpha, rule_file(*allow("example.com")))
    approved = submit(alpha, rule_file(*allow("github.com")))
    check(daemon.cli("requests", "approve", approved).code == 0)
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()
    check([r["id"] for r in daemon.api("GET", "/api/v1/requests/rules").data] == [kept])
    check(ask(alpha, f"/v1/requests/rules/{kept}").json["status"] == "pending")
    check(ask(alpha, f"/v1/requests/rules/{approved}").json["status"] == "approved")
    check(alpha.curl("http://github.com/").status == 200)
    check(alpha.curl("http://example.com/").status == 403)


@scenario(deadline=150, alone=True)
def parser_bombs_are_refused_in_time_and_memory(lab):
    daemon = lab.daemon(flags=["--agent-rule-rate", "1000/10"])
    alpha = agent(lab, daemon, "alpha-1")
    submit(alpha, rule_file(rule("warm", "true")))
    aliases = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9))
    conditions = ["(" * 8000, "string(" * 300, "[" * 4000 + "]" * 4000, "1" + "+1" * 15000, "http" + ".a" * 10000,
                  'http.host.matches("(a{1000}){1000}")', "-" * 30000 + "1",
                  "[0,1,2,3,4,5,6,7,8,9].all(a, " * 7 + "true" + ")" * 7]
    bombs = [rule_file(rule("bomb", condition)) for condition in conditions]
    bombs += ["version: '1'\nrules:\n" + "- {}\n" * 10000, aliases, "[" * 60000, "{" * 60000, "a: " * 10000,
              "- " * 30000, "&a " * 20000, "\x00", "",
              "version: '1'\nrules:\n" + "- {id: a, condition: 'true', action: allow}\n" * 1300]
    # An ordinary refusal first.
    check(ask(alpha, "/v1/requests/rules", {"rule_file": "version: '1'\nrules: 5\n"}).status == 422)
    sizes = [anonymous_kib(daemon.process.pid)]
    for _ in range(3):
        for bomb in bombs:
            seen = ask(alpha, "/v1/requests/rules", {"rule_file": bomb})
            check(seen.status == 422, (bomb[:60], seen))
            check(seen.seconds < 2, (bomb[:60], seen.seconds))
        sizes.append(anonymous_kib(daemon.process.pid))
    many = rule_file(*[rule(f"r{n}", "true") for n in range(10000)])
    check(ask(alpha, "/v1/requests/rules", {"rule_file": many}).status == 413)
    check(max(sizes) - sizes[0] < BOMBS_MAY_LEAVE, sizes)
    check(min(sizes[2] - sizes[1], sizes[3] - sizes[2]) < A_ROUND_MAY_LEAVE, sizes)
    check(len(daemon.api("GET", "/api/v1/requests/rules").data) == 1)
    check(daemon.api("GET", "/api/v1/health").status == 200)


@scenario()
def calls_that_never_end_are_408(lab):
    """A head, and a body, of which one more byte comes all the time."""
    daemon = lab.daemon(TOOLS)
    alpha, beta = agent(lab, daemon, "alpha-1"), agent(lab, daemon, "beta-1")
    seen = alpha.py('''
def endless(start):
    """Status and seconds of the answer to a request that goes on for ever."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path); s.settimeout(0.1)
        begun, answer = time.monotonic(), b""
        s.sendall(start)
        while not answer and time.monotonic() < begun + 25:
            s.send(b"a")
            try: answer = s.recv(4096)
            except TimeoutError: pass
        return [answer.split(b"\\r\\n")[0].decode(), time.monotonic() - begun]
starts = [b"POST /v1/checkin HTTP/1.1\\r\\nHost: o\\r\\nX-",
          b"POST /v1/checkin HTTP/1.1\\r\\nHost: o\\r\\nContent-Length: 60000\\r\\n\\r\\n"]
with concurrent.futures.ThreadPoolExecutor() as pool: result = list(pool.map(endless, starts))
''', path=SOCKET, seconds=60)
    check([line for line, _ in seen] == ["HTTP/1.1 408 Request Timeout"] * 2, seen)
    # What agent-api.md says of heads and bodies: not cut off before.
    check(seen[0][1] >= 5 and seen[1][1] >= 10, seen)
    check(token_of(beta) and token_of(alpha))


# Connections that ask now and then, so that none is idle for long; told when they are there, ended by a line.
HOLD = (
    "import select, socket, sys\nheld = []\n"
    "def ask(s):\n"
    " try: s.sendall(b'POST /v1/checkin HTTP/1.1\\r\\nHost: o\\r\\nContent-Length: 2\\r\\n\\r\\n{}')\n"
    " except OSError: pass\n"  # turned away already
    " return s.recv(4096).split(b' ')[1].decode()\n"
    "def connect():\n"
    " s = socket.socket(socket.AF_UNIX); s.connect('" + SOCKET + "'); held.append(s); return s\n"
    "first = {ask(connect()) for n in range(512)}\n"
    "print(first, ask(connect()), flush=True); held.pop()\n"
    "while not select.select([sys.stdin], [], [], 5)[0]: [ask(s) for s in held]\n")


@scenario(deadline=120)
def connections_beyond_the_caps_are_503(lab):
    daemon = lab.daemon(TOOLS)
    holders = [agent(lab, daemon, f"holder-{number}") for number in range(8)]
    other = agent(lab, daemon, "beta-1")

    def hold(holder):
        return holder.start("/usr/bin/python3", "-c", HOLD, stdin=-1, stdout=-1)

    # One container has its 512, and one more is turned away; the others have theirs.
    first = hold(holders[0])
    check(first.stdout.readline() == b"{'200'} 503\n")
    check(ask(holders[0], "/v1/checkin", {}).status == 503)
    check(token_of(other))
    # Eight of them have all 4096.
    rest = [hold(holder) for holder in holders[1:]]
    for process in rest:
        check(process.stdout.readline() == b"{'200'} 503\n")
    seen = ask(other, "/v1/checkin", {})
    check(seen.status == 503 and "too many connections" in seen.json["error"], seen)
    for process in [first, *rest]:
        process.stdin.close()
        process.wait()
    wait_for(lambda: ask(other, "/v1/checkin", {}).status == 200, "room again", 5)
    check(token_of(holders[0]))


@scenario()
def malformed_calls_have_their_statuses(lab):
    daemon = lab.daemon(TOOLS)
    alpha = agent(lab, daemon, "alpha-1")
    token = token_of(alpha)
    for expected, path, options in (
            (400, "/v1/checkin", {"raw": "{"}), (400, "/v1/checkin", {"body": {"extra": 1}}),
            (400, "/v1/permissions/check", {"body": {"action_type": "fly", "target": "x"}, "token": token}),
            (400, "/v1/permissions/check", {"body": {"action_type": "tool_exec"}, "token": token}),
            (413, "/v1/requests/rules", {"raw": json.dumps({"rule_file": "x" * 70000})}),
            (422, "/v1/requests/rules", {"body": {"rule_file": "version: '1'\nrules: 5\n"}}),
            (404, "/v1/nothing", {"body": {}}), (404, "/api/v1/rules", {}), (404, "/v1/requests/rules/rr-0", {}),
            (405, "/v1/checkin", {"method": "PUT", "body": {}}), (405, "/v1/permissions/check", {})):
        seen = ask(alpha, path, **options)
        check(seen.status == expected, (path, options if len(str(options)) < 200 else "", seen))
        check(seen.json and seen.json["error"], seen)


@scenario()
def too_many_checks_and_submissions_are_429_for_that_container_only(lab):
    daemon = lab.daemon(TOOLS, flags=["--agent-perm-rate", "5/60", "--agent-rule-rate", "2/60"])
    alpha, beta = agent(lab, daemon, "alpha-1"), agent(lab, daemon, "beta-1")
    token, other = token_of(alpha), token_of(beta)
    body = {"action_type": "file_access", "target": "/tmp/x"}
    seen = [ask(alpha, "/v1/permissions/check", body, token).status for _ in range(7)]
    check(seen == [200] * 5 + [429] * 2, seen)
    check(ask(beta, "/v1/permissions/check", body, other).status == 200)
    seen = [ask(alpha, "/v1/requests/rules", {"rule_file": rule_file(rule(f"r{n}", "true"))}).status for n in range(3)]
    check(seen == [201, 201, 429], seen)
    headers = alpha.run("curl", "-s", "-D", "-", "-o", "/dev/null", "--unix-socket", SOCKET, "-d", json.dumps(body),
                        "-H", f"Authorization: Bearer {token}", "http://outcall/v1/permissions/check").text.lower()
    check("429" in headers and "retry-after:" in headers, headers)


@scenario(deadline=90)
def a_removed_container_leaves_nothing_but_the_record(lab):
    daemon = lab.daemon([rule("direct", 'dns.query == "git.example.com" && agent.name == "alpha"',
                              egress={"mode": "direct_ip", "ports": [7000]})])
    lab.internet.names.set("git.example.com", "5.41.0.1")
    alpha = agent(lab, daemon, "alpha-1")
    address, mac = alpha.ip, alpha.mac
    token = token_of(alpha)
    request = submit(alpha, rule_file(*allow("example.com")))
    check(alpha.dig("git.example.com").status == "NOERROR")
    check(alpha.connects("5.41.0.1", 7000) == "connected")
    alpha.remove()

    wait_for(lambda: nothing_left(lab, daemon, address, mac), "no trace of the container", 3)
    heir = agent(lab, daemon, "beta-1", proxy=True)
    check(heir.ip == address, "Docker gives the address again")
    check(ask(heir, "/v1/permissions/check", {"action_type": "tool_exec", "target": "x"}, token).status == 401)
    check(ask(heir, f"/v1/requests/rules/{request}").status == 404)
    check(heir.connects("5.41.0.1", 7000, 1) != "connected")
    check(len(lab.internet.connections("5.41.0.1")) == 1)
