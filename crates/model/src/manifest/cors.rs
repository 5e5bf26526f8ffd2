//! The filter CORS of an HTTPRoute's rule: pages of which origins may read answers, and what they may ask for.

use super::cursor::{At, Fields};
use super::report::quoted;
use crate::matching::pattern::Pattern;
use crate::resource::{ANY, Cors, ValueMatch};

const LIST_MAX: usize = 64;
const METHODS_MAX: usize = 9;
const ORIGIN_LEN_MAX: usize = 253;
const MAX_AGE_DEFAULT: u32 = 5;

pub(super) fn cors(at: &At<'_>) -> Option<Cors> {
    let mut fields = at.fields()?;
    let origins = set(&mut fields, "allowOrigins", LIST_MAX, origin);
    let methods = set(&mut fields, "allowMethods", METHODS_MAX, method);
    let headers = set(&mut fields, "allowHeaders", LIST_MAX, |at| at.header_name());
    let exposed = set(&mut fields, "exposeHeaders", LIST_MAX, |at| {
        at.header_name()
    });
    let credentials = fields
        .get("allowCredentials")
        .and_then(|at| at.boolean())
        .unwrap_or_default();
    if credentials && exposed.iter().any(|name| name == ANY) {
        at.refuse_with::<()>(
            "`exposeHeaders: [\"*\"]` means nothing to browsers beside `allowCredentials`",
            "name the headers",
        );
    }
    Some(Cors {
        origins: origins.iter().map(|origin| matching(origin)).collect(),
        credentials,
        methods,
        headers,
        exposed,
        max_age: fields.number("maxAge", 1..=i32::MAX.unsigned_abs(), MAX_AGE_DEFAULT),
    })
}

/// Each once, and `*` only alone.
fn set(
    fields: &mut Fields<'_>,
    key: &'static str,
    max: usize,
    read: impl Fn(&At<'_>) -> Option<String>,
) -> Vec<String> {
    let mut items: Vec<String> = Vec::new();
    for at in fields.list(key, max) {
        let Some(item) = read(&at) else { continue };
        if items.contains(&item) {
            at.refuse::<()>(format!("{} stands twice in this list", quoted(&item)));
        } else if !items.is_empty() && (item == ANY || items.first().is_some_and(|i| i == ANY)) {
            at.refuse_with::<()>("`*` stands for all and has others beside it", "drop one");
        }
        items.push(item);
    }
    items
}

fn method(at: &At<'_>) -> Option<String> {
    const METHODS: [&str; 10] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", ANY,
    ];
    at.choose(&METHODS.map(|method| (method, method)), &[])
        .map(str::to_owned)
}

/// `*`, or scheme, host and port in the form in which browsers send them: lower case, without the scheme's own port.
fn origin(at: &At<'_>) -> Option<String> {
    let text = at.bounded(ORIGIN_LEN_MAX)?.to_ascii_lowercase();
    if text == ANY {
        return Some(text);
    }
    let parts = split(&text);
    let Some((scheme, host, port)) = parts else {
        return at.refuse_with(
            format!("{} is no origin", quoted(&text)),
            "like `https://game.example`, `https://*.game.example:8443` or `*`",
        );
    };
    let port = port.filter(|port| !matches!((scheme, port), ("http", 80) | ("https", 443)));
    let origin = match port {
        Some(port) => format!("{scheme}://{host}:{port}"),
        None => format!("{scheme}://{host}"),
    };
    if let ValueMatch::Regex(pattern) = matching(&origin)
        && let Err(error) = Pattern::parse(&pattern)
    {
        return at.refuse(error.to_string());
    }
    Some(origin)
}

fn split(text: &str) -> Option<(&str, &str, Option<u16>)> {
    let (scheme, rest) = text.split_once("://")?;
    let (host, port) = match rest.split_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port > 0)?)),
        None => (rest, None),
    };
    let is_host = |b: u8| b.is_ascii_alphanumeric() || b"-.*".contains(&b);
    let good = matches!(scheme, "http" | "https") && !host.is_empty();
    (good && host.bytes().all(is_host)).then_some((scheme, host, port))
}

/// A `*` in a host stands for any part of it, dots included.
fn matching(origin: &str) -> ValueMatch {
    if origin == ANY || !origin.contains(ANY) {
        return ValueMatch::Exact(origin.to_owned());
    }
    let pattern = origin.replace('.', "\\.").replace(ANY, "[^/:]+");
    ValueMatch::Regex(pattern)
}
