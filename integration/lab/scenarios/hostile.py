"""Peers that want to use the daemon up: under each of them, others are served and the daemon lives."""

import os
import time

from harness import *


@scenario(deadline=90)
def a_container_over_its_connection_cap_gets_503_and_others_are_served(lab):
    daemon = lab.daemon(allow("example.com"), flags=["--proxy-max-per-container", "50"])
    greedy, other = lab.client(), lab.client()
    seen = greedy.py('''
held, codes = [], []
for n in range(60):
    s = socket.create_connection((GATEWAY, PROXY_PORT), 5); s.settimeout(5)
    s.sendall(b"GET http://example.com/%d HTTP/1.1\\r\\nHost: example.com\\r\\n\\r\\n" % n)
    try: codes.append(s.recv(4096)[9:12].decode())
    except OSError as problem: codes.append(repr(problem))
    held.append(s)
result = codes
''', seconds=60)
    check(seen[:50] == ["200"] * 50, seen)
    check(set(seen[50:]) == {"503"}, seen[50:])
    check(other.curl("http://example.com/").status == 200)
    wait_for(lambda: greedy.curl("http://example.com/").status == 200, "the greedy one to recover", 10)
    check(daemon.process.poll() is None)


@scenario(deadline=90)
def over_the_total_cap_is_503_and_the_rest_goes_on(lab):
    daemon = lab.daemon(allow("example.com"), flags=["--proxy-max-connections", "30"])
    holders = [lab.client() for _ in range(2)]
    script = ("import socket, time\n"
              "held = [socket.create_connection(('10.200.0.1', 8080)) for _ in range(20)]\n"
              "open('/tmp/held', 'w').close(); time.sleep(60)\n")
    processes = [holder.start("/usr/bin/python3", "-c", script) for holder in holders]
    for holder in holders:
        wait_for(lambda: holder.run("test", "-e", "/tmp/held").code == 0, "the connections", 10)
    late = lab.client()
    check(late.curl("http://example.com/", seconds=5).status == 503)
    for holder, process in zip(holders, processes):
        holder.remove()
        process.wait()
    wait_for(lambda: late.curl("http://example.com/", seconds=5).status == 200, "room again", 10)
    check(daemon.process.poll() is None)


@scenario(deadline=90)
def idle_and_half_open_connections_do_not_stop_others(lab):
    daemon = lab.daemon(allow("example.com"))
    bad, good = lab.client(), lab.client()
    before = daemon.memory_kib()
    process = bad.start("/usr/bin/python3", "-c", (
        "import socket, time\n"
        "held = []\n"
        "for n in range(250):\n"
        " s = socket.create_connection(('10.200.0.1', 8080)); s.setblocking(False); held.append(s)\n"
        " s.send([b'', b'GET http://exa', b'POST http://example.com/ HTTP/1.1\\r\\nHost: example.com\\r\\nContent-Length: 9\\r\\n\\r\\n',"
        " b'CONNECT example.com:443 HTTP/1.1\\r\\nHost: example.com:443\\r\\n\\r\\n'][n % 4])\n"
        "open('/tmp/held', 'w').close()\n"
        "time.sleep(60)\n"))
    wait_for(lambda: bad.run("test", "-e", "/tmp/held").code == 0, "250 connections", 15)
    start = time.monotonic()
    check(good.curl("http://example.com/").status == 200)
    check(good.dig("example.com").status == "NOERROR")
    check(time.monotonic() - start < 2, time.monotonic() - start)
    check(daemon.memory_kib() - before < 16_384, (before, daemon.memory_kib()))
    process.kill()


@scenario(deadline=90)
def without_descriptors_dns_goes_on_over_udp_and_tcp_comes_back_by_itself(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    check(client.dig("example.com").status == "NOERROR")
    pid = str(daemon.process.pid)
    with open(f"/proc/{pid}/limits") as file:
        before = next(line.split()[3] for line in file if line.startswith("Max open files"))
    # Whatever is opened from here on is one too many.
    run(["prlimit", "--pid", pid, "--nofile=3:"])
    waiting = client.start("dig", "+tcp", "+tries=1", "+time=30", f"@{client.gateway}", "example.com", stdout=-1)
    wait_for(lambda: "cannot accept" in daemon.text(), "an accept to fail", 10)
    for _ in range(5):
        check(client.dig("denied.example.net").status == "NXDOMAIN")
        check(client.dig("example.com").status == "NOERROR")
    check(waiting.poll() is None)
    # Said once, not at each try.
    said = [line for line in daemon.text().splitlines() if " dns: cannot accept" in line]
    check(len(said) == 1, said)
    run(["prlimit", "--pid", pid, f"--nofile={before}:"])
    # No new connection tells it: the one that waited is served.
    answer, _ = waiting.communicate(timeout=20)
    check(b"status: NOERROR" in answer, answer)
    check(client.dig("example.com", "A", "+tcp").status == "NOERROR")
    wait_for(lambda: daemon.api("GET", "/api/v1/health").status == 200, "health", 10)
    check(client.curl("http://example.com/").status == 200)


@scenario()
def heads_without_end_are_431(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    long_value = client.raw(b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\nX-A: " + b"a" * 9000 + b"\r\n\r\n")
    check(long_value.startswith(b"HTTP/1.1 431"), long_value[:60])
    many = client.raw(b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n" + b"A: b\r\n" * 3000 + b"\r\n")
    check(many.startswith(b"HTTP/1.1 431"), many[:60])
    endless = client.py('''
s = socket.create_connection((GATEWAY, PROXY_PORT)); s.settimeout(3)
s.sendall(b"GET http://example.com/ HTTP/1.1\\r\\nHost: example.com\\r\\n")
sent = 0
try:
    while sent < 50_000_000:
        s.sendall(b"X: " + b"a" * 1000 + b"\\r\\n"); sent += 1005
except OSError: pass
result = sent
''')
    # What is thrown away while the 431 is on its way is bounded, too.
    check(endless < 40_000_000, endless)
    check(not lab.internet.origin.requests())


@scenario(deadline=90)
def endless_chunks_and_slow_bodies_hold_only_their_own_connection(lab):
    daemon = lab.daemon(allow("example.com"))
    bad, good = lab.client(), lab.client()
    before = daemon.memory_kib()
    process = bad.start("/usr/bin/python3", "-c", (
        "import socket\n"
        "s = socket.create_connection(('10.200.0.1', 8080))\n"
        "s.sendall(b'POST http://example.com/e HTTP/1.1\\r\\nHost: example.com\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n')\n"
        "while True: s.sendall(b'1\\r\\na\\r\\n' * 1000)\n"))
    for _ in range(10):
        check(good.curl("http://example.com/").status == 200)
    check(daemon.memory_kib() - before < 8192, (before, daemon.memory_kib()))
    process.kill()


@scenario(deadline=90)
def an_origin_that_never_answers_or_never_reads(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    lab.internet.origin.on("/hang", lambda request, connection: time.sleep(60))
    hung = [client.start("curl", "-s", "http://example.com/hang") for _ in range(5)]
    wait_for(lambda: len(lab.internet.origin.requests(path="/hang")) == 5, "five hanging requests", 10)
    check(client.curl("http://example.com/fine").status == 200)
    for process in hung:
        process.kill()
        process.wait()
    check(daemon.api("GET", "/api/v1/health").status == 200)


@scenario()
def an_origin_that_closes_or_resets_is_502(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    lab.internet.origin.on("/close", lambda request, connection: connection.close())
    response = client.curl("http://example.com/close")
    check(response.status == 502, response)
    lab.internet.origin.on("/half", lambda request, connection: connection.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"))
    response = client.curl("http://example.com/half")
    check(response.exit == 18, response)
    check(client.curl("http://example.com:81/").status in (200, 502, 504))


@scenario(deadline=90)
def a_flood_of_denied_queries_and_requests(lab):
    daemon = lab.daemon(allow("example.com"))
    bad, good = lab.client(), lab.client()
    before = daemon.memory_kib()
    process = bad.start("/usr/bin/python3", "-c", (
        "import socket, os\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('10.200.0.1', 53)); s.setblocking(False)\n"
        "q = b'\\x01\\x00\\x00\\x01\\x00\\x00\\x00\\x00\\x00\\x00'\n"
        "while True:\n"
        " try: s.send(os.urandom(2) + q + b'\\x10' + os.urandom(8).hex().encode() + b'\\x04evil\\x03net\\x00\\x00\\x01\\x00\\x01')\n"
        " except OSError: pass\n"))
    for _ in range(5):
        check(wait_for(lambda: good.dig("example.com", seconds=2).status == "NOERROR", "an answer under the flood", 10))
        check(good.curl("http://example.com/").status == 200)
    check(daemon.memory_kib() - before < 16_384, (before, daemon.memory_kib()))
    lab.internet.not_asked("evil.net")
    process.kill()


@scenario()
def nothing_secret_is_logged(lab):
    daemon = lab.daemon(allow("example.com"), env={"RUST_LOG": "trace"})
    client = lab.client()
    client.curl("http://example.com/p?token=sesame-query", "-H", "Authorization: Bearer sesame-header",
                "-H", "Cookie: sesame-cookie", "--data", "sesame-body", "-U", "user:sesame-proxy")
    client.curl("http://denied.example.net/p?token=sesame-query", "-H", "Authorization: Bearer sesame-header")
    client.curl("http://example.com/x?sesame-query", "-H", "Broken Header: sesame-header")
    text = daemon.text()
    check("sesame" not in text, [line for line in text.splitlines() if "sesame" in line][:3])
    for root, _, files in os.walk(daemon.state_dir):
        for name in files:
            with open(os.path.join(root, name), "rb") as file:
                check(b"sesame" not in file.read(), name)
