"""The lab: namespaces, Docker Engine, internet; and what a scenario may ask of it.

Built once for a run. Each scenario gets the same `Lab` with a fresh directory; all it started is
ended and removed when it is over, and `sweep` raises if anything is left.
"""

import itertools
import json
import os
import shutil
import socket
import tempfile
import threading

import containers
import engine as engine_module
import netns
import sh
from daemon import Daemon, binary
from internet import Internet

DEFAULT_NETWORK = "outcall-default"
GATEWAY = "10.200.0.1"
# Links that belong to the lab and its Docker Engine.
OWN_LINKS = {"lo", "uplink", "second", "second-end", "docker0"}
# Devices that the kernel may put into every new namespace.
KERNEL_LINKS = ("sit0", "tunl0", "gre0", "gretap0", "erspan0", "ip6tnl0", "ip6gre0", "ip_vti0",
                "ip6_vti0", "ifb", "teql0", "dummy0", "bond0")


PREFIX = "outcall-lab."


def remove_stale():
    """Removes directories of runs that were killed; their processes died with them."""
    for name in os.listdir(tempfile.gettempdir()):
        owner = name[len(PREFIX):].partition(".")[0]
        if name.startswith(PREFIX) and owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            shutil.rmtree(os.path.join(tempfile.gettempdir(), name), ignore_errors=True)


class HostService:
    """A TCP service of the lab host (an sshd, say), on all its addresses, that notes who came."""

    def __init__(self, space, port, address=""):
        self.visits = []
        self._listeners = []
        family, everything = (socket.AF_INET, address or "0.0.0.0")
        listener = space.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((everything, port))
        listener.listen(64)
        self._listener = listener
        threading.Thread(target=self._accept, name=f"host-{port}", daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, source = self._listener.accept()
            except OSError:
                return
            self.visits.append(source[0])
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nhost secret")
            except OSError:
                pass
            connection.close()

    def end(self):
        """Stops listening."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()


class LoopbackResolver:
    """A resolver on the lab host's loopback that forwards to the internet, and notes what it was asked."""

    def __init__(self, space, address, internet):
        self.asked = []
        self._space = space
        self._socket = space.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, 53))
        threading.Thread(target=self._serve, name="loopback-dns", daemon=True).start()

    def _serve(self):
        while True:
            try:
                query, source = self._socket.recvfrom(4096)
            except OSError:
                return
            if not query:
                return
            self.asked.append(query)
            with self._space.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
                upstream.settimeout(3)
                try:
                    upstream.sendto(query, ("9.9.9.9", 53))
                    self._socket.sendto(upstream.recv(65535), source)
                except OSError:
                    continue

    def end(self):
        """Stops it. (A shutdown wakes the thread that reads; a close alone does not.)"""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


class Lab:
    """Everything below the scenarios."""

    def __init__(self, say=print):
        self._say = say
        self._serial = itertools.count(1)
        self._undo = []
        remove_stale()
        self.directory = tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}.")
        self.daemons = []
        self._scenario_dir = None
        self.far = self.space = self.engine = None
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self):
        self.space = netns.Namespace("lab", mounts=True)
        self.far = netns.Namespace("internet")
        netns.join(self.space, self.far)
        self.resolv_conf_path = os.path.join(self.directory, "resolv.conf")
        self.resolv_conf("nameserver 9.9.9.9\n")
        netns.own_resolv_conf(self.space, self.resolv_conf_path)
        self.internet = Internet(self.far, os.path.join(self.directory, "ca"))
        self.engine = engine_module.Engine(self.space, self.directory)
        self.engine.start()
        self.engine.load_images()

    # ---- what scenarios use ----------------------------------------------------------------

    @property
    def host_ip(self):
        """The lab host's address on its uplink."""
        return netns.LAB_IP

    @property
    def host_other_ip(self):
        """Another address of the lab host."""
        return netns.LAB_OTHER_IP

    @property
    def host_secondary_ip(self):
        """One more, in the same subnet as the other: the kernel never sends from it by itself."""
        return netns.LAB_SECONDARY_IP

    def resolv_conf(self, text):
        """Writes the lab host's /etc/resolv.conf."""
        with open(self.resolv_conf_path, "w") as file:
            file.write(text)

    def path(self, name):
        """A path in the scenario's own directory."""
        return os.path.join(self._scenario_dir, name)

    def daemon(self, rules=(), flags=(), start=True, wait=True, **options):
        """A new outcalld with the given rules, started and ready."""
        directory = self.path(f"d{next(self._serial)}")
        os.makedirs(directory)
        daemon = Daemon(self, directory, rules, flags, **options)
        self.daemons.append(daemon)
        if start:
            daemon.start(wait)
        return daemon

    def network(self, daemon, name):
        """Makes network `outcall-<name>` by the operator API; gives its full name."""
        answer = daemon.api("POST", "/api/v1/network/create", {"name": name})
        if answer.status not in (200, 201):
            raise AssertionError(f"network create {name}: {answer}")
        return answer.data["name"]

    def gateway(self, network):
        """The gateway of a Docker network."""
        return self.engine.gateway(network)

    def client(self, network=DEFAULT_NETWORK, name=None, proxy=True, dns="gateway", image=None,
               flags=(), command=("sleep", "infinity"), engine=None):
        """Starts a container by plain `docker run`; it has the host's clients."""
        engine = engine or self.engine
        gateway = engine.gateway(network) if network not in ("none", "host") else None
        name = name or f"client{next(self._serial)}"
        container = containers.Container(engine, name, gateway)
        words = ["run", "-d", "--name", name, "--network", network]
        if dns == "gateway":
            words += ["--dns", gateway]
        elif dns:
            words += ["--dns", dns]
        proxy_url = container.proxy if proxy else None
        words += containers.run_flags(self.internet.authority.root, proxy_url, engine.host_files)
        engine.docker(*words, *flags, image or engine_module.TOOLS, *command)
        return container

    def host_service(self, port, address=""):
        """A TCP service on the lab host."""
        service = HostService(self.space, port, address)
        self._undo.append(service.end)
        return service

    def loopback_resolver(self):
        """Gives the lab host a resolver on loopback, as systemd-resolved is, and says so in resolv.conf."""
        relay = LoopbackResolver(self.space, netns.LOOPBACK_RESOLVER, self.internet)
        self._undo.append(relay.end)
        self.resolv_conf(f"nameserver {netns.LOOPBACK_RESOLVER}\n")
        return relay

    def undo(self, function):
        """Has `function()` run when the scenario ends, passed or failed."""
        self._undo.append(function)

    def flush_ruleset(self):
        """Takes every table away, as `nft flush ruleset` of another tool does; Docker's come back when the scenario ends."""
        dockers = self.space.run("iptables-save").out
        self.undo(lambda: self.space.run("iptables-restore", input=dockers))
        self.nft("flush", "ruleset")

    def nft(self, *arguments, input=None, check=True):
        """Runs nft in the lab's namespace."""
        return self.space.run("nft", *arguments, input=input, check=check)

    def tables(self):
        """Names of nftables tables that are Outcall's, as (family, name)."""
        listed = self.nft("list", "tables").text.splitlines()
        pairs = [tuple(line.split()[1:3]) for line in listed if line.startswith("table ")]
        return [pair for pair in pairs if pair[1].startswith("outcall")]

    def links(self):
        """Links of the lab host, by name: the kernel's own view as dicts."""
        listed = json.loads(self.space.run("ip", "-j", "-d", "link", "show").text)
        return {link["ifname"]: link for link in listed}

    # ---- between scenarios -----------------------------------------------------------------

    def begin(self, label="s"):
        """A fresh directory (`label` is short: socket paths have room for 107 bytes) and a fresh internet."""
        self._scenario_dir = os.path.join(self.directory, f"{label}{next(self._serial)}")
        os.makedirs(self._scenario_dir)
        self.daemons = []
        self._undo = []
        self.internet.reset()

    def sweep(self):
        """Ends and removes all that the scenario made; raises if something is left."""
        problems = []

        def attempt(action):
            try:
                action()
            except Exception as problem:  # the rest must be swept all the same
                problems.append(f"{action}: {problem}")

        for daemon in self.daemons:
            attempt(daemon.end)
        for action in reversed(self._undo):
            attempt(action)
        if self.engine.process is None or self.engine.process.poll() is not None:
            attempt(self.engine.start)
        attempt(self.engine.sweep)
        attempt(lambda: self.resolv_conf("nameserver 9.9.9.9\n"))
        for family, name in self.tables():
            attempt(lambda: self.nft("delete", "table", family, name))
        for link in self.links():
            if link not in OWN_LINKS and not link.startswith(("veth", *KERNEL_LINKS)):
                # One end of a veth may be gone with the other; `_left_over` looks at the outcome.
                self.space.run("ip", "link", "del", link, check=False)
        attempt(lambda: self.space.run("conntrack", "-F", check=False))
        attempt(self._left_over)
        shutil.rmtree(self._scenario_dir, ignore_errors=True)
        if problems:
            raise AssertionError("left behind: " + "; ".join(problems))

    def _left_over(self):
        extra = [n for n in self.links() if n not in OWN_LINKS and not n.startswith(KERNEL_LINKS)]
        if extra or self.tables():
            raise AssertionError(f"links {extra}, tables {self.tables()}")

    def close(self):
        """Takes the whole lab down."""
        if self.engine and self.engine.process and self.engine.process.poll() is None:
            try:
                self.engine.sweep()
            except sh.CommandFailed as problem:
                self._say(f"lab: {problem}")
            self.engine.stop()
        for space in (self.space, self.far):
            if space:
                space.close()
        shutil.rmtree(self.directory, ignore_errors=True)


__all__ = ["Lab", "binary", "GATEWAY", "DEFAULT_NETWORK"]
