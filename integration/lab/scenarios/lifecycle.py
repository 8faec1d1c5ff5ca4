"""Start, stop, crash, restart: when is the network open, and to whom. The answer must always be: never."""

import json
import os
import re
import signal
import socket
import time

from harness import *

CAPABILITIES = ["setpriv", "--bounding-set=-all,+net_admin,+net_bind_service", "--inh-caps=-all"]


class Prober:
    """A container that tries to get out all the time; `open` lists what it reached."""

    def __init__(self, lab, address):
        self.lab = lab
        self.address = address
        self.client = lab.client()
        self.process = self.client.start("/usr/bin/python3", "-c", (
            "import sys; sys.path.insert(0, '/lab/inside'); from net import *\n"
            "while True:\n"
            f" tcp('{address}', 80, 0.05); udp('{address}', 443, b'outcall-lab-secret', 0.01)\n"
            f" udp('1.1.1.1', 53, b'outcall-lab-secret', 0.01)\n"))

    def nothing_left(self):
        """Raises if a probe arrived, or if the prober is not running any more."""
        self.lab.internet.nothing_for(self.address, "1.1.1.1")
        check(not self.lab.internet.packets.carrying(b"outcall-lab-secret"))


def sh_end(*clients):
    """Ends clients that wait for an answer that will not come."""
    for client in clients:
        client.kill()
        client.wait()


def serves(client):
    """Whether an allowed request works."""
    return client.curl("http://example.com/", seconds=3).status == 200


@scenario()
def the_steps_are_logged_in_order_with_durations(lab):
    daemon = lab.daemon()
    lines = [line for line in daemon.text().splitlines() if "step=" in line and "took" in line]
    steps = [re.search(r'step="?([a-z_]+)', line).group(1) for line in lines]
    wanted = ["bridge", "rules", "network", "dns", "proxy", "docker_manager", "host_api", "agent_api"]
    check(steps == wanted, steps)


@scenario()
def sigterm_and_sigint_stop_within_five_seconds(lab):
    for sig in (signal.SIGTERM, signal.SIGINT):
        daemon = lab.daemon(allow("example.com"))
        client = lab.client()
        check(serves(client))
        start = time.monotonic()
        check(daemon.stop(sig) == 0, daemon.tail(5))
        check(time.monotonic() - start < 5)
        check(not os.path.exists(daemon.socket), "the socket file stays")


@scenario()
def sigterm_with_work_in_flight_stops_within_five_seconds(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    lab.internet.origin.on("/never", lambda r, c: time.sleep(30) or b"")
    pending = client.start("curl", "-s", "http://example.com/never")
    tunnel = client.start("/usr/bin/python3", "-c", (
        "import socket,time; s=socket.create_connection(('10.200.0.1',8080));"
        "s.sendall(b'CONNECT example.com:443 HTTP/1.1\\r\\nHost: example.com:443\\r\\n\\r\\n'); time.sleep(60)"))
    wait_for(lambda: lab.internet.origin.requests(path="/never"), "the request to be under way", 5)
    start = time.monotonic()
    check(daemon.stop() == 0)
    check(time.monotonic() - start < 6.5, time.monotonic() - start)
    sh_end(pending, tunnel)


@scenario()
def teardown_closes_the_bridge_before_the_table_goes(lab):
    daemon = lab.daemon(allow("example.com"))
    prober = Prober(lab, "5.10.0.1")
    daemon.stop()
    check(not lab.tables(), lab.tables())
    link = lab.links().get("outcall0")
    check(link is None or "UP" not in link["flags"], link)
    check(prober.client.connects("5.10.0.1", 80, 1) != "connected")
    prober.nothing_left()


@scenario()
def keep_leaves_the_base_table_and_no_grant(lab):
    daemon = lab.daemon(allow("example.com"), flags=["--on-exit", "keep"])
    prober = Prober(lab, "5.10.1.1")
    service = lab.host_service(2200)
    check(serves(prober.client))
    daemon.stop()
    check(("inet", "outcall") in lab.tables(), lab.tables())
    check("outcall0" in lab.links())
    check(prober.client.connects(GATEWAY, 2200, 1) != "connected" and not service.visits)
    check(not serves(prober.client))
    prober.nothing_left()
    daemon.start()
    wait_for(lambda: serves(prober.client), "service after the start, the container untouched", 10)
    prober.nothing_left()


@scenario(deadline=90)
def stop_and_start_re_attach_a_running_container(lab):
    daemon = lab.daemon(allow("example.com"))
    prober = Prober(lab, "5.10.2.1")
    check(serves(prober.client))
    for _ in range(3):
        daemon.stop()
        check(not serves(prober.client))
        daemon.start()
        wait_for(lambda: serves(prober.client), "service after the start", 10)
        check(prober.client.dig("denied.example.net").status == "NXDOMAIN")
        check(prober.client.connects("5.10.2.1", 80, 1) != "connected")
    prober.nothing_left()


@scenario(deadline=90)
def sigkill_leaves_everything_closed_and_a_start_recovers(lab):
    daemon = lab.daemon(allow("example.com"))
    prober = Prober(lab, "5.10.3.1")
    service = lab.host_service(2200)
    for _ in range(3):
        check(serves(prober.client))
        daemon.kill()
        check(("inet", "outcall") in lab.tables(), lab.tables())
        check(not serves(prober.client))
        check(prober.client.connects("5.10.3.1", 80, 1) != "connected")
        check(prober.client.connects(GATEWAY, 2200, 1) != "connected")
        daemon.start()
        wait_for(lambda: serves(prober.client), "service after the start", 10)
    prober.nothing_left()
    check(not service.visits)


@scenario(deadline=90)
def a_container_started_while_the_daemon_is_dead_is_closed_and_served_later(lab):
    daemon = lab.daemon(allow("example.com"))
    daemon.kill()
    prober = Prober(lab, "5.10.12.1")
    check(prober.client.connects("5.10.12.1", 80, 1) != "connected")
    check(not serves(prober.client))
    daemon.start()
    wait_for(lambda: serves(prober.client), "service after the start", 10)
    prober.nothing_left()


@scenario(deadline=120)
def docker_restart_while_the_daemon_is_dead_opens_nothing(lab):
    """After SIGKILL, and under keep: Docker restarts, makes bridges and containers anew, and nothing leaks."""
    daemon = lab.daemon(allow("example.com"), flags=["--on-exit", "keep"])
    for way in ("kill", "keep"):
        client = lab.client(flags=["--restart", "always"], command=("/usr/bin/python3", "-c", (
            "import sys; sys.path.insert(0, '/lab/inside'); from net import *\n"
            "while True:\n tcp('5.10.4.1', 80, 0.05); udp('5.10.4.1', 443, b'outcall-lab-secret', 0.01)\n")))
        if way == "kill":
            daemon.kill()
        else:
            daemon.stop()
        lab.engine.stop()
        lab.engine.start()
        wait_for(lambda: client.details["State"]["Running"], "the container to be back", 20)
        check(client.connects("5.10.4.1", 80, 1) != "connected")
        lab.internet.nothing_for("5.10.4.1")
        daemon.start()
        wait_for(lambda: serves(client), "service after the start", 15)
        lab.internet.nothing_for("5.10.4.1")
        client.remove()


@scenario(deadline=120)
def docker_restarts_under_a_running_daemon(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client(flags=["--restart", "always"], command=("/usr/bin/python3", "-c", (
        "import sys; sys.path.insert(0, '/lab/inside'); from net import *\n"
        "while True:\n tcp('5.10.5.1', 80, 0.05)\n")))
    check(serves(client))
    lab.engine.stop()
    wait_for(lambda: "docker" in daemon.api("GET", "/api/v1/ready").body.lower()
             and daemon.api("GET", "/api/v1/ready").status == 503, "/ready to say that Docker is away", 15)
    check(daemon.api("GET", "/api/v1/health").status == 200)
    lab.engine.start()
    daemon.wait_ready(30)
    wait_for(lambda: client.details["State"]["Running"], "the container to be back", 20)
    wait_for(lambda: serves(client), "service again", 15)
    lab.internet.nothing_for("5.10.5.1")
    fresh = lab.client()
    check(fresh.curl("http://example.com/").status == 200)


@scenario(deadline=120)
def docker_away_at_the_start_and_coming_later(lab):
    lab.engine.stop()
    daemon = lab.daemon(allow("example.com"), wait=False)
    wait_for(daemon.answers, "the operator socket", 10)
    ready = daemon.api("GET", "/api/v1/ready")
    check(ready.status == 503 and "docker" in ready.body.lower(), ready)
    check(("inet", "outcall") in lab.tables())
    check(daemon.api("GET", "/api/v1/bridge").data["nftables_active"] is True)
    lab.engine.start()
    daemon.wait_ready(30)
    check(serves(lab.client()))


@scenario(deadline=90)
def a_killed_docker_with_live_containers_changes_nothing_for_them(lab):
    lab.engine.stop()
    lab.engine.start("--live-restore")
    daemon = lab.daemon(allow("example.com"))
    prober = Prober(lab, "5.10.6.1")
    client = prober.client
    check(serves(client))
    pid = client.pid
    lab.engine.stop(signal.SIGKILL)
    inside = lab.space.run("nsenter", f"--net=/proc/{pid}/ns/net", "curl", "-s", "--max-time", "5", "-o", "/dev/null",
                           "-w", "%{http_code}", "-x", f"http://{GATEWAY}:8080", "http://example.com/", check=False)
    check(inside.text == "200", inside)
    lab.engine.start("--live-restore")
    daemon.wait_ready(30)
    wait_for(lambda: serves(client), "service again", 10)
    prober.nothing_left()
    lab.engine.sweep()
    lab.engine.stop()
    lab.engine.start()


@scenario(alone=True)
def a_flushed_or_deleted_table_is_put_back_within_200_ms(lab):
    daemon = lab.daemon(allow("example.com"))
    prober = Prober(lab, "5.10.7.1")
    client = prober.client
    for command in (("flush", "table", "inet", "outcall"), ("delete", "table", "inet", "outcall"),
                    ("flush", "chain", "inet", "outcall", "forward")):
        lab.nft(*command)
        start = time.monotonic()
        wait_for(lambda: "drop" in lab.nft("list", "chain", "inet", "outcall", "forward", check=False).text
                 and daemon.api("GET", "/api/v1/bridge").data["nftables_active"], "the table to be back", 2)
        check(time.monotonic() - start < 0.5, (command, time.monotonic() - start))
        check(serves(client))
    check("put back" in daemon.text().lower() or "restored" in daemon.text().lower()
          or "changed" in daemon.text().lower(), daemon.tail())


@scenario()
def flush_ruleset_closes_again_at_once(lab):
    """What passes in the moment without a table is at most what fits into 200 ms."""
    lab.daemon(allow("example.com"))
    prober = Prober(lab, "5.10.8.1")
    lab.flush_ruleset()
    wait_for(lambda: ("inet", "outcall") in lab.tables(), "the table", 1)
    wait_for(lambda: serves(prober.client), "service", 5)
    lab.internet.packets.clear()
    lab.internet.log.clear()
    check(prober.client.connects("5.10.8.2", 80, 1) != "connected")
    prober.nothing_left()


@scenario()
def links_taken_away_by_hand_come_back(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    check(serves(client))
    lab.space.run("ip", "addr", "del", f"{GATEWAY}/24", "dev", "outcall0")
    daemon.api("POST", "/api/v1/bridge/up")
    wait_for(lambda: serves(client), "service with the address back", 10)
    lab.space.run("ip", "link", "set", "outcall0", "down")
    check(daemon.api("GET", "/api/v1/bridge").data["up"] is False)
    daemon.api("POST", "/api/v1/bridge/up")
    wait_for(lambda: serves(client), "service with the link up", 10)


@scenario()
def bridge_down_and_up_by_the_operator(lab):
    daemon = lab.daemon(allow("example.com"))
    prober = Prober(lab, "5.10.9.1")
    check(serves(prober.client))
    for _ in range(2):
        check(daemon.api("POST", "/api/v1/bridge/down").status == 200)
        data = daemon.api("GET", "/api/v1/bridge").data
        check(data["up"] is False and data["index"] is None and data["nftables"] == "inactive", data)
        check(not serves(prober.client))
    for _ in range(2):
        check(daemon.api("POST", "/api/v1/bridge/up").status == 200)
        wait_for(lambda: serves(prober.client), "service after up", 10)
    data = daemon.api("GET", "/api/v1/bridge").data
    check(data["up"] is True and data["index"] > 0 and data["nftables"] == "active", data)
    check(prober.client.connects("5.10.9.1", 80, 1) != "connected")
    prober.nothing_left()


@scenario()
def a_second_daemon_refuses_and_leaves_the_first_alone(lab):
    first = lab.daemon(allow("example.com"))
    client = lab.client()
    check(serves(client))
    table = lab.nft("-s", "list", "table", "inet", "outcall").text
    same = lab.daemon([rule("all", "true")], start=False)
    same.socket, same.state_dir = first.socket, first.state_dir
    other = lab.daemon([rule("all", "true")], start=False)
    for second in (same, other):
        second.start(wait=False)
        code, text = second.runs_out()
        check(code == 1, (code, text))
        check("another" in text.lower() or "already" in text.lower() or "in use" in text.lower(), text)
        check(first.process.poll() is None and first.api("GET", "/api/v1/ready").status == 200)
        check(lab.nft("-s", "list", "table", "inet", "outcall").text == table)
        check(serves(client) and client.curl("http://denied.example.net/").status == 403)


@scenario()
def with_net_admin_and_net_bind_service_alone(lab):
    daemon = lab.daemon(allow("example.com"), wrapper=CAPABILITIES)
    status = open(f"/proc/{daemon.process.pid}/status").read()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff")).split()[1], 16)
    check(effective == 1 << 12 | 1 << 10, hex(effective))
    prober = Prober(lab, "5.10.10.1")
    client = prober.client
    check(serves(client) and client.dig("denied.example.net").status == "NXDOMAIN")
    other = lab.network(daemon, "second")
    check(lab.client(network=other).curl("http://example.com/").status == 200)
    daemon.kill()
    daemon.start()
    wait_for(lambda: serves(client), "service after the restart", 10)
    check(daemon.stop() == 0, daemon.tail(5))
    prober.nothing_left()


@scenario()
def a_missing_capability_is_named(lab):
    for keep, missing in (("+net_bind_service", "NET_ADMIN"), ("+net_admin", "NET_BIND_SERVICE")):
        daemon = lab.daemon(wait=False, wrapper=["setpriv", f"--bounding-set=-all,{keep}", "--inh-caps=-all"])
        code, text = daemon.runs_out()
        check(code == 1 and missing in text.upper(), (code, text))
        check(not lab.tables() and "outcall0" not in lab.links(), (lab.tables(), list(lab.links())))


@scenario()
def without_root_the_start_says_so(lab):
    daemon = lab.daemon(start=False)
    os.chmod(lab.directory, 0o755)
    for root, directories, files in os.walk(daemon.directory):
        for name in directories + files:
            os.chown(os.path.join(root, name), 65534, 65534)
    os.chown(daemon.directory, 65534, 65534)
    daemon.wrapper = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all",
                      "--bounding-set=-all"]
    daemon.start(wait=False)
    code, text = daemon.runs_out()
    check(code == 1 and ("root" in text.lower() or "net_admin" in text.lower()), (code, text))
    check(not lab.tables() and "outcall0" not in lab.links())


def refuses(lab, words, **options):
    """Starts a daemon that must refuse; checks one line with cause, and that nothing stays."""
    daemon = lab.daemon(wait=False, **options)
    code, text = daemon.runs_out()
    check(code == 1, (code, text))
    check(all(word.lower() in text.lower() for word in words), (words, text))
    check(not lab.tables(), lab.tables())
    check("outcall0" not in lab.links() or lab.links()["outcall0"].get("linkinfo", {}).get("info_kind") != "bridge",
          "a bridge stays")
    check(lab.engine.network("outcall-default") is None, "the Docker network stays")
    check(not os.path.exists(daemon.socket), "the socket stays")


@scenario()
def port_53_taken(lab):
    taken = lab.space.socket(socket.AF_INET, socket.SOCK_DGRAM)
    lab.undo(taken.close)
    taken.bind(("0.0.0.0", 53))
    refuses(lab, ["53", "dns"])


@scenario()
def port_8080_taken(lab):
    lab.host_service(8080)
    refuses(lab, ["8080", "proxy"])


@scenario()
def a_resolver_on_the_hosts_loopback_is_no_conflict(lab):
    lab.loopback_resolver()
    lab.daemon(allow("example.com"))
    check(serves(lab.client()))


@scenario()
def bad_rules(lab):
    refuses(lab, ["rules.yaml", "nope", "allw"], rules=[rule("nope", "http.hots == 'x'"), rule("b", "true", "allw")])


@scenario()
def the_bridge_name_taken_by_something_else(lab):
    lab.space.run("ip", "link", "add", "outcall0", "type", "veth", "peer", "name", "peer0")
    refuses(lab, ["outcall0", "bridge"])
    check("outcall0" in lab.links(), "it took away what is not its own")


@scenario()
def bad_flags_exit_2_and_touch_nothing(lab):
    for flags in (["--dns-listen", "host"], ["--dns-port", "0"], ["--dns-port", "x"], ["--proxy-addr", "nope"],
                  ["--subnet-block", "10.200.0.1/16"], ["--subnet-block", "10.0.0.0/25"],
                  ["--subnet-block", "8.8.0.0/16"], ["--agent-perm-rate", "100"], ["--agent-perm-rate", "0/10"],
                  ["--intercept-leaf-ttl-secs", "59"], ["--intercept-body-cap-bytes", "16777217"],
                  ["--on-exit", "maybe"], ["--extra-peers", "10.0.0.0/33"], ["--dns-upstream", "one.one"],
                  ["--bridge", "a-name-longer-than-15"], ["--metrics-addr", "9100"], ["--no-such-flag"]):
        daemon = lab.daemon(wait=False, flags=flags, upstream=None if flags[0] == "--dns-upstream" else UPSTREAM)
        code, text = daemon.runs_out()
        check(code == 2 and flags[0] in text, (flags, code, text))
        if len(flags) > 1:
            check(flags[1] in text, (flags, text))
    check(not lab.tables() and "outcall0" not in lab.links())


@scenario()
def lockdown_closes_before_docker_and_exits(lab):
    daemon = lab.daemon(wait=False, flags=["--lockdown"])
    code, text = daemon.runs_out()
    check(code == 0, text)
    check(("inet", "outcall") in lab.tables(), lab.tables())
    lab.engine.docker("network", "create", "-o", "com.docker.network.bridge.name=outcall0", "sneaky")
    client = lab.client(network="sneaky", dns=UPSTREAM, proxy=False)
    check(client.connects("5.10.11.1", 80, 1) != "connected")
    check(client.dig("example.com", server="1.1.1.1", seconds=1).status is None)
    lab.internet.nothing_for("5.10.11.1", "1.1.1.1")


@scenario()
def check_reports_without_touching_anything(lab):
    good, bad = lab.path("good"), lab.path("bad")
    for directory, text in ((good, '{"version": "1", "rules": [{"id": "a", "condition": "true", "action": "allow"}]}'),
                            (bad, '{"version": "1", "rules": [{"id": "a", "condition": "tru", "action": "allow"}]}')):
        os.makedirs(directory)
        os.chmod(directory, 0o755)
        with open(f"{directory}/r.yaml", "w") as file:
            file.write(text)
    os.chmod(lab.directory, 0o755)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
    for directory, expected in ((good, 0), (bad, 1)):
        done = lab.space.run(*nobody, binary("outcalld"), "--check", "--rules-dir", directory, check=False)
        check(done.code == expected, done)
    check(not lab.tables() and "outcall0" not in lab.links())


@scenario()
def log_levels_and_json(lab):
    all_debug = lab.daemon(env={"RUST_LOG": "outcalld=debug"})
    check("DEBUG" in all_debug.text(), all_debug.tail(5))
    all_debug.stop()
    narrow = lab.daemon(env={"RUST_LOG": "dns=debug"}, rules=allow("example.com"))
    lab.client().dig("example.com")
    wait_for(lambda: "DEBUG" in narrow.text(), "a debug line of dns", 5)
    check(all(" dns" in line for line in narrow.text().splitlines() if "DEBUG" in line), narrow.text())
    narrow.stop()
    as_json = lab.daemon(env={"OUTCALL_LOG_FORMAT": "json"})
    check(all(isinstance(json.loads(line), dict) for line in as_json.text().splitlines() if line.strip()))


@scenario(deadline=120)
def restarts_under_constant_probing_leak_nothing(lab):
    """Ten random ends and starts, with probes on the wire all the time."""
    daemon = lab.daemon(allow("example.com"), flags=["--on-exit", "keep"])
    probers = [Prober(lab, f"5.10.20.{n}") for n in range(1, 4)]
    for turn in range(10):
        if turn % 2:
            daemon.kill()
        else:
            daemon.stop()
        daemon.start()
    for prober in probers:
        prober.nothing_left()
        check(prober.process.poll() is None, "the prober ended")
        wait_for(lambda: serves(prober.client), "service", 10)
