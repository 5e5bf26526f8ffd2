//! Real streams against a real control plane: our own delta client, and a hand-written state-of-the-world one.

use std::collections::BTreeMap;
use std::time::Duration;

use phalanx_client::api::Status as Reach;
use phalanx_client::registry::to_wire;
use phalanx_proto::envoy::config::core::v3::Node as WireNode;
use phalanx_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient as AdsClient;
use phalanx_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use phalanx_proto::phalanx::registry::v1::RegisterRequest;
use phalanx_proto::phalanx::registry::v1::registry_client::RegistryClient;
use phalanx_xds::client::Client;
use phalanx_xds::{Kind, decode};
use prost_types::value::Kind as ValueKind;
use prost_types::{Struct, Value};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};

use crate::{Control, battle_instance, control};

impl Control {
    async fn register(&self, id: &str, version: &str) {
        let mut battle = battle_instance(id);
        battle.labels.insert("version".into(), version.into());
        let request = RegisterRequest {
            instance: Some(to_wire(&battle)),
            epoch: 1,
            ttl_ms: 30_000,
        };
        let mut registry = RegistryClient::connect(self.url()).await.unwrap();
        registry.register(request).await.unwrap();
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.running.xds_address())
    }

    pub async fn reach(&self, revision: u64) -> Reach {
        self.admin
            .status_within(Some(revision), Duration::from_secs(10))
            .await
            .unwrap()
    }
}

fn node(id: &str) -> WireNode {
    let text = |text: &str| Value {
        kind: Some(ValueKind::StringValue(text.into())),
    };
    let fields = [
        ("service", "match"),
        ("namespace", "default"),
        ("outbound", "127.0.0.4:15001"),
        ("instance", "m1"),
    ];
    let fields = fields
        .map(|(key, value)| (key.to_owned(), text(value)))
        .into();
    WireNode {
        id: id.into(),
        user_agent_name: "phalanx".into(),
        metadata: Some(Struct { fields }),
        ..WireNode::default()
    }
}

/// A data plane that holds what it is sent, and refuses bodies that contain a text.
struct Proxy {
    client: Client,
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    held: BTreeMap<(Kind, String), Vec<u8>>,
    refuses: Option<&'static str>,
}

impl Proxy {
    async fn connect(control: &Control, id: &str) -> Self {
        let mut client = Client::new(node(id));
        let (requests, stream) = mpsc::channel(64);
        for request in client.connect() {
            requests.send(request).await.unwrap();
        }
        let mut ads = AdsClient::connect(control.url()).await.unwrap();
        let responses = ads
            .delta_aggregated_resources(ReceiverStream::new(stream))
            .await
            .unwrap()
            .into_inner();
        Self {
            client,
            requests,
            responses,
            held: BTreeMap::new(),
            refuses: None,
        }
    }

    /// Takes responses until what it holds satisfies `done`.
    async fn until(
        &mut self,
        what: &str,
        done: impl Fn(&BTreeMap<(Kind, String), Vec<u8>>) -> bool,
    ) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        while !done(&self.held) {
            let response = tokio::time::timeout_at(deadline, self.responses.message()).await;
            let response = response
                .unwrap_or_else(|_| panic!("{what}: holds {:?}", self.held.keys()))
                .unwrap()
                .expect("stream ended");
            self.take(response).await;
        }
    }

    async fn take(&mut self, response: DeltaDiscoveryResponse) {
        let update = self.client.on_response(response).unwrap();
        let is_bad = |body: &[u8]| {
            self.refuses
                .is_some_and(|text| body.windows(text.len()).any(|w| w == text.as_bytes()))
        };
        let mut refused = Vec::new();
        for (name, _, body) in update.upserts {
            if is_bad(&body) {
                refused.push((name, "no such thing here".to_owned()));
            } else {
                self.held.insert((update.kind, name), body);
            }
        }
        for name in update.removed {
            self.held.remove(&(update.kind, name));
        }
        if update.kind == Kind::Listener
            && let Some(request) = self
                .client
                .subscribe(Kind::Routes, ["outbound".to_owned()].into())
        {
            self.requests.send(request).await.unwrap();
        }
        let applied = if refused.is_empty() {
            Ok(())
        } else {
            Err(refused)
        };
        for request in self.client.finish(update.token, applied) {
            self.requests.send(request).await.unwrap();
        }
    }

    /// Answers whatever comes, for as long as it lives.
    fn spawn(mut self) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            while let Ok(Some(response)) = self.responses.message().await {
                self.take(response).await;
            }
        })
    }
}

fn holds(held: &BTreeMap<(Kind, String), Vec<u8>>, kind: Kind, name: &str) -> bool {
    held.contains_key(&(kind, name.to_owned()))
}

/// Weights of the only rule of battle.
fn weights(held: &BTreeMap<(Kind, String), Vec<u8>>) -> Vec<u32> {
    use phalanx_model::resource::Action;
    let Some(body) = held.get(&(Kind::Routes, "outbound".to_owned())) else {
        return Vec::new();
    };
    let table = decode::routes("outbound", body).unwrap();
    let host = table
        .hosts
        .iter()
        .find(|host| host.domains.iter().any(|d| d == "battle"));
    match host
        .and_then(|host| host.rules.first())
        .map(|rule| &rule.action)
    {
        Some(Action::Forward(forward)) => forward.backends.iter().map(|b| b.weight).collect(),
        _ => Vec::new(),
    }
}

fn battle(v1: u32, v2: u32) -> String {
    let service = |name: &str, more: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  selector: {{app: battle{more}}}\n  ports: [{{port: 80, appProtocol: grpc}}]\n---\n"
        )
    };
    let services = format!(
        "{}{}{}",
        service("battle", ""),
        service("battle-v1", ", version: v1"),
        service("battle-v2", ", version: v2")
    );
    format!(
        "{services}{}",
        route(
            "split",
            &format!(
                "backendRefs: [{{name: battle-v1, port: 80, weight: {v1}}}, {{name: battle-v2, port: 80, weight: {v2}}}]"
            )
        )
    )
}

fn route(name: &str, rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{name: {name}}}\nspec:\n  parentRefs: [{{kind: Service, name: battle}}]\n  rules:\n  - {rule}\n---\n"
    )
}

#[tokio::test]
async fn a_delta_stream_gets_everything_and_a_changed_weight() {
    let control = control().await;
    control.apply(&battle(90, 10)).await;
    control.register("b1", "v1").await;
    let mut proxy = Proxy::connect(&control, "default/match/m1").await;
    let cluster = "outbound|80|battle-v1.default.svc.mesh";
    proxy
        .until("everything", |held| {
            holds(held, Kind::Listener, "outbound")
                && weights(held) == [90, 10]
                // Registered means stored; it is compiled a moment later.
                && held.get(&(Kind::Endpoints, cluster.to_owned())).is_some_and(|set| {
                    !decode::endpoints(cluster, set).unwrap().endpoints.is_empty()
                })
        })
        .await;
    let endpoints =
        decode::endpoints(cluster, &proxy.held[&(Kind::Endpoints, cluster.to_owned())]).unwrap();
    assert_eq!(
        (
            endpoints.endpoints.len(),
            endpoints.endpoints[0].version.as_str()
        ),
        (1, "v1")
    );

    let revision = control.apply(&battle(50, 50)).await;
    proxy
        .until("the new weight", |held| weights(held) == [50, 50])
        .await;
    let _serving = proxy.spawn();
    let reach = control.reach(revision).await;
    assert_eq!(
        (reach.proxies, reach.applied, reach.waiting.len()),
        (1, 1, 0),
        "{reach:?}"
    );
    assert!(reach.elapsed_ms.is_some_and(|ms| ms >= 0.0), "{reach:?}");
    let proxies = control.admin.proxies().await.unwrap().items;
    assert_eq!(
        (
            proxies[0].node.as_str(),
            proxies[0].protocol.as_str(),
            proxies[0].agent.as_str()
        ),
        ("default/match/m1", "delta", "phalanx")
    );
}

#[tokio::test]
async fn status_waits_for_every_proxy() {
    let control = control().await;
    control.apply(&battle(90, 10)).await;
    let quick = Proxy::connect(&control, "default/match/m1").await.spawn();
    let slow = Proxy::connect(&control, "default/match/m2").await;
    let poll = |wait| control.admin.status_within(None, wait);
    let reach = poll(Duration::from_millis(300)).await.unwrap();
    assert_eq!(
        (reach.proxies, reach.applied < 2, reach.elapsed_ms),
        (2, true, None),
        "{reach:?}"
    );
    assert!(
        reach.waiting.contains(&"default/match/m2".to_owned()),
        "{reach:?}"
    );
    let slow = slow.spawn();
    let reach = poll(Duration::from_secs(10)).await.unwrap();
    assert_eq!((reach.proxies, reach.applied), (2, 2), "{reach:?}");
    quick.abort();
    slow.abort();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while control.admin.status(None).await.unwrap().proxies > 0 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "proxies that went are still counted"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_refused_route_is_said_with_its_document_and_does_not_freeze_the_rest() {
    let control = control().await;
    control.apply(&battle(90, 10)).await;
    let mut proxy = Proxy::connect(&control, "default/match/m1").await;
    proxy.refuses = Some("POISON");
    proxy
        .until("the first routes", |held| weights(held) == [90, 10])
        .await;
    let _serving = proxy.spawn();
    control
        .reach(control.admin.status(None).await.unwrap().revision)
        .await;

    let poisoned = control.apply(&route("bad", "matches: [{method: {service: POISON}}]\n    backendRefs: [{name: battle-v1, port: 80}]")).await;
    let reach = control.reach(poisoned).await;
    assert_eq!(
        (reach.proxies, reach.applied, reach.elapsed_ms),
        (1, 0, None),
        "{reach:?}"
    );
    let [refusal] = reach.refused.as_slice() else {
        panic!("{reach:?}")
    };
    assert_eq!(
        (refusal.node.as_str(), refusal.rule.as_str()),
        ("default/match/m1", "GRPCRoute/default/bad")
    );
    assert!(
        refusal.message.contains("no such thing here"),
        "{refusal:?}"
    );

    // Another change reaches the proxy although the bad document is still stored.
    let revision = control.apply(&battle(10, 90)).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let proxies = control.admin.proxies().await.unwrap().items;
        if proxies[0].acked_revision >= revision {
            assert_eq!(proxies[0].refusals.len(), 1, "{proxies:?}");
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "frozen: {proxies:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // Corrected, it is whole again.
    let healed = control.apply(&route("bad", "matches: [{method: {service: arena.Battle}}]\n    backendRefs: [{name: battle-v1, port: 80}]")).await;
    let reach = control.reach(healed).await;
    assert_eq!((reach.applied, reach.refused.len()), (1, 0), "{reach:?}");
}

#[tokio::test]
async fn a_new_instance_reaches_proxies() {
    let control = control().await;
    control.apply(&battle(90, 10)).await;
    let mut proxy = Proxy::connect(&control, "default/match/m1").await;
    let cluster = "outbound|80|battle-v2.default.svc.mesh";
    proxy
        .until("an empty set", |held| holds(held, Kind::Endpoints, cluster))
        .await;
    control.register("b2", "v2").await;
    let has_one = |held: &BTreeMap<(Kind, String), Vec<u8>>| {
        decode::endpoints(cluster, &held[&(Kind::Endpoints, cluster.to_owned())])
            .unwrap()
            .endpoints
            .len()
            == 1
    };
    proxy.until("the instance", has_one).await;
}

#[tokio::test]
async fn state_of_the_world_is_served_too() {
    let control = control().await;
    let revision = control.apply(&battle(90, 10)).await;
    control.reach(revision).await;
    let (requests, stream) = mpsc::channel(16);
    let ask = |kind: Kind, nonce: &str, version: &str| DiscoveryRequest {
        node: Some(node("default/match/e1")),
        type_url: kind.type_url().into(),
        response_nonce: nonce.into(),
        version_info: version.into(),
        ..DiscoveryRequest::default()
    };
    requests.send(ask(Kind::Cluster, "", "")).await.unwrap();
    let mut ads = AdsClient::connect(control.url()).await.unwrap();
    let mut responses = ads
        .stream_aggregated_resources(ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    let first = tokio::time::timeout(Duration::from_secs(10), responses.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(
        (first.type_url.as_str(), first.resources.len()),
        (Kind::Cluster.type_url(), 3)
    );
    requests
        .send(ask(Kind::Cluster, &first.nonce, &first.version_info))
        .await
        .unwrap();
    control.apply("apiVersion: v1\nkind: Service\nmetadata: {name: more}\nspec:\n  selector: {app: more}\n  ports: [{port: 80}]\n").await;
    let second = tokio::time::timeout(Duration::from_secs(10), responses.message())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(second.resources.len(), 4);
    assert_eq!(
        control.admin.proxies().await.unwrap().items[0].protocol,
        "sotw"
    );
}

#[tokio::test]
async fn a_node_that_does_not_say_who_it_is_is_told_how() {
    let control = control().await;
    let mut ads = AdsClient::connect(control.url()).await.unwrap();
    for (node, holds) in [
        (None, "`node`"),
        (
            Some(WireNode {
                id: "x".into(),
                ..WireNode::default()
            }),
            "node.metadata.service",
        ),
    ] {
        let request = DeltaDiscoveryRequest {
            node,
            type_url: Kind::Cluster.type_url().into(),
            ..DeltaDiscoveryRequest::default()
        };
        let (requests, stream) = mpsc::channel(1);
        requests.send(request).await.unwrap();
        let outcome = ads
            .delta_aggregated_resources(ReceiverStream::new(stream))
            .await;
        let status = match outcome {
            Ok(stream) => stream.into_inner().message().await.unwrap_err(),
            Err(status) => status,
        };
        assert!(
            status.code() == Code::InvalidArgument && status.message().contains(holds),
            "{status:?}"
        );
    }
}

#[tokio::test]
async fn shutdown_ends_streams_so_that_clients_go_elsewhere() {
    let control = control().await;
    let mut proxy = Proxy::connect(&control, "default/match/m1").await;
    proxy
        .until("a listener", |held| holds(held, Kind::Listener, "outbound"))
        .await;
    let Control { running, .. } = control;
    running.shutdown().await;
    let ended = tokio::time::timeout(Duration::from_secs(10), async {
        while let Ok(Some(_)) = proxy.responses.message().await {}
    });
    ended.await.unwrap();
}

#[tokio::test]
async fn a_refusal_takes_a_canary_back_before_anybody_else_gets_the_change() {
    use phalanx_client::api::{ApplyRequest, CanaryTerms, File};
    let control = control().await;
    control.apply(&battle(90, 10)).await;
    let mut serving = Vec::new();
    for id in ["default/match/m1", "default/match/m2", "default/match/m3"] {
        let mut proxy = Proxy::connect(&control, id).await;
        proxy.refuses = Some("POISON");
        proxy
            .until("the first routes", |held| weights(held) == [90, 10])
            .await;
        serving.push(proxy.spawn());
    }
    let poison = route(
        "bad",
        "matches: [{method: {service: POISON}}]\n    backendRefs: [{name: battle-v1, port: 80}]",
    );
    let request = ApplyRequest {
        files: vec![File {
            name: "a.yaml".into(),
            text: poison,
        }],
        author: "ann".into(),
        canary: Some(CanaryTerms::default()),
        ..ApplyRequest::default()
    };
    let staged = control.admin.apply(&request).await.unwrap();
    let canary = staged.canary.expect("it is staged");
    assert_eq!((canary.nodes.len(), canary.concerned), (1, 3));

    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let end = loop {
        let status = control.admin.canary().await.unwrap();
        let refusing = control.admin.proxies().await.unwrap().items;
        let refusing = refusing.iter().filter(|p| !p.refusals.is_empty()).count();
        assert!(refusing <= 1, "{refusing} got it");
        if let (None, Some(end)) = (status.current, status.last) {
            break end;
        }
        assert!(tokio::time::Instant::now() < deadline, "undecided");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(
        (end.stage.as_str(), end.author.as_str()),
        ("back", "phalanx")
    );
    let told = [
        &canary.nodes[0].node,
        "GRPCRoute/default/bad",
        "no such thing here",
    ];
    assert!(
        told.iter().all(|part| end.reason.contains(*part)),
        "{end:?}"
    );
    let status = control.admin.status(None).await.unwrap();
    let reach = control.reach(status.revision).await;
    assert_eq!((reach.applied, reach.refused.len()), (3, 0), "{reach:?}");
    assert_eq!(
        control
            .admin
            .documents(None, None)
            .await
            .unwrap()
            .items
            .len(),
        4
    );
}
