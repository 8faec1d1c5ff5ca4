"""As a new operator would, with only the README: a clean Debian, the package, doctor, a denial, why, a rule, a pass."""

import os
import re
import shutil
import subprocess

from scenarios import host
from harness import *

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SUITE = "bookworm"
# What the package depends on beyond a minimal system; `apt-get install ./outcall.deb` would fetch it.
DEPENDS = ["adduser", "libnftnl11"]
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME", "/var/cache"), "outcall-lab")


def clean_root(lab):
    """Unpacks a minimal Debian. Made once for a machine with debootstrap from the mirror that apt uses, then cached."""
    tarball = f"{CACHE}/{SUITE}-{'-'.join(DEPENDS)}.tar"
    root = lab.path("root")
    if not os.path.exists(tarball):
        listed = run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {SUITE}"])
        mirrors = listed.text.split()
        if not mirrors:
            skip(f"apt has no source for {SUITE}")
        made = run(["debootstrap", "--variant=minbase", f"--include={','.join(DEPENDS)}", SUITE, root, mirrors[0]],
                   timeout=280, check=False)
        if made.code != 0:
            raise AssertionError(f"debootstrap: {made.text[-600:]} {made.errors[-300:]}")
        shutil.rmtree(f"{root}/var/cache/apt", ignore_errors=True)
        os.makedirs(CACHE, exist_ok=True)
        run(["tar", "-C", root, "-cf", f"{tarball}.{os.getpid()}", "."])
        os.rename(f"{tarball}.{os.getpid()}", tarball)
    else:
        os.makedirs(root)
        run(["tar", "-C", root, "-xf", tarball])
    return root


class Debian:
    """The operator's machine: the clean root, in the lab's network, with the lab's Docker Engine."""

    def __init__(self, lab, root):
        self.lab = lab
        self.root = root
        for name in ("proc", "sys", "dev"):
            self._mount("--rbind", f"/{name}", f"{root}/{name}")
            self._mount("--make-rslave", f"{root}/{name}")
        open(f"{root}/run/docker.sock", "w").close()

    def _mount(self, *words):
        self.lab.space.run("mount", *words)
        if words[0] == "--rbind":
            self.lab.undo(lambda: self.lab.space.run("umount", "-R", "-l", words[2], check=False))

    def docker_appears(self):
        """As if Docker were installed and started."""
        self._mount("--rbind", self.lab.engine.socket, f"{self.root}/run/docker.sock")

    def words(self, *command):
        """Command words that run something on this machine."""
        return [*self.lab.space.enter(), "chroot", self.root, "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                *command]

    def run(self, *command, check=False):
        """Runs a command; gives a sh.Result."""
        return run(self.words(*command), check=check, timeout=60)

    def write(self, path, text):
        """What the operator's editor does."""
        with open(self.root + path, "w") as file:
            file.write(text)


@scenario(deadline=400)
def from_a_clean_debian_to_a_rule_that_passes(lab):
    package = host.deb(lab)
    machine = Debian(lab, clean_root(lab))
    # Install. Nothing starts, everything is enabled, the group is there.
    shutil.copy(package, f"{machine.root}/root/outcall.deb")
    installed = machine.run("dpkg", "-i", "/root/outcall.deb")
    check(installed.code == 0, installed)
    check("outcall doctor" in installed.text, installed.text)
    check(re.search(r"^outcall:", open(f"{machine.root}/etc/group").read(), re.M))
    check(os.path.islink(f"{machine.root}/etc/systemd/system/multi-user.target.wants/outcalld.service"))
    check(os.path.islink(f"{machine.root}/etc/systemd/system/multi-user.target.wants/outcall-lockdown.service"))
    check(os.path.islink(f"{machine.root}/etc/systemd/system/sockets.target.wants/outcalld.socket"))
    check(machine.run("outcall").code == 1 and "is it running?" in machine.run("outcall").errors)
    # Be told what is missing.
    doctor = machine.run("outcall", "doctor")
    check(doctor.code == 1, doctor)
    check("no Engine answers" in doctor.text and "apt-get install docker.io" in doctor.text, doctor)
    check("systemctl start" in doctor.text and "everything is blocked" in doctor.text, doctor)
    machine.docker_appears()
    check("no Engine answers" not in machine.run("outcall", "doctor").text)
    # Start: what the units' ExecStart say, in the order of a boot.
    machine.write("/etc/default/outcalld", f'OUTCALLD_FLAGS="--dns-upstream {UPSTREAM}"\n')
    for unit in ("outcall-lockdown.service", "outcalld.service"):
        text = open(f"{machine.root}/usr/lib/systemd/system/{unit}").read()
        line = re.search(r"^ExecStart=(.*)$", text, re.M).group(1)
        command = line.replace("$OUTCALLD_FLAGS", f"--dns-upstream {UPSTREAM}").split()
        if "oneshot" in text:
            check(machine.run(*command).code == 0)
            check(("inet", "outcall") in lab.tables())
            continue
        log = open(lab.path("outcalld.log"), "ab")
        daemon = subprocess.Popen(machine.words(*command), stdout=log, stderr=log)

        def end(process=daemon):
            process.terminate()
            process.wait(20)

        lab.undo(end)
    try:
        wait_for(lambda: machine.run("outcall").code == 0 and '"ready":true' in machine.run("outcall", "--json").text,
                 "outcalld to be ready", 20, 0.2)
    except Timeout as late:
        raise AssertionError(f"{late}: {open(lab.path('outcalld.log')).read()[-1500:]}") from late
    doctor = machine.run("outcall", "doctor")
    check(doctor.code == 0, doctor)
    state = machine.run("outcall")
    check("none: everything is blocked" in state.text and "Next: write a rule" in state.text, state)
    # Run an agent and watch it being denied.
    agent = lab.client(name="agent-1")
    check(agent.curl("http://example.com/").status == 403)
    check(agent.dig("example.com").status == "NXDOMAIN")
    lab.internet.not_asked("example.com")
    decided = open(f"{machine.root}/var/lib/outcall/decisions.jsonl").read()
    check('"verdict":"block"' in decided and "agent-1" in decided, decided[-500:])
    # Why?
    why = machine.run("outcall", "explain", "http://example.com/", "--container", "agent-1")
    check(why.code == 0 and "block" in why.text, why)
    # Write the rule, with a mistake first: check says where, and reload changes nothing.
    rules = "/etc/outcall/rules.d/10-agents.yaml"
    text = 'version: "1"\nrules:\n  - id: allow-example\n    condition: http.hots == "example.com"\n    action: allow\n'
    machine.write(rules, text)
    checked = machine.run("outcall", "rules", "check")
    check(checked.code == 1 and "10-agents.yaml" in checked.text and "http.host" in checked.text, checked)
    check(machine.run("outcall", "rules", "reload").code == 1)
    check(agent.curl("http://example.com/").status == 403)
    machine.write(rules, text.replace("hots", "host"))
    checked = machine.run("outcall", "rules", "check")
    check(checked.code == 0, checked)
    loaded = machine.run("outcall", "rules", "reload")
    check(loaded.code == 0 and "1 rule" in loaded.text, loaded)
    # Watch it pass.
    check(agent.curl("http://example.com/").status == 200)
    check(agent.curl("http://denied.example.net/").status == 403)
    listed = machine.run("outcall", "rules", "list")
    check("allow-example" in listed.text, listed)
    # Remove, then purge: rules and state stay, then go; the tables stay closed.
    end()
    removed = machine.run("dpkg", "-r", "outcall")
    check(removed.code == 0 and os.path.exists(machine.root + rules), removed)
    check(("inet", "outcall") in lab.tables() and agent.curl("http://example.com/", seconds=1).status != 200)
    purged = machine.run("dpkg", "-P", "outcall")
    check(purged.code == 0 and not os.path.exists(f"{machine.root}/var/lib/outcall"), purged)
    check(os.path.exists(machine.root + rules), "an operator's own rule file was removed")
    check(not os.path.lexists(f"{machine.root}/etc/systemd/system/multi-user.target.wants/outcalld.service"))
