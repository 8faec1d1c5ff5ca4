"""The web of `internet`: HTTP origins behind every address, ports 80 and 8080, and 443 with TLS.

Each connection keeps the exact bytes it received; each request is logged as this origin parsed it. The
parser is lenient on purpose (bare LF, space before a colon, obs-fold, TE before CL): it stands for the
back end that would fall for what a filter let through. `on(path, handler)` programs an answer.
"""

import base64
import hashlib
import json
import os
import socket
import ssl
import struct
import threading

# Raw bytes kept of a connection; the rest is only counted and hashed.
KEEP = 1 << 20
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Request:
    """A request as this origin reads it."""

    def __init__(self, method, target, version, headers):
        self.method, self.target, self.version = method, target, version
        self.headers = headers
        self.body_size = 0
        self.body_hash = hashlib.sha256()
        self.body = b""
        self.trailers = b""

    @property
    def path(self):
        """Target without scheme, authority and query."""
        path = self.target
        if "://" in path:
            path = "/" + path.split("://", 1)[1].partition("/")[2]
        return path.partition("?")[0]

    def header(self, name):
        """First value of a header, or None."""
        values = self.all(name)
        return values[0] if values else None

    def all(self, name):
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


class Stream:
    """Buffered reading of a connection, keeping what was read."""

    def __init__(self, connection, event):
        self.connection = connection
        self.event = event
        self.buffer = b""

    def more(self):
        """Reads on; False at the end."""
        data = self.connection.recv(262144)
        if not data:
            return False
        self.event["bytes"] += len(data)
        room = KEEP - len(self.event["raw"])
        if room > 0:
            self.event["raw"] += data[:room]
        self.buffer += data
        return True

    def line(self):
        """One line without its end (CRLF or bare LF), or None at the end."""
        while b"\n" not in self.buffer:
            if not self.more():
                return None
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line[:-1] if line.endswith(b"\r") else line

    def exactly(self, count, sink):
        """Hands `count` bytes to `sink` in pieces; False if the peer ended early."""
        while count:
            if not self.buffer and not self.more():
                return False
            piece, self.buffer = self.buffer[:count], self.buffer[count:]
            count -= len(piece)
            sink(piece)
        return True


def read_request(stream):
    """The next request's head, or None at the end of the connection."""
    line = stream.line()
    while line == b"":
        line = stream.line()
    if line is None:
        return None
    words = line.decode("latin-1").split()
    words += [""] * (3 - len(words))
    headers = []
    while True:
        line = stream.line()
        if line is None or line == b"":
            break
        text = line.decode("latin-1")
        if text[:1] in " \t" and headers:
            headers[-1] = (headers[-1][0], headers[-1][1] + " " + text.strip())
            continue
        name, _, value = text.partition(":")
        headers.append((name.strip(), value.strip()))
    return Request(words[0], words[1], words[2], headers)


def read_body(stream, request):
    """Reads the body: chunked wins over Content-Length, as in the classic smuggling back end."""

    def sink(piece):
        request.body_size += len(piece)
        request.body_hash.update(piece)
        if len(request.body) < KEEP:
            request.body += piece

    if any("chunked" in value.lower() for value in request.all("transfer-encoding")):
        while True:
            line = stream.line()
            if line is None:
                return False
            size = int(line.split(b";")[0].strip() or b"0", 16)
            if size == 0:
                break
            if not stream.exactly(size, sink):
                return False
            stream.line()
        while True:
            line = stream.line()
            if not line:
                return line is not None
            request.trailers += line + b"\n"
    length = request.header("content-length")
    return stream.exactly(int(length), sink) if length else True


def reply(status, body=b"", headers=(), reason="OK"):
    """Bytes of a response with Content-Length."""
    head = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {len(body)}"]
    head += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def describe(request, event):
    """The default answer: what arrived, as JSON."""
    body = json.dumps(
        {
            "method": request.method,
            "target": request.target,
            "headers": request.headers,
            "body_size": request.body_size,
            "body_sha256": request.body_hash.hexdigest(),
            "address": event["dst"],
            "port": event["dport"],
        }
    ).encode()
    return reply(200, body, [("Content-Type", "application/json")])


def filler(count):
    """`count` bytes of a known pattern, in pieces."""
    block = bytes(range(256)) * 256
    while count > 0:
        yield block[:count]
        count -= min(count, len(block))


class Origin:
    """The HTTP servers."""

    def __init__(self, namespace, log, authority):
        self._log = log
        self._authority = authority
        self.reset()
        for port in (80, 8080, 443):
            for family, everything in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
                listener = namespace.socket(family)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((everything, port))
                listener.listen(1024)
                threading.Thread(
                    target=self._accept, args=(listener, port == 443), name=f"web-{port}", daemon=True
                ).start()

    def reset(self):
        """Forgets all programmed answers."""
        self._handlers = {}
        self.files = None

    def on(self, path, handler):
        """`handler(request, connection)` returns response bytes, or writes itself and returns None."""
        self._handlers[path] = handler

    def serve_files(self, directory):
        """Serves a directory under /files/ (a bare git repository, say)."""
        self.files = os.path.realpath(directory)

    def requests(self, **fields):
        """Requests parsed so far: events with method, target, host, headers, body_size, body, connection."""
        return self._log.find("http", **fields)

    def _accept(self, listener, tls):
        while True:
            try:
                connection, source = listener.accept()
            except OSError:
                return
            threading.Thread(
                target=self._serve, args=(connection, source, tls), name="web-conn", daemon=True
            ).start()

    def _serve(self, connection, source, tls):
        dst, dport = connection.getsockname()[:2]
        event = self._log.add("tcp", dst=dst, dport=dport, source=source[:2], bytes=0, raw=b"", tls=tls)
        try:
            connection.settimeout(120)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls:
                event["hello"] = connection.recv(4096, socket.MSG_PEEK)
                connection = self._authority.accept(connection, event)
            stream = Stream(connection, event)
            while self._one(stream, event):
                pass
        except (OSError, ssl.SSLError, ValueError) as problem:
            event["problem"] = repr(problem)
        finally:
            event["closed"] = True
            connection.close()

    def _one(self, stream, event):
        """Serves one request; False ends the connection."""
        request = read_request(stream)
        if request is None:
            return False
        entry = self._log.add(
            "http", method=request.method, target=request.target, path=request.path,
            host=request.header("host"), headers=request.headers, dst=event["dst"],
            dport=event["dport"], tls=event["tls"], sni=event.get("sni"), connection=event,
            complete=False, version=request.version,
        )
        connection = stream.connection
        if (request.header("expect") or "").lower() == "100-continue":
            if "refuse-expect" in request.target:
                connection.sendall(reply(417, b"no"))
                return False
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "websocket" in (request.header("upgrade") or "").lower():
            entry["complete"] = True
            return websocket(stream, request)
        entry["complete"] = read_body(stream, request)
        entry.update(body_size=request.body_size, body_sha256=request.body_hash.hexdigest(),
                     body=request.body, trailers=request.trailers)
        if not entry["complete"]:
            return False
        handler = self._handlers.get(request.path)
        if handler:
            answer = handler(request, connection)
            if answer is None:
                return False
            connection.sendall(answer)
        else:
            self._default(request, connection, event)
        return "close" not in (request.header("connection") or "").lower()

    def _default(self, request, connection, event):
        words = request.path.strip("/").split("/")
        if words[0] == "bytes" and words[1:]:
            count = int(words[1])
            connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {count}\r\n\r\n".encode())
            if request.method != "HEAD":
                for piece in filler(count):
                    connection.sendall(piece)
        elif words[0] == "chunked" and words[1:]:
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for piece in filler(int(words[1])):
                connection.sendall(b"%x\r\n" % len(piece) + piece + b"\r\n")
            connection.sendall(b"0\r\n\r\n")
        elif words[0] == "files" and self.files:
            path = os.path.realpath(os.path.join(self.files, *words[1:]))
            if path.startswith(self.files + "/") and os.path.isfile(path):
                with open(path, "rb") as file:
                    connection.sendall(reply(200, file.read()))
            else:
                connection.sendall(reply(404, b"no such file", reason="Not Found"))
        elif request.method == "HEAD":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        else:
            connection.sendall(describe(request, event))


def websocket(stream, request):
    """Upgrades and echoes frames (RFC 6455) until a close frame. Always ends the connection."""
    key = (request.header("sec-websocket-key") or "").encode()
    accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID).digest()).decode()
    stream.connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept.encode() + b"\r\n\r\n"
    )

    def take(count):
        parts = []
        return b"".join(parts) if stream.exactly(count, parts.append) else None

    while True:
        head = take(2)
        if not head:
            return False
        opcode, length = head[0] & 15, head[1] & 127
        if length == 126:
            (length,) = struct.unpack("!H", take(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", take(8))
        mask = take(4) if head[1] & 128 else bytes(4)
        data = take(length)
        data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data or b""))
        size = bytes([len(data)]) if len(data) < 126 else b"\x7e" + struct.pack("!H", len(data))
        stream.connection.sendall(bytes([0x80 | opcode]) + size + data)
        if opcode == 8:
            return False
