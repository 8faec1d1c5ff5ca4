"""`explain` beside what a real container meets: allowed, denied at each layer, and the rule it suggests."""

import json

from harness import *
from scenarios.dynamic_rules import allow_by_hand
from scenarios.intercept import intercept, make_ca, trusting


def explain(daemon, client, target, *more):
    """`outcall explain` for this container; gives the data, its steps as {layer: last verdict, rule}."""
    ran = daemon.cli("--json", "explain", target, "--container", client.name, *more)
    check(ran.code == 0, ran)
    data = json.loads(ran.text)
    steps = {}
    for step in data["steps"]:
        check(set(step) == {"layer", "verdict", "rule", "reason", "near"}, step)
        steps[step["layer"]] = (step["verdict"], step["rule"])
    return data, steps


@scenario()
def allowed_and_denied_at_each_layer_as_the_container_meets_it(lab):
    daemon = lab.daemon([
        rule("by-name", 'http.host == "example.com" || dns.query == "example.com"'),
        rule("proxy-only", 'http.host == "www.example.com" && network.port == 80'),
        rule("not-there", 'http.host == "www.example.com" && http.path == "/admin"', "block", priority=1),
        rule("straight", 'dns.query == "api.example.com"', egress={"mode": "direct_ip", "ports": [80]}),
    ])
    client = lab.client()

    data, steps = explain(daemon, client, "http://example.com/")
    check(data["verdict"] == "allow" and "suggestion" not in data, data)
    check(steps["dns"] == ("allow", "by-name") and steps["resolution"] == ("allow", "by-name"), steps)
    check(client.curl("http://example.com/").status == 200)

    data, steps = explain(daemon, client, "http://www.example.com/")
    check(data["verdict"] == "allow" and steps["dns"] == ("block", None), data)
    check(client.curl("http://www.example.com/").status == 200)
    check(client.dig("www.example.com").status == "NXDOMAIN")

    data, steps = explain(daemon, client, "http://www.example.com/admin")
    check(data["verdict"] == "block" and steps["proxy"] == ("block", "not-there"), data)
    refused = client.curl("http://www.example.com/admin")
    check(refused.status == 403 and refused.header("X-Outcall-Block-Reason") == "not-there", refused)

    data, steps = explain(daemon, client, "https://www.example.com/")
    near = next(step for step in data["steps"] if step["layer"] == "proxy")["near"]
    near = {rule["rule"]: rule["failed"] for rule in near}
    check(near["proxy-only"] == [{"part": "network.port == 80", "is": "false", "values": {"network.port": "443"}}], near)
    check(client.curl("https://www.example.com/").connect_status == 403)

    data, steps = explain(daemon, client, "api.example.com:80")
    check(data["verdict"] == "allow" and steps["direct_ip"] == ("allow", "straight"), data)
    data, steps = explain(daemon, client, "api.example.com:443")
    check(data["verdict"] == "block" and steps["direct_ip"] == ("block", "straight"), data)

    data, steps = explain(daemon, client, "denied.example.net")
    check(data["verdict"] == "block" and set(steps) == {"dns", "proxy", "kernel"}, data)
    lab.internet.not_asked("denied.example.net")


@scenario()
def the_suggested_rule_opens_exactly_what_was_asked_for(lab):
    daemon = lab.daemon([rule("family", 'http.host.endsWith(".example.com")', "block", priority=5)])
    client = lab.client()
    for url in ("http://www.example.com/a", "https://www.example.com/"):
        data, _ = explain(daemon, client, url)
        check(data["verdict"] == "block" and "priority: 4" in data["suggestion"], data)
        before = client.curl(url)
        check(403 in (before.status, before.connect_status), before)
        daemon.reload(data["suggestion"], name="suggested.yaml")
        check(explain(daemon, client, url)[0]["verdict"] == "allow")
        after = client.curl(url)
        check(after.status == 200, after)
    check(client.curl("http://www.example.com/b").status == 403)
    text = daemon.cli("explain", "http://www.example.com/b", "--container", client.name).text
    check("The smallest rule that would allow it:" in text and "Verdict:  block" in text, text)
    check(daemon.cli("explain", "a.example", "--container", "nobody").code == 1)


@scenario()
def a_flow_that_is_open_is_told(lab):
    daemon = lab.daemon([])
    client, other = lab.client(name="alpha-1"), lab.client(name="beta-1")
    data, steps = explain(daemon, client, "5.45.1.1:7000")
    check(data["verdict"] == "block" and steps["kernel"] == ("block", None), data)
    allow_by_hand(daemon, client, "5.45.1.1")
    data, steps = explain(daemon, client, "5.45.1.1:7000")
    check(data["verdict"] == "allow" and steps["kernel"] == ("allow", None), data)
    check("open now, opened by hand" in data["steps"][-1]["reason"], data)
    for container, target in ((other, "5.45.1.1:7000"), (client, "5.45.1.1:7001")):
        data, steps = explain(daemon, container, target)
        check(data["verdict"] == "block" and steps["kernel"] == ("block", None), data)
    check(daemon.cli("rules", "flush").code == 0)
    check(explain(daemon, client, "5.45.1.1:7000")[0]["verdict"] == "block")


@scenario()
def a_rule_for_a_request_in_a_decrypted_tunnel_opens_no_other(lab):
    reads = intercept("reads", 'http.host == "api.example.com" && http.path.startsWith("/v1/")')
    daemon = lab.daemon([reads], make_ca(lab))
    client = trusting(lab)
    data, steps = explain(daemon, client, "https://api.example.com/v2/a")
    check(data["verdict"] == "block" and steps["intercept"] == ("block", None), data)
    check("mode: intercept" in data["suggestion"] and 'http.path == "/v2/a"' in data["suggestion"], data)
    check(client.curl("https://api.example.com/v2/a").status == 403)
    daemon.reload(data["suggestion"], name="suggested.yaml")
    check(client.curl("https://api.example.com/v2/a").status == 200)
    check(client.curl("https://api.example.com/v2/b").status == 403)
