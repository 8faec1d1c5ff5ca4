"""The lab's own Docker Engine and its images.

dockerd runs inside the lab's namespaces with its own data, exec root, pid file and socket, so that it
meets no other engine of the machine. Images are imported from tar streams: there is no registry.
"""

import io
import ipaddress
import json
import os
import signal
import tarfile

import sh

# Address pools that stay clear of Outcall's own block, 10.200.0.0/16.
BRIDGE_ADDRESS = "172.29.0.1/24"
ADDRESS_POOL = "base=172.28.0.0/16,size=24"
# Debian's client and daemon belong together; another `docker` earlier in PATH may not.
CLIENT = "/usr/bin/docker" if os.path.exists("/usr/bin/docker") else "docker"
BUSYBOX = "lab/busybox"
TOOLS = "lab/tools"


class Engine:
    """dockerd in a namespace; `docker(...)` is its command line client."""

    def __init__(self, namespace, directory):
        self.namespace = namespace
        self.directory = directory
        self.socket = os.path.join(directory, "docker.sock")
        self.log = os.path.join(directory, "dockerd.log")
        self.process = None
        # Below what the engine finds files of this host: for bind mounts.
        self.host_files = ""

    @classmethod
    def of_another(cls, socket, host_files):
        """An engine that runs already, of another machine."""
        engine = cls(None, "/nonexistent")
        engine.socket, engine.host_files = socket, host_files
        return engine

    def start(self, *flags):
        """Starts dockerd (with extra flags) and waits until it answers."""
        at = self.directory
        self.process = sh.start(
            [
                *self.namespace.enter(), "dockerd",
                "--data-root", f"{at}/docker-data", "--exec-root", f"{at}/docker-exec",
                "--pidfile", f"{at}/docker.pid", "--host", f"unix://{self.socket}",
                "--bip", BRIDGE_ADDRESS, "--default-address-pool", ADDRESS_POOL,
                *flags,
            ],
            log=self.log,
            sig=signal.SIGTERM,
        )

        def answers():
            if self.process.poll() is not None:
                tail = open(self.log, errors="replace").read()[-2000:]
                raise sh.CommandFailed(f"dockerd ended with {self.process.returncode}: {tail}")
            return self.docker("version", "--format", "ok", check=False).code == 0

        sh.wait_for(answers, "dockerd to answer", 60, interval=0.1)

    def stop(self, sig=signal.SIGTERM):
        """Stops dockerd; SIGKILL leaves its containers running, as a crash does."""
        code = sh.stop(self.process, sig, grace=60)
        if sig == signal.SIGKILL:
            self._end_containerd()
        return code

    def _end_containerd(self):
        """A killed dockerd leaves its containerd behind, which would block the next start."""
        path = f"{self.directory}/docker-exec/containerd/containerd.pid"
        try:
            pid = int(open(path).read())
            os.kill(pid, signal.SIGTERM)
        except (OSError, ValueError):
            return
        sh.wait_for(lambda: not os.path.exists(f"/proc/{pid}"), "containerd to end", 15)

    def docker(self, *arguments, check=True, input=None, timeout=60):
        """Runs the docker client; gives a sh.Result."""
        return sh.run(
            [CLIENT, "--host", f"unix://{self.socket}", *arguments],
            check=check, input=input, timeout=timeout,
        )

    def inspect(self, name):
        """docker inspect of a container, image or network, as a dict; None if it is not there."""
        result = self.docker("inspect", name, check=False)
        return json.loads(result.text)[0] if result.code == 0 else None

    def network(self, name):
        """docker network inspect, or None."""
        result = self.docker("network", "inspect", name, check=False)
        return json.loads(result.text)[0] if result.code == 0 else None

    def gateway(self, network):
        """The gateway of a network: as configured, else the first address of its subnet."""
        found = self.network(network)
        if not found:
            raise AssertionError(f"Docker has no network {network}")
        config = found["IPAM"]["Config"][0]
        return config.get("Gateway") or str(ipaddress.ip_network(config["Subnet"])[1])

    def sweep(self):
        """Removes every container, every network made since, and every volume."""
        ids = self.docker("ps", "-aq").text.split()
        if ids:
            self.docker("rm", "-f", "-v", *ids)
        made = [
            line.split()[0]
            for line in self.docker("network", "ls", "--format", "{{.ID}} {{.Name}}").text.splitlines()
            if line.split()[1] not in ("bridge", "host", "none")
        ]
        if made:
            self.docker("network", "rm", *made)

    def load_images(self):
        """Imports lab/busybox and lab/tools."""
        self.docker("import", "-", BUSYBOX, input=busybox_image())
        self.docker("import", "-", TOOLS, input=tools_image())


def add_file(archive, name, data, mode=0o644):
    """Adds a regular file owned by root."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def add_link(archive, name, target):
    """Adds a symbolic link."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
    archive.addfile(entry)


def add_directory(archive, name, mode=0o755):
    """Adds an empty directory."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    archive.addfile(entry)


PASSWD = b"root:x:0:0:root:/root:/bin/sh\nagent:x:65532:65532:agent:/tmp:/bin/sh\n"
GROUP = b"root:x:0:\nagent:x:65532:\n"


def skeleton(archive):
    """What both images have."""
    for name in ("etc", "proc", "sys", "dev", "root", "lab", "run"):
        add_directory(archive, name)
    add_directory(archive, "tmp", 0o1777)
    add_file(archive, "etc/passwd", PASSWD)
    add_file(archive, "etc/group", GROUP)
    add_file(archive, "etc/nsswitch.conf", b"hosts: files dns\n")


def busybox_image():
    """A tar of static busybox with its usual applets as links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        skeleton(archive)
        add_directory(archive, "bin")
        with open("/usr/bin/busybox", "rb") as binary:
            add_file(archive, "bin/busybox", binary.read(), 0o755)
        for applet in sh.run(["/usr/bin/busybox", "--list"]).text.split():
            if applet != "busybox":
                add_link(archive, f"bin/{applet}", "busybox")
    return out.getvalue()


def tools_image():
    """A tar with next to nothing: the host's /usr is mounted over it, read-only, at each run."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        skeleton(archive)
        add_directory(archive, "usr")
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if os.path.islink(f"/{name}"):
                add_link(archive, name, f"usr/{name}")
        if os.path.exists("/etc/ld.so.cache"):
            with open("/etc/ld.so.cache", "rb") as cache:
                add_file(archive, "etc/ld.so.cache", cache.read())
    return out.getvalue()
