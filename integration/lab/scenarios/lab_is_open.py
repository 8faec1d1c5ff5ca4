"""The lab itself, without Outcall: everything that later scenarios forbid does work here.

A denial means nothing on a network where the packet would not have arrived anyway.
"""

from harness import *


@scenario(needs_daemon=False)
def every_probe_arrives_through_dockers_own_bridge(lab):
    client = lab.client(network="bridge", dns=UPSTREAM, proxy=False)
    net = lab.internet
    check(client.connects("5.5.0.1", 22) == "connected")
    check(net.connections("5.5.0.1", dport=22))
    check(client.dig("example.com", server="1.1.1.1").addresses == ["93.184.216.34"])
    check(client.dig("example.com", "A", "+tcp", server="1.1.1.1").addresses == ["93.184.216.34"])
    client.py('''
udp("5.5.0.2", 443, b"quic-probe")
_, me = own()
send_ip(ipv4(me, "5.5.0.3", 1, icmp_echo()), "5.5.0.3")
send_ip(ipv4(me, "5.5.0.4", 132, sctp_init(5000, 5000)), "5.5.0.4")
send_ip(ipv4(me, "5.5.0.5", 47, b"gre-probe"), "5.5.0.5")
''')
    for address, protocol in (("5.5.0.2", 17), ("5.5.0.3", 1), ("5.5.0.4", 132), ("5.5.0.5", 47)):
        wait_for(lambda: net.packets.to(address, protocol=protocol), f"protocol {protocol}", 3)
    check(client.connects("169.254.169.254", 80) == "connected")
    response = client.curl("http://example.com/hello?x=1")
    check(response.status == 200 and response.json["target"] == "/hello?x=1", response)
    response = client.curl("https://www.example.com/")
    check(response.status == 200, response)
    check(net.origin.requests(sni="www.example.com"))


@scenario(needs_daemon=False)
def the_hosts_service_is_reached_from_dockers_own_bridge(lab):
    service = lab.host_service(2200)
    client = lab.client(network="bridge", dns=UPSTREAM, proxy=False)
    for address in (client.gateway, lab.host_ip, lab.host_other_ip):
        check(client.connects(address, 2200) == "connected", address)
    wait_for(lambda: len(service.visits) == 3, "three visits", 3)
    other = lab.client(network="bridge", dns=UPSTREAM, proxy=False)
    check(client.connects(other.ip, 9999) == "refused")


@scenario(needs_daemon=False)
def ipv6_leaves_an_open_network(lab):
    lab.engine.docker("network", "create", "--ipv6", "--subnet", "fd00:77::/64", "six")
    client = lab.client(network="six", dns=UPSTREAM, proxy=False)
    check(client.connects("2606:4700::1111", 80, 8) == "connected")
    check(lab.internet.packets.to("2606:4700::1111"))


@scenario(needs_daemon=False)
def real_clients_run_in_the_tools_image(lab):
    client = lab.client(network="bridge", dns=UPSTREAM, proxy=False)
    for command in ("curl --version", "wget --version", "dig -v", "git --version", "node --version",
                    "/usr/bin/python3 -c 'import requests, dns.message, websocket'",
                    "node -e 'require(\"undici\")'"):
        result = client.sh(command)
        check(result.code == 0, result)


@scenario(needs_daemon=False)
def dockers_embedded_resolver_walks_past_the_container(lab):
    """A host with its resolver on loopback: Docker asks it for the container, from the host."""
    lab.loopback_resolver()
    lab.engine.docker("network", "create", "plain")
    client = lab.client(network="plain", dns=None, proxy=False)
    check("127.0.0.11" in client.sh("cat /etc/resolv.conf").text)
    check(client.dig("example.com", server="127.0.0.11").addresses == ["93.184.216.34"])
    check(lab.internet.names.asked("example.com"))


@scenario(needs_daemon=False)
def the_internet_remembers_and_misbehaves_as_told(lab):
    client = lab.client(network="bridge", dns=UPSTREAM, proxy=False)
    names = lab.internet.names
    names.on("rebind.test", lambda q: q.answer(("A", "9.9.1.1" if q.count == 1 else "10.0.0.1"), ttl=0))
    check(client.dig("rebind.test", server="8.8.8.8").addresses == ["9.9.1.1"])
    check(client.dig("rebind.test", server="8.8.8.8").addresses == ["10.0.0.1"])
    names.set("many.test", *[f"9.9.2.{n}" for n in range(1, 200)])
    udp = client.dig("many.test", "A", "+ignore", "+bufsize=512", server="8.8.8.8")
    check("tc" in udp.flags and not udp.addresses, udp)
    check(len(client.dig("many.test", server="8.8.8.8").addresses) == 199)
    check(len(names.asked("rebind.test")) == 2)
    response = client.curl("http://93.184.216.34/chunked/1000000")
    check(len(response.body) == 1000000, response)
