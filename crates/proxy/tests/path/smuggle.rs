//! Nothing is smuggled: what the application behind saw is counted, request by request, not only what was answered.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use phalanx_model::instance::Protocol;

use crate::smuggling::*;
use crate::support::*;

#[test]
fn nothing_is_smuggled_from_http1_to_http1() {
    let app = RawApp::start();
    let mut sidecar = Setup::battle(&[app.address])
        .with_cluster(|cluster| cluster.protocol = Protocol::Http1)
        .start();
    let forms = forms();
    let answers = say_all(&forms, sidecar.outbound);
    sidecar.drain(Duration::from_secs(1));
    judge(&forms, &answers, &app.got());
}

/// As one that is called sees it: by another's sidecar, or by anybody.
#[test]
fn nothing_is_smuggled_into_an_application() {
    let app = RawApp::start();
    let mut sidecar = Setup::default()
        .app(9000, app.address, Protocol::Auto)
        .start();
    let forms = forms();
    let answers = say_all(&forms, sidecar.inbound);
    sidecar.drain(Duration::from_secs(1));
    judge(&forms, &answers, &app.got());
}

/// Of one request over HTTP/2: what it says, and what the application is to see of it.
struct Said {
    name: &'static str,
    fields: Vec<(&'static str, String)>,
    data: Option<String>,
    trailers: Vec<(&'static str, &'static str)>,
    /// Whole requests.
    seen: usize,
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags, 0, 0, 0, 1]);
    frame.extend(payload);
    frame
}

/// Whether it was answered with 200.
fn ask(outbound: SocketAddr, said: &Said) -> bool {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let fields = said
        .fields
        .iter()
        .map(|(name, value)| (*name, value.as_str()));
    let last = said.data.is_none() && said.trailers.is_empty();
    bytes.extend(frame(1, if last { 5 } else { 4 }, &literals(fields)));
    if let Some(data) = &said.data {
        let last = said.trailers.is_empty();
        bytes.extend(frame(0, u8::from(last), data.as_bytes()));
    }
    if !said.trailers.is_empty() {
        bytes.extend(frame(1, 5, &literals(said.trailers.iter().copied())));
    }
    let mut stream = TcpStream::connect(outbound).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let _ = stream.write_all(&bytes);
    let mut good = false;
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).is_err() {
            return good;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if stream.read_exact(&mut payload).is_err() {
            return good;
        }
        let (kind, ends) = (head[3], head[4] & 1 == 1);
        good |= kind == 1 && payload.first() == Some(&0x88);
        if kind == 3 || kind == 7 || (kind <= 1 && ends) {
            return good;
        }
    }
}

/// Literals without Huffman, never kept.
fn literals<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    fn string(block: &mut Vec<u8>, text: &str) {
        match text.len().checked_sub(127) {
            None => block.push(text.len() as u8),
            Some(rest) => block.extend([127, (rest % 128) as u8 | 128, (rest / 128) as u8]),
        }
        block.extend_from_slice(text.as_bytes());
    }
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x10);
        string(&mut block, name);
        string(&mut block, value);
    }
    block
}

const INNER: &str = "GET /smuggled HTTP/1.1\r\nhost: battle\r\n\r\n";

fn all_said() -> Vec<Said> {
    let mut all = Vec::new();
    let mut say = |name, change: &[(&'static str, &str)], data: Option<&str>, seen| {
        let path = format!("/outer-{}", all.len());
        let mut fields: Vec<(&'static str, String)> = vec![
            (":method", "POST".into()),
            (":scheme", "http".into()),
            (":authority", "battle".into()),
            (":path", path),
        ];
        for (name, value) in change {
            let value = value.replace("INNER", INNER);
            match fields.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) if name.starts_with(':') => *known = value,
                _ => fields.push((name, value)),
            }
        }
        all.push(Said {
            name,
            fields,
            data: data.map(|data| data.replace("INNER", INNER)),
            trailers: Vec::new(),
            seen,
        });
    };
    say("nothing special", &[], None, 1);
    say("a body that looks like a request", &[], Some("INNER"), 1);
    say(
        "a length that is too short",
        &[("content-length", "0")],
        Some("INNER"),
        0,
    );
    say(
        "a length that is a little short",
        &[("content-length", "5")],
        Some("INNER"),
        0,
    );
    say(
        "a length that is too long",
        &[("content-length", "500")],
        Some("INNER"),
        0,
    );
    say("a length of nothing", &[("content-length", "5")], None, 0);
    say(
        "two lengths",
        &[("content-length", "0"), ("content-length", "40")],
        Some("INNER"),
        0,
    );
    say(
        "a list of lengths",
        &[("content-length", "0, 40")],
        Some("INNER"),
        0,
    );
    say(
        "a signed length",
        &[("content-length", "+0")],
        Some("INNER"),
        0,
    );
    say(
        "TE",
        &[("transfer-encoding", "chunked")],
        Some("0\r\n\r\nINNER"),
        0,
    );
    say(
        "TE of a twin",
        &[("transfer_encoding", "chunked")],
        Some("0\r\n\r\nINNER"),
        0,
    );
    say("te: chunked", &[("te", "chunked")], Some("INNER"), 0);
    say("connection", &[("connection", "close")], None, 0);
    say(
        "lines in a value",
        &[("x-a", "1\r\ntransfer-encoding: chunked\r\n\r\nINNER")],
        None,
        0,
    );
    say(
        "half a line's end in a value",
        &[("x-a", "1\ncontent-length: 9")],
        None,
        0,
    );
    say("CR in a value", &[("x-a", "1\rcontent-length: 9")], None, 0);
    say("NUL in a value", &[("x-a", "1\0")], None, 0);
    say("a blank before a value", &[("x-a", " 1")], None, 0);
    say("a tab behind a value", &[("x-a", "1\t")], None, 0);
    say(
        "lines in a name",
        &[("x-a: 1\r\nhost: other\r\nx-b", "1")],
        None,
        0,
    );
    say("a colon in a name", &[("x-a:", "1")], None, 0);
    say(
        "a name in upper case",
        &[("Content-Length", "0")],
        Some("INNER"),
        0,
    );
    say("no name", &[("", "1")], None, 0);
    say(
        "lines in the method",
        &[(":method", "GET / HTTP/1.1\r\nhost: battle\r\n\r\nGET")],
        None,
        0,
    );
    say(
        "a blank in the method",
        &[(":method", "GET /smuggled")],
        None,
        0,
    );
    say(
        "lines in the path",
        &[(":path", "/ HTTP/1.1\r\nhost: battle\r\n\r\nGET /smuggled")],
        None,
        0,
    );
    say(
        "a blank in the path",
        &[(":path", "/smuggled HTTP/1.1")],
        None,
        0,
    );
    say("a path that is none", &[(":path", "smuggled")], None, 0);
    say(
        "another's target",
        &[(":path", "http://other/smuggled")],
        None,
        0,
    );
    say("an empty path", &[(":path", "")], None, 0);
    say(
        "lines in the authority",
        &[(":authority", "battle\r\nx: y")],
        None,
        0,
    );
    say(
        "a user in the authority",
        &[(":authority", "battle@other")],
        None,
        0,
    );
    say(
        "a path in the authority",
        &[(":authority", "battle/smuggled")],
        None,
        0,
    );
    say("another host", &[("host", "other")], None, 0);
    say(
        "two hosts",
        &[("host", "battle"), ("host", "other")],
        None,
        0,
    );
    say(
        "a line in the scheme",
        &[(":scheme", "http\r\nx: y")],
        None,
        0,
    );
    say("CONNECT", &[(":method", "CONNECT")], Some("INNER"), 0);
    say("an unknown pseudo-header", &[(":smuggled", "1")], None, 0);
    let number = all.len();
    let said = |name, trailers: &[(&'static str, &'static str)], place: usize| Said {
        name,
        fields: vec![
            (":method", "POST".into()),
            (":scheme", "http".into()),
            (":authority", "battle".into()),
            (":path", format!("/outer-{}", number + place)),
        ],
        data: Some(INNER.into()),
        trailers: trailers.to_vec(),
        seen: 0,
    };
    all.push(said(
        "lines in a trailer",
        &[("x-a", "1\r\n\r\nGET /smuggled HTTP/1.1")],
        0,
    ));
    all.push(said(
        "a pseudo-header in the trailers",
        &[(":path", "/smuggled")],
        1,
    ));
    all.push(Said {
        seen: 1,
        ..said("a length in the trailers", &[("content-length", "0")], 2)
    });
    all
}

#[test]
fn nothing_is_smuggled_from_http2_to_http1() {
    let app = RawApp::start();
    let mut sidecar = Setup::battle(&[app.address])
        .with_cluster(|cluster| cluster.protocol = Protocol::Http1)
        .start();
    let all = all_said();
    let answered: Vec<bool> = all
        .iter()
        .map(|said| {
            let good = ask(sidecar.outbound, said);
            for _ in 0..2 {
                assert_eq!(sidecar.get("/next").text(), "/next", "{}", said.name);
            }
            good
        })
        .collect();
    sidecar.drain(Duration::from_secs(1));
    let (got, mut wrong) = (app.got(), Vec::new());
    for (number, (said, good)) in all.iter().zip(answered).enumerate() {
        let wanted = format!("/outer-{number}");
        let whole = |got: &&Got| matches!(got, Got::Whole { path, .. } if *path == wanted);
        let seen = got.iter().filter(whole).count();
        if seen != said.seen || good != (seen == 1) {
            wrong.push(format!(
                "{}: the application saw {seen} instead of {}, answered: {good}",
                said.name, said.seen
            ));
        }
    }
    for got in &got {
        match got {
            Got::Doubtful { why, bytes } => wrong.push(format!("{why}: {}", bytes.escape_ascii())),
            Got::Whole { path, .. } if path.contains("smuggled") => {
                wrong.push("it was smuggled in".into());
            }
            Got::Whole { .. } | Got::Cut { .. } => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
