//! `outcall events`

use std::borrow::Cow;
use std::io::BufRead as _;

use super::super::arguments::EventsArguments;
use crate::api::EventRecord;
use crate::cli::CliError;
use crate::cli::client::{Client, encoded};
use crate::cli::output::{Cell, Output};

/// Widths of the columns while following, in characters; what is wider pushes the rest of its line aside.
const WIDTHS: [usize; 6] = [8, 7, 9, 16, 44, 0];
const HEADS: [&str; 6] = ["TIME", "VERDICT", "LAYER", "CONTAINER", "WHAT", "WHY"];

/// A line of the stream: an event, or how many this reader lost.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Line {
    Event(Box<EventRecord<'static>>),
    Lost { lost: u64 },
}

pub(super) fn run(arguments: &EventsArguments, client: &Client, output: &mut Output) -> Result<(), CliError> {
    let mut path = format!("/events?follow={}", arguments.follow);
    if arguments.blocked {
        path.push_str("&verdict=block");
    }
    if let Some(container) = &arguments.container {
        path.push_str(&format!("&container={}", encoded(container)));
    }
    let mut lines = client.lines(&path)?;
    let mut rows = Vec::new();
    let mut line = String::new();
    if arguments.follow && !output.is_json() {
        output.columns(&HEADS.map(Cell::head), &WIDTHS)?;
        output.flush().map_err(CliError::Output)?;
    }
    loop {
        line.clear();
        if lines.read_line(&mut line).map_err(|error| client.broken(&path, error))? == 0 {
            break;
        }
        if output.is_json() {
            output.raw(&line)?;
        } else {
            let read = serde_json::from_str(&line);
            match read.map_err(|source| CliError::Answer { call: format!("GET {path}"), source })? {
                Line::Event(event) if arguments.follow => output.columns(&row(&event), &WIDTHS)?,
                Line::Event(event) => rows.push(row(&event).to_vec()),
                Line::Lost { lost } => output.line(&format!("({lost} events lost: this reader is too slow)"))?,
            }
        }
        if arguments.follow {
            output.flush().map_err(CliError::Output)?;
        }
    }
    if arguments.follow {
        return Err(CliError::Unsuccessful("outcalld ended the stream of events; is it stopping?".to_owned()));
    }
    if output.is_json() {
        return Ok(());
    }
    if rows.is_empty() {
        let filtered = arguments.blocked || arguments.container.is_some();
        return output.line(if filtered {
            "None of the last events is such a one. `outcall events` shows them all, with --follow those to come."
        } else {
            "No events yet. `outcall events --follow` waits for them."
        });
    }
    output.table(&HEADS, rows)
}

fn row(event: &EventRecord<'_>) -> [Cell; 6] {
    let time = event.ts.get(11..19).unwrap_or(&event.ts);
    let why = match &event.rule {
        Some(rule) if event.reason == "rule" => rule.to_string(),
        Some(rule) => format!("{} ({rule})", event.reason),
        None => event.reason.to_string(),
    };
    [
        time.into(),
        Cell::state(event.verdict == "allow", &*event.verdict),
        (&*event.layer).into(),
        event.container.as_deref().unwrap_or("-").into(),
        what(event).into(),
        why.into(),
    ]
}

/// What was asked for or reached for, as people write it.
fn what(event: &EventRecord<'_>) -> String {
    let text = |value: &Option<Cow<'_, str>>| value.as_deref().unwrap_or_default().to_owned();
    let place = match (&event.host, &event.ip, event.port) {
        (Some(host), _, Some(port)) => format!("{host}:{port}"),
        (Some(host), _, None) => host.to_string(),
        (None, Some(ip), Some(port)) => format!("{ip}:{port}"),
        (None, Some(ip), None) => ip.to_string(),
        (None, None, _) => String::new(),
    };
    match (&*event.layer, &event.method) {
        ("dns", _) => format!("{} {place}", text(&event.record_type)),
        ("kernel", _) => format!("{} {place}", text(&event.protocol)),
        _ if event.bytes_up.is_some() => {
            let (up, down) = (event.bytes_up.unwrap_or_default(), event.bytes_down.unwrap_or_default());
            format!("{place} {up} bytes up, {down} down")
        }
        (_, Some(method)) if method == "CONNECT" => format!("CONNECT {place}"),
        (_, Some(method)) => format!("{method} {place}{}", text(&event.path)),
        _ => place,
    }
    .trim()
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_as_people_write_it() {
        let event = |layer: &'static str, method: Option<&'static str>| EventRecord {
            layer: layer.into(),
            host: Some("api.example".into()),
            port: Some(443),
            method: method.map(Cow::from),
            path: Some("/v1".into()),
            ..EventRecord::default()
        };
        assert_eq!(what(&event("proxy", Some("CONNECT"))), "CONNECT api.example:443");
        assert_eq!(what(&event("intercept", Some("POST"))), "POST api.example:443/v1");
        let dns = EventRecord { record_type: Some("AAAA".into()), port: None, ..event("dns", None) };
        assert_eq!(what(&dns), "AAAA api.example");
        let kernel = EventRecord {
            host: None,
            ip: Some("192.0.2.1".into()),
            protocol: Some("udp".into()),
            ..event("kernel", None)
        };
        assert_eq!(what(&kernel), "udp 192.0.2.1:443");
        let end = EventRecord { bytes_up: Some(5), bytes_down: Some(6), ..event("proxy", Some("CONNECT")) };
        assert_eq!(what(&end), "api.example:443 5 bytes up, 6 down");
    }
}
