"""Us beside tinyproxy, squid and dnsmasq: the same origin, load and policy, in one go.

The policy is a list of NAMES allowed host names and nothing else. Each proxy runs on the lab host's loopback, one
after the other, with what it needs to log nothing and cache no body, so that the work compared is the same: judge,
resolve, connect, pass on. CPU is the server's own (user and system, with its children), which says more than the rate
on a small machine where the load generator takes the other half. Needs wrk, dnsperf, nginx, tinyproxy, squid and
dnsmasq; a peer that is not installed is named and left out.
"""

import os
import re
import shutil
import signal

import netns
import sh
from daemon import rule

from figures import anonymous_kib, say, status

ORIGIN = "151.101.64.10"
NEAR = "151.101.64.1"
HOST = "bench.example.com"
NAMES = 1000
SECONDS = 4
CONNECTIONS = 32
BULK_MB = 512
TICKS = os.sysconf("SC_CLK_TCK")
# Ports on the lab's loopback.
OURS, TINYPROXY, SQUID, DNSMASQ = 8080, 8888, 3128, 5300


class Server:
    """A server under load: its process and what it has used."""

    def __init__(self, name, process, port):
        self.name, self.process, self.port = name, process, port

    def pids(self):
        """The process and all below it."""
        found, queue = [], [self.process.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            try:
                for task in os.listdir(f"/proc/{pid}/task"):
                    with open(f"/proc/{pid}/task/{task}/children") as file:
                        queue += [int(child) for child in file.read().split()]
            except OSError:
                continue
        return found

    def cpu(self):
        """CPU seconds so far."""
        ticks = 0
        for pid in self.pids():
            try:
                with open(f"/proc/{pid}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
            except OSError:
                continue
        return ticks / TICKS

    def memory(self):
        """Resident and anonymous MiB of all its processes."""
        pids = self.pids()
        return sum(status(pid, "VmRSS") for pid in pids) / 1024, sum(anonymous_kib(pid) for pid in pids) / 1024


class Origin:
    """nginx and an authoritative dnsmasq in a namespace of their own, with nothing that watches the packets."""

    def __init__(self, lab):
        self.directory = lab.path("origin")
        os.makedirs(self.directory)
        self.space = netns.Namespace("origin")
        lab.space.run("ip", "link", "add", "bench", "type", "veth", "peer", "name", "lab", "netns", str(self.space.holder.pid))
        for space, link, address in ((lab.space, "bench", NEAR), (self.space, "lab", ORIGIN)):
            space.run("ip", "addr", "add", f"{address}/24", "dev", link)
            space.run("ip", "link", "set", link, "up")
        self.processes = [self._web(), self._names()]

    def _web(self):
        at = self.directory
        os.makedirs(f"{at}/web", exist_ok=True)
        with open(f"{at}/web/small", "wb") as file:
            file.write(b"x" * 100)
        with open(f"{at}/web/bulk", "wb") as file:
            file.truncate(BULK_MB << 20)
        self.space.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                       "-days", "2", "-subj", f"/CN={HOST}", "-keyout", f"{at}/key.pem", "-out", f"{at}/cert.pem")
        with open(f"{at}/nginx.conf", "w") as file:
            file.write(f"""
worker_processes 1; pid {at}/nginx.pid; error_log {at}/nginx.err; daemon off; user root;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nodelay on; keepalive_requests 1000000;
  client_body_temp_path {at}/t1; proxy_temp_path {at}/t2; fastcgi_temp_path {at}/t3; uwsgi_temp_path {at}/t4;
  scgi_temp_path {at}/t5;
  server {{ listen {ORIGIN}:80; listen {ORIGIN}:443 ssl; ssl_certificate {at}/cert.pem;
           ssl_certificate_key {at}/key.pem; root {at}/web; }}
}}
""")
        process = sh.start([*self.space.enter(), "nginx", "-e", f"{at}/nginx.err", "-c", f"{at}/nginx.conf"], log=f"{at}/nginx.log")
        answers(self.space, ORIGIN, 80)
        return process

    def _names(self):
        process = sh.start([*self.space.enter(), "dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null",
                            "--pid-file=", f"--listen-address={ORIGIN}", "--bind-interfaces", "--local-ttl=3600",
                            f"--address=/example.com/{ORIGIN}", "--address=/example.net/151.101.64.11"],
                           log=f"{self.directory}/names.log")
        answers(self.space, ORIGIN, 53)
        return process

    def close(self):
        """Ends the servers and lets the namespace go."""
        for process in self.processes:
            sh.stop(process, grace=3)
        self.space.close()


def answers(space, address, port):
    """Waits until a TCP connection is taken."""

    def taken():
        with space.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((address, port)) == 0

    sh.wait_for(taken, f"{address}:{port} to answer", 20)


def allowed():
    """The names that the policy allows; HOST is one of them."""
    return [HOST, *(f"name{number}.example.com" for number in range(NAMES - 1))]


def outcalld(lab):
    """Our daemon with one rule a name."""
    rules = [rule(f"allow-{number}", f'http.host == "{name}" || dns.query == "{name}" || network.hostname == "{name}"')
             for number, name in enumerate(allowed())]
    daemon = lab.daemon(rules, ["--extra-peers", "127.0.0.0/8"], upstream=ORIGIN, env={"RUST_LOG": "warn"})
    return Server("outcalld", daemon.process, OURS)


def tinyproxy(lab):
    """tinyproxy with a filter that denies by default."""
    at = lab.path("tinyproxy")
    os.makedirs(at)
    with open(f"{at}/filter", "w") as file:
        file.writelines(f"^{re.escape(name)}$\n" for name in allowed())
    with open(f"{at}/conf", "w") as file:
        file.write(f"Port {TINYPROXY}\nListen 127.0.0.1\nTimeout 60\nLogFile \"{at}/log\"\nLogLevel Critical\nMaxClients 1000\n"
                   f"Filter \"{at}/filter\"\nFilterDefaultDeny Yes\nFilterExtended Yes\nFilterURLs Off\n")
    return started(lab, "tinyproxy", ["tinyproxy", "-d", "-c", f"{at}/conf"], TINYPROXY)


def squid(lab):
    """squid with an ACL of names and no cache."""
    at = lab.path("squid")
    os.makedirs(at)
    os.chmod(at, 0o777)
    with open(f"{at}/names", "w") as file:
        file.writelines(f"{name}\n" for name in allowed())
    with open(f"{at}/conf", "w") as file:
        file.write(f"http_port 127.0.0.1:{SQUID}\nacl names dstdomain \"{at}/names\"\nhttp_access allow names\n"
                   f"http_access deny all\ncache deny all\ncache_mem 0 MB\naccess_log none\ncache_log {at}/log\n"
                   f"pid_filename {at}/pid\ndns_nameservers {ORIGIN}\ncoredump_dir {at}\nshutdown_lifetime 1 seconds\n"
                   f"pinger_enable off\nnetdb_filename none\nmax_filedescriptors 8192\n")
    return started(lab, "squid", ["squid", "-N", "-f", f"{at}/conf"], SQUID)


def dnsmasq(lab):
    """dnsmasq that forwards the names and answers NXDOMAIN to the rest."""
    path = lab.path("dnsmasq.conf")
    with open(path, "w") as file:
        file.write(f"port={DNSMASQ}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\ncache-size=10000\naddress=/#/\n")
        file.writelines(f"server=/{name}/{ORIGIN}\n" for name in allowed())
    return started(lab, "dnsmasq", ["dnsmasq", "--keep-in-foreground", "--pid-file=", f"--conf-file={path}"], DNSMASQ)


def started(lab, name, command, port):
    """A peer, running; None if it is not installed."""
    if not shutil.which(command[0]):
        say(name, "not installed: left out")
        return None
    process = sh.start([*lab.space.enter(), *command], log=lab.path(f"{name}.log"), sig=signal.SIGTERM)
    answers(lab.space, "127.0.0.1", port)
    return Server(name, process, port)


def http_load(lab, port, close):
    """wrk through the proxy at `port`; gives (requests, requests a second, p99 in ms, failures)."""
    script = lab.path("absolute.lua")
    with open(script, "w") as file:
        connection = 'wrk.headers["Connection"] = "close"\n' if close else ""
        file.write(f'wrk.path = "http://{HOST}/small"\nwrk.headers["Host"] = "{HOST}"\n{connection}')
    text = lab.space.run("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}s", "--latency", "-s", script,
                         f"http://127.0.0.1:{port}/", timeout=60).text
    return reading(text)


def reading(text):
    """What wrk printed."""
    requests = int(re.search(r"(\d+) requests in", text).group(1))
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1))
    amount, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", text).groups()
    p99 = float(amount) * {"us": 0.001, "ms": 1, "s": 1000}[unit]
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return requests, rate, p99, int(bad.group(1)) if bad else 0


def dns_load(lab, port, names):
    """dnsperf against `port`; gives (questions, questions a second)."""
    path = lab.path("questions")
    with open(path, "w") as file:
        file.writelines(f"{name} A\n" for name in names)
    text = lab.space.run("dnsperf", "-s", "127.0.0.1", "-p", str(port), "-d", path, "-l", str(SECONDS), "-c", "8",
                         "-q", "64", timeout=60).text
    done = int(re.search(r"Queries completed:\s+(\d+)", text).group(1))
    return done, float(re.search(r"Queries per second:\s+([\d.]+)", text).group(1))


def bulk(lab, server):
    """One large download through a CONNECT tunnel; gives the proxy's CPU seconds a GB and the rate in MB/s."""
    before = server.cpu()
    text = lab.space.run("curl", "-sk", "-x", f"http://127.0.0.1:{server.port}", "-o", "/dev/null", "-w",
                         "%{size_download} %{time_total}", f"https://{HOST}/bulk", timeout=120).text
    size, seconds = (float(word) for word in text.split())
    if size != BULK_MB << 20:
        raise RuntimeError(f"{server.name}: {size:.0f} bytes came of {BULK_MB << 20}")
    return (server.cpu() - before) / (size / 1e9), size / seconds / 1e6


def compare(rows, label, unit, better="more"):
    """Prints the figure of each server and its ratio to ours."""
    ours = rows[0][1]
    for name, value in rows:
        ratio = "" if name == rows[0][0] or not value else (
            f"outcalld has {ours / value:.2f} times that" if better == "more" else f"outcalld needs {ours / value:.2f} times that")
        say(f"{label}, {name}", f"{value:,.2f} {unit}", ratio)


def proxies(lab):
    """HTTP: kept alive, new connections, tunnels, memory."""
    table = {}
    for make in (outcalld, tinyproxy, squid):
        server = make(lab)
        if server is None:
            continue
        idle = server.memory()
        figures = {"resident memory idle": idle[0], "anonymous memory idle": idle[1]}
        http_load(lab, server.port, False)  # warm
        for kind, close in (("kept alive", False), ("new connection each", True)):
            before = server.cpu()
            requests, rate, p99, bad = http_load(lab, server.port, close)
            if bad:
                raise RuntimeError(f"{server.name}: {bad} of {requests} requests failed ({kind})")
            figures[f"requests/s, {kind}"] = rate
            figures[f"p99, {kind}"] = p99
            figures[f"CPU a request, {kind}"] = (server.cpu() - before) / requests * 1e6
        figures["tunnel CPU a GB"], figures["tunnel"] = bulk(lab, server)
        table[server.name] = figures
        end(server)
    for label, unit, better in (
        ("requests/s, kept alive", "/s", "more"), ("p99, kept alive", "ms", "less"), ("CPU a request, kept alive", "us", "less"),
        ("requests/s, new connection each", "/s", "more"), ("p99, new connection each", "ms", "less"),
        ("CPU a request, new connection each", "us", "less"), ("tunnel", "MB/s", "more"), ("tunnel CPU a GB", "s", "less"),
        ("resident memory idle", "MiB", "less"), ("anonymous memory idle", "MiB", "less"),
    ):
        compare([(name, figures[label]) for name, figures in table.items()], label, unit, better)


def resolvers(lab):
    """DNS: cached answers and denials."""
    table = {}
    denied = [f"name{number}.example.net" for number in range(NAMES)]
    for make, port in ((outcalld, 53), (dnsmasq, DNSMASQ)):
        server = make(lab)
        if server is None:
            continue
        figures = {}
        dns_load(lab, port, allowed())  # fills the cache
        for kind, names in (("cached", allowed()), ("denied", denied)):
            before = server.cpu()
            questions, rate = dns_load(lab, port, names)
            figures[f"DNS answers/s, {kind}"] = rate
            figures[f"CPU an answer, {kind}"] = (server.cpu() - before) / questions * 1e6
        table[server.name] = figures
        end(server)
    for label, unit, better in (("DNS answers/s, cached", "/s", "more"), ("CPU an answer, cached", "us", "less"),
                                ("DNS answers/s, denied", "/s", "more"), ("CPU an answer, denied", "us", "less")):
        compare([(name, figures[label]) for name, figures in table.items()], label, unit, better)


def end(server):
    """Stops a server, and waits until its port is free for the next."""
    sh.stop(server.process, grace=8)


def run(lab):
    """All of it."""
    lab.begin("bench")
    origin = Origin(lab)
    lab.resolv_conf(f"nameserver {ORIGIN}\n")
    try:
        proxies(lab)
        resolvers(lab)
    finally:
        origin.close()
        lab.resolv_conf("nameserver 9.9.9.9\n")
    lab.sweep()
