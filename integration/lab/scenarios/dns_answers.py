"""The DNS filter as clients see it: who is answered, what, and what never reaches an upstream."""

from harness import *


@scenario()
def an_allowed_name_resolves_over_udp_and_tcp(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    for flags in ((), ("+tcp",), ("+noedns",), ("+bufsize=4096",)):
        seen = client.dig("example.com", "A", *flags)
        check(seen.status == "NOERROR" and seen.addresses == ["93.184.216.34"], (flags, seen))
    check("93.184.216.34" in client.sh("getent ahostsv4 example.com").text)


@scenario()
def a_denied_name_is_nxdomain_and_no_upstream_hears_of_it(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    for flags in ((), ("+tcp",)):
        seen = client.dig("denied.example.net", "A", *flags)
        check(seen.status == "NXDOMAIN" and "aa" in seen.flags, seen)
        check("denied.example.net" in seen.text.partition("QUESTION SECTION")[2], seen.text)
        soa = seen.authority.split()
        check("SOA" in soa and soa[1] == "60", seen.authority)
    for kind in ("AAAA", "TXT", "MX", "NS", "PTR", "SRV", "CNAME", "SOA", "DS", "DNSKEY", "CAA"):
        check(client.dig("denied.example.net", kind).status == "NXDOMAIN", kind)
    lab.internet.not_asked("denied.example.net")


@scenario()
def data_in_query_names_does_not_tunnel_out(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    for name in ("c2VjcmV0.denied.example.net", "c2VjcmV0.example.com", "a" * 63 + "." + "b" * 63 + ".evil.net"):
        check(client.dig(name).status == "NXDOMAIN", name)
        lab.internet.not_asked(name)


@scenario()
def case_and_trailing_dot_do_not_matter(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    for name in ("EXAMPLE.com", "eXaMpLe.CoM.", "example.com."):
        seen = client.dig(name)
        check(seen.addresses == ["93.184.216.34"], seen)
    check(client.dig("DENIED.example.NET").status == "NXDOMAIN")
    lab.internet.not_asked("denied.example.net")


@scenario()
def suffixes_and_lookalikes_do_not_match(lab):
    lab.daemon([rule("suffix", 'dns.query == "example.com" || dns.query.endsWith(".example.com")')])
    client = lab.client()
    check(client.dig("api.example.com").status == "NOERROR")
    for name in ("notexample.com", "example.com.evil.net", "example.co", "xexample.com", "example.com.local"):
        check(client.dig(name).status == "NXDOMAIN", name)
        lab.internet.not_asked(name)


@scenario()
def odd_labels_are_not_taken_for_the_name_they_look_like(lab):
    """A dot, a NUL, a space or an upper-case byte inside a label must not make it the allowed name."""
    lab.daemon(allow("example.com", "a.example.com"))
    client = lab.client()
    seen = client.py('''
import dns.message, dns.name, dns.query, dns.rdatatype
names = [[b"example.com", b""], [b"example", b"com\\0", b""], [b"a.example", b"com", b""],
         [b"example\\0", b"com", b""], [b"example.", b"com", b""], [b" example", b"com", b""],
         [b"example", b"com\\xe3\\x80\\x82", b""], [b"xn--example-", b"com", b""]]
result = []
for labels in names:
    q = dns.message.make_query(dns.name.Name(labels), "A")
    try:
        r = dns.query.udp(q, GATEWAY, timeout=3)
        result.append([str(q.question[0].name), r.rcode(), len(r.answer)])
    except dns.exception.Timeout:
        result.append([str(q.question[0].name), -1, 0])
''')
    for name, code, answers in seen:
        check(code in (-1, 1, 3, 5) and answers == 0, (name, code, answers))
    check(not lab.internet.names.asked(), lab.internet.names.asked())


@scenario()
def local_names_and_long_names(lab):
    lab.daemon([rule("all", "true")])
    client = lab.client()
    check(client.dig("printer.local").status == "NXDOMAIN")
    check(not lab.internet.names.asked("local"))
    seen = client.py('''
import struct
name = b"".join(bytes([50]) + b"a" * 50 for _ in range(5)) + b"\\0"      # 256 bytes
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.settimeout(2)
    s.sendto(struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + name + struct.pack("!HH", 1, 1), (GATEWAY, 53))
    try: result = s.recv(512)[3] & 15
    except TimeoutError: result = "dropped"
''')
    check(seen == 1, f"FORMERR is 1, saw {seen}")
    check(not lab.internet.names.asked(), lab.internet.names.asked())


@scenario()
def malformed_queries_are_dropped_over_udp_and_closed_over_tcp(lab):
    daemon = lab.daemon(allow("example.com"))
    client = lab.client()
    seen = client.py('''
import struct
h = lambda qd=1, fl=0x0100: struct.pack("!HHHHHH", 7, fl, qd, 0, 0, 0)
bad = {"short": b"\\0\\7", "truncated": h() + b"\\7examp", "loop": h() + b"\\xc0\\x0c" + b"\\0\\1\\0\\1",
       "forward": h() + b"\\xc0\\x20\\0\\1\\0\\1", "reserved": h() + b"\\x87example\\0\\0\\1\\0\\1",
       "response": h(fl=0x8180) + b"\\7example\\3com\\0\\0\\1\\0\\1", "empty": b""}
result = {}
for name, wire in bad.items():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(0.4)
        s.sendto(wire, (GATEWAY, 53))
        try: u = s.recv(512).hex()
        except TimeoutError: u = "dropped"
    back = exchange(GATEWAY, 53, struct.pack("!H", len(wire)) + wire, 5).hex()
    result[name] = [u, back]
''', seconds=60)
    for name, (datagram, stream) in seen.items():
        check(datagram == "dropped", (name, datagram))
        check(stream == "", (name, stream))
    check(client.dig("example.com").addresses == ["93.184.216.34"])
    check(daemon.process.poll() is None)


@scenario()
def svcb_and_https_are_nodata_and_any_is_notimp(lab):
    lab.daemon(allow("example.com"))
    lab.internet.names.set("example.com", "93.184.216.34", HTTPS="1 . alpn=h2 ipv4hint=1.2.3.4",
                           SVCB="1 svc.example.net.")
    client = lab.client()
    for kind in ("HTTPS", "SVCB", "TYPE64", "TYPE65"):
        seen = client.dig("example.com", kind)
        check(seen.status == "NOERROR" and not seen.answers, (kind, seen))
    check(client.dig("example.com", "ANY", "+tcp").status == "NOTIMP")
    check(client.dig("example.com", "ANY", "+notcp").status == "NOTIMP")
    check(not [q for q in lab.internet.names.asked() if q["type"] in ("HTTPS", "SVCB", "ANY")])


@scenario()
def other_record_types_of_an_allowed_name_pass(lab):
    lab.daemon(allow("example.com"))
    lab.internet.names.set("example.com", "93.184.216.34", TXT='"hello lab"', MX="10 mail.example.com.",
                           DNSKEY="257 3 13 mdsswUyr3DPW132mOi8V9xESWE8jTo0dxCjjnopKl+GqJxpVXckHAeF+KkxLbxILfDLUT0rAK9iUzy1L53eKGQ==")
    client = lab.client()
    check("hello lab" in client.dig("example.com", "TXT").text)
    check("mail.example.com" in client.dig("example.com", "MX").text.lower())
    check("mdsswUyr" in client.dig("example.com", "DNSKEY").text.replace(" ", ""))
    check(client.dig("example.com", "AAAA").status == "NOERROR")


@scenario()
def a_rule_may_name_the_record_type(lab):
    lab.daemon([rule("only-a", 'dns.query == "example.com" && dns.record_type == "A"')])
    client = lab.client()
    check(client.dig("example.com", "A").status == "NOERROR")
    check(client.dig("example.com", "TXT").status == "NXDOMAIN")
    check(not [q for q in lab.internet.names.asked() if q["type"] == "TXT"])


@scenario()
def strangers_are_refused(lab):
    """A host process and a container of another network may reach the socket, but get no answer."""
    lab.daemon([rule("all", "true")])
    lab.client()
    seen = lab.space.run("dig", f"@{GATEWAY}", "example.com", "+tries=1", "+time=3", check=False).text
    check("REFUSED" in seen or "no servers could be reached" in seen or "timed out" in seen, seen)
    other = lab.client(network="bridge", dns=UPSTREAM, proxy=False)
    seen = other.dig("example.com", server=GATEWAY, seconds=2)
    check(seen.status in (None, "REFUSED") and not seen.answers, seen)
    check(not lab.internet.names.asked("example.com"))


@scenario()
def extra_peers_are_served(lab):
    lab.daemon(allow("example.com"), flags=["--extra-peers", "127.0.0.0/8"])
    seen = lab.space.run("dig", "@127.0.0.1", "example.com", "+tries=1", "+time=3", check=False).text
    check("93.184.216.34" in seen, seen)
    seen = lab.space.run("dig", "@127.0.0.1", "denied.example.net", "+tries=1", "+time=3", check=False).text
    check("NXDOMAIN" in seen, seen)
    seen = lab.space.run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-x", "http://127.0.0.1:8080",
                         "http://example.com/", check=False)
    check(seen.text == "200", seen)


@scenario()
def dns_on_another_port_is_still_53_for_containers(lab):
    lab.daemon(allow("example.com"), flags=["--dns-port", "5355"])
    client = lab.client()
    check(client.dig("example.com").addresses == ["93.184.216.34"])
    check(client.dig("example.com", "A", "+tcp").addresses == ["93.184.216.34"])
    check(client.dig("denied.example.net").status == "NXDOMAIN")


@scenario()
def a_cached_answer_is_not_asked_again_and_its_ttl_counts_down(lab):
    daemon = lab.daemon(allow("example.com", "www.example.com"))
    lab.internet.names.set("example.com", "93.184.216.34", ttl=100)
    client = lab.client()
    first = client.dig("example.com")
    check(int(first.answers[0][1]) <= 100, first)
    wait_for(lambda: int(client.dig("example.com").answers[0][1]) < int(first.answers[0][1]), "a lower TTL", 5)
    check(len(lab.internet.names.asked("example.com")) == 1)
    entries = daemon.api("GET", "/api/v1/dns/cache?entries=true").data["entries"]
    check([e["hostname"] for e in entries] == ["example.com"], entries)
    daemon.reload()
    client.dig("example.com")
    check(len(lab.internet.names.asked("example.com")) == 2)
    check(daemon.api("POST", "/api/v1/dns/cache/flush").data == {"entries_flushed": 1})
    client.dig("example.com")
    check(len(lab.internet.names.asked("example.com")) == 3)


@scenario()
def a_cached_answer_does_not_serve_whom_the_rule_does_not_name(lab):
    lab.daemon([rule("one", 'dns.query == "example.com" && agent.name == "alpha"')])
    alpha, beta = lab.client(name="alpha-1"), lab.client(name="beta-1")
    check(alpha.dig("example.com").addresses == ["93.184.216.34"])
    check(beta.dig("example.com").status == "NXDOMAIN")
    check(alpha.dig("example.com").addresses == ["93.184.216.34"])


@scenario()
def equal_questions_in_flight_are_asked_once(lab):
    from internet.names import later
    lab.daemon(allow("slow.example.com"))
    lab.internet.names.on("slow.example.com", lambda q: later(1.0, q.answer(("A", "93.184.216.50"))))
    client = lab.client()
    seen = client.py('''
import concurrent.futures, dns.resolver
def ask(_):
    r = dns.resolver.Resolver(configure=False); r.nameservers = [GATEWAY]
    return r.resolve("slow.example.com", "A", lifetime=10)[0].to_text()
with concurrent.futures.ThreadPoolExecutor(40) as pool:
    result = list(pool.map(ask, range(40)))
''')
    check(seen == ["93.184.216.50"] * 40, seen)
    check(len(lab.internet.names.asked("slow.example.com")) == 1, len(lab.internet.names.asked()))


@scenario()
def the_cli_asks_the_same_judge(lab):
    daemon = lab.daemon(allow("example.com"))
    done = daemon.cli("dns", "test", "example.com")
    check(done.code == 0 and "allow" in done.text.lower(), done)
    done = daemon.cli("dns", "test", "denied.example.net")
    check("block" in done.text.lower(), done)
    status = daemon.cli("--json", "dns", "status")
    check(status.code == 0 and '"running"' in status.text, status)
