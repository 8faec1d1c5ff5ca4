"""Outcall as a container: what `compose.yaml` makes of it, by docker-compose and as the file stands, on a machine."""

import json
import os
import resource
import shutil

from harness import *
from machine import Machine
from scenarios import host
from scenarios.systemd import EXAMPLE, FAR, RULES, Sender, serves

FILE = f"{host.HOST}/compose.yaml"
# Descriptors that the file asks for.
DESCRIPTORS = 131072


@scenario(deadline=120, needs_machine=True)
def the_file_as_it_stands_makes_a_daemon_that_filters_and_comes_back(lab):
    box = Machine(lab)
    check(box.boot() == "running", box.tail(40))

    files = ["-f", FILE]
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most < DESCRIPTORS:
        # This machine lets nobody have as many, root included; all else is as the file says.
        with open(lab.path("fewer.yaml"), "w") as fewer:
            json.dump({"services": {"outcalld": {"ulimits": {"nofile": most}}}}, fewer)
        files += ["-f", lab.path("fewer.yaml")]

    def compose(*words):
        return run(["docker-compose", *files, *words], check=False,
                   env={**os.environ, "DOCKER_HOST": f"unix://{box.engine.socket}"})

    def ready():
        return box.engine.docker("exec", "outcalld", "outcall", "ready", check=False).code == 0

    box.engine.load_images()
    run([f"{host.HOST}/image", "outcall", f"{host.packaged(lab)}/image"],
        env={**os.environ, "DOCKER": f"docker --host unix://{box.engine.socket}"})
    # Of the package only the lockdown and the shim: the daemon is the container's.
    shutil.copy(host.deb(lab), f"{box.root}/root/outcall.deb")
    box.run("dpkg", "--install", "/root/outcall.deb", check=True)
    box.systemctl("mask", "outcalld.service", "outcalld.socket", "outcall-agent.socket")
    box.systemctl("start", "outcall-lockdown")
    box.write(RULES, EXAMPLE)
    up = compose("up", "--detach")
    check(up.code == 0 and "WARNING" not in up.errors.upper(), up)
    try:
        wait_for(ready, "outcalld in its container", 20)
    except Timeout as late:
        raise AssertionError(f"{late}: {compose('logs', '--tail', '20').text}") from late
    check(compose("exec", "-T", "outcalld", "outcall").text.startswith("outcalld:  ready"))
    sender = Sender(lab, box)
    client = sender.client

    def all_works():
        check(serves(client) and client.curl("http://denied.example.net/").status == 403)
        check(client.run("/shim", "fetch", "http://example.com/").code == 0)
        sender.reaches_nothing()

    all_works()
    # Killed: the Engine starts it again.
    pid = lambda: box.engine.inspect("outcalld")["State"]["Pid"]
    before = pid()
    box.run("sh", "-c", f"kill -9 {before}", check=True)
    wait_for(lambda: pid() not in (0, before) and ready(), "outcalld to be back", 20)
    all_works()
    # A boot: the lockdown first, then the Engine starts the two containers in any order.
    box.cut_power()
    check(box.boot() == "running", box.tail(40))
    wait_for(ready, "outcalld to be back after a boot", 30)
    all_works()
    # Down: closed.
    down = compose("down")
    check(down.code == 0 and "inet outcall" in box.run("nft", "list", "tables").text, down)
    check(not serves(client))
    sender.reaches_nothing()
    lab.internet.nothing_for(FAR)
