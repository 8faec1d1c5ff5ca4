"""Names and addresses written in ways that two readers could take for two things."""

from harness import *

HOST_BLOCKED = (400, 403, 502)


def statuses(client, targets):
    """Status lines that the proxy gives to `GET <target>` written raw, with a Host taken from the target."""
    return client.py('''
def ask(target):
    authority = target.split("://", 1)[-1].split("/")[0]
    data = ("GET %s HTTP/1.1\\r\\nHost: %s\\r\\nConnection: close\\r\\n\\r\\n" % (target, authority)).encode("latin-1")
    line = first_line(GATEWAY, PROXY_PORT, data)
    return int(line.split()[1]) if line.startswith("HTTP/1.1 ") else 0
result = dict(zip(targets, at_once(ask, targets)))
''', targets=targets, seconds=120)


@scenario(deadline=120)
def hosts_that_only_look_like_the_allowed_one(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    targets = [
        "http://notexample.com/", "http://example.com.evil.net/", "http://example.comx/", "http://xexample.com/",
        "http://example.com@denied.example.net/", "http://denied.example.net#example.com/",
        "http://denied.example.net?example.com/", "http://denied.example.net\\.example.com/",
        "http://example.com:80@denied.example.net/", "http://example.com%00.denied.example.net/",
        "http://example.com%2e.denied.example.net/", "http://denied.example.net%23example.com/",
        "http://example%2ecom/", "http://exa\tmple.com/", "http://[example.com]/", "http://example.com..denied.example.net/",
        "http://.example.com.evil.net/", "http://example.com\xa0/", "http://example\u3002com/".encode().decode("latin-1"),
        "http://ex\u00e1mple.com/".encode().decode("latin-1"), "http://\u200bexample.com/".encode().decode("latin-1"),
        "http:///", "http://", "http://:80/", "http://example.com:/x@denied.example.net/",
        "http://example.com:80:80/", "http://example.com:0/", "http://example.com:65536/", "http://example.com:+80/",
        "http://example.com:-1/", "http://example.com:80a/", "http://" + "a" * 64 + ".com/",
        "http://" + ".".join(["a" * 60] * 5) + "/", "ftp://example.com/", "file:///etc/passwd",
        "gopher://example.com/", "https://denied.example.net/", "//example.com/", "example.com/",
    ]
    seen = statuses(client, targets)
    for target, status in seen.items():
        # An empty port is legal (RFC 3986 3.2.3), and what follows is a path.
        fine = target == "http://example.com:/x@denied.example.net/" and status == 200
        check(fine or status in (*HOST_BLOCKED, 431), (target, status))
    lab.internet.nothing_for("93.184.217.97", "93.184.217.98", "93.184.217.99")
    for name in ("evil.net", "denied.example.net", "notexample.com"):
        lab.internet.not_asked(name)
    for request in lab.internet.origin.requests():
        check(request["host"] == "example.com", request["headers"])


@scenario()
def spellings_of_the_allowed_host_reach_it_as_one_name(lab):
    lab.daemon([rule("one", 'http.host == "example.com"'), rule("dns", 'dns.query == "example.com"')])
    client = lab.client()
    seen = statuses(client, ["http://EXAMPLE.com/", "http://example.COM:80/", "http://example.com./"])
    check(seen["http://EXAMPLE.com/"] == 200 and seen["http://example.COM:80/"] == 200, seen)
    check(seen["http://example.com./"] in (200, 400), seen)
    check(len({q["name"] for q in lab.internet.names.asked()}) == 1)


@scenario()
def a_block_rule_is_not_walked_around_by_spelling(lab):
    lab.daemon([rule("not-that", 'http.host == "denied.example.net" || network.hostname == "denied.example.net" '
                     '|| dns.query == "denied.example.net"', "block", priority=1),
                rule("rest", "true")])
    client = lab.client()
    targets = ["http://DENIED.example.net/", "http://denied.example.net./", "http://denied.example.net:80/",
               "http://denied.example.net.:80/", "http://denied%2eexample.net/", "http://denied.example.net:080/",
               "http://user@denied.example.net/", "http://denied\u3002example\uff0enet/".encode().decode("latin-1"),
               "http://d\u200benied.example.net/".encode().decode("latin-1"), "http://\uff44enied.example.net/".encode().decode("latin-1")]
    for target, status in statuses(client, targets).items():
        check(status in (400, 403), (target, status))
    for host in ("DENIED.example.NET", "denied.example.net.", "denied.example.net\\000"):
        client.dig(host)
        response = client.curl(f"https://{host}/", seconds=6)
        check(response.status == 0 and response.connect_status != 200, (host, response))
    lab.internet.nothing_for("93.184.217.99")
    lab.internet.not_asked("denied.example.net")


# One private address in every notation that some resolver or connect() takes.
LITERALS = [
    "10.0.0.1", "167772161", "0x0a000001", "012.0.0.1", "0xa.0.0.1", "10.1", "10.0.1", "10.0.0.01",
    "127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "0", "0.0.0.0", "localhost", "LOCALHOST.",
    "a.localhost", "169.254.169.254", "192.168.1.1", "172.16.0.1", "100.64.0.1", "255.255.255.255", "224.0.0.1",
    "[::1]", "[::]", "[::ffff:10.0.0.1]", "[::ffff:a00:1]", "[::10.0.0.1]", "[64:ff9b::10.0.0.1]",
    "[64:ff9b:1::a00:1]", "[2002:a00:1::1]", "[2001:0:a00:1::1]", "[fe80::1]", "[fe80::1%25eth0]", "[fd00::1]",
    "[fc00::1]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]", "10.0.0.1.", "10.0.0.1.nip.io.",
]


@scenario(deadline=150)
def private_addresses_in_every_notation(lab):
    web = lab.host_service(80)
    lab.daemon([rule("all", "true")])
    client = lab.client()
    for host, status in statuses(client, [f"http://{literal}/" for literal in LITERALS]).items():
        check(status in HOST_BLOCKED, (host, status))
    seen = client.py('''
def ask(host):
    data = ("CONNECT %s:443 HTTP/1.1\\r\\nHost: %s:443\\r\\n\\r\\n" % (host, host)).encode()
    return first_line(GATEWAY, PROXY_PORT, data)
result = dict(zip(hosts, at_once(ask, hosts)))
''', hosts=LITERALS, seconds=120)
    for host, line in seen.items():
        check(" 200" not in line, (host, line))
    check(not web.visits, web.visits)
    check(not [p for p in lab.internet.packets.ip()
               if p.dst.startswith(("10.", "127.", "169.254.", "192.168.", "172.16.", "fd", "fe80::1", "2002:", "64:ff9b"))
               and p.protocol in (6, 17)], lab.internet.packets.ip())


@scenario()
def a_public_address_literal_needs_a_rule_too(lab):
    lab.daemon([rule("ip", 'network.ip == "93.184.216.34"'), rule("by-text", 'http.host == "93.184.216.35"')])
    client = lab.client()
    check(client.curl("http://93.184.216.34/").status == 200)
    check(client.curl("http://93.184.216.35/").status == 200)
    check(client.curl("http://93.184.217.99/").status == 403)
    lab.internet.nothing_for("93.184.217.99")


@scenario()
def a_rule_on_the_address_judges_each_address_and_dials_only_those(lab):
    lab.daemon([rule("ip", 'network.ip == "93.184.216.91"'), rule("dns", 'dns.query == "multi.example.com"')])
    lab.internet.names.set("multi.example.com", "93.184.216.90", "93.184.216.91", "93.184.216.92")
    client = lab.client()
    response = client.curl("http://multi.example.com/")
    check(response.status == 200 and response.json["address"] == "93.184.216.91", response)
    lab.internet.nothing_for("93.184.216.90", "93.184.216.92")


@scenario()
def rebinding_public_on_the_check_private_on_the_connect(lab):
    web = lab.host_service(80)
    lab.daemon(allow("rebind.example.com"))
    answers = ["93.184.216.34", "10.0.0.1", "127.0.0.1", GATEWAY]
    lab.internet.names.on("rebind.example.com",
                          lambda q: q.answer(("A", answers[min(q.count - 1, 3)]), ttl=0))
    client = lab.client()
    for _ in range(6):
        response = client.curl("http://rebind.example.com/", seconds=8)
        check(response.status in (200, 403, 502), response)
        check("host secret" not in response.text)
    check(not web.visits)
    lab.internet.nothing_for("10.0.0.1", "127.0.0.1")


@scenario()
def many_answers_of_which_one_is_private(lab):
    lab.daemon(allow("mixed.example.com"))
    lab.internet.names.set("mixed.example.com", "10.66.0.1", "93.184.216.95", "192.168.66.1", ttl=0)
    client = lab.client()
    for _ in range(5):
        response = client.curl("http://mixed.example.com/")
        check(response.status == 200 and response.json["address"] == "93.184.216.95", response)
    lab.internet.nothing_for("10.66.0.1", "192.168.66.1")


@scenario()
def a_cname_to_a_private_name(lab):
    lab.daemon(allow("alias.example.com"))
    lab.internet.names.set("alias.example.com", CNAME="db.corp.internal.")
    lab.internet.names.set("db.corp.internal", "10.67.0.1")
    client = lab.client()
    response = client.curl("http://alias.example.com/")
    check(response.status in (403, 502), response)
    lab.internet.nothing_for("10.67.0.1")


@scenario()
def the_first_address_refuses_the_second_is_taken(lab):
    lab.daemon(allow("two.example.com"))
    lab.far.run("nft", "-f", "-", input="table inet deaf { chain pre { type filter hook prerouting priority -300; "
                "ip daddr 93.184.216.120 tcp dport 80 reject with icmp type host-unreachable; } }", check=False)
    lab.undo(lambda: lab.far.run("nft", "delete", "table", "inet", "deaf", check=False))
    lab.internet.names.set("two.example.com", "93.184.216.120", "93.184.216.121")
    client = lab.client()
    check(client.curl("http://two.example.com/", seconds=20).status == 200)


@scenario()
def denied_names_are_neither_resolved_nor_connected(lab):
    lab.daemon(allow("example.com"))
    client = lab.client()
    for target in ("http://denied.example.net/", "http://notexample.com/"):
        check(client.curl(target).status == 403)
    for host in ("denied.example.net", "notexample.com"):
        back = client.raw(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
        check(back.startswith(b"HTTP/1.1 403"), back)
        lab.internet.not_asked(host)
