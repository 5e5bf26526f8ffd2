//! Checks of single values: names, labels, ports, durations, headers, paths, patterns, references to Services.

use std::time::Duration;

use super::cursor::{At, Fields};
use super::report::quoted;
use super::tree::Value;
use crate::document::Meta;
use crate::instance::Labels;
use crate::matching::canonical::canonical_path;
use crate::matching::pattern::Pattern;
use crate::name::{ServiceName, check_label};
use crate::resource::ValueMatch;

/// Bytes of a path or a query value, from the Gateway API.
const PATH_LEN_MAX: usize = 1024;
const HEADER_NAME_LEN_MAX: usize = 256;
const HEADER_VALUE_LEN_MAX: usize = 4096;

impl<'a> At<'a> {
    /// A text with no more than `max` bytes and not empty.
    pub fn bounded(&self, max: usize) -> Option<&'a str> {
        let text = self.text()?;
        self.check(!text.is_empty(), "the text is empty")?;
        if text.len() > max {
            self.refuse(format!(
                "the text has {} bytes, at most {max} are taken",
                text.len()
            ))
        } else {
            Some(text)
        }
    }

    /// RFC 1123 label.
    pub fn dns_label(&self) -> Option<String> {
        let text = self.text()?;
        match check_label(text) {
            Ok(()) => Some(text.to_owned()),
            Err(_) => self.refuse_with(
                format!("{} is no DNS label", quoted(text)),
                "a-z, 0-9 and -, at most 63, starting and ending with a letter or digit",
            ),
        }
    }

    /// RFC 1123 subdomain: labels and dots, at most 253 bytes.
    pub fn dns_name(&self) -> Option<String> {
        let text = self.text()?;
        if is_dns_name(text) {
            return Some(text.to_owned());
        }
        self.refuse_with(
            format!("{} is no DNS name", quoted(text)),
            "lower-case labels of a-z, 0-9 and -, with dots between, at most 253",
        )
    }

    pub fn port(&self) -> Option<u16> {
        self.number(1..=65535)
            .and_then(|port| u16::try_from(port).ok())
    }

    /// Go's notation, from `min` to `max`.
    pub fn go_duration(&self, min: Duration, max: Duration) -> Option<Duration> {
        let Value::Text(text) = &self.node.value else {
            return self.wrong_type("a duration (like `1.5s`)");
        };
        let Some(duration) = go_duration(text) else {
            return self.refuse_with(
                format!("{} is no duration", quoted(text)),
                "like `1.5s`, `200ms` or `1h2m`",
            );
        };
        if duration < min || duration > max {
            return self.refuse(format!("{} is not within {min:?} to {max:?}", quoted(text)));
        }
        Some(duration)
    }

    /// The Gateway API's notation (GEP-2257).
    pub fn gateway_duration(&self) -> Option<Duration> {
        let Value::Text(text) = &self.node.value else {
            return self.wrong_type("a duration (like `10s`)");
        };
        gateway_duration(text).or_else(|| {
            self.refuse_with(
                format!("{} is no duration", quoted(text)),
                "one to four of whole numbers with h, m, s or ms, like `10s` or `1m30s`",
            )
        })
    }

    /// A field name in lower case.
    pub fn header_name(&self) -> Option<String> {
        let text = self.bounded(HEADER_NAME_LEN_MAX)?;
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if text.bytes().all(token) {
            Some(text.to_ascii_lowercase())
        } else {
            self.refuse(format!("{} is no header name", quoted(text)))
        }
    }

    /// A field value: no control characters, no space around it.
    pub fn header_value(&self) -> Option<String> {
        let text = self.bounded(HEADER_VALUE_LEN_MAX)?;
        self.check(
            !text.contains(|c: char| c.is_control() && c != '\t'),
            "a header value has no control characters",
        )?;
        self.check(
            text.trim_matches([' ', '\t']) == text,
            "a header value has no space around it",
        )?;
        Some(text.to_owned())
    }

    /// A path in the form in which requests are matched.
    pub fn path(&self) -> Option<String> {
        let text = self.bounded(PATH_LEN_MAX)?;
        match canonical_path(text) {
            Ok(_) if text == "*" => self.refuse("the path does not start with /"),
            Ok(canonical) if canonical == text => Some(text.to_owned()),
            Ok(canonical) => self.refuse_with(
                format!("{} is not in canonical form", quoted(text)),
                format!("write {}", quoted(&canonical)),
            ),
            Err(error) => self.refuse(error.to_string()),
        }
    }

    /// A regular expression of at most `max` bytes.
    pub fn pattern(&self, max: usize) -> Option<String> {
        let text = self.bounded(max)?;
        match Pattern::parse(text) {
            Ok(_) => Some(text.to_owned()),
            Err(error) => self.refuse(error.to_string()),
        }
    }
}

/// How a text is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum MatchType {
    Exact,
    Regex,
}

/// The field `type` of a header, query or gRPC method match.
pub(super) fn match_type(fields: &mut Fields<'_>) -> Option<MatchType> {
    let choices = [
        ("Exact", MatchType::Exact),
        ("RegularExpression", MatchType::Regex),
    ];
    fields
        .get("type")
        .map_or(Some(MatchType::Exact), |at| at.choose(&choices, &[]))
}

/// `type` and `value` of a header or query match; `exact` checks the value of an exact one.
pub(super) fn value_match(
    fields: &mut Fields<'_>,
    max: usize,
    exact: impl FnOnce(&At<'_>) -> Option<String>,
) -> Option<ValueMatch> {
    let match_type = match_type(fields);
    let value = fields.need("value");
    Some(match match_type? {
        MatchType::Exact => ValueMatch::Exact(exact(&value?)?),
        MatchType::Regex => ValueMatch::Regex(value?.pattern(max)?),
    })
}

/// `group`, `kind`, `name` and `namespace` of a reference to a Service, from a document of `meta`.
pub(super) fn service_ref(
    fields: &mut Fields<'_>,
    meta: &Meta,
    kind_default: &str,
) -> Option<ServiceName> {
    let (kind, group) = (fields.get("kind"), fields.get("group"));
    let kind_text = kind.as_ref().map_or(Some(kind_default), At::text);
    if let Some(other) = kind_text.filter(|kind| *kind != "Service") {
        let at = kind.as_ref().unwrap_or(&fields.at);
        at.refuse_with::<()>(
            format!(
                "a reference to a {} is not supported by this version",
                quoted(other)
            ),
            "write `kind: Service`",
        );
    } else if let Some(group) =
        group.filter(|at| at.text().is_some_and(|group| !matches!(group, "" | "core")))
    {
        group.refuse_with::<()>("a Service is in no group", "leave it out");
    }
    let name = fields.need("name").and_then(|at| at.dns_label());
    let namespace = fields
        .get("namespace")
        .map_or_else(|| Some(meta.namespace.clone()), |at| at.dns_label());
    kind_text.filter(|kind| *kind == "Service")?;
    Some(ServiceName {
        namespace: namespace?,
        name: name?,
    })
}

/// `/a/` means the same prefix as `/a`.
pub(super) fn without_trailing_slash(mut path: String) -> String {
    if path.len() > 1 && path.ends_with('/') {
        path.pop();
    }
    path
}

/// Labels or a selector.
pub(super) fn labels(at: &At<'_>) -> Labels {
    let label = |(key, at): (&str, At<'_>)| {
        at.check(
            is_label_key(key),
            "is no label's name ([prefix/]name; at most 63 letters, digits, -, _ and .)",
        )?;
        let value = at.text()?;
        at.check(
            is_label_value(value),
            "is no label's value (at most 63 letters, digits, -, _ and .)",
        )?;
        Some((key.to_owned(), value.to_owned()))
    };
    at.entries().into_iter().filter_map(label).collect()
}

pub(super) fn is_label_key(key: &str) -> bool {
    let (prefix, name) = key
        .split_once('/')
        .map_or((None, key), |(prefix, name)| (Some(prefix), name));
    !name.is_empty() && is_label_value(name) && prefix.is_none_or(is_dns_name)
}

/// Empty, or at most 63 of letters, digits, `-`, `_`, `.`, starting and ending with a letter or digit.
pub(super) fn is_label_value(value: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let bytes = value.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
}

pub(super) fn is_dns_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|label| check_label(label).is_ok())
}

/// `time.ParseDuration` of Go, without sign; at most its 2^63 − 1 ns.
fn go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u128); 8] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("μs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut nanos: u128 = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let (whole, after) = split_digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), split_digits);
        let unit_len = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
        if (whole.is_empty() && fraction.is_empty()) || whole.len() > 19 || fraction.len() > 18 {
            return None;
        }
        let number = |digits: &str| {
            if digits.is_empty() {
                Some(0)
            } else {
                digits.parse::<u128>().ok()
            }
        };
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        nanos += number(whole)? * unit + number(fraction)? * unit / scale;
        rest = after;
    }
    let bounded = u64::try_from(nanos)
        .ok()
        .filter(|nanos| !text.is_empty() && i64::try_from(*nanos).is_ok());
    bounded.map(Duration::from_nanos)
}

/// `^([0-9]{1,5}(h|m|s|ms)){1,4}$`
fn gateway_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    for _ in 0..4 {
        let (digits, after) = split_digits(rest);
        let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 5)?;
        let unit_len = after
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        total += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        rest = after;
        if rest.is_empty() {
            return Some(total);
        }
    }
    None
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_read_like_go() {
        for (text, nanos) in [
            ("0", 0),
            ("0s", 0),
            ("1.5s", 1_500_000_000),
            ("200ms", 200_000_000),
            ("1h2m", 3_720_000_000_000),
            (".5s", 500_000_000),
            ("1.s", 1_000_000_000),
            ("3us", 3_000),
            ("3µs", 3_000),
            ("1h1h", 7_200_000_000_000),
        ] {
            assert_eq!(
                go_duration(text),
                Some(Duration::from_nanos(nanos)),
                "{text}"
            );
        }
        for text in [
            "",
            "1",
            "s",
            "-1s",
            "+1s",
            "1 s",
            "1d",
            "1.2.3s",
            ".s",
            "1e3s",
            "9999999h",
            "99999999999999999999s",
            "1s ",
        ] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }

    #[test]
    fn gateway_durations_read_like_gep_2257() {
        for (text, millis) in [
            ("0s", 0),
            ("10s", 10_000),
            ("1h2m3s4ms", 3_723_004),
            ("99999h", 359_996_400_000),
            ("1m1m", 120_000),
        ] {
            assert_eq!(
                gateway_duration(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "0",
            "1.5s",
            "100000s",
            "1s2s3s4s5s",
            "-1s",
            "1us",
            "1 s",
        ] {
            assert_eq!(gateway_duration(text), None, "{text}");
        }
    }

    #[test]
    fn label_names_are_those_of_kubernetes() {
        for key in ["app", "kubernetes.io/service-name", "A_b.c-d", "1"] {
            assert!(is_label_key(key), "{key}");
        }
        for key in [
            "",
            "/x",
            "x/",
            "a/b/c",
            "-a",
            "a-",
            "A.io/x",
            "ä",
            &"a".repeat(64),
        ] {
            assert!(!is_label_key(key), "{key}");
        }
    }
}
