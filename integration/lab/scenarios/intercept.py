"""TLS interception from real containers: who is decrypted, what passes, what fails, and what is written down."""

import json
import os
import struct

from harness import *
from scenarios.http_allowed import clones_by_git

MESSAGES = ('http.host == "api.example.com" && http.method == "POST" && '
            'http.path.startsWith("/v1/messages")')
API, PLAIN = "93.184.216.36", "93.184.216.34"
VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")


def make_ca(lab, name="ours"):
    """A CA pair, as `ca init` makes one; gives the flags that name it."""
    cert, key = lab.path(f"{name}.pem"), lab.path(f"{name}.key")
    run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-out", key])
    os.chmod(key, 0o600)
    run(["openssl", "req", "-x509", "-new", "-key", key, "-days", "30", "-subj", f"/CN=Outcall {name}",
         "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign", "-out", cert])
    return ["--ca-cert", cert, "--ca-key", key, "--upstream-ca", lab.internet.authority.root]


def trusting(lab, *names):
    """A client that trusts these CAs beside the lab's own, by the variables that the ecosystems read."""
    bundle = lab.path("bundle.pem")
    with open(bundle, "w") as out:
        for path in [lab.internet.authority.root, *(lab.path(f"{name}.pem") for name in names or ("ours",))]:
            with open(path) as file:
                out.write(file.read())
    flags = ["-v", f"{bundle}:/lab/bundle.pem:ro"]
    for name in VARIABLES:
        flags += ["-e", f"{name}=/lab/bundle.pem"]
    return lab.client(flags=flags)


def intercept(name, condition, **egress):
    """A rule with `mode: intercept`."""
    return rule(name, condition, egress={"mode": "intercept", **egress})


def events(daemon, **fields):
    """Decisions on record with these values."""
    with open(f"{daemon.state_dir}/decisions.jsonl") as file:
        decisions = [json.loads(line) for line in file if line.endswith("\n")]
    return [one for one in decisions if all(one.get(key) == value for key, value in fields.items())]


def told(daemon, **fields):
    """Waits for such a decision."""
    return wait_for(lambda: events(daemon, **fields), f"a decision with {fields}")


@scenario()
def the_example_rule_beside_an_untouched_tunnel(lab):
    daemon = lab.daemon([intercept("messages", MESSAGES), *allow("example.com")], make_ca(lab))
    client = trusting(lab)
    response = client.curl("https://api.example.com/v1/messages?q=1", "-H", "Expect:", "--data", "hello")
    check(response.status == 200 and response.json["body_size"] == 5, response)
    check(response.json["target"] == "/v1/messages?q=1", response)
    before = len(lab.internet.connections(API))
    for flags in (["-X", "GET"], ["-X", "DELETE"], ["--data", "x", "--path-as-is"]):
        path = "/v1/messages" if flags[0] == "-X" else "/v1/other"
        response = client.curl(f"https://api.example.com{path}", *flags)
        check(response.status == 403 and response.text.startswith("Blocked by outcall: "), response)
        check(response.header("X-Outcall-Block-Reason") == "default", response)
    check(len(lab.internet.connections(API)) == before, "a refused request dials nothing")
    # One connection, several requests, each by itself.
    response = client.curl("https://api.example.com/v1/messages/{1,2,3}", "--data", "x")
    check(response.status == 200 and response.connections == 0, response)
    shown = client.py('''
import ssl
def certificate(host):
    s = socket.create_connection((GATEWAY, PROXY_PORT), 5); s.settimeout(6)
    s.sendall(f"CONNECT {host}:443 HTTP/1.1\\r\\nHost: {host}:443\\r\\n\\r\\n".encode())
    while not s.recv(1, socket.MSG_PEEK): pass
    head = b""
    while not head.endswith(b"\\r\\n\\r\\n"): head += s.recv(1)
    return ssl.create_default_context().wrap_socket(s, server_hostname=host).getpeercert(True).hex()
result = [certificate("example.com"), certificate("api.example.com")]
''')
    authority = lab.internet.authority
    check(shown[0] == authority.certificate("example.com").hex(), "the origin's own certificate")
    check(shown[1] != authority.certificate("api.example.com").hex(), "a leaf of ours")
    check(told(daemon, layer="intercept", rule="messages", method="POST", path="/v1/messages", bytes_up=5))
    check(told(daemon, layer="intercept", verdict="block", method="DELETE", host="api.example.com"))


@scenario(deadline=90)
def the_clients_that_people_use_need_only_the_bundle(lab):
    rules = [intercept("get", 'http.host in ["api.example.com", "github.com"] && http.method == "GET"')]
    daemon = lab.daemon(rules, make_ca(lab))
    client = trusting(lab)
    clones_by_git(lab, client)
    check(client.curl("https://api.example.com/curl").json["target"] == "/curl")
    check(client.py('''
import requests, urllib.request
with requests.Session() as session:
    codes = [session.get("https://api.example.com/s", timeout=10).status_code for _ in range(3)]
    codes.append(session.post("https://api.example.com/s", data=b"x", timeout=10).status_code)
with urllib.request.urlopen("https://api.example.com/urllib", timeout=10) as answer:
    result = [codes, json.load(answer)["target"]]
''') == [[200, 200, 200, 403], "/urllib"])
    done = client.run("node", "-", input='''
const { ProxyAgent, fetch } = require("undici");
(async () => {
  const dispatcher = new ProxyAgent(process.env.HTTPS_PROXY);
  const answer = await fetch("https://api.example.com/node", { dispatcher });
  console.log(answer.status, (await answer.json()).target);
  process.exit(0);
})().catch((problem) => { console.error(problem); process.exit(1); });
''')
    check(done.code == 0 and done.text.split() == ["200", "/node"], done)
    check(len(events(daemon, layer="intercept", rule="get", method="GET")) >= 7)


@scenario()
def a_server_that_is_not_proven_gets_nothing(lab):
    flaws = ("self-signed", "expired", "other-name", "mtls")
    hosts = {flaw: f"{flaw}.example.com" for flaw in flaws}
    for number, (flaw, host) in enumerate(hosts.items()):
        lab.internet.names.set(host, f"93.184.220.{number + 1}")
        lab.internet.authority.flaw(host, flaw)
    daemon = lab.daemon([intercept("post", 'http.host.endsWith(".example.com") && http.method == "POST"')], make_ca(lab))
    client = trusting(lab)
    words = {"self-signed": "UnknownIssuer", "expired": "xpired", "other-name": "not valid for",
             "mtls": "client certificate"}
    for flaw, host in hosts.items():
        response = client.curl(f"https://{host}/upload", "--data", "planted")
        reason = "upstream_handshake_failed"
        check(response.status == 502 and response.header("X-Outcall-Failure-Reason") == reason, (flaw, response))
        check(words[flaw] in response.text, (flaw, response))
        check(told(daemon, layer="intercept", verdict="block", host=host, reason=reason))
    check(not lab.internet.origin.requests(), "no request arrived")
    check(not any(b"planted" in one["raw"] for one in lab.internet.log.find("tcp")))


@scenario()
def a_client_that_refuses_is_told_apart(lab):
    daemon = lab.daemon([intercept("messages", MESSAGES)], make_ca(lab))
    pinning = trusting(lab)
    response = pinning.curl("https://api.example.com/v1/messages", "--data", "x", "--pinnedpubkey", "sha256//" + "A" * 43 + "=")
    check(response.exit == 90, response)
    check(told(daemon, reason="client_handshake_failed", host="api.example.com"))
    check("mode: proxy" in daemon.text(), "the log names the remedy")
    distrusting = lab.client()
    response = distrusting.curl("https://api.example.com/v1/messages", "--data", "x")
    check(response.exit == 60, response)
    wait_for(lambda: len(events(daemon, reason="client_handshake_failed")) == 2, "the second one's event")
    old = b"\x03\x01" + bytes(32) + b"\0" + b"\0\x02\0\x2f" + b"\x01\0"
    old = b"\x01" + struct.pack("!I", len(old))[1:] + old
    hello = b"\x16\x03\x01" + struct.pack("!H", len(old)) + old
    connect = b"CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n"
    back = distrusting.raw(connect + hello)
    check(back.partition(b"\r\n\r\n")[2][:1] == b"\x15", "an alert for TLS 1.0")
    wait_for(lambda: len(events(daemon, reason="client_handshake_failed")) == 3, "the third one's event")
    back = distrusting.raw(connect + b"\x00\x01\x02garbage")
    check(back.endswith(b"\r\n\r\n"), back)
    check(told(daemon, reason="not_tls", host="api.example.com"))
    lab.internet.nothing_for(API)


@scenario()
def fronting_is_misdirected(lab):
    rules = [intercept("api", 'http.host == "api.example.com"'), intercept("web", 'http.host == "example.com"')]
    daemon = lab.daemon(rules, make_ca(lab))
    client = trusting(lab)
    response = client.curl("https://api.example.com/x", "-H", "Host: example.com")
    check(response.status == 421, response)
    check(told(daemon, reason="host_mismatch", host="api.example.com"))
    # A name that the CONNECT does not have goes where the name says.
    response = client.curl("https://example.com/x", "--connect-to", "example.com:443:api.example.com:443")
    check(response.status == 200 and response.json["address"] == PLAIN, response)
    response = client.curl("https://denied.example.net/x", "--connect-to", "denied.example.net:443:api.example.com:443")
    check(response.exit != 0, response)
    lab.internet.nothing_for(API, "93.184.217.99")


@scenario()
def streams_pass_unbuffered_and_memory_stays_flat(lab):
    import threading
    go = threading.Event()

    def sse(request, connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                           b"Transfer-Encoding: chunked\r\n\r\n8\r\ndata: 1\n\r\n")
        go.wait(20)
        connection.sendall(b"8\r\ndata: 2\n\r\n0\r\n\r\n")

    lab.internet.origin.on("/sse", sse)
    daemon = lab.daemon([intercept("api", 'http.host == "api.example.com" && http.method in ["GET", "POST"]')], make_ca(lab))
    client = trusting(lab)
    reader = client.start("curl", "-sSN", "https://api.example.com/sse", stdout=-1)
    check(reader.stdout.read(8) == b"data: 1\n")
    go.set()
    check(reader.stdout.read() == b"data: 2\n" and reader.wait() == 0)
    check(client.py('''
import os, websocket
socket_ = websocket.create_connection("wss://api.example.com/ws", timeout=10, http_proxy_host=GATEWAY,
    http_proxy_port=PROXY_PORT, proxy_type="http", sslopt={"ca_certs": "/lab/bundle.pem"})
socket_.send("over TLS")
result = socket_.recv()
socket_.close()
''') == "over TLS")
    before = daemon.memory_kib()
    size = 96 * 1024 * 1024
    done = client.sh(f"curl -sS -o /dev/null -w '%{{size_download}}' https://api.example.com/bytes/{size}", timeout=60)
    check(done.text == str(size), done)
    done = client.sh(f"head -c {size} /dev/zero | curl -sS -T - -X POST https://api.example.com/upload", timeout=60)
    check(json.loads(done.out)["body_size"] == size, done)
    check(daemon.memory_kib() - before < 24 * 1024, f"{before} -> {daemon.memory_kib()} KiB")


@scenario()
def bodies_are_judged_as_they_mean_and_sent_as_they_came(lab):
    body = intercept("good", 'http.host == "api.example.com" && http.body.contains("good")', match_body=True)
    big = intercept("big", 'http.host == "api.example.com" && http.path == "/big" && http.body == null', match_body=True)
    daemon = lab.daemon([body, big], [*make_ca(lab), "--intercept-body-cap-bytes", "100000"])
    client = trusting(lab)
    seen = client.py('''
import gzip, hashlib, requests, subprocess, zlib
def brotli(data):
    script = "process.stdout.write(require('zlib').brotliCompressSync(require('fs').readFileSync(0)))"
    return subprocess.run(["node", "-e", script], input=data, capture_output=True, check=True).stdout
def ask(data, path="/v1", **headers):
    answer = requests.post("https://api.example.com" + path, data=data, headers=headers, timeout=15)
    if answer.status_code != 200:
        return [answer.status_code, answer.headers.get("X-Outcall-Failure-Reason")]
    return [200, answer.json()["body_sha256"] == hashlib.sha256(data).hexdigest()]
good, evil = b"a good word " * 50, b"an evil word " * 50
result = {
    "plain": ask(good), "evil": ask(evil),
    "gzip": ask(gzip.compress(good), **{"Content-Encoding": "gzip"}),
    "gzip-evil": ask(gzip.compress(evil), **{"Content-Encoding": "gzip"}),
    "deflate": ask(zlib.compress(good), **{"Content-Encoding": "deflate"}),
    "br": ask(brotli(good), **{"Content-Encoding": "br"}),
    "broken": ask(good, **{"Content-Encoding": "gzip"}),
    "bomb": ask(gzip.compress(b"good" * 1000000), **{"Content-Encoding": "gzip"}),
    "over": ask(good * 1000), "big": ask(good * 1000, "/big"),
}
''')
    passed, refused = [200, True], [403, None]
    check(seen == {
        "plain": passed, "evil": refused, "gzip": passed, "gzip-evil": refused, "deflate": passed,
        "br": passed, "broken": [502, "body_decode_failed"], "bomb": refused, "over": refused, "big": passed,
    }, seen)
    check("--intercept-body-cap-bytes" in daemon.text(), "the cap is warned of")
    check(told(daemon, reason="body_decode_failed", host="api.example.com"))
    response = client.curl("https://api.example.com/v1", "-T", "-", "-X", "POST", input=b"a good chunked one")
    check(response.status == 200 and response.json["body_size"] == 18, response)
    response = client.curl("https://api.example.com/v1", "-T", "-", "-X", "POST", input=b"another")
    check(response.status == 403, response)
    # One that waits for 100 gets it from the proxy, since the server is not asked before.
    response = client.curl("https://api.example.com/v1", "-H", "Expect: 100-continue", "--data", "good")
    check(response.status == 200, response)


@scenario()
def nothing_secret_is_written_down(lab):
    lab.internet.authority.flaw("mtls.example.com", "mtls")
    lab.internet.names.set("mtls.example.com", "93.184.220.9")
    rules = [intercept("messages", MESSAGES),
             intercept("body", 'http.host == "example.com" && http.body.contains("x")', match_body=True),
             intercept("mtls", 'http.host == "mtls.example.com" && http.method == "POST"')]
    daemon = lab.daemon(rules, [*make_ca(lab), "--intercept-body-cap-bytes", "50"],
                        env={"RUST_LOG": "outcalld=debug,debug"})
    client = trusting(lab)
    secret = "pl4nted-s3cret"
    answers = []
    for url, flags in (
        ("https://api.example.com/v1/messages", []), ("https://api.example.com/v1/denied", []),
        ("https://api.example.com/v1/messages", ["-H", "Host: example.com"]),
        ("https://example.com/a", []), ("https://example.com/b", ["-H", "Content-Encoding: gzip"]),
        ("https://example.com/over", ["--data", secret * 9]),
        ("https://mtls.example.com/c", []),
        ("https://api.example.com/v1/messages", ["--pinnedpubkey", "sha256//" + "A" * 43 + "="]),
        ("https://api.example.com/v1/messages", ["-H", "Transfer-Encoding: chunked, " + secret]),
    ):
        answers.append(client.curl(f"{url}?token={secret}", "-H", f"Authorization: Bearer {secret}", "-H",
                                   f"Cookie: {secret}", "-H", "Expect:", "--data", secret, *flags))
    check([a.status for a in answers][:4] == [200, 403, 421, 403], answers)
    refusals = [a.text for a in answers if a.status not in (0, 200)]
    check(len(refusals) >= 5 and not any(secret in text for text in refusals), refusals)
    told(daemon, reason="client_handshake_failed")
    told(daemon, reason="body_decode_failed")
    for directory, _, files in os.walk(daemon.directory):
        for name in files:
            path = os.path.join(directory, name)
            if not os.path.isfile(path):
                continue
            with open(path, "rb") as file:
                check(secret.encode() not in file.read(), path)


@scenario(deadline=90)
def a_new_ca_takes_over_under_load(lab):
    first, second = make_ca(lab, "first"), make_ca(lab, "second")
    rules = [intercept("get", 'http.host == "api.example.com" && http.method == "GET"')]
    daemon = lab.daemon(rules, [*first, "--on-exit", "keep"])
    client = trusting(lab, "first", "second")
    load = client.start("/usr/bin/python3", "-c", '''
import http.client, os, ssl, time
proxy = os.environ["HTTPS_PROXY"].split("//")[1]
def connect():
    c = http.client.HTTPSConnection(*proxy.split(":"), timeout=5, context=ssl.create_default_context())
    c.set_tunnel("api.example.com", 443)
    return c
held, issuers, ended = connect(), [], False
end = time.monotonic() + 40
while time.monotonic() < end:
    try:
        held.request("GET", "/held")
        held.getresponse().read()
        issuer = dict(pair[0] for pair in held.sock.getpeercert()["issuer"])["commonName"]
        if issuer not in issuers:
            issuers.append(issuer)
            print(issuer, flush=True)
        if len(issuers) == 2:
            break
    except (OSError, http.client.HTTPException):
        if not ended:
            ended = True
            print("ended", flush=True)
        held.close()
        held = connect()
        time.sleep(0.05)
''', stdout=-1)
    check(load.stdout.readline() == b"Outcall first\n")
    check(daemon.stop() == 0)
    daemon.flags = [*second, "--on-exit", "keep"]
    daemon.start()
    check(load.stdout.read() == b"ended\nOutcall second\n" and load.wait() == 0)


@scenario()
def without_a_ca_nothing_of_it_exists(lab):
    daemon = lab.daemon([intercept("messages", MESSAGES)], start=False)
    daemon.start(wait=False)
    code, log = daemon.runs_out()
    check(code == 1 and "messages" in log and "--ca-cert" in log, log[-500:])
    threads = lambda: {open(f"/proc/{daemon.process.pid}/task/{task}/comm").read().strip()
                       for task in os.listdir(f"/proc/{daemon.process.pid}/task")}
    daemon.write_rules(allow("example.com"))
    daemon.start()
    check("leaves" not in threads(), threads())
    client = lab.client()
    check(client.curl("https://example.com/x").status == 200)
    daemon.stop()
    daemon.flags += make_ca(lab)
    daemon.start()
    check("leaves" in threads(), threads())
