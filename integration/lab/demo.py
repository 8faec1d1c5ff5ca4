#!/usr/bin/python3
"""The demo: Outcall on this very host, told step by step.

Uses the host's Docker Engine (or starts one if none answers) and plays the internet in a network
namespace behind a route of its own, so that it works offline and shows both ends. Everything it made
is taken away at the end. Usage: demo.py [--keep]
"""

import os
import shutil
import signal
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True

import containers  # noqa: E402
import engine as engine_module  # noqa: E402
import netns  # noqa: E402
import sh  # noqa: E402
from daemon import Daemon, binary  # noqa: E402
from internet import Internet  # noqa: E402

# 44.128.0.0/16 is set aside for tests by its owner, and no special-purpose range: a filter takes it for public.
HOST_END, FAR_END, FAR_BLOCK = "44.128.6.1", "44.128.6.2", "44.128.7.0/24"
ALLOWED_ADDRESS, DENIED_ADDRESS, RESOLVER = "44.128.7.10", "44.128.7.66", "44.128.7.53"
DIRECT_ADDRESS = "44.128.7.20"
LINK = "ocdemo0"
IMAGE = "outcall-demo/tools"
AGENT = "outcall-demo-agent"
HOST_SOCKET = "/var/run/docker.sock"

RULES = """\
version: "1"
rules:
  - id: allow-example
    description: example.com, by name and through the proxy
    condition: 'http.host == "example.com" || dns.query == "example.com"'
    action: allow
  - id: no-admin
    description: but nothing below /admin
    condition: 'http.host == "example.com" && http.path.startsWith("/admin")'
    action: block
    priority: 10
  - id: direct-db
    description: port 80 of whatever address db.example.org has, past the proxy
    condition: 'dns.query == "db.example.org"'
    action: allow
    egress: { mode: direct_ip, ports: [80] }
"""


def say(text=""):
    print(text, flush=True)


def title(text):
    say(f"\n== {text}")


class Host:
    """This machine as the place where things run: no namespace to enter."""

    def enter(self):
        """No words: commands run right here."""
        return []

    def run(self, *command, check=True, input=None):
        """Runs a command on the host."""
        return sh.run(command, check=check, input=input)


class Demo:
    """The steps, and the undoing of each in reverse."""

    def __init__(self):
        self.space = Host()
        self.directory = tempfile.mkdtemp(prefix="outcall-demo.")
        self.undo = [lambda: shutil.rmtree(self.directory, ignore_errors=True)]

    def internet(self):
        """A namespace that plays the internet for FAR_BLOCK."""
        title("Playing the internet")
        far = netns.Namespace("internet")
        self.undo.append(far.close)
        run = self.space.run
        run("ip", "link", "add", LINK, "type", "veth", "peer", "name", "lab", "netns", str(far.holder.pid))
        self.undo.append(lambda: run("ip", "link", "del", LINK, check=False))
        run("ip", "addr", "add", f"{HOST_END}/30", "dev", LINK)
        run("ip", "link", "set", LINK, "up")
        run("ip", "route", "add", FAR_BLOCK, "via", FAR_END)
        far.run("ip", "addr", "add", f"{FAR_END}/30", "dev", "lab")
        far.run("ip", "link", "set", "lab", "up")
        far.run("ip", "route", "add", "default", "via", HOST_END)
        far.run("ip", "route", "add", "local", FAR_BLOCK, "dev", "lo", "table", "local")
        self.far = Internet(far, os.path.join(self.directory, "ca"))
        self.far.names.reset()
        self.far.names.set("example.com", ALLOWED_ADDRESS)
        self.far.names.set("db.example.org", DIRECT_ADDRESS)
        self.far.names.set("denied.example.net", DENIED_ADDRESS)
        say(f"   example.com is {ALLOWED_ADDRESS}, db.example.org {DIRECT_ADDRESS}, denied.example.net {DENIED_ADDRESS},")
        say(f"   all with web servers; a resolver that knows them is at {RESOLVER}. All in a network namespace: nothing leaves this machine.")

    def docker(self):
        """The host's engine, or one of our own."""
        self.engine = engine_module.Engine(self.space, self.directory)
        ours = self.engine.socket
        self.engine.socket = HOST_SOCKET
        if os.path.exists(HOST_SOCKET) and self.engine.docker("version", check=False).code == 0:
            title(f"Docker Engine: the one that answers at {HOST_SOCKET}")
        else:
            title("Docker Engine: none answers, so one is started for the demo")
            self.engine.socket = ours
            self._undo_dockers_traces()
            self.engine.start()
            self.undo.append(self.engine.stop)
        say("   " + self.engine.docker("version", "--format", "version {{.Server.Version}}").text.strip())
        self.engine.docker("import", "-", IMAGE, input=engine_module.tools_image())
        self.undo.append(lambda: self.engine.docker("rmi", "-f", IMAGE, check=False))

    def _undo_dockers_traces(self):
        """A dockerd leaves its bridge, its iptables chains and ip_forward behind: note them, to put them back."""
        run = self.space.run
        links = {line.split(":")[1].strip().split("@")[0] for line in run("ip", "-o", "link").text.splitlines()}
        tables = set(run("nft", "list", "tables").text.splitlines())
        rules = run("iptables-save").out
        with open("/proc/sys/net/ipv4/ip_forward") as file:
            forward = file.read()

        def put_back():
            if "docker0" not in links:
                run("ip", "link", "del", "docker0", check=False)
            run("iptables-restore", input=rules, check=False)
            for table in run("nft", "list", "tables").text.splitlines():
                if table not in tables and table.split()[-1] in ("nat", "filter", "raw", "mangle"):
                    run("nft", "delete", *table.split(), check=False)
            with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
                file.write(forward)

        self.undo.append(put_back)

    def outcall(self):
        """Starts outcalld with the example rules."""
        title("Starting outcalld with these rules")
        say("".join("   " + line + "\n" for line in RULES.splitlines()))
        self.daemon = Daemon(self, self.directory, RULES, upstream=RESOLVER)
        say("   $ " + " ".join(word.replace(self.directory, "DIR") for word in self.daemon.command()))
        if not self.engine.network("outcall-default"):
            self.undo.append(lambda: self.engine.docker("network", "rm", "outcall-default", check=False))
        self.undo.append(self.daemon.end)
        self.daemon.start()
        say(f"   ready (DIR is {self.directory})")

    def agent(self):
        """Starts the container that plays the agent."""
        title("Running a container on the network that outcalld made")
        gateway = self.engine.gateway("outcall-default")
        self.box = containers.Container(self.engine, AGENT, gateway)
        words = ["run", "-d", "--name", AGENT, "--network", "outcall-default", "--dns", gateway,
                 *containers.run_flags(self.far.authority.root, self.box.proxy), IMAGE, "sleep", "infinity"]
        self.engine.docker("rm", "-f", AGENT, check=False)
        self.undo.append(lambda: self.engine.docker("rm", "-f", "-v", AGENT, check=False))
        self.engine.docker(*words)
        say(f"   $ docker run -d --name {AGENT} --network outcall-default --dns {gateway} \\")
        say(f"       -e HTTP_PROXY={self.box.proxy} -e HTTPS_PROXY={self.box.proxy} … {IMAGE} sleep infinity")

    def _show(self, layer, command, saw, far, why, right):
        say(f"   {layer:9} $ {command}")
        say(f"             the container saw: {saw}")
        say(f"             the far end saw:   {far}")
        say(f"             why:               {why}")
        if not right:
            raise AssertionError(f"{layer}: that is not what the demo is to show")

    def _judge(self, host):
        return " ".join(self.daemon.cli("dns", "test", host).text.split())

    def allowed(self):
        """What the rules allow."""
        title("Allowed")
        far = self.far
        seen = self.box.dig("example.com")
        self._show("DNS", "dig example.com", f"{seen.status} {' '.join(seen.addresses)}",
                   f"{len(far.names.asked('example.com'))} query from outcalld",
                   self._judge("example.com"), seen.addresses == [ALLOWED_ADDRESS])
        got = self.box.curl("https://example.com/hello")
        requests = far.origin.requests(path="/hello")
        self._show("proxy", "curl https://example.com/hello", f"HTTP {got.status} through CONNECT",
                   f"{len(requests)} request for example.com over TLS",
                   "rule allow-example, for the CONNECT and for the name in the TLS hello", got.status == 200)
        direct = self.box.curl("http://db.example.org/", "--noproxy", "*", seconds=5)
        count = len(far.connections(DIRECT_ADDRESS))
        self._show("direct IP", "curl --noproxy '*' http://db.example.org/", f"HTTP {direct.status}",
                   f"{count} connection to {DIRECT_ADDRESS}",
                   "rule direct-db: the DNS answer opened this address and port for this container", direct.status == 200)

    def denied(self):
        """What they do not, at each layer."""
        title("Denied")
        far = self.far
        far.log.clear()
        far.packets.clear()
        seen = self.box.dig("denied.example.net")
        self._show("DNS", "dig denied.example.net", seen.status,
                   f"{len(far.names.asked('denied.example.net'))} queries", self._judge("denied.example.net"),
                   seen.status == "NXDOMAIN" and not far.names.asked("denied.example.net"))
        for url in ("http://denied.example.net/", "http://example.com/admin"):
            got = self.box.curl(url)
            reason = got.header("X-Outcall-Block-Reason")
            count = len(far.origin.requests())
            self._show("proxy", f"curl {url}", f"HTTP {got.status}: {got.text.strip()}", f"{count} requests",
                       f"rule {reason}" if reason != "default" else "no rule allows it (default)",
                       got.status == 403 and not count)
        direct = self.box.curl(f"http://{ALLOWED_ADDRESS}/", "--noproxy", "*", seconds=3)
        count = len(far.packets.to(ALLOWED_ADDRESS, dport=80))
        self._show("direct IP", f"curl --noproxy '*' http://{ALLOWED_ADDRESS}/", direct.errors.strip().splitlines()[-1],
                   f"{count} packets", "nftables, table inet outcall: no grant for this address and port",
                   direct.status == 0 and not count)
        other = self.box.dig("example.com", server=RESOLVER, seconds=2)
        count = len(far.packets.to(RESOLVER)) if not other.answers else -1
        self._show("direct IP", f"dig @{RESOLVER} example.com", other.text.strip().splitlines()[-1],
                   f"{count} packets", "another resolver than the gateway is an address like any other", not count)

    def keep(self):
        """Waits for Ctrl-C."""
        title("Left running. Play with it from another terminal; Ctrl-C here ends it and cleans up")
        prefix = "docker" if self.engine.socket == HOST_SOCKET else f"docker -H unix://{self.engine.socket}"
        outcall = f"{binary('outcall')} --socket {self.daemon.socket}"
        for line in (f"{prefix} exec -it {AGENT} bash", f"{outcall} rules list", f"{outcall} dns status",
                     f"{outcall} dns test github.com", f"edit {self.daemon.rules_dir}/rules.yaml, then {outcall} rules reload",
                     "nft list table inet outcall", f"tail -f {self.daemon.log}"):
            say("   " + line)
        signal.pause()

    def close(self):
        """Undoes everything, the latest first."""
        title("Cleaning up")
        for action in reversed(self.undo):
            try:
                action()
            except Exception as problem:  # the rest must be undone all the same
                say(f"   {problem}")
        say("   container, network, outcalld and what was started for them are gone")


def interrupted(*_):
    """Turns a signal into the end that Ctrl-C has."""
    raise KeyboardInterrupt


def main(arguments):
    """Runs the demo; exit code 0 if all was as it should be."""
    unknown = [word for word in arguments if word != "--keep"]
    if unknown:
        say(f"demo: unknown argument {unknown[0]}; the only one is --keep")
        return 2
    for sig in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, interrupted)
    demo = Demo()
    code = 1
    try:
        for step in (demo.internet, demo.docker, demo.outcall, demo.agent, demo.allowed, demo.denied):
            step()
        if "--keep" in arguments:
            demo.keep()
        code = 0
    except KeyboardInterrupt:
        code = 0 if "--keep" in arguments else 130
    except Exception as problem:
        say(f"\ndemo: {problem}")
        if hasattr(demo, "daemon"):
            say("   the end of outcalld's log:\n" + demo.daemon.tail(20))
    finally:
        demo.close()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
