"""Memory: idle, and with idle tunnels."""

import subprocess

from daemon import allow
from lab import GATEWAY

from figures import anonymous_kib, say, status

TUNNELS = 1000
PROXY_PORT = 8080


def hello():
    """The bytes of a real ClientHello for example.com."""
    import ssl
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    session = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="example.com")
    try:
        session.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return out.read()


def run(lab):
    """Resident memory idle and with idle tunnels; threads."""
    lab.begin("bench")
    daemon = lab.daemon(allow("example.com"), ["--proxy-max-per-container", str(2 * TUNNELS)])
    client = lab.client()
    client.curl("http://example.com/")
    pid = daemon.process.pid
    say("resident memory, idle", f"{status(pid, 'VmRSS') / 1024:.2f} MiB",
        f"{anonymous_kib(pid) / 1024:.2f} MiB of it anonymous")
    say("threads", status(pid, "Threads"))
    before = anonymous_kib(pid)
    holder = client.start("/usr/bin/python3", "-c", f"""
import socket, sys
hello = bytes.fromhex({hello().hex()!r})
held = []
for _ in range({TUNNELS}):
    s = socket.create_connection(({GATEWAY!r}, {PROXY_PORT}))
    s.sendall(b"CONNECT example.com:443 HTTP/1.1\\r\\nHost: example.com:443\\r\\n\\r\\n")
    while not s.recv(4096).endswith(b"\\r\\n\\r\\n"): pass
    s.sendall(hello)
    s.recv(65536)
    held.append(s)
print("held", flush=True)
sys.stdin.read()
""", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    line = holder.stdout.readline()
    if line.strip() != b"held":
        say(f"{TUNNELS} idle tunnels", "could not be opened")
    else:
        active = daemon.api("GET", "/api/v1/proxy").data["active_connections"]
        after = anonymous_kib(pid)
        say(f"resident memory, {active} idle tunnels", f"{status(pid, 'VmRSS') / 1024:.2f} MiB",
            f"{(after - before) / TUNNELS:.2f} KiB of anonymous memory a tunnel")
    holder.stdin.close()
    holder.wait(10)
    lab.sweep()
