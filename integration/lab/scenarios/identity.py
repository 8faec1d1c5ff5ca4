"""Who is asking: rules by container, and containers that try to be another one."""

from concurrent.futures import ThreadPoolExecutor

from harness import *


def alpha_only():
    """example.com for containers named alpha, nothing for the rest."""
    return [rule("alpha", '(http.host == "example.com" || dns.query == "example.com") && agent.name == "alpha"')]


@scenario()
def rules_by_agent_name_and_container(lab):
    lab.daemon(alpha_only() + [
        rule("exact", '(http.host == "github.com" || dns.query == "github.com") && agent.container == "alpha-2"')])
    one, two, other = lab.client(name="alpha-1"), lab.client(name="alpha-2"), lab.client(name="alphabet")
    for client, expected in ((one, (200, 403)), (two, (200, 200)), (other, (403, 403))):
        seen = tuple(client.curl(f"http://{host}/").status for host in ("example.com", "github.com"))
        check(seen == expected, (client.name, seen))
        code = client.dig("example.com").status
        check(code == ("NOERROR" if expected[0] == 200 else "NXDOMAIN"), (client.name, code))


@scenario()
def the_first_request_of_a_new_container_is_not_early(lab):
    lab.daemon(alpha_only())
    for number in range(5):
        name = f"alpha-{number}"
        client = lab.client(name=name, command=(
            "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://example.com/first"))
        wait_for(lambda: not client.details["State"]["Running"], "the client to end", 10)
        check(lab.engine.docker("logs", name).text == "200", lab.engine.docker("logs", name))


@scenario(deadline=120)
def twenty_containers_started_at_once_all_get_their_first_answer(lab):
    lab.daemon([rule("dns", 'dns.query == "example.com" && agent.name == "burst"')])
    with ThreadPoolExecutor(20) as pool:
        clients = list(pool.map(lambda n: lab.client(name=f"burst-{n}", command=(
            "sh", "-c", "dig +short +tries=1 +time=5 @10.200.0.1 example.com")), range(20)))
    for client in clients:
        wait_for(lambda: not client.details["State"]["Running"], client.name, 30)
        seen = lab.engine.docker("logs", client.name).text.strip()
        check(seen == "93.184.216.34", (client.name, seen))


@scenario(deadline=120)
def twenty_containers_that_send_from_their_first_instruction_reach_nothing(lab):
    lab.daemon([rule("all", "true")])
    near = lab.client()
    script = ("import sys; sys.path.insert(0, '/lab/inside'); from net import *\n"
              "for _ in range(30):\n"
              " udp('5.7.1.1', 443, b'outcall-lab-secret', 0.01); tcp('5.7.1.1', 80, 0.02)\n"
              f" tcp('{lab.host_ip}', 2200, 0.02); udp('{near.ip}', 9000, b'outcall-lab-secret', 0.01)\n")
    service = lab.host_service(2200)
    catcher = near.start("/usr/bin/python3", "-c",
                         "import sys; sys.path.insert(0, '/lab/inside'); from net import *\n"
                         "open('/tmp/ready','w').close()\n"
                         "open('/tmp/seen','w').write(repr(sniff(12, b'outcall-lab-secret')))")
    wait_for(lambda: near.run("test", "-e", "/tmp/ready").code == 0, "the sniffer", 5)
    with ThreadPoolExecutor(20) as pool:
        clients = list(pool.map(lambda n: lab.client(command=("/usr/bin/python3", "-c", script)), range(20)))
    for client in clients:
        wait_for(lambda: not client.details["State"]["Running"], client.name, 60)
    catcher.wait(30)
    lab.internet.nothing_for("5.7.1.1")
    check(not lab.internet.packets.carrying(b"outcall-lab-secret") and not service.visits)
    check(near.sh("cat /tmp/seen").text == "[]", near.sh("cat /tmp/seen").text[:500])


@scenario()
def a_forged_source_address_borrows_no_rules(lab):
    """beta writes alpha's address into its packets: nothing of it may reach DNS, proxy or the world."""
    daemon = lab.daemon(alpha_only())
    alpha, beta = lab.client(name="alpha-1"), lab.client(name="beta-1")
    check(alpha.curl("http://example.com/").status == 200)
    lab.internet.reset()
    daemon.api("POST", "/api/v1/dns/cache/flush")
    before = daemon.api("GET", "/api/v1/dns").data["queries_total"]
    beta.py('''
import dns.message
gateway = mac_of(GATEWAY)
query = dns.message.make_query("example.com", "A").to_wire()
for source_mac in (None, mac(victim_mac)):
    for _ in range(3):
        send_frame(gateway, 0x0800, ipv4(victim, GATEWAY, 17, udp_packet(victim, GATEWAY, 4000, 53, query)), source_mac)
        send_frame(gateway, 0x0800, ipv4(victim, GATEWAY, 6, tcp_packet(victim, GATEWAY, 4001, 8080)), source_mac)
        send_frame(gateway, 0x0800, ipv4("5.7.0.9", GATEWAY, 17, udp_packet("5.7.0.9", GATEWAY, 4000, 53, query)), source_mac)
        send_frame(gateway, 0x0800, ipv4(GATEWAY, GATEWAY, 17, udp_packet(GATEWAY, GATEWAY, 4000, 53, query)), source_mac)
        send_frame(gateway, 0x0800, ipv4("127.0.0.1", GATEWAY, 17, udp_packet("127.0.0.1", GATEWAY, 4000, 53, query)), source_mac)
time.sleep(0.5)
''', victim=alpha.ip, victim_mac=alpha.mac)
    lab.internet.not_asked("example.com")
    after = daemon.api("GET", "/api/v1/dns").data["queries_total"]
    check(after == before, (before, after))


@scenario()
def an_added_address_borrows_no_rules(lab):
    """With NET_ADMIN the container can take another's address for itself: it then reaches nothing."""
    lab.daemon(alpha_only())
    alpha = lab.client(name="alpha-1")
    beta = lab.client(name="beta-1", flags=["--cap-add", "NET_ADMIN"])
    address = alpha.ip
    lab.engine.docker("pause", alpha.name)
    beta.sh(f"ip addr flush dev eth0; ip addr add {address}/24 dev eth0; ip link set eth0 up; "
            f"ip route add default via {beta.gateway}")
    seen = beta.curl("http://example.com/", seconds=4)
    check(seen.exit != 0 and seen.status == 0, seen)
    check(beta.dig("example.com", seconds=2).status is None)
    beta.sh(f"ip link set eth0 down; ip link set eth0 address {alpha_mac(lab, alpha)}; ip link set eth0 up; "
            f"ip route add default via {beta.gateway}")
    seen = beta.curl("http://example.com/", seconds=4)
    check(seen.exit != 0 and seen.status == 0, seen)
    lab.internet.not_asked("example.com")
    lab.engine.docker("unpause", alpha.name)
    check(wait_for(lambda: alpha.curl("http://example.com/", seconds=4).status == 200, "alpha again", 15))


def alpha_mac(lab, container):
    """The MAC of a container that may be paused."""
    return lab.engine.inspect(container.name)["NetworkSettings"]["Networks"][DEFAULT_NETWORK]["MacAddress"]


@scenario()
def forged_arp_moves_nobodys_traffic(lab):
    lab.daemon(alpha_only())
    alpha, beta = lab.client(name="alpha-1"), lab.client(name="beta-1")
    check(alpha.curl("http://example.com/").status == 200)
    neighbours = lab.space.run("ip", "neigh", "show", alpha.ip).text
    before = alpha.sh("cat /proc/net/arp").text
    beta.py('''
me, _ = own()
gateway = mac_of(GATEWAY)
for _ in range(20):
    for operation in (1, 2):
        # tell the host that we are alpha; tell alpha and all that we are the gateway; gratuitous ones
        send_frame(gateway, 0x0806, arp(operation, me, victim, gateway, GATEWAY))
        send_frame(BROADCAST, 0x0806, arp(operation, me, victim, BROADCAST, victim))
        send_frame(mac(victim_mac), 0x0806, arp(operation, me, GATEWAY, mac(victim_mac), victim))
        send_frame(BROADCAST, 0x0806, arp(operation, me, GATEWAY, BROADCAST, GATEWAY))
        send_frame(BROADCAST, 0x0806, arp(operation, mac(victim_mac), victim, BROADCAST, GATEWAY), mac(victim_mac))
    time.sleep(0.01)
''', victim=alpha.ip, victim_mac=alpha.mac)
    host_view = lab.space.run("ip", "neigh", "show", alpha.ip).text
    check(beta.mac not in host_view, (neighbours, host_view))
    after = alpha.sh("cat /proc/net/arp").text
    check(beta.mac not in after, (before, after))
    check(alpha.curl("http://example.com/").status == 200)
    check(beta.curl("http://example.com/").status == 403)


@scenario()
def a_flood_of_macs_stays_out_of_the_bridge(lab):
    lab.daemon(alpha_only())
    alpha, beta = lab.client(name="alpha-1"), lab.client(name="beta-1")
    beta.py('''
import os
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
    raw.bind(("eth0", 0))
    for _ in range(3000):
        source = b"\\x02" + os.urandom(5)
        raw.send(BROADCAST + source + b"\\x08\\x00" + ipv4("10.200.0.77", "10.200.0.78", 17, b"x" * 8))
''')
    entries = lab.space.run("bridge", "fdb", "show", "br", "outcall0").text.splitlines()
    check(len(entries) < 40, len(entries))
    check(alpha.curl("http://example.com/").status == 200)


@scenario()
def an_address_that_passes_on_carries_nothing_over(lab):
    lab.daemon(alpha_only())
    alpha = lab.client(name="alpha-1")
    address = alpha.ip
    check(alpha.curl("http://example.com/").status == 200)
    alpha.remove()
    beta = lab.client(name="beta-1")
    check(beta.ip == address, (beta.ip, address))
    check(beta.curl("http://example.com/").status == 403)
    check(beta.dig("example.com").status == "NXDOMAIN")


@scenario()
def a_renamed_container_is_judged_by_its_new_name(lab):
    lab.daemon(alpha_only())
    client = lab.client(name="alpha-1")
    check(client.curl("http://example.com/").status == 200)
    lab.engine.docker("rename", "alpha-1", "beta-1")
    client.name = "beta-1"
    wait_for(lambda: client.curl("http://example.com/").status == 403, "the new name to count", 5)


@scenario()
def a_container_connected_later_is_known_and_one_disconnected_is_gone(lab):
    lab.daemon(alpha_only())
    client = lab.client(network="none", name="alpha-1", dns=None, proxy=False)
    lab.engine.docker("network", "disconnect", "none", "alpha-1")
    lab.engine.docker("network", "connect", DEFAULT_NETWORK, "alpha-1")
    seen = client.run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-x", f"http://{GATEWAY}:8080",
                      "http://example.com/")
    check(seen.text == "200" or seen.text == "000", seen)
    lab.engine.docker("network", "disconnect", DEFAULT_NETWORK, "alpha-1")
    check(client.connects(GATEWAY, 8080, 1) != "connected")


@scenario()
def a_second_unmanaged_network_is_reported(lab):
    daemon = lab.daemon(alpha_only())
    client = lab.client(name="alpha-1")
    lab.engine.docker("network", "create", "open")
    lab.engine.docker("network", "connect", "open", "alpha-1")
    wait_for(lambda: "alpha-1" in str(daemon.api("GET", "/api/v1/ready").body), "/ready to warn", 5)
    wait_for(lambda: "alpha-1" in daemon.text(), "the log to warn", 5)
    check(client.curl("http://example.com/").status in (0, 200))


@scenario()
def the_operator_socket_knows_the_containers(lab):
    daemon = lab.daemon(alpha_only())
    client = lab.client(name="alpha-1")

    def listed():
        data = daemon.api("GET", f"/api/v1/network?name={DEFAULT_NETWORK}").data
        return [(c["name"], c["ipv4_address"].split("/")[0]) for c in data["containers"]]

    wait_for(lambda: ("alpha-1", client.ip) in listed(), "the container in the network's list", 5)
    client.remove()
    wait_for(lambda: not listed(), "the container to be gone", 5)
