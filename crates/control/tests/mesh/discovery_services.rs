//! The other discovery services on the wire: one kind each, load reports, client status; and what hostile peers get.

use std::time::Duration;

use phalanx_proto::envoy::config::core::v3::{Locality, Node};
use phalanx_proto::envoy::config::endpoint::v3::{ClusterStats, UpstreamLocalityStats};
use phalanx_proto::envoy::service::cluster::v3::cluster_discovery_service_client::ClusterDiscoveryServiceClient;
use phalanx_proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient as AdsClient;
use phalanx_proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
};
use phalanx_proto::envoy::service::endpoint::v3::endpoint_discovery_service_client::EndpointDiscoveryServiceClient;
use phalanx_proto::envoy::service::listener::v3::listener_discovery_service_client::ListenerDiscoveryServiceClient;
use phalanx_proto::envoy::service::load_stats::v3::LoadStatsRequest;
use phalanx_proto::envoy::service::load_stats::v3::load_reporting_service_client::LoadReportingServiceClient;
use phalanx_proto::envoy::service::route::v3::route_discovery_service_client::RouteDiscoveryServiceClient;
use phalanx_proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use phalanx_proto::envoy::service::status::v3::client_status_discovery_service_client::ClientStatusDiscoveryServiceClient;
use phalanx_proto::envoy::service::status::v3::{
    ClientStatusRequest, ClientStatusResponse, ConfigStatus,
};
use phalanx_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use phalanx_proto::envoy::r#type::matcher::v3::{NodeMatcher, StringMatcher};
use phalanx_proto::google::rpc::Status as WireStatus;
use phalanx_xds::Kind;
use prost_types::value::Kind as Value;
use prost_types::{Struct, Value as WireValue};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::{Control, control};

const MAX: Duration = Duration::from_secs(10);
const SHOP: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec:\n  selector: {app: shop}\n  ports: [{port: 80, appProtocol: http}]\n";
const MORE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: more}\nspec:\n  selector: {app: more}\n  ports: [{port: 80, appProtocol: http}]\n";
const CLUSTER: &str = "outbound|80|shop.default.svc.mesh";

fn node(id: &str, extra: &[(&str, &str)]) -> Node {
    let base = [
        ("service", "match"),
        ("namespace", "default"),
        ("outbound", "127.0.0.4:15001"),
    ];
    let text = |(key, value): &(&str, &str)| {
        let kind = Some(Value::StringValue((*value).to_owned()));
        ((*key).to_owned(), WireValue { kind })
    };
    Node {
        id: id.into(),
        user_agent_name: "envoy".into(),
        metadata: Some(Struct {
            fields: base.iter().chain(extra).map(text).collect(),
        }),
        ..Node::default()
    }
}

fn ask(kind: Kind, names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(node("default/match/e1", &[])),
        type_url: kind.type_url().into(),
        resource_names_subscribe: names.iter().map(|n| (*n).to_owned()).collect(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// A delta stream, whatever the service.
struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    async fn ads(control: &Control, first: DeltaDiscoveryRequest) -> Self {
        let (requests, stream) = mpsc::channel(16);
        requests.send(first).await.unwrap();
        let mut ads = AdsClient::connect(control.url()).await.unwrap();
        let responses = ads
            .delta_aggregated_resources(ReceiverStream::new(stream))
            .await
            .unwrap();
        Self {
            requests,
            responses: responses.into_inner(),
        }
    }

    async fn of(control: &Control, kind: Kind, first: DeltaDiscoveryRequest) -> Self {
        let (requests, stream) = mpsc::channel(16);
        requests.send(first).await.unwrap();
        let (url, stream) = (control.url(), ReceiverStream::new(stream));
        let responses = match kind {
            Kind::Cluster => {
                let mut client = ClusterDiscoveryServiceClient::connect(url).await.unwrap();
                client.delta_clusters(stream).await
            }
            Kind::Endpoints => {
                let mut client = EndpointDiscoveryServiceClient::connect(url).await.unwrap();
                client.delta_endpoints(stream).await
            }
            Kind::Listener => {
                let mut client = ListenerDiscoveryServiceClient::connect(url).await.unwrap();
                client.delta_listeners(stream).await
            }
            Kind::Routes => {
                let mut client = RouteDiscoveryServiceClient::connect(url).await.unwrap();
                client.delta_routes(stream).await
            }
            Kind::Secret => {
                let mut client = SecretDiscoveryServiceClient::connect(url).await.unwrap();
                client.delta_secrets(stream).await
            }
        };
        Self {
            requests,
            responses: responses.unwrap().into_inner(),
        }
    }

    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let next = tokio::time::timeout(MAX, self.responses.message()).await;
        Ok(next.expect("nothing came")?.expect("the stream ended"))
    }

    async fn is_silent(&mut self) -> bool {
        let next = tokio::time::timeout(Duration::from_millis(300), self.responses.message());
        next.await.is_err()
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let error_detail = error.map(|message| WireStatus {
            code: 13,
            message: message.into(),
            ..WireStatus::default()
        });
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(answer).await.unwrap();
    }
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let mut names: Vec<&str> = response.resources.iter().map(|r| r.name.as_str()).collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn each_kind_has_a_service_and_a_node_with_many_streams_is_one() {
    let control = control().await;
    let revision = control.apply(SHOP).await;
    control.reach(revision).await;
    let plain = |names: &[&str]| DeltaDiscoveryRequest {
        type_url: String::new(),
        ..ask(Kind::Cluster, names)
    };
    let mut streams = Vec::new();
    for (kind, asked) in [
        (Kind::Cluster, &[][..]),
        (Kind::Endpoints, &[CLUSTER]),
        (Kind::Listener, &[]),
        (Kind::Routes, &["outbound"]),
    ] {
        let mut stream = Stream::of(&control, kind, plain(asked)).await;
        let response = stream.next().await.unwrap();
        assert_eq!(response.type_url, kind.type_url());
        assert_eq!(response.resources.len(), 1, "{kind}");
        streams.push((stream, response));
    }
    let mut secrets = Stream::of(&control, Kind::Secret, plain(&["cert"])).await;
    assert!(secrets.is_silent().await, "there is no secret yet");
    let status = control.admin.status(None).await.unwrap();
    assert_eq!((status.proxies, status.applied), (1, 0), "{status:?}");
    for (index, (stream, response)) in streams.iter().enumerate() {
        let before = control.admin.status(None).await.unwrap();
        assert_eq!((before.proxies, before.applied), (1, 0), "after {index}");
        stream.answer(response, None).await;
    }
    let reach = control.reach(revision).await;
    assert_eq!((reach.proxies, reach.applied), (1, 1), "{reach:?}");
    assert_eq!(control.admin.proxies().await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn resources_for_separate_streams_say_where_the_others_come_from() {
    let control = control().await;
    let revision = control.apply(SHOP).await;
    control.reach(revision).await;
    let told = [("xds_cluster", "the-control-plane")];
    for kind in [Kind::Cluster, Kind::Listener] {
        let request = DeltaDiscoveryRequest {
            node: Some(node("default/match/e1", &told)),
            ..ask(kind, &[])
        };
        let mut stream = Stream::of(&control, kind, request).await;
        let response = stream.next().await.unwrap();
        let body = &response.resources[0].resource.as_ref().unwrap().value;
        assert!(String::from_utf8_lossy(body).contains("the-control-plane"));
    }
    let wrong = DeltaDiscoveryRequest {
        node: Some(node("default/match/e1", &[("xds_cluster", "")])),
        ..ask(Kind::Cluster, &[])
    };
    let refused = Stream::of(&control, Kind::Cluster, wrong)
        .await
        .next()
        .await;
    let refused = refused.unwrap_err();
    assert!(refused.message().contains("xds_cluster"), "{refused}");
}

#[tokio::test]
async fn polling_and_other_kinds_are_refused_by_name() {
    let control = control().await;
    let mut clusters = ClusterDiscoveryServiceClient::connect(control.url())
        .await
        .unwrap();
    let refused = clusters.fetch_clusters(DiscoveryRequest::default()).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("FetchClusters"), "{refused}");
    let mut stream = Stream::of(&control, Kind::Cluster, ask(Kind::Routes, &["outbound"])).await;
    let refused = stream.next().await.unwrap_err();
    assert!(refused.message().contains("CDS alone"), "{refused}");
}

#[tokio::test]
async fn a_type_that_is_not_served_does_not_break_the_others() {
    let control = control().await;
    let revision = control.apply(SHOP).await;
    control.reach(revision).await;
    let runtime = DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/envoy.service.runtime.v3.Runtime".into(),
        ..ask(Kind::Cluster, &["rtds"])
    };
    let mut stream = Stream::ads(&control, runtime).await;
    stream.requests.send(ask(Kind::Cluster, &[])).await.unwrap();
    assert_eq!(names(&stream.next().await.unwrap()), [CLUSTER]);
    let status = status_of(&control, "default/match/e1").await.unwrap();
    let unserved = &status.config[0].generic_xds_configs;
    let told = unserved.iter().any(|c| {
        let error = c.error_state.as_ref();
        c.type_url.ends_with("Runtime") && error.is_some_and(|e| e.details.contains("not served"))
    });
    assert!(told, "{unserved:?}");
}

#[tokio::test]
async fn who_refused_and_reconnects_is_not_sent_the_same_bytes_first_but_who_starts_anew_is() {
    let control = control().await;
    let revision = control.apply(SHOP).await;
    control.reach(revision).await;
    let mut stream = Stream::ads(&control, ask(Kind::Cluster, &[])).await;
    let first = stream.next().await.unwrap();
    stream.answer(&first, Some("no such policy")).await;
    until(&control, |status| !status.refused.is_empty()).await;
    drop(stream);
    let revision = control.apply(MORE).await;
    let back = DeltaDiscoveryRequest {
        initial_resource_versions: [("older".to_owned(), "1".to_owned())].into(),
        ..ask(Kind::Cluster, &[])
    };
    let mut stream = Stream::ads(&control, back.clone()).await;
    let again = stream.next().await.unwrap();
    assert_eq!(names(&again), ["outbound|80|more.default.svc.mesh"]);
    stream.answer(&again, None).await;
    until(&control, |status| {
        status.revision >= revision && status.refused.len() == 1
    })
    .await;
    // Another node is not concerned.
    let other = DeltaDiscoveryRequest {
        node: Some(node("default/match/e2", &[])),
        ..back.clone()
    };
    let mut other = Stream::ads(&control, other).await;
    assert_eq!(other.next().await.unwrap().resources.len(), 2);
    // A process that holds nothing may have been cured of what made it refuse.
    drop(stream);
    for request in [ask(Kind::Cluster, &[]), back] {
        let mut anew = Stream::ads(&control, request).await;
        assert_eq!(anew.next().await.unwrap().resources.len(), 2);
    }
}

#[tokio::test]
async fn client_status_tells_each_resource_as_it_is() {
    let control = control().await;
    let revision = control.apply(SHOP).await;
    control.reach(revision).await;
    let mut stream = Stream::ads(&control, ask(Kind::Cluster, &[])).await;
    let first = stream.next().await.unwrap();
    assert_eq!(
        told(&control).await,
        [(CLUSTER.to_owned(), ConfigStatus::Stale, String::new())]
    );
    stream.answer(&first, None).await;
    let version = first.resources[0].version.clone();
    let synced = [(CLUSTER.to_owned(), ConfigStatus::Synced, version)];
    eventually(async || (told(&control).await == synced).then_some(())).await;
    let subscribe = ask(Kind::Endpoints, &[CLUSTER, "nowhere"]);
    stream.requests.send(subscribe).await.unwrap();
    let endpoints = stream.next().await.unwrap();
    stream.answer(&endpoints, Some("no")).await;
    eventually(async || {
        let told = told(&control).await;
        let of = |name: &str, status| told.iter().any(|t| t.0 == name && t.1 == status);
        (of(CLUSTER, ConfigStatus::Error) && of("nowhere", ConfigStatus::NotSent)).then_some(())
    })
    .await;
    let status = status_of(&control, "default/match/e1").await.unwrap();
    let error = status.config[0]
        .generic_xds_configs
        .iter()
        .find_map(|config| config.error_state.clone())
        .unwrap();
    assert_eq!(
        (error.details.as_str(), error.version_info),
        ("no", endpoints.resources[0].version.clone())
    );
    assert!(
        status_of(&control, "nobody")
            .await
            .unwrap()
            .config
            .is_empty()
    );
}

#[tokio::test]
async fn client_status_takes_exact_node_ids_only_and_says_so() {
    let control = control().await;
    let mut csds = ClientStatusDiscoveryServiceClient::connect(control.url())
        .await
        .unwrap();
    let request = ClientStatusRequest {
        node_matchers: vec![NodeMatcher {
            node_id: Some(StringMatcher {
                match_pattern: Some(MatchPattern::Prefix("default/".into())),
                ..StringMatcher::default()
            }),
            ..NodeMatcher::default()
        }],
        ..ClientStatusRequest::default()
    };
    let refused = csds.fetch_client_status(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("node_id.prefix"), "{refused}");
    // Over a stream, one answer for each question.
    let (requests, stream) = mpsc::channel(4);
    let mut answers = csds
        .stream_client_status(ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    for _ in 0..2 {
        requests.send(ClientStatusRequest::default()).await.unwrap();
        let answer = tokio::time::timeout(MAX, answers.message()).await.unwrap();
        assert!(answer.unwrap().unwrap().config.is_empty());
    }
}

#[tokio::test]
async fn load_reports_add_up_in_the_api_and_in_metrics() {
    let control = control().await;
    let (requests, stream) = mpsc::channel(4);
    let report = |node: Option<Node>, issued| {
        let stats = UpstreamLocalityStats {
            locality: Some(Locality {
                zone: "z1".into(),
                ..Locality::default()
            }),
            total_issued_requests: issued,
            total_successful_requests: issued - 1,
            total_error_requests: 1,
            ..UpstreamLocalityStats::default()
        };
        LoadStatsRequest {
            node,
            cluster_stats: vec![ClusterStats {
                cluster_name: CLUSTER.into(),
                upstream_locality_stats: vec![stats],
                total_dropped_requests: 2,
                ..ClusterStats::default()
            }],
        }
    };
    let mut peer = node("default/match/e1", &[]);
    peer.client_features
        .push("envoy.lrs.supports_send_all_clusters".into());
    requests.send(report(Some(peer), 5)).await.unwrap();
    let mut lrs = LoadReportingServiceClient::connect(control.url())
        .await
        .unwrap();
    let mut answers = lrs
        .stream_load_stats(ReceiverStream::new(stream))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert!(answer.send_all_clusters && answer.load_reporting_interval.unwrap().seconds == 10);
    requests.send(report(None, 3)).await.unwrap();
    eventually(async || {
        let loads = control.admin.loads().await.unwrap();
        let item = loads.items.first()?;
        let sums = (item.issued, item.succeeded, item.failed, item.reporters);
        (sums == (8, 6, 2, 1) && item.zone == "z1" && loads.refused[0].requests == 4).then_some(())
    })
    .await;
    let metrics = control.admin.text("/metrics").await.unwrap().body;
    let line = format!("phalanx_lrs_requests_issued_total{{cluster=\"{CLUSTER}\"");
    assert!(
        metrics
            .lines()
            .any(|l| l.starts_with(&line) && l.ends_with(" 8")),
        "{metrics}"
    );
    drop(requests);
    drop(answers);
    eventually(async || (control.admin.loads().await.unwrap().streams == 0).then_some(())).await;
    // Without a node.
    let (requests, stream) = mpsc::channel(4);
    requests.send(report(None, 3)).await.unwrap();
    let mut lrs = LoadReportingServiceClient::connect(control.url())
        .await
        .unwrap();
    let answers = lrs.stream_load_stats(ReceiverStream::new(stream)).await;
    let refused = answers.unwrap().into_inner().message().await.unwrap_err();
    assert!(refused.message().contains("node"), "{refused}");
}

#[tokio::test]
async fn clusters_with_a_time_to_live_are_confirmed_while_the_stream_lives() {
    let control = control().await;
    let revision = control.apply(SHOP).await;
    control.reach(revision).await;
    let request = DeltaDiscoveryRequest {
        node: Some(node("default/match/e1", &[("resource_ttl", "6s")])),
        ..ask(Kind::Cluster, &[])
    };
    let mut stream = Stream::ads(&control, request).await;
    let first = stream.next().await.unwrap();
    let ttl = |r: &DeltaDiscoveryResponse| r.resources[0].ttl.as_ref().unwrap().seconds;
    assert_eq!(ttl(&first), 6);
    stream.answer(&first, None).await;
    for _ in 0..2 {
        let beat = stream.next().await.unwrap();
        assert_eq!((ttl(&beat), &beat.resources[0].resource), (6, &None));
        assert_eq!(beat.resources[0].version, first.resources[0].version);
        stream.answer(&beat, None).await;
    }
}

#[tokio::test]
async fn hostile_requests_end_their_own_stream_with_a_reason() {
    let control = control().await;
    let revision = control.apply(SHOP).await;
    control.reach(revision).await;
    let mut innocent = Stream::ads(&control, ask(Kind::Cluster, &[])).await;
    let first = innocent.next().await.unwrap();
    let many = |count: usize| DeltaDiscoveryRequest {
        resource_names_subscribe: (0..count).map(|n| format!("name-{n}")).collect(),
        ..ask(Kind::Endpoints, &[])
    };
    let id = |id: String| DeltaDiscoveryRequest {
        node: Some(node(&id, &[])),
        ..ask(Kind::Cluster, &[])
    };
    for (what, request, words) in [
        ("names over the bound", many(10_001), "10000"),
        ("a million names", many(1_000_000), "too large"),
        ("a long id", id("x".repeat(10_000)), "node.id"),
        ("a control character", id("a\nb".into()), "node.id"),
        (
            "a long name",
            ask(Kind::Endpoints, &[&"x".repeat(5_000)]),
            "5000 bytes",
        ),
        (
            "a wish",
            DeltaDiscoveryRequest {
                node: Some(node("a/b/c", &[("endpoint_ttl", "30s")])),
                ..ask(Kind::Cluster, &[])
            },
            "Envoy keeps endpoints",
        ),
    ] {
        let (requests, stream) = mpsc::channel(4);
        requests.send(request).await.unwrap();
        let mut ads = AdsClient::connect(control.url()).await.unwrap();
        let opened = ads
            .delta_aggregated_resources(ReceiverStream::new(stream))
            .await;
        let refused = match opened {
            Ok(stream) => stream.into_inner().message().await.unwrap_err(),
            Err(status) => status,
        };
        assert!(refused.message().contains(words), "{what}: {refused}");
    }
    innocent.answer(&first, None).await;
    control.apply(MORE).await;
    let more = innocent.next().await.unwrap();
    assert_eq!(names(&more), ["outbound|80|more.default.svc.mesh"]);
}

#[tokio::test]
async fn a_peer_that_does_not_read_gets_the_newest_and_nothing_in_between() {
    let control = control().await;
    control.apply(SHOP).await;
    let mut stream = Stream::ads(&control, ask(Kind::Cluster, &[])).await;
    let first = stream.next().await.unwrap();
    // It does not answer, while the world changes again and again.
    let service = |name: usize| MORE.replace("more", &format!("more-{name}"));
    let mut revision = 0;
    for change in 0..20 {
        revision = control.apply(&service(change)).await;
    }
    until(&control, |status| status.revision >= revision).await;
    stream.answer(&first, None).await;
    let second = stream.next().await.unwrap();
    // The first may have come from before the shop was compiled.
    assert_eq!(
        first.resources.len() + second.resources.len(),
        21,
        "one response for twenty changes"
    );
    stream.answer(&second, None).await;
    assert!(stream.is_silent().await);
    assert_eq!(control.reach(revision).await.applied, 1);
}

async fn status_of(control: &Control, id: &str) -> Result<ClientStatusResponse, Status> {
    let mut csds = ClientStatusDiscoveryServiceClient::connect(control.url())
        .await
        .unwrap();
    let request = ClientStatusRequest {
        node_matchers: vec![NodeMatcher {
            node_id: Some(StringMatcher {
                match_pattern: Some(MatchPattern::Exact(id.into())),
                ..StringMatcher::default()
            }),
            ..NodeMatcher::default()
        }],
        ..ClientStatusRequest::default()
    };
    let answer = csds.fetch_client_status(request).await?;
    Ok(answer.into_inner())
}

/// Name, status and version of everything that the node has.
async fn told(control: &Control) -> Vec<(String, ConfigStatus, String)> {
    let status = status_of(control, "default/match/e1").await.unwrap();
    let configs = status
        .config
        .into_iter()
        .flat_map(|c| c.generic_xds_configs);
    configs
        .map(|c| {
            let status = ConfigStatus::try_from(c.config_status).unwrap();
            (c.name, status, c.version_info)
        })
        .collect()
}

async fn until(control: &Control, done: impl Fn(&phalanx_client::api::Status) -> bool) {
    eventually(async || {
        let status = control.admin.status(None).await.unwrap();
        done(&status).then_some(())
    })
    .await;
}

async fn eventually(mut probe: impl AsyncFnMut() -> Option<()>) {
    let deadline = tokio::time::Instant::now() + MAX;
    while probe().await.is_none() {
        assert!(tokio::time::Instant::now() < deadline, "not in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
