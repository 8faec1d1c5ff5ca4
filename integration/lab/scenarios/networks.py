"""Managed networks: making, finding, refusing, removing."""

import hashlib

from harness import *


@scenario()
def the_default_network_is_as_promised(lab):
    daemon = lab.daemon()
    network = lab.engine.network(DEFAULT_NETWORK)
    check(network["Driver"] == "bridge" and not network["EnableIPv6"], network)
    check(network["Options"].get("com.docker.network.bridge.name") == "outcall0", network["Options"])
    check(network["Options"].get("com.docker.network.bridge.enable_ip_masquerade") == "false", network["Options"])
    check(network["IPAM"]["Config"][0]["Subnet"] == "10.200.0.0/24", network["IPAM"])
    data = daemon.api("GET", f"/api/v1/network?name={DEFAULT_NETWORK}").data
    check(data["exists"] and data["gateway"] == "10.200.0.1" and data["bridge"] == "outcall0", data)


@scenario()
def create_list_status_and_destroy(lab):
    daemon = lab.daemon(allow("example.com"))
    made = daemon.api("POST", "/api/v1/network/create", {"name": "team"})
    check(made.status in (200, 201) and made.data["name"] == "outcall-team" and made.data["created"] is True, made)
    again = daemon.api("POST", "/api/v1/network/create", {"name": "team"})
    check(again.data["created"] is False and again.data["network_id"] == made.data["network_id"], again)
    bridge = "oc-" + hashlib.sha256(b"outcall-team").hexdigest()[:10]
    bridges = {bridge, "oc-" + hashlib.sha256(b"team").hexdigest()[:10]}
    check(bridges & set(lab.links()), (bridges, list(lab.links())))
    client = lab.client(network="outcall-team")
    check(client.curl("http://example.com/").status == 200)
    check(client.dig("denied.example.net").status == "NXDOMAIN")
    busy = daemon.api("POST", "/api/v1/network/destroy", {"name": "team"})
    check(busy.status == 409 and client.name in busy.error, busy)
    check(client.curl("http://example.com/").status == 200)
    client.remove()
    gone = wait_for(lambda: (a := daemon.api("POST", "/api/v1/network/destroy", {"name": "team"})).status == 200 and a,
                    "the network to be removable", 5)
    check(gone.data["destroyed"] is True, gone)
    check(lab.engine.network("outcall-team") is None)
    check(not bridges & set(lab.links()))
    names = [n["name"] for n in daemon.api("GET", "/api/v1/networks").data]
    check(names == [DEFAULT_NETWORK], names)


@scenario()
def allocation_looks_at_every_docker_network(lab):
    lab.engine.docker("network", "create", "--subnet", "10.200.1.0/24", "blocker")
    daemon = lab.daemon()
    made = daemon.api("POST", "/api/v1/network/create", {"name": "next"}).data
    check(made["subnet"] == "10.200.2.0/24", made)
    clash = daemon.api("POST", "/api/v1/network/create", {"name": "clash", "subnet": "10.200.1.0/25"})
    check(clash.status == 409 and "blocker" in clash.error, clash)
    chosen = daemon.api("POST", "/api/v1/network/create", {"name": "mine", "subnet": "10.200.50.0/24",
                                                            "gateway": "10.200.50.254"})
    check(chosen.data["gateway"] == "10.200.50.254", chosen)
    client = lab.client(network="outcall-mine")
    check(client.dig("denied.example.net").status == "NXDOMAIN")


@scenario()
def a_full_block_says_so(lab):
    daemon = lab.daemon(flags=["--subnet-block", "10.201.0.0/23"])
    check(daemon.api("POST", "/api/v1/network/create", {"name": "two"}).status in (200, 201))
    full = daemon.api("POST", "/api/v1/network/create", {"name": "three"})
    check(full.status in (409, 503, 500) and "no available subnets in 10.201.0.0/23" in full.error, full)


@scenario()
def networks_and_containers_are_found_again(lab):
    daemon = lab.daemon(allow("example.com"))
    other = lab.network(daemon, "other")
    clients = [lab.client(), lab.client(network=other)]
    daemon.kill()
    daemon.start()
    names = {n["name"] for n in daemon.api("GET", "/api/v1/networks").data}
    check(names == {DEFAULT_NETWORK, other}, names)
    for client in clients:
        wait_for(lambda: client.curl("http://example.com/", seconds=4).status == 200, client.name, 10)
        check(client.dig("denied.example.net").status == "NXDOMAIN")


@scenario()
def a_lookalike_is_refused_and_left_alone(lab):
    lab.engine.docker("network", "create", "--subnet", "10.55.0.0/24", DEFAULT_NETWORK)
    daemon = lab.daemon(wait=False)
    wait_for(lambda: daemon.process.poll() is not None or DEFAULT_NETWORK in daemon.text(), "a word about it", 10)
    check(DEFAULT_NETWORK in daemon.text())
    check(lab.engine.network(DEFAULT_NETWORK)["IPAM"]["Config"][0]["Subnet"] == "10.55.0.0/24")


@scenario()
def a_network_that_somebody_else_made_under_our_prefix_is_not_managed(lab):
    daemon = lab.daemon([rule("all", "true")])
    lab.engine.docker("network", "create", "--subnet", "10.56.0.0/24", "outcall-fake")
    made = daemon.api("POST", "/api/v1/network/create", {"name": "fake"})
    check(made.status == 409, made)
    check("outcall-fake" not in [n["name"] for n in daemon.api("GET", "/api/v1/networks").data])


@scenario()
def another_bridge_name_and_block(lab):
    daemon = lab.daemon(allow("example.com"), bridge="agents0", flags=["--subnet-block", "172.20.0.0/16"])
    client = lab.client()
    check(client.ip.startswith("172.20.0."), client.ip)
    check("agents0" in lab.links() and "outcall0" not in lab.links())
    check(client.curl("http://example.com/").status == 200)
    check(client.connects("5.11.0.1", 80, 1) != "connected")
    lab.internet.nothing_for("5.11.0.1")
    check(daemon.api("GET", "/api/v1/bridge").data["name"] == "agents0")


@scenario()
def the_proxy_may_be_switched_off(lab):
    daemon = lab.daemon([rule("dns-only", 'dns.query == "example.com"')], flags=["--no-proxy"])
    client = lab.client()
    check(client.dig("example.com").addresses == ["93.184.216.34"])
    check(client.connects(client.gateway, 8080, 1) != "connected")
    check("WARN" in daemon.text())
    answer = daemon.write_rules([rule("p", "true", egress={"mode": "proxy"})]) or daemon.api("POST", "/api/v1/rules/reload")
    check(answer.status == 422, answer)
