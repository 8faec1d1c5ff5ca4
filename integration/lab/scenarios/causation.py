"""It is the table that blocks, not a broken route: open it by hand, and the same packet arrives."""

import json
import signal

from harness import *


def head_rule(lab):
    """The handle of the hand-made rule in our forward chain, or None."""
    listed = json.loads(lab.nft("-j", "list", "table", "inet", "outcall").text)["nftables"]
    for item in listed:
        if item.get("rule", {}).get("comment") == "by hand":
            return item["rule"]["handle"]
    return None


@scenario()
def an_accept_rule_by_hand_opens_and_the_daemon_closes_it_again(lab):
    daemon = lab.daemon()
    client = lab.client()
    check(client.connects("5.9.0.1", 80, 1) != "connected")
    lab.internet.nothing_for("5.9.0.1")

    daemon.send(signal.SIGSTOP)
    lab.nft("insert", "rule", "inet", "outcall", "forward", "accept", "comment", '"by hand"')
    seen = client.connects("5.9.0.1", 80, 3)
    check(seen == "connected", f"{seen}: the packet does not arrive even without the table")
    check(lab.internet.connections("5.9.0.1"))

    daemon.send(signal.SIGCONT)
    wait_for(lambda: head_rule(lab) is None, "the plan to be put back", 2)
    check(client.connects("5.9.0.2", 80, 1) != "connected")
    lab.internet.nothing_for("5.9.0.2")


@scenario()
def a_host_service_is_closed_by_the_input_chain_alone(lab):
    daemon = lab.daemon()
    service = lab.host_service(2200)
    client = lab.client()
    check(client.connects(client.gateway, 2200, 1) != "connected")
    daemon.send(signal.SIGSTOP)
    lab.nft("insert", "rule", "inet", "outcall", "input", "accept", "comment", '"by hand"')
    lab.nft("insert", "rule", "inet", "outcall", "output", "accept", "comment", '"by hand"', check=False)
    check(client.connects(client.gateway, 2200, 2) == "connected")
    daemon.send(signal.SIGCONT)
    wait_for(lambda: head_rule(lab) is None, "the plan to be put back", 2)
    check(client.connects(client.gateway, 2200, 1) != "connected")
    check(len(service.visits) == 1, service.visits)


@scenario()
def the_daemons_absence_alone_does_not_open_anything(lab):
    daemon = lab.daemon([rule("all", "true")])
    client = lab.client()
    daemon.send(signal.SIGSTOP)
    check(client.connects("5.9.1.1", 80, 1) != "connected")
    check(client.dig("example.com", server="1.1.1.1", seconds=1).status is None)
    lab.internet.nothing_for("5.9.1.1", "1.1.1.1")
    daemon.send(signal.SIGCONT)
    wait_for(lambda: client.curl("http://example.com/", seconds=5).status == 200, "service again", 10)
