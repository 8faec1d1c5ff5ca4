//! The body of `POST /containers/create`: the hardening, in one place. Pure.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::super::ManagedNetwork;
use super::binds::Bind;
use super::wish::{CA_VARIABLES, PROXY_VARIABLES, Source, Wish};
use super::{CA_BUNDLE_TARGET, LABEL_CREATED_AT, LABEL_NETWORK};
use crate::network;

/// Processes of one container.
const PIDS: u32 = 256;
/// Hosts that clients ask without the proxy.
const NO_PROXY: &str = "localhost,127.0.0.1";
/// Options of the tmpfs at /tmp of a read-only container; it counts as its memory.
const TMPFS: &str = "rw,nosuid,nodev,mode=1777,size=64m";

/// What is known beside the wish.
pub(super) struct Surroundings<'a> {
    pub(super) network: &'a ManagedNetwork,
    /// Address and port of the proxy; `None` with `--no-proxy`.
    pub(super) proxy: Option<(Ipv4Addr, u16)>,
    pub(super) binds: &'a [Bind],
    /// Whether the certificates are among the binds.
    pub(super) trusts_ca: bool,
    /// RFC 3339.
    pub(super) created_at: &'a str,
}

/// The body.
pub(super) fn body(wish: &Wish, around: &Surroundings<'_>) -> Value {
    let network = around.network;
    let mut mounts: Vec<Value> = around.binds.iter().map(bind).collect();
    for volume in &wish.volumes {
        if let Source::Named(name) = &volume.source {
            mounts
                .push(json!({"Type": "volume", "Source": name, "Target": volume.target, "ReadOnly": volume.read_only}));
        }
    }
    let mut host = json!({
        "NetworkMode": network.id,
        "Dns": [network.gateway.to_string()],
        "DnsOptions": ["ndots:0"],
        // Without one the Engine copies the host's search list, whose names the filter would have to refuse.
        "DnsSearch": ["."],
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "Privileged": false,
        "Init": true,
        "PidsLimit": PIDS,
        "Memory": wish.memory,
        "CpuShares": wish.cpu_shares,
        "IpcMode": "private",
        "PublishAllPorts": false,
        "ReadonlyRootfs": wish.read_only,
        "Mounts": mounts,
    });
    if wish.read_only {
        host["Tmpfs"] = json!({ "/tmp": TMPFS });
    }
    let mut body = json!({
        "Image": wish.image,
        "User": wish.user,
        "Env": variables(wish, around),
        "OpenStdin": wish.interactive,
        "Tty": wish.tty,
        "Labels": {
            network::LABEL: network::LABEL_VALUE,
            LABEL_NETWORK: network.name,
            LABEL_CREATED_AT: around.created_at,
        },
        "HostConfig": host,
    });
    // Absent and empty are not the same: an empty entrypoint takes the image's away.
    for (field, words) in [("Cmd", &wish.cmd), ("Entrypoint", &wish.entrypoint)] {
        if let Some(words) = words {
            body[field] = json!(words);
        }
    }
    if let Some(directory) = &wish.working_dir {
        body["WorkingDir"] = json!(directory);
    }
    body
}

fn bind(bind: &Bind) -> Value {
    json!({
        "Type": "bind",
        // `binds` and `helpers` let no path pass that is no text.
        "Source": bind.source.to_string_lossy(),
        "Target": bind.target,
        "ReadOnly": bind.read_only,
        // Mounts below a read-only bind would be writable on Engines before 25: then they are not there at all.
        "BindOptions": {"Propagation": "rprivate", "NonRecursive": bind.read_only},
    })
}

fn variables(wish: &Wish, around: &Surroundings<'_>) -> Vec<String> {
    let mut variables: Vec<String> = wish.env.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if let Some((address, port)) = around.proxy {
        variables.extend(PROXY_VARIABLES.iter().map(|name| {
            let direct = name.eq_ignore_ascii_case("NO_PROXY");
            if direct { format!("{name}={NO_PROXY}") } else { format!("{name}=http://{address}:{port}") }
        }));
    }
    if around.trusts_ca {
        variables.extend(CA_VARIABLES.iter().map(|name| format!("{name}={CA_BUNDLE_TARGET}")));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ContainerCreate, Environment, Words};

    fn network() -> ManagedNetwork {
        ManagedNetwork {
            name: "outcall-default".to_owned(),
            id: "n1".to_owned(),
            bridge: "outcall0".to_owned(),
            subnet: "10.200.0.0/24".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 200, 0, 1),
        }
    }

    fn wish(change: impl FnOnce(&mut ContainerCreate)) -> Wish {
        let mut request = ContainerCreate { image: "lab/busybox".to_owned(), ..ContainerCreate::default() };
        change(&mut request);
        Wish::check(request, "outcall-0".to_owned(), false).unwrap()
    }

    fn made(wish: &Wish, trusts_ca: bool, proxy: bool) -> Value {
        let network = network();
        let binds = [Bind { source: "/srv/a".into(), target: "/a".to_owned(), read_only: true }];
        let proxy = proxy.then_some((network.gateway, 8080));
        body(
            wish,
            &Surroundings {
                network: &network,
                proxy,
                binds: &binds,
                trusts_ca,
                created_at: "2026-01-01T00:00:00.000Z",
            },
        )
    }

    #[test]
    fn the_hardening_is_the_documented_one() {
        let body = made(&wish(|_| ()), false, true);
        let host = &body["HostConfig"];
        assert_eq!(host["CapDrop"], json!(["ALL"]));
        assert!(host.get("CapAdd").is_none());
        assert_eq!(host["SecurityOpt"], json!(["no-new-privileges:true"]));
        assert_eq!(
            (&host["Privileged"], &host["Init"], &host["PidsLimit"]),
            (&json!(false), &json!(true), &json!(256))
        );
        assert_eq!((&host["Memory"], &host["CpuShares"]), (&json!(536_870_912), &json!(1024)));
        assert_eq!((&host["Dns"], &host["DnsOptions"]), (&json!(["10.200.0.1"]), &json!(["ndots:0"])));
        assert_eq!((&host["NetworkMode"], &host["ReadonlyRootfs"]), (&json!("n1"), &json!(false)));
        assert!(host.get("PortBindings").is_none() && host.get("Tmpfs").is_none());
        assert_eq!(body["User"], "65532:65532");
        assert!(body.get("Cmd").is_none() && body.get("Entrypoint").is_none());
        let labels = json!({"managed-by":"outcalld","outcall.network":"outcall-default",
            "outcall.created-at":"2026-01-01T00:00:00.000Z"});
        assert_eq!(body["Labels"], labels);
        assert_eq!(host["Mounts"][0]["ReadOnly"], true);
    }

    #[test]
    fn the_environment_leads_to_the_proxy_and_the_certificates() {
        let wish = wish(|request| {
            request.env = Environment(vec![("A".to_owned(), "1".to_owned())]);
            request.cmd = Some(Words(vec!["sh".to_owned()]));
            request.entrypoint = Some(Words(Vec::new()));
            request.read_only = true;
            request.volumes = vec!["cache:/c:ro".to_owned()];
        });
        let body = made(&wish, true, true);
        let env: Vec<&str> = body["Env"].as_array().unwrap().iter().map(|value| value.as_str().unwrap()).collect();
        assert_eq!(env[0], "A=1");
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            assert!(env.contains(&format!("{name}=http://10.200.0.1:8080").as_str()), "{name}");
        }
        assert!(env.contains(&"NO_PROXY=localhost,127.0.0.1") && env.contains(&"no_proxy=localhost,127.0.0.1"));
        assert_eq!(env.iter().filter(|variable| variable.ends_with("=/etc/outcall/ca/bundle.pem")).count(), 9);
        assert_eq!((&body["Cmd"], &body["Entrypoint"]), (&json!(["sh"]), &json!([])));
        assert!(body["HostConfig"]["Tmpfs"]["/tmp"].is_string());
        assert_eq!(body["HostConfig"]["Mounts"][1]["Type"], "volume");
        assert_eq!(made(&wish, false, false)["Env"], json!(["A=1"]));
    }
}
