//! The JSON mapping against another implementation of it, and the bindings of a service.

use std::sync::{Arc, LazyLock};

use phalanx_transcode::request::{Came, Refused, begin};
use phalanx_transcode::{Answer, Options, Print, Schema, Status, Table, Validation, json, wire};
use proptest::prelude::*;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};

static SET: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut compiler = protox::Compiler::new(["tests/protos"]).unwrap();
    compiler.include_imports(true);
    compiler.open_file("battle/v1/battle.proto").unwrap();
    compiler.encode_file_descriptor_set()
});
static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(SET.as_slice()).unwrap());
static SCHEMA: LazyLock<Schema> = LazyLock::new(|| Schema::read(&SET).unwrap());

fn table(options: Options) -> Arc<Table> {
    let services = ["battle.v1.Battle".to_owned()];
    Arc::new(Table::try_new(&SET, &services, options).unwrap())
}

fn strict() -> Options {
    Options {
        validation: Validation {
            reject_unknown_method: true,
            reject_unknown_query_parameters: true,
            reject_binding_body_field_collisions: true,
        },
        ..Options::default()
    }
}

/// What a request says, as another implementation prints it.
fn told(table: &Table, method: &str, target: &str, body: &str) -> Result<String, Refused> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let Came::Call(call) = begin(table, method, path, query)? else {
        return Ok("passed on".into());
    };
    let framed = call.finish(table, b"text/plain", body.as_bytes())?;
    let binding = table.binding(call.binding).unwrap();
    let input = &table.schema.message(binding.input).unwrap().name;
    let mut said = binding.call.rsplit('/').next().unwrap().to_owned();
    let mut rest = framed.as_slice();
    while !rest.is_empty() {
        let len = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
        let descriptor = POOL.get_message_by_name(input).unwrap();
        let message = DynamicMessage::decode(descriptor, &rest[5..5 + len]).unwrap();
        said += " ";
        said += &serde_json::to_string(&message).unwrap();
        rest = &rest[5 + len..];
    }
    Ok(said)
}

#[test]
fn paths_queries_and_bodies_become_messages() {
    let table = table(strict());
    for (method, target, body, expected) in [
        ("GET", "/v1/rooms/7", "", r#"GetRoom {"name":"rooms/7"}"#),
        ("GET", "/v1/rooms/7/", "", r#"GetRoom {"name":"rooms/7"}"#),
        (
            "GET",
            "/v1/rooms/a%20b?view=FULL",
            "",
            r#"GetRoom {"name":"rooms/a b","view":"FULL"}"#,
        ),
        (
            "GET",
            "/v1/lobbies/9/room?lobby.region=eu",
            "",
            r#"GetRoom {"lobby":{"id":"9","region":"eu"}}"#,
        ),
        (
            "GET",
            "/v1/regions/eu/west/1",
            "",
            r#"GetRoom {"lobby":{"region":"eu/west/1"}}"#,
        ),
        (
            "GET",
            "/v1/regions/a%2Fb/c%20d",
            "",
            r#"GetRoom {"lobby":{"region":"a%2Fb/c d"}}"#,
        ),
        ("GET", "/v1/regions", "", r#"GetRoom {"lobby":{}}"#),
        (
            "REPORT",
            "/v1/report/x%2Fy",
            "",
            r#"GetRoom {"name":"x/y"}"#,
        ),
        (
            "GET",
            "/v1/rooms?page_size=5&tags=a&tags=b&filter.mode=TEAM&filter.minPlayers=3&since=2024-02-29T12:00:00.5Z&within=1.5s&mask=a,bC&limit=4&numbers=1&numbers=-2&deep=true&token=-_8",
            "",
            r#"ListRooms {"pageSize":5,"tags":["a","b"],"filter":{"mode":"TEAM","minPlayers":"3"},"since":"2024-02-29T12:00:00.500Z","within":"1.500s","mask":"a,bC","limit":4,"numbers":[1,-2],"deep":true,"token":"+/8="}"#,
        ),
        (
            "GET",
            "/v1/rooms?filter.mode=1&page_token=a+b%2Bc",
            "",
            r#"ListRooms {"pageToken":"a+b+c","filter":{"mode":"DUEL"}}"#,
        ),
        (
            "POST",
            "/v1/rooms?room_id=8",
            r#"{"title":"x","seed":"5"}"#,
            r#"CreateRoom {"room":{"title":"x","seed":"5"},"roomId":"8"}"#,
        ),
        ("POST", "/v1/rooms", "", r#"CreateRoom {"room":{}}"#),
        (
            "PATCH",
            "/v1/rooms/3?update_mask=title",
            r#"{"title":"y"}"#,
            r#"UpdateRoom {"room":{"name":"rooms/3","title":"y"},"updateMask":"title"}"#,
        ),
        (
            "PUT",
            "/v1/rooms/3",
            r#"{"room":{"name":"rooms/3"}}"#,
            r#"UpdateRoom {"room":{"name":"rooms/3"}}"#,
        ),
        (
            "DELETE",
            "/v1/rooms/3",
            "",
            r#"DeleteRoom {"name":"rooms/3"}"#,
        ),
        (
            "POST",
            "/v1/rooms/3:close",
            r#"{"view":"v","unknown":[{}]}"#,
            r#"CloseRoom {"name":"rooms/3","view":"v"}"#,
        ),
        (
            "GET",
            "/v1/rooms/3:close",
            "",
            r#"GetRoom {"name":"rooms/3:close"}"#,
        ),
        (
            "POST",
            "/v1/echo/hi",
            r#"{"i32":1}"#,
            r#"Echo {"text":"hi","nested":{"i32":1}}"#,
        ),
        (
            "POST",
            "/v1/moves",
            r#"[{"number":1},{"text":"b"}]"#,
            r#"Move {"number":1} {"text":"b"}"#,
        ),
        (
            "POST",
            "/v1/moves",
            "{\"number\":1}\n{\"text\":\"b\"}\n",
            r#"Move {"number":1} {"text":"b"}"#,
        ),
        (
            "POST",
            "/v1/blobs",
            "raw",
            r#"Put {"contentType":"text/plain","data":"cmF3"}"#,
        ),
        (
            "POST",
            "/v1/maps/a/b.png",
            "raw",
            r#"Upload {"path":"a/b.png","file":{"contentType":"text/plain","data":"cmF3"}}"#,
        ),
    ] {
        let said = told(&table, method, target, body).unwrap_or_else(|e| panic!("{target}: {e}"));
        assert_eq!(said, expected, "{method} {target}");
    }
}

#[test]
fn what_is_no_call_is_refused_or_passed_on_as_the_options_say() {
    let (strict, lenient) = (table(strict()), table(Options::default()));
    for (method, target, body, status) in [
        ("GET", "/v2/rooms", "", 404),
        ("DELETE", "/v1/rooms", "", 404),
        ("POST", "/battle.v1.Battle/Auto", "{}", 404),
        ("GET", "/v1/rooms?colour=red", "", 400),
        ("GET", "/v1/rooms?page_size=x", "", 400),
        ("GET", "/v1/rooms?filter=x", "", 400),
        ("GET", "/v1/rooms?labels=x", "", 400),
        ("GET", "/v1/rooms?filter.mode=NONE", "", 400),
        ("GET", "/v1/rooms?page_size=1&pageSize=2", "", 400),
        ("GET", "/v1/rooms/1?name=rooms/2", "", 400),
        ("POST", "/v1/rooms", "{", 400),
        ("POST", "/v1/rooms", "[]", 400),
        ("POST", "/v1/rooms", r#"{"seed":1.5}"#, 400),
        ("POST", "/v1/rooms", r#"{"title":1}"#, 400),
        ("POST", "/v1/rooms", r#"{"title":"a","title":"b"}"#, 400),
        ("PUT", "/v1/rooms/3", r#"{"room":{"name":"rooms/4"}}"#, 400),
        ("POST", "/v1/echo", r#"{"left":"a","neither":true}"#, 400),
        ("POST", "/v1/echo", "{\"text\":\"\u{1}\"}", 400),
    ] {
        let refused = told(&strict, method, target, body).expect_err(target);
        assert_eq!(refused.http(), status, "{method} {target}: {refused}");
    }
    let body = r#"{"room":{"name":"rooms/4"}}"#;
    let refused = told(&strict, "PUT", "/v1/rooms/3", body).unwrap_err();
    assert!(refused.to_string().contains("`room.name`"), "{refused}");
    for (method, target) in [("GET", "/v2/rooms"), ("GET", "/v1/rooms?colour=red")] {
        assert_eq!(told(&lenient, method, target, "").unwrap(), "passed on");
    }
    let auto = table(Options {
        auto_mapping: true,
        ..Options::default()
    });
    let said = told(&auto, "POST", "/battle.v1.Battle/Auto", r#"{"view":"a"}"#);
    assert_eq!(said.unwrap(), r#"Auto {"view":"a"}"#);
    // A path's word stands, whatever the body says.
    let said = told(
        &lenient,
        "PUT",
        "/v1/rooms/3",
        r#"{"room":{"name":"rooms/4"}}"#,
    );
    assert_eq!(said.unwrap(), r#"UpdateRoom {"room":{"name":"rooms/3"}}"#);
}

const EVERYTHING: &str = r#"{
  "d": 1.5e300, "f": 0.1, "i32": -5, "i64": "-9007199254740993", "u32": 4294967295, "u64": "18446744073709551615",
  "s32": -2147483648, "s64": "-9223372036854775808", "x32": 7, "x64": "8", "y32": -9, "y64": "-10", "flag": true,
  "text": "ä\u00e9\"\\\n😀\ud83d\ude00", "raw": "AP8=", "mode": "TEAM", "nested": {"nested": {"text": "deep"}},
  "many": ["1", 2, -3], "modes": ["DUEL", 2], "rooms": [{"name": "a"}, {}], "byName": {"k": {"seed": "4"}},
  "byNumber": {"-1": "m", "2": "n"}, "byFlag": {"true": 2}, "maybe": 0, "right": {"title": "r"},
  "at": "1969-12-31T23:59:59.999999999Z", "lasts": "-0.000001s", "mask": "aB,c.dE",
  "bag": {"a": [1, "x", null, true, {"b": {}}]}, "anyValue": [[], {}], "list": [1, [2]],
  "any": {"@type": "type.googleapis.com/battle.v1.Room", "title": "t", "scores": {"z": 1}},
  "wrappedText": "", "wrappedLong": "12", "wrappedFlag": false, "wrappedRaw": "", "doubles": ["NaN", "-Infinity", 1e-7],
  "snakeCaseName": "s", "otherName": "o", "blobs": ["YQ==", "_-8"]
}"#;

#[test]
fn everything_is_read_and_written_as_another_implementation_does() {
    let descriptor = POOL.get_message_by_name("battle.v1.Everything").unwrap();
    let id = SCHEMA.message_named("battle.v1.Everything").unwrap();
    let mut ours = Vec::new();
    json::read_message(&SCHEMA, false, id, EVERYTHING.as_bytes(), &mut ours).unwrap();
    let read = DynamicMessage::decode(descriptor.clone(), ours.as_slice()).unwrap();
    let mut theirs = serde_json::Deserializer::from_str(EVERYTHING);
    let theirs = DynamicMessage::deserialize(descriptor, &mut theirs).unwrap();
    let text = |message| serde_json::to_value(message).unwrap();
    assert_eq!(text(&read), text(&theirs));
    agree(&theirs.encode_to_vec());
}

/// `1` and `1.0` are one number.
fn plain(value: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Number(number) => number.as_f64().into(),
        Value::Array(items) => items.into_iter().map(plain).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| (key, plain(value)));
            Value::Object(fields.collect())
        }
        other => other,
    }
}

/// Both print the same message alike.
fn agree(bytes: &[u8]) {
    let descriptor = POOL.get_message_by_name("battle.v1.Everything").unwrap();
    let id = SCHEMA.message_named("battle.v1.Everything").unwrap();
    let Ok(message) = DynamicMessage::decode(descriptor, bytes) else {
        return;
    };
    for (print, options) in [
        (Print::default(), SerializeOptions::new()),
        (
            Print {
                always_print_enums_as_ints: true,
                preserve_proto_field_names: true,
                ..Print::default()
            },
            SerializeOptions::new()
                .use_enum_numbers(true)
                .use_proto_field_name(true),
        ),
    ] {
        let mut theirs = Vec::new();
        let mut serializer = serde_json::Serializer::new(&mut theirs);
        if message
            .serialize_with_options(&mut serializer, &options)
            .is_err()
        {
            return; // a timestamp out of range, or such
        }
        let mut ours = Vec::new();
        let max = 1 << 20;
        json::write_message(&SCHEMA, print, id, bytes, max, &mut ours).unwrap();
        let value = |text: &[u8]| plain(serde_json::from_slice(text).unwrap());
        assert_eq!(value(&ours), value(&theirs));
        if print == Print::default() {
            let mut again = Vec::new();
            json::read_message(&SCHEMA, false, id, &ours, &mut again).unwrap();
            let mut twice = Vec::new();
            json::write_message(&SCHEMA, print, id, &again, max, &mut twice).unwrap();
            assert_eq!(value(&twice), value(&ours));
        }
    }
}

fn message(depth: u32) -> BoxedStrategy<Vec<u8>> {
    let scalar = prop_oneof![
        (
            prop_oneof![3u32..9, Just(13), Just(16), Just(24), Just(27)],
            any::<u64>()
        )
            .prop_map(|(number, value)| {
                let mut out = Vec::new();
                // Enums and 32-bit numbers as their owners write them.
                let value = match number {
                    13 | 27 => value & 1,
                    16 => value & 3,
                    3 | 24 => i64::from(value as i32) as u64,
                    5 | 7 => value & 0xffff_ffff,
                    _ => value,
                };
                wire::put_tag(&mut out, number, 0);
                wire::put_varint(&mut out, value);
                out
            }),
        (prop_oneof![Just(1u32), Just(10), Just(12)], any::<f64>()).prop_map(|(number, value)| {
            let value = value + 0.0; // the other implementation takes -0 for no value
            let mut out = Vec::new();
            wire::put_tag(&mut out, number, 1);
            out.extend(value.to_le_bytes());
            out
        }),
        (prop_oneof![Just(2u32), Just(9), Just(11)], any::<f32>()).prop_map(|(number, value)| {
            let value = value + 0.0;
            let mut out = Vec::new();
            wire::put_tag(&mut out, number, 5);
            out.extend(value.to_le_bytes());
            out
        }),
        (
            prop_oneof![Just(14u32), Just(25), Just(41), Just(42)],
            ".{0,8}"
        )
            .prop_map(|(number, text)| {
                let mut out = Vec::new();
                wire::put_bytes(&mut out, number, text.as_bytes());
                out
            }),
        (prop_oneof![Just(15u32), Just(43)], any::<Vec<u8>>()).prop_map(|(number, bytes)| {
            let mut out = Vec::new();
            wire::put_bytes(&mut out, number, &bytes);
            out
        }),
        (Just(18u32), prop::collection::vec(any::<u64>(), 1..4)).prop_map(|(number, values)| {
            let (mut out, mut packed) = (Vec::new(), Vec::new());
            values
                .iter()
                .for_each(|value| wire::put_varint(&mut packed, *value));
            wire::put_bytes(&mut out, number, &packed);
            out
        }),
        (-62_135_596_800i64..253_402_300_799, 0u64..999_999_999).prop_map(|(seconds, nanos)| {
            let (mut out, mut inner) = (Vec::new(), Vec::new());
            wire::put_tag(&mut inner, 1, 0);
            wire::put_varint(&mut inner, seconds as u64);
            wire::put_tag(&mut inner, 2, 0);
            wire::put_varint(&mut inner, nanos);
            wire::put_bytes(&mut out, 28, &inner);
            out
        }),
    ];
    let one = match depth {
        0 => scalar.boxed(),
        _ => {
            let nested = message(depth - 1).prop_map(|inner| {
                let mut out = Vec::new();
                wire::put_bytes(&mut out, 17, &inner);
                out
            });
            prop_oneof![3 => scalar, 1 => nested].boxed()
        }
    };
    prop::collection::vec(one, 0..8)
        .prop_map(|parts| parts.concat())
        .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(256)
    })]

    #[test]
    fn messages_in_any_order_and_in_pieces_are_written_as_another_implementation_does(
        bytes in message(2)
    ) {
        agree(&bytes);
    }

    #[test]
    fn hostile_bytes_are_refused_or_become_json(bytes in any::<Vec<u8>>()) {
        let id = SCHEMA.message_named("battle.v1.Everything").unwrap();
        let mut out = Vec::new();
        if json::write_message(&SCHEMA, Print::default(), id, &bytes, 1 << 20, &mut out).is_ok() {
            let _: serde_json::Value = serde_json::from_slice(&out).unwrap();
        }
        let _ = Schema::read(&bytes);
    }
}

#[test]
fn depth_is_bounded_both_ways() {
    let id = SCHEMA.message_named("battle.v1.Everything").unwrap();
    let deep =
        |depth: usize| format!("{}{}", "{\"nested\":".repeat(depth), "null") + &"}".repeat(depth);
    let read = |json: &str| {
        let mut out = Vec::new();
        json::read_message(&SCHEMA, false, id, json.as_bytes(), &mut out).map(|()| out)
    };
    assert!(read(&deep(100)).is_ok());
    assert!(read(&deep(101)).is_err());
    let list = |open: &str| format!("{{\"unknown\":{}", open.repeat(100_000));
    assert!(read(&list("[")).is_err());
    assert!(read(&format!("{{\"list\":{}", "[".repeat(100_000))).is_err());
    let mut message = Vec::new();
    for _ in 0..5_000 {
        let mut outer = Vec::new();
        wire::put_bytes(&mut outer, 17, &message);
        message = outer;
    }
    let mut out = Vec::new();
    let deep = json::write_message(&SCHEMA, Print::default(), id, &message, 1 << 20, &mut out);
    assert_eq!(deep, Err(json::Unwritable::Deep));
}

fn frame(json: &str, name: &str) -> Vec<u8> {
    let id = SCHEMA.message_named(name).unwrap();
    let (mut message, mut out) = (Vec::new(), Vec::new());
    json::read_message(&SCHEMA, false, id, json.as_bytes(), &mut message).unwrap();
    wire::put_frame(&mut out, &message);
    out
}

fn answer(options: Options, method: &str, path: &str, events: bool) -> Answer {
    let table = table(options);
    match begin(&table, method, path, None).unwrap() {
        Came::Call(call) => Answer::new(&table, call.binding, events),
        Came::Other => panic!("{path}"),
    }
}

#[test]
fn streams_are_lines_events_or_an_array_and_say_how_they_failed() {
    let lines = Options {
        print: Print {
            stream_newline_delimited: true,
            ..Print::default()
        },
        ..Options::default()
    };
    let frames = [
        frame(r#"{"number":1}"#, "battle.v1.Event"),
        frame(r#"{"text":"<b>"}"#, "battle.v1.Event"),
    ]
    .concat();
    for (options, events, good, bad) in [
        (
            lines,
            false,
            "{\"number\":1}\n{\"text\":\"\\u003cb\\u003e\"}\n",
            Some("{\"error\":{\"code\":14,\"message\":\"gone\"}}\n"),
        ),
        (
            Options::default(),
            true,
            "data: {\"number\":1}\n\ndata: {\"text\":\"\\u003cb\\u003e\"}\n\n",
            Some("event: error\ndata: {\"code\":14,\"message\":\"gone\"}\n\n"),
        ),
        (
            Options::default(),
            false,
            "[{\"number\":1},{\"text\":\"\\u003cb\\u003e\"}]",
            None,
        ),
    ] {
        let mut out = Vec::new();
        let mut told = answer(options.clone(), "GET", "/v1/rooms/1/events", events);
        for byte in &frames {
            told.push(&[*byte], &mut out).unwrap();
        }
        assert!(told.end(&Status::default(), &mut out));
        assert_eq!(String::from_utf8(out).unwrap(), good);
        let mut out = Vec::new();
        let mut told = answer(options, "GET", "/v1/rooms/1/events", events);
        let said = told.end(&Status::new(14, "gone"), &mut out);
        assert_eq!(
            said.then(|| String::from_utf8(out).unwrap()).as_deref(),
            bad
        );
    }
}

#[test]
fn many_small_messages_of_a_stream_are_bounded_together() {
    let table = table(Options::default());
    let Ok(Came::Call(call)) = begin(&table, "POST", "/v1/moves", None) else {
        panic!("no such binding");
    };
    let body = |count: usize| "{}".repeat(count);
    let few = call.finish(&table, b"", body(1_000).as_bytes()).unwrap();
    assert_eq!(few.len(), 5_000);
    // Two bytes each come to five.
    let most = (8 << 20) / 5;
    let many = call.finish(&table, b"", body(most + 2).as_bytes());
    assert_eq!(many.unwrap_err(), Refused::TooLarge);
}

#[test]
fn a_failed_call_says_why_with_the_details_that_the_schema_knows() {
    let mut told = answer(Options::default(), "GET", "/v1/rooms/1", false);
    let known = frame(
        r#"{"@type":"type.googleapis.com/battle.v1.Trouble","where":"here","since":"3"}"#,
        "google.protobuf.Any",
    );
    let mut foreign = Vec::new();
    wire::put_bytes(&mut foreign, 1, b"type.googleapis.com/other.Thing");
    wire::put_bytes(&mut foreign, 2, b"\x08\x01");
    let status = Status {
        code: 5,
        message: "no room".into(),
        details: vec![known[5..].to_vec(), foreign],
    };
    let whole = told.whole(&status);
    assert_eq!(whole.status, 404);
    assert_eq!(
        String::from_utf8(whole.body).unwrap(),
        r#"{"code":5,"message":"no room","details":[{"@type":"type.googleapis.com/battle.v1.Trouble","where":"here","since":"3"},{"@type":"type.googleapis.com/other.Thing","value":"CAE="}]}"#
    );
    let parsed = Status::parse(Some(b"5"), Some(b"no%20room%E2%82%AC"), None).unwrap();
    assert_eq!(parsed, Status::new(5, "no room€"));
    assert_eq!(Status::parse(None, None, None), None);
    // An answer that ends within a message is none.
    let mut told = answer(Options::default(), "GET", "/v1/rooms/1", false);
    told.push(&[0, 0, 0, 0, 9, 1], &mut Vec::new()).unwrap();
    assert_eq!(told.whole(&Status::default()).status, 500);
}

#[test]
fn a_set_without_its_imports_names_them() {
    let mut compiler = protox::Compiler::new(["tests/protos"]).unwrap();
    compiler.open_file("battle/v1/battle.proto").unwrap();
    let alone = compiler.include_imports(false).encode_file_descriptor_set();
    let problems = Schema::read(&alone).unwrap_err();
    let told = problems[0].to_string();
    assert!(told.contains("--include_imports"), "{told}");
    let unknown = Table::try_new(&SET, &["battle.v1.War".to_owned()], Options::default());
    let told = unknown.unwrap_err()[0].to_string();
    assert_eq!(
        told,
        "there is no service `battle.v1.War` in the set (there are: battle.v1.Battle)"
    );
}
