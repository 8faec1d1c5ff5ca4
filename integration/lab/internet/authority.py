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
        self._leaves = {}
        self._mtls = set()
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
                self._leaves[name] = leaf
            return self._contexts[name]

    def certificate(self, name):
        """The leaf that is shown for `name`, DER."""
        self.context(name)
        with open(self._leaves[name]) as file:
            return ssl.PEM_cert_to_DER_cert(file.read())

    def flaw(self, name, flaw):
        """From now on the origin called `name` is `self-signed`, `expired`, `other-name` or `mtls`."""
        self.context(name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf = self._leaves[name]
        if flaw == "self-signed":
            leaf = os.path.join(self._directory, "self-signed.pem")
            sh.run(["openssl", "req", "-x509", "-new", "-key", self._leaf_key, "-days", "20", "-subj", "/CN=leaf",
                    "-addext", f"subjectAltName=DNS:{name}", "-addext", "basicConstraints=critical,CA:FALSE",
                    "-out", leaf])
        elif flaw == "expired":
            leaf = self._expired(name)
        elif flaw == "other-name":
            self.context("other-name.lab")
            leaf = self._leaves["other-name.lab"]
        context.load_cert_chain(leaf, self._leaf_key)
        context.set_alpn_protocols(["http/1.1"])
        if flaw == "mtls":
            self._mtls.add(name)
        self._contexts[name] = context

    def _expired(self, name):
        """A leaf of 2020; only `openssl ca` of openssl 3.0 takes dates."""
        path = lambda file: os.path.join(self._directory, file)
        with open(path("ca.cnf"), "w") as file:
            file.write(
                "[ca]\ndefault_ca=lab\n[lab]\ndatabase=%s\nnew_certs_dir=%s\nrand_serial=yes\n"
                "default_md=sha256\npolicy=any\nunique_subject=no\nx509_extensions=leaf\n"
                "[any]\ncommonName=supplied\n[leaf]\nsubjectAltName=DNS:%s\n"
                % (path("index.txt"), self._directory, name))
        open(path("index.txt"), "w").close()
        sh.run(["openssl", "req", "-new", "-key", self._leaf_key, "-subj", "/CN=leaf", "-out", path("expired.csr")])
        sh.run(["openssl", "ca", "-batch", "-notext", "-config", path("ca.cnf"), "-cert", self.root, "-keyfile",
                self._root_key, "-in", path("expired.csr"), "-out", path("expired.pem"),
                "-startdate", "20200101000000Z", "-enddate", "20200201000000Z"])
        return path("expired.pem")

    def accept(self, connection, event):
        """Does the server side of a handshake; the SNI goes into `event`."""
        outer = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        fallback = self.context(FALLBACK_NAME)
        outer.load_cert_chain(os.path.join(self._directory, "leaf-0.pem"), self._leaf_key)
        outer.set_alpn_protocols(["http/1.1"])

        # The choice by SNI comes too late to ask for a certificate.
        if any(name.encode() in event["hello"] for name in self._mtls):
            outer.verify_mode = ssl.CERT_REQUIRED
            outer.load_verify_locations(self.root)

        def choose(socket, name, _):
            event["sni"] = name
            socket.context = self.context(name) if name else fallback

        outer.sni_callback = choose
        return outer.wrap_socket(connection, server_side=True)
