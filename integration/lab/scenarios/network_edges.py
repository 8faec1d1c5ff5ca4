"""The rest of the network around a container: published ports, second networks, the host's own flows."""

from harness import *


@scenario()
def a_published_port_stays_closed_to_the_outside_and_to_the_host(lab):
    lab.daemon([rule("all", "true")])
    client = lab.client(flags=["-p", "9100:9000"])
    server = client.start("/usr/bin/python3", "-m", "http.server", "9000")
    wait_for(lambda: client.connects("127.0.0.1", 9000) == "connected", "the server", 10)

    def reach(space, address, port):
        done = space.run("curl", "-s", "--max-time", "2", "-o", "/dev/null", "-w", "%{http_code}",
                         f"http://{address}:{port}/", check=False)
        return done.text

    check(reach(lab.far, lab.host_ip, 9100) == "000", "from outside")
    check(reach(lab.far, client.ip, 9000) == "000", "from outside, by the container's address")
    check(reach(lab.space, "127.0.0.1", 9100) == "000", "from the host, by docker-proxy")
    check(reach(lab.space, client.ip, 9000) == "000", "from the host, by the container's address")
    other = lab.client()
    for address in (lab.host_ip, other.gateway, lab.host_other_ip):
        check(other.connects(address, 9100, 1) != "connected", address)
    plain = lab.client(network="bridge", dns=UPSTREAM, proxy=False)
    for address, port in ((plain.gateway, 9100), (lab.host_ip, 9100), (client.ip, 9000), (GATEWAY, 9100)):
        # docker-proxy itself may take the connection; what counts is that nothing of the container comes back.
        check(plain.curl(f"http://{address}:{port}/", seconds=2).status == 0, (address, port))
    check(server.poll() is None)


@scenario()
def another_networks_gateway_serves_only_its_own(lab):
    daemon = lab.daemon([rule("all", "true")])
    other = lab.network(daemon, "other")
    here, there = lab.client(), lab.client(network=other)
    check(here.gateway != there.gateway)
    for client, foreign in ((here, there.gateway), (there, here.gateway)):
        check(client.dig("example.com").addresses == ["93.184.216.34"])
        check(client.curl("http://example.com/").status == 200)
        check(client.dig("example.com", server=foreign, seconds=1).status is None)
        check(client.connects(foreign, 8080, 1) != "connected")


@scenario()
def an_unmanaged_container_is_no_peer(lab):
    lab.daemon([rule("all", "true")])
    plain = lab.client(network="bridge", dns=UPSTREAM, proxy=False)
    seen = plain.run("curl", "-s", "--max-time", "4", "-o", "/dev/null", "-w", "%{http_code}", "-x",
                     f"http://{GATEWAY}:8080", "http://example.com/")
    check(seen.text in ("403", "000"), seen)
    check(not lab.internet.origin.requests())
    check(plain.curl("http://example.com/").status == 200, "its own way out is none of our business")


@scenario()
def broadcast_and_multicast_go_nowhere(lab):
    lab.daemon([rule("all", "true")])
    sender, catcher = lab.client(), lab.client()
    process = catcher.start("/usr/bin/python3", "-c",
                            "import sys; sys.path.insert(0, '/lab/inside'); from net import *\n"
                            "open('/tmp/ready','w').close()\n"
                            "open('/tmp/seen','w').write(repr(sniff(2, b'outcall-lab-secret')))")
    wait_for(lambda: catcher.run("test", "-e", "/tmp/ready").code == 0, "the sniffer", 5)
    sender.py('''
for address in ("255.255.255.255", "10.200.0.255", "224.0.0.251", "239.255.255.250", "224.0.0.1"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
        for port in (53, 67, 1900, 5353, 9999):
            try: s.sendto(b"outcall-lab-secret", (address, port))
            except OSError: pass
''')
    process.wait(15)
    check(catcher.sh("cat /tmp/seen").text == "[]")
    check(not lab.internet.packets.carrying(b"outcall-lab-secret"))


@scenario()
def a_route_through_another_container_does_not_help(lab):
    """A second container as a router, a host route past the gateway, a source route: nothing leaves."""
    lab.daemon([rule("all", "true")])
    router = lab.client(flags=["--cap-add", "NET_ADMIN", "--sysctl", "net.ipv4.ip_forward=1"])
    client = lab.client(flags=["--cap-add", "NET_ADMIN"])
    client.sh(f"ip route replace 5.8.0.0/24 via {router.ip}; ip route replace 5.8.1.0/24 dev eth0")
    client.py('''
for address in ("5.8.0.1", "5.8.1.1"):
    tcp(address, 80, 0.7); udp(address, 53, b"outcall-lab-secret", 0.1)
''')
    lab.internet.nothing_for("5.8.0.1", "5.8.1.1")


@scenario()
def vlan_tags_and_tunnel_headers_hide_nothing(lab):
    lab.daemon([rule("all", "true")])
    client = lab.client()
    client.py('''
import struct
gateway = mac_of(GATEWAY)
_, me = own()
inner = ipv4(me, "5.8.2.1", 17, udp_packet(me, "5.8.2.1", 4000, 53, b"outcall-lab-secret"))
for tag in (0, 1, 100):
    send_frame(gateway, 0x8100, struct.pack("!HH", tag, 0x0800) + inner)
    send_frame(gateway, 0x88A8, struct.pack("!HHHH", tag, 0x8100, tag, 0x0800) + inner)
send_frame(gateway, 0x8864, b"\\x11\\0\\0\\1" + struct.pack("!HH", len(inner) + 2, 0x21) + inner)   # PPPoE
send_frame(gateway, 0x8847, b"\\0\\0\\x11\\x40" + inner)                                          # MPLS
vxlan = b"\\x08\\0\\0\\0\\0\\0\\1\\0" + gateway + bytes(6) + b"\\x08\\0" + inner
send_frame(gateway, 0x0800, ipv4(me, host, 17, udp_packet(me, host, 4000, 4789, vxlan)))
send_frame(gateway, 0x0800, ipv4(me, host, 4, inner))
send_frame(gateway, 0x0800, ipv4(me, host, 47, b"\\0\\0\\x08\\0" + inner))
time.sleep(0.3)
''', host=lab.host_ip)
    lab.internet.nothing_for("5.8.2.1")
    check(not lab.internet.packets.carrying(b"outcall-lab-secret"))


@scenario()
def the_hosts_own_traffic_is_left_alone(lab):
    lab.daemon()
    done = lab.space.run("curl", "-s", "--max-time", "5", "-o", "/dev/null", "-w", "%{http_code}",
                         "http://93.184.216.34/")
    check(done.text == "200", done)
    service = lab.host_service(2200)
    lab.far.run("curl", "-s", "--max-time", "3", f"http://{lab.host_ip}:2200/", check=False)
    wait_for(lambda: service.visits, "a visit from outside", 3)


@scenario()
def drops_are_counted(lab):
    lab.daemon()
    client = lab.client()

    def dropped():
        table = lab.nft("list", "table", "inet", "outcall").text
        return sum(int(line.split("packets ")[1].split()[0]) for line in table.splitlines()
                   if "counter packets" in line and "drop" in line)

    before = dropped()
    client.connects("5.8.3.1", 80, 1)
    wait_for(lambda: dropped() > before, "the drop counters to rise", 5)


@scenario()
def the_table_reads_well(lab):
    lab.daemon()
    table = lab.nft("list", "table", "inet", "outcall").text
    check("policy drop" in table and table.count("comment \"") >= 5, table)
    check('""' not in table, table)
