//! Requests that two readers might read in two ways, and an application that keeps every byte it got. It reads by the letter
//! of RFC 9112 and repairs nothing: what it can't read in exactly one way is a defect of whoever sent it on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::{Client, any_port, eventually};

/// What came over one connection, in order.
#[derive(Clone, Debug)]
pub enum Got {
    /// A request, read in the only way there is.
    Whole { path: String, bytes: Vec<u8> },
    /// The beginning of one, and the end of the connection.
    Cut { bytes: Vec<u8> },
    /// What has no or several readings.
    Doubtful { why: String, bytes: Vec<u8> },
}

/// Answers each request with its path.
pub struct RawApp {
    pub address: SocketAddr,
    got: Arc<Mutex<Vec<Got>>>,
    open: Arc<AtomicUsize>,
}

impl RawApp {
    pub fn start() -> Self {
        let listener = TcpListener::bind(any_port()).unwrap();
        let app = Self {
            address: listener.local_addr().unwrap(),
            got: Arc::default(),
            open: Arc::default(),
        };
        let (got, open) = (app.got.clone(), app.open.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                open.fetch_add(1, Ordering::SeqCst);
                let (got, open) = (got.clone(), open.clone());
                thread::spawn(move || {
                    serve(stream, &got);
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        app
    }

    /// All that came, once nobody is connected any more.
    pub fn got(&self) -> Vec<Got> {
        eventually("everybody to have left the application", || {
            self.open.load(Ordering::SeqCst) == 0
        });
        self.got.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, got: &Mutex<Vec<Got>>) {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut buffer).unwrap_or(0);
        bytes.extend_from_slice(&buffer[..count]);
        while let Some(read) = read(&bytes).transpose() {
            let (path, length) = match read {
                Ok(read) => read,
                Err(why) => {
                    got.lock().unwrap().push(Got::Doubtful { why, bytes });
                    return;
                }
            };
            let rest = bytes.split_off(length);
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}",
                path.len()
            );
            got.lock().unwrap().push(Got::Whole { path, bytes });
            bytes = rest;
            let _ = stream.write_all(answer.as_bytes());
        }
        if count == 0 {
            if !bytes.is_empty() {
                got.lock().unwrap().push(Got::Cut { bytes });
            }
            return;
        }
    }
}

/// Path and length of the request at the front; none while it is not whole.
fn read(bytes: &[u8]) -> Result<Option<(String, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "a head that is no text")?;
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    let [method, path, "HTTP/1.1"] = words[..] else {
        return Err(format!("a request line that is none: {line:?}"));
    };
    let is_token = |text: &str| {
        let special = |b| b"!#$%&'*+-.^_`|~".contains(&b);
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || special(b))
    };
    if !is_token(method) || !path.starts_with('/') || head.contains('\0') {
        return Err(format!("a request line that is none: {line:?}"));
    }
    let (mut lengths, mut codings, mut hosts) = (Vec::new(), Vec::new(), 0);
    for line in lines {
        if line.contains(['\r', '\n']) {
            return Err(format!("half a line's end in {line:?}"));
        }
        let (name, value) = line.split_once(':').ok_or("a field without a colon")?;
        if !is_token(name) {
            return Err(format!("a field's name that is none: {line:?}"));
        }
        match name.to_ascii_lowercase().replace('_', "-").as_str() {
            "content-length" => lengths.push(value.trim().to_owned()),
            "transfer-encoding" => codings.push(value.trim().to_owned()),
            "host" => hosts += 1,
            "upgrade" | "http2-settings" => return Err(format!("it was not to get {line:?}")),
            _ => {}
        }
    }
    let body = &bytes[end + 4..];
    let length = match (&lengths[..], &codings[..]) {
        ([], []) => Some(0),
        ([length], []) if length.bytes().all(|b| b.is_ascii_digit()) => {
            let length: usize = length.parse().map_err(|_| "a length that is none")?;
            (body.len() >= length).then_some(length)
        }
        ([], [coding]) if coding == "chunked" => chunks(body)?,
        _ => return Err(format!("no one length: {lengths:?} {codings:?}")),
    };
    if hosts != 1 {
        return Err(format!("{hosts} hosts"));
    }
    Ok(length.map(|length| (path.to_owned(), end + 4 + length)))
}

/// Bytes of a chunked body and its trailers; none while it is not whole.
fn chunks(body: &[u8]) -> Result<Option<usize>, String> {
    let mut at = 0;
    loop {
        let rest = &body[at..];
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(&rest[..end]).into_owned();
        let is_hex = !text.is_empty() && text.bytes().all(|b| b.is_ascii_hexdigit());
        let size = usize::from_str_radix(&text, 16).ok().filter(|_| is_hex);
        let size = size.ok_or_else(|| format!("a chunk's size that is none: {text:?}"))?;
        at += end + 2;
        if size == 0 {
            let rest = &body[at..];
            if rest.starts_with(b"\r\n") {
                return Ok(Some(at + 2));
            }
            let end = rest.windows(4).position(|four| four == b"\r\n\r\n");
            return Ok(end.map(|end| at + end + 4));
        }
        let Some(after) = body.get(at + size..at + size + 2) else {
            return Ok(None);
        };
        if after != b"\r\n" {
            return Err(format!("a chunk of {size} that ends in {after:?}"));
        }
        at += size + 2;
    }
}

/// A connection's bytes, and how many requests are in them for whoever reads by the letter.
pub struct Form {
    pub name: &'static str,
    pub bytes: String,
    /// Requests for `/outer-N` and `/smuggled-N` that the application is to see.
    pub seen: (usize, usize),
}

/// Each names the paths `/outer-N` and `/smuggled-N`, N being its place.
pub fn forms() -> Vec<Form> {
    let mut forms = Vec::new();
    let mut form = |name, seen, make: &dyn Fn(&str, &str) -> String| {
        let number = forms.len();
        let inner = format!("GET /smuggled-{number} HTTP/1.1\r\nhost: battle\r\n\r\n");
        let bytes = make(&format!("/outer-{number}"), &inner);
        forms.push(Form { name, bytes, seen });
    };
    let request = |path: &str, fields: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: battle\r\n{fields}\r\n\r\n{body}")
    };
    const NONE: (usize, usize) = (0, 0);
    // What stands before an inner request that some would take for a body, and some for the next request.
    for (name, fields) in [
        ("CL.TE", "content-length: 4\r\ntransfer-encoding: chunked"),
        (
            "TE in two fields",
            "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        ),
        (
            "TE twice",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        ),
        ("TE unknown", "transfer-encoding: xchunked"),
        ("TE first", "transfer-encoding: chunked, identity"),
        ("TE last", "transfer-encoding: identity, chunked"),
        ("TE quoted", "transfer-encoding: \"chunked\""),
        (
            "TE of a twin",
            "transfer_encoding: chunked\r\ncontent-length: 4",
        ),
        (
            "TE folded",
            "transfer-encoding:\r\n chunked\r\ncontent-length: 4",
        ),
        ("TE with a control", "transfer-encoding: \u{b}chunked"),
        ("blank before TE's colon", "transfer-encoding : chunked"),
        ("blank before TE", " transfer-encoding: chunked"),
        (
            "TE that the connection takes along",
            "connection: transfer-encoding\r\ntransfer-encoding: chunked\r\ncontent-length: 4",
        ),
    ] {
        form(name, NONE, &|path, inner| {
            request(path, fields, &format!("0\r\n\r\n{inner}"))
        });
    }
    for (name, fields) in [
        ("two lengths", "content-length: 0\r\ncontent-length: LENGTH"),
        (
            "two equal lengths",
            "content-length: LENGTH\r\ncontent-length: LENGTH",
        ),
        ("a list of lengths", "content-length: 0, LENGTH"),
        ("a list of equal lengths", "content-length: LENGTH, LENGTH"),
        ("a signed length", "content-length: +0"),
        ("a negative length", "content-length: -1"),
        ("a length in hex", "content-length: 0x0"),
        ("an empty length", "content-length:"),
        (
            "a length beyond numbers",
            "content-length: 18446744073709551616",
        ),
        ("blank before colon", "content-length : 0"),
        ("a length of a twin", "content_length: LENGTH"),
        ("bare CR in a value", "x-a: 1\rtransfer-encoding: chunked"),
        (
            "bare LF in a value",
            "x-a: 1\ncontent-length: LENGTH\ncontent-length: 0",
        ),
        ("NUL in a value", "x-a: 1\0"),
        ("no colon", "content-length 0"),
        ("no name", ": 0"),
        (
            "an upgrade with a body",
            "connection: upgrade\r\nupgrade: websocket\r\ncontent-length: LENGTH",
        ),
        ("two hosts", "host: other\r\ncontent-length: 0"),
    ] {
        form(name, NONE, &|path, inner| {
            let fields = fields.replace("LENGTH", &inner.len().to_string());
            request(path, &fields, inner)
        });
    }
    for (name, body) in [
        ("chunk size too large", "fffffffffffffffff0\r\nINNER"),
        ("chunk size with a sign", "-0\r\n\r\nINNER"),
        ("chunk size in 0x", "0x0\r\n\r\nINNER"),
        ("chunk size with a blank", " 0\r\n\r\nINNER"),
        ("no chunk size", "\r\n\r\nINNER"),
        ("chunk size before a bare LF", "0\n\nINNER"),
        (
            "chunk extension with a bare LF",
            "1;a\nb\r\nx\r\n0\r\n\r\nINNER",
        ),
        (
            "chunk extension with a bare CR",
            "1;a\rb\r\nx\r\n0\r\n\r\nINNER",
        ),
        ("chunk longer than it says", "1\r\nxy\r\n0\r\n\r\nINNER"),
        ("chunk without its end", "1\r\nx0\r\n\r\nINNER"),
        ("trailer with a bare LF", "0\r\nx: y\nz: a\r\n\r\nINNER"),
        (
            "trailer without a colon",
            "0\r\nGET / HTTP/1.1\r\n\r\nINNER",
        ),
    ] {
        form(name, NONE, &|path, inner| {
            let body = body.replace("INNER", inner);
            request(path, "transfer-encoding: chunked", &body)
        });
    }
    for (name, line) in [
        ("space in the target", "GET PATH /smuggled HTTP/1.1"),
        ("two blanks", "GET  PATH HTTP/1.1"),
        ("tabs", "GET\tPATH\tHTTP/1.1"),
        ("no version", "GET PATH"),
        ("another version", "GET PATH HTTP/1.2"),
        ("version 2", "GET PATH HTTP/2.0"),
        ("version in lower case", "GET PATH http/1.1"),
        ("a method that is none", "G(T PATH HTTP/1.1"),
        ("another target", "GET http://other/PATH HTTP/1.1"),
        ("CONNECT", "CONNECT battle:80 HTTP/1.1"),
        ("a blank first", " GET PATH HTTP/1.1"),
        ("bare CR in the line", "GET PATH HTTP/1.1\rhost: other"),
    ] {
        form(name, NONE, &|path, inner| {
            let line = line.replace("PATH", path);
            format!("{line}\r\nhost: battle\r\n\r\n{inner}")
        });
    }
    form("lines that end in LF", NONE, &|path, inner| {
        request(path, "content-length: 0", inner).replace("\r\n", "\n")
    });
    form("TE in version 1.0", NONE, &|path, inner| {
        request(
            path,
            "transfer-encoding: chunked",
            &format!("0\r\n\r\n{inner}"),
        )
        .replacen("1.1", "1.0", 1)
    });
    form("TE.CL", NONE, &|path, inner| {
        let body = format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
        request(
            path,
            "transfer-encoding: chunked\r\ncontent-length: 4",
            &body,
        )
    });
    // And what has one reading only.
    form("an upgrade to h2c", (1, 1), &|path, inner| {
        let fields =
            "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk";
        request(path, fields, inner)
    });
    form("two requests", (1, 1), &|path, inner| {
        request(path, "content-length: 0", inner)
    });
    form(
        "a body that looks like a request",
        (1, 0),
        &|path, inner| request(path, &format!("content-length: {}", inner.len()), inner),
    );
    form("chunks that look like a request", (1, 0), &|path, inner| {
        let body = format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
        request(path, "transfer-encoding: chunked", &body)
    });
    form("trailers that look like lengths", (1, 1), &|path, inner| {
        let body = format!("0\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n{inner}");
        request(path, "transfer-encoding: chunked", &body)
    });
    form(
        "a length that the connection takes along",
        (1, 0),
        &|path, inner| {
            let fields = format!(
                "connection: content-length\r\ncontent-length: {}",
                inner.len()
            );
            request(path, &fields, inner)
        },
    );
    form("a GET with a body", (1, 0), &|path, inner| {
        let fields = format!("content-length: {}", inner.len());
        request(path, &fields, inner).replacen("POST", "GET", 1)
    });
    form(
        "a body that nobody asked for yet",
        (1, 0),
        &|path, inner| {
            let fields = format!("expect: 100-continue\r\ncontent-length: {}", inner.len());
            request(path, &fields, inner)
        },
    );
    forms
}

/// Sends everything, waits for as many answers with 200, and reads what else comes to the end; the bodies of those answers.
pub fn say(outbound: SocketAddr, bytes: &[u8], awaited: usize) -> Vec<String> {
    let mut client = Client::connect(outbound);
    let _ = client.stream.write_all(bytes);
    let mut good = Vec::new();
    loop {
        if good.len() == awaited {
            let _ = client.stream.shutdown(Shutdown::Write); // which is taken for leaving
        }
        match client.message() {
            Some(answer) if answer.status() == 200 => good.push(answer.text()),
            Some(_) => {}
            None => return good,
        }
    }
}

/// Says every form to `outbound`, and after each what is in nobody's doubt; what was answered to each.
pub fn say_all(forms: &[Form], outbound: SocketAddr) -> Vec<Vec<String>> {
    let told = forms.iter().map(|form| {
        let awaited = form.seen.0 + form.seen.1;
        let answers = say(outbound, form.bytes.as_bytes(), awaited);
        // Nobody else's answer is mixed up with it.
        for _ in 0..2 {
            let next = Client::connect(outbound).get("battle", "/next");
            assert_eq!(next.text(), "/next", "{}", form.name);
        }
        answers
    });
    told.collect()
}

/// The application saw what it was to see of each form, byte by byte, and the caller was answered just that.
pub fn judge(forms: &[Form], answers: &[Vec<String>], got: &[Got]) {
    let mut wrong = Vec::new();
    for got in got {
        if let Got::Doubtful { why, bytes } = got {
            wrong.push(format!("{why}\n{}", bytes.escape_ascii()));
        }
    }
    for (number, (form, answers)) in forms.iter().zip(answers).enumerate() {
        let (outer, inner) = (format!("/outer-{number}"), format!("/smuggled-{number}"));
        let is =
            |got: &&Got, wanted: &str| matches!(got, Got::Whole { path, .. } if path == wanted);
        let count = |wanted: &str| got.iter().filter(|got| is(got, wanted)).count();
        let seen = (count(&outer), count(&inner));
        let answered = |path: &str| answers.iter().filter(|text| *text == path).count();
        let told = (answered(&outer), answered(&inner));
        if seen != form.seen || told != seen || answers.len() != seen.0 + seen.1 {
            wrong.push(format!(
                "{}: the application saw {seen:?} instead of {:?}; answered {answers:?}",
                form.name, form.seen
            ));
        }
        // What is part of a body stays there; the beginning of a body that went wrong is cut, and nothing follows it.
        for got in got {
            let (Got::Whole { bytes, .. } | Got::Cut { bytes } | Got::Doubtful { bytes, .. }) = got;
            let text = String::from_utf8_lossy(bytes);
            if text.contains(&format!("{inner} ")) && text.starts_with("GET /next") {
                wrong.push(format!("{}: mixed up with another: {text:?}", form.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
