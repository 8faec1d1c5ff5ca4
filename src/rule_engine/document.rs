//! A question as JSON: the `context` of `/rule/evaluate`, `/rule/test` and `outcall rules test`.
//!
//! Parsed strictly: a namespace or field that rules do not have is an error, and names are put into their one normal
//! form, so that what the operator tries is judged as the wire would be.

use serde_json::{Map, Value as Json};

use super::field::{self, Field};
use super::yaml::short;
use super::{Agent, Body, Context, Dns, Docker, Header, Http, Network, Run, Tls};
use crate::names::Host;

/// The owned form of a [`Context`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContextDocument {
    texts: Vec<(Field, String)>,
    lists: Vec<(Field, Vec<String>)>,
    headers: Option<Vec<(String, String)>>,
    port: Option<u16>,
    body_size: Option<u64>,
    body: Option<Option<String>>,
    ech: Option<bool>,
    run_context: Option<Map<String, Json>>,
}

impl ContextDocument {
    /// Reads namespaces as rules see them; what is absent is unknown.
    ///
    /// # Errors
    /// The first field that is unknown, of the wrong type or without a normal form.
    pub fn parse(namespaces: &Map<String, Json>) -> Result<Self, String> {
        let mut document = ContextDocument::default();
        for (namespace, fields) in namespaces {
            if !field::NAMESPACES.contains(&namespace.as_str()) {
                let hint = field::nearest(namespace, field::NAMESPACES.iter().copied());
                let hint = hint.map_or_else(
                    || format!("there are {}", field::NAMESPACES.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                return Err(format!("there is no namespace `{}`; {hint}", short(namespace)));
            }
            let Json::Object(fields) = fields else { return Err(format!("`{namespace}` must be an object")) };
            for (name, value) in fields {
                let full = format!("{namespace}.{name}");
                let Some(field) = Field::of(&full) else {
                    let hint = field::nearest_field(&full)
                        .map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                    return Err(format!("there is no field `{}`{hint}", short(&full)));
                };
                document.set(field, value)?;
            }
        }
        Ok(document)
    }

    fn set(&mut self, field: Field, value: &Json) -> Result<(), String> {
        let name = field.name();
        match field {
            Field::NetworkPort => {
                let port = value.as_u64().and_then(|port| u16::try_from(port).ok());
                self.port = Some(port.ok_or_else(|| format!("`{name}` must be a number from 0 to 65535"))?);
            }
            Field::HttpBodySize => {
                self.body_size = Some(value.as_u64().ok_or_else(|| format!("`{name}` must be a number of bytes"))?);
            }
            Field::HttpBody => {
                self.body = Some(match value {
                    Json::Null => None,
                    Json::String(body) => Some(body.clone()),
                    _ => return Err(format!("`{name}` must be a string or null")),
                });
            }
            Field::TlsEch => {
                self.ech = Some(value.as_bool().ok_or_else(|| format!("`{name}` must be true or false"))?);
            }
            Field::HttpHeaders => {
                let Json::Object(headers) = value else { return Err(format!("`{name}` must be an object of strings")) };
                let headers = headers.iter().map(|(header, value)| {
                    let value = value.as_str().ok_or_else(|| format!("`{name}` must be an object of strings"))?;
                    Ok((header.to_ascii_lowercase(), value.to_owned()))
                });
                self.headers = Some(headers.collect::<Result<_, String>>()?);
            }
            Field::RunContext => {
                let Json::Object(entries) = value else { return Err(format!("`{name}` must be an object")) };
                self.run_context = Some(entries.clone());
            }
            Field::TlsAlpn
            | Field::DockerCommand
            | Field::DockerVolumes
            | Field::DockerEnvKeys
            | Field::DockerCapabilities
            | Field::RunArgs
            | Field::RunFlags => {
                let wrong = || format!("`{name}` must be a list of strings");
                let items = value.as_array().ok_or_else(wrong)?.iter();
                let items = items.map(|item| item.as_str().map(str::to_owned).ok_or_else(wrong));
                self.lists.push((field, items.collect::<Result<_, _>>()?));
            }
            _ => {
                let text = value.as_str().ok_or_else(|| format!("`{name}` must be a string"))?;
                self.texts.push((field, normal(field, text)?));
            }
        }
        Ok(())
    }

    /// Lends the facts to `ask`.
    pub fn with<T>(&self, ask: impl FnOnce(&Context<'_>) -> T) -> T {
        let lists: Vec<(Field, Vec<&str>)> =
            self.lists.iter().map(|(field, items)| (*field, items.iter().map(String::as_str).collect())).collect();
        let headers: Option<Vec<Header<'_>>> =
            self.headers.as_ref().map(|headers| headers.iter().map(|(name, value)| Header { name, value }).collect());
        let text = |field| self.texts.iter().find(|(own, _)| *own == field).map(|(_, text)| text.as_str());
        let list = |field| lists.iter().find(|(own, _)| *own == field).map(|(_, items)| items.as_slice());
        ask(&Context {
            agent: Agent { name: text(Field::AgentName), container: text(Field::AgentContainer) },
            network: Network {
                hostname: text(Field::NetworkHostname),
                ip: text(Field::NetworkIp),
                port: self.port,
                protocol: text(Field::NetworkProtocol),
            },
            http: Http {
                method: text(Field::HttpMethod),
                path: text(Field::HttpPath),
                host: text(Field::HttpHost),
                scheme: text(Field::HttpScheme),
                headers: headers.as_deref(),
                body_size: self.body_size,
                body: self.body.as_ref().map_or(Body::Unknown, |body| Body::Read(body.as_deref())),
            },
            dns: Dns { query: text(Field::DnsQuery), record_type: text(Field::DnsRecordType) },
            tls: Tls {
                sni: text(Field::TlsSni),
                version: text(Field::TlsVersion),
                alpn: list(Field::TlsAlpn),
                ech: self.ech,
            },
            docker: Docker {
                image: text(Field::DockerImage),
                command: list(Field::DockerCommand),
                volumes: list(Field::DockerVolumes),
                env_keys: list(Field::DockerEnvKeys),
                capabilities: list(Field::DockerCapabilities),
            },
            run: Run {
                tool: text(Field::RunTool),
                args: list(Field::RunArgs),
                flags: list(Field::RunFlags),
                cwd: text(Field::RunCwd),
                context: self.run_context.as_ref(),
            },
        })
    }
}

/// Hosts in their normal form, addresses in theirs; other texts as they are.
fn normal(field: Field, text: &str) -> Result<String, String> {
    let name = field.name();
    let address = text.parse::<std::net::IpAddr>().map(|address| address.to_canonical().to_string());
    if field == Field::NetworkIp {
        return address.map_err(|_| format!("`{name}` must be an IP address"));
    }
    if !field::is_host(field) {
        return Ok(text.to_owned());
    }
    match address {
        Ok(address) => Ok(address),
        Err(_) => Host::parse(text).map(|host| host.to_text()).map_err(|error| format!("`{name}`: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ContextDocument, String> {
        ContextDocument::parse(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn a_document_lends_what_it_says_and_nothing_else() {
        let document = parse(
            r#"{"http":{"host":"GitHub.COM.","headers":{"X-A":"b"},"body":null},"network":{"port":443,"ip":"::ffff:1.2.3.4"},
                "run":{"args":["a","b"],"context":{"k":1}},"tls":{"ech":true}}"#,
        )
        .unwrap();
        document.with(|context| {
            assert_eq!(context.http.host, Some("github.com"));
            assert_eq!(context.http.headers.unwrap()[0].name, "x-a");
            assert_eq!(context.http.body, Body::Read(None));
            assert_eq!(context.http.method, None);
            assert_eq!(context.network.port, Some(443));
            assert_eq!(context.network.ip, Some("1.2.3.4"));
            assert_eq!(context.run.args, Some(["a", "b"].as_slice()));
            assert_eq!(context.run.context.unwrap()["k"], 1);
            assert_eq!(context.tls.ech, Some(true));
        });
    }

    #[test]
    fn what_rules_do_not_have_is_refused() {
        for (bad, hint) in [
            (r#"{"htp":{}}"#, "`http`"),
            (r#"{"http":{"hots":"a"}}"#, "`http.host`"),
            (r#"{"http":[]}"#, "object"),
            (r#"{"network":{"port":"443"}}"#, "number"),
            (r#"{"network":{"ip":"a.com"}}"#, "address"),
            (r#"{"dns":{"query":"a..b"}}"#, "empty label"),
            (r#"{"run":{"args":[1]}}"#, "list of strings"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(hint), "{bad}: {error}");
        }
    }
}
