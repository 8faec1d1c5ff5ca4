"""Syscalls of a decision, all threads together."""

import os
import re

import sh
from daemon import allow

from figures import say, status

PROXY_PORT = 8080


def counted(daemon, action, times):
    """Syscalls of the daemon for `times` actions, by name, from strace's summary."""
    path = os.path.join(daemon.directory, "strace")
    tracer = sh.start(["strace", "-f", "-c", "-U", "name,calls", "-o", path, "-p", str(daemon.process.pid)],
                      log=path + ".log")

    def attached():
        return status(daemon.process.pid, "TracerPid") == tracer.pid

    sh.wait_for(attached, "strace to attach", 10)
    for _ in range(times):
        action()
    sh.stop(tracer, sig=2)
    with open(path) as file:
        rows = re.findall(r"^\s*(\w+)\s+(\d+)\s*$", file.read(), re.M)
    return {name: int(calls) for name, calls in rows if name != "total"}


def run(lab):
    """Syscalls for one DNS denial and for one kept-alive GET, all threads together."""
    lab.begin("bench")
    daemon = lab.daemon(allow("example.com"), ["--extra-peers", "127.0.0.0/8"])
    times = 200

    def on_lab(function):
        return lab.space.call(function)

    def report(label, counts):
        parts = ", ".join(f"{name} {calls / times:.2f}" for name, calls in
                          sorted(counts.items(), key=lambda row: -row[1]) if calls >= times / 10)
        say(label, f"{sum(counts.values()) / times:.1f} syscalls", parts)

    import dns.message
    import socket
    query = dns.message.make_query("denied.example.net", "A").to_wire()
    asking = lab.space.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asking.connect(("127.0.0.1", 53))

    def ask():
        asking.send(query)
        asking.recv(4096)

    ask()
    report("one DNS denial", counted(daemon, ask, times))
    asking.close()

    talking = lab.space.socket()
    talking.connect(("127.0.0.1", PROXY_PORT))
    request = b"GET http://example.com/bytes/100 HTTP/1.1\r\nHost: example.com\r\n\r\n"

    def get():
        talking.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.split(b"\r\n\r\n", 1)[1]) < 100:
            more = talking.recv(65536)
            if not more:
                raise RuntimeError("the proxy closed the connection")
            answer += more

    get()
    report("one allowed keep-alive GET", counted(daemon, get, times))
    talking.close()
    lab.sweep()
