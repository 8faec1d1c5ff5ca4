"""Helpers for code that runs inside a client container: connections and hand-made packets.

Mounted read-only at /lab/inside; standard library only. Everything gives plain values that go into JSON.
"""

import concurrent.futures
import errno
import fcntl
import os
import socket
import struct
import time

ETH_P_ALL = 0x0003
BROADCAST = b"\xff" * 6


def tcp(address, port, wait=1.5, data=b""):
    """Connects; gives `connected`, `refused`, `timeout`, or the errno's name."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(wait)
        with connection:
            connection.connect((address, port))
            if data:
                connection.sendall(data)
            return "connected"
    except ConnectionRefusedError:
        return "refused"
    except TimeoutError:
        return "timeout"
    except OSError as problem:
        return errno.errorcode.get(problem.errno, str(problem))


def banner(address, port, wait=1.5):
    """Connects and gives the first bytes that the server says, as text; empty if there are none."""
    try:
        with socket.create_connection((address, port), wait) as connection:
            connection.settimeout(wait)
            return connection.recv(200).decode("latin-1")
    except OSError:
        return ""


def udp(address, port, data=b"probe", wait=0.5):
    """Sends a datagram; gives the answer's length, or why there is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.settimeout(wait)
        try:
            sender.connect((address, port))
            sender.send(data)
            return len(sender.recv(65535))
        except TimeoutError:
            return "timeout"
        except OSError as problem:
            return errno.errorcode.get(problem.errno, str(problem))


def exchange(host, port, data, wait=3.0, half_close=False):
    """Sends bytes and gives everything that comes back until the end or `wait` seconds of silence."""
    back = b""
    with socket.create_connection((host, port), 5) as connection:
        connection.settimeout(wait)
        try:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                back += piece
        except (TimeoutError, ConnectionError):
            pass
    return back


def first_line(host, port, data, wait=6.0):
    """Sends bytes and gives the first line that comes back, or what happened instead."""
    back = b""
    try:
        with socket.create_connection((host, port), 5) as connection:
            connection.settimeout(wait)
            connection.sendall(data)
            while b"\n" not in back:
                piece = connection.recv(4096)
                if not piece:
                    break
                back += piece
    except TimeoutError:
        back = back or b"timeout"
    except OSError as problem:
        back = back or errno.errorcode.get(problem.errno, str(problem)).encode()
    return back.split(b"\r\n")[0].decode("latin-1")


def at_once(function, items, workers=16):
    """Runs `function` on all items, many at a time; gives the results in order."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))


def checksum(data):
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(src, dst, protocol, payload, ttl=64, ident=0x4242, fragment=0):
    """An IPv4 packet; `fragment` is the flags-and-offset word."""
    def header(total):
        return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), ident, fragment, ttl, protocol,
                           total, socket.inet_aton(src), socket.inet_aton(dst))
    return header(checksum(header(0))) + payload


def icmp_echo(data=b"probe"):
    """An echo request."""
    head = struct.pack("!BBHHH", 8, 0, 0, 0x77, 1)
    return struct.pack("!BBHHH", 8, 0, checksum(head + data), 0x77, 1) + data


def udp_packet(src, dst, sport, dport, data):
    """A UDP header and payload with its checksum."""
    length = 8 + len(data)
    pseudo = socket.inet_aton(src) + socket.inet_aton(dst) + struct.pack("!BBH", 0, 17, length)
    head = struct.pack("!HHHH", sport, dport, length, 0)
    return struct.pack("!HHHH", sport, dport, length, checksum(pseudo + head + data) or 0xFFFF) + data


def tcp_packet(src, dst, sport, dport, flags=2, data=b"", seq=1000, ack=0):
    """A TCP segment; flags 2 is SYN."""
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 5 << 4, flags, 64240, 0, 0)
    pseudo = socket.inet_aton(src) + socket.inet_aton(dst) + struct.pack("!BBH", 0, 6, len(head + data))
    total = checksum(pseudo + head + data)
    return head[:16] + struct.pack("!H", total) + head[18:] + data


def sctp_init(sport, dport):
    """An SCTP INIT; its CRC is left zero, which no filter looks at."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 0x1234, 65536, 1, 1, 1)
    return struct.pack("!HHII", sport, dport, 0, 0) + chunk


def arp(operation, sender_mac, sender_ip, target_mac, target_ip):
    """An ARP packet (operation 1 asks, 2 answers)."""
    return (struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + sender_mac + socket.inet_aton(sender_ip)
            + target_mac + socket.inet_aton(target_ip))


def mac(text):
    """A MAC address from its text form."""
    return bytes.fromhex(text.replace(":", ""))


def own(interface="eth0"):
    """(MAC, IPv4 address) of an interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        name = struct.pack("256s", interface.encode())
        hardware = fcntl.ioctl(asker, 0x8927, name)[18:24]
        address = socket.inet_ntoa(fcntl.ioctl(asker, 0x8915, name)[20:24])
    return hardware, address


def mac_of(address):
    """The MAC that the neighbour table has for an address, after asking for it; None if nobody answers."""
    for _ in range(20):
        udp(address, 9, b"", 0.05)
        for line in open("/proc/net/arp").read().splitlines()[1:]:
            words = line.split()
            if words[0] == address and words[3] != "00:00:00:00:00:00":
                return mac(words[3])
    return None


def send_ip(packet, dst):
    """Sends a hand-made IPv4 packet through the container's own routing."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        try:
            raw.sendto(packet, (dst, 0))
            return "sent"
        except OSError as problem:
            return errno.errorcode.get(problem.errno, str(problem))


def send_frame(destination, ethertype, payload, source=None, interface="eth0"):
    """Sends a hand-made Ethernet frame."""
    source = source or own(interface)[0]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, 0))
        raw.send(destination + source + struct.pack("!H", ethertype) + payload)


def sniff(seconds, marker=b"", interface="eth0"):
    """Frames that arrive within `seconds` (only those that hold `marker`, if given), as hex, cut to 128 bytes."""
    found, deadline = [], time.monotonic() + seconds
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as raw:
        raw.bind((interface, ETH_P_ALL))
        while (left := deadline - time.monotonic()) > 0:
            raw.settimeout(left)
            try:
                frame, address = raw.recvfrom(2048)
            except TimeoutError:
                break
            if address[2] != 4 and marker in frame:
                found.append(frame[:128].hex())
    return found


def resident(pid="self"):
    """Resident memory of a process in KiB."""
    for line in open(f"/proc/{pid}/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return os.getpid() and 0
