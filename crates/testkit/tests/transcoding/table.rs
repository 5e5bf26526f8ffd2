//! Requests, and what our answers are where Envoy's are others.

pub struct Case {
    pub method: &'static str,
    pub target: &'static str,
    pub body: &'static str,
    pub headers: &'static [(&'static str, &'static str)],
    /// It fails before it is a call: only the status is compared.
    pub own_words: bool,
    /// The content type is not compared.
    pub any_type: bool,
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];
const TEXT: &[(&str, &str)] = &[("content-type", "text/plain")];

const fn case(method: &'static str, target: &'static str) -> Case {
    Case {
        method,
        target,
        body: "",
        headers: &[],
        own_words: false,
        any_type: false,
    }
}

const fn get(target: &'static str) -> Case {
    case("GET", target)
}

const fn send(method: &'static str, target: &'static str, body: &'static str) -> Case {
    Case {
        body,
        headers: JSON,
        ..case(method, target)
    }
}

const fn text(target: &'static str, body: &'static str) -> Case {
    Case {
        body,
        headers: TEXT,
        ..case("POST", target)
    }
}

impl Case {
    const fn refused(self) -> Self {
        Self {
            own_words: true,
            ..self
        }
    }

    const fn of_any_type(self) -> Self {
        Self {
            any_type: true,
            ..self
        }
    }
}

#[rustfmt::skip]
pub const CASES: &[Case] = &[
    get("/v1/rooms/7"),
    get("/v1/rooms/a%20b?view=FULL"),
    get("/v1/rooms/%E2%82%AC"),
    get("/v1/lobbies/9/room?lobby.region=eu"),
    get("/v1/regions/eu/west/1"),
    get("/v1/regions/eu"),
    get("/v1/regions/a/b%20c"),
    case("REPORT", "/v1/report/x"),
    case("DELETE", "/v1/rooms/3"),
    send("POST", "/v1/rooms/3:close", "{}"),
    send("POST", "/v1/rooms/3:close", r#"{"view":"v"}"#),
    get("/v1/rooms/7/"),
    get("/v1/rooms/7?key=secret"),
    get("/v1/rooms"),
    get("/v1/rooms?page_size=5&page_token=t"),
    get("/v1/rooms?pageSize=5"),
    get("/v1/rooms?tags=a&tags=b&tags=c"),
    get("/v1/rooms?filter.mode=TEAM&filter.min_players=18446744073709551615&filter.rating=0.5"),
    get("/v1/rooms?filter.minPlayers=4"),
    get("/v1/rooms?filter.mode=2"),
    get("/v1/rooms?numbers=1&numbers=-2"),
    get("/v1/rooms?deep=true"),
    get("/v1/rooms?deep=false"),
    get("/v1/rooms?token=aGk%3D"),
    get("/v1/rooms?since=2024-02-29T12:00:00.5Z"),
    get("/v1/rooms?within=1.5s"),
    get("/v1/rooms?limit=4"),
    get("/v1/rooms?mask=a,b_c"),
    get("/v1/rooms?page_token=a+b%2Bc"),
    get("/v1/rooms?page_token="),
    get("/v1/rooms?page_token=%C3%A4"),
    get("/v1/rooms?colour=red").refused(),
    get("/v1/rooms?page_size=x").refused(),
    get("/v1/rooms?filter=x").refused(),
    get("/v1/rooms?deep=maybe").refused(),
    send("POST", "/v1/rooms", r#"{"title":"x","seed":"9007199254740993","mode":"DUEL","players":["a","b"],"scores":{"a":1}}"#),
    send("POST", "/v1/rooms?room_id=8", r#"{"title":"x"}"#),
    send("POST", "/v1/rooms", "{}"),
    send("POST", "/v1/rooms", ""),
    send("PATCH", "/v1/rooms/3?update_mask=title", r#"{"title":"y"}"#),
    send("PUT", "/v1/rooms/3", r#"{"room":{"title":"y"}}"#),
    send("PUT", "/v1/rooms/3", r#"{"room":{"name":"rooms/3"}}"#),
    send("PUT", "/v1/rooms/3", r#"{"room":{"name":"rooms/4"}}"#).refused(),
    send("POST", "/v1/rooms", r#"{"title":"x","unknown":{"a":[1]}}"#),
    send("POST", "/v1/rooms", r#"{"title":"#).refused(),
    send("POST", "/v1/rooms", r#"{"seed":"x"}"#).refused(),
    send("POST", "/v1/rooms", r#"{"seed":1.5}"#).refused(),
    send("POST", "/v1/rooms", r#"{"mode":"NONE"}"#).refused(),
    send("POST", "/v1/echo/hi", r#"{"i32":1}"#),
    send("POST", "/v1/echo", r#"{"d":1.5e300,"f":0.25,"i32":-5,"i64":"-9007199254740993","u32":4294967295,"u64":"18446744073709551615","s32":-2147483648,"s64":"-9223372036854775808","x32":7,"x64":"8","y32":-9,"y64":"-10","flag":true}"#),
    send("POST", "/v1/echo", r#"{"text":"ä\u00e9\"\\\n\ud83d\ude00<&>","raw":"AP8="}"#),
    send("POST", "/v1/echo", r#"{"raw":"_-8"}"#),
    send("POST", "/v1/echo", r#"{"mode":"TEAM","modes":["DUEL",2]}"#),
    send("POST", "/v1/echo", r#"{"nested":{"nested":{"text":"deep"}}}"#),
    send("POST", "/v1/echo", r#"{"many":["1",2,"-3"],"doubles":["NaN","Infinity","-Infinity",1e-7,1e21]}"#),
    send("POST", "/v1/echo", r#"{"rooms":[{"name":"a"},{}],"byName":{"k":{"seed":"4"}},"byNumber":{"-1":"m","2":"n"},"byFlag":{"true":2}}"#),
    send("POST", "/v1/echo", r#"{"maybe":0}"#),
    send("POST", "/v1/echo", r#"{"left":"l"}"#),
    send("POST", "/v1/echo", r#"{"right":{"title":"r"}}"#),
    send("POST", "/v1/echo", r#"{"neither":false}"#),
    send("POST", "/v1/echo", r#"{"at":"1969-12-31T23:59:59.999999999Z","lasts":"-0.000001s","mask":"aB,c.dE"}"#),
    send("POST", "/v1/echo", r#"{"at":"2024-02-29T23:59:59+02:00","lasts":"3s"}"#),
    send("POST", "/v1/echo", r#"{"bag":{"a":[1,"x",null,true,{"b":{}}]}}"#),
    send("POST", "/v1/echo", r#"{"anyValue":[1,{}]}"#),
    send("POST", "/v1/echo", r#"{"list":[1,[2]]}"#),
    send("POST", "/v1/echo", r#"{"anyValue":null}"#),
    send("POST", "/v1/echo", r#"{"any":{"@type":"type.googleapis.com/battle.v1.Room","title":"t","scores":{"z":1}}}"#),
    send("POST", "/v1/echo", r#"{"any":{"@type":"type.googleapis.com/google.protobuf.Duration","value":"1.5s"}}"#),
    send("POST", "/v1/echo", r#"{"wrappedText":"","wrappedLong":"12","wrappedFlag":false,"wrappedRaw":"aGk="}"#),
    send("POST", "/v1/echo", r#"{"snake_case_name":"s","renamed":"o"}"#),
    send("POST", "/v1/echo", r#"{"snakeCaseName":"s","otherName":"o"}"#),
    send("POST", "/v1/echo", r#"{"i32":"5","flag":true,"d":"1.5"}"#),
    send("POST", "/v1/echo", r#"{"i32":null,"text":null,"nested":null}"#),
    send("POST", "/v1/echo", r#"{"i32":1.0,"i64":1e3}"#),
    text("/v1/first/a", "raw"),
    get("/v1/rooms/1/events?count=3").of_any_type(),
    get("/v1/rooms/1/events").of_any_type(),
    get("/v1/rooms/1/events?fail_after=-1").of_any_type(),
    send("POST", "/v1/moves", r#"[{"number":1},{"text":"b"}]"#),
    send("POST", "/v1/moves", "[]"),
    get("/v1/fail/1?message=why"),
    get("/v1/fail/2?message=why"),
    get("/v1/fail/3?message=why"),
    get("/v1/fail/4?message=why"),
    get("/v1/fail/5?message=why"),
    get("/v1/fail/6?message=why"),
    get("/v1/fail/7?message=why"),
    get("/v1/fail/8?message=why"),
    get("/v1/fail/9?message=why"),
    get("/v1/fail/10?message=why"),
    get("/v1/fail/11?message=why"),
    get("/v1/fail/12?message=why"),
    get("/v1/fail/13?message=why"),
    get("/v1/fail/14?message=why"),
    get("/v1/fail/15?message=why"),
    get("/v1/fail/16?message=why"),
    get("/v1/fail/5?details=known&message=gone"),
    get("/v1/fail/5?message=a%20%C3%A4%25"),
    get("/v1/maps/a/b.png"),
    get("/v1/maps/none").of_any_type(),
    text("/v1/blobs", "raw"),
    text("/v1/maps/a", "raw"),
    send("POST", "/battle.v1.Battle/Auto", r#"{"view":"a"}"#),
    get("/v2/rooms").refused(),
    case("HEAD", "/v2/rooms").refused(),
    case("DELETE", "/v1/rooms").refused(),
    get("/battle.v1.Battle/Auto").refused(),
];

/// How cases begin that grpc-gateway answers otherwise; why stands in `docs/transcoding.md`.
#[rustfmt::skip]
pub const GATEWAY_DIFFERS: &[&str] = &[
    "GET /v1/rooms/7/ ",
    "GET /v1/rooms?colour=red",
    r#"PUT /v1/rooms/3 {"room":{"name":"rooms/4"}}"#,
    r#"POST /v1/rooms {"title":"x","unknown""#,
    "POST /v1/first/a",
    "GET /v1/rooms/1/events?",
    "POST /v1/moves",
    "POST /v1/blobs",
    "POST /v1/maps/a",
    "POST /battle.v1.Battle/Auto",
    "DELETE /v1/rooms ",
];
