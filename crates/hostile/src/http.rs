//! HTTP in all its pieces. Bytes that were cut differently are read alike; what was taken has one reading and is canonical.

use phalanx_model::matching::canonical::{canonical_authority, canonical_path};
use phalanx_relay::hpack::{Decoder, Encoder, FieldName, Fields, Most, Pseudo};
use phalanx_relay::http1::fuzz as http1;
use phalanx_relay::http2::fuzz as http2;
use phalanx_relay::{Checked, Framing, Http1Line, Http2Pseudo, Limits, Version, Workspace};

/// The first byte says how many cuts follow.
fn cuts(bytes: &[u8]) -> (&[u8], &[u8]) {
    let Some((count, rest)) = bytes.split_first() else {
        return (&[], &[]);
    };
    rest.split_at(usize::from(*count % 32).min(rest.len()))
}

pub fn http1_requests(bytes: &[u8]) {
    let (cuts, bytes) = cuts(bytes);
    let told = http1::requests(bytes, cuts, &Limits::default());
    let told = told.unwrap_or_else(|difference| panic!("{difference}"));
    assert!(
        told.matches("answered").count() <= 1 + bytes.len() / 16,
        "more requests than there are bytes for: {told}"
    );
}

pub fn http1_answers(bytes: &[u8]) {
    let (cuts, bytes) = cuts(bytes);
    for request in [
        http1::Request::Get,
        http1::Request::Head,
        http1::Request::WebSocket,
    ] {
        let told = http1::answer(bytes, cuts, request, &Limits::default());
        if let Err(difference) = told {
            panic!("{request:?}: {difference}");
        }
    }
}

/// A body behind heads that are good.
pub fn chunked(bytes: &[u8]) {
    let (cuts, bytes) = cuts(bytes);
    let head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let told = http1::requests(&[head, bytes].concat(), cuts, &Limits::default());
    let requested = told.unwrap_or_else(|difference| panic!("{difference}"));
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let bytes = [&head[..], bytes].concat();
    let told = http1::answer(&bytes, cuts, http1::Request::Get, &Limits::default());
    let answered = told.unwrap_or_else(|difference| panic!("{difference}"));
    // A body that ends for the one side ends for the other, with the same bytes.
    let data = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("data "));
        line.map(str::to_owned)
    };
    let ends = |text: &str| text.lines().any(|line| line.starts_with("end "));
    if ends(&requested) && ends(&answered) {
        assert_eq!(data(&requested), data(&answered));
    }
}

pub fn http2_requests(bytes: &[u8]) {
    let (cuts, bytes) = cuts(bytes);
    if let Err(difference) = http2::requests(bytes, cuts, &Limits::default()) {
        panic!("{difference}");
    }
}

pub fn http2_answers(bytes: &[u8]) {
    let (cuts, bytes) = cuts(bytes);
    if let Err(difference) = http2::answers(bytes, cuts, &Limits::default()) {
        panic!("{difference}");
    }
}

/// Blocks of one connection, each behind a byte with its length. What came out is written again, and read again.
pub fn hpack(bytes: &[u8]) {
    const MOST: Most = Most {
        bytes: 4096,
        fields: 64,
    };
    let (mut decoder, mut fields) = (Decoder::default(), Fields::default());
    let (mut encoders, mut again) = ([Encoder::new(false), Encoder::new(true)], Fields::default());
    let mut decoders = [Decoder::default(), Decoder::default()];
    let mut rest = bytes;
    while let Some((length, after)) = rest.split_first() {
        let (block, after) = after.split_at(usize::from(*length).min(after.len()));
        rest = after;
        if decoder.decode(block, &mut fields, MOST).is_err() {
            return;
        }
        assert!(fields.len() <= MOST.fields);
        let size: usize = fields.iter().map(|(_, value, _)| value.len() + 32).sum();
        assert!(size <= MOST.bytes, "{size} bytes were kept");
        assert!(!fields.is_too_large() || fields.is_empty());
        for (encoder, decoder) in encoders.iter_mut().zip(&mut decoders) {
            let mut block = Vec::new();
            encoder.begin(&mut block);
            write(encoder, &fields, &mut block);
            let read = decoder.decode(&block, &mut again, MOST);
            assert_eq!(read, Ok(()), "our own block");
            assert_eq!(shown(&fields), shown(&again));
        }
    }
}

fn write(encoder: &mut Encoder, fields: &Fields, out: &mut Vec<u8>) {
    for (name, value, never) in fields.iter() {
        let text = std::str::from_utf8(value).ok();
        match (name, text) {
            (FieldName::Name(name), _) => encoder.field(name, value, never, out),
            (FieldName::Pseudo(Pseudo::Authority), Some(text)) => encoder.authority(text, out),
            (FieldName::Pseudo(Pseudo::Method), Some(text)) => encoder.method(text, out),
            (FieldName::Pseudo(Pseudo::Path), Some(text)) => encoder.path(text, None, out),
            _ => {} // what we never write
        }
    }
}

fn shown(fields: &Fields) -> Vec<(String, Vec<u8>)> {
    let written = fields.iter().filter_map(|(name, value, _)| {
        let name = match name {
            FieldName::Name(name) => String::from_utf8_lossy(name.as_bytes()).into_owned(),
            FieldName::Pseudo(pseudo @ (Pseudo::Authority | Pseudo::Method | Pseudo::Path)) => {
                std::str::from_utf8(value).ok()?;
                pseudo.as_str().to_owned()
            }
            _ => return None,
        };
        Some((name, value.to_vec()))
    });
    written.collect()
}

/// Lines: method, authority, path, query, then fields with a colon. Both codecs' constructors.
pub fn checked(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut text = || std::str::from_utf8(lines.next().unwrap_or_default()).unwrap_or("\u{fffd}");
    let (method, authority, path, query) = (text(), text(), text(), text());
    let (authority, query) = (some(authority), some(query));
    let fields: Vec<(&[u8], &[u8])> = lines
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((line.get(..colon)?, line.get(colon + 1..)?))
        })
        .collect();
    for version in [Version::Http10, Version::Http11] {
        let line = Http1Line {
            method,
            authority,
            path,
            query,
            version,
        };
        let fields = fields.iter().copied();
        if let Ok(read) = Checked::http1(Workspace::default(), line, fields, &Limits::default()) {
            holds(&read);
        }
    }
    for ended in [false, true] {
        let pseudo = Http2Pseudo {
            method,
            authority,
            path,
            query,
            ended,
        };
        let fields = fields.iter().copied();
        if let Ok(read) = Checked::http2(Workspace::default(), pseudo, fields, &Limits::default()) {
            holds(&read);
        }
    }
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// What is true of every request that got through.
fn holds(read: &Checked) {
    let path = read.path();
    assert_eq!(canonical_path(path).as_deref(), Ok(path));
    let ends = |segment: &str| segment == "." || segment == "..";
    assert!(!path.split('/').any(ends), "{path}");
    assert!(!path.contains("//"), "{path}");
    let authority = canonical_authority(read.authority()).unwrap();
    assert_eq!(authority.as_str(), read.authority());
    assert!(!read.host().is_empty() && !read.authority().contains(['@', '/', ' ']));
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    assert!(read.method_str().bytes().all(token) && read.method_str() != "CONNECT");
    let query = read.query().unwrap_or_default();
    let visible = |byte: u8| (0x21..0x7f).contains(&byte) && byte != b'#';
    assert!(path.bytes().all(visible), "{path}");
    assert!(query.bytes().all(visible), "{query}");
    let own = [
        "connection",
        "transfer-encoding",
        "content-length",
        "host",
        "upgrade",
    ];
    for field in read.headers().iter() {
        let (name, value) = (field.0.as_bytes(), field.1);
        assert!(!name.is_empty() && name.iter().all(|byte| token(*byte)));
        assert!(name.iter().all(|byte| !byte.is_ascii_uppercase()));
        assert!(
            !own.iter().any(|own| own.as_bytes() == name),
            "{name:?} is the codec's"
        );
        let control = |byte: &u8| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f;
        assert!(!value.iter().any(control), "{}", value.escape_ascii());
    }
    assert!(read.upgrade().is_none() || read.framing() == Framing::None);
}

/// Canonical once is canonical for good, and never leads anywhere else.
pub fn paths(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(path) = canonical_path(text) else {
        return;
    };
    assert_eq!(canonical_path(&path).as_deref(), Ok(&*path), "of {text:?}");
    if path == "*" {
        return;
    }
    assert!(
        path.starts_with('/') && !path.contains("//"),
        "{path:?} of {text:?}"
    );
    assert!(
        !path.split('/').any(|s| s == "." || s == ".."),
        "{path:?} of {text:?}"
    );
    let plain = |byte: u8| (0x21..0x7f).contains(&byte) && !b"\\#?\"<>^`{|}".contains(&byte);
    assert!(path.bytes().all(plain), "{path:?} of {text:?}");
    let hidden = ["%2F", "%2f", "%5C", "%5c", "%00", "%2E", "%2e", "%7F"];
    assert!(
        !hidden.iter().any(|escape| path.contains(escape)),
        "{path:?} of {text:?}"
    );
}

/// The same of authorities, whose host and port are what stands there.
pub fn authorities(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(authority) = canonical_authority(text) else {
        return;
    };
    let again = canonical_authority(authority.as_str());
    let again = again.unwrap_or_else(|error| panic!("{:?}: {error}", authority.as_str()));
    assert_eq!(again.as_str(), authority.as_str());
    let whole = match authority.port() {
        Some(port) => format!("{}:{port}", authority.host()),
        None => authority.host().to_owned(),
    };
    assert_eq!(whole, authority.as_str(), "of {text:?}");
    assert!(!whole.contains(['@', '/', ' ', '%', '\\']), "{whole:?}");
}
