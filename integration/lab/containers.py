"""Client containers, and the real clients inside them.

A container is started as a user would, with plain `docker run`; each method runs one client in it and
gives back what it saw. Owns no daemon and no network.
"""

import json
import os
import signal

import engine as engine_module
import sh

HERE = os.path.dirname(os.path.abspath(__file__))
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
PROXY_PORT = 8080
# curl's exit codes that scenarios name.
CURL_COULD_NOT_RESOLVE, CURL_REFUSED, CURL_TIMEOUT = 6, 7, 28


class Response:
    """What curl saw: the last status, all header lines, the body, curl's exit code."""

    def __init__(self, result):
        self.exit = result.code
        self.body = result.out
        lines = result.errors.splitlines()
        marks = [line for line in lines if line.startswith("@@")]
        words = marks[-1][2:].split() if marks else ["0", "0", "0"]
        self.status, self.connect_status = int(words[0]), int(words[1])
        self.connections = int(words[2])
        self.errors = "\n".join(line for line in lines if not line.startswith("@@"))

    @property
    def text(self):
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    @property
    def json(self):
        """The body as JSON."""
        return json.loads(self.body)

    def header(self, name):
        """The last value of a response header seen (of the proxy's answer to CONNECT too), or None."""
        value = None
        for line in self.errors.splitlines():
            key, colon, rest = line.partition(":")
            if colon and key.strip().lower() == name.lower():
                value = rest.strip()
        return value

    def __repr__(self):
        return (f"curl exit {self.exit} status {self.status} connect {self.connect_status} "
                f"body {self.text[:300]!r} err {self.errors[-500:]!r}")


class Container:
    """A running container of the lab."""

    def __init__(self, engine, name, gateway):
        self.engine = engine
        self.name = name
        self.gateway = gateway
        self.proxy = f"http://{gateway}:{PROXY_PORT}" if gateway else None

    @property
    def details(self):
        """docker inspect."""
        return self.engine.inspect(self.name)

    @property
    def pid(self):
        """Host pid of the container's first process."""
        return self.details["State"]["Pid"]

    def _endpoint(self, network=None):
        networks = self.details["NetworkSettings"]["Networks"]
        return networks[network] if network else next(iter(networks.values()))

    @property
    def ip(self):
        """IPv4 address on its first network."""
        return self._endpoint()["IPAddress"]

    @property
    def mac(self):
        """MAC address on its first network."""
        return self._endpoint()["MacAddress"]

    def run(self, *command, check=False, input=None, timeout=30, env=None, user=None):
        """docker exec; gives a sh.Result."""
        flags = ["-i"]
        for key, value in (env or {}).items():
            flags += ["-e", f"{key}={value}"]
        if user:
            flags += ["-u", user]
        return self.engine.docker(
            "exec", *flags, self.name, *command, check=check, input=input, timeout=timeout
        )

    def start(self, *command, stdout=None, stdin=None, log=None):
        """docker exec in the background; gives the client process."""
        words = [engine_module.CLIENT, "--host", f"unix://{self.engine.socket}", "exec", "-i", self.name]
        return sh.start([*words, *command], stdout=stdout, stdin=stdin, log=log, sig=signal.SIGKILL)

    def kept(self, url):
        """Gives a function that asks for `url` on one connection to the proxy, each time that it is called: the status
        and the client's port, which is the same for as long as the connection is."""
        process = self.start("/usr/bin/python3", "-c", (
            "import http.client, sys\n"
            f"connection = http.client.HTTPConnection({self.gateway!r}, {PROXY_PORT}, timeout=10)\n"
            "for line in sys.stdin:\n"
            f"  connection.request('GET', {url!r}); port = connection.sock.getsockname()[1]\n"
            "  answer = connection.getresponse(); answer.read(); print(answer.status, port, flush=True)\n"),
            stdin=-1, stdout=-1)

        def ask():
            process.stdin.write(b"\n")
            process.stdin.flush()
            return tuple(map(int, process.stdout.readline().split()))

        return ask

    def sh(self, script, **options):
        """Runs a shell script inside."""
        return self.run("sh", "-c", script, **options)

    def curl(self, url, *flags, seconds=15, input=None):
        """Runs curl, with the proxy of the environment."""
        return Response(self.run(
            "curl", "-sS", "-D", "/dev/stderr", "--max-time", str(seconds),
            "-w", "%{stderr}\n@@%{http_code} %{http_connect} %{num_connects}\n", *flags, url,
            timeout=seconds + 10, input=input,
        ))

    def dig(self, name, kind="A", *flags, server=None, seconds=5):
        """Runs dig once and gives a Digged."""
        return Digged(self.run(
            "dig", f"@{server or self.gateway}", "-t", kind, "-q", name, f"+timeout={seconds}",
            "+tries=1", "+nocmd", *flags, timeout=seconds + 15,
        ))

    def py(self, code, seconds=30, **values):
        """Runs Python inside, with the helpers of inside/net.py and `values`; gives its `result`."""
        prelude = (
            "import sys, json; sys.path.insert(0, '/lab/inside'); from net import *\n"
            f"globals().update(json.loads({json.dumps(json.dumps(values))}))\n"
            f"GATEWAY = {self.gateway!r}; PROXY_PORT = {PROXY_PORT}\nresult = None\n"
        )
        done = self.run(
            "/usr/bin/python3", "-", timeout=seconds,
            input=prelude + code + "\nprint('\\n@@' + json.dumps(result))\n",
        )
        if done.code != 0:
            raise AssertionError(f"python in {self.name}: {done.errors[-1500:]}")
        return json.loads(done.text.rsplit("@@", 1)[1])

    def raw(self, data, port=PROXY_PORT, host=None, wait=1.5, seconds=30):
        """Sends bytes to the proxy (or host:port) and gives all that comes back within `wait` s of silence."""
        answer = self.py(
            "result = exchange(host, port, bytes.fromhex(data), wait).hex()",
            host=host or self.gateway, port=port, data=data.hex(), wait=wait, seconds=seconds,
        )
        return bytes.fromhex(answer)

    def connects(self, address, port, seconds=1.5):
        """What a TCP connect from inside ends in: `connected`, `refused`, `timeout` or the error's name."""
        return self.py("result = tcp(address, port, wait)", address=address, port=port, wait=seconds)

    def remove(self):
        """docker rm -f."""
        self.engine.docker("rm", "-f", "-v", self.name)


class Digged:
    """What dig printed."""

    def __init__(self, result):
        self.exit = result.code
        self.text = result.text
        self.status = None
        self.flags = []
        self.answers = []
        section = None
        for line in self.text.splitlines():
            if "status: " in line:
                self.status = line.split("status: ")[1].split(",")[0]
            elif line.startswith(";; flags: "):
                self.flags = line[10:].split(";")[0].split()
            elif line.startswith(";; ") and line.endswith("SECTION:"):
                section = line.split()[1]
            elif line and not line.startswith(";") and section == "ANSWER":
                self.answers.append(line.split(None, 4))

    @property
    def addresses(self):
        """Addresses in the answer section."""
        return [answer[4] for answer in self.answers if answer[3] in ("A", "AAAA")]

    @property
    def authority(self):
        """The authority section's text."""
        return self.text.partition("AUTHORITY SECTION:")[2].partition(";;")[0]

    def __repr__(self):
        return f"dig exit {self.exit} {self.status} {self.flags} {self.answers or self.text[-400:]!r}"


def run_flags(authority_root, proxy_url, host=""):
    """docker run flags of a tools container: the host's clients (below `host`), the lab's CA, the proxy."""
    flags = []
    for path in ("/usr", "/etc/ssl", "/etc/alternatives"):
        if os.path.isdir(path):
            flags += ["-v", f"{host}{path}:{path}:ro"]
    flags += ["-v", f"{host}{HERE}/inside:/lab/inside:ro", "-v", f"{host}{authority_root}:/lab/root.pem:ro"]
    env = {"PATH": PATH, "NODE_PATH": "/usr/share/nodejs", "HOME": "/tmp"}
    for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS",
                 "GIT_SSL_CAINFO"):
        env[name] = "/lab/root.pem"
    if proxy_url:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            env[name] = proxy_url
        env["NO_PROXY"] = env["no_proxy"] = "localhost,127.0.0.1"
    for key, value in env.items():
        flags += ["-e", f"{key}={value}"]
    return flags
