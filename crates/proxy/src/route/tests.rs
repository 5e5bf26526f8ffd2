use std::net::SocketAddr;
use std::sync::Arc;

use phalanx_model::instance::Protocol;
use phalanx_model::name::{ClusterName, ServiceName};
use phalanx_model::resource::sessions::{Missing, SessionDirectory, SessionKey};
use phalanx_model::resource::{
    Action, Assignment, Backend, Carrier, Cluster, Cors, Endpoint, Forward, HeaderEdit, Mirror,
    Redirect, RouteTable, Rule, RuleMatch, Session, ValueMatch, VirtualHost,
};
use phalanx_relay::names;
use phalanx_relay::{Field, Http1Line, Limits, ResponseHead, Version, Workspace};

use super::*;
use crate::account::Account;
use crate::context::Caller;
use crate::directory::Entry;
use crate::filter;
use crate::plan::{Bootstrap, Resources, compile_table};

fn cluster(service: &str) -> ClusterName {
    ClusterName::outbound(ServiceName::new("default", service), 80)
}

fn backend(service: &str, weight: u32) -> Backend {
    Backend {
        cluster: Some(cluster(service)),
        weight,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    }
}

fn endpoint(address: &str, health: Health) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        weight: 1,
        zone: String::new(),
        is_far: false,
        health,
        version: String::new(),
        instance: String::new(),
        target: 0,
        mutual_tls: false,
        datagrams: false,
        token: String::new(),
    }
}

/// `old` has 10.0.0.1, 10.0.0.2 (draining) and 10.0.0.3 (unhealthy), `new` has 10.0.0.4.
fn plan(action: Action) -> Plan {
    plan_with(action, |_| {})
}

/// The same with clusters as they are made there.
fn plan_with(action: Action, make: impl Fn(&mut Cluster)) -> Plan {
    let rule = Rule {
        name: "r".into(),
        matches: RuleMatch::default(),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit {
            set: vec![("x-marked".into(), "yes".into())],
            ..HeaderEdit::default()
        },
        action,
    };
    let host = VirtualHost {
        name: "h".into(),
        domains: vec!["room".into()],
        rules: vec![rule],
    };
    let table = RouteTable {
        name: "outbound".into(),
        hosts: vec![host],
    };
    let mut resources = Resources::default();
    let compiled = Arc::new(compile_table(&table).unwrap());
    resources.tables.insert("outbound".into(), compiled);
    let old = vec![
        endpoint("10.0.0.1:80", Health::Healthy),
        endpoint("10.0.0.2:80", Health::Draining),
        endpoint("10.0.0.3:80", Health::Unhealthy),
    ];
    let new = vec![endpoint("10.0.0.4:80", Health::Healthy)];
    for (name, endpoints) in [("old", old), ("new", new)] {
        let (name, mut made) = (cluster(name), Cluster::new(cluster(name), Protocol::Auto));
        make(&mut made);
        resources.clusters.insert(name.clone(), Arc::new(made));
        let assignment = Assignment {
            cluster: name.clone(),
            endpoints,
            overprovision: None,
        };
        resources.assignments.insert(name, Arc::new(assignment));
    }
    let bootstrap = Bootstrap {
        service: ServiceName::new("default", "caller"),
        version: String::new(),
        inbound: Vec::new(),
        tcp: Vec::new(),
    };
    Plan::assemble(&resources, &bootstrap, &Plan::empty(), &Account::new(1))
}

fn request(method: &str, fields: &[(&str, &str)]) -> Checked {
    let line = Http1Line {
        method,
        authority: None,
        path: "/",
        query: None,
        version: Version::Http11,
    };
    let host = [("host", "room")];
    let fields = host.iter().chain(fields);
    let fields = fields.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let made = Checked::http1(Workspace::default(), line, fields, &Limits::default());
    made.map_err(|(refusal, _)| refusal).unwrap()
}

fn context<'p>(seed: u64) -> StreamContext<'p> {
    let rng = fastrand::Rng::with_seed(seed);
    StreamContext::new(Direction::Outbound, &Caller::Plain, false, rng)
}

fn sticky(carrier: Carrier, old: u32) -> Plan {
    plan(Action::Forward(Forward {
        backends: vec![backend("old", old), backend("new", 1)],
        session: Some(Session {
            name: "x-room".into(),
            carrier,
            absolute: None,
            idle: None,
        }),
        ..Forward::default()
    }))
}

/// The token of an answer from this endpoint.
fn answered(context: &StreamContext<'_>, endpoint: &str) -> Option<String> {
    let endpoint: SocketAddr = endpoint.parse().unwrap();
    context.endpoint.set(Some(endpoint));
    let mut head = ResponseHead::blank();
    filter::response(&mut head, context);
    let field = Field::new("x-room", "").unwrap();
    let value = head.headers.get(field.name())?;
    Some(String::from_utf8(value.to_vec()).unwrap())
}

#[test]
fn a_session_outranks_weights_and_outlives_draining_but_not_ill_health() {
    let plan = sticky(Carrier::Header, 0);
    let mut first = context(1);
    assert_eq!(
        choose(&plan, &mut request("GET", &[]), &mut first),
        Verdict::Continue
    );
    assert_eq!((first.session, first.wanted), (None, None));
    let old = first.backend.unwrap().cluster;
    for (endpoint, wanted) in [
        ("10.0.0.1:80", Some(0)),
        ("10.0.0.2:80", Some(1)),
        ("10.0.0.3:80", None),
        ("10.0.0.9:80", None),
    ] {
        let token = answered(&first, endpoint).unwrap();
        let mut next = context(2);
        let mut request = request("GET", &[("x-room", &token)]);
        assert_eq!(choose(&plan, &mut request, &mut next), Verdict::Continue);
        assert_eq!(next.wanted, wanted, "{endpoint}");
        // Weight zero: only a session leads there.
        assert_eq!(next.backend.unwrap().cluster != old, wanted.is_some());
        // The one that answers is not told again; another is.
        assert_eq!(answered(&next, endpoint), None);
        assert!(answered(&next, "10.0.0.4:80").is_some());
    }
}

#[test]
fn tokens_that_are_none_begin_a_session() {
    let plan = sticky(Carrier::Header, 1);
    for token in ["", "x", "====", "MTAuMC4wLjE=", "CgA="] {
        let mut context = context(3);
        let mut request = request("GET", &[("x-room", token)]);
        assert_eq!(choose(&plan, &mut request, &mut context), Verdict::Continue);
        assert_eq!((context.session, context.wanted), (None, None), "{token}");
    }
}

#[test]
fn mirrors_are_rolled_one_by_one() {
    let mirror = |service, per_million| Mirror {
        cluster: cluster(service),
        per_million,
    };
    let plan = plan(Action::Forward(Forward {
        backends: vec![backend("old", 1)],
        mirrors: vec![
            mirror("old", 1_000_000),
            mirror("new", 250_000),
            mirror("absent", 1_000_000),
        ],
        ..Forward::default()
    }));
    let place = |name| {
        plan.clusters
            .iter()
            .position(|c| c.name == cluster(name))
            .unwrap()
    };
    let (mut all, mut quarter) = (0, 0);
    for seed in 0..1000 {
        let mut context = context(seed);
        let verdict = choose(&plan, &mut request("GET", &[]), &mut context);
        assert_eq!(verdict, Verdict::Continue);
        assert!(context.mirrors.len() <= 2, "what is not there gets nothing");
        all += usize::from(context.mirrors.contains(&place("old")));
        quarter += usize::from(context.mirrors.contains(&place("new")));
    }
    assert_eq!(all, 1000);
    assert!((150..350).contains(&quarter), "{quarter}");
}

#[test]
fn preflights_are_answered_and_answers_tell_who_may_read_them() {
    let plan = plan(Action::Forward(Forward {
        backends: vec![backend("old", 1)],
        cors: Some(Cors {
            origins: vec![ValueMatch::Regex("https://[^/:]+\\.test".into())],
            credentials: true,
            methods: vec!["*".into()],
            headers: vec!["x-a".into(), "x-b".into()],
            exposed: vec!["x-c".into()],
            max_age: 5,
        }),
        ..Forward::default()
    }));
    let origin = ("origin", "https://game.test");
    let asks = ("access-control-request-method", "PUT");
    let mut answer = context(1);
    let verdict = choose(&plan, &mut request("OPTIONS", &[origin, asks]), &mut answer);
    let Verdict::Respond(reply) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!((reply.status, reply.reason), (200, None));
    let fields: Vec<_> = reply
        .fields
        .iter()
        .map(|field| format!("{field:?}"))
        .collect();
    assert_eq!(fields.len(), 6, "{fields:?}");
    let mut passed = context(1);
    let verdict = choose(&plan, &mut request("GET", &[origin]), &mut passed);
    assert_eq!(verdict, Verdict::Continue);
    let mut reply = Reply::of(Reason::Timeout);
    filter::own(&mut reply, &passed);
    assert_eq!(reply.fields.len(), 3, "{:?}", reply.fields);
    let mut other = context(1);
    let evil = ("origin", "https://evil.example");
    let verdict = choose(&plan, &mut request("GET", &[evil]), &mut other);
    assert_eq!((verdict, other.origin), (Verdict::Continue, None));
}

#[test]
fn edits_of_a_rule_hold_for_its_redirects() {
    let plan = plan(Action::Redirect(Redirect {
        scheme: None,
        hostname: Some("other".into()),
        port: None,
        path: None,
        status: 302,
    }));
    let verdict = choose(&plan, &mut request("GET", &[]), &mut context(1));
    let Verdict::Respond(reply) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(reply.fields, [Field::new("x-marked", "yes").unwrap()]);
}

/// Sessions of `rooms`, whichever backend has their endpoint.
fn seated(missing: Missing, entries: &[(&str, u64, &str)]) -> Plan {
    let rooms = ServiceName::new("default", "rooms");
    let forward = Forward {
        backends: vec![backend("old", 1), backend("new", 0)],
        ..Forward::default()
    };
    let plan = plan_with(Action::Forward(forward), |cluster| {
        cluster.directory = Some(SessionDirectory {
            service: rooms.clone(),
            key: SessionKey::Header("x-game-session".into()),
            missing,
        });
    });
    let entries = entries.iter().map(|(key, epoch, address)| {
        let addresses: Vec<SocketAddr> = address.parse().into_iter().collect();
        Entry::new(key.as_bytes(), *epoch, "a".into(), addresses.into())
    });
    plan.directory.fill(&rooms, entries.collect());
    plan
}

/// Where a request goes, and the epoch that its application is told.
fn seat(plan: &Plan, fields: &[(&str, &str)]) -> Result<(Option<SocketAddr>, String), Verdict> {
    let (mut request, mut context) = (request("GET", fields), context(1));
    match choose(plan, &mut request, &mut context) {
        Verdict::Continue => {}
        other => return Err(other),
    }
    let epoch = request.headers().get(names::X_SESSION_EPOCH);
    let epoch = String::from_utf8(epoch.unwrap_or_default().to_vec()).unwrap();
    let cluster = &plan.clusters[context.cluster.unwrap()];
    let wanted = context
        .wanted
        .map(|member| cluster.endpoints[member].address);
    assert_eq!(wanted.is_some(), context.seat.is_some());
    Ok((wanted, epoch))
}

#[test]
fn a_session_goes_where_the_directory_says_whatever_weight_and_health_say() {
    let at = [
        ("one", 3, "10.0.0.2:80"),
        ("ill", 4, "10.0.0.3:80"),
        ("new", 5, "10.0.0.4:80"),
        ("away", 6, ""),
        ("elsewhere", 7, "10.0.0.9:80"),
    ];
    for missing in Missing::ALL {
        let plan = seated(missing, &at);
        for (key, epoch, address) in &at[..3] {
            let found = seat(&plan, &[("x-game-session", key), ("x-session-epoch", "99")]);
            assert_eq!(
                found,
                Ok((Some(address.parse().unwrap()), epoch.to_string()))
            );
        }
        // It is somewhere, and that is not here: nobody else may have it.
        for key in ["away", "elsewhere"] {
            let found = seat(&plan, &[("x-game-session", key)]);
            assert_eq!(found, Err(Reason::NoHealthyUpstream.into()), "{key}");
        }
        let none = Ok((None, String::new()));
        assert_eq!(seat(&plan, &[("x-session-epoch", "99")]), none);
        let unknown = seat(&plan, &[("x-game-session", "nobody")]);
        match missing {
            Missing::Balance => assert_eq!(unknown, none),
            Missing::Refuse => assert_eq!(unknown, Err(Reason::NoHealthyUpstream.into())),
        }
    }
}

#[test]
fn before_all_sessions_are_here_none_is_placed() {
    let plan = seated(Missing::Balance, &[]);
    plan.directory.forget(&ServiceName::new("default", "rooms"));
    assert!(!plan.is_seated());
    let found = seat(&plan, &[("x-game-session", "one")]);
    assert_eq!(found, Err(Reason::NoHealthyUpstream.into()));
    assert!(
        seat(&plan, &[]).is_ok(),
        "without a session there is nothing to wait for"
    );
}

#[test]
fn an_epoch_is_taken_from_the_mesh_only() {
    let plan = Plan::empty();
    for (guarded, keeps) in [(false, true), (true, false)] {
        let mut request = request("GET", &[("x-session-epoch", "7")]);
        let rng = fastrand::Rng::with_seed(1);
        let mut context = StreamContext::new(Direction::Inbound, &Caller::Plain, guarded, rng);
        let _ = choose(&plan, &mut request, &mut context);
        let kept = request.headers().contains(names::X_SESSION_EPOCH);
        assert_eq!(kept, keeps);
    }
}
