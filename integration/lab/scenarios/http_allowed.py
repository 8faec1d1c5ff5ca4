"""What a rule allows works as without a proxy: HTTP through the proxy, in every shape clients use."""

from harness import *

HUNDRED_MB = 100_000_000


@scenario()
def get_reaches_the_origin_with_clean_headers(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    response = client.curl("http://example.com/hello?x=1", "-H", "Proxy-Authorization: Basic c2VjcmV0",
                           "-H", "Proxy-Connection: keep-alive", "-H", "X-Kept: yes")
    check(response.status == 200 and response.json["target"] == "/hello?x=1", response)
    check(response.json["address"] == "93.184.216.34")
    (seen,) = lab.internet.origin.requests()
    names = {name.lower() for name, _ in seen["headers"]}
    check("x-kept" in names and seen["host"] == "example.com", seen["headers"])
    check(not names & {"proxy-authorization", "proxy-connection"}, seen["headers"])


@scenario()
def head_answers_and_the_connection_goes_on(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    check(client.curl("http://example.com/", "--head").status == 200)
    back = client.raw(
        b"HEAD http://example.com/bytes/100 HTTP/1.1\r\nHost: example.com\r\n\r\n"
        b"GET http://example.com/bytes/7 HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"
    )
    check(back.count(b"HTTP/1.1 200") == 2, back)
    check(back.endswith(bytes(range(7))), back[-50:])


@scenario(deadline=120)
def post_of_100_mb_leaves_the_daemons_memory_flat(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    check(client.curl("http://example.com/").status == 200)
    before = daemon.memory_kib()
    upload = client.start(
        "sh", "-c", "head -c %d /dev/zero > /tmp/big && curl -sS -o /tmp/answer --data-binary @/tmp/big "
        "http://example.com/upload" % HUNDRED_MB)
    samples = [before]
    wait_for(lambda: samples.append(daemon.memory_kib()) or upload.poll() is not None, "the upload", 90)
    peak = max(samples)
    check(upload.returncode == 0, upload.returncode)
    (request,) = lab.internet.origin.requests(method="POST")
    check(request["body_size"] == HUNDRED_MB, request["body_size"])
    check(peak - before < 4096, f"resident memory went from {before} to {peak} KiB")


@scenario(deadline=120)
def download_of_100_mb_to_a_slow_reader_is_held_back(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    check(client.curl("http://example.com/").status == 200)
    before = daemon.memory_kib()
    got = client.py('''
s = socket.create_connection((GATEWAY, PROXY_PORT))
s.sendall(b"GET http://example.com/bytes/100000000 HTTP/1.1\\r\\nHost: example.com\\r\\nConnection: close\\r\\n\\r\\n")
time.sleep(2)
total = 0
while data := s.recv(1 << 20):
    total += len(data)
result = total
''', seconds=90)
    check(got > HUNDRED_MB, got)
    check(daemon.memory_kib() - before < 4096, (before, daemon.memory_kib()))


@scenario()
def chunked_bodies_pass_both_ways(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    response = client.curl("http://example.com/chunked/3000000")
    check(response.status == 200 and len(response.body) == 3_000_000, response.status)
    response = client.curl("http://example.com/up", "-T", "-", "-H", "Transfer-Encoding: chunked",
                           "-X", "POST", input=b"a" * 2_000_000)
    check(response.status == 200 and response.json["body_size"] == 2_000_000, response)


@scenario()
def trailers_and_chunk_extensions_change_no_framing(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    back = client.raw(
        b"POST http://example.com/one HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;ext=value\r\nhello\r\n0\r\nX-Trailer: t\r\n\r\n"
        b"GET http://example.com/two HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"
    )
    seen = lab.internet.origin.requests()
    if b"400" in back.split(b"\r\n")[0]:
        check(not seen)
    else:
        check([r["path"] for r in seen] == ["/one", "/two"] and seen[0]["body"] == b"hello", seen)


@scenario()
def keep_alive_of_100_requests_of_which_every_second_is_denied(lab):
    lab.daemon([rule("deny-odd", 'http.path.startsWith("/deny")', "block", priority=1),
                *allow("example.com")])
    client = lab.client()
    answer = client.py('''
import http.client
c = http.client.HTTPConnection(GATEWAY, PROXY_PORT, timeout=10)
codes, reasons = [], set()
c.connect()
port = c.sock.getsockname()[1]
for n in range(100):
    c.request("GET", "http://example.com/%s/%d" % ("deny" if n % 2 else "fine", n))
    r = c.getresponse(); r.read()
    codes.append(r.status)
    if r.status == 403: reasons.add(r.getheader("X-Outcall-Block-Reason"))
    same = c.sock is not None and c.sock.getsockname()[1] == port
result = [codes, sorted(reasons), same]
''')
    codes, reasons, same = answer
    check(codes == [200, 403] * 50, codes)
    check(reasons == ["deny-odd"] and same, answer)
    paths = [r["path"] for r in lab.internet.origin.requests()]
    check(len(paths) == 50 and all(path.startswith("/fine") for path in paths), paths)


@scenario()
def https_goes_through_connect(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    response = client.curl("https://example.com/secret?q=1")
    check(response.status == 200 and response.connect_status == 200, response)
    (request,) = lab.internet.origin.requests(sni="example.com")
    check(request["target"] == "/secret?q=1" and request["dst"] == "93.184.216.34", request)


@scenario()
def expect_continue_is_passed_on(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    response = client.curl("http://example.com/e", "-H", "Expect: 100-continue", "--expect100-timeout", "8",
                           "--data-binary", "@-", input=b"x" * 50_000)
    check(response.status == 200 and response.json["body_size"] == 50_000, response)
    check("HTTP/1.1 100" in response.errors, response)
    response = client.curl("http://example.com/refuse-expect", "-H", "Expect: 100-continue",
                           "--expect100-timeout", "8", "--data-binary", "@-", input=b"x" * 50_000)
    check(response.status == 417, response)


WEBSOCKET = '''
import websocket
ws = websocket.create_connection(url, http_proxy_host=GATEWAY, http_proxy_port=PROXY_PORT,
                                 proxy_type="http", timeout=10,
                                 sslopt={"ca_certs": "/lab/root.pem"})
ws.send("hello"); first = ws.recv()
ws.send_binary(b"z" * 60000); second = ws.recv()
ws.close()
result = [first, len(second)]
'''


@scenario()
def websocket_echoes_plain_and_over_tls(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    check(client.py(WEBSOCKET, url="ws://example.com/ws") == ["hello", 60000])
    check(client.py(WEBSOCKET, url="wss://example.com/ws") == ["hello", 60000])


@scenario()
def websocket_upgrade_in_absolute_form_passes(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    back = client.raw(
        b"GET http://example.com/ws HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        b"\x81\x85\x00\x00\x00\x00hello\x88\x80\x00\x00\x00\x00"
    )
    check(back.startswith(b"HTTP/1.1 101") and b"\x81\x05hello" in back, back)


@scenario()
def websocket_denied_is_403_before_any_upstream(lab):
    lab.daemon([rule("no-ws", 'http.path == "/ws"', "block", priority=1), *allow("example.com")])
    client = lab.client()
    back = client.raw(
        b"GET http://example.com/ws HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    check(back.startswith(b"HTTP/1.1 403") and b"no-ws" in back, back)
    lab.internet.nothing_for("93.184.216.34")


@scenario()
def an_http_1_0_client_is_served(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    response = client.curl("http://example.com/old", "--http1.0")
    check(response.status == 200, response)


@scenario()
def health_of_the_proxy_answers_containers_and_loopback(lab):
    lab.daemon()
    client = lab.client()
    response = client.curl(f"http://{client.gateway}:8080/outcall-health", "--noproxy", "*")
    check(response.status == 200 and response.json == {"status": "ok"}, response)
    check(response.body == b'{"status":"ok"}', response.body)


def clones_by_git(lab, client):
    """Puts a repository behind github.com, and clones it from inside."""
    repository = lab.path("repository")
    run(["/usr/bin/git", "init", "-q", "-b", "main", f"{repository}/work"])
    git = ["/usr/bin/git", "-C", f"{repository}/work", "-c", "user.name=a", "-c", "user.email=a@lab"]
    with open(f"{repository}/work/file", "w") as file:
        file.write("content\n")
    run([*git, "add", "."])
    run([*git, "commit", "-q", "-m", "first"])
    run(["/usr/bin/git", "clone", "-q", "--bare", f"{repository}/work", f"{repository}/bare.git"])
    run(["/usr/bin/git", "-C", f"{repository}/bare.git", "update-server-info"])
    lab.internet.origin.serve_files(repository)
    done = client.sh("git clone -q https://github.com/files/bare.git /tmp/clone && cat /tmp/clone/file")
    check(done.code == 0 and done.text == "content\n", done)


@scenario(deadline=120)
def the_clients_that_people_use(lab):
    lab.daemon(allow("example.com", "github.com"))
    client = lab.client()
    clones_by_git(lab, client)
    done = client.sh("wget -q -O - --ca-certificate=/lab/root.pem https://example.com/wget")
    check(done.code == 0 and "/wget" in done.text, done)
    check(client.py('''
import requests
a = requests.get("http://example.com/a", timeout=10)
b = requests.post("https://example.com/b", data=b"x" * 100000, timeout=10)
with requests.Session() as session:
    codes = [session.get("http://example.com/s").status_code for _ in range(5)]
result = [a.status_code, b.json()["body_size"], codes]
''') == [200, 100000, [200] * 5])
    small = lab.client(image="lab/busybox", command=("/bin/sleep", "100000"))
    done = small.run("/bin/wget", "-q", "-O", "-", "http://example.com/busybox",
                     env={"http_proxy": small.proxy})
    check(done.code == 0 and "/busybox" in done.text, done)


@scenario()
def nodes_fetch_with_a_proxy_agent(lab):
    """Debian's undici tunnels http:// too, and puts the proxy's own address into the Host of its CONNECT."""
    lab.daemon(allow("example.com"))
    client = lab.client()
    done = client.run("node", "-", input='''
const { ProxyAgent, request } = require("undici");
(async () => {
  const dispatcher = new ProxyAgent(process.env.HTTP_PROXY);
  for (const url of ["https://example.com/node", "http://example.com/node"]) {
    const answer = await request(url, { dispatcher });
    console.log(answer.statusCode, (await answer.body.json()).target);
  }
  process.exit(0);
})().catch((problem) => { console.error(problem); process.exit(1); });
''')
    check(done.code == 0 and done.text.split() == ["200", "/node"] * 2, done)


@scenario()
def connect_with_a_host_that_lacks_the_port(lab):
    """Newer Node clients write `CONNECT example.com:443` with `Host: example.com`."""
    lab.daemon(allow("example.com"))
    client = lab.client()
    back = client.raw(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
    check(back.startswith(b"HTTP/1.1 200"), back)


@scenario()
def real_clients_see_the_denial_and_its_reason(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    response = client.curl("http://denied.example.net/x")
    check(response.status == 403 and response.text.startswith("Blocked by outcall: "), response)
    check(response.header("X-Outcall-Block-Reason") == "default", response.errors)
    check(response.header("Content-Type").startswith("text/plain"), response.errors)
    response = client.curl("https://denied.example.net/x")
    check(response.exit != 0 and response.connect_status == 403, response)
    check(response.header("X-Outcall-Block-Reason") == "default", response.errors)
    done = client.sh("git ls-remote https://denied.example.net/r.git")
    check(done.code != 0 and "403" in done.errors, done)
    check(client.py('''
import requests
try:
    requests.get("https://denied.example.net/", timeout=10); result = "open"
except requests.exceptions.ProxyError as problem:
    result = "403" in str(problem)
''') is True)
    lab.internet.nothing_for("93.184.217.99")
    lab.internet.not_asked("denied.example.net")
