//! What a peer sends too much of ends its stream, with a reason.

use super::*;

fn refused(request: impl Into<Request>) -> SessionError {
    let mut session = match request.into() {
        Request::Delta(request) => (Session::delta(), Request::Delta(request)),
        Request::Sotw(request) => (Session::sotw(), Request::Sotw(request)),
    };
    session.0.on_request(session.1).unwrap_err()
}

fn many(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("n{index}")).collect()
}

#[test]
fn too_many_names_are_refused() {
    let kind = Kind::Endpoints;
    let too_many = SessionError::TooManyNames { kind };
    let delta = DeltaDiscoveryRequest {
        resource_names_subscribe: many(NAMES_MAX + 1),
        ..ask(kind, &[])
    };
    assert_eq!(refused(delta), too_many);
    let sotw = DiscoveryRequest {
        type_url: kind.type_url().into(),
        resource_names: many(NAMES_MAX + 1),
        ..Default::default()
    };
    assert_eq!(refused(sotw), too_many);
    let claims = DeltaDiscoveryRequest {
        initial_resource_versions: many(NAMES_MAX + 1)
            .into_iter()
            .map(|n| (n, String::new()))
            .collect(),
        ..ask(kind, &[])
    };
    assert_eq!(refused(claims), too_many);
}

#[test]
fn names_add_up_over_requests() {
    let mut delta = Delta::new(snapshot(1, []));
    let half = |from: usize| DeltaDiscoveryRequest {
        resource_names_subscribe: many(NAMES_MAX + 1).split_off(from),
        ..ask(Kind::Endpoints, &[])
    };
    delta.send(half(NAMES_MAX / 2));
    let mut rest = half(0);
    rest.resource_names_subscribe.truncate(NAMES_MAX / 2);
    assert!(delta.session.on_request(rest).is_err());
}

#[test]
fn long_names_and_versions_are_refused() {
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    let expected = SessionError::NameTooLong {
        kind: Kind::Routes,
        bytes: NAME_BYTES_MAX + 1,
    };
    assert_eq!(refused(ask(Kind::Routes, &[&long])), expected);
    let mut claims = ask(Kind::Routes, &["r"]);
    claims.initial_resource_versions.insert("r".into(), long);
    assert_eq!(refused(claims), expected);
}

#[test]
fn a_type_that_is_not_served_is_said_and_the_others_go_on() {
    let runtime = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
    let mut delta = Delta::new(mesh(1, &["a"], &["a"]));
    delta.send(ask(Kind::Cluster, &["*"]));
    delta.send(DeltaDiscoveryRequest {
        type_url: runtime.into(),
        resource_names_subscribe: list(&["x"]),
        ..Default::default()
    });
    assert_eq!(delta.settle(), ["CDS +a"]);
    assert_eq!(delta.acked(), 1);
    assert_eq!(delta.session.unserved().collect::<Vec<_>>(), [runtime]);
    for type_url in many(UNSERVED_MAX) {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.clone(),
            ..Default::default()
        };
        let is_last = delta.session.unserved().count() == UNSERVED_MAX;
        assert_eq!(delta.session.on_request(request).is_err(), is_last);
    }
}

#[test]
fn a_request_without_type_is_refused_where_it_could_be_any() {
    let error = refused(DeltaDiscoveryRequest::default());
    assert_eq!(error, SessionError::UnknownType(String::new()));
}

#[test]
fn a_state_of_the_world_beyond_one_message_ends_the_stream_with_a_reason() {
    let big = "x".repeat(SOTW_BYTES_MAX / 4);
    let names = ["a", "b", "c", "d"];
    let mut sotw = Sotw::new(snapshot(1, names.map(|name| cluster(name, &big))));
    sotw.ask(Kind::Cluster, &["a"], "");
    let one = sotw.one();
    sotw.ask(Kind::Cluster, &["a", "b", "c", "d"], &one.nonce);
    assert!(sotw.batch().is_empty());
    let error = sotw.session.failed().unwrap().to_string();
    assert!(error.contains("use delta"), "{error}");
}

#[test]
fn the_other_protocol_is_refused() {
    let request = DiscoveryRequest::default();
    assert_eq!(
        Session::delta().on_request(request),
        Err(SessionError::WrongProtocol)
    );
}

#[test]
fn a_large_delta_goes_out_in_pages() {
    let big = "x".repeat(RESPONSE_BYTES_MAX / 2);
    let mut delta = Delta::new(snapshot(1, ["a", "b", "c"].map(|name| cluster(name, &big))));
    delta.send(ask(Kind::Cluster, &["*"]));
    let first = delta.one();
    assert_eq!(told_one(&first), "CDS +a");
    delta.ack(&first);
    assert_eq!(delta.acked(), 0);
    assert_eq!(delta.settle(), ["CDS +b", "CDS +c"]);
    assert_eq!(delta.acked(), 1);
}
