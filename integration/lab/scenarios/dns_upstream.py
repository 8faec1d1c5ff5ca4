"""The DNS filter towards its upstreams: hostile, slow, lying, dead or truncated answers."""

import dns.flags
import dns.message
import dns.rcode

from harness import *
from internet.names import later

FIRST, SECOND = "9.9.9.9", "149.112.112.112"


@scenario()
def the_second_upstream_serves_when_the_first_is_down(lab):
    lab.daemon(allow("example.com", "www.example.com"), upstream=f"{FIRST},{SECOND}:53")
    lab.internet.names.down.add(FIRST)
    client = lab.client()
    seen = client.dig("example.com", seconds=10)
    check(seen.addresses == ["93.184.216.34"], seen)
    check({q["server"] for q in lab.internet.names.asked("example.com")} == {FIRST, SECOND})
    check(client.curl("http://www.example.com/").status == 200)


@scenario()
def all_upstreams_down_is_servfail_and_502(lab):
    lab.daemon(allow("example.com"), upstream=f"{FIRST},{SECOND}")
    lab.internet.names.down.update({FIRST, SECOND})
    client = lab.client()
    check(client.dig("example.com", seconds=20).status == "SERVFAIL")
    check(client.curl("http://example.com/", seconds=30).status in (502, 504))
    lab.internet.names.down.clear()
    wait_for(lambda: client.dig("example.com").status == "NOERROR", "recovery", 20)


@scenario()
def an_upstreams_own_failure_and_nxdomain_are_passed_on(lab):
    lab.daemon(allow("broken.example.com", "missing.example.com"))
    lab.internet.names.on("broken.example.com", lambda q: q.answer(rcode=dns.rcode.SERVFAIL))
    client = lab.client()
    check(client.dig("broken.example.com", seconds=15).status == "SERVFAIL")
    seen = client.dig("missing.example.com")
    check(seen.status == "NXDOMAIN" and lab.internet.names.asked("missing.example.com"), seen)
    check(client.curl("http://missing.example.com/").status == 502)


@scenario()
def a_truncated_answer_is_asked_again_over_tcp(lab):
    lab.daemon(allow("big.example.com"))
    addresses = [f"93.184.{high}.{low}" for high in (1, 2) for low in range(1, 101)]
    lab.internet.names.set("big.example.com", *addresses)
    client = lab.client()
    seen = client.dig("big.example.com", "A", "+tcp")
    check(len(seen.addresses) == len(addresses), len(seen.addresses))
    check({q["tcp"] for q in lab.internet.names.asked("big.example.com")} == {False, True})
    small = client.dig("big.example.com", "A", "+notcp", "+ignore", "+bufsize=512")
    check("tc" in small.flags, small)


def forged(name, change):
    """A handler that sends a lie first and the truth half a second later."""

    def handler(query):
        lie = query.answer(("A", "93.184.66.66"))
        change(lie)
        return [lie.to_wire(), later(0.5, query.answer(("A", "93.184.216.60")).to_wire())]

    return handler


@scenario()
def answers_that_do_not_match_the_question_are_ignored(lab):
    def wrong_id(lie):
        lie.id = (lie.id + 1) & 0xFFFF

    def wrong_name(lie):
        lie.question = dns.message.make_query("other.example.com", "A").question

    def wrong_type(lie):
        lie.question = dns.message.make_query("lie.example.com", "TXT").question

    def no_question(lie):
        lie.question = []

    def a_query(lie):
        lie.flags &= ~dns.flags.QR

    cases = {"id": wrong_id, "name": wrong_name, "type": wrong_type, "none": no_question, "qr": a_query}
    hosts = [f"{label}.lie.example.com" for label in cases]
    lab.daemon(allow(*hosts))
    client = lab.client()
    for host, change in zip(hosts, cases.values()):
        # Both go out together, the lie first: what counts is which of them is believed.
        lab.internet.names.on(host, forged(host, change))
        seen = client.dig(host, seconds=10)
        check("93.184.66.66" not in seen.addresses, (host, seen))
        check(seen.addresses == ["93.184.216.60"] or seen.status == "SERVFAIL", (host, seen))


@scenario()
def an_answer_from_another_address_is_ignored(lab):
    lab.daemon(allow("spoof.example.com"))

    def spoof(query):
        lie = query.answer(("A", "93.184.66.66")).to_wire()
        lab.internet.names.send_as("9.9.9.10", lie, query.source)
        return later(0.3, query.answer(("A", "93.184.216.60")))

    lab.internet.names.on("spoof.example.com", spoof)
    client = lab.client()
    check(client.dig("spoof.example.com", seconds=10).addresses == ["93.184.216.60"])


@scenario()
def ids_and_source_ports_are_not_predictable(lab):
    hosts = [f"n{n}.example.com" for n in range(40)]
    lab.daemon([rule("wild", 'dns.query.endsWith(".example.com")')])
    for host in hosts:
        lab.internet.names.set(host, "93.184.216.70")
    client = lab.client()
    client.run("dig", f"@{client.gateway}", *hosts, "+short", "+tries=1", timeout=60)
    asked = lab.internet.names.asked("example.com")
    check(len(asked) == 40, len(asked))
    ids = [q["id"] for q in asked]
    ports = [q["source"][1] for q in asked]
    check(len(set(ids)) >= 38, ids)
    check(len(set(ports)) >= 30, ports)
    steps = {(b - a) & 0xFFFF for a, b in zip(ids, ids[1:])}
    check(len(steps) > 20, "ids count up")


@scenario()
def private_addresses_are_stripped(lab):
    lab.daemon(allow("private.example.com", "mixed.example.com", "alias.example.com", "six.example.com",
                     "extra.example.com"))
    names = lab.internet.names
    names.set("private.example.com", "10.1.2.3", "192.168.1.1", "127.0.0.1", "169.254.169.254")
    names.set("mixed.example.com", "93.184.216.80", "10.1.2.3", "100.64.0.1", "0.0.0.0")
    names.set("alias.example.com", CNAME="inside.corp.test.")
    names.set("inside.corp.test", "10.9.9.9")
    names.set("six.example.com", "::1", "fd00:ec2::254", "::ffff:10.0.0.1", "64:ff9b::a00:1", "fe80::1")
    names.on("extra.example.com", lambda q: q.answer(
        ("A", "93.184.216.81"), ("other.example.org", "A", "93.184.216.82"),
        ("localhost", "A", "127.0.0.1")))
    client = lab.client()
    check(client.dig("private.example.com").status == "SERVFAIL")
    seen = client.dig("mixed.example.com")
    check(seen.addresses == ["93.184.216.80"], seen)
    check(client.dig("alias.example.com").status == "SERVFAIL")
    seen = client.dig("six.example.com", "AAAA")
    check(seen.status == "SERVFAIL" and not seen.addresses, seen)
    seen = client.dig("extra.example.com")
    check("127.0.0.1" not in seen.addresses, seen)


@scenario()
def a_rule_may_allow_private_addresses(lab):
    lab.daemon([
        rule("inside", 'dns.query == "inside.example.com" || http.host == "inside.example.com"',
             egress={"mode": "proxy", "allow_private_ips": True}),
        *allow("outside.example.com"),
    ])
    for name in ("inside.example.com", "outside.example.com"):
        lab.internet.names.set(name, "10.77.0.1")
    client = lab.client()
    check(client.dig("inside.example.com").addresses == ["10.77.0.1"])
    check(client.dig("outside.example.com").status == "SERVFAIL")


@scenario()
def special_purpose_ranges_are_all_refused(lab):
    ranges = ["0.1.2.3", "10.0.0.1", "100.64.0.1", "127.1.2.3", "169.254.0.1", "172.16.0.1", "172.31.255.1",
              "192.0.0.1", "192.0.2.1", "192.168.0.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
              "224.0.0.1", "240.0.0.1", "255.255.255.255"]
    hosts = [f"r{n}.example.com" for n in range(len(ranges))]
    lab.daemon(allow(*hosts))
    for host, address in zip(hosts, ranges):
        lab.internet.names.set(host, address)
    client = lab.client()
    for host, address in zip(hosts, ranges):
        check(client.dig(host).status == "SERVFAIL", address)
        check(client.curl(f"http://{host}/").status in (403, 502), address)
        lab.internet.nothing_for(address)


@scenario()
def a_compression_loop_from_an_upstream_breaks_nothing(lab):
    daemon = lab.daemon(allow("loop.example.com", "example.com"))

    def loop(query):
        good = bytearray(query.answer(("A", "93.184.216.34")).to_wire())
        at = len(query.message.question[0].name.to_wire()) + 12 + 4
        return bytes(good[:at] + bytes([0xC0, at]) + good[at + 2:])

    lab.internet.names.on("loop.example.com", loop)
    client = lab.client()
    check(client.dig("loop.example.com", seconds=15).status in ("SERVFAIL", None))
    check(client.dig("example.com").addresses == ["93.184.216.34"])
    check(daemon.process.poll() is None)
