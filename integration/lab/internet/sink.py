"""Whatever listens on every other TCP port of every address of `internet`.

Takes the connection, sends a banner, records what arrives with the address and port that were meant.
"""

import socket
import struct
import threading

SO_ORIGINAL_DST = 80
SINK_PORT = 9
BANNER = b"SSH-2.0-internet\r\n"
# Ports that have a server of their own.
SERVED = "53, 80, 443, 8080"

RULES = f"""
table inet sink {{
  chain pre {{
    type nat hook prerouting priority dstnat;
    tcp dport != {{ {SERVED} }} redirect to :{SINK_PORT}
  }}
}}
"""


class Sink:
    """The catch-all TCP server."""

    def __init__(self, namespace, log):
        self._log = log
        namespace.run("nft", "-f", "-", input=RULES)
        self._listener = namespace.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("0.0.0.0", SINK_PORT))
        self._listener.listen(512)
        threading.Thread(target=self._accept, name="sink", daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, source = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection, source), daemon=True).start()

    def _serve(self, connection, source):
        original = connection.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)
        port, address = struct.unpack("!2xH4s8x", original)
        event = self._log.add(
            "tcp", dst=socket.inet_ntoa(address), dport=port, source=source, bytes=0, raw=b"", tls=False
        )
        with connection:
            try:
                connection.settimeout(60)
                connection.sendall(BANNER)
                while data := connection.recv(65536):
                    event["bytes"] += len(data)
                    event["raw"] = (event["raw"] + data)[:65536]
                    connection.sendall(data)
            except OSError as problem:
                event["problem"] = repr(problem)
            event["closed"] = True
