"""As a new operator would, with only the README: Debian, the package, doctor, a denial, why, a rule, a pass."""

import os
import re
import shutil

import daemon as daemon_module
from harness import *
from machine import Machine
from scenarios import host


class Readme:
    """The commands of the README, section "On a host", as they stand there."""

    def __init__(self, box):
        self._box = box
        with open(f"{daemon_module.REPOSITORY}/README.md") as file:
            section = re.search(r"^## On a host$(.*?)^## ", file.read(), re.M | re.S).group(1)
        self._blocks = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)

    def do(self, beginning, image="lab/busybox"):
        """Runs the block of commands that has a line that begins so, from there on; gives a sh.Result of all of it."""
        starts = ((block, re.search("^" + re.escape(beginning), block, re.M)) for block in self._blocks)
        found = [block[start.start():] for block, start in starts if start]
        check(len(found) == 1, beginning)
        commands = "cd /root\n" + found[0].replace("IMAGE", image)
        # "y" is for apt, which asks.
        return self._box.run("sh", "-ec", commands, input="y\n", timeout=90)


@scenario(deadline=120, needs_machine=True)
def from_a_clean_debian_to_a_rule_that_passes(lab):
    box = Machine(lab)
    check(box.boot() == "running", box.tail(40))
    box.engine.load_images()
    box.systemctl("stop", "docker.socket", "docker.service")
    readme = Readme(box)
    # Install. Nothing starts, everything is enabled, the group is there.
    os.makedirs(f"{box.root}/root/target/host")
    shutil.copy(host.deb(lab), f"{box.root}/root/target/host/")
    installed = readme.do("apt-get install ./target/host/")
    check(installed.code == 0 and "outcall doctor" in installed.text, installed)
    check(box.run("getent", "group", "outcall").code == 0)
    units = ["outcall-lockdown.service", "outcalld.service", "outcalld.socket", "outcall-agent.socket"]
    check(box.systemctl("is-enabled", *units).split() == ["enabled"] * 4)
    check(box.run("systemctl", "is-active", *units).text.split() == ["inactive"] * 4)
    check(box.run("outcall").code == 1 and "is it running?" in box.run("outcall").errors)
    # Be told what is missing, and do what is said.
    doctor = readme.do("outcall doctor")
    check(doctor.code == 1, doctor)
    check("no Engine answers" in doctor.text and "systemctl start docker" in doctor.text, doctor)
    check("systemctl start outcall-lockdown" in doctor.text and "everything is blocked" in doctor.text, doctor)
    box.systemctl("start", "docker")
    check("no Engine answers" not in box.run("outcall", "doctor").text)
    state = readme.do("systemctl start")
    check(state.code == 0, state)
    check("none: everything is blocked" in state.text and "Next: write a rule" in state.text, state)
    doctor = readme.do("outcall doctor")
    check(doctor.code == 0, doctor)
    # Run an agent and watch it being denied. Why?
    ran = readme.do("docker run")
    check(ran.code == 1 and "403" in ran.errors, ran)
    why = readme.do("outcall events --blocked")
    check(why.code == 0 and re.search(r"block.*agent-1.*example\.com", why.text), why)
    lab.internet.not_asked("example.com")
    agent = lab.client(name="agent-2", engine=box.engine)
    check(agent.curl("http://example.com/").status == 403)
    # Write the rule, with a mistake first: check says where, and reload changes nothing.
    rules = "/etc/outcall/rules.d/10-agents.yaml"
    box.write(rules, 'version: "1"\nrules:\n  - id: a\n    condition: http.hots == "example.com"\n    action: allow\n')
    checked = box.run("outcall", "rules", "check")
    check(checked.code == 1 and "10-agents.yaml" in checked.text and "http.host" in checked.text, checked)
    check(box.run("outcall", "rules", "reload").code == 1)
    check(agent.curl("http://example.com/").status == 403)
    loaded = readme.do("cat > /etc/outcall/rules.d/10-agents.yaml")
    check(loaded.code == 0 and "1 rule" in loaded.text and "allow-example" in loaded.text, loaded)
    # Watch it pass.
    ran = readme.do("docker run")
    check(ran.code == 0 and '"target": "/"' in ran.text, ran)
    check(agent.curl("http://example.com/").status == 200)
    check(agent.curl("http://denied.example.net/").status == 403)
    by_hand = readme.do("curl --unix-socket")
    check(by_hand.code == 0 and '"outcall0"' in by_hand.text and "table inet outcall" in by_hand.text, by_hand)
    # Remove, then purge: rules and state stay, then go; the tables stay closed.
    removed = box.run("apt-get", "remove", "-y", "outcall")
    check(removed.code == 0 and os.path.exists(box.root + rules), removed)
    check("inet outcall" in box.run("nft", "list", "tables").text)
    check(agent.curl("http://example.com/", seconds=1).status != 200)
    purged = box.run("apt-get", "purge", "-y", "outcall")
    check(purged.code == 0 and not os.path.exists(f"{box.root}/var/lib/outcall"), purged)
    check(os.path.exists(box.root + rules), "an operator's own rule file was removed")
    check("0 unit files" in box.run("systemctl", "list-unit-files", "outcall*").text)
