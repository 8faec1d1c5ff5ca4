"""What reached the far end, as one list of events.

Every server of `internet` writes here; a scenario reads. Kinds: `dns`, `tcp`, `data`, `tls`, `http`.
Packets have a recorder of their own (packets.py).
"""

import threading
import time


class Log:
    """Events in the order they happened; safe to use from all threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self._events = []

    def add(self, kind, **fields):
        """Writes one event and returns it (a dict; a server may go on filling it)."""
        event = {"kind": kind, "at": time.monotonic(), **fields}
        with self._lock:
            self._events.append(event)
        return event

    def clear(self):
        """Forgets everything: a scenario starts with an empty log."""
        with self._lock:
            self._events = []

    def find(self, kind, **fields):
        """All events of `kind` whose fields equal those given."""
        with self._lock:
            events = list(self._events)
        return [
            event
            for event in events
            if event["kind"] == kind
            and all(event.get(key) == value for key, value in fields.items())
        ]
