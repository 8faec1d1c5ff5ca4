"""On a host: the units and what they allow, the package, the image."""

import glob
import json
import os
import re
import shutil
import signal

import daemon as daemon_module
from harness import *
from scenarios.agents import rule_file, submit, token_of

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
REPOSITORY = daemon_module.REPOSITORY
HOST = f"{REPOSITORY}/integration/host"
UNITS = ["outcalld.service", "outcall-lockdown.service", "outcalld.socket", "outcall-agent.socket"]
# Bytes of the image, where a release build is in it.
IMAGE_MAX = 15_000_000


def packaged(lab):
    """The directory that `integration/host/package` filled: by `integration/test`, else here, once for a run."""
    if os.environ.get("OUTCALL_HOST_OUT"):
        return os.environ["OUTCALL_HOST_OUT"]
    out = os.path.join(lab.directory, "host")
    if not os.path.exists(f"{out}/image/etc/group"):
        run([f"{HOST}/package", out], timeout=300,
            env={**os.environ, "OUTCALL_BIN_DIR": os.path.dirname(binary("outcalld"))})
    return out


def deb(lab):
    """The package's path."""
    out = packaged(lab)
    return next(f"{out}/{name}" for name in os.listdir(out) if name.endswith(".deb"))


def is_release():
    """Whether the binaries under test are a release build."""
    return os.path.basename(os.path.dirname(binary("outcalld"))) == "release"


@scenario(deadline=300)
def the_package_holds_what_it_says_and_its_units_verify(lab):
    root = lab.path("root")
    run(["dpkg-deb", "-x", deb(lab), root])
    for path in ("usr/bin/outcalld", "usr/bin/outcall", "usr/bin/outcall-agent", "etc/outcall/rules.d/README",
                 "usr/share/man/man1/outcalld.1.gz", "usr/share/man/man1/outcall-rules-check.1.gz",
                 "usr/share/man/man1/outcall-agent.1.gz", "usr/share/bash-completion/completions/outcall",
                 "usr/share/zsh/vendor-completions/_outcall", "usr/share/fish/vendor_completions.d/outcall.fish",
                 "usr/lib/sysusers.d/outcall.conf", "usr/lib/tmpfiles.d/outcall.conf"):
        check(os.path.getsize(f"{root}/{path}") > 0, path)
    fields = run(["dpkg-deb", "-f", deb(lab), "Depends"]).text
    check("libnftnl11" in fields and "libc6" in fields, fields)
    # The shim is for containers that hold nothing; the command links no kernel library.
    check(b"statically linked" in run(["ldd", f"{root}/usr/bin/outcall-agent"], check=False).out
          or b"not a dynamic" in run(["ldd", f"{root}/usr/bin/outcall-agent"], check=False).err)
    check("nftnl" not in run(["ldd", f"{root}/usr/bin/outcall"]).text)
    # Every page and picture that the documents point at is there.
    documents = f"{root}/usr/share/doc/outcall"
    links = [(os.path.dirname(path), link) for path in glob.glob(f"{documents}/**/*.md", recursive=True)
             for link in re.findall(r"\]\(([^)#:]+)[)#]", open(path).read())]
    check(len(links) > 50, links)
    absent = [link for at, link in links if not os.path.exists(f"{at}/{link}")]
    check(not absent, absent)
    # Nothing is loaded before the operator says so, and the example is right.
    rules = f"{root}/etc/outcall/rules.d"
    checked = run([binary("outcalld"), "--check", "--rules-dir", rules], check=False)
    check(checked.code == 0 and "0 rules" in checked.text, checked)
    os.rename(f"{rules}/10-example.yaml.disabled", f"{rules}/10-example.yaml")
    checked = run([binary("outcalld"), "--check", "--rules-dir", rules], check=False)
    check(checked.code == 0 and "warning" not in checked.text + checked.errors, checked)
    # systemd's own opinion of the units, with the package's files in their places.
    for name in ("bin", "lib", "sbin"):
        os.symlink(f"usr/{name}", f"{root}/{name}")
    os.makedirs(f"{root}/usr/sbin", exist_ok=True)
    shutil.copy("/bin/kill", f"{root}/usr/bin/kill")
    for target in ("sysinit", "basic", "shutdown", "sockets", "multi-user", "network", "local-fs"):
        with open(f"{root}/usr/lib/systemd/system/{target}.target", "w") as file:
            file.write(f"[Unit]\nDescription={target}\n")
    for unit in ("docker", "systemd-sysctl", "nftables"):
        with open(f"{root}/usr/lib/systemd/system/{unit}.service", "w") as file:
            file.write("[Unit]\nDescription=there\n[Service]\nExecStart=/bin/kill\n")
    verified = run(["systemd-analyze", "verify", "--man=no", f"--root={root}", *UNITS], check=False)
    check(verified.code == 0 and not verified.errors.strip(), verified)
    exposed = run(["systemd-analyze", "security", "--offline=yes", "--threshold=35", "--no-pager",
                   f"--root={root}", "outcalld.service"], check=False)
    check(exposed.code == 0, exposed.text[-400:])


def as_the_unit(unit, *writable):
    """Command words that confine what follows as `unit` does, strictly."""
    flags = [word for path in writable for word in ("--write", path)]
    return ["/usr/bin/python3", f"{HERE}/unit.py", f"{HOST}/systemd/{unit}", *flags, "--"]


@scenario(deadline=90)
def the_daemons_whole_work_under_the_filter_of_its_unit(lab):
    made = lab.space.run(binary("outcall"), "ca", "init", "--out", lab.path("ca"), check=False)
    check(made.code == 0, made)
    pems = sorted(os.listdir(lab.path("ca")), key=lambda name: "key" in name)
    daemon = lab.daemon(start=False, flags=[
        "--on-exit", "keep", "--ca-cert", lab.path(f"ca/{pems[0]}"), "--ca-key", lab.path(f"ca/{pems[-1]}"),
        "--upstream-ca", lab.internet.authority.root])
    daemon.wrapper = as_the_unit("outcalld.service", daemon.directory)
    daemon.write_rules([
        *allow("example.com"),
        rule("inside", 'http.host == "secure.example.com" && http.path == "/"', egress={"mode": "intercept"}),
        rule("direct", 'dns.query == "direct.example.com"', egress={"mode": "direct_ip", "ports": [80]}),
    ])
    lab.internet.names.set("direct.example.com", "5.10.7.1")
    lab.internet.names.set("asked.example.com", "5.10.7.2")
    lab.internet.names.set("secure.example.com", "5.10.7.3")
    daemon.start()
    status = open(f"/proc/{daemon.process.pid}/status").read()
    check("Seccomp:\t2" in status and "NoNewPrivs:\t1" in status, status[-600:])
    client = lab.client(flags=["-v", f"{daemon.directory}/agent/agent:/run/outcall"])
    # DNS over UDP and TCP, the proxy, a tunnel, a direct flow, a denial of each kind.
    check(client.curl("http://example.com/").status == 200)
    check(client.curl("https://example.com/").status == 200)
    check(client.curl("http://denied.example.net/").status == 403)
    check(client.dig("denied.example.net").status == "NXDOMAIN")
    check(client.dig("example.com", "A", "+tcp").addresses)
    check(client.dig("direct.example.com").addresses == ["5.10.7.1"])
    check(client.connects("5.10.7.1", 80) == "connected")
    check(client.connects("5.10.0.9", 443, 0.5) != "connected")
    # Interception, a stream of events, an explanation, a container of the daemon's own making.
    seen = client.curl("https://secure.example.com/", "-k")
    check(seen.status == 200, seen)
    check(client.curl("https://secure.example.com/no", "-k").status == 403)
    check(daemon.api("GET", "/api/v1/events?verdict=block").status == 200)
    check(daemon.cli("explain", "https://secure.example.com/no").code == 0)
    created = daemon.api("POST", "/api/v1/container/create", {
        "image": "lab/busybox", "name": "made", "cmd": ["sleep", "60"], "include_outcall_helper_mounts": False})
    check(created.status in (200, 201), created)
    # Rules through the guarded child, a refused reload, an approved request.
    check(daemon.cli("rules", "reload").code == 0)
    check(daemon.api("POST", "/api/v1/rule/test", {"expression": "(" * 3000, "context": {}}).status in (200, 400, 422))
    daemon.write_rules("version: nonsense", "broken.yaml")
    check(daemon.api("POST", "/api/v1/rules/reload").status == 422)
    os.unlink(f"{daemon.rules_dir}/broken.yaml")
    token_of(client)
    asked = submit(client, rule_file(rule("asked", 'http.host == "asked.example.com"')))
    approved = daemon.cli("requests", "approve", asked)
    check(approved.code == 0, approved)
    check(client.curl("http://asked.example.com/").status == 200)
    # Networks, bridges down and up, a table that is taken away, Docker's restart.
    other = lab.network(daemon, "second")
    check(lab.client(network=other).curl("http://example.com/").status == 200)
    for word in ("down", "up"):
        check(daemon.cli("bridge", word).code == 0)
    lab.flush_ruleset()
    wait_for(lambda: ("inet", "outcall") in lab.tables(), "the table to come back", 2)
    wait_for(lambda: client.curl("http://example.com/", seconds=3).status == 200, "service", 10)
    daemon.send(signal.SIGHUP)
    check(daemon.stop() == 0, daemon.tail(5))
    check(not [line for line in daemon.text().splitlines() if "SIGSYS" in line or "signal: 31" in line])


@scenario()
def lockdown_under_the_filter_of_its_unit(lab):
    directory = lab.path("lock")
    os.makedirs(directory)
    done = lab.space.run(*as_the_unit("outcall-lockdown.service"), binary("outcalld"), "--lockdown", check=False)
    check(done.code == 0, done)
    check(("inet", "outcall") in lab.tables(), lab.tables())


@scenario(deadline=300)
def the_image_is_small_and_filters_a_container(lab):
    out = packaged(lab)
    docker = f"docker --host unix://{lab.engine.socket}"
    run([f"{HOST}/image", "lab/outcall", f"{out}/image"], env={**os.environ, "DOCKER": docker})
    lab.undo(lambda: lab.engine.docker("rmi", "-f", "lab/outcall"))
    size = lab.engine.inspect("lab/outcall")["Size"]
    if is_release():
        check(size < IMAGE_MAX, size)
    # As compose.yaml says, with the lab's paths.
    for name in ("run", "state", "rules.d"):
        os.makedirs(lab.path(name))
    with open(lab.path("rules.d/10.yaml"), "w") as file:
        file.write('version: "1"\nrules:\n  - id: example\n    condition: http.host == "example.com"\n    action: allow\n')
    lab.engine.docker(
        "run", "-d", "--name", "outcalld", "--health-interval", "200ms", "--health-retries", "1",
        "--network", "host", "--pid", "host", "--read-only", "--cap-drop", "ALL",
        "--cap-add", "NET_ADMIN", "--cap-add", "NET_BIND_SERVICE", "--security-opt", "no-new-privileges:true",
        "-v", f"{lab.path('run')}:/run/outcall", "-v", f"{lab.engine.socket}:/var/run/docker.sock",
        "-v", f"{lab.path('rules.d')}:/etc/outcall/rules.d", "-v", f"{lab.path('state')}:/var/lib/outcall",
        "lab/outcall", "--on-exit", "keep", "--dns-upstream", UPSTREAM)

    def outcall(*words):
        return lab.engine.docker("exec", "outcalld", "/usr/bin/outcall", *words, check=False).code

    def health():
        return lab.engine.inspect("outcalld")["State"]["Health"]["Status"]

    try:
        wait_for(lambda: outcall("ready") == 0, "outcalld in its container", 20)
    except Timeout as late:
        logs = lab.engine.docker("logs", "outcalld", check=False)
        raise AssertionError(f"{late}: {logs.text[-800:]} {logs.errors[-1500:]}") from late
    client = lab.client()
    check(client.curl("http://example.com/").status == 200)
    check(client.curl("http://denied.example.net/").status == 403)
    check(client.dig("denied.example.net").status == "NXDOMAIN")
    check(client.connects("5.10.0.9", 443, 0.5) != "connected")
    lab.internet.nothing_for("5.10.0.9")
    # Its health is what /ready says.
    wait_for(lambda: health() == "healthy", "Docker to find it healthy", 10)
    check(outcall("bridge", "down") == 0 and outcall("ready") == 1 and outcall("bridge", "status") == 0)
    wait_for(lambda: health() == "unhealthy", "Docker to find it unhealthy", 10)
    check(outcall("bridge", "up") == 0 and outcall("ready") == 0)
    wait_for(lambda: health() == "healthy", "Docker to find it healthy again", 10)
    # Gone without a word: closed. Started again: as before.
    lab.engine.docker("kill", "-s", "KILL", "outcalld")
    check(client.curl("http://example.com/", seconds=1).status != 200)
    check(client.connects("5.10.0.9", 443, 0.3) != "connected")
    lab.engine.docker("start", "outcalld")
    wait_for(lambda: outcall("ready") == 0, "outcalld to come back", 20)
    wait_for(lambda: client.curl("http://example.com/", seconds=3).status == 200, "service", 10)
    lab.engine.docker("stop", "outcalld")
    check(lab.engine.inspect("outcalld")["State"]["ExitCode"] == 0)
    lab.internet.nothing_for("5.10.0.9")


def doctor(lab, *arguments, socket="/nonexistent/host.sock"):
    """Runs `outcall doctor --json` in the lab; gives (exit code, findings)."""
    done = lab.space.run(binary("outcall"), "--socket", socket, "--json", "doctor", *arguments, check=False)
    return done.code, json.loads(done.text)


def found(findings, area, verdict=None):
    """The findings of an area, of one verdict if given."""
    return [f for f in findings if f["area"] == area and verdict in (None, f["verdict"])]


@scenario()
def doctor_says_what_is_missing_and_what_to_do(lab):
    # No daemon, Docker where nobody looks, somebody on the proxy's port, a strict firewall, a loopback resolver.
    lab.host_service(8080)
    lab.loopback_resolver()
    lab.nft("-f", "-", input="table inet strict { chain in { type filter hook input priority 0; policy drop; }; }")
    lab.undo(lambda: lab.nft("delete", "table", "inet", "strict"))
    code, findings = doctor(lab)
    check(code == 1)
    for area in ("outcalld", "docker", "ports"):
        problems = found(findings, area, "problem")
        check(problems and problems[0]["remedy"], (area, findings))
    check("8080" in found(findings, "ports", "problem")[0]["found"])
    check("inet strict in" in found(findings, "other tables", "warning")[0]["found"], findings)
    check("127.0.0.53" in found(findings, "resolvers", "warning")[0]["found"], findings)
    check(found(findings, "kernel") == found(findings, "kernel", "ok"), findings)
    check(not lab.tables() and "outcall0" not in lab.links(), "the probe touched the host's namespace")


@scenario()
def doctor_finds_nothing_where_the_daemon_runs(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    before = lab.nft("list", "table", "inet", "outcall").text
    code, findings = doctor(lab, socket=daemon.socket)
    check(code == 0 and not [f for f in findings if f["verdict"] in ("problem", "unknown")], findings)
    # It looked with the flags of the daemon that runs, and at a container of its Engine.
    check(daemon.state_dir in found(findings, "state")[0]["found"], findings)
    check("is process" in found(findings, "container pids", "ok")[0]["found"], findings)
    check(lab.nft("list", "table", "inet", "outcall").text.count("\n") == before.count("\n"))
    check(client.curl("http://example.com/").status == 200)
    # Rules that a start would not take.
    daemon.write_rules("version: nonsense", "broken.yaml")
    code, findings = doctor(lab, socket=daemon.socket)
    check(code == 1 and "broken.yaml" in found(findings, "rules", "problem")[0]["found"], findings)
    text = daemon.cli("doctor")
    check(text.code == 1 and "PROBLEM" in text.text and "-> " in text.text and "keeps outcalld" in text.errors, text)


@scenario()
def outcall_alone_is_short_and_says_what_to_do(lab):
    daemon = lab.daemon([])
    said = daemon.cli()
    check(said.code == 0 and len(said.text.splitlines()) <= 12, said)
    check("Next: write a rule" in said.text and "\x1b[" not in said.text, said)
