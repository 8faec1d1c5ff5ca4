//! Outcall: decides what containers that run AI agents may reach, and proves it.
//!
//! The modules, in the order in which a packet and a policy meet them:
//!
//! | module | what it is |
//! |---|---|
//! | [`api`] | the JSON vocabulary that daemon and clients share; imports nothing of the crate |
//! | [`names`] | the one normal form of host names, and the special-purpose address registries |
//! | [`http1`] | HTTP/1.1 heads and body framing, sans-I/O |
//! | [`event_loop`] | mailboxes, reply channels: what every mio loop is made of |
//! | [`rule_engine`] | YAML and CEL in, [`rule_engine::RuleSet::decide`] out |
//! | [`docker_manager`] | Docker's containers and networks: who is behind an address |
//! | [`network`] | subnets and bridge names |
//! | [`bridge`] | links, nftables, conntrack: the enforcement in the kernel |
//! | [`dns`] | the DNS filter and the resolver of the proxy |
//! | [`authority`] | keys and certificates of TLS interception |
//! | [`proxy`] | the HTTP proxy |
//! | [`events`] | decision events and their log |
//! | [`unix_http`] | the small HTTP server behind the Unix sockets |
//! | [`agent_api`] | the agents' API: who asks, what they may, which rules they want |
//! | [`state`] | files that must survive a crash; rule requests |
//! | [`explain`] | why a destination is allowed or blocked, layer by layer |
//! | [`host_api`] | the operator API |
//! | [`daemon`] | flags, start order, control, supervision |
//! | [`cli`] | the operator's command |
//! | [`agent`] | the shim in containers: asks, then runs |
//!
//! How they fit together: `vendor-docs/architecture.md`.

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "daemon")]
pub mod agent_api;
pub mod api;
#[cfg(feature = "daemon")]
pub mod authority;
#[cfg(feature = "daemon")]
pub mod bridge;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "daemon")]
pub mod daemon;
#[cfg(feature = "daemon")]
pub mod dns;
#[cfg(feature = "daemon")]
pub mod docker_manager;
#[cfg(feature = "daemon")]
pub mod event_loop;
#[cfg(feature = "daemon")]
pub mod events;
#[cfg(feature = "daemon")]
pub mod explain;
#[cfg(feature = "daemon")]
pub mod host_api;
#[cfg(any(feature = "daemon", feature = "cli"))]
pub mod http1;
#[cfg(any(feature = "daemon", feature = "cli"))]
pub mod names;
#[cfg(feature = "daemon")]
pub mod network;
#[cfg(feature = "daemon")]
pub mod proxy;
#[cfg(feature = "daemon")]
pub mod rule_engine;
#[cfg(feature = "daemon")]
pub mod state;
#[cfg(feature = "daemon")]
pub mod unix_http;
