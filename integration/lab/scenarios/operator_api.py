"""The operator's socket and command line against a running daemon."""

import json
import os
import socket

from harness import *
from daemon import UnixConnection


@scenario()
def every_read_of_the_core_answers_in_the_envelope(lab):
    daemon = lab.daemon(allow("example.com"))
    expect = {
        "/api/v1/bridge": {"name", "up", "index", "nftables_active", "nftables"},
        f"/api/v1/network?name={DEFAULT_NETWORK}": {"exists", "network_id", "name", "subnet", "gateway", "bridge",
                                                    "containers"},
        "/api/v1/network/config": {"subnet_block"},
        "/api/v1/rule/allow-example.com": {"id", "file", "condition", "action", "log", "description", "priority",
                                           "egress"},
        "/api/v1/dns": {"running", "listen_address", "listen_port", "upstreams", "cache_entries", "queries_total",
                        "queries_allowed", "queries_blocked"},
        "/api/v1/dns/cache": {"entries", "max_entries", "hits", "misses", "evictions"},
        "/api/v1/proxy": {"running", "listen_address", "proxy_url", "active_connections", "total_requests",
                          "total_blocked"},
    }
    for path, keys in expect.items():
        answer = daemon.api("GET", path)
        check(answer.status == 200 and answer.envelope.get("success") is True, (path, answer))
        check(keys - {"description"} <= set(answer.data), (path, answer.data))
        check("error" not in answer.envelope, answer)
    rules = daemon.api("GET", "/api/v1/rules").data
    check({"id", "file", "action", "condition_preview", "priority", "hits", "errors"} <= set(rules[0]), rules)
    check(isinstance(daemon.api("GET", "/api/v1/networks").data, list))


@scenario()
def health_asks_every_thread(lab):
    daemon = lab.daemon()
    threads = set()
    for task in os.listdir(f"/proc/{daemon.process.pid}/task"):
        with open(f"/proc/{daemon.process.pid}/task/{task}/comm") as file:
            threads.add(file.read().strip())
    # They wait on Docker, on what agents submit, on the disk: operator-api.md says so.
    asked = threads - {"docker_events", "docker_contain", "rule_requests", "dynamic_rules"}
    health = daemon.api("GET", "/api/v1/health")
    check(health.status == 200 and set(health.data["subsystems"]) == asked, (asked, health))


@scenario()
def errors_have_their_status(lab):
    daemon = lab.daemon(allow("example.com"))
    cases = [
        ("GET", "/api/v1/nothing", None, 404), ("GET", "/api/v1/rule/none", None, 404),
        ("DELETE", "/api/v1/bridge", None, 405), ("POST", "/api/v1/bridge", None, 405),
        ("POST", "/api/v1/rule/evaluate", "{", 400), ("POST", "/api/v1/rule/evaluate", {"contxt": {}}, 400),
        ("POST", "/api/v1/rule/test", {"expression": 5, "context": {}}, 400),
        ("POST", "/api/v1/network/create", {"name": "a b"}, 400), ("POST", "/api/v1/network/create", {"name": ""}, 400),
        ("POST", "/api/v1/network/create", {"nme": "x"}, 400), ("POST", "/api/v1/network/destroy", {"name": "none"}, 404),
        ("POST", "/api/v1/rule/evaluate", json.dumps({"context": {"run": {"cwd": "x" * (8 << 20)}}}), 413),
    ]
    for method, path, body, expected in cases:
        try:
            answer = daemon.api(method, path, body)
        except OSError as closed:
            check(expected == 413, (path, closed))
            continue
        check(answer.status == expected and answer.envelope.get("success") is False and answer.error,
              (method, path, answer))
    check(daemon.api("GET", "/api/v1/health").status == 200)


@scenario()
def evaluate_says_what_the_wire_does(lab):
    daemon = lab.daemon([rule("no-admin", 'http.path.startsWith("/admin")', "block", priority=1, log=True),
                         *allow("example.com")])
    client = lab.client()
    for host, path in (("example.com", "/"), ("example.com", "/admin"), ("denied.example.net", "/")):
        context = {"http": {"method": "GET", "path": path, "host": host, "scheme": "http", "headers": {},
                            "body_size": 0, "body": None},
                   "network": {"hostname": host, "port": 80, "protocol": "tcp"},
                   "agent": {"name": "x", "container": "x"}}
        said = daemon.api("POST", "/api/v1/rule/evaluate", {"context": context}).data
        wire = client.curl(f"http://{host}{path}")
        check((said["decision"] == "allow") == (wire.status == 200), (host, path, said, wire))
        if said["decision"] == "block":
            check(wire.header("X-Outcall-Block-Reason") == (said["matched_rule"] or "default"), (said, wire))
    hits = {r["id"]: r["hits"] for r in daemon.api("GET", "/api/v1/rules").data}
    check(hits["no-admin"] >= 1 and hits["allow-example.com"] >= 1, hits)
    answer = daemon.api("POST", "/api/v1/rule/test", {"expression": 'dns.query == "a"', "context": {"dns": {"query": "a", "record_type": "A"}}})
    check(answer.data["result"] is True, answer)
    answer = daemon.api("POST", "/api/v1/rule/test", {"expression": "dns.query ==", "context": {}})
    check(answer.status == 200 and answer.data["error"] or answer.status in (400, 422), answer)


@scenario()
def the_socket_takes_http_1_0_keep_alive_and_slow_or_broken_peers(lab):
    daemon = lab.daemon(allow("example.com"))
    connection = UnixConnection(daemon.socket)
    for _ in range(3):
        connection.request("GET", "/api/v1/health")
        check(json.loads(connection.getresponse().read())["success"] is True)
    connection.close()

    def raw(data, wait=3.0):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(wait)
            peer.connect(daemon.socket)
            peer.sendall(data)
            back = b""
            try:
                while piece := peer.recv(65536):
                    back += piece
            except TimeoutError:
                pass
            return back

    back = raw(b"GET /api/v1/health HTTP/1.0\r\n\r\n")
    check(back.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200")), back)
    for junk in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9\r\n\r\n", b"GET /api/v1/health HTTP/1.1\r\nA: " + b"a" * 100_000,
                 b"POST /api/v1/rule/evaluate HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
                 b"\r\n" * 1000, bytes(1000)):
        back = raw(junk, 2)
        refused = (b"HTTP/1.1 4", b"HTTP/1.0 4", b"HTTP/1.1 505")
        check(not back or back.startswith(refused), (junk[:20], back[:60]))
    idle = [socket.socket(socket.AF_UNIX) for _ in range(100)]
    try:
        for peer in idle:
            peer.settimeout(2)
            try:
                peer.connect(daemon.socket)
                peer.send(b"GET /api/v1/hea")
            except OSError:
                break
        check(wait_for(lambda: daemon.answers(), "an answer beside 100 half-sent requests", 15))
    finally:
        for peer in idle:
            peer.close()
    check(daemon.process.poll() is None)


@scenario()
def the_command_line_and_its_exit_codes(lab):
    daemon = lab.daemon(allow("example.com"))
    for words in (("bridge", "status"), ("network", "list"), ("network", "status"), ("rules", "list"),
                  ("rules", "show", "allow-example.com"), ("rules", "reload"), ("dns", "status"), ("dns", "cache"),
                  ("dns", "flush"), ("proxy", "status")):
        text = daemon.cli(*words)
        check(text.code == 0 and text.text.strip(), (words, text))
        as_json = daemon.cli("--json", *words)
        check(as_json.code == 0, (words, as_json))
        json.loads(as_json.text)
    check("outcall0" in daemon.cli("bridge", "status").text)
    check(json.loads(daemon.cli("--json", "bridge", "status").text)["name"] == "outcall0")
    done = daemon.cli("bridge", "status", socket_path="/nonexistent/host.sock")
    check(done.code == 1 and "cannot connect to outcalld at /nonexistent/host.sock — is it running?" in done.errors, done)
    check(daemon.cli("no-such-group").code == 2)
    check(daemon.cli("rules", "show").code == 2)
    check(daemon.cli("rules", "show", "none").code == 1)


@scenario()
def the_sockets_mode_is_0660(lab):
    daemon = lab.daemon()
    check(os.stat(daemon.socket).st_mode & 0o777 == 0o660, oct(os.stat(daemon.socket).st_mode))


@scenario()
def proxy_and_dns_counters_move(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    client.curl("http://example.com/")
    client.curl("http://denied.example.net/")
    client.dig("denied.example.net")
    proxy, dns = daemon.api("GET", "/api/v1/proxy").data, daemon.api("GET", "/api/v1/dns").data
    check(proxy["total_requests"] >= 2 and proxy["total_blocked"] == 1, proxy)
    check(dns["queries_total"] >= 1 and dns["queries_blocked"] >= 1, dns)
