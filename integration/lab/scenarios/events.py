"""Events: what belongs together says so, readers and disks that fail cost no decision, metrics are for the host."""

import json
import os
import signal
import socket
import subprocess
import threading

from daemon import UnixConnection
from harness import *


def events(daemon, query=""):
    """The last events."""
    answer = daemon.api("GET", "/api/v1/events" + query)
    check(answer.status == 200, answer)
    return [json.loads(line) for line in answer.body.splitlines()]


def metric(daemon, name):
    """Sum of all samples of a metric."""
    text = daemon.api("GET", "/metrics").body
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines()
               if line.startswith((name + " ", name + "{")))


def stalled(daemon):
    """A reader that follows and never reads."""
    connection = UnixConnection(daemon.socket)
    connection.request("GET", "/api/v1/events?follow=true")
    return connection


@scenario()
def one_attempt_has_one_flow_through_all_layers(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    client.dig("example.com")
    client.curl("https://example.com/", "-k")
    client.dig("denied.example.net")

    def seen():
        found = events(daemon, f"?container={client.name}")
        ended = any(event["reason"] == "closed" for event in found)
        return found if ended and any(event.get("host") == "denied.example.net" for event in found) else None

    found = wait_for(seen, "the events", 10)
    mine = [event for event in found if event.get("host") == "example.com"]
    check({event["layer"] for event in mine} == {"dns", "proxy"}, mine)
    check({"CONNECT"} <= {event.get("method") for event in mine}, mine)
    check(len({event["flow"] for event in mine}) == 1, mine)
    denied = [event for event in found if event.get("host") == "denied.example.net"]
    check(denied[0]["flow"] != mine[0]["flow"] and denied[0]["verdict"] == "block", denied)
    check(all(event["container"] == client.name and event["container_id"] for event in found), found)


@scenario()
def a_dropped_packet_belongs_to_the_answer_that_gave_its_address(lab):
    daemon = lab.daemon(allow("a.example.com"))
    lab.internet.names.set("a.example.com", "5.20.0.7")
    client = lab.client()
    client.dig("a.example.com")
    check(client.connects("5.20.0.7", 7000, 1) != "connected")

    def dropped():
        kernel = [event for event in events(daemon, "?verdict=block") if event["layer"] == "kernel"]
        return next((event for event in kernel if event.get("ip") == "5.20.0.7"), None)

    drop = wait_for(dropped, "the drop", 10)
    asked = next(event for event in events(daemon, "?verdict=allow") if event["layer"] == "dns")
    check(drop["container"] == client.name and drop["port"] == 7000, drop)
    check(drop["flow"] == asked["flow"], (drop, asked))


@scenario()
def stalled_readers_and_a_full_disk_cost_no_decision(lab):
    daemon = lab.daemon(allow("a.example.com"), start=False)
    lab.internet.names.set("a.example.com", "5.20.0.7")
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", daemon.state_dir]
    subprocess.run([*lab.space.enter(), *mount], check=True)
    try:
        daemon.start()
        client = lab.client()
        readers = [stalled(daemon) for _ in range(10)]
        follower = UnixConnection(daemon.socket)
        follower.request("GET", f"/api/v1/events?follow=true&verdict=block&container={client.name}")
        stream = follower.getresponse()
        check(stream.status == 200)
        load = "for n in $(seq 150); do dig +tries=1 +time=2 @10.200.0.1 no$n.example.net | grep -c NXDOMAIN; done"
        answers = client.sh(load).text.split()
        check(answers.count("1") == 150, (answers.count("1"), answers[:5]))
        check(client.dig("a.example.com").addresses)
        wait_for(lambda: metric(daemon, 'outcall_events_lost_total{where="disk"}') > 0, "lines lost to the disk", 10)
        check(metric(daemon, 'outcall_events_lost_total{where="channel"}') == 0)
        said = [line for line in daemon.text().splitlines() if "cannot write" in line and "decisions.jsonl" in line]
        check(len(said) == 1, said)
        hosts = [json.loads(stream.readline())["host"] for _ in range(150)]
        check(hosts == [f"no{number}.example.net" for number in range(1, 151)], hosts[:3])
        for connection in [*readers, follower]:
            connection.close()
        daemon.stop()
    finally:
        subprocess.run([*lab.space.enter(), "umount", "-l", daemon.state_dir], check=False)


@scenario()
def metrics_are_for_the_host_and_not_for_containers(lab):
    daemon = lab.daemon(allow("a.example.com"), flags=["--metrics-addr", "0.0.0.0:9100"])
    client = lab.client()
    client.dig("a.example.com")
    text = lab.space.run("curl", "-sS", "-m", "5", "http://127.0.0.1:9100/metrics").text
    check('outcall_decisions_total{layer="dns",verdict="allow",rule="allow-a.example.com"} 1' in text, text[:2000])
    check("process_resident_memory_bytes" in text and "outcall_grants 0" in text, text[:2000])
    for address in (GATEWAY, "127.0.0.1"):
        check(client.connects(address, 9100, 1) != "connected", address)
    through = client.curl(f"http://{GATEWAY}:9100/metrics")
    check(through.status in (403, 502) and "outcall_decisions" not in through.text, through)
    check(metric(daemon, "outcall_dns_queries_total") >= 1)


@scenario()
def a_refused_metrics_address_stops_the_start(lab):
    daemon = lab.daemon(flags=["--metrics-addr", f"{GATEWAY}:9100"], start=False)
    daemon.start(wait=False)
    code, text = daemon.runs_out()
    check(code == 1 and "the containers' networks" in text, (code, text[-500:]))


# Gets two listening sockets over a Unix socket and becomes the daemon with them, as a service manager starts it.
ACTIVATE = '''
import os, socket, sys
manager = socket.socket(socket.AF_UNIX); manager.connect(sys.argv[1])
message, sockets, _, _ = socket.recv_fds(manager, 16, 2)
for want, have in zip((13, 14), sockets):
    os.dup2(have, want)
for want, have in zip((3, 4), (13, 14)):
    os.dup2(have, want, inheritable=True)
os.closerange(5, 64)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="host:agent")
os.execvp(sys.argv[2], sys.argv[2:])
'''


def listening(path, mode):
    """A Unix socket as systemd makes it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    made = socket.socket(socket.AF_UNIX)
    made.bind(path)
    os.chmod(path, mode)
    made.listen(64)
    return made


@scenario()
def systemd_is_told_and_its_sockets_outlive_a_restart(lab):
    told_path, manager_path = lab.path("notify"), lab.path("manager")
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(told_path)
    told.settimeout(20)
    daemon = lab.daemon(start=False, env={"NOTIFY_SOCKET": told_path, "WATCHDOG_USEC": "1000000"},
                        wrapper=["/usr/bin/python3", "-c", ACTIVATE, manager_path])
    flag = f"{daemon.directory}/agent/agent.sock"
    inner = f"{daemon.directory}/agent/agent/agent.sock"
    sockets = [listening(daemon.socket, 0o660), listening(inner, 0o666)]
    manager = listening(manager_path, 0o600)

    def hand_over():
        while True:
            try:
                connection, _ = manager.accept()
            except OSError:
                return
            socket.send_fds(connection, [b"x"], [each.fileno() for each in sockets])

    threading.Thread(target=hand_over, daemon=True).start()

    def hear(word):
        while True:
            lines = told.recv(4096).decode().splitlines()
            if word in lines:
                return lines

    def inode(path):
        return os.stat(path).st_ino

    was = inode(daemon.socket), inode(inner)
    daemon.start()
    hear("READY=1")
    hear("WATCHDOG=1")
    hear("WATCHDOG=1")
    check(inode(flag) == inode(inner))
    daemon.send(signal.SIGHUP)
    check(any(line.startswith("MONOTONIC_USEC=") for line in hear("RELOADING=1")))
    hear("READY=1")
    daemon.stop()
    hear("STOPPING=1")
    check((inode(daemon.socket), inode(inner)) == was and inode(flag) == was[1])

    # A client that comes meanwhile waits, and is served by the next daemon.
    early = UnixConnection(daemon.socket, timeout=30)
    early.request("GET", "/api/v1/health")
    daemon.start(wait=False)
    check(early.getresponse().status in (200, 503))
    daemon.wait_ready()
    check(inode(flag) == was[1])
    for each in (*sockets, manager, told):
        each.close()
