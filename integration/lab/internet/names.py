"""The DNS of `internet`: one server behind every address, programmable name by name.

Answers UDP and TCP on port 53 of any address with what a scenario put in, records every query as it
came, and can be told to misbehave: a handler returns messages or raw bytes, in any number. Wire format
by dnspython; IP_PKTINFO makes the answer leave from the address that was asked.
"""

import socket
import struct
import threading
import time

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

IP_PKTINFO = 8
DEFAULT_TTL = 300


class Query:
    """One question as it arrived; what a handler gets."""

    def __init__(self, message, wire, tcp, server, source, count):
        self.message = message
        self.wire = wire
        self.tcp = tcp
        self.server = server
        self.source = source
        self.count = count
        question = message.question[0]
        self.name = question.name.to_text(omit_final_dot=True).lower()
        self.type = dns.rdatatype.to_text(question.rdtype)

    def answer(self, *records, ttl=DEFAULT_TTL, rcode=dns.rcode.NOERROR, owner=None):
        """A proper answer; `records` are (type, text) or (owner, type, text)."""
        reply = dns.message.make_response(self.message, recursion_available=True)
        reply.set_rcode(rcode)
        for record in records:
            name, kind, text = record if len(record) == 3 else (owner or self.name, *record)
            rrset = dns.rrset.from_text(name.rstrip(".") + ".", ttl, "IN", kind, text)
            for rdata in rrset:
                reply.find_rrset(
                    reply.answer, rrset.name, rrset.rdclass, rrset.rdtype, create=True
                ).add(rdata, ttl)
        if not records:
            reply.authority.append(
                dns.rrset.from_text("lab.", ttl, "IN", "SOA", "ns.lab. root.lab. 1 60 60 60 60")
            )
        return reply


class Names:
    """The zone data and the servers."""

    def __init__(self, namespace, log):
        self._log = log
        self._lock = threading.Lock()
        self.reset()
        self._udp = namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._udp.bind(("0.0.0.0", 53))
        self._tcp = namespace.socket()
        self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._tcp.bind(("0.0.0.0", 53))
        self._tcp.listen(512)
        threading.Thread(target=self._serve_udp, name="dns-udp", daemon=True).start()
        threading.Thread(target=self._serve_tcp, name="dns-tcp", daemon=True).start()

    def reset(self):
        """Back to an empty world: every name is NXDOMAIN, every server is up."""
        with self._lock:
            self._zone = {}
            self._handlers = {}
            self._counts = {}
        self.down = set()

    def set(self, name, *addresses, ttl=DEFAULT_TTL, **records):
        """Puts a name in: `set("example.com", "1.2.3.4", TXT=['"x"'])`; `*.zone` is a wildcard."""
        data = {"A": [], "AAAA": []}
        for address in addresses:
            data["AAAA" if ":" in address else "A"].append(address)
        data.update({kind: [v] if isinstance(v, str) else v for kind, v in records.items()})
        with self._lock:
            self._zone[name.lower()] = (ttl, data)

    def on(self, name, handler):
        """Has `handler(Query)` answer for `name`: a message, bytes, a list of those, or None to drop."""
        with self._lock:
            self._handlers[name.lower()] = handler

    def asked(self, name=None):
        """Queries that arrived (for `name` or one of its children, if given), oldest first."""
        events = self._log.find("dns")
        if name is None:
            return events
        name = name.lower()
        return [e for e in events if e["name"] == name or e["name"].endswith("." + name)]

    def _handle(self, wire, tcp, server, source):
        """One query's wire answers, in order."""
        try:
            message = dns.message.from_wire(wire, ignore_trailing=True)
        except (dns.exception.DNSException, ValueError) as problem:
            self._log.add("dns", name="", type="malformed", tcp=tcp, server=server, raw=wire,
                          error=str(problem), source=source)
            return []
        if not message.question:
            return []
        name = message.question[0].name.to_text(omit_final_dot=True)
        with self._lock:
            key = (name.lower(), message.question[0].rdtype)
            self._counts[key] = self._counts.get(key, 0) + 1
            query = Query(message, wire, tcp, server, source, self._counts[key])
            handler = self._handlers.get(query.name)
            zone = dict(self._zone)
        self._log.add("dns", name=query.name, spelled=name, type=query.type, tcp=tcp, server=server,
                      source=source, id=message.id, raw=wire)
        if server in self.down:
            return []
        replies = handler(query) if handler else lookup(zone, query)
        if replies is None:
            return []
        if not isinstance(replies, (list, tuple)):
            replies = [replies]
        limit = max(512, message.payload if message.edns >= 0 else 512)
        return [r if isinstance(r, bytes) else to_wire(r, tcp, limit) for r in replies]

    def _serve_udp(self):
        while True:
            try:
                wire, control, _, source = self._udp.recvmsg(65535, 256)
            except OSError:
                return
            info = control[0][2]
            threading.Thread(
                target=self._answer_udp, args=(wire, info, source), name="dns-answer", daemon=True
            ).start()

    def _answer_udp(self, wire, info, source):
        server = socket.inet_ntoa(struct.unpack("=I4s4s", info[:12])[1])
        for reply in self._handle(wire, False, server, source):
            self.send_as(server, reply, source)

    def send_as(self, server, wire, destination):
        """Sends a datagram from port 53 of any address: for answers, and for forged ones."""
        address = socket.inet_aton(server)
        control = struct.pack("=I4s4s", 0, address, address)
        self._udp.sendmsg([wire], [(socket.IPPROTO_IP, IP_PKTINFO, control)], 0, destination)

    def _serve_tcp(self):
        while True:
            try:
                connection, source = self._tcp.accept()
            except OSError:
                return
            threading.Thread(
                target=self._answer_tcp, args=(connection, source), name="dns-conn", daemon=True
            ).start()

    def _answer_tcp(self, connection, source):
        server = connection.getsockname()[0]
        self._log.add("tcp", dst=server, dport=53, source=source)
        with connection:
            try:
                connection.settimeout(30)
                while True:
                    head = connection.recv(2, socket.MSG_WAITALL)
                    if len(head) < 2:
                        return
                    wire = connection.recv(struct.unpack("!H", head)[0], socket.MSG_WAITALL)
                    for reply in self._handle(wire, True, server, source):
                        connection.sendall(struct.pack("!H", len(reply)) + reply)
            except OSError:
                return


def to_wire(message, tcp, limit):
    """Encodes a reply; over UDP one that does not fit goes out empty with TC set (RFC 2181 9)."""
    wire = message.to_wire(max_size=65535)
    if tcp or len(wire) <= limit:
        return wire
    short = dns.message.Message(id=message.id)
    short.flags = message.flags | dns.flags.TC
    short.question = message.question
    return short.to_wire()


def lookup(zone, query):
    """Answers from the zone data: exact name, then wildcards, following CNAMEs inside the zone."""
    records, name = [], query.name
    for _ in range(8):
        found = zone.get(name)
        labels = name.split(".")
        for at in range(1, len(labels)):
            found = found or zone.get("*." + ".".join(labels[at:]))
        if not found:
            code = dns.rcode.NOERROR if records else dns.rcode.NXDOMAIN
            return query.answer(*records, rcode=code)
        ttl, data = found
        for value in data.get(query.type, []):
            records.append((name, query.type, value))
        if query.type in data and data[query.type] or "CNAME" not in data:
            return query.answer(*records, ttl=ttl)
        target = data["CNAME"][0].rstrip(".").lower()
        records.append((name, "CNAME", target + "."))
        name = target
    return query.answer(*records)


def later(seconds, reply):
    """For handlers: sleeps on the answering thread (each query has its own) and gives `reply`."""
    time.sleep(seconds)
    return reply
