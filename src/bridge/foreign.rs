//! What others hang into the packet path: base chains and flowtables that are not ours, for `outcall doctor`.
//!
//! Owns: the listing (`linux/netfilter/nf_tables.h`). Does not own: what to make of it. Another table's accept does not
//! open ours (each base chain of a hook is asked), its drop closes what ours opens; a flowtable carries flows past the
//! forward hook, and so past both.

use nix::sys::socket::SockProtocol;

use super::socket::{KernelError, Socket};
use super::wire::{F_DUMP, Request};
use crate::api::ForeignHook;

/// `NFNL_SUBSYS_NFTABLES`
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_GETCHAIN`, `NFT_MSG_GETFLOWTABLE`
const GET_CHAIN: u8 = 4;
const GET_FLOWTABLE: u8 = 23;
/// `NFTA_CHAIN_TABLE` and `NFTA_FLOWTABLE_TABLE`; `NFTA_CHAIN_NAME`, `_HOOK`, `_POLICY`; `NFTA_FLOWTABLE_NAME`
const TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const FLOWTABLE_NAME: u16 = 2;
/// `NFTA_HOOK_HOOKNUM`
const HOOK_NUMBER: u16 = 1;
/// Chains of others that are told: enough to see who is there.
const TOLD: usize = 64;

/// Lists them.
///
/// # Errors
/// What the kernel refused: it takes CAP_NET_ADMIN.
pub fn foreign_hooks() -> Result<Vec<ForeignHook>, KernelError> {
    let mut socket = Socket::requests(SockProtocol::NetlinkNetFilter)?;
    let chains = socket
        .dump("list the nftables chains", || Request::netfilter(SUBSYSTEM, GET_CHAIN, F_DUMP, 0, 0))?
        .iter()
        .filter_map(|answer| {
            let message = answer.message();
            let attributes = message.netfilter_attributes();
            let table = attributes.find(TABLE)?.text();
            let number = attributes.find(CHAIN_HOOK)?.inner().find(HOOK_NUMBER)?.number()?;
            let family = message.netfilter_family();
            Some(ForeignHook {
                name: format!("{} {table} {}", family_name(family), attributes.find(CHAIN_NAME)?.text()),
                hook: Some(hook_name(family, number).to_owned()),
                // NF_DROP
                drops: attributes.find(CHAIN_POLICY).and_then(|policy| policy.number()) == Some(0),
            })
            .filter(|_| table != "outcall")
        })
        .collect::<Vec<_>>();
    let flowtables = socket
        .dump("list the flowtables", || Request::netfilter(SUBSYSTEM, GET_FLOWTABLE, F_DUMP, 0, 0))
        // A kernel without flowtables has none.
        .unwrap_or_default();
    let flowtables = flowtables.iter().filter_map(|answer| {
        let message = answer.message();
        let attributes = message.netfilter_attributes();
        let family = family_name(message.netfilter_family());
        let name = format!("{family} {} {}", attributes.find(TABLE)?.text(), attributes.find(FLOWTABLE_NAME)?.text());
        Some(ForeignHook { name, hook: None, drops: false })
    });
    Ok(flowtables.chain(chains).take(TOLD).collect())
}

/// `NFPROTO_*`, as nft names them.
fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "unknown",
    }
}

/// `enum nf_inet_hooks`; of the netdev family `enum nf_dev_hooks`.
fn hook_name(family: u8, number: u64) -> &'static str {
    match (family, number) {
        (5, 1) => "egress",
        (5, _) => "ingress",
        (3, 0) => "input",
        (3, 1) => "output",
        (_, 0) => "prerouting",
        (_, 1) => "input",
        (_, 2) => "forward",
        (_, 3) => "output",
        (_, 4) => "postrouting",
        _ => "ingress",
    }
}
