//! The one form of a path and of an authority that is matched, authorised, measured and sent upstream.
//! Whatever two servers could read in two ways is refused; an already canonical text is returned without a copy.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use thiserror::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PathError {
    #[error("the path does not start with /")]
    NotAbsolute,
    #[error("the path holds a byte that may not stand there (space, control, \\, # or ?)")]
    Character,
    #[error("the path holds a % that starts no escape")]
    Escape,
    #[error("the path holds an escaped /, \\ or control byte")]
    Hidden,
    #[error("the path leads above the root")]
    AboveRoot,
}

/// Resolves dot segments, then merges slashes; decodes escaped unreserved characters first, writes other escapes in
/// upper case and escapes what RFC 3986 doesn't allow raw. `raw` has no query; `*` (of OPTIONS) is left alone.
///
/// # Errors
/// [`PathError`] for what is refused rather than repaired: answered with 400 `bad_path`.
pub fn canonical_path(raw: &str) -> Result<Cow<'_, str>, PathError> {
    if raw == "*" || is_canonical(raw.as_bytes()) {
        return Ok(Cow::Borrowed(raw));
    }
    if !raw.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    resolve_dots(&canonical_escapes(raw)?).map(Cow::Owned)
}

fn is_canonical(path: &[u8]) -> bool {
    let mut rest = path;
    if rest.first() != Some(&b'/') {
        return false;
    }
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'/' => {
                // An empty segment or a dot segment follows.
                if matches!(
                    after,
                    [b'/', ..] | [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..]
                ) {
                    return false;
                }
            }
            b'%' => {
                let Some((escape, after)) = after.split_at_checked(2) else {
                    return false;
                };
                let upper = escape
                    .iter()
                    .all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
                let kept = hex_pair(escape).is_some_and(|b| !is_unreserved(b) && !is_hidden(b));
                if !upper || !kept {
                    return false;
                }
                rest = after;
            }
            _ if !is_path_byte(byte) => return false,
            _ => {}
        }
    }
    true
}

fn canonical_escapes(raw: &str) -> Result<String, PathError> {
    let mut out = String::with_capacity(raw.len() + 16);
    let mut rest = raw.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'%' => {
                let decoded = hex_pair(after).ok_or(PathError::Escape)?;
                rest = after.get(2..).unwrap_or_default();
                match decoded {
                    _ if is_hidden(decoded) => return Err(PathError::Hidden),
                    _ if is_unreserved(decoded) => out.push(char::from(decoded)),
                    _ => push_escape(&mut out, decoded),
                }
            }
            0..=b' ' | 0x7f | b'\\' | b'#' | b'?' => return Err(PathError::Character),
            b'/' => out.push('/'),
            _ if is_path_byte(byte) => out.push(char::from(byte)),
            _ => push_escape(&mut out, byte),
        }
    }
    Ok(out)
}

/// Dot segments as RFC 3986 §5.2.4 (an empty segment is one), and only then slashes: the order of Envoy.
fn resolve_dots(path: &str) -> Result<String, PathError> {
    let mut segments: Vec<&str> = Vec::new();
    let mut ends_in_folder = false;
    for segment in path.split('/').skip(1) {
        ends_in_folder = matches!(segment, "" | "." | "..");
        match segment {
            "." => {}
            ".." => {
                segments.pop().ok_or(PathError::AboveRoot)?;
            }
            _ => segments.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in segments.iter().filter(|s| !s.is_empty()) {
        out.push('/');
        out.push_str(segment);
    }
    if ends_in_folder {
        out.push('/');
    }
    Ok(out)
}

fn push_escape(out: &mut String, byte: u8) {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F',
    ];
    out.push('%');
    out.extend([
        DIGITS[usize::from(byte >> 4)],
        DIGITS[usize::from(byte & 15)],
    ]);
}

/// The byte that two leading hex digits stand for.
pub(super) fn hex_pair(text: &[u8]) -> Option<u8> {
    let digit = |b: u8| {
        char::from(b)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let [high, low, ..] = text else { return None };
    Some(digit(*high)? << 4 | digit(*low)?)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Bytes of which no escaped form is taken.
fn is_hidden(byte: u8) -> bool {
    byte.is_ascii_control() || matches!(byte, b'/' | b'\\')
}

/// `pchar` of RFC 3986 without `%`.
fn is_path_byte(byte: u8) -> bool {
    const TABLE: [bool; 256] = {
        let mut table = [false; 256];
        let mut i = 0;
        let raw =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@";
        while i < raw.len() {
            table[raw[i] as usize] = true;
            i += 1;
        }
        table
    };
    TABLE[usize::from(byte)]
}

/// `host` or `host:port` in canonical form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    text: Cow<'a, str>,
    host_len: usize,
    port: Option<u16>,
}

impl Authority<'_> {
    /// With port, if it was given; what [`super::CompiledTable::host`] takes.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Lower case, without port; an IPv6 address with its brackets.
    pub fn host(&self) -> &str {
        self.text.get(..self.host_len).unwrap_or_default()
    }

    pub fn port(&self) -> Option<u16> {
        self.port
    }

    pub fn into_owned(self) -> Authority<'static> {
        Authority {
            text: Cow::Owned(self.text.into_owned()),
            host_len: self.host_len,
            port: self.port,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AuthorityError {
    #[error("the authority is empty")]
    Empty,
    #[error("the authority holds user information")]
    UserInfo,
    #[error("the authority's port is none of 1 to 65535")]
    Port,
    #[error("the authority's host is neither a name nor an address")]
    Host,
}

/// Lower case, without trailing dot, IPv6 in brackets and in RFC 5952's form.
///
/// # Errors
/// [`AuthorityError`] for user information, percent escapes, empty labels, an empty port or one with leading zeros.
pub fn canonical_authority(raw: &str) -> Result<Authority<'_>, AuthorityError> {
    // What holds an @ fails anyway, so it is looked for only then.
    parse_authority(raw).map_err(|error| {
        if raw.contains('@') {
            AuthorityError::UserInfo
        } else {
            error
        }
    })
}

fn parse_authority(raw: &str) -> Result<Authority<'_>, AuthorityError> {
    let (host, port) = split_port(raw)?;
    let canonical = if host.starts_with('[') {
        canonical_ipv6(host)?
    } else {
        canonical_name(host)?
    };
    let (host_len, port_number) = (canonical.len(), port.map(parse_port).transpose()?);
    let text = match canonical {
        Cow::Borrowed(name) if name.len() == host.len() => Cow::Borrowed(raw),
        Cow::Borrowed(name) if port.is_none() => Cow::Borrowed(name),
        name => Cow::Owned(port.map_or_else(|| name.to_string(), |port| format!("{name}:{port}"))),
    };
    Ok(Authority {
        text,
        host_len,
        port: port_number,
    })
}

fn split_port(raw: &str) -> Result<(&str, Option<&str>), AuthorityError> {
    let from = if raw.starts_with('[') {
        raw.find(']').ok_or(AuthorityError::Host)? + 1
    } else {
        raw.find(':').unwrap_or(raw.len())
    };
    let (host, rest) = raw.split_at_checked(from).ok_or(AuthorityError::Host)?;
    match rest.strip_prefix(':') {
        Some(port) => Ok((host, Some(port))),
        None if rest.is_empty() => Ok((host, None)),
        None => Err(AuthorityError::Host),
    }
}

fn parse_port(text: &str) -> Result<u16, AuthorityError> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    text.parse()
        .ok()
        .filter(|_| plain)
        .ok_or(AuthorityError::Port)
}

fn canonical_ipv6(host: &str) -> Result<Cow<'_, str>, AuthorityError> {
    let inner = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .ok_or(AuthorityError::Host)?;
    let address: Ipv6Addr = inner.parse().map_err(|_| AuthorityError::Host)?;
    let text = format!("[{address}]");
    Ok(if text == host {
        Cow::Borrowed(host)
    } else {
        Cow::Owned(text)
    })
}

/// At most 253 bytes of letters, digits, `-`, `_` and single dots. `_` is no DNS host name, but names of containers have it.
fn canonical_name(host: &str) -> Result<Cow<'_, str>, AuthorityError> {
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.is_empty() {
        return Err(AuthorityError::Empty);
    }
    let (mut last, mut lower) = (b'.', true);
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => {}
            b'A'..=b'Z' => lower = false,
            b'.' if last != b'.' => {}
            _ => return Err(AuthorityError::Host),
        }
        last = byte;
    }
    if name.len() > 253 || last == b'.' {
        return Err(AuthorityError::Host);
    }
    Ok(if lower {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(name.to_ascii_lowercase())
    })
}
