"""Interception: us beside mitmproxy and squid with ssl_bump; the same CA, origin, client and host names, in one go.

Each proxy runs on the lab host's loopback, one after the other, on a core of its own where the machine has two; the
client and the origin have the other. All verify the origin by the same root, keep no cache of bodies and log nothing.
The client is `integration/lab/tls_load.rs`: every handshake it makes is a full one. mitmproxy comes from PyPI into a
directory that is thrown away; a peer that cannot be had is named and left out.
"""

import json
import os
import shutil
import signal
import subprocess
import sys

import sh
from daemon import REPOSITORY, binary, rule

from figures import say
from figures.peers import ORIGIN, Origin, Server, answers, compare, end

HOST = "bench.example.com"
# Not intercepted by us: the plain tunnel that latency is compared with.
TUNNEL = "tunnel.example.com"
SECONDS = 4
CONNECTIONS = 16
HELD = 200
OURS, MITMPROXY, SQUID = 8080, 8890, 3128
CERTGEN = "/usr/lib/squid/security_file_certgen"


def client():
    """The load client, built if it is not there."""
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(REPOSITORY, "target"))
    profile = os.path.basename(os.path.dirname(binary("outcalld")))
    path = f"{target}/{profile}/examples/tls_load"
    if not os.access(path, os.X_OK):
        flags = ["--release"] if profile == "release" else []
        subprocess.run(["cargo", "build", "-q", *flags, "--example", "tls_load"], cwd=REPOSITORY, check=True)
    return path


def pinned(core, command):
    """`command` on one core, where there are two."""
    return ["taskset", "-c", str(core), *command] if (os.cpu_count() or 1) > 1 else command


class Bench:
    """The certificates, the origin and the client of all three."""

    def __init__(self, lab):
        self.lab = lab
        self.client = client()
        self.ca = lab.path("ca")
        sh.run([binary("outcall"), "ca", "init", "--out", self.ca])
        self.cert, self.key = f"{self.ca}/ca-cert.pem", f"{self.ca}/ca-key.pem"
        self.origin = Origin(lab)
        self._certify_origin()
        self.roots = lab.path("roots.pem")
        with open(self.roots, "w") as out:
            for path in (self.cert, self.root):
                with open(path) as file:
                    out.write(file.read())

    def _certify_origin(self):
        """A certificate for the origin that a root has signed, put in the place of its own."""
        at = self.origin.directory
        self.root = f"{at}/root.pem"
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        sh.run([*new, "-subj", "/CN=Bench root", "-keyout", f"{at}/root.key", "-out", self.root])
        sh.run([*new, "-subj", f"/CN={HOST}", "-addext", "basicConstraints=critical,CA:FALSE", "-addext",
                "subjectAltName=DNS:*.example.com", "-CA", self.root, "-CAkey", f"{at}/root.key",
                "-keyout", f"{at}/key.pem", "-out", f"{at}/cert.pem"])
        web = self.origin.processes[0]
        web.send_signal(signal.SIGHUP)
        # nginx takes it with its next workers.
        sh.wait_for(lambda: "Bench root" in self.lab.space.run(
            "openssl", "s_client", "-connect", f"{ORIGIN}:443", "-servername", HOST, check=False, input="").text,
            "the origin to show its new certificate", 20)

    def load(self, server, mode, connections=CONNECTIONS, host=HOST):
        """What the client measured; with the server's CPU microseconds a request."""
        before = server.cpu()
        words = [self.client, f"127.0.0.1:{server.port}", self.roots, host, mode, str(connections), str(SECONDS)]
        figures = json.loads(self.lab.space.run(*pinned(0, words), timeout=SECONDS + 60).text)
        if figures["failures"] or not figures["requests"]:
            raise RuntimeError(f"{server.name}, {mode}: {figures}")
        figures["rate"] = figures["requests"] / figures["seconds"]
        figures["cpu_us"] = (server.cpu() - before) / figures["requests"] * 1e6
        return figures

    def memory(self, server):
        """Anonymous KiB of the server for each connection that is held open."""
        before = server.memory()[1]
        words = [*self.lab.space.enter(), self.client, f"127.0.0.1:{server.port}", self.roots, HOST, "hold", str(HELD), "0"]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            line = process.stdout.readline()
            if line.strip() != f"held {HELD}":
                raise RuntimeError(f"{server.name}: the client holds no {HELD} connections: {line}")
            return (server.memory()[1] - before) * 1024 / HELD
        finally:
            process.stdin.close()
            process.wait(20)


def outcalld(bench):
    """Our daemon: one rule that looks at method and path, one plain tunnel."""
    rules = [
        rule("tunnel", f'http.host == "{TUNNEL}"', priority=10),
        rule("inside", 'http.host.endsWith(".example.com") && http.method == "GET" && http.path == "/small"',
             egress={"mode": "intercept"}),
    ]
    flags = ["--extra-peers", "127.0.0.0/8", "--ca-cert", bench.cert, "--ca-key", bench.key, "--upstream-ca", bench.root]
    daemon = bench.lab.daemon(rules, flags, upstream=ORIGIN, env={"RUST_LOG": "error"}, wrapper=pinned(1, []))
    return Server("outcalld", daemon.process, OURS)


def mitmproxy(bench):
    """mitmdump from PyPI, with our CA and HTTP/1.1 as we have."""
    at = bench.lab.path("mitm")
    os.makedirs(f"{at}/conf")
    made = subprocess.run([sys.executable, "-m", "venv", f"{at}/venv"], capture_output=True, check=False)
    if made.returncode == 0:
        made = subprocess.run([f"{at}/venv/bin/pip", "install", "-q", "mitmproxy"], capture_output=True, check=False)
    if made.returncode != 0:
        say("mitmproxy", f"cannot be installed: left out ({made.stderr.decode()[-200:].strip()})")
        return None
    with open(f"{at}/conf/mitmproxy-ca.pem", "w") as out:
        for path in (bench.key, bench.cert):
            with open(path) as file:
                out.write(file.read())
    command = [f"{at}/venv/bin/mitmdump", "-q", "--listen-host", "127.0.0.1", "--listen-port", str(MITMPROXY),
               "--set", f"confdir={at}/conf", "--set", f"ssl_verify_upstream_trusted_ca={bench.root}",
               "--set", "http2=false", "--set", "flow_detail=0"]
    return peer(bench, "mitmproxy", command, MITMPROXY)


def squid(bench):
    """squid with ssl_bump, one process and its certificate helpers."""
    if not shutil.which("squid") or not os.access(CERTGEN, os.X_OK):
        say("squid", "squid-openssl is not installed: left out")
        return None
    at = bench.lab.path("squid")
    os.makedirs(at)
    # Its helpers run as its own user, and the directories above are the lab's alone.
    db = sh.run(["mktemp", "-d", "/tmp/outcall-squid.XXXXXX"]).text.strip()
    bench.lab.undo(lambda: shutil.rmtree(db, ignore_errors=True))
    with open(f"{db}/ca.pem", "w") as out:
        for path in (bench.cert, bench.key):
            with open(path) as file:
                out.write(file.read())
    shutil.copy(bench.root, f"{db}/root.pem")
    sh.run([CERTGEN, "-c", "-s", f"{db}/certs", "-M", "16MB"])
    sh.run(["chown", "-R", "proxy:proxy", db])
    with open(f"{db}/conf", "w") as file:
        file.write(f"http_port 127.0.0.1:{SQUID} ssl-bump tls-cert={db}/ca.pem generate-host-certificates=on "
                   f"dynamic_cert_mem_cache_size=16MB\nsslcrtd_program {CERTGEN} -s {db}/certs -M 16MB\n"
                   f"sslcrtd_children 4\nacl hello at_step SslBump1\nssl_bump peek hello\nssl_bump bump all\n"
                   f"tls_outgoing_options cafile={db}/root.pem default-ca=off\n"
                   f"acl names dstdomain .example.com\nacl reads method GET CONNECT\nhttp_access allow names reads\n"
                   f"http_access deny all\ncache deny all\ncache_mem 0 MB\naccess_log none\ncache_log {db}/log\n"
                   f"pid_filename {db}/pid\ndns_nameservers {ORIGIN}\ncoredump_dir {db}\nshutdown_lifetime 1 seconds\n"
                   f"pinger_enable off\nnetdb_filename none\nmax_filedescriptors 8192\n")
    return peer(bench, "squid", ["squid", "-N", "-f", f"{db}/conf"], SQUID)


def peer(bench, name, command, port):
    """A peer on its core, answering."""
    process = sh.start([*bench.lab.space.enter(), *pinned(1, command)], log=bench.lab.path(f"{name}.log"), sig=signal.SIGTERM)
    answers(bench.lab.space, "127.0.0.1", port)
    return Server(name, process, port)


def measure(bench, server):
    """The figures of one proxy."""
    figures = {"resident memory idle": server.memory()[0]}
    bench.load(server, "alive")  # warm
    for label, mode in (("requests/s, kept alive", "alive"), ("requests/s, new connection each", "new"),
                        ("new hosts/s", "hosts")):
        loaded = bench.load(server, mode)
        figures[label], figures[f"CPU, {label}"] = loaded["rate"], loaded["cpu_us"]
    alone = bench.load(server, "alive", 1)
    figures["p50"], figures["p99"] = alone["p50_us"], alone["p99_us"]
    figures["memory a connection"] = bench.memory(server)
    return figures


def run(lab):
    """All of it."""
    lab.begin("intercept")
    bench = Bench(lab)
    lab.resolv_conf(f"nameserver {ORIGIN}\n")
    table, tunnel = {}, None
    try:
        for make in (outcalld, mitmproxy, squid):
            server = make(bench)
            if server is None:
                continue
            if tunnel is None:
                tunnel = bench.load(server, "alive", 1, TUNNEL)
                say("plain tunnel of outcalld, p50", f"{tunnel['p50_us']:,} us", f"p99 {tunnel['p99_us']:,} us")
            table[server.name] = measure(bench, server)
            end(server)
    finally:
        bench.origin.close()
        lab.resolv_conf("nameserver 9.9.9.9\n")
    for figures in table.values():
        for share in ("p50", "p99"):
            figures[f"latency added to a tunnel, {share}"] = figures.pop(share) - tunnel[f"{share}_us"]
    for label, unit, better in (
        ("requests/s, kept alive", "/s", "more"), ("CPU, requests/s, kept alive", "us", "less"),
        ("requests/s, new connection each", "/s", "more"), ("CPU, requests/s, new connection each", "us", "less"),
        ("new hosts/s", "/s", "more"), ("CPU, new hosts/s", "us", "less"),
        ("latency added to a tunnel, p50", "us", "less"), ("latency added to a tunnel, p99", "us", "less"),
        ("memory a connection", "KiB", "less"), ("resident memory idle", "MiB", "less"),
    ):
        compare([(name, figures[label]) for name, figures in table.items()], label, unit, better)
    lab.sweep()
