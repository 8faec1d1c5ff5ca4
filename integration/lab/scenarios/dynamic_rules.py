"""Flows that an operator opens by hand: `rules active`, `rules flush`, `rule/allow`, and what outlives what."""

import json
import os
import time

from harness import *
from scenarios.grants import direct, ended, flows, running_flow, tracked

FIELDS = {"container", "destination", "port", "protocol", "nft_handle", "inserted_at", "expires_in_secs", "packets",
          "bytes"}


def body(client, destination, port=7000, **fields):
    """What POST /rule/allow takes."""
    return {"container": client.name, "src_ip": client.ip, "destination": destination, "protocol": "tcp", "port": port,
            **fields}


def allow_by_hand(daemon, client, destination, port=7000, **fields):
    """Opens a flow; gives the row that was answered."""
    seen = daemon.api("POST", "/api/v1/rule/allow", body(client, destination, port, **fields))
    check(seen.status == 201, seen)
    return seen.data


def kept(daemon):
    """The records of dynamic-rules.json."""
    try:
        with open(f"{daemon.state_dir}/dynamic-rules.json") as file:
            return [(record["container"], record["destination"], record["port"]) for record in json.load(file)["grants"]]
    except FileNotFoundError:
        return []


@scenario()
def a_flow_opened_by_hand_is_listed_counted_and_ends_with_a_flush(lab):
    daemon = lab.daemon([direct("git.example.com")])
    lab.internet.names.set("git.example.com", "5.45.0.2")
    client, other = lab.client(name="alpha-1"), lab.client(name="beta-1")
    check(client.connects("5.45.0.1", 7000, 1) != "connected")
    lab.internet.nothing_for("5.45.0.1")
    row = allow_by_hand(daemon, client, "5.45.0.1", expires_in_secs=600)
    check(set(row) == FIELDS and row["container"] == "alpha-1" and row["expires_in_secs"] in (599, 600), row)
    client.dig("git.example.com")
    count = running_flow(lab, client, "5.45.0.1", 7000)
    check(other.connects("5.45.0.1", 7000, 1) != "connected")
    check(client.connects("5.45.0.1", 7001, 1) != "connected")
    check(len(lab.internet.connections("5.45.0.1")) == 1, lab.internet.connections("5.45.0.1"))

    rows = daemon.api("GET", "/api/v1/rules/active").data
    check([(r["destination"], r["protocol"], r["port"]) for r in rows]
          == [("5.45.0.1", "tcp", 7000), ("5.45.0.2", "tcp", 7000)], rows)
    check(all(set(r) == FIELDS and r["inserted_at"].endswith("Z") for r in rows), rows)
    check(rows[0]["packets"] > 0 and rows[0]["bytes"] > rows[0]["packets"], rows)
    check(f"# handle {rows[0]['nft_handle']}\n" in lab.nft("-a", "list", "set", "inet", "outcall", "direct4").text, rows)
    shown = daemon.cli("rules", "active")
    check(shown.code == 0 and "alpha-1" in shown.text and "5.45.0.1" in shown.text, shown)
    listed = json.loads(daemon.cli("rules", "active", "--json").text)
    check([r["destination"] for r in listed] == ["5.45.0.1", "5.45.0.2"], listed)
    check(any('"reason":"operator"' in line and "5.45.0.1" in line
              for line in open(f"{daemon.state_dir}/decisions.jsonl")), "the operator's word is in the decision log")

    daemon.reload([])
    before = count()
    wait_for(lambda: count() > before, "the flow to outlive a reload, which took no rule of it away", 2)
    check(kept(daemon) == [("alpha-1", "5.45.0.1", 7000)], kept(daemon))
    done = daemon.cli("rules", "flush")
    since = time.monotonic()
    check(done.code == 0 and done.text.startswith("Closed 1 direct flow;"), done)
    ended(count, since)
    check(flows(lab) == {} and kept(daemon) == [] and not tracked(lab, "5.45.0.1"))
    check(daemon.api("POST", "/api/v1/rules/flush").data == {"removed": 0})
    check(daemon.api("GET", "/api/v1/rules/active").data == [])


@scenario()
def what_may_not_be_opened_by_hand_is_refused_with_the_reason(lab):
    daemon = lab.daemon()
    client, other = lab.client(name="alpha-1"), lab.client(name="beta-1")
    for expected, word, fields in (
            (404, "nobody", {"container": "nobody"}), (409, client.ip, {"src_ip": other.ip}),
            (409, client.ip, {"src_ip": "10.200.0.250"}), (422, "special-purpose", {"destination": "10.9.9.9"}),
            (422, "special-purpose", {"destination": "169.254.169.254"}),
            (422, "special-purpose", {"destination": other.ip}), (422, "special-purpose", {"destination": GATEWAY}),
            (422, "special-purpose", {"destination": "127.0.0.1"}), (422, "special-purpose", {"destination": "224.0.0.1"}),
            (422, "IPv6", {"destination": "2606:4700::1111"}), (422, "own address", {"destination": lab.host_ip}),
            (400, "destination", {"destination": "example.com"}), (400, "protocol", {"protocol": "icmp"}),
            (400, "port", {"port": 0}), (400, "65536", {"port": 65536}), (400, "expires", {"expires_in_secs": 0}),
            (400, "expires", {"expires_in_secs": 86401}), (400, "more", {"more": 1})):
        seen = daemon.api("POST", "/api/v1/rule/allow", {**body(client, "5.45.1.1"), **fields})
        check(seen.status == expected and word in seen.error, (fields, seen))
    check(daemon.api("POST", "/api/v1/rule/allow", "{").status == 400)
    check(daemon.cli("rules", "allow", "nobody", "5.45.1.1", "443").code == 2)
    check(daemon.cli("rules", "allow", "alpha-1", "10.9.9.9", "443").code == 1)
    check(flows(lab) == {} and kept(daemon) == [])
    check(daemon.cli("bridge", "down").code == 0)
    seen = daemon.api("POST", "/api/v1/rule/allow", body(client, "5.45.1.1"))
    check(seen.status == 409 and "bridge up" in seen.error, seen)


@scenario(deadline=90)
def a_flow_opened_by_hand_comes_back_for_the_same_container_only(lab):
    daemon = lab.daemon(flags=["--on-exit", "keep"])
    same, gone, restarted = (lab.client(name=name) for name in ("same-1", "gone-1", "restarted-1"))
    address = gone.ip
    for client in (same, gone, restarted):
        done = daemon.cli("rules", "allow", client.name, "5.45.2.1", "7000", "--expires-in-secs", "600")
        check(done.code == 0, done)
    allow_by_hand(daemon, same, "5.45.2.2", expires_in_secs=1)
    check(len(kept(daemon)) == 4, kept(daemon))
    check(os.stat(f"{daemon.state_dir}/dynamic-rules.json").st_mode & 0o777 == 0o600)
    lab.engine.docker("restart", "-t", "0", restarted.name)
    wait_for(lambda: restarted.name not in {r[0] for r in kept(daemon)}, "the grant to end with the container's life", 5)
    wait_for(lambda: "5.45.2.2" not in {key[1] for key in flows(lab)}, "the short one to expire", 5)
    daemon.kill()
    gone.remove()
    heir = lab.client(name="gone-1", flags=("--ip", address))
    check(heir.ip == address, heir.ip)
    daemon.start()
    wait_for(lambda: {key[:2] for key in flows(lab)} == {(same.ip, "5.45.2.1")}, "what is kept to be open again", 3)
    check(same.connects("5.45.2.1", 7000) == "connected")
    check(heir.connects("5.45.2.1", 7000, 1) != "connected")
    check(restarted.connects("5.45.2.1", 7000, 1) != "connected")
    check(len(lab.internet.connections("5.45.2.1")) == 1, lab.internet.connections("5.45.2.1"))
    wait_for(lambda: kept(daemon) == [("same-1", "5.45.2.1", 7000)], "the file to have only what is open", 3)
    rows = daemon.api("GET", "/api/v1/rules/active").data
    check([r["container"] for r in rows] == ["same-1"] and 500 < rows[0]["expires_in_secs"] <= 600, rows)

    check(daemon.cli("rules", "flush").code == 0)
    daemon.stop()
    daemon.start()
    check(flows(lab) == {} and same.connects("5.45.2.1", 7000, 1) != "connected")


@scenario()
def a_damaged_dynamic_rules_file_is_kept_and_said(lab):
    daemon = lab.daemon(flags=["--on-exit", "keep"])
    client = lab.client(name="alpha-1")
    allow_by_hand(daemon, client, "5.45.3.1")
    daemon.stop()
    path = f"{daemon.state_dir}/dynamic-rules.json"
    damaged = open(path).read()[:-4]
    open(path, "w").write(damaged)
    daemon.start()
    aside = [name for name in os.listdir(daemon.state_dir) if name.startswith("dynamic-rules.json.damaged-")]
    check(len(aside) == 1 and open(f"{daemon.state_dir}/{aside[0]}").read() == damaged, aside)
    check(aside[0] in daemon.api("GET", "/api/v1/ready").body, "said by /ready")
    check(flows(lab) == {} and client.connects("5.45.3.1", 7000, 1) != "connected")
    allow_by_hand(daemon, client, "5.45.3.1")
    check(client.connects("5.45.3.1", 7000) == "connected")


@scenario()
def bridge_down_is_not_ready_and_takes_flows_opened_by_hand_away(lab):
    daemon = lab.daemon()
    client = lab.client(name="alpha-1")
    allow_by_hand(daemon, client, "5.45.4.1")
    count = running_flow(lab, client, "5.45.4.1", 7000)
    check(daemon.cli("bridge", "down").code == 0)
    ended(count, time.monotonic())
    seen = daemon.api("GET", "/api/v1/ready")
    check(seen.status == 503 and "bridges are down" in seen.error and seen.data["ready"] is False, seen)
    # A snapshot that comes meanwhile does not make it ready.
    daemon.reload([])
    check(daemon.api("GET", "/api/v1/ready").status == 503)
    bare = daemon.cli()
    check("not ready" in bare.text and "outcall bridge up" in bare.text, bare)
    check(daemon.cli("bridge", "up").code == 0)
    check(daemon.api("GET", "/api/v1/ready").status == 200)
    check(flows(lab) == {} and kept(daemon) == [])
    wait_for(lambda: client.dig("example.com").status == "NXDOMAIN", "DNS to be back", 10)
    check(client.connects("5.45.4.1", 7000, 1) != "connected")


@scenario()
def udp_is_opened_by_hand_too_and_ends_with_the_container(lab):
    daemon = lab.daemon()
    client = lab.client(name="alpha-1")
    address = client.ip
    allow_by_hand(daemon, client, "5.45.5.1", 7000, protocol="udp")
    check(client.connects("5.45.5.1", 7000, 1) != "connected")
    client.py('result = udp("5.45.5.1", 7000, b"opened-by-hand", 0.5)')
    check(lab.internet.packets.carrying(b"opened-by-hand"), "the datagram arrives")
    client.remove()
    wait_for(lambda: not flows(lab) and not kept(daemon), "nothing of it", 5)
    heir = lab.client(name="beta-1", flags=("--ip", address))
    lab.internet.packets.clear()
    heir.py('result = udp("5.45.5.1", 7000, b"opened-by-hand", 0.5)')
    check(not lab.internet.packets.carrying(b"opened-by-hand"))
