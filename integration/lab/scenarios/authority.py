"""The CA of interception in a running daemon: loaded, protected, shown; and nothing of it without one."""

import os
import re

import sh
from daemon import binary
from harness import *

INSIDE = rule("inside", 'http.host == "example.com" && http.path == "/x"', egress={"mode": "intercept"})


def ca_init(lab, name="ca"):
    """A pair; gives its two paths and its fingerprint."""
    at = lab.path(name)
    said = sh.run([binary("outcall"), "ca", "init", "--algorithm", "ecdsa", "--out", at]).text
    return f"{at}/ca-cert.pem", f"{at}/ca-key.pem", re.search(r"([0-9A-F]{2}:){31}[0-9A-F]{2}", said).group()


def threads(daemon):
    """Names of the daemon's threads."""
    tasks = f"/proc/{daemon.process.pid}/task"
    return {open(f"{tasks}/{task}/comm").read().strip() for task in os.listdir(tasks)}


def command(daemon, *words):
    """`outcall` against this daemon."""
    return sh.run([binary("outcall"), "--socket", daemon.socket, *words], check=False)


@scenario()
def without_a_ca_nothing_of_it_exists(lab):
    daemon = lab.daemon(allow("example.com"))
    check("leaves" not in threads(daemon), threads(daemon))
    for path in ("/ca", "/ca/bundle", "/proxy/intercept"):
        check(daemon.api("GET", "/api/v1" + path).status == 404, path)
    for word in ("status", "bundle"):
        done = command(daemon, "ca", word)
        check(done.code == 6 and "--ca-cert" in done.errors, done)
    check(not os.path.exists(f"{daemon.state_dir}/ca"))
    with open(f"{daemon.rules_dir}/inside.yaml", "w") as file:
        file.write('version: "1"\nrules:\n  - {id: inside, condition: "true", action: allow, egress: {mode: intercept}}\n')
    answer = daemon.api("POST", "/api/v1/rules/reload")
    check(answer.status == 422 and "--ca-cert" in answer.error, answer)


@scenario()
def a_loaded_ca_is_shown_protected_and_asked_for_its_health(lab):
    cert, key, fingerprint = ca_init(lab)
    daemon = lab.daemon([INSIDE], ["--ca-cert", cert, "--ca-key", key])
    check("leaves" in threads(daemon), threads(daemon))
    check("leaves" in daemon.api("GET", "/api/v1/health").data["subsystems"])
    shown = daemon.api("GET", "/api/v1/ca").data
    check(shown["fingerprint_sha256"] == fingerprint and shown["loaded"] and shown["leaf_cache_max"] == 1024, shown)
    check(fingerprint in command(daemon, "ca", "status").text)
    check(daemon.api("GET", "/api/v1/proxy/intercept").data["ca_loaded"])
    check(daemon.api("POST", "/api/v1/proxy/intercept/cache/flush").data == {"evicted": 0})
    bundle = f"{daemon.state_dir}/ca/bundle.pem"
    check(os.stat(bundle).st_mode & 0o777 == 0o644 and os.stat(os.path.dirname(bundle)).st_mode & 0o777 == 0o755)
    check(open(cert).read() in open(bundle).read())
    check(command(daemon, "ca", "bundle").text == open(bundle).read())
    secret = open(key).read().splitlines()[2]
    check(secret not in daemon.text())
    check(daemon.stop() == 0)


@scenario()
def a_pair_that_must_not_be_used_stops_the_start(lab):
    cert, key, _ = ca_init(lab)
    other, _, _ = ca_init(lab, "other")
    os.chmod(key, 0o640)
    for flags, words in ((["--ca-cert", cert, "--ca-key", key], ["ca-key.pem", "0640", "chmod 600"]),
                         (["--ca-cert", other, "--ca-key", key], ["is not that of the certificate"]),
                         (["--ca-cert", key, "--ca-key", key], ["no certificate"])):
        daemon = lab.daemon(wait=False, flags=flags)
        code, text = daemon.runs_out()
        check(code == 1 and all(word in text for word in words) and "interception" in text, (code, text))
        os.chmod(key, 0o600)
    check(not lab.tables(), "the start touched the kernel first")


@scenario()
def a_pair_that_cannot_be_read_leaves_interception_off_with_a_warning(lab):
    cert, _, _ = ca_init(lab)
    for flags in (["--ca-cert", cert], ["--ca-cert", cert, "--ca-key", "/nonexistent/key.pem"]):
        daemon = lab.daemon(allow("example.com"), flags)
        warnings = daemon.api("GET", "/api/v1/ready").data["warnings"]
        check(any("interception is off" in warning for warning in warnings), warnings)
        check("leaves" not in threads(daemon) and daemon.api("GET", "/api/v1/ca").status == 404)
        daemon.stop()
