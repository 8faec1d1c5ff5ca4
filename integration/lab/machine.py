"""A machine that boots: Debian with its own systemd as process 1, its own Docker, on the lab's uplink.

It is made of namespaces and of a Debian that debootstrap unpacks once (an overlay keeps what a scenario changes), so it
boots in a second or two. The kernel is the host's; everything above it is what a Debian host runs, on cgroup v2. From
power-on to power-off it takes the lab host's place on the internet. Owns no expectation about Outcall.
"""

import errno
import os
import shutil
import signal

import engine as engine_module
import netns
import sh

HERE = os.path.dirname(os.path.abspath(__file__))
SUITE = "bookworm"
# Beyond a minimal system: systemd with its bus, what the package depends on, Docker, and what the README uses.
PACKAGES = ["systemd", "dbus", "adduser", "libnftnl11", "docker.io", "iptables", "nftables", "ca-certificates",
            "curl"]
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME", "/var/cache"), "outcall-lab")
# Where the machine finds files of the host.
HOST_FILES = "/lab"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
DEBOOTSTRAP_SECONDS = 900
BOOT_SECONDS = 40
OFF_SECONDS = 30

# $1 root, $2 base, $3 the machine's directory, $4 control group, then the paths of the host that it is to see.
BOOT = r"""
set -eu
root=$1 base=$2 own=$3 group=$4
shift 4
mount -t overlay overlay -o "lowerdir=$base,upperdir=$own/changed,workdir=$own/work" "$root"
cd "$root"
for path in "$@"; do
    there=.$HOST_FILES$path
    if [ -d "$path" ]; then mkdir -p "$there"; else mkdir -p "${there%/*}"; : >"$there"; fi
    mount --bind "$path" "$there"
done
# Docker's overlays do not nest in another.
mkdir -p var/lib/docker
mount --bind "$own/docker" var/lib/docker
mount -t proc proc proc
# Settings that are not the network namespace's would be the host's own.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,rw proc/sys/net
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
for device in null zero full random urandom tty; do : >"dev/$device"; mount --bind "/dev/$device" "dev/$device"; done
: >dev/console
mount --bind "$own/console" dev/console
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
# Its control groups are a part of the host's version 2 tree, and the root of its own.
mount -t cgroup2 cgroup2 sys/fs/cgroup
mkdir "sys/fs/cgroup/$group"
echo 0 >"sys/fs/cgroup/$group/cgroup.procs"
umount sys/fs/cgroup
exec unshare --cgroup sh -euc '
mount -t cgroup2 cgroup2 sys/fs/cgroup
mkdir -p mnt
pivot_root . mnt
cd /
umount -l /mnt
exec env -i container=outcall-lab PATH="$PATH" /lib/systemd/systemd --log-target=journal
' <"$own/console" >>"$own/console" 2>&1
"""

# Removes the control groups of machines whose runner is gone, and the one named.
REMOVE_GROUPS = r"""
mount -t cgroup2 cgroup2 "$1" && cd "$1" || exit 1
for group in outcall-lab.*; do
    owner=${group#outcall-lab.}
    [ -d "/proc/${owner%%.*}" ] && [ "$group" != "$2" ] || find "$group" -depth -type d -exec rmdir {} +
done
"""


def base(say=print):
    """The directory of the Debian that machines begin with, made from the mirror that apt uses if it is not there."""
    made = f"{CACHE}/{SUITE}-{'-'.join(PACKAGES)}"
    if os.path.exists(made):
        return made
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", f"Codename: {SUITE}"]
    listed = sh.run(words)
    mirrors = listed.text.split()
    if not mirrors:
        raise AssertionError(f"apt has no source for {SUITE}, of which the machine is made")
    say(f"lab: unpacking a Debian into {CACHE}, once")
    making = f"{made}.{os.getpid()}"
    os.makedirs(CACHE, exist_ok=True)
    done = sh.run(["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, making, mirrors[0]],
                  timeout=DEBOOTSTRAP_SECONDS, check=False)
    if done.code != 0:
        shutil.rmtree(making, ignore_errors=True)
        raise AssertionError(f"debootstrap: {done.text[-600:]} {done.errors[-300:]}")
    shutil.rmtree(f"{making}/var/cache/apt")
    shutil.rmtree(f"{making}/var/lib/apt/lists")
    try:
        os.rename(making, made)
    except OSError as problem:  # another run was faster
        if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(making)
    return made


class Machine:
    """One machine. Counts as one of the lab's daemons: it is ended with them, and a failure shows its journal."""

    def __init__(self, lab):
        self._lab = lab
        self._base = base()
        self._boots = 0
        self._group = None
        self._process = None
        self._space = None
        self._pid = None
        self.engine = engine_module.Engine.of_another(None, HOST_FILES)
        self.directory = lab.path("machine")
        for name in ("root", "changed", "work", "docker"):
            os.makedirs(f"{self.directory}/{name}")
        self.write("/etc/hostname", "machine\n")
        self.write("/etc/resolv.conf", "nameserver 9.9.9.9\n")
        # The console is a file, where nobody logs in; and what a clock starts would be another run each time.
        units = f"{self.directory}/changed/etc/systemd/system"
        os.makedirs(units)
        for unit in ("console-getty.service", "timers.target"):
            os.symlink("/dev/null", f"{units}/{unit}")
        lab.daemons.append(self)

    @property
    def root(self):
        """Its root directory as the runner sees it, while it is on."""
        return f"/proc/{self._pid}/root"

    def write(self, path, text):
        """Writes a file, while it is on or before it ever was."""
        root = self.root if self._pid else f"{self.directory}/changed"
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        with open(root + path, "w") as file:
            file.write(text)

    def boot(self):
        """Power on; gives what systemd calls the state of the system when every start is over."""
        self._boots += 1
        space = netns.Namespace("machine")
        netns.hand_over(self._space or self._lab.space, space)
        if self._space:
            self._space.close()
        self._space = space
        self._group = f"outcall-lab.{os.getpid()}.{os.path.basename(os.path.dirname(self.directory))}.{self._boots}"
        shared = [path for path in ("/usr", "/etc/ssl", "/etc/alternatives") if os.path.isdir(path)]
        console = f"{self.directory}/console"
        open(console, "a").close()
        self._process = sh.start(
            [*space.enter(), "unshare", "--mount", "--propagation", "private", "--uts", "--ipc", "--pid", "--fork",
             "--kill-child", "--", "sh", "-c", BOOT, "boot", f"{self.directory}/root", self._base, self.directory,
             self._group, *shared, f"{HERE}/inside", self._lab.internet.authority.root],
            log=console, env={"PATH": PATH, "HOST_FILES": HOST_FILES})

        def is_up():
            if self._process.poll() is not None:
                raise AssertionError(f"the machine did not boot: {open(console).read()[-1500:]}")
            children = open(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read().split()
            self._pid = int(children[0]) if children else None
            return self._pid and os.path.exists(f"{self.root}/run/systemd/private")

        sh.wait_for(is_up, "systemd to come up", BOOT_SECONDS)
        self.engine.socket = f"{self.root}/run/docker.sock"
        return self.run("systemctl", "is-system-running", "--wait").text.strip()

    def words(self, *command):
        """Command words that run something on it."""
        return ["nsenter", "--target", str(self._pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup",
                "/usr/bin/env", "-i", f"PATH={PATH}", *command]

    def run(self, *command, check=False, input=None, timeout=60):
        """Runs a command as root; gives a sh.Result."""
        return sh.run(self.words(*command), check=check, input=input, timeout=timeout)

    def systemctl(self, *words):
        """systemctl, which must succeed; gives its output."""
        return self.run("systemctl", *words, check=True).text.strip()

    def shown(self, unit, name):
        """A property of a unit, as `systemctl show` gives it."""
        return self.systemctl("show", "--property", name, "--value", unit)

    def journal(self, *words):
        """Lines of the journal since this boot."""
        return self.run("journalctl", "--boot", "--no-pager", "--output", "short-monotonic", *words).text

    def shut_down(self):
        """As `systemctl poweroff` does."""
        self.systemctl("--no-block", "poweroff")
        sh.wait_for(lambda: self._process.poll() is not None, "the machine to shut down", OFF_SECONDS)
        self._off()

    def cut_power(self):
        """Gone at once."""
        sh.stop(self._process, signal.SIGKILL)
        self._off()

    def _off(self):
        pid, self._pid = self._pid, None
        sh.wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "the machine's processes to be gone", OFF_SECONDS)
        at = f"{self.directory}/root"
        sh.run(["unshare", "--mount", "sh", "-c", REMOVE_GROUPS, "remove", at, self._group])

    def tail(self, lines):
        """For a failure: what its journal and its console said last."""
        said = self.journal("--lines", str(lines), "--unit", "outcall*") if self._pid else ""
        return f"{said}\n{open(f'{self.directory}/console', errors='replace').read()[-1500:]}"

    def end(self):
        """Off, and the lab host back on the internet."""
        if self._pid or (self._process and self._process.poll() is None):
            self.cut_power()
        if self._space:
            netns.hand_over(self._space, self._lab.space)
            self._space.close()
            self._space = None
