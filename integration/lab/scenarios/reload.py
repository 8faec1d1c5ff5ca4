"""Rule changes while traffic runs: at once, whole, and never half."""

import json
import time

from harness import *

# Python inside the container: 64 threads that ask for three paths until /tmp/stop is there, counting wrong answers.
CROWD = '''
import http.client, os, threading
wrong, counts = [], {"both": 0, "neither": 0, "flip": 0}
deadline = time.monotonic() + 120
lock = threading.Lock()
def client(number):
    c = http.client.HTTPConnection(GATEWAY, PROXY_PORT, timeout=20)
    n = 0
    while not os.path.exists("/tmp/stop") and time.monotonic() < deadline:
        kind, expected = (("both", (200,)), ("neither", (403,)), ("flip", (200, 403)))[n % 3]
        n += 1
        try:
            c.request("GET", "http://example.com/%s/%d/%d" % (kind, number, n))
            r = c.getresponse(); r.read(); code = r.status
        except (OSError, http.client.HTTPException) as problem:
            c.close(); code = repr(problem)
        with lock:
            counts[kind] += 1
            # A request that only one set allows may be cut off when the other comes into force.
            if code not in expected and kind != "flip": wrong.append([kind, code])
threads = [threading.Thread(target=client, args=(i,)) for i in range(64)]
[t.start() for t in threads]; [t.join() for t in threads]
result = [wrong[:20], len(wrong), counts]
'''


def rules(flip):
    """Both sets allow /both and the name, both deny /neither; only one allows /flip."""
    paths = ['http.path.startsWith("/both")'] + (['http.path.startsWith("/flip")'] if flip else [])
    return [rule("neither", 'http.path.startsWith("/neither")', "block", priority=1),
            rule("some", f'http.host == "example.com" && ({" || ".join(paths)})'),
            rule("dns", 'dns.query == "example.com"')]


@scenario(deadline=180)
def two_hundred_reloads_under_64_clients(lab):
    daemon = lab.daemon(rules(False))
    client = lab.client()
    check(client.curl("http://example.com/both").status == 200)
    code_path = lab.path("crowd.json")
    crowd = client.start(
        "/usr/bin/python3", "-c",
        "import sys, json; sys.path.insert(0, '/lab/inside'); from net import *\n"
        f"GATEWAY = {client.gateway!r}; PROXY_PORT = 8080\n" + CROWD +
        "\nprint(json.dumps(result))", stdout=open(code_path, "wb"), log=lab.path("crowd.err"))
    wait_for(lambda: len(lab.internet.origin.requests()) > 100, "the crowd to run", 15)
    reloads = 0
    while reloads < 200:
        daemon.reload(rules(reloads % 2 == 0))
        reloads += 1
    check(crowd.poll() is None, "the crowd ended before the reloads")
    client.run("touch", "/tmp/stop", check=True)
    crowd.wait(60)
    wrong, total, counts = json.loads(open(code_path).read())
    check(total == 0, (total, wrong, counts))
    check(all(count > 200 for count in counts.values()), counts)
    check(not [r for r in lab.internet.origin.requests() if r["path"].startswith("/neither")])


@scenario()
def a_broken_reload_changes_nothing_and_says_all_that_is_wrong(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    daemon.write_rules([
        rule("typo", 'http.hots == "x"'), rule("syntax", "http.host =="), rule("dup", "true"), rule("dup", "true"),
        rule("action", "true", "allw"), rule("bad id!", "true"), rule("mode", "true", egress={"mode": "tunnel"}),
        rule("enriched", "true", "enrich"), rule("tls", "true", egress={"mode": "intercept"}),
        rule("undefined", "$nothing"), rule("extra", "true", colour="red"),
    ], name="second.yaml")
    answer = daemon.api("POST", "/api/v1/rules/reload")
    check(answer.status == 422, answer)
    for word in ("typo", "http.host", "syntax", "dup", "allw", "bad id!", "tunnel", "enrich", "intercept",
                 "nothing", "colour", "second.yaml"):
        check(word in answer.error, (word, answer.error))
    done = daemon.cli("rules", "reload")
    check(done.code == 1 and "typo" in done.errors + done.text, done)
    check([r["id"] for r in daemon.api("GET", "/api/v1/rules").data] == ["allow-example.com"])
    check(client.curl("http://example.com/").status == 200)
    check(client.curl("http://denied.example.net/").status == 403)


@scenario()
def yaml_that_is_no_rule_file_is_refused(lab):
    daemon = lab.daemon(allow("example.com"))
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9))
    for text in ("version: '2'\nrules: []\n", "rules: []\n", "version: '1'\nrules: [\n", "", "[]", "version: 1.0\nrules: []\n",
                 "version: '1'\nruels: []\n", bomb, "version: '1'\nrules:\n  - id: x\n", "\x00", "version: '1'\nrules: 5\n"):
        daemon.write_rules(text, name="odd.yml")
        start = time.monotonic()
        answer = daemon.api("POST", "/api/v1/rules/reload")
        check(answer.status == 422 and "odd.yml" in answer.error, (text[:40], answer))
        check(time.monotonic() - start < 3, text[:40])
    check(daemon.api("GET", "/api/v1/health").status == 200)


@scenario(alone=True)
def hostile_cel_is_refused_in_time_and_memory(lab):
    daemon = lab.daemon(allow("example.com"))
    before = daemon.memory_kib()
    bombs = ["(" * 100000, "string(" * 200, "[" * 4000 + "]" * 4000, "1" + "+1" * 20000,
             "http" + ".a" * 10000, "true" + " && true" * 20000 + " ==",
             'http.host.matches("(a{1000}){1000}")', '"' + "a" * 200000, "[0,1,2,3,4,5,6,7,8,9].all(a, " * 7 + "true" + ")" * 7]
    for condition in bombs:
        daemon.write_rules([rule("bomb", condition)], name="bomb.yaml")
        start = time.monotonic()
        answer = daemon.api("POST", "/api/v1/rules/reload")
        check(answer.status in (422, 413), (condition[:20], answer))
        check("bomb" in answer.error, (condition[:20], answer.error[:200]))
        check(time.monotonic() - start < 5, (condition[:20], time.monotonic() - start))
    check(daemon.memory_kib() - before < 8192, (before, daemon.memory_kib()))
    check(daemon.api("GET", "/api/v1/rules").data[0]["id"] == "allow-example.com")


@scenario(alone=True)
def ten_thousand_rules_load_in_time_and_stay_fast(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    many = [rule(f"r{n}", f'http.host == "h{n}.example.org" || dns.query == "h{n}.example.org"') for n in range(10_000)]
    daemon.write_rules(many, name="many.yaml")
    start = time.monotonic()
    data = daemon.reload()
    check(data["rules_loaded"] == 10_001, data)
    check(time.monotonic() - start < 4, time.monotonic() - start)
    check(client.curl("http://example.com/").status == 200)
    check(client.curl("http://h10001.example.org/").status == 403)


@scenario()
def the_next_request_of_a_kept_alive_connection_is_judged_anew(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    ask = client.kept("http://example.com/k")
    status, port = ask()
    check(status == 200, status)
    daemon.reload(allow("github.com"))
    check(ask() == (403, port))
    check(len(lab.internet.origin.requests(path="/k")) == 1)


@scenario()
def an_address_that_becomes_the_hosts_own_is_refused_on_a_kept_alive_connection(lab):
    """The upstream connection was made while the address was somebody else's."""
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    lab.internet.names.set("example.com", "5.43.0.1")
    service = lab.host_service(80)
    ask = client.kept("http://example.com/own")
    seen = [ask(), ask()]
    check([status for status, _ in seen] == [200, 200], seen)
    lab.space.run("ip", "address", "add", "5.43.0.1/32", "dev", "lo")
    refused, port = ask()
    check((refused, port) == (403, seen[0][1]), (refused, port, seen))
    log = f"{daemon.state_dir}/decisions.jsonl"
    wait_for(lambda: any('"own_address"' in line for line in open(log)), "the decision to be written", 5)
    lab.space.run("ip", "address", "del", "5.43.0.1/32", "dev", "lo")
    check(ask()[0] == 200)
    check(not service.visits and len(lab.internet.origin.requests(path="/own")) == 3, service.visits)


@scenario()
def a_reload_closes_the_tunnels_that_the_new_rules_refuse(lab):
    daemon = lab.daemon(allow("example.com", "www.example.com"))
    client = lab.client()
    process = client.start("/usr/bin/python3", "-c", (
        "import socket, ssl, time\n"
        "def tunnel(host):\n"
        " s = socket.create_connection(('10.200.0.1', 8080))\n"
        " s.sendall(f'CONNECT {host}:443 HTTP/1.1\\r\\nHost: {host}:443\\r\\n\\r\\n'.encode()); s.recv(4096)\n"
        " return ssl._create_unverified_context().wrap_socket(s, server_hostname=host)\n"
        "a, b = tunnel('example.com'), tunnel('www.example.com')\n"
        "def ask(s, h):\n"
        " try:\n"
        "  s.settimeout(3); s.sendall(f'GET /t HTTP/1.1\\r\\nHost: {h}\\r\\n\\r\\n'.encode()); return len(s.recv(4096)) > 0\n"
        " except (OSError, ssl.SSLError): return False\n"
        "print(ask(a, 'example.com'), ask(b, 'www.example.com'), flush=True); input()\n"
        "print(ask(a, 'example.com'), ask(b, 'www.example.com'), flush=True)\n"),
        stdin=-1, stdout=-1)
    check(process.stdout.readline().strip() == b"True True")
    daemon.reload(allow("example.com"))
    process.stdin.write(b"\n")
    process.stdin.flush()
    check(process.stdout.readline().strip() == b"True False")
    process.kill()


@scenario()
def a_reload_takes_a_name_away_everywhere(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    check(client.dig("example.com").status == "NOERROR")
    daemon.reload([])
    check(client.dig("example.com").status == "NXDOMAIN")
    check(client.curl("http://example.com/").status == 403)
    check(client.curl("https://example.com/").connect_status == 403)


@scenario()
def no_rules_directory_blocks_everything_with_a_warning(lab):
    daemon = lab.daemon(rules=None, start=False)
    daemon.rules_dir += "-missing"
    daemon.start()
    check("WARN" in daemon.text(), daemon.text())
    client = lab.client()
    check(client.dig("example.com").status == "NXDOMAIN")
    check(client.curl("http://example.com/").status == 403)


@scenario()
def order_is_priority_then_file_then_position(lab):
    daemon = lab.daemon(rules=None, start=False)
    daemon.write_rules([rule("b-late", "true", priority=200), rule("b-one", "true"), rule("b-two", "true")], "b.yaml")
    daemon.write_rules([rule("a-one", "true"), rule("a-first", "true", priority=1)], "a.yml")
    daemon.write_rules("not read", "c.txt")
    daemon.start()
    seen = [r["id"] for r in daemon.api("GET", "/api/v1/rules").data]
    check(seen == ["a-first", "a-one", "b-one", "b-two", "b-late"], seen)


@scenario()
def an_evaluation_error_is_no_match_and_is_counted(lab):
    daemon = lab.daemon([rule("faulty", 'http.headers["absent"] == "x" || 1 / 0 == 1'), *allow("example.com")])
    client = lab.client()
    check(client.curl("http://example.com/").status == 200)
    check(client.curl("http://denied.example.net/").status == 403)
    (faulty,) = [r for r in daemon.api("GET", "/api/v1/rules").data if r["id"] == "faulty"]
    check(faulty["errors"] >= 1 and faulty["hits"] == 0, faulty)


@scenario()
def a_condition_that_stays_unknown_matches_nothing(lab):
    lab.daemon([rule("not-post", 'http.method != "POST"')])
    client = lab.client()
    check(client.dig("example.com").status == "NXDOMAIN")
    check(client.curl("http://example.com/").status == 200)
    check(client.curl("http://example.com/", "-X", "POST").status == 403)
    lab.daemons[0].reload([rule("block-post", 'http.method == "POST"', "block", priority=1), *allow("example.com")])
    check(client.dig("example.com").status == "NOERROR")
