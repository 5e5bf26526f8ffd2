//! Filters of a route's rule or backend: header edits, rewrites, redirects, CORS, a priority, each at most once, and mirrors.

use std::collections::HashSet;

use super::cors::cors;
use super::cursor::{At, Fields};
use super::report::quoted;
use super::value::{service_ref, without_trailing_slash};
use crate::document::{Kind, Meta, MirrorRef};
use crate::resource::limit::Priority;
use crate::resource::{Cors, HeaderEdit, MILLION, PathRewrite, Redirect, Rewrite};

const FILTERS_MAX: usize = 16;
const EDITS_MAX: usize = 16;
/// Headers that belong to a connection, or that the proxy writes itself.
const RESERVED: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
const RESERVED_PREFIX: &str = "x-phalanx-";

/// What the filters of a rule come to.
#[derive(Default)]
pub(super) struct Filters {
    pub edits: Edits,
    pub rewrite: Rewrite,
    pub redirect: Option<Redirect>,
    pub mirrors: Vec<MirrorRef>,
    pub cors: Option<Cors>,
    pub priority: Option<Priority>,
}

#[derive(Default)]
pub(super) struct Edits {
    pub request: HeaderEdit,
    pub response: HeaderEdit,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Type {
    RequestHeaders,
    ResponseHeaders,
    Redirect,
    Rewrite,
    Mirror,
    Cors,
    Extension,
}

const REQUEST_HEADERS: (&str, Type) = ("RequestHeaderModifier", Type::RequestHeaders);
const RESPONSE_HEADERS: (&str, Type) = ("ResponseHeaderModifier", Type::ResponseHeaders);
const MIRROR: (&str, Type) = ("RequestMirror", Type::Mirror);
const EXTENSION: (&str, Type) = ("ExtensionRef", Type::Extension);
const LATER: [&str; 1] = ["ExternalAuth"];
const GROUP: &str = "phalanx.dev";

/// The field `filters` of a rule.
pub(super) fn filters(fields: &mut Fields<'_>, meta: &Meta, kind: Kind) -> Filters {
    let http = [
        REQUEST_HEADERS,
        RESPONSE_HEADERS,
        ("RequestRedirect", Type::Redirect),
        ("URLRewrite", Type::Rewrite),
        MIRROR,
        ("CORS", Type::Cors),
        EXTENSION,
    ];
    let choices = if kind == Kind::HttpRoute {
        &http[..]
    } else {
        &[REQUEST_HEADERS, RESPONSE_HEADERS, MIRROR, EXTENSION]
    };
    read(fields, meta, choices, &LATER)
}

/// The field `filters` of a backend, which may only edit headers.
pub(super) fn edits(fields: &mut Fields<'_>, meta: &Meta, kind: Kind) -> Edits {
    let later = [
        "RequestRedirect",
        "URLRewrite",
        "RequestMirror",
        "CORS",
        "ExtensionRef",
        "ExternalAuth",
    ];
    let later = if kind == Kind::HttpRoute {
        &later[..]
    } else {
        &["RequestMirror", "ExtensionRef"]
    };
    read(fields, meta, &[REQUEST_HEADERS, RESPONSE_HEADERS], later).edits
}

fn read(fields: &mut Fields<'_>, meta: &Meta, choices: &[(&str, Type)], later: &[&str]) -> Filters {
    let mut filters = Filters::default();
    let mut seen = HashSet::new();
    for at in fields.list("filters", FILTERS_MAX) {
        let Some(kind) = filter(&at, meta, choices, later, &mut filters) else {
            continue;
        };
        if !seen.insert(kind) && kind != Type::Mirror {
            at.refuse_with::<()>(
                "a filter of this type stands in this list already",
                "join them",
            );
        }
    }
    filters
}

fn filter(
    at: &At<'_>,
    meta: &Meta,
    choices: &[(&str, Type)],
    later: &[&str],
    into: &mut Filters,
) -> Option<Type> {
    let mut fields = at.fields()?;
    let kind = fields.need("type").and_then(|at| at.choose(choices, later));
    let Some(kind) = kind else {
        fields.skip(); // the type decides which field stands beside it
        return None;
    };
    match kind {
        Type::RequestHeaders => {
            into.edits.request = fields
                .need("requestHeaderModifier")
                .and_then(|at| header_edit(&at))?
        }
        Type::ResponseHeaders => {
            into.edits.response = fields
                .need("responseHeaderModifier")
                .and_then(|at| header_edit(&at))?
        }
        Type::Redirect => {
            into.redirect = Some(
                fields
                    .need("requestRedirect")
                    .and_then(|at| redirect(&at))?,
            )
        }
        Type::Rewrite => into.rewrite = fields.need("urlRewrite").and_then(|at| rewrite(&at))?,
        Type::Mirror => into.mirrors.push(
            fields
                .need("requestMirror")
                .and_then(|at| mirror(&at, meta))?,
        ),
        Type::Cors => into.cors = Some(fields.need("cors").and_then(|at| cors(&at))?),
        Type::Extension => {
            let priority = fields.need("extensionRef").and_then(|at| priority(&at));
            into.priority = Some(priority?);
        }
    }
    Some(kind)
}

/// The one extension there is: `{group: phalanx.dev, kind: Priority, name: low}`.
fn priority(at: &At<'_>) -> Option<Priority> {
    let mut fields = at.fields()?;
    let group = fields
        .need("group")
        .and_then(|at| at.choose(&[(GROUP, ())], &[]));
    let kind = fields
        .need("kind")
        .and_then(|at| at.choose(&[("Priority", ())], &[]));
    let choices = Priority::ALL.map(|priority| (priority.word(), priority));
    let priority = fields.need("name").and_then(|at| at.choose(&choices, &[]));
    group.and(kind).and(priority)
}

fn mirror(at: &At<'_>, meta: &Meta) -> Option<MirrorRef> {
    let mut fields = at.fields()?;
    let target = fields.need("backendRef").and_then(|at| {
        let mut fields = at.fields()?;
        let service = service_ref(&mut fields, meta, "Service");
        let port = fields.need("port").and_then(|at| at.port());
        service.zip(port)
    });
    let percent = fields
        .get("percent")
        .map(|at| Some(at.number(0..=100)? * (MILLION / 100)));
    let fraction = fields.get("fraction").map(|at| fraction(&at));
    if percent.is_some() && fraction.is_some() {
        at.refuse_with::<()>("`percent` and `fraction` say the same", "drop one of them");
    }
    let (service, port) = target?;
    Some(MirrorRef {
        service,
        port,
        per_million: percent.or(fraction).unwrap_or(Some(MILLION))?,
    })
}

/// Rounded to millionths, but not to nothing.
fn fraction(at: &At<'_>) -> Option<u32> {
    let mut fields = at.fields()?;
    let max = i32::MAX.unsigned_abs();
    let numerator = fields.need("numerator").and_then(|at| at.number(0..=max));
    let denominator = fields.number("denominator", 1..=max, 100);
    let numerator = numerator?;
    at.check(
        numerator <= denominator,
        "the numerator is more than the denominator",
    )?;
    let (part, whole) = (u64::from(numerator), u64::from(denominator));
    let per_million = (part * u64::from(MILLION) + whole / 2) / whole;
    u32::try_from(per_million.max(part.min(1))).ok()
}

fn header_edit(at: &At<'_>) -> Option<HeaderEdit> {
    let mut fields = at.fields()?;
    let set = pairs(&fields.list("set", EDITS_MAX));
    let add = pairs(&fields.list("add", EDITS_MAX));
    let remove = fields
        .list("remove", EDITS_MAX)
        .iter()
        .filter_map(header_to_edit)
        .collect();
    Some(HeaderEdit { set, add, remove })
}

fn pairs(items: &[At<'_>]) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for at in items {
        let Some(mut fields) = at.fields() else {
            continue;
        };
        let name = fields.need("name").and_then(|at| header_to_edit(&at));
        let value = fields.need("value").and_then(|at| at.header_value());
        let Some((name, value)) = name.zip(value) else {
            continue;
        };
        if pairs.iter().any(|(known, _)| *known == name) {
            at.refuse::<()>(format!("{} stands twice in this list", quoted(&name)));
        }
        pairs.push((name, value));
    }
    pairs
}

pub(super) fn header_to_edit(at: &At<'_>) -> Option<String> {
    let name = at.header_name()?;
    if name == "host" {
        return at.refuse_with(
            "the header `host` can't be edited",
            "use the filter URLRewrite with `hostname`",
        );
    }
    let reserved = RESERVED.contains(&name.as_str()) || name.starts_with(RESERVED_PREFIX);
    if reserved {
        at.refuse(format!(
            "the header {} belongs to the proxy and can't be edited",
            quoted(&name)
        ))
    } else {
        Some(name)
    }
}

fn rewrite(at: &At<'_>) -> Option<Rewrite> {
    let mut fields = at.fields()?;
    let authority = fields.get("hostname").and_then(|at| at.dns_name());
    let path = fields.get("path").and_then(|at| path_rewrite(&at));
    Some(Rewrite { authority, path })
}

fn redirect(at: &At<'_>) -> Option<Redirect> {
    let mut fields = at.fields()?;
    let scheme = fields
        .get("scheme")
        .and_then(|at| at.choose(&[("http", "http"), ("https", "https")], &[]))
        .map(str::to_owned);
    let hostname = fields.get("hostname").and_then(|at| at.dns_name());
    let port = fields.get("port").and_then(|at| at.port());
    let path = fields.get("path").and_then(|at| path_rewrite(&at));
    let status = fields.get("statusCode").map_or(Some(302), |at| {
        let status = u16::try_from(at.number(300..=399)?).ok()?;
        at.check(
            matches!(status, 301 | 302 | 303 | 307 | 308),
            "a redirect has status 301, 302, 303, 307 or 308",
        )?;
        Some(status)
    });
    Some(Redirect {
        scheme,
        hostname,
        port,
        path,
        status: status?,
    })
}

fn path_rewrite(at: &At<'_>) -> Option<PathRewrite> {
    let mut fields = at.fields()?;
    let full = fields.need("type").and_then(|at| {
        at.choose(
            &[("ReplaceFullPath", true), ("ReplacePrefixMatch", false)],
            &[],
        )
    });
    let Some(full) = full else {
        fields.skip(); // the type decides which field stands beside it
        return None;
    };
    if full {
        return fields
            .need("replaceFullPath")?
            .path()
            .map(PathRewrite::Full);
    }
    let prefix = fields.need("replacePrefixMatch")?;
    let path = if prefix.text()?.is_empty() {
        "/".to_owned()
    } else {
        prefix.path()?
    };
    Some(PathRewrite::Prefix(without_trailing_slash(path)))
}
