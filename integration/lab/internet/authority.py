"""The lab's certificate authority and the TLS side of the origins.

Makes one root with openssl and a leaf for each name asked for by SNI, on demand. Owns no listener.
"""

import os
import ssl
import threading

import sh

FALLBACK_NAME = "no-sni.lab"


class Authority:
    """A root CA in a directory; `root` is the PEM file that clients of the lab trust."""

    def __init__(self, directory):
        self._directory = directory
        self._lock = threading.Lock()
        self._contexts = {}
        self.root = os.path.join(directory, "root.pem")
        self._root_key = os.path.join(directory, "root.key")
        self._leaf_key = os.path.join(directory, "leaf.key")
        os.makedirs(directory, exist_ok=True)
        for key in (self._root_key, self._leaf_key):
            sh.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key])
        sh.run([
            "openssl", "req", "-x509", "-new", "-key", self._root_key, "-sha256", "-days", "30",
            "-subj", "/CN=Lab Root", "-out", self.root,
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign",
        ])

    def context(self, name):
        """A server context with a leaf for `name`."""
        with self._lock:
            if name not in self._contexts:
                kind = "IP" if name.replace(".", "").isdigit() or ":" in name else "DNS"
                leaf = os.path.join(self._directory, f"leaf-{len(self._contexts)}.pem")
                sh.run([
                    "openssl", "req", "-x509", "-new", "-key", self._leaf_key, "-sha256",
                    "-days", "20", "-CA", self.root, "-CAkey", self._root_key, "-subj", "/CN=leaf",
                    "-addext", f"subjectAltName={kind}:{name}",
                    "-addext", "basicConstraints=critical,CA:FALSE", "-out", leaf,
                ])
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(leaf, self._leaf_key)
                context.set_alpn_protocols(["http/1.1"])
                self._contexts[name] = context
            return self._contexts[name]

    def accept(self, connection, event):
        """Does the server side of a handshake; the SNI goes into `event`."""
        outer = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        fallback = self.context(FALLBACK_NAME)
        outer.load_cert_chain(os.path.join(self._directory, "leaf-0.pem"), self._leaf_key)
        outer.set_alpn_protocols(["http/1.1"])

        def choose(socket, name, _):
            event["sni"] = name
            socket.context = self.context(name) if name else fallback

        outer.sni_callback = choose
        return outer.wrap_socket(connection, server_side=True)
