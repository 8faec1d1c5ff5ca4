"""Every packet that enters `internet`, seen below all its servers.

A raw socket on the joint counts and keeps what comes in, so that "nothing of it at the far end" is
said of packets, not of what a server made of them.
"""

import collections
import ipaddress
import socket
import struct
import threading

ETH_P_ALL = 0x0003
ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
PACKET_OUTGOING = 4
SOL_PACKET, PACKET_STATISTICS = 263, 6
SO_RCVBUFFORCE = 33
# Bytes kept of each packet: headers and enough payload to tell what it was.
SNAP = 256
# Room for a burst while the runner's threads are busy, bytes.
BUFFER = 64 << 20

Packet = collections.namedtuple("Packet", "ethertype protocol src dst sport dport length payload")


class Packets:
    """The recorder: `to(address)` is the question that scenarios ask."""

    def __init__(self, namespace):
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self._socket.bind(("lab", ETH_P_ALL))
        self._lock = threading.Lock()
        self._seen = collections.deque(maxlen=200_000)
        self._dropped = 0
        threading.Thread(target=self._work, name="packets", daemon=True).start()

    def _work(self):
        while True:
            try:
                frame, address = self._socket.recvfrom(SNAP)
            except OSError:
                return
            if address[2] == PACKET_OUTGOING:
                continue
            packet = read(frame)
            if packet:
                with self._lock:
                    self._seen.append(packet)

    def clear(self):
        """Forgets all packets and the kernel's drop counter."""
        self._count_drops()
        with self._lock:
            self._seen.clear()
            self._dropped = 0

    def _count_drops(self):
        raw = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        with self._lock:
            self._dropped += struct.unpack("II", raw)[1]

    def all(self):
        """Everything since `clear`; refuses to answer if the kernel dropped any."""
        self._count_drops()
        with self._lock:
            if self._dropped:
                raise RuntimeError(f"the packet recorder missed {self._dropped} packets")
            return list(self._seen)

    def to(self, address, **fields):
        """Packets to `address`, narrowed by protocol, dport and so on."""
        wanted = str(ipaddress.ip_address(address))
        return [
            packet
            for packet in self.all()
            if packet.dst == wanted
            and all(getattr(packet, key) == value for key, value in fields.items())
        ]

    def carrying(self, marker):
        """Packets whose first bytes hold `marker`, whatever their addresses say."""
        return [packet for packet in self.all() if marker in packet.payload]

    def ip(self):
        """All IP packets, both versions."""
        return [p for p in self.all() if p.ethertype in (ETH_P_IP, ETH_P_IPV6)]


def read(frame):
    """Takes an Ethernet frame (maybe cut) and gives a Packet, or None for what is no IP or ARP."""
    if len(frame) < 14:
        return None
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    body = frame[14:]
    if ethertype == ETH_P_IP and len(body) >= 20:
        header = (body[0] & 0x0F) * 4
        length, protocol = struct.unpack_from("!H", body, 2)[0], body[9]
        src, dst = socket.inet_ntoa(body[12:16]), socket.inet_ntoa(body[16:20])
        later_fragment = struct.unpack_from("!H", body, 6)[0] & 0x1FFF
        rest = body[header:]
    elif ethertype == ETH_P_IPV6 and len(body) >= 40:
        length, protocol = struct.unpack_from("!H", body, 4)[0] + 40, body[6]
        src = socket.inet_ntop(socket.AF_INET6, body[8:24])
        dst = socket.inet_ntop(socket.AF_INET6, body[24:40])
        later_fragment, rest = 0, body[40:]
    elif ethertype == ETH_P_ARP and len(body) >= 28:
        src, dst = socket.inet_ntoa(body[14:18]), socket.inet_ntoa(body[24:28])
        return Packet(ethertype, 0, src, dst, 0, 0, len(frame), bytes(body))
    else:
        return None
    sport = dport = 0
    if protocol in (6, 17, 132) and not later_fragment and len(rest) >= 4:
        sport, dport = struct.unpack_from("!HH", rest, 0)
    return Packet(ethertype, protocol, src, dst, sport, dport, length, bytes(rest))
