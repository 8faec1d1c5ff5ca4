"""`internet`: everything behind the lab's default route.

Any public address answers here, and all that arrives is on record. Runs inside the runner's process
on sockets that live in the namespace, so that a scenario programs it with plain Python.
"""

from internet.authority import Authority
from internet.names import Names
from internet.origin import Origin
from internet.packets import Packets
from internet.record import Log
from internet.sink import Sink

# What every scenario finds in the DNS; others are put in by the scenario itself.
WORLD = {
    "example.com": "93.184.216.34",
    "www.example.com": "93.184.216.35",
    "api.example.com": "93.184.216.36",
    "github.com": "140.82.112.3",
    "denied.example.net": "93.184.217.99",
    "notexample.com": "93.184.217.98",
    "example.com.evil.net": "93.184.217.97",
}


class Internet:
    """The servers of the far end, and their log."""

    def __init__(self, namespace, directory):
        self.namespace = namespace
        self.log = Log()
        self.packets = Packets(namespace)
        self.authority = Authority(directory)
        self.names = Names(namespace, self.log)
        self.origin = Origin(namespace, self.log, self.authority)
        self.sink = Sink(namespace, self.log)
        self.reset()

    def reset(self):
        """A fresh world for the next scenario."""
        self.names.reset()
        self.origin.reset()
        for name, address in WORLD.items():
            self.names.set(name, address)
        self.log.clear()
        self.packets.clear()

    def connections(self, address, **fields):
        """TCP connections accepted for `address`."""
        return self.log.find("tcp", dst=address, **fields)

    def nothing_for(self, *addresses):
        """Raises if a packet or connection for one of `addresses` arrived."""
        for address in addresses:
            packets = self.packets.to(address)
            if packets:
                raise AssertionError(f"{len(packets)} packets reached {address}: {packets[0]}")
            if self.log.find("tcp", dst=address):
                raise AssertionError(f"a connection reached {address}")

    def not_asked(self, name):
        """Raises if any DNS server of the far end was asked for `name` or a child of it."""
        asked = self.names.asked(name)
        if asked:
            raise AssertionError(f"{name} reached a DNS server: {asked[0]}")
