"""CONNECT tunnels: what the ClientHello says against what was asked for."""

from harness import *

# Python inside the container: a tunnel, and a ClientHello as bytes.
TUNNEL = '''
import ssl
def connect(host, port=443):
    s = socket.create_connection((GATEWAY, PROXY_PORT)); s.settimeout(6)
    s.sendall(("CONNECT %s:%d HTTP/1.1\\r\\nHost: %s:%d\\r\\n\\r\\n" % (host, port, host, port)).encode())
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        data = s.recv(1)
        if not data: break
        head += data
    return s, int(head.split()[1]) if head else 0

def hello(name, alpn=None):
    context = ssl._create_unverified_context()
    if alpn: context.set_alpn_protocols(alpn)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try: tls.do_handshake()
    except ssl.SSLWantReadError: pass
    return outgoing.read(), tls, incoming, outgoing

def finish(s, tls, incoming, outgoing, request):
    """Handshake and one request over it; gives the answer's first line, or `closed`."""
    def pump(step):
        while True:
            try: return step()
            except ssl.SSLWantReadError:
                out = outgoing.read()
                if out: s.sendall(out)
                data = s.recv(65536)
                if not data: raise ConnectionError("closed")
                incoming.write(data)
    try:
        pump(tls.do_handshake)
        tls.write(request); s.sendall(outgoing.read())
        return pump(lambda: tls.read(65536)).split(b"\\r\\n")[0].decode()
    except (OSError, ssl.SSLError) as problem:
        return "closed"
GET = b"GET /x HTTP/1.1\\r\\nHost: example.com\\r\\nConnection: close\\r\\n\\r\\n"
'''


def handed_over(lab):
    """Bytes that reached the origin of example.com."""
    return sum(c.get("bytes", 0) + len(c.get("hello", b"")) for c in lab.internet.connections("93.184.216.34"))


@scenario()
def an_sni_that_differs_is_judged_by_itself(lab):
    lab.daemon(allow("example.com", "www.example.com"))
    client = lab.client()
    seen = client.py(TUNNEL + '''
result = []
for name in ("www.example.com", "denied.example.net", "example.com.evil.net", "EXAMPLE.com"):
    s, status = connect("example.com")
    first, *rest = hello(name)
    s.sendall(first)
    result.append([status, finish(s, *rest, GET)])
''')
    check(seen[0] == [200, "HTTP/1.1 200 OK"], seen)
    check(seen[1] == [200, "closed"] and seen[2] == [200, "closed"], seen)
    check(seen[3] == [200, "HTTP/1.1 200 OK"], seen)
    snis = {c.get("sni") for c in lab.internet.connections("93.184.216.34")}
    check("denied.example.net" not in snis and "example.com.evil.net" not in snis, snis)
    lab.internet.not_asked("denied.example.net")


@scenario()
def a_hello_without_sni_counts_as_the_connect_host(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    seen = client.py(TUNNEL + '''
s, status = connect("example.com")
first, *rest = hello(None)
s.sendall(first)
result = [status, finish(s, *rest, GET)]
''')
    check(seen == [200, "HTTP/1.1 200 OK"], seen)


@scenario()
def a_hello_in_pieces_is_read_like_a_whole_one(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    seen = client.py(TUNNEL + '''
def split_records(data, size):
    body, out = data[5:], b""
    for at in range(0, len(body), size):
        piece = body[at:at + size]
        out += data[:3] + len(piece).to_bytes(2, "big") + piece
    return out
result = {}
for name in ("example.com", "denied.example.net"):
    for way in ("bytes", "records", "tiny-records", "long"):
        s, status = connect("example.com")
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        first, *rest = hello(name, alpn=["x" * 200 + str(n) for n in range(15)] if way == "long" else None)
        try:
            if way == "bytes":
                for at in range(len(first)): s.send(first[at:at + 1])
            elif way == "records": s.sendall(split_records(first, 40))
            elif way == "tiny-records": s.sendall(split_records(first, 1))
            else: s.sendall(first)
            outcome = finish(s, *rest, GET)
        except OSError: outcome = "closed"
        result[name + " " + way] = outcome
''', seconds=50)
    for way in ("bytes", "records", "long"):
        check(seen[f"example.com {way}"] == "HTTP/1.1 200 OK", seen)
    for key, outcome in seen.items():
        if key.startswith("denied"):
            check(outcome == "closed", (key, outcome))
    check(not [c for c in lab.internet.connections("93.184.216.34") if c.get("sni") == "denied.example.net"])


@scenario()
def what_is_not_tls_is_closed(lab):
    lab.daemon(allow("example.com", "github.com"))
    client = lab.client()
    seen = client.py(TUNNEL + '''
opens = {"ssh": b"SSH-2.0-OpenSSH_9.2\\r\\n", "zeros": bytes(200), "smtp": b"EHLO x\\r\\n", "sslv2": b"\\x80\\x2e\\x01\\x00\\x02" + bytes(40),
         "alert": b"\\x15\\x03\\x01\\x00\\x02\\x02\\x28", "data": b"\\x17\\x03\\x03\\x00\\x20" + bytes(32),
         "junk-hello": b"\\x16\\x03\\x01\\x00\\x10" + b"\\x01\\x00\\x00\\x0c" + b"\\xff" * 12,
         "h2": b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n\\0\\0\\0\\4\\0\\0\\0\\0\\0", "socks": b"\\5\\1\\0"}
def send(data):
    s, status = connect("github.com")
    try:
        s.sendall(data); s.settimeout(20)
        return s.recv(4096).decode("latin-1")[:40]
    except TimeoutError: return "open"
    except OSError: return ""
result = dict(zip(opens, at_once(send, opens.values())))
''', seconds=120)
    for name, back in seen.items():
        check(back == "" or back.startswith("HTTP/1.1 4") or ord(back[0]) == 0x15, (name, back))
    for connection in lab.internet.connections("140.82.112.3"):
        check(not connection["bytes"] and not connection.get("hello"), connection)


@scenario()
def plain_http_in_a_tunnel_is_judged_request_by_request(lab):
    lab.daemon([rule("no-deny", 'http.path.startsWith("/deny")', "block", priority=1), *allow("example.com")])
    client = lab.client()
    seen = client.py(TUNNEL + '''
def ask(s, target, host):
    s.sendall(("GET %s HTTP/1.1\\r\\nHost: %s\\r\\n\\r\\n" % (target, host)).encode())
    try:
        head = b""
        while b"\\r\\n\\r\\n" not in head:
            data = s.recv(1)
            if not data: return 0
            head += data
        length = [int(l.split(b":")[1]) for l in head.split(b"\\r\\n") if l.lower().startswith(b"content-length")]
        left = length[0] if length else 0
        while left: left -= len(s.recv(left))
        return int(head.split()[1])
    except OSError: return 0
result = []
s, status = connect("example.com", 80)
result += [status, ask(s, "/one", "example.com"), ask(s, "/deny", "example.com")]
s, _ = connect("example.com", 80)
result += [ask(s, "/two", "example.com:80"), ask(s, "/x", "denied.example.net")]
s, _ = connect("example.com", 80)
result.append(ask(s, "http://denied.example.net/", "denied.example.net"))
''')
    check(seen[:3] == [200, 200, 403], seen)
    check(seen[3] == 200 and seen[4] in (0, 400, 403) and seen[5] in (0, 400, 403), seen)
    lab.internet.nothing_for("93.184.217.99")
    check({r["path"] for r in lab.internet.origin.requests()} == {"/one", "/two"})


@scenario()
def connect_needs_a_matching_host_and_a_real_port(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    for line, host in (("example.com:443", "denied.example.net:443"), ("example.com", "example.com"),
                       ("example.com:0", "example.com:0"), ("example.com:99999", "example.com:99999"),
                       ("http://example.com:443", "example.com:443"), ("example.com:443/", "example.com:443"),
                       ("user@example.com:443", "example.com:443"), (":443", ":443")):
        back = client.raw(f"CONNECT {line} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        check(back.startswith((b"HTTP/1.1 400", b"HTTP/1.1 403")), (line, host, back))
    check(not lab.internet.connections("93.184.216.34"))


@scenario()
def bytes_sent_behind_connect_are_not_forwarded_unseen(lab):
    """A ClientHello or a request glued to the CONNECT head is judged like one sent later."""
    lab.daemon(allow("example.com"))
    client = lab.client()
    seen = client.py(TUNNEL + '''
result = []
for name in ("example.com", "denied.example.net"):
    s = socket.create_connection((GATEWAY, PROXY_PORT)); s.settimeout(6)
    first, tls, incoming, outgoing = hello(name)
    s.sendall(b"CONNECT example.com:443 HTTP/1.1\\r\\nHost: example.com:443\\r\\n\\r\\n" + first)
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        data = s.recv(1)
        if not data: break
        head += data
    result.append([head.split()[1].decode(), finish(s, tls, incoming, outgoing, GET)])
''')
    check(seen[0][1] in ("HTTP/1.1 200 OK", "closed") and seen[1][1] == "closed", seen)
    check(not [c for c in lab.internet.connections("93.184.216.34") if c.get("sni") == "denied.example.net"])


@scenario()
def fronting_stops_at_the_sni(lab):
    """The outer name is what is judged; a rule can tell SNI values apart."""
    lab.daemon([rule("sni", 'tls.sni == "denied.example.net"', "block", priority=1), rule("all", "true")])
    client = lab.client()
    seen = client.py(TUNNEL + '''
s, status = connect("example.com")
first, *rest = hello("denied.example.net")
s.sendall(first)
result = [status, finish(s, *rest, GET)]
''')
    check(seen == [200, "closed"], seen)
    check(not handed_over(lab), lab.internet.connections("93.184.216.34"))


# Editing a ClientHello: its extensions out and in again, with all lengths right (RFC 8446 4.1.2).
EDIT = '''
def extensions(record):
    at = 9 + 2 + 32
    at += 1 + record[at]
    at += 2 + int.from_bytes(record[at:at + 2], "big")
    at += 1 + record[at]
    head, rest, found = record[9:at], record[at + 2:], []
    while rest:
        size = int.from_bytes(rest[2:4], "big")
        found.append((int.from_bytes(rest[:2], "big"), rest[4:4 + size])); rest = rest[4 + size:]
    return head, found

def rebuild(head, found):
    block = b"".join(k.to_bytes(2, "big") + len(v).to_bytes(2, "big") + v for k, v in found)
    body = head + len(block).to_bytes(2, "big") + block
    message = b"\\x01" + len(body).to_bytes(3, "big") + body
    return b"\\x16\\x03\\x01" + len(message).to_bytes(2, "big") + message

def sni(*names):
    entries = b"".join(b"\\0" + len(n).to_bytes(2, "big") + n for n in names)
    return 0, len(entries).to_bytes(2, "big") + entries

def sent(record):
    """Sends an edited hello through a tunnel to example.com; what the server answers with, if anything."""
    s, status = connect("example.com")
    try:
        s.sendall(record)
        back = s.recv(100)
        return "server hello" if back[:1] == b"\\x16" else "closed" if not back else "alert"
    except OSError: return "closed"
'''


@scenario()
def odd_names_in_the_hello_are_not_taken_for_the_allowed_one(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    seen = client.py(TUNNEL + EDIT + '''
head, found = extensions(hello("example.com")[0])
plain = [e for e in found if e[0] != 0]
names = {"allowed": [sni(b"example.com")], "other": [sni(b"denied.example.net")],
         "nul": [sni(b"example.com\\0.denied.example.net")], "space": [sni(b"example.com ")],
         "two names": [sni(b"example.com", b"denied.example.net")], "two names, other order": [sni(b"denied.example.net", b"example.com")],
         "two extensions": [sni(b"example.com"), sni(b"denied.example.net")],
         "two extensions, other order": [sni(b"denied.example.net"), sni(b"example.com")],
         "empty": [sni(b"")], "empty list": [(0, b"\\0\\0")], "cut": [(0, b"\\0\\x20\\0\\0\\x0bexample.com")],
         "long": [sni(b"a" * 300 + b".example.com")], "address": [sni(b"93.184.217.99")],
         "high bytes": [sni(b"ex\\xc3\\xa4mple.com")], "suffix": [sni(b"example.com.evil.net")], "prefix": [sni(b"notexample.com")]}
result = dict(zip(names, at_once(lambda e: sent(rebuild(head, e + plain)), names.values())))
''', seconds=50)
    check(seen.pop("allowed") == "server hello", seen)
    check(all(outcome != "server hello" for outcome in seen.values()), seen)
    check(len([c for c in lab.internet.connections("93.184.216.34") if c.get("hello")]) == 1,
          [c.get("hello") for c in lab.internet.connections("93.184.216.34")])


@scenario()
def a_hello_that_hides_its_name_is_judged_by_the_outer_one(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    code = TUNNEL + EDIT + '''
head, found = extensions(hello("example.com")[0])
ech = (0xFE0D, b"\\0\\0\\1\\0\\1\\x07\\0\\x20" + bytes(32) + b"\\0\\x40" + bytes(64))
other = [sni(b"denied.example.net")] + [e for e in found if e[0] != 0]
result = [sent(rebuild(head, found + [ech])), sent(rebuild(head, other + [ech])), sent(rebuild(head, found))]
'''
    seen = client.py(code)
    check(seen[0] == "server hello" and seen[1] != "server hello" and seen[2] == "server hello", seen)
    daemon.reload([rule("no-ech", "tls.ech", "block", priority=1), *allow("example.com")])
    seen = client.py(code)
    check(seen[0] != "server hello" and seen[1] != "server hello" and seen[2] == "server hello", seen)


@scenario(deadline=90)
def a_tunnel_stays_open_in_both_directions(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    response = client.curl("https://example.com/bytes/20000000", seconds=40)
    check(response.status == 200 and len(response.body) == 20_000_000, response.status)
    response = client.curl("https://example.com/up", "--data-binary", "@-", input=b"u" * 20_000_000, seconds=40)
    check(response.status == 200 and response.json["body_size"] == 20_000_000, response.status)
