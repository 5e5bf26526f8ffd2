//! Claims about a client, told through a scripted server.

use prost_types::Any;

use super::*;

fn node() -> Node {
    Node {
        id: "demo/gateway/1".into(),
        ..Default::default()
    }
}

fn connected() -> Client {
    let mut client = Client::new(node());
    client.connect();
    client
}

fn resource(kind: Kind, name: &str, version: &str) -> Resource {
    Resource {
        name: name.into(),
        version: version.into(),
        resource: Some(Any {
            type_url: kind.type_url().into(),
            value: name.as_bytes().to_vec(),
        }),
        ..Default::default()
    }
}

fn response(kind: Kind, puts: &[(&str, &str)], removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: kind.type_url().into(),
        nonce: "n".into(),
        resources: puts.iter().map(|(n, v)| resource(kind, n, v)).collect(),
        removed_resources: removed.iter().map(|n| (*n).to_owned()).collect(),
        ..Default::default()
    }
}

/// Applies a response without complaint.
fn apply(client: &mut Client, response: DeltaDiscoveryResponse) -> Vec<DeltaDiscoveryRequest> {
    let update = client.on_response(response).unwrap();
    client.finish(update.token, Ok(()))
}

fn held(client: &Client, kind: Kind) -> String {
    let held: Vec<String> = client.held(kind).map(|(n, v)| format!("{n}@{v}")).collect();
    held.join(" ")
}

/// `EDS +a -b ack` and the like.
fn told(requests: &[DeltaDiscoveryRequest]) -> String {
    let parts: Vec<String> = requests.iter().map(told_one).collect();
    parts.join(" | ")
}

fn told_one(request: &DeltaDiscoveryRequest) -> String {
    let mut text = Kind::parse(&request.type_url).unwrap().to_string();
    for name in &request.resource_names_subscribe {
        text += &format!(" +{name}");
    }
    for name in &request.resource_names_unsubscribe {
        text += &format!(" -{name}");
    }
    for (name, version) in &request.initial_resource_versions {
        text += &format!(" {name}@{version}");
    }
    match (&request.error_detail, request.response_nonce.as_str()) {
        (Some(error), _) => text + " nack: " + &error.message,
        (None, "") => text,
        (None, _) => text + " ack",
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_first_stream_asks_for_all_clusters_and_listeners_and_tells_the_node_once() {
    let mut client = Client::new(node());
    let requests = client.connect();
    assert_eq!(told(&requests), "CDS +* | LDS +*");
    assert_eq!(requests[0].node, Some(node()));
    assert_eq!(requests[1].node, None);
    let more = client
        .subscribe(Kind::Routes, names(&["outbound"]))
        .unwrap();
    assert_eq!(
        (told_one(&more).as_str(), &more.node),
        ("RDS +outbound", &None)
    );
}

#[test]
fn endpoints_are_asked_for_with_each_cluster_before_its_ack() {
    let mut client = connected();
    let kind = Kind::Cluster;
    let answer = apply(&mut client, response(kind, &[("a", "1"), ("b", "1")], &[]));
    assert_eq!(told(&answer), "EDS +a +b | CDS ack");
    let answer = apply(&mut client, response(kind, &[("c", "1")], &["a"]));
    assert_eq!(told(&answer), "EDS +c -a | CDS ack");
    let answer = apply(&mut client, response(kind, &[("c", "2")], &[]));
    assert_eq!(told(&answer), "CDS ack");
}

#[test]
fn an_update_shows_what_is_asked_for_and_an_ack_follows() {
    let mut client = connected();
    client.subscribe(Kind::Routes, names(&["r"]));
    let update = client
        .on_response(response(Kind::Routes, &[("x", "1"), ("r", "1")], &["y"]))
        .unwrap();
    assert_eq!(update.upserts, [("r".into(), "1".into(), b"r".to_vec())]);
    assert!(update.removed.is_empty() && update.token.nonce() == "n");
    assert_eq!(held(&client, Kind::Routes), "");
    let answer = client.finish(update.token, Ok(()));
    assert_eq!(
        (told(&answer).as_str(), answer[0].response_nonce.as_str()),
        ("RDS ack", "n")
    );
    assert_eq!(held(&client, Kind::Routes), "r@1");
}

#[test]
fn a_refused_resource_keeps_its_old_version_and_its_siblings_move_on() {
    let mut client = connected();
    let kind = Kind::Cluster;
    apply(&mut client, response(kind, &[("a", "1"), ("b", "1")], &[]));
    let update = client
        .on_response(response(kind, &[("a", "2"), ("b", "2"), ("c", "2")], &[]))
        .unwrap();
    let refused = vec![
        ("b".to_owned(), "no endpoints".to_owned()),
        ("c".into(), "odd".into()),
    ];
    let answer = client.finish(update.token, Err(refused));
    assert_eq!(told(&answer), "CDS nack: b: no endpoints; c: odd");
    assert_eq!(held(&client, kind), "a@2 b@1");
}

#[test]
fn what_cannot_be_unpacked_is_refused_without_the_caller() {
    let mut client = connected();
    let kind = Kind::Listener;
    let mut bad = response(kind, &[("a", "1"), ("b", "1"), ("c", "1"), ("c", "1")], &[]);
    bad.resources[0].resource = None;
    bad.resources[1].resource = Some(Any {
        type_url: "t".into(),
        value: vec![],
    });
    let answer = apply(&mut client, bad);
    let expected =
        "LDS nack: a: has no content; b: is of type \"t\"; c: occurs twice in one response";
    assert_eq!(told(&answer), expected);
}

#[test]
fn a_refusal_is_bounded_and_names_as_many_as_fit() {
    let failed: Vec<(String, String)> = (0..1000)
        .map(|i| (format!("n{i}"), "x".repeat(9000)))
        .collect();
    let status = refusal(&failed);
    assert!(
        status.message.len() <= ERROR_BYTES_MAX + 8,
        "{}",
        status.message.len()
    );
    assert!(status.message.starts_with("n0: x") && status.message.contains("; n6: x"));
}

#[test]
fn a_reconnect_tells_what_is_held_and_asks_for_the_same() {
    let mut client = connected();
    apply(
        &mut client,
        response(Kind::Cluster, &[("a", "1"), ("b", "2")], &[]),
    );
    apply(&mut client, response(Kind::Endpoints, &[("a", "3")], &[]));
    client.subscribe(Kind::Routes, names(&["outbound"]));
    apply(
        &mut client,
        response(Kind::Routes, &[("outbound", "4")], &[]),
    );
    let requests = client.connect();
    assert_eq!(
        told(&requests),
        "CDS +* a@1 b@2 | EDS +a +b a@3 | LDS +* | RDS +outbound outbound@4"
    );
    assert_eq!(requests[0].node, Some(node()));
}

#[test]
fn what_can_not_be_served_after_all_is_no_longer_told_as_held() {
    let mut client = connected();
    apply(
        &mut client,
        response(Kind::Listener, &[("a", "1"), ("b", "2")], &[]),
    );
    client.lost(Kind::Listener, "a");
    client.took(Kind::Listener, "c".to_owned(), "3".to_owned());
    assert_eq!(told(&client.connect()), "CDS +* | LDS +* b@2 c@3");
}

#[test]
fn an_update_of_an_earlier_stream_is_held_but_not_answered() {
    let mut client = connected();
    let update = client
        .on_response(response(Kind::Cluster, &[("a", "1")], &[]))
        .unwrap();
    client.connect();
    assert_eq!(told(&client.finish(update.token, Ok(()))), "EDS +a");
    assert_eq!(held(&client, Kind::Cluster), "a@1");
}

#[test]
fn names_no_longer_asked_for_are_no_longer_held() {
    let mut client = connected();
    client.subscribe(Kind::Routes, names(&["r", "s"]));
    apply(
        &mut client,
        response(Kind::Routes, &[("r", "1"), ("s", "1")], &[]),
    );
    let request = client.subscribe(Kind::Routes, names(&["s"])).unwrap();
    assert_eq!(
        (
            told_one(&request).as_str(),
            held(&client, Kind::Routes).as_str()
        ),
        ("RDS -r", "s@1")
    );
    assert_eq!(client.subscribe(Kind::Routes, names(&["s"])), None);
    let gone = client.subscribe(Kind::Routes, names(&[])).unwrap();
    assert_eq!(told_one(&gone), "RDS -s");
    assert_eq!(told(&client.connect()), "CDS +* | LDS +*");
}

#[test]
fn subscriptions_before_the_first_stream_go_out_with_it() {
    let mut client = Client::new(node());
    assert_eq!(client.subscribe(Kind::Routes, names(&["r"])), None);
    assert_eq!(told(&client.connect()), "CDS +* | LDS +* | RDS +r");
}

#[test]
fn other_types_and_too_many_resources_end_the_stream() {
    let mut client = connected();
    let mut other = response(Kind::Cluster, &[], &[]);
    other.type_url = "type.googleapis.com/x".into();
    assert!(matches!(
        client.on_response(other),
        Err(ClientError::UnknownType(_))
    ));
    let mut many = response(Kind::Cluster, &[], &[]);
    many.resources = vec![Resource::default(); HELD_MAX + 1];
    let error = client.on_response(many).unwrap_err();
    assert_eq!(
        error,
        ClientError::TooManyResources {
            kind: Kind::Cluster
        }
    );
}

#[test]
fn on_demand_endpoints_come_unasked_and_names_come_and_go_one_by_one() {
    let mut client = connected();
    let endpoints = client.set_demand(true).unwrap();
    assert_eq!(told_one(&endpoints), "EDS +*");
    assert!(client.set_demand(true).is_none());
    let change = |client: &mut Client, added: &[&str], gone: &[&str]| {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let request = client.change(Kind::Routes, own(added), own(gone));
        request.as_ref().map(told_one).unwrap_or_default()
    };
    assert_eq!(change(&mut client, &["t/a", "t/b"], &[]), "RDS +t/a +t/b");
    assert_eq!(change(&mut client, &["t/a"], &["t/x"]), "");
    let answer = apply(&mut client, response(Kind::Cluster, &[("c", "1")], &[]));
    assert_eq!(told(&answer), "CDS ack");
    apply(&mut client, response(Kind::Endpoints, &[("c", "1")], &[]));
    apply(
        &mut client,
        response(Kind::Routes, &[("t/a", "1"), ("t/b", "1")], &[]),
    );
    assert_eq!(change(&mut client, &["t/c"], &["t/b"]), "RDS +t/c -t/b");
    assert_eq!(held(&client, Kind::Routes), "t/a@1");
    apply(&mut client, response(Kind::Cluster, &[], &["c"]));
    assert_eq!(
        held(&client, Kind::Endpoints),
        "",
        "they go with their cluster"
    );
}

#[test]
fn on_demand_a_reconnect_speaks_of_every_kind_even_without_a_table() {
    let mut client = connected();
    client.set_demand(true);
    client.change(Kind::Cluster, vec!["redis".into()], Vec::new());
    assert_eq!(
        told(&client.connect()),
        "CDS +* +redis | EDS +* | LDS +* | RDS"
    );
}

#[test]
fn a_server_that_knows_no_demand_is_asked_for_endpoints_by_name() {
    let mut client = connected();
    client.set_demand(true);
    apply(
        &mut client,
        response(Kind::Cluster, &[("a", "1"), ("b", "1")], &[]),
    );
    let back = client.set_demand(false).unwrap();
    assert_eq!(told_one(&back), "EDS +a +b -*");
    assert_eq!(
        told(&client.connect()),
        "CDS +* a@1 b@1 | EDS +a +b | LDS +*"
    );
}

#[test]
fn updates_of_what_is_held_do_not_count_towards_the_limit() {
    let mut client = connected();
    let names: Vec<String> = (0..HELD_MAX).map(|i| format!("c{i}")).collect();
    let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "1")).collect();
    apply(&mut client, response(Kind::Cluster, &all, &[]));
    assert!(
        client
            .on_response(response(Kind::Cluster, &all, &[]))
            .is_ok()
    );
    let one_more = response(Kind::Cluster, &[("one-more", "1")], &[]);
    assert!(client.on_response(one_more).is_err());
}
