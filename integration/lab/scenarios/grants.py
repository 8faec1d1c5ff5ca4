"""Direct flows: a name that a `direct_ip` rule allows opens its addresses, for its container alone, while it holds."""

import json
import signal
import time

from harness import *

# `Within a second`, as vendor-docs/threat-model.md says, and half a one for a busy machine, seconds.
ENDED = 1.5

# Connects, says so, then exchanges a line with the far end's echo ten times a second; each exchange puts the time
# into /tmp/alive. A far end that is gone blocks it for good.
FLOW = '''
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as c:
    c.recv(100)
    n = 0
    while True:
        c.sendall(b"tick\\n")
        back = b""
        while not back.endswith(b"\\n"):
            back += c.recv(100) or sys.exit("closed")
        n += 1
        open("/tmp/alive", "w").write(str(n))
        time.sleep(0.1)
'''


def direct(host, ports=(7000,), condition=None, **egress):
    """A rule that opens the addresses of a name, and its name at the proxy."""
    condition = condition or f'dns.query == "{host}" || network.hostname == "{host}" || http.host == "{host}"'
    return rule("direct-" + host, condition, egress={"mode": "direct_ip", "ports": list(ports), **egress})


def flows(lab):
    """The elements of the kernel's set: {(source, destination, protocol, port): (timeout, expires), seconds}."""
    listed = json.loads(lab.nft("-j", "list", "set", "inet", "outcall", "direct4").text)["nftables"]
    found = {}
    for item in listed:
        for element in item.get("set", {}).get("elem", []):
            element = element["elem"]
            source, destination, protocol, port = element["val"]["concat"]
            found[source, destination, protocol, port] = (element.get("timeout"), element.get("expires"))
    return found


def running_flow(lab, client, address, port):
    """Starts a flow that says something all the time; gives a function that tells whether it still runs."""
    client.start("/usr/bin/python3", "-c", FLOW, address, str(port), log=lab.path("flow.log"))

    def ticks():
        return client.sh("cat /tmp/alive 2>/dev/null || echo 0").text.strip()

    wait_for(lambda: int(ticks() or 0) > 3, "the flow to run", 10)
    return lambda: lab.internet.connections(address)[-1]["bytes"]


def ended(count, since):
    """From `ENDED` seconds after `since` on, a flow's bytes must no longer grow."""
    time.sleep(max(0.0, since + ENDED - time.monotonic()))
    before = count()
    stays(lambda: count() == before, "the flow is silent", 1.5, 0.1)


def tracked(lab, address):
    """Conntrack entries to an address."""
    return lab.space.run("conntrack", "-L", "-d", address, check=False).text.strip()


@scenario()
def an_answered_name_opens_its_address_and_only_that(lab):
    daemon = lab.daemon([direct("git.example.com", [7000, 7001])])
    lab.internet.names.set("git.example.com", "5.20.0.1", "5.20.0.2")
    one, other = lab.client(), lab.client()
    check(one.connects("5.20.0.1", 7000, 1) != "connected")
    lab.internet.nothing_for("5.20.0.1")
    check(flows(lab) == {})

    check(sorted(one.dig("git.example.com").addresses) == ["5.20.0.1", "5.20.0.2"])
    expected = {(one.ip, address, "tcp", port) for address in ("5.20.0.1", "5.20.0.2") for port in (7000, 7001)}
    check(set(flows(lab)) == expected, flows(lab))
    for address in ("5.20.0.1", "5.20.0.2"):
        for port in (7000, 7001):
            check(one.connects(address, port) == "connected", (address, port))
            check(lab.internet.connections(address, dport=port), (address, port))
    lab.internet.packets.clear()
    lab.internet.log.clear()

    check(one.connects("5.20.0.1", 7002, 1) != "connected")
    check(one.connects("5.20.0.1", 443, 1) != "connected")
    check(one.connects("5.20.0.3", 7000, 1) != "connected")
    check(one.py('result = udp("5.20.0.1", 7000, b"outcall-lab-secret")') != 18)
    check(other.connects("5.20.0.1", 7000, 1) != "connected")
    lab.internet.nothing_for("5.20.0.1", "5.20.0.2", "5.20.0.3")
    check(daemon.api("GET", "/api/v1/health").status == 200)


@scenario()
def the_answer_comes_after_the_flow_is_open(lab):
    """Resolve and connect at once, many times with fresh names: never too early."""
    lab.daemon([rule("direct", 'dns.query.endsWith(".fresh.example.com")',
                     egress={"mode": "direct_ip", "ports": [7000]})])
    for number in range(40):
        lab.internet.names.set(f"n{number}.fresh.example.com", f"5.21.0.{number + 1}")
    client = lab.client()
    seen = client.py('''
import dns.resolver
r = dns.resolver.Resolver(configure=False); r.nameservers = [GATEWAY]
result = []
for n in range(40):
    address = r.resolve("n%d.fresh.example.com" % n, "A", lifetime=10)[0].to_text()
    # Less than the second after which a lost SYN is sent again: the first one must pass.
    result.append(tcp(address, 7000, 0.9))
''', seconds=60)
    check(seen == ["connected"] * 40, seen)


@scenario()
def a_short_ttl_is_still_a_minute_and_a_long_one_an_hour(lab):
    lab.daemon([direct("short.example.com"), direct("middle.example.com"), direct("long.example.com")])
    lab.internet.names.set("short.example.com", "5.22.0.1", ttl=1)
    lab.internet.names.set("middle.example.com", "5.22.0.2", ttl=600)
    lab.internet.names.set("long.example.com", "5.22.0.3", ttl=86400)
    client = lab.client()
    for name in ("short", "middle", "long"):
        check(client.dig(f"{name}.example.com").status == "NOERROR")
    seen = {key[1]: expires for key, (_, expires) in flows(lab).items()}
    check(50 <= seen["5.22.0.1"] <= 60, seen)
    check(590 <= seen["5.22.0.2"] <= 600, seen)
    check(3590 <= seen["5.22.0.3"] <= 3600, seen)
    time.sleep(2)
    check(client.connects("5.22.0.1", 7000) == "connected")


@scenario(deadline=120)
def expiry_ends_new_flows_only_and_a_reload_the_rest(lab):
    daemon = lab.daemon([direct("short.example.com")])
    lab.internet.names.set("short.example.com", "5.23.0.1", ttl=1)
    client = lab.client()
    check(client.dig("short.example.com").status == "NOERROR")
    count = running_flow(lab, client, "5.23.0.1", 7000)
    wait_for(lambda: not flows(lab), "the grant to expire", 65, 0.2)
    check(client.connects("5.23.0.1", 7000, 1) != "connected")
    before = count()
    wait_for(lambda: count() > before, "the running flow to go on", 2)
    daemon.reload([])
    ended(count, time.monotonic())
    check(not tracked(lab, "5.23.0.1"), tracked(lab, "5.23.0.1"))


@scenario()
def a_reload_that_no_longer_allows_ends_the_running_flow(lab):
    daemon = lab.daemon([direct("one.example.com"), direct("two.example.com")])
    lab.internet.names.set("one.example.com", "5.24.0.1")
    lab.internet.names.set("two.example.com", "5.24.0.2")
    first, second = lab.client(), lab.client()
    for client, name, address in ((first, "one", "5.24.0.1"), (second, "two", "5.24.0.2")):
        check(client.dig(f"{name}.example.com").addresses == [address])
    one, two = running_flow(lab, first, "5.24.0.1", 7000), running_flow(lab, second, "5.24.0.2", 7000)
    daemon.reload([direct("two.example.com")])
    since = time.monotonic()
    check([key[1] for key in flows(lab)] == ["5.24.0.2"], flows(lab))
    ended(one, since)
    check(not tracked(lab, "5.24.0.1"), tracked(lab, "5.24.0.1"))
    before = two()
    wait_for(lambda: two() > before, "the other flow to go on", 2)
    check(first.connects("5.24.0.1", 7000, 1) != "connected")


@scenario()
def a_port_that_the_rule_no_longer_has_is_closed(lab):
    daemon = lab.daemon([direct("one.example.com", [7000, 7001])])
    lab.internet.names.set("one.example.com", "5.25.0.1")
    client = lab.client()
    client.dig("one.example.com")
    count = running_flow(lab, client, "5.25.0.1", 7000)
    daemon.reload([direct("one.example.com", [7001])])
    since = time.monotonic()
    check([key[3] for key in flows(lab)] == [7001], flows(lab))
    check(client.connects("5.25.0.1", 7001) == "connected")
    ended(count, since)


@scenario(deadline=90)
def removal_ends_the_flow_and_the_next_holder_of_the_address_has_nothing(lab):
    lab.daemon([direct("one.example.com", condition='dns.query == "one.example.com" && agent.name == "alpha"')])
    lab.internet.names.set("one.example.com", "5.26.0.1")
    client = lab.client(name="alpha-1")
    address = client.ip
    client.dig("one.example.com")
    count = running_flow(lab, client, "5.26.0.1", 7000)
    client.remove()
    since = time.monotonic()
    heir = lab.client(name="beta-1", flags=("--ip", address))
    check(heir.ip == address, heir.ip)
    before = count()
    check(heir.connects("5.26.0.1", 7000, 1) != "connected")
    wait_for(lambda: not flows(lab), "the set to be empty", 2)
    wait_for(lambda: not tracked(lab, "5.26.0.1"), "no conntrack entry", max(0.1, since + ENDED - time.monotonic()))
    check(count() == before and len(lab.internet.connections("5.26.0.1")) == 1)


@scenario()
def leaving_the_network_ends_the_flow(lab):
    lab.daemon([direct("one.example.com")])
    lab.internet.names.set("one.example.com", "5.27.0.1")
    client = lab.client()
    client.dig("one.example.com")
    count = running_flow(lab, client, "5.27.0.1", 7000)
    lab.engine.docker("network", "disconnect", DEFAULT_NETWORK, client.name)
    since = time.monotonic()
    wait_for(lambda: not flows(lab), "the set to be empty", 2)
    wait_for(lambda: not tracked(lab, "5.27.0.1"), "no conntrack entry", 2)
    ended(count, since)


@scenario()
def bridge_down_ends_the_flow_and_up_does_not_bring_it_back(lab):
    daemon = lab.daemon([direct("one.example.com")])
    lab.internet.names.set("one.example.com", "5.28.0.1")
    client = lab.client()
    client.dig("one.example.com")
    count = running_flow(lab, client, "5.28.0.1", 7000)
    check(daemon.cli("bridge", "down").code == 0)
    since = time.monotonic()
    ended(count, since)
    check(not tracked(lab, "5.28.0.1"), tracked(lab, "5.28.0.1"))
    check(daemon.cli("bridge", "up").code == 0)
    check(flows(lab) == {})
    before = count()
    check(client.connects("5.28.0.1", 7000, 1) != "connected")
    check(count() == before)
    # It may ask again.
    wait_for(lambda: client.dig("one.example.com").status == "NOERROR", "DNS to be back", 10)
    check(client.connects("5.28.0.1", 7000) == "connected")


@scenario()
def aaaa_answers_open_nothing(lab):
    lab.daemon([direct("six.example.com")])
    lab.internet.names.set("six.example.com", "5.29.0.1", "2606:4700::1111")
    client = lab.client()
    check(client.dig("six.example.com", "AAAA").status == "NOERROR")
    check(flows(lab) == {}, flows(lab))
    check(client.connects("5.29.0.1", 7000, 1) != "connected")
    lab.internet.nothing_for("5.29.0.1")


@scenario()
def special_purpose_answers_open_nothing(lab):
    lab.daemon([direct("inner.example.com"), direct("mixed.example.com")])
    special = ["10.9.9.9", "172.16.3.3", "192.168.7.7", "127.0.0.1", "169.254.169.254", "100.64.1.1"]
    client = lab.client()
    for address in special:
        lab.internet.names.set("inner.example.com", address)
        lab.internet.names.set("mixed.example.com", address, "5.30.0.1")
        check(client.dig("inner.example.com").status == "SERVFAIL", address)
    check(flows(lab) == {}, flows(lab))
    check(client.dig("mixed.example.com").addresses == ["5.30.0.1"])
    check([key[1] for key in flows(lab)] == ["5.30.0.1"], flows(lab))


@scenario()
def a_private_address_opens_when_the_rule_says_so(lab):
    lab.daemon([direct("inner.example.com", allow_private_ips=True)])
    lab.internet.names.set("inner.example.com", "10.9.9.9", "127.0.0.1", GATEWAY)
    client = lab.client()
    client.dig("inner.example.com")
    check(client.connects("10.9.9.9", 7000) == "connected")
    service = lab.host_service(7000)
    check(client.connects(GATEWAY, 7000, 1) != "connected")
    check(not service.visits, service.visits)


@scenario()
def the_proxy_allows_a_direct_rule_on_its_ports_only(lab):
    lab.daemon([direct("example.com", [80])])
    client = lab.client()
    check(client.curl("http://example.com/").status == 200)
    check(client.curl("http://example.com:8080/").status == 403)
    check(client.curl("https://example.com/").connect_status == 403)
    check(not lab.internet.connections("93.184.216.34", dport=443))


@scenario()
def a_proxy_rule_opens_nothing_directly(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    check(client.dig("example.com").addresses == ["93.184.216.34"])
    check(flows(lab) == {}, flows(lab))
    check(client.connects("93.184.216.34", 443, 1) != "connected")
    lab.internet.nothing_for("93.184.216.34")


@scenario()
def a_cached_answer_opens_for_each_container_that_asks(lab):
    lab.daemon([direct("one.example.com")])
    lab.internet.names.set("one.example.com", "5.31.0.1")
    clients = [lab.client() for _ in range(3)]
    for client in clients:
        check(client.connects("5.31.0.1", 7000, 0.5) != "connected")
        check(client.dig("one.example.com").addresses == ["5.31.0.1"])
        check(client.connects("5.31.0.1", 7000) == "connected")
    check({key[0] for key in flows(lab)} == {client.ip for client in clients}, flows(lab))
    check(len(lab.internet.names.asked("one.example.com")) == 1)


@scenario()
def at_most_256_flows_a_container_the_oldest_out(lab):
    lab.daemon([rule("direct", 'dns.query.endsWith(".many.example.com")',
                     egress={"mode": "direct_ip", "ports": [7000]})])
    for number in range(300):
        lab.internet.names.set(f"n{number}.many.example.com", f"5.32.{number // 250}.{number % 250 + 1}")
    client, other = lab.client(), lab.client()
    check(other.dig("n0.many.example.com").status == "NOERROR")
    failed = client.py('''
import dns.resolver
r = dns.resolver.Resolver(configure=False); r.nameservers = [GATEWAY]
result = []
for n in range(300):
    try: r.resolve("n%d.many.example.com" % n, "A", lifetime=10)
    except Exception as problem: result.append([n, repr(problem)])
''', seconds=50)
    check(failed == [], failed)
    mine = {key[1] for key in flows(lab) if key[0] == client.ip}
    expected = {f"5.32.{n // 250}.{n % 250 + 1}" for n in range(300 - 256, 300)}
    check(mine == expected, (len(mine), sorted(mine ^ expected)))
    check([key[1] for key in flows(lab) if key[0] == other.ip] == ["5.32.0.1"])
    check(client.connects("5.32.0.1", 7000, 1) != "connected")
    check(client.connects("5.32.1.50", 7000) == "connected")


@scenario()
def an_element_put_in_by_hand_is_taken_out_and_what_began_through_it_ends(lab):
    daemon = lab.daemon()
    client = lab.client()
    # Its port is open for what is granted.
    check(client.dig("denied.example.net").status == "NXDOMAIN")
    for timeout in ([], ["timeout", "600s"]):
        daemon.send(signal.SIGSTOP)
        lab.nft("add", "element", "inet", "outcall", "direct4",
                "{", client.ip, ".", "5.33.0.1", ".", "tcp", ".", "7000", *timeout, "}")
        client.sh("rm -f /tmp/alive")
        count = running_flow(lab, client, "5.33.0.1", 7000)
        daemon.send(signal.SIGCONT)
        since = time.monotonic()
        wait_for(lambda: not flows(lab), "the element to be taken out", 2)
        ended(count, since)
        check(client.connects("5.33.0.1", 7000, 1) != "connected")


@scenario()
def kept_networks_keep_no_grant_over_a_restart(lab):
    daemon = lab.daemon([direct("one.example.com")], flags=["--on-exit", "keep"])
    lab.internet.names.set("one.example.com", "5.34.0.1")
    client = lab.client()
    client.dig("one.example.com")
    count = running_flow(lab, client, "5.34.0.1", 7000)
    daemon.stop()
    since = time.monotonic()
    check(flows(lab) == {}, flows(lab))
    ended(count, since)
    daemon.start()
    check(flows(lab) == {}, flows(lab))
    check(client.connects("5.34.0.1", 7000, 1) != "connected")


@scenario()
def a_crash_and_a_restart_end_the_running_flow(lab):
    daemon = lab.daemon([direct("one.example.com")])
    lab.internet.names.set("one.example.com", "5.35.0.1")
    client = lab.client()
    client.dig("one.example.com")
    count = running_flow(lab, client, "5.35.0.1", 7000)
    daemon.process.kill()
    daemon.process.wait()
    daemon.start()
    since = time.monotonic()
    check(flows(lab) == {}, flows(lab))
    ended(count, since)
    check(client.connects("5.35.0.1", 7000, 1) != "connected")


@scenario()
def a_flow_whose_element_made_room_runs_on_until_its_rule_ends(lab):
    rules = [rule("direct", 'dns.query.endsWith(".many.example.com")', egress={"mode": "direct_ip", "ports": [7000]})]
    daemon = lab.daemon(rules)
    lab.internet.names.set("first.many.example.com", "5.36.9.1")
    for number in range(11):
        addresses = [f"5.36.{number}.{last}" for last in range(101, 125)]
        lab.internet.names.set(f"n{number}.many.example.com", *addresses)
    client = lab.client()
    client.dig("first.many.example.com")
    count = running_flow(lab, client, "5.36.9.1", 7000)
    for number in range(11):
        check(client.dig(f"n{number}.many.example.com").status == "NOERROR", number)
    held = flows(lab)
    check(len(held) == 256 and "5.36.9.1" not in {key[1] for key in held}, len(held))
    check(client.connects("5.36.9.1", 7000, 1) != "connected")
    before = count()
    daemon.reload([*rules, rule("more", 'dns.query == "more.example.com"')])
    wait_for(lambda: count() > before + 10, "the flow to run on", 5)
    daemon.reload([])
    ended(count, time.monotonic())
