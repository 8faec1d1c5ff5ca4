"""Two parsers, two readings: raw bytes from a container to the proxy, judged by what the origin got.

A rule blocks /smuggled. So a request for it that an origin sees, under any reading of the bytes that
reached it, is a request that was not judged.
"""

from harness import *
from internet.readings import readings

HOST = b"Host: example.com\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: example.com\r\n\r\n"
ADDRESS = "93.184.216.34"


def post(*headers, body=b"", line=b"POST http://example.com/front HTTP/1.1", host=HOST):
    """A request's bytes from header lines without their ends."""
    return line + b"\r\n" + host + b"".join(h + b"\r\n" for h in headers) + b"\r\n" + body


LENGTH_OF_SMUGGLED = b"Content-Length: %d" % len(SMUGGLED)
CHUNKS_THEN_SMUGGLED = b"0\r\n\r\n" + SMUGGLED

# Refused with 400: vendor-docs/interfaces/http.md says why.
REFUSED = {
    "two lengths": post(b"Content-Length: 0", LENGTH_OF_SMUGGLED, body=SMUGGLED),
    "two equal lengths": post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
    "a list of lengths": post(b"Content-Length: 0, %d" % len(SMUGGLED), body=SMUGGLED),
    "length with plus": post(b"Content-Length: +5", body=b"hello"),
    "length with minus": post(b"Content-Length: -1", body=SMUGGLED),
    "length in hex": post(b"Content-Length: 0x5", body=b"hello"),
    "length with junk": post(b"Content-Length: 5 5", body=b"hello"),
    "length overflow": post(b"Content-Length: 18446744073709551621", body=b"hello" + SMUGGLED),
    "length empty": post(b"Content-Length:", body=SMUGGLED),
    "length with underscore": post(b"Content-Length: 1_0", body=b"helloworld"),
    "length and chunked": post(LENGTH_OF_SMUGGLED, b"Transfer-Encoding: chunked", body=CHUNKS_THEN_SMUGGLED),
    "chunked and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 6", body=CHUNKS_THEN_SMUGGLED),
    "te xchunked": post(b"Transfer-Encoding: xchunked", body=CHUNKS_THEN_SMUGGLED),
    "te identity": post(b"Transfer-Encoding: identity", body=SMUGGLED),
    "te gzip": post(b"Transfer-Encoding: gzip", body=SMUGGLED),
    "te gzip, chunked": post(b"Transfer-Encoding: gzip, chunked", body=CHUNKS_THEN_SMUGGLED),
    "te chunked, identity": post(b"Transfer-Encoding: chunked, identity", body=CHUNKS_THEN_SMUGGLED),
    "te chunked twice": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CHUNKS_THEN_SMUGGLED),
    "te chunked, cow": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: cow", body=CHUNKS_THEN_SMUGGLED),
    "te quoted": post(b'Transfer-Encoding: "chunked"', body=CHUNKS_THEN_SMUGGLED),
    "te vertical tab": post(b"Transfer-Encoding: \x0bchunked", body=CHUNKS_THEN_SMUGGLED),
    "te nul": post(b"Transfer-Encoding: chunked\x00", body=CHUNKS_THEN_SMUGGLED),
    "te empty": post(b"Transfer-Encoding:", LENGTH_OF_SMUGGLED, body=SMUGGLED),
    "space before colon": post(b"Content-Length : 0", LENGTH_OF_SMUGGLED, body=SMUGGLED),
    "space before colon, te": post(b"Transfer-Encoding : chunked", LENGTH_OF_SMUGGLED, body=SMUGGLED),
    "tab before colon": post(b"Transfer-Encoding\t: chunked", body=CHUNKS_THEN_SMUGGLED),
    "obs-fold": post(b"X-A: 1", b" Transfer-Encoding: chunked", LENGTH_OF_SMUGGLED, body=SMUGGLED),
    "obs-fold of te": post(b"Transfer-Encoding:", b" chunked", body=CHUNKS_THEN_SMUGGLED),
    "obs-fold first": post(b" X-A: 1", body=b""),
    "bare lf in head": b"POST http://example.com/front HTTP/1.1\r\nHost: example.com\nContent-Length: 0\r\n\r\n",
    "bare lf everywhere": b"GET http://example.com/front HTTP/1.1\nHost: example.com\n\n",
    "bare cr in value": post(b"X-A: 1\rTransfer-Encoding: chunked", LENGTH_OF_SMUGGLED, body=SMUGGLED),
    "bare cr in line": b"GET http://example.com/front\r HTTP/1.1\r\n" + HOST + b"\r\n",
    "nul in value": post(b"X-A: a\x00b", body=b""),
    "nul in name": post(b"X\x00A: b", body=b""),
    "header without colon": post(b"X-A", body=b""),
    "empty name": post(b": value", body=b""),
    "space in name": post(b"X A: value", body=b""),
    "high byte in name": post(b"X\xffA: value", body=b""),
    "host differs": post(line=b"GET http://example.com/front HTTP/1.1", host=b"Host: denied.example.net\r\n"),
    "two hosts": post(b"Host: denied.example.net", line=b"GET http://example.com/front HTTP/1.1"),
    "no host": b"GET http://example.com/front HTTP/1.1\r\n\r\n",
    "origin form": post(line=b"GET /front HTTP/1.1"),
    "asterisk form": post(line=b"OPTIONS * HTTP/1.1"),
    "authority form without connect": post(line=b"GET example.com:80 HTTP/1.1"),
    "no version": post(line=b"GET http://example.com/front"),
    "version 2": post(line=b"GET http://example.com/front HTTP/2.0"),
    "version 1.2": post(line=b"GET http://example.com/front HTTP/1.2"),
    "version 0.9": post(line=b"GET http://example.com/front HTTP/0.9"),
    "two spaces": post(line=b"GET  http://example.com/front HTTP/1.1"),
    "tab for a space": post(line=b"GET\thttp://example.com/front HTTP/1.1"),
    "space in target": post(line=b"GET http://example.com/a b HTTP/1.1"),
    "control in target": post(line=b"GET http://example.com/a\x01b HTTP/1.1"),
    "h2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "tls to the proxy": b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
    "odd method": post(line=b"GE(T http://example.com/front HTTP/1.1"),
    "chunked in 1.0": post(b"Transfer-Encoding: chunked", line=b"POST http://example.com/front HTTP/1.0",
                           body=CHUNKS_THEN_SMUGGLED),
    "chunk size junk": post(b"Transfer-Encoding: chunked", body=b"5x\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size sign": post(b"Transfer-Encoding: chunked", body=b"+5\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size 0x": post(b"Transfer-Encoding: chunked", body=b"0x5\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size empty": post(b"Transfer-Encoding: chunked", body=b"\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size overflow": post(b"Transfer-Encoding: chunked", body=b"10000000000000005\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk without end": post(b"Transfer-Encoding: chunked", body=b"5\r\nhelloXX0\r\n\r\n" + SMUGGLED),
    "chunk bare lf": post(b"Transfer-Encoding: chunked", body=b"5\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk data bare lf": post(b"Transfer-Encoding: chunked", body=b"5\r\nhello\n0\r\n\r\n" + SMUGGLED),
    "chunk ext bare lf": post(b"Transfer-Encoding: chunked", body=b"5;a\nhello\r\n0\r\n\r\n" + SMUGGLED),
    "chunk ext bare cr": post(b"Transfer-Encoding: chunked", body=b"5;a\rb\r\nhello\r\n0\r\n\r\n" + SMUGGLED),
}

# What may be forwarded or refused, as long as nobody can read it two ways.
HARMLESS = {
    "pipelined behind a body": post(b"Content-Length: 5", body=b"hello" + b"GET http://example.com/smuggled HTTP/1.1\r\n" + HOST + b"\r\n"),
    "a request as a body": post(LENGTH_OF_SMUGGLED, body=SMUGGLED),
    "a request as a chunk": post(b"Transfer-Encoding: chunked", body=b"%x\r\n" % len(SMUGGLED) + SMUGGLED + b"\r\n0\r\n\r\n"),
    "GET with a body": post(LENGTH_OF_SMUGGLED, line=b"GET http://example.com/front HTTP/1.1", body=SMUGGLED),
    "te in capitals": post(b"Transfer-Encoding: CHUNKED", body=CHUNKS_THEN_SMUGGLED),
    "te with spaces": post(b"Transfer-Encoding:   chunked  ", body=CHUNKS_THEN_SMUGGLED),
    "length with zeros": post(b"Content-Length: 0005", body=b"hello" + SMUGGLED),
    "trailer of framing": post(b"Transfer-Encoding: chunked", body=b"5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n" + SMUGGLED),
    "trailer of te": post(b"Transfer-Encoding: chunked", body=b"0\r\nTransfer-Encoding: chunked\r\n\r\n" + SMUGGLED),
    "connection names length": post(b"Connection: Content-Length", LENGTH_OF_SMUGGLED, body=SMUGGLED),
    "connection names te": post(b"Connection: Transfer-Encoding", b"Transfer-Encoding: chunked", body=CHUNKS_THEN_SMUGGLED),
    "connection names host": post(b"Connection: Host", line=b"GET http://example.com/front HTTP/1.1"),
    "upgrade with body": post(b"Upgrade: websocket", b"Connection: Upgrade", LENGTH_OF_SMUGGLED, body=SMUGGLED),
    "upgrade h2c": post(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
                        line=b"GET http://example.com/front HTTP/1.1", body=SMUGGLED),
    "upgrade refused by the origin": post(b"Upgrade: made-up", b"Connection: Upgrade",
                                          line=b"GET http://example.com/front HTTP/1.1", body=SMUGGLED),
    "connect inside keep-alive": post(line=b"GET http://example.com/front HTTP/1.1",
                                      body=b"CONNECT denied.example.net:443 HTTP/1.1\r\nHost: denied.example.net:443\r\n\r\n"),
    "te header": post(b"TE: trailers, chunked", line=b"GET http://example.com/front HTTP/1.1", body=SMUGGLED),
    "x-forwarded-host": post(b"X-Forwarded-Host: denied.example.net", b"X-Original-URL: /smuggled",
                             line=b"GET http://example.com/front HTTP/1.1"),
    "expect and body": post(b"Expect: 100-continue", LENGTH_OF_SMUGGLED, body=SMUGGLED),
    "expect junk": post(b"Expect: 42-surprise", b"Content-Length: 5", body=b"hello" + SMUGGLED),
    "leading empty lines": b"\r\n\r\n" + post(line=b"GET http://example.com/front HTTP/1.1"),
}

SEND_ALL = '''
def send(data):
    try: back = exchange(GATEWAY, PROXY_PORT, bytes.fromhex(data), 1.5)
    except OSError as problem: back = repr(problem).encode()
    return back[:3000].decode("latin-1")
result = dict(zip(corpus, at_once(send, corpus.values())))
'''


def rules():
    """/smuggled is blocked, the rest of the host is allowed."""
    return [rule("smuggled", 'http.path.contains("/smuggled")', "block", priority=1), *allow("example.com")]


def send(client, corpus):
    """Sends every entry on a connection of its own; gives what came back."""
    return client.py(SEND_ALL, corpus={name: data.hex() for name, data in corpus.items()}, seconds=150)


def judge_origin(lab):
    """Raises if what any connection of the origin received can be read two ways, or holds a blocked request."""
    for connection in lab.internet.connections(ADDRESS):
        seen = readings(connection["raw"])
        if len(seen) > 1:
            raise AssertionError(f"two readings of {connection['raw']!r}: {seen}")
        for lines in seen:
            if any(b"/smuggled" in line or line.startswith(b"CONNECT") for line in lines):
                raise AssertionError(f"unjudged request in {connection['raw']!r}")
    for request in lab.internet.origin.requests():
        if "/smuggled" in request["target"]:
            raise AssertionError(f"the origin served {request['target']}")


@scenario(deadline=180)
def ambiguous_framing_is_refused_with_400(lab):
    daemon = lab.daemon(rules())
    client = lab.client()
    wrong = {}
    for name, back in send(client, REFUSED).items():
        chunk_in_flight = name.startswith("chunk ") and not back.startswith("HTTP/1.1 2")
        closed = name == "tls to the proxy" and not back
        if not back.startswith(("HTTP/1.1 4", "HTTP/1.1 505")) and not chunk_in_flight and not closed:
            wrong[name] = back[:60]
    judge_origin(lab)
    check(not wrong, wrong)
    check(not [r for r in lab.internet.origin.requests() if r["complete"]],
          [r["connection"]["raw"] for r in lab.internet.origin.requests() if r["complete"]])
    lab.internet.nothing_for("93.184.217.99")
    check(client.curl("http://example.com/after").status == 200)
    check(daemon.process.poll() is None)


@scenario(deadline=120)
def unambiguous_oddities_reach_the_origin_in_one_reading_or_not_at_all(lab):
    lab.daemon(rules())
    client = lab.client()
    seen = send(client, HARMLESS)
    judge_origin(lab)
    check(seen["a request as a body"].startswith("HTTP/1.1 200"), seen["a request as a body"])
    check(seen["a request as a chunk"].startswith("HTTP/1.1 200"), seen["a request as a chunk"])
    check("HTTP/1.1 403" in seen["pipelined behind a body"], seen["pipelined behind a body"])
    lab.internet.nothing_for("93.184.217.99")


@scenario()
def absolute_and_origin_form_do_not_differ_at_the_origin(lab):
    lab.daemon(rules())
    client = lab.client()
    client.raw(b"GET http://example.com/x?y=http://denied.example.net/ HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    (request,) = lab.internet.origin.requests()
    check(request["target"] == "/x?y=http://denied.example.net/", request["target"])
    check([v for k, v in request["headers"] if k.lower() == "host"] == ["example.com"], request["headers"])


@scenario()
def hop_by_hop_headers_stay_on_their_hop(lab):
    lab.daemon(rules())
    client = lab.client()
    client.raw(post(b"Connection: close, X-Mine", b"X-Mine: 1", b"Keep-Alive: 5", b"TE: trailers",
                    b"Proxy-Authorization: Basic eDp5", b"Proxy-Authenticate: x", b"Upgrade-Insecure-Requests: 1",
                    line=b"GET http://example.com/hop HTTP/1.1"))
    (request,) = lab.internet.origin.requests()
    names = {name.lower() for name, _ in request["headers"]}
    check(not names & {"x-mine", "keep-alive", "te", "proxy-authorization", "proxy-authenticate"}, names)
    check("upgrade-insecure-requests" in names, names)


@scenario()
def the_second_request_of_a_connection_is_judged_like_the_first(lab):
    lab.daemon(rules())
    client = lab.client()
    back = client.raw(
        b"GET http://example.com/one HTTP/1.1\r\n" + HOST + b"\r\n"
        b"GET http://denied.example.net/two HTTP/1.1\r\nHost: denied.example.net\r\n\r\n"
        b"GET http://example.com/smuggled HTTP/1.1\r\n" + HOST + b"\r\n"
        b"GET http://example.com/last HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    codes = [part[:3] for part in back.split(b"HTTP/1.1 ")[1:]]
    check(codes[0] == b"200" and set(codes[1:3]) <= {b"403"}, codes)
    check({r["path"] for r in lab.internet.origin.requests()} <= {"/one", "/last"})
    lab.internet.nothing_for("93.184.217.99")


RESPONSES = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 50\r\n\r\nhello",
    "length and chunked": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "unknown te": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
    "space before colon": b"HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello",
    "bad status": b"HTTP/1.1 2000 OK\r\nContent-Length: 5\r\n\r\nhello",
    "no http": b"hello there\r\n\r\n",
    "bare lf": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
    "obs-fold": b"HTTP/1.1 200 OK\r\nX-A: 1\r\n Content-Length: 5\r\n\r\nhello",
    "nul": b"HTTP/1.1 200 OK\r\nX-A: \x00\r\nContent-Length: 5\r\n\r\nhello",
    "endless head": b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 400_000 + b"\r\n\r\n",
    "unasked 101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
}

# Oddities that hide no second reading once they are written out anew.
REPAIRABLE = {"bare lf", "obs-fold", "nul"}


@scenario(deadline=90)
def an_origins_ambiguous_answer_is_502(lab):
    daemon = lab.daemon(rules())
    client = lab.client()
    wrong = {}
    for number, (name, answer) in enumerate(RESPONSES.items()):
        lab.internet.origin.on(f"/r{number}", lambda request, connection, a=answer: connection.sendall(a))
        response = client.curl(f"http://example.com/r{number}", seconds=5)
        repaired = name in REPAIRABLE and response.status == 200 and response.body == b"hello"
        if response.status != 502 and not repaired:
            wrong[name] = response
    check(not wrong, wrong)
    check(daemon.process.poll() is None)


@scenario()
def bytes_behind_a_response_never_answer_another_request(lab):
    """An origin appends a whole second response; the next request on the connection must not get it."""
    lab.daemon(rules())
    client = lab.client()
    poison = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    lab.internet.origin.on("/poison", lambda r, c: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + poison)
    seen = client.py('''
import http.client
c = http.client.HTTPConnection(GATEWAY, PROXY_PORT, timeout=8)
result = []
for path in ("/poison", "/next", "/poison", "/next"):
    try:
        c.request("GET", "http://example.com" + path); result.append(c.getresponse().read().decode())
    except (OSError, http.client.HTTPException) as problem:
        c.close(); result.append(repr(problem))
''')
    check("poison" not in seen[1] and "poison" not in seen[3], seen)
    check(seen[0] == "ok", seen)


@scenario()
def upstream_connections_are_not_shared_between_containers(lab):
    lab.daemon(rules())
    one, two = lab.client(), lab.client()
    for client in (one, two, one, two):
        check(client.curl("http://example.com/mine", "-H", f"X-Who: {client.name}").status == 200)
    by_connection = {}
    for request in lab.internet.origin.requests(path="/mine"):
        who = dict(request["headers"]).get("X-Who")
        by_connection.setdefault(id(request["connection"]), set()).add(who)
    check(all(len(who) == 1 for who in by_connection.values()), by_connection)
