"""The two network namespaces, `lab` and `internet`, and sockets inside them.

A namespace is held open by a process of its own, which dies with the runner: nothing has a name on
the host, so two labs never meet and a killed run leaves nothing. The lab's namespace comes with a
mount namespace, in which /etc/resolv.conf is a file of the lab. Owns addresses and routes; starts
no server.
"""

import ctypes
import os
import socket
import threading

import sh

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

# Addresses of the joint between the two. Public ones on purpose: a private uplink would be refused
# by the private-address rule before the check that a scenario wants to see.
LAB_IP = "45.76.10.2"
INTERNET_IP = "45.76.10.1"
# A second address of the lab host, on an interface of its own, and a third that is not the first of its subnet.
LAB_OTHER_IP = "45.76.99.2"
LAB_SECONDARY_IP = "45.76.99.3"
LAB_IP6 = "2a00:1450:4001:10::2"
INTERNET_IP6 = "2a00:1450:4001:10::1"
# Where the lab's own resolver may listen, as systemd-resolved and dnsmasq do.
LOOPBACK_RESOLVER = "127.0.0.53"


class Namespace:
    """A network namespace (and, for the lab, a mount namespace) held by a sleeping process."""

    def __init__(self, label, mounts=False):
        self.label = label
        self.mounts = mounts
        flags = ["--net"] + (["--mount", "--propagation", "private"] if mounts else [])
        self.holder = sh.start(["unshare", *flags, "sleep", "infinity"])
        mine = os.readlink("/proc/self/ns/net")

        def made():
            try:
                comm = open(f"/proc/{self.holder.pid}/comm").read().strip()
                return comm == "sleep" and os.readlink(self.path("net")) != mine
            except OSError:
                return False

        sh.wait_for(made, f"namespace {label}", 5)
        self.run("ip", "link", "set", "lo", "up")

    def path(self, kind):
        """Path of the namespace file of `kind` (net, mnt)."""
        return f"/proc/{self.holder.pid}/ns/{kind}"

    def enter(self):
        """Command words that run what follows inside the namespace."""
        words = ["nsenter", f"--net={self.path('net')}"]
        if self.mounts:
            words.append(f"--mount={self.path('mnt')}")
        return words

    def run(self, *command, check=True, input=None, timeout=60):
        """Runs a command inside."""
        return sh.run([*self.enter(), *command], check=check, input=input, timeout=timeout)

    def sysctl(self, name, value):
        """Sets a sysctl of this network namespace."""
        self.run("sh", "-c", f"echo {value} > /proc/sys/{name}")

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM, proto=0):
        """A socket that lives inside, usable by the runner: made by a thread that entered."""
        return self.call(lambda: socket.socket(family, kind, proto))

    def call(self, function):
        """Runs `function()` on a thread inside the network namespace and returns its value."""
        box = {}

        def work():
            try:
                descriptor = os.open(self.path("net"), os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), f"setns to {self.label}")
                finally:
                    os.close(descriptor)
                box["value"] = function()
            except BaseException as problem:  # handed to the caller below
                box["problem"] = problem

        thread = threading.Thread(target=work, name=f"in-{self.label}")
        thread.start()
        thread.join()
        if "problem" in box:
            raise box["problem"]
        return box["value"]

    def close(self):
        """Lets the namespace go."""
        sh.stop(self.holder, grace=2)


def dress(space, link, ip4, ip6):
    """Gives a link its addresses and sets it up."""
    space.run("ip", "addr", "add", f"{ip4}/24", "dev", link)
    space.run("ip", "addr", "add", f"{ip6}/64", "dev", link, "nodad")
    space.run("ip", "link", "set", link, "up")


def dress_uplink(host):
    """Makes `host`, which has the link `uplink`, the host that the internet knows."""
    dress(host, "uplink", LAB_IP, LAB_IP6)
    host.run("ip", "route", "add", "default", "via", INTERNET_IP)
    host.run("ip", "-6", "route", "add", "default", "via", INTERNET_IP6)


def hand_over(giver, taker):
    """Moves the uplink to another host, which takes the giver's place on the internet."""
    giver.run("ip", "link", "set", "uplink", "netns", str(taker.holder.pid))
    dress_uplink(taker)


def join(lab, internet):
    """Joins the two by a veth; the lab's default route leads to `internet`, which answers for all."""
    lab.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "lab",
            "netns", str(internet.holder.pid))
    dress(internet, "lab", INTERNET_IP, INTERNET_IP6)
    dress_uplink(lab)
    lab.run("ip", "link", "add", "second", "type", "veth", "peer", "name", "second-end")
    lab.run("ip", "link", "set", "second-end", "up")
    for address in (LAB_OTHER_IP, LAB_SECONDARY_IP):
        lab.run("ip", "addr", "add", f"{address}/24", "dev", "second")
    lab.run("ip", "link", "set", "second", "up")
    lab.sysctl("net/ipv4/ip_forward", 1)
    lab.sysctl("net/ipv6/conf/all/forwarding", 1)

    # Every address is local to `internet`. The way back to the lab is looked up before that, also
    # for private sources: a packet that leaks without masquerade gets its answer, as from an open host.
    for family, back, everything in (
        ("-4", (f"{LAB_IP}/32", "10.0.0.0/8", "172.16.0.0/12"), ("0.0.0.0/1", "128.0.0.0/1")),
        ("-6", (f"{LAB_IP6}/128", "fd00::/8"), ("::/1", "8000::/1")),
    ):
        via = LAB_IP if family == "-4" else LAB_IP6
        for prefix in back:
            hop = ["dev", "lab"] if prefix.startswith(via) else ["via", via, "dev", "lab"]
            internet.run("ip", family, "route", "add", prefix, *hop, "table", "100")
        internet.run("ip", family, "rule", "add", "pref", "5", "lookup", "100")
        internet.run("ip", family, "rule", "add", "pref", "10", "lookup", "local")
        internet.run("ip", family, "rule", "del", "pref", "0")
        for half in everything:
            internet.run("ip", family, "route", "add", "local", half, "dev", "lo", "table", "local")
    for name in ("all", "default", "lab"):
        internet.sysctl(f"net/ipv4/conf/{name}/rp_filter", 0)


def own_resolv_conf(lab, path):
    """Makes file `path` the lab's /etc/resolv.conf; later writes to it are seen at once."""
    target = os.path.realpath("/etc/resolv.conf")
    lab.run("mount", "--bind", path, target)
