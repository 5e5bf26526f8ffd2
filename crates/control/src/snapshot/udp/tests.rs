//! Which datagrams go where, at edges and inside the mesh.

use phalanx_model::Instance;
use phalanx_model::instance::InstancePort;
use phalanx_xds::Kind;

use super::*;
use crate::snapshot::tests::node;
use crate::snapshot::{Compiler, Own};
use crate::world::fixture::{Fixture, instance};

const ROOMS: &str = "
apiVersion: v1
kind: Service
metadata: {name: room}
spec: {selector: {app: room}, ports: [{name: play, port: 7000, protocol: UDP}, {name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: next}
spec: {ports: [{port: 7000, appProtocol: udp}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: phalanx
  listeners:
  - {name: web, port: 7000, protocol: HTTP}
  - {name: play, port: 7000, protocol: UDP}
---
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {name: room}
spec: {targetRefs: [{kind: Service, name: room}], udp: {idleTimeout: 10s, token: {suffix: 4}, maxSessions: 50, maxSessionsPerSource: 2}}
";

fn route(name: &str, parents: &str, backends: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1alpha2\nkind: UDPRoute\nmetadata: {{name: {name}}}\nspec: {{parentRefs: [{parents}], rules: [{{backendRefs: [{backends}]}}]}}\n"
    )
}

const AT_EDGE: &str = "{name: edge}";
const AT_ROOM: &str = "{kind: Service, group: '', name: room, port: 7000}";
const SPLIT: &str = "{name: room, port: 7000, weight: 3}, {name: next, port: 7000, weight: 1}";

fn room(id: &str, address: &str, token: &str) -> Instance {
    let mut room = instance("room", id, "10.0.0.1:15006", &[("http", 8080)]);
    room.ports.push(InstancePort {
        name: "play".into(),
        number: 7000,
        address: address.parse().unwrap(),
        protocol: Protocol::Udp,
    });
    room.mutual_tls = true;
    room.labels.insert("phalanx.dev/token".into(), token.into());
    room
}

fn mesh(texts: &[String]) -> Mesh {
    let fixture = texts
        .iter()
        .fold(Fixture::yaml(ROOMS), |f, t| f.and_yaml(t));
    Mesh::compile(&fixture.world())
}

fn at(mesh: &Mesh, listens: &str) -> Vec<UdpPort> {
    let node = Node {
        udp: vec![(
            "127.0.0.1:7000".parse().unwrap(),
            ServiceName::new("default", listens),
            7000,
        )],
        ..node()
    };
    let port = |listener: Listener| match listener.protocol {
        ListenerProtocol::Udp(port) => port,
        other => panic!("{other:?}"),
    };
    mesh.udp.listeners(&node).into_iter().map(port).collect()
}

/// `weight cluster`
fn shares(port: &UdpPort) -> Vec<String> {
    let cluster = |share: &Share| share.cluster.as_ref().map(ToString::to_string);
    let share = |share: &Share| format!("{} {}", share.weight, cluster(share).unwrap_or_default());
    port.backends.iter().map(share).collect()
}

fn messages(mesh: &Mesh) -> Vec<String> {
    let findings = mesh.findings.iter();
    findings
        .map(|finding| format!("{}: {}", finding.document, finding.message))
        .collect()
}

#[test]
fn datagrams_to_a_service_go_to_itself_or_as_the_oldest_route_says() {
    let plain = mesh(&[]);
    let [port] = &at(&plain, "room")[..] else {
        panic!("one was asked for");
    };
    assert_eq!(port.name, "Service/default/room");
    assert_eq!(shares(port), ["1 outbound|7000|room.default.svc.mesh"]);
    assert_eq!(port.rules.limits.sessions, 50);
    assert_eq!(
        port.rules.limits.sessions_per_source, 50,
        "the application is the only source"
    );
    let led = mesh(&[
        route("split", AT_ROOM, SPLIT),
        route("late", AT_ROOM, "{name: next, port: 7000}"),
    ]);
    let port = &at(&led, "room")[0];
    assert_eq!(port.name, "UDPRoute/default/split");
    assert_eq!(
        shares(port),
        [
            "3 outbound|7000|room.default.svc.mesh",
            "1 outbound|7000|next.default.svc.mesh"
        ]
    );
    assert_eq!(
        messages(&led),
        [
            "UDPRoute/default/late: conflicted: UDPRoute/default/split is older and has port 7000 of Service default/room already"
        ]
    );
    assert_eq!(shares(&at(&led, "nobody")[0]), [""; 0]);
}

#[test]
fn a_gateway_takes_datagrams_where_it_takes_connections_and_by_the_rules_of_the_first_backend() {
    let mesh = mesh(&[
        route("split", AT_EDGE, SPLIT),
        route("late", AT_EDGE, "{name: next, port: 7000}"),
    ]);
    assert_eq!(
        messages(&mesh),
        [
            "UDPRoute/default/late: conflicted: UDPRoute/default/split is older and has listener `play` of Gateway default/edge already"
        ]
    );
    let fixture = Fixture::yaml(ROOMS).and_yaml(&route("split", AT_EDGE, SPLIT));
    let published = Compiler::default().compile(fixture.world().into());
    let edge = Node {
        service: ServiceName::new("default", "edge"),
        edge: Some(Default::default()),
        ..node()
    };
    let snapshot = crate::snapshot::AtGateway::default().snapshot(&published, &edge);
    let names: Vec<&String> = snapshot.resources(Kind::Listener).keys().collect();
    assert_eq!(
        names,
        [
            "gateway/default/edge/0.0.0.0:7000",
            "gateway/default/edge/udp/0.0.0.0:7000"
        ]
    );
    let clusters: Vec<&String> = snapshot.resources(Kind::Cluster).keys().collect();
    assert_eq!(
        clusters,
        [
            "outbound|7000|next.default.svc.mesh",
            "outbound|7000|room.default.svc.mesh"
        ]
    );
    let sent = &snapshot.resources(Kind::Listener)["gateway/default/edge/udp/0.0.0.0:7000"];
    let listener = phalanx_xds::decode::listener(&sent.name, &sent.body).unwrap();
    let ListenerProtocol::Udp(port) = listener.protocol else {
        panic!("it is for datagrams");
    };
    assert_eq!(port.rules.limits.sessions_per_source, 2);
    assert_eq!(port.rules.token.map(|token| token.len), Some(4));
}

const COLOURS: &str = "
apiVersion: phalanx.dev/v1alpha1
kind: ColourPolicy
metadata: {name: colours}
spec:
  env:
    networks: [{cidr: 10.1.0.0/16, value: dev-li}, {cidr: 10.1.9.0/24, value: prod}]
    default: prod
  lanes: [{colour: dev-li, selector: {lane: dev-li}}]
";

#[test]
fn at_an_edge_datagrams_of_a_network_go_to_the_lane_of_its_colour() {
    let gateway = |of_lane: bool| {
        let mut one = room("room-1", "10.0.0.1:7000", "aa");
        one.labels.insert("app".into(), "room".into());
        let mut other = room("room-2", "10.0.0.2:7000", "bb");
        other.labels.insert("app".into(), "room".into());
        if of_lane {
            other.labels.insert("lane".into(), "dev-li".into());
        }
        let fixture = Fixture::yaml(ROOMS)
            .and_yaml(&route("split", AT_EDGE, SPLIT))
            .and_yaml(COLOURS)
            .with(one)
            .with(other);
        let published = Compiler::default().compile(fixture.world().into());
        let edge = Node {
            service: ServiceName::new("default", "edge"),
            edge: Some(Default::default()),
            ..node()
        };
        let snapshot = crate::snapshot::AtGateway::default().snapshot(&published, &edge);
        let sent = &snapshot.resources(Kind::Listener)["gateway/default/edge/udp/0.0.0.0:7000"];
        let listener = phalanx_xds::decode::listener(&sent.name, &sent.body).unwrap();
        let clusters = snapshot.resources(Kind::Cluster);
        let has_lane = clusters.contains_key("outbound|7000|dev-li|room.default.svc.mesh");
        match listener.protocol {
            ListenerProtocol::Udp(port) => (port, has_lane),
            _ => panic!("it is for datagrams"),
        }
    };
    let (port, has_lane) = gateway(true);
    let text = |backends: &[Share]| {
        let of_these = UdpPort {
            backends: backends.to_vec(),
            ..port.clone()
        };
        shares(&of_these)
    };
    let baseline = [
        "3 outbound|7000|room.default.svc.mesh",
        "1 outbound|7000|next.default.svc.mesh",
    ];
    assert_eq!(text(&port.backends), baseline);
    let of_sources: Vec<_> = port
        .by_source
        .iter()
        .map(|(network, backends)| (network.to_string(), text(backends)))
        .collect();
    assert_eq!(
        of_sources,
        [
            (
                "10.1.0.0/16".to_owned(),
                vec!["3 outbound|7000|dev-li|room.default.svc.mesh".to_owned()]
            ),
            ("10.1.9.0/24".to_owned(), baseline.map(str::to_owned).into()),
            ("0.0.0.0/0".to_owned(), baseline.map(str::to_owned).into()),
            ("::/0".to_owned(), baseline.map(str::to_owned).into()),
        ]
    );
    assert!(has_lane);
    let (port, has_lane) = gateway(false);
    assert!(port.by_source.is_empty() && !has_lane);
}

#[test]
fn what_does_not_fit_together_is_told() {
    let http = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: web}\nspec: {parentRefs: [{kind: Service, group: '', name: next, port: 7000}], rules: [{backendRefs: [{name: next, port: 7000}]}]}\n";
    let policy = "apiVersion: phalanx.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {name: web}\nspec: {targetRefs: [{kind: Service, name: web}], udp: {}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";
    let mesh = mesh(&[
        route("tcp", AT_EDGE, "{name: room, port: 80}"),
        route("at-tcp", &AT_ROOM.replace("7000", "80"), SPLIT),
        http.into(),
        policy.into(),
    ]);
    let told = messages(&mesh);
    for expected in [
        "UDPRoute/default/tcp: backend Service default/room takes no datagrams on port 80",
        "UDPRoute/default/at-tcp: port 80 of Service default/room takes no datagrams",
        "HTTPRoute/default/web: port 7000 of Service default/next takes datagrams",
        "BackendPolicy/default/web: `udp` says nothing",
    ] {
        assert!(
            told.iter().any(|told| told.starts_with(expected)),
            "{expected}: {told:#?}"
        );
    }
}

#[test]
fn an_endpoint_for_datagrams_is_the_application_itself_and_never_its_other_port() {
    let fixture = Fixture::yaml(ROOMS)
        .with(room("a", "10.0.0.1:7000", "0A0b"))
        .with(room("b", "10.0.0.2:7000", "ff"));
    let mesh = Mesh::compile(&fixture.world());
    let cluster = |port| ClusterName::outbound(ServiceName::new("default", "room"), port);
    let endpoints = |port| &mesh.assignments[&cluster(port)].endpoints;
    let line = |e: &phalanx_model::resource::Endpoint| {
        format!("{} {} {} {}", e.address, e.datagrams, e.token, e.mutual_tls)
    };
    let lines = |port| endpoints(port).iter().map(line).collect::<Vec<_>>();
    assert_eq!(
        lines(7000),
        [
            "10.0.0.1:7000 true 0a0b false",
            "10.0.0.2:7000 true ff false"
        ]
    );
    assert_eq!(lines(80), ["10.0.0.1:15006 false  true"]);
    let udp = &mesh.clusters[&cluster(7000)];
    assert!(udp.tls.is_none());
    assert_eq!(udp.circuit_breaker.max_connections, 50);
}

#[test]
fn a_node_gets_its_sockets_and_what_they_lead_to() {
    let fixture = Fixture::yaml(ROOMS)
        .and_yaml(&route("split", AT_ROOM, SPLIT))
        .with(room("a", "10.0.0.1:7000", ""));
    let published = Compiler::default().compile(fixture.world().into());
    let node = Node {
        udp: vec![(
            "127.0.0.1:7000".parse().unwrap(),
            ServiceName::new("default", "room"),
            7000,
        )],
        ..node()
    };
    let nothing = phalanx_xds::Snapshot::from_kinds(1, Kind::ALL.map(|_| Default::default()));
    let snapshot = Own::default().add(&nothing, &published, &node, None);
    let names = |kind| snapshot.resources(kind).keys().cloned().collect::<Vec<_>>();
    assert!(names(Kind::Listener).contains(&"udp/127.0.0.1:7000".to_owned()));
    for kind in [Kind::Cluster, Kind::Endpoints] {
        assert_eq!(
            names(kind),
            [
                "outbound|7000|next.default.svc.mesh",
                "outbound|7000|room.default.svc.mesh"
            ]
        );
    }
}
