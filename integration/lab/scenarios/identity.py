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
def a_forged_source_address_uses_no_grant(lab):
    """beta writes alpha's address into packets for what alpha may reach: the far end sees none of them."""
    daemon = lab.daemon()
    alpha, beta = lab.client(name="alpha-1"), lab.client(name="beta-1")
    for protocol in ("tcp", "udp"):
        seen = daemon.api("POST", "/api/v1/rule/allow", {
            "container": "alpha-1", "src_ip": alpha.ip, "destination": "5.47.0.1", "protocol": protocol, "port": 7000})
        check(seen.status == 201, seen)
    forge = '''
gateway = mac_of(GATEWAY)
for source_mac in (None, mac(victim_mac)):
    for address in (victim, "5.47.0.9", GATEWAY):
        for _ in range(3):
            marked = udp_packet(address, "5.47.0.1", 4000, 7000, b"forged-by-beta")
            send_frame(gateway, 0x0800, ipv4(address, "5.47.0.1", 17, marked), source_mac)
            send_frame(gateway, 0x0800, ipv4(address, "5.47.0.1", 6, tcp_packet(address, "5.47.0.1", 4001, 7000)), source_mac)
time.sleep(0.3)
'''
    beta.py(forge, victim=alpha.ip, victim_mac=alpha.mac)
    lab.internet.nothing_for("5.47.0.1")
    check(not lab.internet.packets.carrying(b"forged-by-beta"))
    # alpha, in the same words, is heard: it is the sender that was refused.
    alpha.py(forge.replace("source_mac in (None, mac(victim_mac))", "source_mac in (None,)")
             .replace("(victim, \"5.47.0.9\", GATEWAY)", "(victim,)"), victim=alpha.ip, victim_mac=alpha.mac)
    check(lab.internet.packets.carrying(b"forged-by-beta"))
    rows = daemon.api("GET", "/api/v1/rules/active").data
    check(sorted((row["protocol"], row["packets"] > 0) for row in rows) == [("tcp", True), ("udp", True)], rows)


@scenario()
def nobody_hears_what_is_anothers(lab):
    """beta says over and over that it is alpha, and the gateway; alpha's traffic goes where it always went."""
    daemon = lab.daemon()
    alpha, beta = lab.client(name="alpha-1"), lab.client(name="beta-1")
    seen = daemon.api("POST", "/api/v1/rule/allow", {
        "container": "alpha-1", "src_ip": alpha.ip, "destination": "5.47.1.1", "protocol": "udp", "port": 7000})
    check(seen.status == 201, seen)
    thief = beta.start("/usr/bin/python3", "-c", (
        "import sys, threading; sys.path.insert(0, '/lab/inside'); from net import *\n"
        f"victim, gateway, me = {alpha.ip!r}, {GATEWAY!r}, own()[0]\n"
        "def lie():\n"
        " end = time.monotonic() + 6\n"
        " while time.monotonic() < end:\n"
        "  for address in (victim, gateway):\n"
        "   for operation in (1, 2):\n"
        "    send_frame(BROADCAST, 0x0806, arp(operation, me, address, BROADCAST, address))\n"
        "  time.sleep(0.02)\n"
        "threading.Thread(target=lie).start()\n"
        "open('/tmp/ready', 'w').close()\n"
        "open('/tmp/seen', 'w').write(repr(sniff(6, b'for-the-far-end')))"))
    wait_for(lambda: beta.run("test", "-e", "/tmp/ready").code == 0, "the thief", 5)
    alpha.py('''
for _ in range(40):
    udp("5.47.1.1", 7000, b"for-the-far-end", 0.05)
''')
    thief.wait(20)
    check(beta.sh("cat /tmp/seen").text == "[]", beta.sh("cat /tmp/seen").text[:500])
    check(len(lab.internet.packets.carrying(b"for-the-far-end")) >= 40, len(lab.internet.packets.carrying(b"for-the-far-end")))


@scenario()
def an_open_tunnel_ends_with_its_container(lab):
    """The far end sees the tunnel of the dead container close, and nothing of the one that has its address now."""
    lab.daemon(alpha_only())
    alpha = lab.client(name="alpha-1")
    address = alpha.ip
    alpha.start("/usr/bin/python3", "-c", (
        "import socket, ssl, time\n"
        f"s = socket.create_connection(({GATEWAY!r}, 8080))\n"
        "s.sendall(b'CONNECT example.com:443 HTTP/1.1\\r\\nHost: example.com:443\\r\\n\\r\\n'); s.recv(4096)\n"
        "s = ssl._create_unverified_context().wrap_socket(s, server_hostname='example.com')\n"
        "while True:\n"
        " s.sendall(b'GET /tick HTTP/1.1\\r\\nHost: example.com\\r\\n\\r\\n'); s.recv(4096)\n"
        " open('/tmp/alive', 'w').close(); time.sleep(0.1)\n"))
    wait_for(lambda: alpha.run("test", "-e", "/tmp/alive").code == 0, "the tunnel to run", 10)

    def towards(address):
        sockets = lab.space.run("ss", "-Htn", "state", "established", "dst", address).text.split("\n")
        return [line for line in sockets if line.strip()]

    check(len(towards("93.184.216.34")) == 1, towards("93.184.216.34"))
    alpha.remove()
    wait_for(lambda: not towards("93.184.216.34") and not towards(address), "the tunnel to be closed", 2)
    heir = lab.client(name="beta-1", flags=("--ip", address))
    check(heir.ip == address and heir.curl("https://example.com/").connect_status == 403)
    check(len(lab.internet.connections("93.184.216.34")) == 1, lab.internet.connections("93.184.216.34"))


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
