//! `/ca`, `/ca/bundle`, `/proxy/intercept`, `/proxy/intercept/cache/flush`: interception's CA. 404 without one.

use std::time::{Duration, SystemTime};

use crate::api::{CaBundle, CaStatus, InterceptStatus, LeavesFlushed};
use crate::authority::{CaCertificate, Published};
use crate::daemon::Subsystem;
use crate::event_loop::Address;
use crate::proxy::ProxyCommand;
use crate::unix_http::{Answer, Response};

use super::api::Api;
use super::call::Call;
use super::respond::{failed, ok};

/// The proxy's loop never waits; it answers between two events.
const LIMIT: Duration = Duration::from_secs(5);

pub(super) fn status(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let ca = loaded(api)?;
    let owner = proxy(api)?;
    let format = move |interception| match interception {
        Some(interception) => ok(ca_status(ca.certificate(), &interception)),
        None => absent(),
    };
    api.ask(call.ticket, (Subsystem::Proxy, &owner), LIMIT, ProxyCommand::InterceptStatus, format)
}

pub(super) fn bundle(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    let ca = loaded(api)?;
    Ok(Answer::Now(ok(CaBundle { pem_bundle: ca.bundle().to_string() })))
}

pub(super) fn interception(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    loaded(api)?;
    let owner = proxy(api)?;
    let format = |interception: Option<InterceptStatus>| interception.map_or_else(absent, ok);
    api.ask(call.ticket, (Subsystem::Proxy, &owner), LIMIT, ProxyCommand::InterceptStatus, format)
}

pub(super) fn flush(api: &mut Api, call: Call) -> Result<Answer, Response> {
    call.query([])?;
    call.no_body()?;
    loaded(api)?;
    let owner = proxy(api)?;
    let format = |evicted: Option<usize>| match evicted {
        Some(evicted) => ok(LeavesFlushed { evicted: evicted as u64 }),
        None => absent(),
    };
    api.ask(call.ticket, (Subsystem::Proxy, &owner), LIMIT, ProxyCommand::FlushLeaves, format)
}

fn loaded(api: &Api) -> Result<Published, Response> {
    api.config.ca.clone().ok_or_else(absent)
}

fn proxy(api: &Api) -> Result<Address<ProxyCommand>, Response> {
    api.links.proxy.clone().ok_or_else(absent)
}

fn absent() -> Response {
    failed(404, "no CA is loaded: start outcalld with --ca-cert and --ca-key (`outcall ca init` makes a pair)")
}

fn ca_status(certificate: &CaCertificate, interception: &InterceptStatus) -> CaStatus {
    let time = |at: SystemTime| humantime::format_rfc3339_seconds(at).to_string();
    CaStatus {
        loaded: true,
        subject: certificate.subject().to_owned(),
        fingerprint_sha256: certificate.fingerprint().to_owned(),
        not_before: time(certificate.not_before()),
        not_after: time(certificate.not_after()),
        leaf_cache_size: interception.leaf_cache_size,
        leaf_cache_max: interception.leaf_cache_max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_the_documented_one() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        params.not_before = rcgen::date_time_ymd(2020, 1, 2);
        params.not_after = rcgen::date_time_ymd(2100, 1, 2);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "Lab CA");
        let certificate =
            CaCertificate::parse(params.self_signed(&key).unwrap().der().clone(), SystemTime::now()).unwrap();
        let interception = InterceptStatus {
            ca_loaded: true,
            leaf_cache_size: 2,
            leaf_cache_max: 1024,
            intercepted_total: 9,
            blocked_total: 3,
        };
        let expected = serde_json::json!({
            "loaded": true, "subject": "CN=Lab CA", "fingerprint_sha256": certificate.fingerprint(),
            "not_before": "2020-01-02T00:00:00Z", "not_after": "2100-01-02T00:00:00Z",
            "leaf_cache_size": 2, "leaf_cache_max": 1024,
        });
        assert_eq!(serde_json::to_value(ca_status(&certificate, &interception)).unwrap(), expected);
        assert_eq!(certificate.fingerprint().len(), 95);
        let flushed = serde_json::to_value(LeavesFlushed { evicted: 2 }).unwrap();
        assert_eq!(flushed, serde_json::json!({"evicted": 2}));
    }
}
