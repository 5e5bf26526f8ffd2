use phalanx_proto::envoy::service::discovery::v3::DiscoveryRequest;

use phalanx_xds::server::Session;

use super::*;
use crate::snapshot::Compiler;
use crate::world::fixture::{Fixture, instance};

const BATTLE: &str = "battle.default.svc.mesh:9000";
const CLUSTER: &str = "outbound|9000|battle.default.svc.mesh";
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: battle}
spec: {selector: {app: battle}, ports: [{port: 9000, appProtocol: grpc}]}
---
apiVersion: v1
kind: Service
metadata: {name: raw}
spec: {selector: {app: raw}, ports: [{port: 7000, appProtocol: tcp}]}
";
const EDITS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: edits}
spec:
  parentRefs: [{kind: Service, name: battle}]
  rules:
  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-env, value: a}]}}]
    backendRefs: [{name: battle, port: 9000}]
";

fn fixture() -> Fixture {
    Fixture::yaml(SERVICES).with(instance("battle", "b1", "127.0.0.1:1", &[("grpc", 9000)]))
}

fn published(fixture: &Fixture) -> Arc<Published> {
    Arc::new(Compiler::default().compile(Arc::new(fixture.world())))
}

fn node() -> Node {
    Node {
        id: "default/match/1".into(),
        service: ServiceName::new("default", "match"),
        version: String::new(),
        zone: String::new(),
        instance: String::new(),
        outbound: None,
        agent: "gRPC Go 1".into(),
        tls: Default::default(),
        edge: None,
        udp: Vec::new(),
    }
}

struct Stream {
    session: Session,
    part: Proxyless,
}

impl Stream {
    fn new() -> Self {
        Self {
            session: Session::sotw(),
            part: Proxyless::of(&node()).unwrap(),
        }
    }

    fn ask(&mut self, kind: Kind, names: &[&str]) -> &mut Self {
        let request = DiscoveryRequest {
            type_url: kind.type_url().into(),
            resource_names: names.iter().map(|n| (*n).to_owned()).collect(),
            ..DiscoveryRequest::default()
        };
        self.session.on_request(request).unwrap();
        self
    }

    fn names(&mut self, published: &Published, kind: Kind) -> Vec<String> {
        let snapshot = self.part.snapshot(published, &node(), &self.session);
        snapshot.iter(kind).map(|r| r.name.clone()).collect()
    }
}

#[test]
fn a_target_is_found_by_every_name_of_its_service() {
    let published = published(&fixture());
    let names = [
        "battle",
        "battle:9000",
        "battle.default",
        "battle.default.svc.mesh",
        BATTLE,
    ];
    let mut stream = Stream::new();
    stream.ask(Kind::Listener, &names);
    let snapshot = stream.part.snapshot(&published, &node(), &stream.session);
    for name in names {
        let listener = snapshot.get(Kind::Listener, name).unwrap();
        assert_eq!(listener.refs, [BATTLE], "{name}");
    }
}

#[test]
fn what_does_not_exist_or_speaks_no_http_is_met_with_silence() {
    let published = published(&fixture());
    let mut stream = Stream::new();
    stream.ask(
        Kind::Listener,
        &["nobody", "battle:1", "raw", "raw.default.svc.mesh:7000", ""],
    );
    stream.ask(
        Kind::Routes,
        &["outbound", "battle", "nobody.default.svc.mesh:1"],
    );
    assert!(stream.names(&published, Kind::Listener).is_empty());
    assert!(stream.names(&published, Kind::Routes).is_empty());
}

#[test]
fn a_cluster_stays_for_as_long_as_the_client_asks_for_it() {
    let before = published(&fixture());
    let after = published(&Fixture::default());
    let mut stream = Stream::new();
    stream.ask(Kind::Cluster, &[CLUSTER, INVALID_BACKEND]);
    stream.ask(Kind::Endpoints, &[CLUSTER]);
    assert_eq!(
        stream.names(&before, Kind::Cluster),
        [INVALID_BACKEND, CLUSTER]
    );
    assert_eq!(
        stream.names(&after, Kind::Cluster),
        [INVALID_BACKEND, CLUSTER]
    );
    assert_eq!(stream.names(&after, Kind::Endpoints), [CLUSTER]);
    stream.ask(Kind::Cluster, &[INVALID_BACKEND]);
    assert_eq!(stream.names(&after, Kind::Cluster), [INVALID_BACKEND]);
}

#[test]
fn a_resource_is_encoded_once_for_all_streams_and_changes() {
    let mut compiler = Compiler::default();
    let one = compiler.compile(Arc::new(fixture().world()));
    let other = fixture().and_yaml(
        "apiVersion: v1\nkind: Service\nmetadata: {name: new}\nspec: {ports: [{port: 1}]}\n",
    );
    let other = compiler.compile(Arc::new(other.world()));
    let mut streams = [Stream::new(), Stream::new()];
    let mut made = Vec::new();
    for (stream, published) in streams.iter_mut().zip([&one, &other]) {
        stream.ask(Kind::Listener, &[BATTLE]);
        stream.ask(Kind::Routes, &[BATTLE]);
        stream.ask(Kind::Cluster, &[CLUSTER]);
        stream.ask(Kind::Endpoints, &[CLUSTER]);
        made.push(stream.part.snapshot(published, &node(), &stream.session));
    }
    for (kind, name) in [
        (Kind::Listener, BATTLE),
        (Kind::Routes, BATTLE),
        (Kind::Cluster, CLUSTER),
        (Kind::Endpoints, CLUSTER),
    ] {
        let of = |i: usize| made[i].get(kind, name).unwrap();
        assert!(Arc::ptr_eq(of(0), of(1)), "{kind}");
    }
}

#[test]
fn a_rule_that_can_not_be_followed_is_told_to_those_who_asked_for_it() {
    let published = published(&fixture().and_yaml(EDITS));
    let mut stream = Stream::new();
    stream.ask(Kind::Listener, &[BATTLE]);
    stream.names(&published, Kind::Listener);
    assert!(stream.part.unmet().is_empty());
    stream.ask(Kind::Routes, &[BATTLE]);
    stream.names(&published, Kind::Routes);
    let [unmet] = stream.part.unmet() else {
        panic!("{:?}", stream.part.unmet())
    };
    assert_eq!(unmet.rule, "HTTPRoute/default/edits/0");
    assert!(
        unmet.message.contains("edit headers") && unmet.since_revision > 0,
        "{unmet:?}"
    );
}

#[test]
fn a_server_gets_its_own_listener_anew_only_when_its_policies_change() {
    let name = format!("{SERVER_LISTENER}0.0.0.0:50051");
    let policy = |service: &str| {
        format!(
            "apiVersion: phalanx.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec: {{targetRefs: [{{kind: Service, name: {service}}}], action: Deny, rules: [{{}}]}}\n"
        )
    };
    let mut stream = Stream::new();
    stream.ask(
        Kind::Listener,
        &[&name, &format!("{SERVER_LISTENER}nowhere")],
    );
    let mut versions = Vec::new();
    for fixture in [
        fixture(),
        fixture().and_yaml(&policy("battle")),
        fixture().and_yaml(&policy("match")),
    ] {
        let snapshot = stream
            .part
            .snapshot(&published(&fixture), &node(), &stream.session);
        assert_eq!(snapshot.len(Kind::Listener), 1);
        versions.push(snapshot.get(Kind::Listener, &name).unwrap().version.clone());
    }
    assert_eq!(versions[0], versions[1]);
    assert_ne!(versions[0], versions[2]);
}

#[test]
fn a_server_without_certificates_knows_nobody_and_says_so() {
    let policy = "apiVersion: phalanx.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {targetRefs: [{kind: Service, name: match}], action: Allow, rules: [{from: [{services: [gateway]}]}]}\n";
    let name = format!("{SERVER_LISTENER}0.0.0.0:50051");
    let published = published(&fixture().and_yaml(policy));
    let told = |has_providers| {
        let mut stream = Stream::new();
        stream.ask(Kind::Listener, &[&name]);
        let mut node = node();
        node.tls.has_providers = has_providers;
        let snapshot = stream.part.snapshot(&published, &node, &stream.session);
        let body = snapshot.get(Kind::Listener, &name).unwrap().body.clone();
        let text = String::from_utf8_lossy(&body).into_owned();
        let unmet = stream.part.unmet().len();
        (
            text.contains("ns/default/sa/gateway"),
            text.contains("DownstreamTlsContext"),
            unmet,
        )
    };
    assert_eq!(told(true), (true, true, 0));
    assert_eq!(told(false), (false, false, 1));
}

#[test]
fn a_client_with_certificates_uses_them_where_every_endpoint_takes_them() {
    let slice = |label: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, labels: {{kubernetes.io/service-name: plain{label}}}}}\naddressType: IPv4\nports: [{{port: 50051}}]\nendpoints: [{{addresses: [127.0.0.9]}}]\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: plain}}\nspec: {{ports: [{{port: 80, appProtocol: grpc}}]}}\n"
        )
    };
    let cluster = "outbound|80|plain.default.svc.mesh";
    let is_secure = |label: &str, has_providers| {
        let published = published(&Fixture::yaml(&slice(label)));
        let mut stream = Stream::new();
        stream.ask(Kind::Cluster, &[cluster]);
        let mut node = node();
        node.tls.has_providers = has_providers;
        let snapshot = stream.part.snapshot(&published, &node, &stream.session);
        let body = snapshot.get(Kind::Cluster, cluster).unwrap().body.clone();
        String::from_utf8_lossy(&body).contains("UpstreamTlsContext")
    };
    let mutual = ", phalanx.dev/tls: mutual";
    assert!(is_secure(mutual, true));
    assert!(!is_secure(mutual, false) && !is_secure("", true));
}
