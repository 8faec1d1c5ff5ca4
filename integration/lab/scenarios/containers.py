"""Containers made by `outcall container create`: the hardening seen from inside and by docker inspect, what is refused,
and what an Engine that dies in the middle leaves (nothing)."""

import ctypes
import io
import json
import os
import re
import shutil
import signal
import tarfile
import threading
import time

import engine as engine_module
import sh
from harness import *

IMAGE = "lab/agent"
CREATE = "/api/v1/container/create"


def image(lab):
    """An image with busybox and what the shim of this build links, imported once; skips without a shim."""
    program = binary("outcall-agent") or skip("outcall-agent is not built")
    if lab.engine.inspect(IMAGE):
        return IMAGE
    base = tarfile.open(fileobj=io.BytesIO(engine_module.busybox_image()))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for member in base.getmembers():
            archive.addfile(member, base.extractfile(member) if member.isfile() else None)
        for directory in ("usr", "usr/local", "usr/local/bin", "srv"):
            engine_module.add_directory(archive, directory)
        # A static shim links nothing; a build for tests has the usual libraries.
        for path in re.findall(r"(/\S+) \(0x", sh.run(["ldd", program], check=False).text):
            with open(path, "rb") as file:
                engine_module.add_file(archive, path.lstrip("/"), file.read(), 0o755)
    lab.engine.docker("import", "--change", 'CMD ["sleep","600"]', "--change", "EXPOSE 8000", "-", IMAGE,
                      input=out.getvalue())
    return IMAGE


def start(lab, rules=(), flags=()):
    """A daemon whose shim is a real file of its own, as installed."""
    image(lab)
    shim = lab.path("shim")
    shutil.copy(binary("outcall-agent"), shim)
    return lab.daemon(rules, flags=flags, shim=shim)


def create(lab, daemon, *words):
    """`outcall container create`, which must work; gives docker inspect."""
    done = daemon.cli("--json", "container", "create", *words)
    check(done.code == 0, done)
    return lab.engine.inspect(json.loads(done.text)["container_id"])


def inside(lab, name, *command, **options):
    """docker exec, as the container's own user."""
    return lab.engine.docker("exec", name, *command, check=False, **options)


@scenario()
def the_hardening_by_inspect_and_from_inside(lab):
    daemon = start(lab)
    seen = create(lab, daemon, "--name", "writer-1", "-e", "SECRET=hunter2-planted", IMAGE)
    host, config = seen["HostConfig"], seen["Config"]
    check(host["CapDrop"] == ["ALL"] and not host["CapAdd"] and host["Privileged"] is False, host)
    check(host["SecurityOpt"] == ["no-new-privileges:true"] and host["Init"] is True, host)
    check((host["PidsLimit"], host["Memory"], host["CpuShares"]) == (256, 512 << 20, 1024), host)
    check(host["Dns"] == [GATEWAY] and host["DnsOptions"] == ["ndots:0"], host)
    check(not host["PortBindings"] and not host["Binds"], host)
    check(config["User"] == "65532:65532", config)
    labels = config["Labels"]
    check(labels["managed-by"] == "outcalld" and labels["outcall.network"] == DEFAULT_NETWORK, labels)
    check(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", labels["outcall.created-at"]), labels)
    env = dict(variable.split("=", 1) for variable in config["Env"])
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        check(env[name] == f"http://{GATEWAY}:8080", env)
    check(env["NO_PROXY"] == env["no_proxy"] == "localhost,127.0.0.1", env)
    mounts = {mount["Destination"]: (mount["Source"], mount["RW"]) for mount in seen["Mounts"]}
    check(mounts == {"/run/outcall": (f"{daemon.directory}/agent/agent", False),
                     "/usr/local/bin/outcall": (lab.path("shim"), False)}, mounts)
    check(list(seen["NetworkSettings"]["Networks"]) == [DEFAULT_NETWORK], seen["NetworkSettings"])

    status = inside(lab, "writer-1", "cat", "/proc/self/status").text
    field = lambda name: re.search(rf"^{name}:\s*(.*)$", status, re.M).group(1).split()
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        check(field(name) == ["0" * 16], (name, field(name)))
    check(field("NoNewPrivs") == ["1"] and field("Uid") == ["65532"] * 4 and field("Gid") == ["65532"] * 4, status)
    check(field("Groups") in ([], ["65532"]), status)
    check(inside(lab, "writer-1", "cat", "/proc/1/comm").text.strip() in ("docker-init", "tini", "sh"))
    resolv = inside(lab, "writer-1", "cat", "/etc/resolv.conf").text
    check("ndots:0" in resolv and "search" not in resolv, resolv)
    for attempt in (["touch", "/run/outcall/x"], ["rm", "/run/outcall/agent.sock"], ["sh", "-c", "echo >/usr/local/bin/outcall"],
                    ["mount", "-t", "tmpfs", "none", "/tmp"], ["ping", "-c", "1", "127.0.0.1"]):
        check(inside(lab, "writer-1", *attempt).code != 0, attempt)

    shown = daemon.cli("--json", "container", "inspect", "writer-1")
    check("SECRET=<redacted>" in json.loads(shown.text)["env"] and "hunter2" not in shown.text, shown)
    check(json.loads(shown.text)["ip_address"] == seen["NetworkSettings"]["Networks"][DEFAULT_NETWORK]["IPAddress"])
    check("hunter2" not in daemon.cli("container", "inspect", "writer-1").text)
    listed = daemon.cli("container", "list")
    check("writer-1" in listed.text and "running" in listed.text, listed)
    check("hunter2-planted" not in daemon.text())


@scenario()
def limits_read_only_and_the_note_about_ports(lab):
    daemon = start(lab)
    done = daemon.cli("container", "create", "--name", "small-1", "--memory", "6m", "--cpu-shares", "2", "--user", "1000",
                      "--read-only", IMAGE)
    check(done.code == 0 and "8000" in done.text and "closed" in done.text, done)
    seen = lab.engine.inspect("small-1")
    check((seen["HostConfig"]["Memory"], seen["HostConfig"]["CpuShares"]) == (6 << 20, 2), seen["HostConfig"])
    check(seen["Config"]["User"] == "1000:1000" and not seen["NetworkSettings"]["Ports"].get("8000/tcp"), seen)
    check(inside(lab, "small-1", "touch", "/srv/x").code != 0)
    check(inside(lab, "small-1", "sh", "-c", "echo x >/tmp/x && cat /tmp/x").text == "x\n")
    for words in (["--memory", "5m"], ["--cpu-shares", "1"], ["--user", "root"], ["--user", "0"], ["--user", "5:0"],
                  ["-e", "HTTPS_PROXY=http://1.1.1.1:1"], ["-e", "No_Proxy=*"], ["--network", "absent"]):
        done = daemon.cli("container", "create", "--name", "bad-1", *words, IMAGE)
        check(done.code == 1 and done.errors.startswith("error: "), (words, done))
    check(daemon.api("POST", CREATE, {"image": IMAGE, "privileged": True}).status == 400)
    check(lab.engine.inspect("bad-1") is None)


@scenario()
def an_agent_works_by_its_environment_and_shim_alone(lab):
    daemon = start(lab, [*allow("example.com"), rule("echo", 'run.tool == "echo" && agent.name == "coder"')])
    create(lab, daemon, "--name", "coder-1", IMAGE)
    got = inside(lab, "coder-1", "wget", "-q", "-O", "-", "http://example.com/")
    check(got.code == 0 and got.out, got)
    denied = inside(lab, "coder-1", "wget", "-q", "-O", "-", "http://denied.example.net/")
    check(denied.code != 0 and "403" in denied.errors, denied)
    lab.internet.not_asked("denied.example.net")
    check(inside(lab, "coder-1", "/usr/local/bin/outcall", "echo", "hello").text == "hello\n")
    check(inside(lab, "coder-1", "/usr/local/bin/outcall", "touch", "/tmp/x").code == 1)


@scenario()
def a_running_container_finds_the_socket_of_a_daemon_that_came_back(lab):
    daemon = start(lab, [rule("echo", 'run.tool == "echo"')], flags=["--on-exit", "keep"])
    create(lab, daemon, "--name", "coder-1", IMAGE)
    check(inside(lab, "coder-1", "/usr/local/bin/outcall", "echo", "one").text == "one\n")
    before = os.stat(f"{daemon.directory}/agent/agent/agent.sock").st_ino
    for end in (daemon.stop, daemon.kill):
        end()
        check(inside(lab, "coder-1", "sh", "-c", "OUTCALL_TIMEOUT_SECS=1 /usr/local/bin/outcall echo x").code == 5)
        daemon.start()
        done = inside(lab, "coder-1", "/usr/local/bin/outcall", "echo", "again")
        check(done.text == "again\n", done)
    now = os.stat(f"{daemon.directory}/agent/agent/agent.sock")
    check((now.st_ino, now.st_mode & 0o777) != (before, None) and now.st_mode & 0o777 == 0o666)
    check(os.path.samefile(f"{daemon.directory}/agent/agent.sock", f"{daemon.directory}/agent/agent/agent.sock"))


@scenario()
def binds_that_lead_to_control_sockets_are_refused(lab):
    daemon = start(lab)
    data = lab.path("data")
    os.makedirs(f"{data}/inner")
    for name, target in (("sock", daemon.socket), ("dir", daemon.directory), ("engine", lab.engine.socket), ("root", "/"),
                         ("chain", "dir"), ("state", f"{daemon.state_dir}"), ("inner/up", "../dir")):
        os.symlink(target, f"{data}/{name}")
    os.link(daemon.socket, f"{data}/hard")
    alias = lab.path("alias")
    os.makedirs(f"{alias}/at")
    lab.space.run("mount", "--bind", daemon.directory, f"{alias}/at")
    lab.undo(lambda: lab.space.run("umount", f"{alias}/at"))
    sources = [
        daemon.socket, daemon.directory, os.path.dirname(daemon.directory), "/", "/proc/self/root", "/proc/1/root", "/proc",
        f"/proc/{daemon.process.pid}/root", f"/proc/{daemon.process.pid}/cwd/../../../../..", "/run", "/var/run",
        "/run/../run", lab.engine.socket, os.path.dirname(lab.engine.socket), daemon.state_dir, daemon.rules_dir,
        f"{daemon.rules_dir}/rules.yaml", f"{daemon.directory}/agent/agent", f"{daemon.directory}/agent",
        f"{data}/../{os.path.basename(daemon.directory)}", f"{data}/hard", alias, f"{alias}/at", f"{alias}/at/host.sock",
        f"{alias}/at/state", *(f"{data}/{name}" for name in ("sock", "dir", "engine", "root", "chain", "state", "inner/up")),
        f"{data}/inner/up/state", "relative/path", "./x", "..", f"{data}/absent",
    ]
    asked = daemon.text().count("container made")
    for source in sources:
        answer = daemon.api("POST", CREATE, {"image": IMAGE, "name": "bad-1", "volumes": [f"{source}:/data"]})
        check(answer.status == 400 and "volume" in answer.error, (source, answer))
    for target in ("/run/outcall", "/run/outcall/agent.sock", "/run", "/var/run/outcall", "/usr/local/bin/outcall",
                   "/usr/local/bin", "/etc/resolv.conf", "/etc", "/", "/etc/outcall/ca", "/x/../etc", "x"):
        answer = daemon.api("POST", CREATE, {"image": IMAGE, "name": "bad-1", "volumes": [f"{data}/inner:{target}"]})
        check(answer.status == 400, (target, answer))
    # A volume of Docker's that is a directory of the host.
    lab.engine.docker("volume", "create", "-o", "type=none", "-o", "o=bind", "-o", f"device={daemon.directory}", "tricky")
    lab.undo(lambda: lab.engine.docker("volume", "rm", "-f", "tricky"))
    answer = daemon.api("POST", CREATE, {"image": IMAGE, "name": "bad-1", "volumes": ["tricky:/data"]})
    check(answer.status == 400 and "tricky" in answer.error, answer)
    check(lab.engine.inspect("bad-1") is None and daemon.text().count("container made") == asked)

    os.symlink("inner", f"{data}/good")
    with open(f"{data}/inner/file", "w") as file:
        file.write("seen\n")
    seen = create(lab, daemon, "--name", "good-1", "-v", f"{data}/good:/data:ro", IMAGE)
    bind = [mount for mount in seen["Mounts"] if mount["Destination"] == "/data"]
    check(bind[0]["Source"] == f"{data}/inner" and bind[0]["RW"] is False, bind)
    check(inside(lab, "good-1", "cat", "/data/file").text == "seen\n")


@scenario(deadline=90)
def a_source_that_is_swapped_for_a_link_gives_nothing_away(lab):
    """Somebody who may write beside a source exchanges it for a link to the daemon's files, as fast as it goes."""
    daemon = start(lab)
    data = lab.path("swap")
    os.makedirs(f"{data}/source")
    os.symlink(daemon.directory, f"{data}/link")
    stop = threading.Event()

    def swap():
        libc, here, exchange = ctypes.CDLL(None), -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        while not stop.is_set():
            libc.renameat2(here, f"{data}/source".encode(), here, f"{data}/link".encode(), exchange)

    swapper = threading.Thread(target=swap)
    swapper.start()
    made = swapped = 0
    try:
        until = time.monotonic() + 5
        while time.monotonic() < until and (made < 1 or swapped < 1):
            name = f"race-{made + swapped}"
            answer = daemon.api("POST", CREATE, {"image": IMAGE, "name": name, "volumes": [f"{data}/source:/data"],
                                                 "include_outcall_helper_mounts": False})
            if answer.status == 201:
                made += 1
                # What is left running sees the harmless directory.
                check(inside(lab, name, "ls", "/data/state").code != 0, "the daemon's files are seen")
            elif "replaced" in answer.error:
                swapped += 1
                check(lab.engine.inspect(name) is None)
            else:
                check(answer.status in (400, 500), answer)
                check(lab.engine.inspect(name) is None, answer)
    finally:
        stop.set()
        swapper.join()
    check(made + swapped > 0, "no create came past the first check")


@scenario()
def a_block_rule_refuses_and_names_itself(lab):
    daemon = start(lab, [rule("no-agents", 'docker.image.startsWith("lab/agent")', action="block"), *allow("example.com")])
    done = daemon.cli("container", "create", "--name", "a-1", IMAGE)
    check(done.code == 1 and "no-agents" in done.errors, done)
    by_id = lab.engine.inspect(IMAGE)["Id"]
    answer = daemon.api("POST", CREATE, {"image": by_id, "name": "a-1"})
    check(answer.status == 403 and "no-agents" in answer.error, answer)
    check(lab.engine.inspect("a-1") is None)
    said = daemon.api("POST", "/api/v1/rule/evaluate", {"context": {"docker": {"image": IMAGE}}}).data
    check(said["decision"] == "block" and said["matched_rule"] == "no-agents", said)
    daemon.reload([rule("no-keys", '"AWS_SECRET" in docker.env_keys', action="block"),
                   rule("no-shells", 'docker.command.exists(w, w == "sh")', action="block")])
    check(daemon.cli("container", "create", "--name", "a-1", "-e", "AWS_SECRET=x", IMAGE).code == 1)
    check("no-shells" in daemon.cli("container", "create", "--name", "a-1", IMAGE, "sh").errors)
    create(lab, daemon, "--name", "a-1", IMAGE)


@scenario()
def the_cause_of_a_failure_is_shown_and_nothing_remains(lab):
    daemon = start(lab)
    done = daemon.cli("container", "create", "--name", "a-1", "nowhere/image:1")
    check(done.code == 1 and "outcall container pull nowhere/image:1" in done.errors, done)
    create(lab, daemon, "--name", "a-1", IMAGE)
    done = daemon.cli("container", "create", "--name", "a-1", IMAGE)
    check(done.code == 1 and "already in use" in done.errors, done)
    # It is made and does not start.
    done = daemon.cli("container", "create", "--name", "b-1", "-v", f"{lab.path('')}:/proc/x", IMAGE)
    check(done.code == 1 and "/proc" in done.errors, done)
    check(lab.engine.inspect("b-1") is None and lab.engine.inspect("a-1")["State"]["Running"])
    done = daemon.cli("container", "pull", "127.0.0.1:1/absent:1")
    check(done.code == 1 and "refused" in done.errors, done)

    lab.engine.docker("run", "-d", "--name", "foreign", IMAGE)
    for command in ("inspect", "stop", "remove"):
        done = daemon.cli("container", command, "foreign")
        check(done.code == 1 and "outcalld made" in done.errors, done)
    check(daemon.cli("container", "remove", "a-1").code == 1)
    check(daemon.cli("container", "stop", "a-1", "--timeout", "0").code == 0)
    check(lab.engine.inspect("a-1")["State"]["Running"] is False)
    check(daemon.cli("container", "remove", "a-1").code == 0)
    check(lab.engine.inspect("a-1") is None and lab.engine.inspect("foreign")["State"]["Running"])
    check(daemon.cli("container", "list").text.startswith("No containers"))
    # A shim that is a link is not mounted.
    os.rename(lab.path("shim"), lab.path("elsewhere"))
    os.symlink("elsewhere", lab.path("shim"))
    done = daemon.cli("container", "create", IMAGE)
    check(done.code == 1 and "symbolic link" in done.errors, done)
    done = daemon.cli("container", "create", "--helper-mounts", "false", IMAGE)
    check(done.code == 0 and re.search(r"outcall-[0-9a-f]{8}\b", done.text), done)


@scenario(deadline=120)
def an_engine_killed_in_the_middle_of_creates_leaves_nothing_half_made(lab):
    daemon = start(lab)
    answers = []

    def ask(number):
        try:
            answers.append(daemon.api("POST", CREATE, {"image": IMAGE, "name": f"mid-{number}"}))
        except OSError as late:
            answers.append(late)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: lab.engine.docker("ps", "-aq", check=False).text.split(), "a first container", 10)
    lab.engine.stop(signal.SIGKILL)
    check(daemon.api("GET", "/api/v1/health").status == 200)
    for thread in threads:
        thread.join()
    lab.engine.start()
    daemon.wait_ready()

    def half_made():
        listed = lab.engine.docker("ps", "-a", "--filter", "status=created", "--format", "{{.Names}}").text.split()
        return [name for name in listed if name.startswith("mid-")]

    wait_for(lambda: not half_made(), "the half-made containers to go", 20)
    check(daemon.api("GET", "/api/v1/health").status == 200)
    check(len(answers) == 8, answers)
    create(lab, daemon, "--name", "after-1", IMAGE)


@scenario()
def containers_trust_the_ca_without_work(lab):
    """An intercepted host is trusted by the environment alone; the bundle has the system's roots too."""
    made = sh.run([binary("outcall"), "ca", "init", "--out", lab.path("ca"), "--algorithm", "ecdsa"], check=False)
    check(made.code == 0, made)
    daemon = start(lab, [rule("inside", 'http.host == "example.com" && (http.method == "CONNECT" || http.method == "GET")',
                              egress={"mode": "intercept"})],
                   flags=["--ca-cert", lab.path("ca/ca-cert.pem"), "--ca-key", lab.path("ca/ca-key.pem"),
                          "--upstream-ca", lab.internet.authority.root])
    # The host's curl, by its own loader: the image has none.
    seen = create(lab, daemon, "--name", "coder-1", "-v", "/usr:/host:ro", IMAGE)
    mounts = {mount["Destination"]: (mount["Source"], mount["RW"]) for mount in seen["Mounts"]}
    check(mounts["/etc/outcall/ca"] == (f"{daemon.state_dir}/ca", False), mounts)
    env = dict(variable.split("=", 1) for variable in seen["Config"]["Env"])
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO",
                 "AWS_CA_BUNDLE", "CARGO_HTTP_CAINFO", "PIP_CERT", "DENO_CERT"):
        check(env[name] == "/etc/outcall/ca/bundle.pem", (name, env))
    bundle = inside(lab, "coder-1", "cat", "/etc/outcall/ca/bundle.pem").text
    with open(lab.path("ca/ca-cert.pem")) as file:
        body = file.read().split("-----BEGIN CERTIFICATE-----")[1].split("-----END")[0].replace("\n", "")
    check(body in bundle.replace("\n", "") and bundle.count("BEGIN CERTIFICATE") > 50, bundle[:200])
    check("PRIVATE KEY" not in bundle and inside(lab, "coder-1", "ls", "/etc/outcall/ca").text.split() == ["bundle.pem"])
    libraries = next(path for path in ("/host/lib/x86_64-linux-gnu", "/host/lib/aarch64-linux-gnu", "/host/lib64")
                     if inside(lab, "coder-1", "test", "-e", f"{path}/libcurl.so.4").code == 0)
    got = inside(lab, "coder-1", "sh", "-c", f"exec {libraries}/ld-linux-*.so.* --library-path {libraries} "
                                             "/host/bin/curl -sS -o /dev/null -w '%{http_code}' https://example.com/")
    check(got.code == 0 and got.text == "200", got)
    refused = daemon.cli("container", "create", "--name", "bad-1", "-e", "CURL_CA_BUNDLE=/tmp/x", IMAGE)
    check(refused.code == 1 and "CURL_CA_BUNDLE" in refused.errors, refused)
