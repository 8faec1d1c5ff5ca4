#!/usr/bin/python3
"""Runs a command confined as a systemd unit confines its service, where no systemd runs.

Usage: unit.py UNIT [--write PATH]... -- COMMAND...

Takes from the unit: SystemCallFilter (its groups as `systemd-analyze syscall-filter` lists them),
RestrictAddressFamilies, RestrictNamespaces, MemoryDenyWriteExecute, CapabilityBoundingSet, NoNewPrivileges and
ProtectSystem=strict, with `--write` in place of the unit's own directories. One thing is stricter: what the filter
refuses kills the process, so that a call which the daemon would get over is seen too.
"""

import ctypes
import os
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)
seccomp = ctypes.CDLL("libseccomp.so.2", use_errno=True)

CAPABILITIES = {"CAP_NET_BIND_SERVICE": 10, "CAP_NET_ADMIN": 12}
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
LAST_CAPABILITY = 40
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAPBSET_READ = 24, 38, 23
CLONE_NEWNS, MS_REC, MS_SLAVE, MS_BIND = 0x20000, 0x4000, 1 << 19, 0x1000
NAMESPACES = 0x7E020080  # CLONE_NEW*: what RestrictNamespaces=yes refuses to clone(2)
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 1
ACT_ALLOW, ACT_KILL_PROCESS, ACT_ERRNO_EPERM = 0x7FFF0000, 0x80000000, 0x00050001
CMP_NE, CMP_MASKED_EQ = 1, 7
PROT_EXEC = 4


def read_unit(path):
    """Directive -> list of values, in order, of the [Service] section."""
    values, section = {}, None
    with open(path) as file:
        for line in file:
            line = line.strip()
            if line.startswith("["):
                section = line
            elif section == "[Service]" and line and not line.startswith("#"):
                key, _, value = line.partition("=")
                values.setdefault(key, []).append(value)
    return values


def group(name):
    """The system calls of a systemd group, its inner groups opened."""
    listed = subprocess.run(["systemd-analyze", "syscall-filter", name], check=True, capture_output=True, text=True)
    found = set()
    for line in listed.stdout.splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            found |= group(word)
        elif word and not word.startswith("#"):
            found.add(word)
    return found


def allowed_calls(unit):
    """The names that the unit's SystemCallFilter allows, as systemd.exec(5) says to combine its lines."""
    allowed = group("@default")
    for line in unit["SystemCallFilter"]:
        takes = line.startswith("~")
        for word in line.lstrip("~").split():
            names = group(word) if word.startswith("@") else {word}
            allowed = allowed - names if takes else allowed | names
    return allowed


class Compare(ctypes.Structure):
    """struct scmp_arg_cmp"""

    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def install_filter(unit):
    """Compiles and loads the filter."""
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(ACT_KILL_PROCESS)))

    def rule(action, name, *compares):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # of another architecture, or younger than the library
            return
        array = (Compare * len(compares))(*compares)
        code = seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(compares), array)
        if code not in (0, -17):
            raise OSError(-code, f"seccomp rule for {name}")

    special = {"socket", "clone", "mmap", "mprotect", "clone3"}
    for name in allowed_calls(unit) - special:
        rule(ACT_ALLOW, name)
    for family in " ".join(unit["RestrictAddressFamilies"]).split():
        rule(ACT_ALLOW, "socket", Compare(0, 4, FAMILIES[family], 0))
    if unit["RestrictNamespaces"] == ["yes"]:
        rule(ACT_ALLOW, "clone", Compare(0, CMP_MASKED_EQ, NAMESPACES, 0))
        # systemd has clone3(2) answer ENOSYS, since a filter cannot see its flags: libc falls back to clone(2).
        rule(0x00050000 | 38, "clone3")
    if unit["MemoryDenyWriteExecute"] == ["yes"]:
        rule(ACT_ALLOW, "mmap", Compare(2, CMP_MASKED_EQ, 6, 0))
        rule(ACT_ALLOW, "mmap", Compare(2, CMP_MASKED_EQ, 6, 2))
        rule(ACT_ALLOW, "mmap", Compare(2, CMP_MASKED_EQ, 6, 4))
        rule(ACT_ALLOW, "mprotect", Compare(2, CMP_MASKED_EQ, PROT_EXEC, 0))
    if seccomp.seccomp_load(context) != 0:
        raise OSError("seccomp_load")


def must(code, what):
    """Raises for a system call that failed."""
    if code != 0:
        raise OSError(ctypes.get_errno(), what)


def protect_system(writable):
    """Everything read-only but /dev, /proc, /sys and `writable`, in a mount namespace of its own."""
    must(libc.unshare(CLONE_NEWNS), "unshare")
    must(libc.mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None), "make / a slave")

    def attributes(path, set_, clear):
        attr = (ctypes.c_uint64 * 4)(set_, clear, 0, 0)
        must(libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path, AT_RECURSIVE, attr, 32), f"mount_setattr {path}")

    kept = [path.encode() for path in [*writable, "/dev", "/proc", "/sys"]]
    for path in kept:
        must(libc.mount(path, path, None, ctypes.c_ulong(MS_BIND | MS_REC), None), f"bind {path}")
    attributes(b"/", MOUNT_ATTR_RDONLY, 0)
    for path in kept:
        attributes(path, 0, MOUNT_ATTR_RDONLY)


def confine(unit, writable):
    """All of it, for this process and what it starts."""
    if unit.get("ProtectSystem") == ["strict"]:
        protect_system(writable)
    kept = {CAPABILITIES[name] for name in " ".join(unit["CapabilityBoundingSet"]).split()}
    for capability in range(LAST_CAPABILITY + 1):
        if capability not in kept and libc.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
            must(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), f"drop capability {capability}")
    if unit.get("NoNewPrivileges") == ["yes"]:
        must(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    install_filter(unit)


def main(words):
    """Confines itself, then becomes the command."""
    end = words.index("--")
    unit = read_unit(words[0])
    writable = [words[i + 1] for i in range(1, end) if words[i] == "--write"]
    confine(unit, writable)
    os.execvp(words[end + 1], words[end + 1:])


if __name__ == "__main__":
    main(sys.argv[1:])
