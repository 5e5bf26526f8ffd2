//! What callers who speak JSON to gRPC send, what they are answered, and the descriptors that say how.

use std::sync::{Arc, LazyLock};

use phalanx_transcode::request::{Came, begin};
use phalanx_transcode::template::{Segment, Template};
use phalanx_transcode::{Answer, Options, Print, Schema, Status, Table, Validation, json};

const SET: &[u8] = include_bytes!("../../../fuzz/corpus/descriptors/battle.pb");
/// What comes out may be longer than what went in, names and escapes being longer than numbers and bytes.
const GROWTH_MAX: usize = 64;

static TABLE: LazyLock<Arc<Table>> = LazyLock::new(|| {
    let options = Options {
        auto_mapping: true,
        convert_grpc_status: true,
        validation: Validation {
            reject_unknown_method: true,
            reject_unknown_query_parameters: true,
            reject_binding_body_field_collisions: true,
        },
        ..Options::default()
    };
    Arc::new(Table::try_new(SET, &["battle.v1.Battle".to_owned()], options).unwrap())
});

/// A set that is understood has messages for all of its methods, and a table or reasons why not.
pub fn descriptors(bytes: &[u8]) {
    let schema = match Schema::read(bytes) {
        Ok(schema) => schema,
        Err(problems) => {
            assert!(!problems.is_empty() && problems.len() <= 100);
            return;
        }
    };
    let services = schema.services().iter();
    let names: Vec<String> = services.map(|service| service.name.to_string()).collect();
    for method in schema
        .services()
        .iter()
        .flat_map(|service| &service.methods)
    {
        assert!(schema.message(method.input).is_some() && schema.message(method.output).is_some());
    }
    let options = Options {
        auto_mapping: true,
        ..Options::default()
    };
    if let Ok(table) = Table::try_new(bytes, &names, options) {
        for binding in table.bindings() {
            let _ = table.find(&binding.method, &binding.call);
        }
    }
}

/// What a template captures lies within it.
pub fn templates(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(template) = Template::parse(text) else {
        return;
    };
    let len = template.segments.len();
    let open = template.segments.contains(&Segment::Rest);
    for variable in &template.variables {
        assert!(variable.start < len && variable.end <= len, "{text}");
        assert!(open || !variable.open, "{text}");
    }
}

/// `METHOD path?query`.
pub fn queries(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let (method, target) = text.split_once(' ').unwrap_or(("GET", text));
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    match begin(&TABLE, method, path, query) {
        Ok(Came::Call(call)) => {
            let Ok(framed) = call.finish(&TABLE, b"", b"") else {
                return;
            };
            let input = TABLE.binding(call.binding).unwrap().input;
            assert!(framed.len() <= 64 + bytes.len() * GROWTH_MAX);
            // All of it is a message that can be told.
            if let Some(message) = framed.get(5..) {
                let mut out = Vec::new();
                let print = Print::default();
                json::write_message(&TABLE.schema, print, input, message, 1 << 20, &mut out)
                    .unwrap_or_else(|e| panic!("{text}: {e}"));
            }
        }
        Ok(Came::Other) => panic!("{text}: passed on"),
        Err(refused) => assert!((400..500).contains(&refused.http()), "{refused}"),
    }
}

/// What was read is written, and read as the same.
pub fn json_bodies(bytes: &[u8]) {
    let schema = &TABLE.schema;
    let id = schema.message_named("battle.v1.Everything").unwrap();
    let write = |message: &[u8]| {
        let mut out = Vec::new();
        json::write_message(schema, Print::default(), id, message, 1 << 24, &mut out).map(|()| out)
    };
    let _ = json::read_stream::<json::Bad>(schema, true, id, bytes, |message| {
        drop(write(&message));
        Ok(())
    });
    let mut message = Vec::new();
    if json::read_message(schema, false, id, bytes, &mut message).is_err() {
        return;
    }
    assert!(
        message.len() <= 64 + bytes.len() * 8,
        "{} bytes",
        message.len()
    );
    let Ok(text) = write(&message) else {
        return; // strings may be of types that have a narrower form
    };
    let mut again = Vec::new();
    json::read_message(schema, false, id, &text, &mut again)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&text)));
    assert_eq!(write(&again).unwrap(), text);
}

/// An answer in pieces is the one that came whole.
pub fn grpc_answers(bytes: &[u8]) {
    for (method, path) in [("POST", "/v1/echo"), ("GET", "/v1/rooms/1/events")] {
        let tell = |size: usize| {
            let Ok(Came::Call(call)) = begin(&TABLE, method, path, None) else {
                panic!("{path} is bound");
            };
            let mut answer = Answer::new(&TABLE, call.binding, size == 1);
            let mut out = Vec::new();
            for piece in bytes.chunks(size) {
                if let Err(status) = answer.push(piece, &mut out) {
                    assert!(!status.is_ok());
                    return (out, None);
                }
            }
            let whole = answer.whole(&Status::default());
            assert!(!answer.end(&Status::new(14, "gone"), &mut out) || !out.is_empty());
            (out, Some(whole))
        };
        let (mut one, mut other) = (tell(7), tell(usize::MAX >> 1));
        if path.ends_with("events") {
            (one.1, other.1) = (None, None);
        }
        assert_eq!(one, other);
    }
}
