# What the tests and the demo need from Debian, installed if it is missing. Sourced by `test` and `demo`.
# Checked by the presence of a file or command, so that a second run is fast and needs no network.

say() { printf '\n== %s\n' "$*"; }

missing=""

# need PACKAGE FILE-OR-COMMAND
need() {
    case $2 in
    /*) [ -e "$2" ] && return 0 ;;
    *) command -v "$2" >/dev/null 2>&1 && return 0 ;;
    esac
    missing="$missing $1"
}

# need_python PACKAGE MODULE
need_python() {
    [ -x /usr/bin/python3 ] && /usr/bin/python3 -c "import $2" 2>/dev/null && return 0
    missing="$missing $1"
}

# install_needs [figures]: with the peers and load generators of the benchmark, or without
install_needs() {
    PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"
    export PATH
    if [ "$(id -u)" != 0 ]; then
        echo "must be root: network namespaces, nftables and a Docker Engine are needed" >&2
        exit 1
    fi
    # the build
    need gcc gcc
    need libc6-dev /usr/include/stdlib.h
    need pkg-config pkg-config
    need libnftnl-dev /usr/include/libnftnl/table.h
    need libmnl-dev /usr/include/libmnl/libmnl.h
    # the lab
    need docker.io dockerd
    need iptables iptables
    need nftables nft
    need iproute2 ip
    need conntrack conntrack
    need openssl openssl
    need busybox-static /usr/bin/busybox
    need python3 /usr/bin/python3
    need_python python3-dnspython dns.message
    # the package, its units and their filter
    need dpkg-dev dpkg-shlibdeps
    need systemd systemd-analyze
    need libseccomp2 /usr/lib/x86_64-linux-gnu/libseccomp.so.2
    # the machine that boots, and what makes a container of the daemon there
    need debootstrap debootstrap
    need docker-compose docker-compose
    # the clients
    need bind9-dnsutils dig
    need curl curl
    need wget wget
    need git /usr/bin/git
    need_python python3-requests requests
    need_python python3-websocket websocket
    need nodejs node
    need node-undici /usr/share/nodejs/undici/package.json
    # the dashboard
    need chromium chromium
    need chromium-driver chromedriver
    # the figures
    need strace strace
    if [ "${1:-}" = figures ]; then
        need wrk wrk
        need dnsperf dnsperf
        need nginx-light nginx
        need tinyproxy tinyproxy
        need squid-openssl squid
        need dnsmasq-base dnsmasq
        need_python python3-venv ensurepip
    fi
    if [ -n "$missing" ]; then
        say "Installing with apt:$missing"
        export DEBIAN_FRONTEND=noninteractive
        apt-get -qq update
        # shellcheck disable=SC2086  # a list of words on purpose
        apt-get -qq -y --no-install-recommends install $missing >/dev/null
    fi
    if ! command -v cargo >/dev/null 2>&1; then
        echo "cargo is missing: install Rust (https://rustup.rs), then run this again" >&2
        exit 1
    fi
}
