"""Under a real systemd: boot, the unit's directives, sockets, watchdog, reload, restart, upgrade and removal."""

import json
import shutil

from harness import *
from machine import Machine
from scenarios import host

START = "systemctl start outcall-lockdown outcalld.socket outcall-agent.socket outcalld"
RULES = "/etc/outcall/rules.d/10.yaml"
EXAMPLE = json.dumps({"version": "1", "rules": allow("example.com")})
# Where nobody may go; what arrives there is on record from the first packet.
FAR = "5.10.0.9"
OPERATOR = "/run/outcall/host.sock"


def installed(lab):
    """A machine that booted, with the package on it: enabled, not started."""
    box = Machine(lab)
    check(box.boot() == "running", box.tail(40))
    shutil.copy(host.deb(lab), f"{box.root}/root/outcall.deb")
    done = box.run("dpkg", "--install", "/root/outcall.deb")
    check(done.code == 0, done)
    box.write("/etc/default/outcalld", f'OUTCALLD_FLAGS="--dns-upstream {UPSTREAM}"\n')
    return box


class Sender:
    """A container that is started again at every boot, and sends to FAR from its first instruction, for ever."""

    SCRIPT = ("import itertools, os, signal, sys; sys.path.insert(0, '/lab/inside'); from net import *\n"
              "signal.signal(signal.SIGTERM, lambda *_: os._exit(0)); start = time.monotonic_ns()\n"
              "for turn in itertools.count():\n"
              f" udp('{FAR}', 443, b'outcall-lab-secret', 0.01); tcp('{FAR}', 80, 0.02)\n"
              " open('/tmp/turn.new', 'w').write(f'{start} {turn}'); os.rename('/tmp/turn.new', '/tmp/turn')\n")

    def __init__(self, lab, box):
        self._lab = lab
        agent = ["-v", "/run/outcall/agent:/run/outcall:ro", "-v", "/usr/bin/outcall-agent:/shim:ro"]
        self.client = lab.client(engine=box.engine, name="sender", flags=["--restart", "always", *agent],
                                 command=("/usr/bin/python3", "-c", self.SCRIPT))

    def goes_on(self, turns=20):
        """Waits until it has sent `turns` times more."""
        start, first = "", 0

        def enough():
            nonlocal start, first
            now, _, turn = self.client.run("cat", "/tmp/turn").text.partition(" ")
            if turn and now != start:
                # The file of the start before this one was still there.
                start, first = now, int(turn)
            return turn and int(turn) >= first + turns

        wait_for(enough, "the sender to go on", 30)

    def reaches_nothing(self):
        """Raises if any packet of it arrived, now and `turns` later."""
        self.goes_on()
        self._lab.internet.nothing_for(FAR)
        check(not self._lab.internet.packets.carrying(b"outcall-lab-secret"))


def serves(client):
    """Whether what the rule allows is served."""
    return client.curl("http://example.com/", seconds=3).status == 200


def started(lab):
    """A machine that serves `example.com`, and its sender."""
    box = installed(lab)
    box.write(RULES, EXAMPLE)
    box.run(*START.split(), check=True)
    box.engine.load_images()
    return box, Sender(lab, box)


def tables(box):
    """The tables of this boot that are Outcall's."""
    return [line for line in box.run("nft", "list", "tables").text.splitlines() if line.endswith(" outcall")]


@scenario(deadline=120, needs_machine=True)
def a_container_that_sends_from_its_first_instruction_reaches_nothing_at_boot(lab):
    box, sender = started(lab)
    # This flushes the whole ruleset when it starts.
    box.systemctl("enable", "nftables.service")
    sender.reaches_nothing()
    # The lockdown alone, from the way down to long after the container runs again.
    daemon = ["outcalld.service", "outcalld.socket", "outcall-agent.socket"]
    box.systemctl("mask", *daemon)
    box.shut_down()
    check(box.boot() == "running", box.tail(40))
    sender.reaches_nothing()
    check("table inet outcall" in tables(box), box.tail(40))

    def at(unit, name):
        return int(box.shown(unit, f"ExecMain{name}TimestampMonotonic"))

    check(0 < at("nftables", "Exit") < at("outcall-lockdown", "Start"))
    check(at("outcall-lockdown", "Exit") < min(at("docker", "Start"), at("containerd", "Start")))
    # Without it the same container gets out: it is the lockdown that held it.
    box.systemctl("mask", "outcall-lockdown.service")
    box.shut_down()
    lab.internet.nothing_for(FAR)
    check(box.boot() == "running" and not tables(box), box.tail(40))
    wait_for(lambda: lab.internet.packets.to(FAR), "the sender to get out", 20)
    # All of it, after a power cut.
    box.systemctl("unmask", *daemon, "outcall-lockdown.service")
    box.cut_power()
    lab.internet.reset()
    check(box.boot() == "running", box.tail(40))
    check(box.shown("outcalld", "NRestarts") == "0" and box.shown("outcalld", "StatusText") == "serving", box.tail(40))
    check(serves(sender.client))
    sender.reaches_nothing()
    # Flags that neither lockdown nor daemon takes: the lockdown without them holds.
    box.write("/etc/default/outcalld", 'OUTCALLD_FLAGS="--no-such-flag"\n')
    box.cut_power()
    box.boot()
    check("Failed to start outcall-lockdown" in box.journal("--unit", "outcall-lockdown"), box.tail(40))
    sender.reaches_nothing()
    doctor = box.run("outcall", "doctor").text
    check("table inet outcall" in tables(box) and "correct OUTCALLD_FLAGS in /etc/default/outcalld" in doctor, doctor)


@scenario(deadline=120, needs_machine=True)
def the_service_lives_and_dies_under_its_unit(lab):
    box, sender = started(lab)
    client = sender.client
    pid = lambda: box.shown("outcalld", "MainPID")
    ready = lambda: '"ready":true' in box.run("outcall", "--json").text
    agent_is_known = lambda: client.run("/shim", "fetch", "http://example.com/").code == 0
    # Ready when `start` is over, and confined as the unit says.
    check(ready() and serves(client) and agent_is_known())
    status = box.run("cat", f"/proc/{pid()}/status").text
    check(all(line in status for line in ("Seccomp:\t2\n", "NoNewPrivs:\t1\n", "CapBnd:\t0000000000001400\n")), status)
    check(box.run("findmnt", "--task", pid(), "--noheadings", "--output", "OPTIONS", "/").text.startswith("ro"))
    # Reload: with what is wrong, said and without effect; then with a rule less.
    box.write(RULES, EXAMPLE.replace("http.host", "http.hots"))
    check(box.run("systemctl", "reload", "outcalld").code == 1)
    check("10.yaml" in box.journal("--unit", "outcalld", "--identifier", "outcall"), box.tail(10))
    check(serves(client) and box.shown("outcalld", "ActiveState") == "active")
    box.write(RULES, EXAMPLE.replace("example.com", "other.example.com"))
    box.systemctl("reload", "outcalld")
    check(not serves(client))
    box.write(RULES, EXAMPLE)
    box.systemctl("reload", "outcalld")
    check(serves(client))
    # Restart: whoever connects while no daemon is there waits, and is served.
    before = pid()
    drop_in = "/run/systemd/system/outcalld.service.d/test.conf"
    box.write(drop_in, "[Service]\nExecStartPre=/bin/sleep 2\n")
    box.systemctl("daemon-reload")
    box.systemctl("--no-block", "restart", "outcalld")
    wait_for(lambda: box.shown("outcalld", "SubState") == "start-pre", "the old daemon to be gone", 10)
    asked = box.run("curl", "-sS", "--unix-socket", OPERATOR, "http://localhost/api/v1/networks", "-w", "%{http_code}")
    check(asked.text.endswith("200") and pid() not in (before, "0"), asked)
    wait_for(ready, "outcalld to be ready", 10)
    check(serves(client) and agent_is_known())
    box.systemctl("--no-block", "restart", "outcalld")
    wait_for(lambda: box.shown("outcalld", "SubState") == "start-pre", "the old daemon to be gone", 10)
    check(agent_is_known())
    box.run("rm", drop_in, check=True)
    box.systemctl("daemon-reload")
    # Stopped: the table stays. Whoever asks starts it.
    box.systemctl("stop", "outcalld")
    check(box.shown("outcalld", "ActiveState") == "inactive" and "table inet outcall" in tables(box))
    sender.reaches_nothing()
    check(agent_is_known() and ready() and serves(client))
    # Killed: back by itself.
    before = pid()
    box.systemctl("kill", "--signal", "KILL", "outcalld")
    wait_for(lambda: pid() not in (before, "0") and ready(), "outcalld to be back", 10)
    check(serves(client) and box.shown("outcalld", "NRestarts") == "1")
    # Hung: the watchdog, sooner than in the unit, ends it.
    box.write(drop_in, "[Service]\nWatchdogSec=3s\n")
    box.systemctl("daemon-reload")
    box.systemctl("restart", "outcalld")
    before = pid()
    box.systemctl("kill", "--signal", "STOP", "outcalld")
    check(not serves(client))
    wait_for(lambda: pid() not in (before, "0") and ready(), "the watchdog to replace outcalld", 20)
    check("watchdog" in box.journal("--unit", "outcalld", "--grep", "atchdog timeout").lower(), box.tail(40))
    check(serves(client) and agent_is_known())
    box.run("rm", drop_in, check=True)
    box.systemctl("daemon-reload")
    # Flags that it does not take: tried for ever, and served as soon as they are mended.
    flags = open(f"{box.root}/etc/default/outcalld").read()
    box.write("/etc/default/outcalld", 'OUTCALLD_FLAGS="--no-such-flag"\n')
    box.run("systemctl", "restart", "outcalld")
    wait_for(lambda: int(box.shown("outcalld", "NRestarts")) >= 7, "restarts past systemd's usual limit of five", 20)
    sender.reaches_nothing()
    box.write("/etc/default/outcalld", flags)
    wait_for(ready, "outcalld to be back", 10)
    # The lockdown beside a daemon that runs, and as /etc/default/outcalld says.
    box.systemctl("restart", "outcall-lockdown")
    wait_for(lambda: serves(client), "what the rules allow to be open again", 5)
    box.systemctl("restart", "outcall-lockdown", "outcalld")
    check(ready() and serves(client))
    # An upgrade restarts it.
    before = pid()
    done = box.run("dpkg", "--install", "/root/outcall.deb")
    check(done.code == 0 and pid() not in (before, "0") and ready() and serves(client), done)
    # Removed: stopped, and closed.
    check(box.run("dpkg", "--remove", "outcall").code == 0)
    check(box.run("grep", "@outcalld", "/proc/net/unix").code == 1 and "table inet outcall" in tables(box))
    sender.reaches_nothing()
    lab.internet.nothing_for(FAR)


@scenario(deadline=120, needs_machine=True)
def each_remedy_of_doctor_does_what_it_says(lab):
    box = installed(lab)

    def wrong(area):
        """What doctor finds wrong in an area, as (what, remedy), or None."""
        findings = json.loads(box.run("outcall", "--json", "doctor").text)
        bad = [f for f in host.found(findings, area) if f["verdict"] != "ok"]
        return (bad[0]["found"], bad[0]["remedy"]) if bad else None

    def cured_by_its_words(area):
        """Runs the remedy as it stands."""
        what, remedy = check(wrong(area), area)
        done = box.run("sh", "-c", remedy)
        check(done.code == 0 and wrong(area) is None, (what, remedy, done, wrong(area)))

    # Nothing runs.
    box.systemctl("stop", "docker.socket", "docker.service")
    check("systemctl start docker" in wrong("docker")[1])
    box.systemctl("start", "docker")
    check(wrong("docker") is None)
    cured_by_its_words("outcalld")
    check("write a rule" in wrong("rules")[1])
    # Rules.
    box.write(RULES, EXAMPLE.replace("http.host", "http.hots"))
    what, remedy = wrong("rules")
    check("10.yaml" in what and "`outcall rules check`" in remedy)
    checked = box.run("outcall", "rules", "check")
    check(checked.code == 1 and "10.yaml:" in checked.text and "http.hots" in checked.text, checked)
    box.write(RULES, EXAMPLE)
    box.systemctl("reload", "outcalld")
    check(wrong("rules") is None)
    # Files that are open to all, or gone.
    for path, area in ((OPERATOR, "operator socket"), ("/var/lib/outcall", "state")):
        box.run("chmod", "0777", path, check=True)
        cured_by_its_words(area)
    for path, area in ((OPERATOR, "operator socket"), ("/run/outcall/agent.sock", "agent socket")):
        box.run("rm", path, check=True)
        cured_by_its_words(area)
        check(wrong("outcalld") is None, wrong("outcalld"))
    # Who is not in the group is told of it.
    someone = ["setpriv", "--reuid", "1000", "--regid", "1000"]
    refused = box.run(*someone, "--clear-groups", "outcall")
    check(refused.code == 1 and "group outcall" in refused.errors, refused)
    group = box.run("getent", "group", "outcall").text.split(":")[2]
    check(box.run(*someone, "--groups", group, "outcall").code == 0)
    # A firewall that drops what it does not know.
    box.engine.load_images()
    client = lab.client(engine=box.engine)
    check(client.dig("example.com").status == "NOERROR")
    table = "table inet strict { chain in { type filter hook input priority 0; policy drop; }; }"
    box.run("nft", table, check=True)
    check(client.dig("example.com", seconds=1).status is None)
    check("accept input from outcall0 and oc-* there" in wrong("other tables")[1])
    for bridge in ("outcall0", "oc-*"):
        box.run("nft", f'add rule inet strict in iifname "{bridge}" accept', check=True)
    check(client.dig("example.com").status == "NOERROR")
    box.run("nft", "delete", "table", "inet", "strict", check=True)
    # A resolver on loopback, which Docker would ask past the rules.
    box.write("/etc/resolv.conf", "nameserver 127.0.0.53\n")
    remedy = wrong("resolvers")[1]
    check('put "dns": ["10.200.0.1"] into /etc/docker/daemon.json' in remedy, remedy)
    box.write("/etc/docker/daemon.json", '{"dns": ["10.200.0.1"]}')
    client.remove()
    box.systemctl("restart", "docker")
    check(wrong("resolvers") is None, wrong("resolvers"))
    wait_for(lambda: wrong("outcalld") is None, "outcalld to see Docker again", 20)
    check(lab.client(engine=box.engine, dns=None).dig("example.com", server="127.0.0.11").status == "NOERROR")
    # Another program on the proxy's port.
    box.systemctl("stop", "outcalld.socket", "outcall-agent.socket", "outcalld")
    box.run("systemd-run", "--unit", "squatter", "/lab/usr/bin/busybox", "nc", "-l", "-p", "8080", check=True)
    what, remedy = wait_for(lambda: wrong("ports"), "the program on the port", 5)
    check("8080" in what and "busybox" in what and "--proxy-addr" in remedy, (what, remedy))
    box.write("/etc/default/outcalld", f'OUTCALLD_FLAGS="--dns-upstream {UPSTREAM} --proxy-addr 0.0.0.0:8081"\n')
    check(wrong("ports") is None)
    box.run(*START.split(), check=True)
    check(box.run("outcall", "ready").code == 0)
    box.systemctl("stop", "squatter")
    # Flags that name a CA which is not there yet.
    ca = "--ca-cert /etc/outcall/ca/ca-cert.pem --ca-key /etc/outcall/ca/ca-key.pem"
    box.systemctl("stop", "outcalld.socket", "outcall-agent.socket", "outcalld")
    box.write("/etc/default/outcalld", f'OUTCALLD_FLAGS="--dns-upstream {UPSTREAM} {ca}"\n')
    check("`outcall ca init` makes a pair" in wrong("CA")[1])
    made = box.run("outcall", "ca", "init", "--algorithm", "ecdsa")
    check(made.code == 0 and wrong("CA") is None, made)
    box.run(*START.split(), check=True)
    check(box.run("outcall", "ca", "status").code == 0 and wrong("outcalld") is None)
