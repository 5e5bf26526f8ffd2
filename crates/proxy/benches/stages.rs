//! What each step of a request costs, in nanoseconds of one core, everything hot: `NS (min–max)<tab>step` for each, the median
//! of nine. `cargo xtask bench --case stages` writes it down.

use std::hint::black_box;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use phalanx_model::instance::Protocol;
use phalanx_model::name::{ClusterName, Direction, ServiceName};
use phalanx_model::resource::limit::{Limits as Limited, Rate};
use phalanx_model::resource::{
    Action, Assignment, Backend, Cluster, Endpoint, Forward, HeaderEdit, Health, Inbound,
    PathMatch, RouteTable, Rule, RuleMatch, VirtualHost,
};
use phalanx_proxy::account::Account;
use phalanx_proxy::balance::{Load, Pick, Tried};
use phalanx_proxy::context::{Caller, StreamContext};
use phalanx_proxy::plan::{AppPort, Bootstrap, Entries, Plan, Resources, compile_table};
use phalanx_proxy::underway::Ended;
use phalanx_proxy::{colour, correlate, filter, guard, limit, listen, route};
use phalanx_relay::hpack::{Decoder, Encoder, Fields, Most};
use phalanx_relay::http1::{Answer, Event, Exchange, Ready, Server};
use phalanx_relay::{Checked, Limits, Name, Pool, ResponseHead, Value, Verdict, names};

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 9;
const BATCH: usize = 16;
const ROUND: Duration = Duration::from_millis(30);
const RULES: usize = 100;
/// Of the workers' clock.
const NOW_MS: u64 = 1_000_000;

fn main() {
    http1();
    stages();
    hpack();
    tls(300);
    tls(1200);
}

/// Times `run` over batches of what `make` made before. A round is worth its median batch: who else has the core is not
/// counted.
fn measure<T>(what: &str, mut make: impl FnMut() -> T, mut run: impl FnMut(&mut T)) {
    let mut samples: Vec<f64> = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let mut batches: Vec<f64> = Vec::new();
        let until = Instant::now() + ROUND;
        while Instant::now() < until {
            let mut batch: Vec<T> = (0..BATCH).map(|_| make()).collect();
            let begun = Instant::now();
            batch.iter_mut().for_each(&mut run);
            batches.push(begun.elapsed().as_nanos() as f64 / BATCH as f64);
        }
        batches.sort_by(f64::total_cmp);
        samples.push(batches[batches.len() / 2]);
    }
    samples.sort_by(f64::total_cmp);
    let (low, middle, high) = (samples[0], samples[ROUNDS / 2], samples[ROUNDS - 1]);
    println!("{middle:.0} ({low:.0}\u{2013}{high:.0})\t{what}");
}

const REQUEST: &[u8] = b"GET /rooms/17?full=1 HTTP/1.1\r\nHost: backend\r\nUser-Agent: game/3.1\r\nAccept: */*\r\n\
    Accept-Encoding: gzip\r\nX-Player: 81724\r\nAuthorization: Bearer abcdefghijklmnopqrstuvwxyz\r\n\
    traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n";
const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1024\r\nserver: app\r\n\
    cache-control: no-store\r\ndate: Mon, 23 Nov 2026 00:00:00 GMT\r\n\r\n";

fn request(pool: &mut Pool, limits: &Limits) -> (Server, Checked) {
    let (mut server, mut input) = (Server::default(), REQUEST);
    match server.read(&mut input, pool, limits) {
        Ok(Some(Event::Request(request))) => (server, request),
        other => panic!("not a request: {other:?}"),
    }
}

fn head(exchange: &mut Exchange, pool: &mut Pool, limits: &Limits) -> ResponseHead {
    let mut input = ANSWER;
    match exchange.read(&mut input, pool, limits) {
        Ok(Some(Answer::Head(head))) => head,
        other => panic!("not an answer: {other:?}"),
    }
}

fn http1() {
    let (mut pool, limits, mut out) = (Pool::default(), Limits::default(), Vec::new());
    measure(
        "HTTP/1: read and check the head of a request, 7 fields",
        Server::default,
        |server| {
            let mut input = REQUEST;
            if let Ok(Some(Event::Request(request))) = server.read(&mut input, &mut pool, &limits) {
                pool.put_workspace(black_box(request).into_workspace());
            }
        },
    );
    let (_, asked) = request(&mut pool, &limits);
    measure(
        "HTTP/1: write the head of a request, 7 fields",
        || (),
        |()| {
            out.clear();
            black_box(Ready::fresh().send(&asked, [], &mut out));
        },
    );
    let fresh = || Ready::fresh().send(&asked, [], &mut Vec::new());
    measure(
        "HTTP/1: read and check the head of an answer, 5 fields",
        fresh,
        |exchange| {
            let head = head(exchange, &mut pool, &limits);
            pool.put_head(black_box(head));
        },
    );
    let answer = head(&mut fresh(), &mut pool, &limits);
    let waiting = || request(&mut Pool::default(), &limits).0;
    measure(
        "HTTP/1: write the head of an answer, 5 fields",
        waiting,
        |server| {
            out.clear();
            black_box(server.respond(&answer, false, &mut out)).expect("its turn");
        },
    );
}

type Stage = for<'p> fn(&'p Plan, &mut Checked, &mut StreamContext<'p>) -> Verdict;

fn stages() {
    let account = Account::new(1);
    let plan = plan(&account);
    let (_, asked) = request(&mut Pool::default(), &Limits::default());
    let mut rng = fastrand::Rng::with_seed(7);
    let all: [(&str, Stage); 8] = [
        ("correlate::fill, nothing under way", correlate::fill),
        ("listen::admit", listen::admit),
        ("route::choose, 100 rules, the last is met", route::choose),
        ("route::json::transcode, no call", route::json::transcode),
        ("colour::admit, no colour", colour::admit),
        ("guard::admit", guard::admit),
        ("limit::admit", limit::admit),
        (
            "filter::request: trace context, request id, a header set and one removed",
            filter::request,
        ),
    ];
    for (direction, words) in [
        (Direction::Outbound, "calling"),
        (Direction::Inbound, "called"),
    ] {
        let mut after = |stages: &[(&str, Stage)]| {
            let mut context = StreamContext::new(direction, &Caller::Plain, false, rng.fork());
            context.underway = account.underway().here(0, NOW_MS);
            let mut request = asked.duplicate();
            for (what, stage) in stages {
                let verdict = stage(&plan, &mut request, &mut context);
                assert_eq!(verdict, Verdict::Continue, "{what}, {words}");
            }
            (request, context)
        };
        for (index, (what, stage)) in all.iter().enumerate() {
            let what = match (direction, index) {
                (Direction::Inbound, 0) => "correlate::fill",
                (Direction::Inbound, 2) => "route::choose",
                (Direction::Inbound, 6) => "limit::admit, a local rate",
                (Direction::Inbound, 7) => "filter::request: trace context, request id",
                _ => what,
            };
            measure(
                &format!("{words}: {what}"),
                || after(&all[..index]),
                |(request, context)| {
                    let _ = black_box(stage(&plan, request, context));
                },
            );
        }
        measure(
            &format!("{words}: all eight stages"),
            || after(&[]),
            |(request, context)| {
                for (_, stage) in &all {
                    let _ = black_box(stage(&plan, request, context));
                }
            },
        );
        let (mut pool, limits) = (Pool::default(), Limits::default());
        let (_, passed) = after(&all);
        let exchange = || Ready::fresh().send(&asked, [], &mut Vec::new());
        measure(
            &format!("{words}: filter::response"),
            || head(&mut exchange(), &mut pool, &limits),
            |head| filter::response(black_box(head), &passed),
        );
    }
    correlated(&account, &asked);
    pick(&plan);
}

/// What a call without trace and id pays for those of the one request that may be its cause, and for its colour.
fn correlated(account: &Account, asked: &Checked) {
    let underway = account.underway();
    let mut bare = asked.duplicate();
    bare.headers_mut().remove(names::TRACEPARENT);
    let mut cause = asked.duplicate();
    let empty = Plan::empty();
    for (what, colour) in [
        ("a trace is given", None),
        ("a colour and a trace are given", Some("dev-li")),
    ] {
        if let Some(colour) = colour.and_then(|colour| Value::new(colour.as_bytes())) {
            cause.headers_mut().set(names::X_ENV, colour);
        }
        let ticket = underway.begin(0, cause.headers(), NOW_MS);
        measure(
            &format!("calling: correlate::fill, one under way: {what}"),
            || {
                let rng = fastrand::Rng::with_seed(7);
                let caller = &Caller::Plain;
                let mut context = StreamContext::new(Direction::Outbound, caller, false, rng);
                context.underway = underway.here(0, NOW_MS);
                (bare.duplicate(), context)
            },
            |(request, context)| {
                let _ = black_box(correlate::fill(&empty, request, context));
            },
        );
        if let Some(ticket) = ticket {
            // Long ago by now.
            underway.end(0, ticket, Ended::Answered, 0);
        }
    }
}

/// Peak EWMA over two choices of three.
fn pick(plan: &Plan) {
    let loads: [Load; 3] = Default::default();
    let (tried, mut rng, mut turn) = (Tried::default(), fastrand::Rng::with_seed(7), 0);
    let load = |member: usize| loads.get(member);
    measure(
        "balance: pick one of three endpoints",
        || (),
        |()| {
            let group = &plan.clusters[0].group;
            let pick = Pick {
                load,
                tried: &tried,
                rng: &mut rng,
                now_us: 1_000_000,
                turn: &mut turn,
                hash: None,
            };
            black_box(group.pick(pick));
        },
    );
}

fn plan(account: &Account) -> Plan {
    let service = ServiceName::new("default", "backend");
    let name = ClusterName::outbound(service.clone(), 80);
    let edit = |name: &str| HeaderEdit {
        set: vec![(name.into(), "r".into())],
        ..HeaderEdit::default()
    };
    let rule = |number: usize| Rule {
        name: format!("HTTPRoute/default/backend/{number}"),
        matches: RuleMatch {
            path: PathMatch::Prefix(match number + 1 == RULES {
                true => "/".into(),
                false => format!("/area-{number:02}/rooms"),
            }),
            ..RuleMatch::default()
        },
        request_headers: HeaderEdit {
            remove: vec!["x-debug".into()],
            ..edit("x-route")
        },
        response_headers: edit("x-served"),
        action: Action::Forward(Forward {
            backends: vec![Backend {
                cluster: Some(name.clone()),
                weight: 1,
                request_headers: HeaderEdit::default(),
                response_headers: HeaderEdit::default(),
            }],
            ..Forward::default()
        }),
    };
    let table = RouteTable {
        name: "outbound".into(),
        hosts: vec![VirtualHost {
            name: "backend".into(),
            domains: vec!["backend".into()],
            rules: (0..RULES).map(rule).collect(),
        }],
    };
    let mut resources = Resources::default();
    let table = Arc::new(compile_table(&table).expect("a good table"));
    resources.tables.insert("outbound".into(), table);
    let endpoint = |last: u8| Endpoint {
        address: ([10, 0, 0, last], 80).into(),
        weight: 1,
        zone: String::new(),
        is_far: false,
        health: Health::Healthy,
        version: String::new(),
        instance: String::new(),
        target: 0,
        mutual_tls: false,
        datagrams: false,
        token: String::new(),
    };
    let cluster = Arc::new(Cluster::new(name.clone(), Protocol::Auto));
    resources.clusters.insert(name.clone(), cluster);
    let assignment = Assignment {
        cluster: name.clone(),
        endpoints: (1..=3).map(endpoint).collect(),
        overprovision: None,
    };
    resources.assignments.insert(name, Arc::new(assignment));
    let mut inbound = Inbound::default();
    inbound.default.limits = vec![Limited {
        policy: "default/backend".into(),
        local: Some(Rate {
            requests: 1_000_000_000,
            per: Duration::from_secs(1),
            burst: 1_000_000_000,
        }),
        ..Limited::default()
    }];
    let entries = Entries::compile(&inbound, None).expect("good limits");
    resources.inbound = Some(Arc::new(entries));
    let bootstrap = Bootstrap {
        service,
        version: String::new(),
        inbound: vec![AppPort {
            name: String::new(),
            number: 80,
            address: ([127, 0, 0, 1], 8080).into(),
            protocol: Protocol::Auto,
        }],
        tcp: Vec::new(),
    };
    Plan::assemble(&resources, &bootstrap, &Plan::empty(), account)
}

const FIELDS: [(&str, &str); 6] = [
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("user-agent", "grpc-go/1.70"),
    ("grpc-timeout", "1S"),
    ("x-route", "r99"),
    ("x-request-id", "0b9cbbc9-3f1e-4c15-9d5f-2f4f2a4d0b11"),
];

fn encode(encoder: &mut Encoder, out: &mut Vec<u8>) {
    out.clear();
    encoder.begin(out);
    encoder.method("POST", out);
    encoder.scheme(false, out);
    encoder.authority("backend", out);
    encoder.path("/bench.Bench/Call", None, out);
    for (name, value) in FIELDS {
        let name = Name::new(name.as_bytes()).expect("a name");
        encoder.field(name, value.as_bytes(), false, out);
    }
}

fn hpack() {
    let (mut encoder, mut decoder) = (Encoder::new(true), Decoder::default());
    let (mut block, mut fields) = (Vec::new(), Fields::default());
    let most = Most {
        bytes: 64 << 10,
        fields: 100,
    };
    for _ in 0..3 {
        encode(&mut encoder, &mut block);
        decoder
            .decode(&block, &mut fields, most)
            .expect("a good block");
    }
    let bytes = block.len();
    measure(
        &format!("HPACK: decode 10 fields, known to the table ({bytes} bytes)"),
        || (),
        |()| {
            black_box(decoder.decode(&block, &mut fields, most)).expect("a good block");
        },
    );
    let mut out = Vec::new();
    measure(
        "HPACK: encode the same",
        || (),
        |()| encode(&mut encoder, black_box(&mut out)),
    );
}

/// Both ends in memory, with the suite that they agree on.
fn tls(bytes: usize) {
    let made = rcgen::generate_simple_self_signed(vec!["backend".into()]).expect("a certificate");
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let chain = vec![made.cert.der().clone()];
    let provider = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|config| {
            config
                .with_no_client_auth()
                .with_single_cert(chain.clone(), key.into())
        })
        .expect("a server");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(chain[0].clone()).expect("a root");
    let client = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("a client")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "backend".try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(client), name).expect("a client");
    let mut server = rustls::ServerConnection::new(Arc::new(server)).expect("a server");
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory");
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("memory");
            server.process_new_packets().expect("a handshake");
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("memory");
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            client.process_new_packets().expect("a handshake");
        }
    }
    let (data, mut got) = (vec![b'x'; bytes], vec![0; bytes]);
    measure(
        &format!("TLS: seal and open a record of {bytes} bytes"),
        || (),
        |()| {
            wire.clear();
            client.writer().write_all(&data).expect("memory");
            client.write_tls(&mut wire).expect("memory");
            server.read_tls(&mut wire.as_slice()).expect("memory");
            server.process_new_packets().expect("a record");
            server
                .reader()
                .read_exact(black_box(&mut got))
                .expect("the record");
        },
    );
}
