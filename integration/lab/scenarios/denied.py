"""What no rule allows does not arrive: judged by what the far end saw, not by what the client was told."""

import time

from harness import *

SECRET = b"outcall-lab-secret"


@scenario()
def a_name_that_is_in_no_rule_by_dns_get_and_connect(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    check(client.dig("denied.example.net").status == "NXDOMAIN")
    got = client.curl("http://denied.example.net/?q=secret")
    check(got.status == 403 and got.header("X-Outcall-Block-Reason") == "default", got)
    connect = client.curl("https://denied.example.net/")
    check(connect.connect_status == 403, connect)
    lab.internet.not_asked("denied.example.net")
    lab.internet.nothing_for("93.184.217.99")
    check("q=secret" not in daemon.text())


@scenario()
def a_block_rule_before_an_allow_rule_wins_and_names_itself(lab):
    lab.daemon([rule("not-this", 'http.host == "api.example.com"', "block", priority=10),
                rule("family", 'http.host.endsWith("example.com")')])
    client = lab.client()
    check(client.curl("http://www.example.com/").status == 200)
    for url in ("http://api.example.com/", "https://api.example.com/"):
        response = client.curl(url)
        check(403 in (response.status, response.connect_status), response)
        check(response.header("X-Outcall-Block-Reason") == "not-this", response.errors)
    lab.internet.nothing_for("93.184.216.36")


@scenario()
def packets_to_an_address_by_every_protocol(lab):
    """The same probes that `lab_is_open` sees arrive; here a rule even allows every name."""
    lab.daemon([rule("all", "true")])
    client = lab.client()
    for port in (22, 53, 80, 443, 853, 8080):
        check(client.connects("5.6.0.1", port, 1) in ("timeout", "EHOSTUNREACH", "EACCES", "ENETUNREACH"), port)
    client.py('''
for port in (53, 123, 443, 4500, 51820):
    udp("5.6.0.2", port, b"outcall-lab-secret", 0.1)
_, me = own()
send_ip(ipv4(me, "5.6.0.3", 1, icmp_echo(b"outcall-lab-secret")), "5.6.0.3")
send_ip(ipv4(me, "5.6.0.4", 132, sctp_init(5000, 5000)), "5.6.0.4")
for protocol in (2, 4, 17, 33, 41, 46, 47, 50, 51, 89, 103, 112, 115, 136, 253, 255):
    send_ip(ipv4(me, "5.6.0.5", protocol, b"outcall-lab-secret"), "5.6.0.5")
for flags in (0, 1, 2, 4, 16, 18, 41, 63):
    send_ip(ipv4(me, "5.6.0.6", 6, tcp_packet(me, "5.6.0.6", 4000, 80, flags, b"outcall-lab-secret")), "5.6.0.6")
time.sleep(0.3)
''')
    lab.internet.nothing_for(*[f"5.6.0.{n}" for n in range(1, 7)])
    check(not lab.internet.packets.carrying(SECRET))


@scenario()
def icmp_to_the_gateway_answers_and_to_the_world_does_not(lab):
    lab.daemon()
    client = lab.client()
    seen = client.py('''
def ping(address):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, 1) as s:
        s.settimeout(1); s.sendto(icmp_echo(), (address, 0))
        try:
            while True:
                packet, source = s.recvfrom(2048)
                if packet[20] == 0: return source[0]
        except TimeoutError: return None
result = [ping(GATEWAY), ping("5.6.1.1"), ping(host), ping(other)]
''', host=lab.host_ip, other=lab.host_other_ip)
    check(seen == [client.gateway, None, None, None], seen)
    lab.internet.nothing_for("5.6.1.1")


@scenario()
def fragments(lab):
    lab.daemon([rule("all", "true")])
    client = lab.client()
    client.py('''
_, me = own()
whole = udp_packet(me, "5.6.2.1", 4000, 53, b"outcall-lab-secret" * 8)
# first and rest apart, rest only, a tiny first one that hides the ports, overlap
send_ip(ipv4(me, "5.6.2.1", 17, whole[:16], ident=1, fragment=0x2000), "5.6.2.1")
send_ip(ipv4(me, "5.6.2.1", 17, whole[16:], ident=1, fragment=2), "5.6.2.1")
send_ip(ipv4(me, "5.6.2.2", 17, whole[16:], ident=2, fragment=2), "5.6.2.2")
segment = tcp_packet(me, "5.6.2.3", 4000, 80, 2)
send_ip(ipv4(me, "5.6.2.3", 6, segment[:8], ident=3, fragment=0x2000), "5.6.2.3")
send_ip(ipv4(me, "5.6.2.3", 6, segment[8:], ident=3, fragment=1), "5.6.2.3")
send_ip(ipv4(me, "5.6.2.3", 6, segment, ident=4, fragment=0x2000), "5.6.2.3")
# to the gateway, too: fragments must open no host port
service = tcp_packet(me, GATEWAY, 4000, 2200, 2)
send_ip(ipv4(me, GATEWAY, 6, service[:8], ident=5, fragment=0x2000), GATEWAY)
send_ip(ipv4(me, GATEWAY, 6, service[8:], ident=5, fragment=1), GATEWAY)
time.sleep(0.3)
''')
    lab.internet.nothing_for("5.6.2.1", "5.6.2.2", "5.6.2.3")
    check(not lab.internet.packets.carrying(SECRET))


@scenario()
def other_resolvers_over_udp_tcp_and_tls(lab):
    """The name is allowed; the resolver is not."""
    lab.daemon(allow("example.com", "dns.google"))
    client = lab.client()
    for server in ("1.1.1.1", "8.8.8.8", UPSTREAM):
        for flags in ((), ("+tcp",)):
            seen = client.dig("example.com", "A", *flags, server=server, seconds=1)
            check(seen.status is None and not seen.answers, seen)
        check(client.connects(server, 853, 0.5) != "connected")
    lab.internet.not_asked("example.com")
    lab.internet.nothing_for("1.1.1.1", "8.8.8.8")


@scenario()
def cloud_metadata(lab):
    lab.daemon([rule("all", "true")])
    lab.internet.names.set("metadata.example.com", "169.254.169.254")
    client = lab.client()
    check(client.connects("169.254.169.254", 80) != "connected")
    for url in ("http://169.254.169.254/latest/meta-data/", "http://metadata.example.com/latest/",
                "http://[fd00:ec2::254]/latest/", "http://[::ffff:169.254.169.254]/",
                "http://2852039166/", "http://0xa9fea9fe/", "http://0251.0376.0251.0376/"):
        response = client.curl(url, seconds=6)
        check(response.status in (400, 403, 502), (url, response))
    lab.internet.nothing_for("169.254.169.254", "fd00:ec2::254")


@scenario()
def ipv6_in_every_form(lab):
    lab.daemon([rule("all", "true")])
    lab.internet.names.set("six.example.com", "2606:4700::6")
    client = lab.client(flags=["--sysctl", "net.ipv6.conf.all.disable_ipv6=0", "--cap-add", "NET_ADMIN"])
    bridge_mac = client.py("result = mac_of(GATEWAY).hex()")
    client.sh("ip link set eth0 up; ip -6 addr add fd00:99::2/64 dev eth0 nodad; "
              "ip -6 addr add 2001:db9::2/64 dev eth0 nodad; ip -6 route add default dev eth0")
    seen = client.py('''
import struct
gateway = bytes.fromhex(bridge_mac)
link_local = b"\\xfe\\x80" + bytes(6) + bytes([gateway[0] ^ 2]) + gateway[1:3] + b"\\xff\\xfe" + gateway[3:]
link_local = socket.inet_ntop(socket.AF_INET6, link_local)
def six(dst, header, payload):
    return (struct.pack("!IHBB", 0x60000000, len(payload), header, 64) + socket.inet_pton(socket.AF_INET6, "fd00:99::2")
            + socket.inet_pton(socket.AF_INET6, dst) + payload)
for dst in ("2606:4700::1", "ff02::1", "ff05::2", link_local, "64:ff9b::5.6.3.1", "2002:506:301::1", "::ffff:5.6.3.1"):
    for header, payload in ((17, struct.pack("!HHHH", 4000, 53, 8 + 18, 0) + b"outcall-lab-secret"),
                            (6, struct.pack("!HHIIBBHHH", 4000, 80, 1, 0, 0x50, 2, 1000, 0, 0)),
                            (58, b"\\x80\\0\\0\\0\\0\\1\\0\\1outcall-lab-secret"), (58, b"\\x86\\0\\0\\0" + bytes(12)),
                            (0, b"\\x3b\\0\\0\\0\\0\\0\\0\\0"), (44, b"\\x11\\0\\0\\1\\0\\0\\0\\1outcall-lab-secret"), (59, b"")):
        send_frame(gateway, 0x86DD, six(dst, header, payload))
        send_frame(b"\\x33\\x33\\0\\0\\0\\1", 0x86DD, six(dst, header, payload))
result = [tcp("2606:4700::1", 80, 1), tcp(link_local + "%eth0", 2200, 1), tcp(link_local + "%eth0", 8080, 1), tcp("2606:4700::1", 443, 1)]
time.sleep(0.3)
''', bridge_mac=bridge_mac)
    check("connected" not in seen and "refused" not in seen, seen)
    lab.internet.nothing_for("2606:4700::1", "64:ff9b::506:301", "2002:506:301::1", "5.6.3.1")
    check(not lab.internet.packets.carrying(SECRET))
    # 6in4 by protocol 41 is in the list of protocols above; a name with only AAAA is no way out either.
    response = client.curl("http://six.example.com/")
    check(response.status in (200, 502), response)


@scenario()
def the_hosts_services_on_all_its_addresses(lab):
    service = lab.host_service(2200)
    web = lab.host_service(8000)
    lab.daemon([rule("all", "true")])
    client = lab.client()
    loopback = "127.0.0.1"
    for address in (client.gateway, lab.host_ip, lab.host_other_ip, "172.29.0.1", "10.200.0.255"):
        for port in (2200, 8000):
            seen = client.connects(address, port, 1)
            check(seen in ("timeout", "EHOSTUNREACH", "EACCES", "ENETUNREACH"), (address, port, seen))
    # by the bridge's MAC to the host's loopback, as route_localnet would allow
    client.py('''
gateway = mac_of(GATEWAY)
_, me = own()
for dst in ("127.0.0.1", "127.0.0.53", host, other):
    send_frame(gateway, 0x0800, ipv4(me, dst, 6, tcp_packet(me, dst, 4000, 2200, 2)))
    send_frame(gateway, 0x0800, ipv4("127.0.0.1", dst, 6, tcp_packet("127.0.0.1", dst, 4000, 2200, 2)))
time.sleep(0.2)
''', host=lab.host_ip, other=lab.host_other_ip)
    # and through the proxy, by address and by name
    lab.internet.names.set("host.example.com", loopback)
    for host in (client.gateway, loopback, "localhost", "host.example.com", "0.0.0.0", "127.1", "[::1]"):
        response = client.curl(f"http://{host}:8000/", "--proxy", client.proxy, "--noproxy", "", seconds=6)
        check(response.status in (400, 403, 502), (host, response))
    check(not service.visits and not web.visits, (service.visits, web.visits))


@scenario()
def the_hosts_own_public_address_through_the_proxy(lab):
    """A public address that is the host's own, whichever, is no way to its services, and none to the proxy itself."""
    web = lab.host_service(8000)
    ssh = lab.host_service(80, lab.host_ip)
    daemon = lab.daemon([rule("all", "true")])
    lab.internet.names.set("me.example.com", lab.host_ip)
    lab.internet.names.set("me2.example.com", lab.host_other_ip)
    lab.internet.names.set("me3.example.com", lab.host_secondary_ip)
    client = lab.client()
    for url in (f"http://{lab.host_ip}/", f"http://{lab.host_ip}:8000/", "http://me.example.com/",
                "http://me2.example.com:8000/", "http://me3.example.com:8000/",
                f"http://{lab.host_secondary_ip}:8000/"):
        response = client.curl(url, seconds=8)
        check(response.status in (403, 502) and "host secret" not in response.text, (url, response))
    check(not web.visits and not ssh.visits, (web.visits, ssh.visits))
    for url in (f"http://{client.gateway}:8080/", f"http://{lab.host_ip}:8080/", "http://me.example.com:8080/"):
        response = client.curl(url, seconds=8)
        check(response.status in (403, 502, 400), (url, response))
    check(daemon.api("GET", "/api/v1/health").status == 200)


@scenario()
def other_containers_on_the_same_and_on_another_network(lab):
    daemon = lab.daemon([rule("all", "true")])
    other_net = lab.network(daemon, "other")
    client = lab.client()
    near, far = lab.client(), lab.client(network=other_net)
    plain = lab.client(network="bridge", dns=UPSTREAM, proxy=False)
    servers = [c.start("/usr/bin/python3", "-m", "http.server", "9000") for c in (near, far, plain)]
    for c in (near, far, plain):
        wait_for(lambda: c.connects("127.0.0.1", 9000) == "connected", "a server in the container", 10)
    for c in (near, far, plain):
        seen = client.connects(c.ip, 9000, 1)
        check(seen in ("timeout", "EHOSTUNREACH", "EACCES", "ENETUNREACH"), (c.name, seen))
        response = client.curl(f"http://{c.ip}:9000/", seconds=6)
        check(response.status in (403, 502), (c.name, response))
        client.py("udp(address, 9001, b'outcall-lab-secret', 0.1); _, me = own();"
                  "send_ip(ipv4(me, address, 1, icmp_echo(b'outcall-lab-secret')), address)", address=c.ip)
    check(plain.connects(client.ip, 9000, 1) != "connected")
    check(all(server.poll() is None for server in servers))


@scenario()
def container_to_container_with_br_netfilter_off(lab):
    sysctl = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    lab.daemon([rule("all", "true")])
    near, far = lab.client(), lab.client()
    for value in ("0", "1"):
        lab.space.run("sh", "-c", f"echo {value} > {sysctl}")
        lab.undo(lambda: lab.space.run("sh", "-c", f"echo 1 > {sysctl}"))
        catcher = far.start("/usr/bin/python3", "-c",
                            "import sys; sys.path.insert(0, '/lab/inside'); from net import *\n"
                            "open('/tmp/ready%s','w').close()\n"
                            "open('/tmp/seen%s','w').write(repr(sniff(2.5, b'outcall-lab-secret')))" % (value, value))
        wait_for(lambda: far.run("test", "-e", f"/tmp/ready{value}").code == 0, "the sniffer", 5)
        near.py('''
me_mac, me = own()
data = ipv4(me, peer, 17, udp_packet(me, peer, 4000, 9000, b"outcall-lab-secret"))
for _ in range(5):
    send_frame(mac(peer_mac), 0x0800, data)
    send_frame(BROADCAST, 0x0800, data)
    send_frame(mac("01:00:5e:00:00:01"), 0x0800, ipv4(me, "224.0.0.1", 17, udp_packet(me, "224.0.0.1", 4000, 9000, b"outcall-lab-secret")))
    send_frame(BROADCAST, 0x88B5, b"outcall-lab-secret")
    send_frame(mac(peer_mac), 0x88B5, b"outcall-lab-secret")
    send_frame(mac(peer_mac), 0x86DD, b"\\x60\\0\\0\\0\\0\\x12\\x3b\\x40" + bytes(32) + b"outcall-lab-secret")
    time.sleep(0.05)
''', peer=far.ip, peer_mac=far.mac)
        catcher.wait(15)
        check(far.sh(f"cat /tmp/seen{value}").text == "[]", (value, far.sh(f"cat /tmp/seen{value}").text))


@scenario()
def an_sni_that_no_rule_allows(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    seen = client.py('''
import ssl
s = socket.create_connection((GATEWAY, PROXY_PORT)); s.settimeout(5)
s.sendall(b"CONNECT example.com:443 HTTP/1.1\\r\\nHost: example.com:443\\r\\n\\r\\n")
head = s.recv(4096).decode()
try:
    ssl._create_unverified_context().wrap_socket(s, server_hostname="denied.example.net"); outcome = "open"
except (OSError, ssl.SSLError) as p: outcome = "closed"
result = [head.split()[1], outcome]
''')
    check(seen == ["200", "closed"], seen)
    check(not lab.internet.log.find("tcp", sni="denied.example.net"))
    check(all(not c.get("bytes") for c in lab.internet.connections("93.184.216.34")))


@scenario()
def the_embedded_resolver_on_a_host_with_a_loopback_one(lab):
    """Without --dns Docker would ask the host's resolver for the container: it is disconnected, and told why."""
    relay = lab.loopback_resolver()
    daemon = lab.daemon(allow("example.com"))
    client = lab.client(dns=None)
    wait_for(lambda: not client.details["NetworkSettings"]["Networks"].get(DEFAULT_NETWORK, {}).get("IPAddress"),
             "the container to be disconnected", 10)
    client.dig("denied.example.net", server="127.0.0.11", seconds=1)
    lab.internet.not_asked("denied.example.net")
    check(all(b"denied" not in query for query in relay.asked), relay.asked)
    wait_for(lambda: "--dns" in daemon.text(), "a log line with the remedy", 5)
    good = lab.client()
    check(good.dig("example.com").addresses == ["93.184.216.34"])


@scenario()
def the_embedded_resolver_is_silenced_for_a_container_that_keeps_asking(lab):
    """Docker goes on resolving for a container that is on no network any more: being disconnected is not enough."""
    relay = lab.loopback_resolver()
    lab.daemon(allow("example.com"))
    lab.client(dns=None, command=(
        "sh", "-c", "while :; do dig @127.0.0.11 +tries=1 +time=1 denied.example.net; sleep 0.05; done"))

    def silent():
        before = len(relay.asked)
        time.sleep(1.5)
        return len(relay.asked) == before

    wait_for(silent, "the queries to stop", 8)


@scenario()
def the_embedded_resolver_with_two_dns_servers_given(lab):
    lab.loopback_resolver()
    lab.daemon(allow("example.com"))
    client = lab.client(flags=["--dns", "127.0.0.53"])
    wait_for(lambda: not client.details["NetworkSettings"]["Networks"].get(DEFAULT_NETWORK, {}).get("IPAddress"),
             "the container to be disconnected", 10)


@scenario()
def operator_socket_and_metrics_are_not_reachable_from_inside(lab):
    daemon = lab.daemon([rule("all", "true")], flags=["--metrics-addr", "0.0.0.0:9400"])
    client = lab.client()
    for address in (client.gateway, lab.host_ip, lab.host_other_ip):
        check(client.connects(address, 9400, 1) != "connected", address)
    response = client.curl(f"http://{client.gateway}:9400/metrics", seconds=6)
    check(response.status in (400, 403, 502), response)
    # even with the socket file mounted into a container, a process of it is refused
    nosy = lab.client(flags=["-v", f"{daemon.directory}:/outcall"])
    response = nosy.curl("http://localhost/api/v1/rules", "--unix-socket", "/outcall/host.sock", "--noproxy", "*")
    check(response.status == 403, response)
