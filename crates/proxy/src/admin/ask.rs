//! Pages that are asked something: `/explain?method=GET&url=http://shop/x` and `/tap?status=5xx`.

use std::net::IpAddr;

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use phalanx_model::ServiceName;
use phalanx_model::identity::SpiffeId;
use phalanx_model::name::Direction;

use super::body::PageBody;
use super::pages::View;
use super::{dump, json_page, problem};
use crate::explain::{self, Answer, Asking, Setting};
use crate::plan::Outbound;
use crate::tap::{Order, Stream};

/// What this sidecar would do with a request. `direction=inbound` asks what it would say to `from=[NAMESPACE/]SERVICE`, or
/// to somebody in plain text.
pub async fn explain(view: &View, query: &str) -> Response<PageBody> {
    let question = match Question::parse(view, query) {
        Ok(question) => question,
        Err(why) => return wrong(&why, "method, url, h, direction, from and port can be said"),
    };
    match told(view, &question).await {
        Some(explanation) => {
            let text = serde_json::to_string_pretty(&explanation).unwrap_or_default();
            signed(view, json_page(StatusCode::OK, text))
        }
        None => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "the control plane did not say in time what this host is",
            "a request to it would be answered with 503 no_healthy_upstream",
        ),
    }
}

/// Waits at the desk as a request would, once.
async fn told(view: &View, question: &Question) -> Option<explain::Explanation> {
    for _ in 0..2 {
        let authority = match explained(view, question) {
            Answer::Told(explanation) => return Some(*explanation),
            Answer::Park { authority } => authority,
        };
        let Outbound::Demand { desk, .. } = &view.plan.load().outbound else {
            return None;
        };
        let desk = desk.clone();
        let is_there = || match &view.plan.load().outbound {
            Outbound::Demand { hosts, .. } => hosts.contains(&authority),
            _ => true,
        };
        desk.wait(&authority, is_there).await.ok()?;
    }
    None
}

fn explained(view: &View, question: &Question) -> Answer {
    let now_us = view.account.started().elapsed().as_micros();
    let configuration = view.known.configuration();
    let plan = view.plan.load();
    let setting = Setting {
        node: view.instance.id.to_string(),
        plan: &plan,
        configuration: &configuration,
        direction: question.direction,
        caller: question.caller.clone(),
        peer: question.peer,
        guarded: view.certificates.is_some(),
        now_us: u64::try_from(now_us).unwrap_or(u64::MAX),
        describe: dump::rule,
    };
    explain::explain(&setting, &question.asking)
}

struct Question {
    asking: Asking,
    direction: Direction,
    caller: Option<SpiffeId>,
    peer: Option<IpAddr>,
}

impl Question {
    fn parse(view: &View, query: &str) -> Result<Self, String> {
        let (mut method, mut url, mut headers) = ("GET".to_owned(), None, Vec::new());
        let (mut direction, mut from, mut port) = (Direction::Outbound, None, None);
        for (key, value) in parameters(query) {
            match key.as_str() {
                "method" => method = value,
                "url" => url = Some(value),
                "h" => headers.push(value),
                "from" => from = Some(value),
                "port" => port = Some(value),
                "direction" => match value.as_str() {
                    "inbound" => direction = Direction::Inbound,
                    "outbound" => direction = Direction::Outbound,
                    other => return Err(format!("direction `{other}` is none")),
                },
                other => return Err(format!("`{other}` is no parameter")),
            }
        }
        let url = url.ok_or("no url is asked about")?;
        let mut asking = Asking::parse(&method, &url, &headers)?;
        let is_edge = view.known.configuration().resources().edge.is_some();
        let mut peer = None;
        if is_edge && let Some(text) = from.take() {
            let ip = text.parse().map_err(|_| {
                format!("from `{text}`: at a Gateway it is the address of the other end, an IP")
            })?;
            peer = Some(ip);
        }
        if direction == Direction::Outbound && (from.is_some() || port.is_some()) {
            return Err("from and port are said of inbound requests".to_owned());
        }
        if let Some(port) = port {
            asking.headers.push(("x-phalanx-port".to_owned(), port));
        }
        Ok(Self {
            asking,
            direction,
            caller: from.map(|from| caller(view, &from)).transpose()?,
            peer,
        })
    }
}

/// In the trust domain of this sidecar, which knows one only with an identity.
fn caller(view: &View, text: &str) -> Result<SpiffeId, String> {
    let (namespace, name) = text
        .split_once('/')
        .unwrap_or((&view.instance.id.service.namespace, text));
    let service = ServiceName::parse(namespace, name).map_err(|error| error.to_string())?;
    Ok(SpiffeId {
        trust_domain: view.trust_domain(),
        service,
    })
}

/// Live requests, a line of JSON each.
pub fn tap(view: &View, query: &str) -> Response<PageBody> {
    let parameters = parameters(query);
    let parameters = parameters.iter().map(|(key, value)| (&**key, &**value));
    let order = match Order::parse(parameters) {
        Ok(order) => order,
        Err(error) => {
            return wrong(
                &error.to_string(),
                "service, path, method, status, grpc_status, reason, caller, colour, direction, slower_ms, errors, headers, sample, max and seconds can be said",
            );
        }
    };
    let Some(stream) = Stream::open(view.account.lookout(), &order) else {
        return problem(
            StatusCode::TOO_MANY_REQUESTS,
            "as many taps listen as may",
            "end one of them",
        );
    };
    let mut response = Response::new(PageBody::Tap(Box::new(stream)));
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-ndjson"),
    );
    signed(view, response)
}

/// Says whose word it is: an address may be somebody else's by now.
fn signed(view: &View, mut response: Response<PageBody>) -> Response<PageBody> {
    if let Ok(node) = HeaderValue::from_str(&view.instance.id.to_string()) {
        response.headers_mut().insert("x-phalanx-node", node);
    }
    response
}

fn wrong(what: &str, hint: &str) -> Response<PageBody> {
    problem(StatusCode::BAD_REQUEST, what, hint)
}

/// Of a query, decoded; at most [`PARAMETERS_MAX`].
fn parameters(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .take(PARAMETERS_MAX)
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decoded(key), decoded(value)))
        .collect()
}

/// Escapes that are none stay as they are; `+` stays too.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let digits = after
            .get(..2)
            .filter(|_| *byte == b'%')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(digits.unwrap_or(*byte));
        rest = match digits {
            Some(_) => after.get(2..).unwrap_or_default(),
            None => after,
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

const PARAMETERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded() {
        let wanted = [("url", "http://a/b?c=d&e"), ("h", "x: 1+1%"), ("flag", "")];
        let wanted = wanted.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(
            parameters("url=http://a/b%3Fc=d%26e&h=x%3A%201+1%&flag"),
            wanted
        );
    }

    #[test]
    fn every_reason_stands_in_the_documents_with_its_status() {
        let text = include_str!("../../../../docs/seeing.md");
        for reason in phalanx_model::Reason::ALL {
            let start = format!("| `{reason}` | {}", reason.http_status());
            let row = text.lines().find(|line| line.starts_with(&start));
            let grpc = format!("| {} |", reason.grpc_status());
            assert!(row.is_some_and(|row| row.contains(&grpc)), "{start}");
        }
    }
}
