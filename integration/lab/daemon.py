"""outcalld under test: starting, asking, stopping.

Each daemon has its own socket, state, rules and log below a directory of the scenario, and runs inside
the lab's namespaces. Owns no container.
"""

import http.client
import json
import os
import signal
import socket

import sh

HERE = os.path.dirname(os.path.abspath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))
# Where queries go: an address of `internet`, as a public resolver would be.
UPSTREAM = "9.9.9.9"
READY_SECONDS = 20
STOP_SECONDS = 5


def binary(name):
    """Path of a built binary: $OUTCALL_BIN_DIR, else the release build, else the debug build."""
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(REPOSITORY, "target"))
    chosen = os.environ.get("OUTCALL_BIN_DIR")
    places = [chosen] if chosen else [f"{target}/release", f"{target}/debug"]
    for place in places:
        path = os.path.join(place, name)
        if os.access(path, os.X_OK):
            return path
    return None


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path, timeout=15):
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self):
        """Connects to the socket file."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Answer:
    """An operator API answer."""

    def __init__(self, status, body):
        self.status = status
        self.body = body
        try:
            self.envelope = json.loads(body)
        except ValueError:
            self.envelope = {}

    @property
    def data(self):
        """The envelope's `data`."""
        return self.envelope.get("data")

    @property
    def error(self):
        """The envelope's `error`, or empty."""
        return self.envelope.get("error", "")

    def __repr__(self):
        return f"{self.status} {self.body[:1500]!r}"


def rule(name, condition, action="allow", **fields):
    """One rule as the rule file wants it."""
    return {"id": name, "condition": condition, "action": action, **fields}


def allow(*hosts, **fields):
    """Rules that allow hosts (exactly) at the DNS and the proxy."""
    rules = []
    for host in hosts:
        name = "allow-" + host.replace("*", "any").replace(":", "-")
        rules.append(rule(name, f'http.host == "{host}" || dns.query == "{host}" || '
                                f'network.hostname == "{host}"', **fields))
    return rules


class Daemon:
    """One outcalld."""

    def __init__(self, lab, directory, rules=(), flags=(), env=None, wrapper=(), upstream=UPSTREAM,
                 bridge=None, shim=None):
        self.lab = lab
        self.directory = directory
        self.socket = f"{directory}/host.sock"
        self.rules_dir = f"{directory}/rules.d"
        self.state_dir = f"{directory}/state"
        self.log = f"{directory}/outcalld.log"
        self.flags = list(flags)
        self.env = env or {}
        self.wrapper = list(wrapper)
        self.upstream = upstream
        self.bridge = bridge
        self.shim = shim or binary("outcall-agent") or "/usr/local/bin/outcall-agent"
        self.process = None
        os.makedirs(self.rules_dir, exist_ok=True)
        os.makedirs(self.state_dir, exist_ok=True)
        os.makedirs(f"{directory}/agent", exist_ok=True)
        if rules is not None:
            self.write_rules(rules)

    def command(self):
        """The full command line."""
        words = [
            binary("outcalld"), "--socket", self.socket, "--rules-dir", self.rules_dir,
            "--state-dir", self.state_dir, "--docker-socket", self.lab.engine.socket,
            "--agent-socket-host-path", f"{self.directory}/agent/agent.sock",
            "--shim-host-path", self.shim,
        ]
        if self.upstream:
            words += ["--dns-upstream", self.upstream]
        if self.bridge:
            words += ["--bridge", self.bridge]
        environment = {"RUST_LOG": "info", "RUST_BACKTRACE": "1", **self.env}
        variables = [f"{key}={value}" for key, value in environment.items()]
        return [*self.lab.space.enter(), "env", *variables, *self.wrapper, *words, *self.flags]

    def start(self, wait=True):
        """Starts it; waits until it is ready unless told not to."""
        self.process = sh.start(self.command(), log=self.log)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, seconds=READY_SECONDS):
        """Polls GET /api/v1/ready until it says 200."""

        def ready():
            if self.process.poll() is not None:
                raise AssertionError(
                    f"outcalld ended with {self.process.returncode} at the start: {self.tail(1)}")
            try:
                answer = self.api("GET", "/api/v1/ready")
            except OSError:
                return None
            self.last_ready = answer
            return answer.status == 200

        try:
            sh.wait_for(ready, "outcalld to be ready", seconds)
        except sh.Timeout as late:
            raise AssertionError(f"{late}; /ready: {getattr(self, 'last_ready', None)}") from late

    def answers(self):
        """Whether the operator socket is served at all."""
        try:
            return self.api("GET", "/api/v1/health").status in (200, 503)
        except OSError:
            return False

    def runs_out(self, seconds=10):
        """For starts that must fail: waits for the end and gives (exit code, log text)."""
        sh.wait_for(lambda: self.process.poll() is not None, "outcalld to refuse the start", seconds)
        return self.process.returncode, self.text()

    def send(self, sig):
        """Sends a signal."""
        self.process.send_signal(sig)

    def stop(self, sig=signal.SIGTERM):
        """Stops it as an operator would; raises if it takes longer than the documents allow."""
        self.send(sig)
        sh.wait_for(lambda: self.process.poll() is not None, "outcalld to stop", STOP_SECONDS + 1)
        return self.process.returncode

    def kill(self):
        """SIGKILL, as a crash."""
        self.process.kill()
        self.process.wait()

    def end(self):
        """For cleanup: gone, whatever it takes."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            sh.stop(self.process, grace=STOP_SECONDS + 1)

    def api(self, method, path, body=None, headers=None):
        """One call of the operator API."""
        connection = UnixConnection(self.socket)
        try:
            if body is not None and not isinstance(body, (bytes, str)):
                body = json.dumps(body)
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.read().decode("utf-8", "replace"))
        except http.client.HTTPException as broken:
            raise ConnectionError(repr(broken)) from broken
        finally:
            connection.close()

    def cli(self, *arguments, socket_path=None):
        """Runs `outcall`; gives a sh.Result."""
        return sh.run(
            [*self.lab.space.enter(), binary("outcall"), "--socket", socket_path or self.socket, *arguments],
            check=False,
        )

    def write_rules(self, rules, name="rules.yaml", definitions=None):
        """Writes a rule file: a list of rules, or text as it is."""
        if not isinstance(rules, str):
            content = {"version": "1", "rules": list(rules)}
            if definitions:
                content["definitions"] = definitions
            rules = json.dumps(content, indent=1)
        with open(f"{self.rules_dir}/{name}.new", "w") as file:
            file.write(rules)
        os.rename(f"{self.rules_dir}/{name}.new", f"{self.rules_dir}/{name}")

    def reload(self, rules=None, name="rules.yaml"):
        """Writes rules (if given) and reloads; raises unless the API says 200."""
        if rules is not None:
            self.write_rules(rules, name)
        answer = self.api("POST", "/api/v1/rules/reload")
        if answer.status != 200:
            raise AssertionError(f"reload: {answer}")
        return answer.data

    def text(self):
        """The whole log."""
        try:
            with open(self.log, errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    def tail(self, lines=40):
        """The end of the log."""
        return "\n".join(self.text().splitlines()[-lines:])

    def memory_kib(self):
        """Resident memory of the daemon, KiB."""
        with open(f"/proc/{self.process.pid}/status") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1])
        raise AssertionError("no VmRSS: the daemon is gone")
