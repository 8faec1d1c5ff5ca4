"""An operator socket that is played: some answers are set by the test, the rest is asked of a real daemon.

For what a real daemon cannot be made to say in a test: ten thousand decisions at once, names that no Docker takes,
an API that breaks. Owns a Unix socket in a directory of the scenario.
"""

import collections
import http.client
import json
import os
import queue
import socketserver
import threading
from http.server import BaseHTTPRequestHandler

KINDS = {"html": "text/html; charset=utf-8", "js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8",
         "svg": "image/svg+xml"}


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        """A page that goes elsewhere leaves its answers behind."""


class Played:
    """`answers`: `{"GET bridge": data or (status, error) or function(body)}`, changed at will while it runs."""

    def __init__(self, path, answers, connect=None, files=None):
        self.path = path
        self.answers = answers
        self.asked = []
        self._readers = []
        self._said = collections.deque(maxlen=1000)
        self._lock = threading.Lock()
        played = self

        class Handler(BaseHTTPRequestHandler):
            """One connection."""

            def log_message(self, *_):
                """Says nothing."""

            def address_string(self):
                """A Unix socket has none."""
                return "unix"

            def do_GET(self):
                """Asked."""
                played._serve(self, b"")

            def do_POST(self):
                """Asked to do."""
                played._serve(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))

        self._connect = connect
        self._files = files
        self._server = _Server(path, Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True,
                         name="played").start()

    def end(self):
        """Stops."""
        self.cut()
        self._server.shutdown()
        self._server.server_close()
        if os.path.exists(self.path):
            os.unlink(self.path)

    def say(self, *events):
        """Sends decisions to everybody who follows."""
        text = "".join(json.dumps(event) + "\n" for event in events).encode()
        with self._lock:
            self._said.extend(events)
            for reader in self._readers:
                reader.put(text)

    @property
    def readers(self):
        """How many follow."""
        with self._lock:
            return len(self._readers)

    def cut(self):
        """Ends every stream."""
        with self._lock:
            for reader in self._readers:
                reader.put(None)

    def _serve(self, handler, body):
        path = handler.path
        if path.startswith("/api/v1/"):
            name = path[len("/api/v1/"):]
            self.asked.append((handler.command, name, body.decode()))
            if name == "events" and "GET events" not in self.answers:
                with self._lock:
                    text = "".join(json.dumps(event) + "\n" for event in self._said).encode()
                self._whole(handler, 200, [("Content-Type", "application/x-ndjson")], text)
                return
            if name.startswith("events?") and "GET events" not in self.answers:
                self._stream(handler)
                return
            key = f"{handler.command} {name}"
            answer = self.answers.get("GET events" if name.startswith("events?") else key)
            if answer is not None:
                answer = answer(body) if callable(answer) else answer
                if isinstance(answer, tuple):
                    self._json(handler, answer[0], {"success": False, "error": answer[1], **(answer[2] if len(answer) > 2 else {})})
                else:
                    self._json(handler, 200, {"success": True, "data": answer})
                return
        elif self._files and path.startswith("/ui/"):
            self._file(handler, path[4:] or "index.html")
            return
        if self._connect is None:
            self._json(handler, 404, {"success": False, "error": f"no such resource: {path}"})
            return
        self._forward(handler, body)

    def _json(self, handler, status, value):
        self._whole(handler, status, [("Content-Type", "application/json")], json.dumps(value).encode())

    @staticmethod
    def _whole(handler, status, fields, body):
        handler.send_response(status)
        for name, value in fields:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def _file(self, handler, name):
        with open(os.path.join(self._files, os.path.basename(name)), "rb") as file:
            body = file.read()
        policy = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
                  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
        self._whole(handler, 200, [("Content-Type", KINDS[name.rpartition(".")[2]]), ("Content-Security-Policy", policy)], body)

    def _forward(self, handler, body):
        connection = self._connect()
        try:
            connection.request(handler.command, handler.path, body=body or None)
            answer = connection.getresponse()
            fields = [(name, value) for name, value in answer.getheaders()
                      if name.lower() not in ("content-length", "transfer-encoding", "connection")]
            self._whole(handler, answer.status, fields, answer.read())
        except (OSError, http.client.HTTPException) as problem:
            self._json(handler, 503, {"success": False, "error": str(problem)})
        finally:
            connection.close()

    def _stream(self, handler):
        mine = queue.Queue()
        with self._lock:
            self._readers.append(mine)
        try:
            handler.send_response(200)
            handler.send_header("Content-Type", "application/x-ndjson")
            handler.end_headers()
            while (text := mine.get()) is not None:
                handler.wfile.write(text)
                handler.wfile.flush()
        except OSError:
            pass
        finally:
            with self._lock:
                self._readers.remove(mine)
            handler.close_connection = True
