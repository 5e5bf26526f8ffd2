//! A real Envoy checks what we encode, as static resources of a bootstrap (`envoy --mode validate`). The binary is
//! `PHALANX_ENVOY`, else the one that `cargo xtask test` installs;
//! without either the tests fail.

use std::path::{Path, PathBuf};
use std::process::Command;

use phalanx_model::name::Direction;
use phalanx_model::reason::Reason;
use phalanx_model::resource::*;
use phalanx_proto::envoy::config::cluster::v3 as cluster_v3;
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::endpoint::v3 as endpoint_v3;
use phalanx_proto::envoy::config::listener::v3 as listener_v3;
use phalanx_proto::envoy::config::route::v3 as route_v3;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
use phalanx_xds::encode;
use phalanx_xds::separate::{self, Source};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use prost::Message;

#[path = "../src/decode/tests/models.rs"]
mod models;

/// Models of each kind that one Envoy is asked about.
const SAMPLES: usize = 40;

/// The part of `envoy.config.bootstrap.v3.Bootstrap` that is needed here.
#[derive(Clone, PartialEq, Message)]
struct Bootstrap {
    #[prost(message, optional, tag = "1")]
    node: Option<core_v3::Node>,
    #[prost(message, optional, tag = "2")]
    static_resources: Option<StaticResources>,
    #[prost(message, optional, tag = "3")]
    dynamic_resources: Option<DynamicResources>,
}

#[derive(Clone, PartialEq, Message)]
struct StaticResources {
    #[prost(message, repeated, tag = "1")]
    listeners: Vec<listener_v3::Listener>,
    #[prost(message, repeated, tag = "2")]
    clusters: Vec<cluster_v3::Cluster>,
}

#[derive(Clone, PartialEq, Message)]
struct DynamicResources {
    #[prost(message, optional, tag = "3")]
    ads_config: Option<core_v3::ApiConfigSource>,
}

#[test]
fn envoy_takes_clusters_and_endpoints() {
    let envoy = envoy();
    let mut clusters = vec![control()];
    for (index, (mut cluster, assignment)) in samples((models::cluster(), models::assignment()))
        .into_iter()
        .enumerate()
    {
        cluster.name.port = index as u16;
        // Envoy dies of a static cluster whose secrets come over ADS, which it sets up only afterwards.
        let source = Source {
            cluster: "control".into(),
            is_delta: true,
        };
        let encoded = encode::cluster(&cluster);
        let encoded = separate::rewrite(&encoded, &source).unwrap();
        let mut sent = cluster_v3::Cluster::decode(encoded.body).unwrap();
        clusters.push(sent.clone());
        // Endpoints can't be static beside EDS, so the same cluster once more with them.
        let endpoints =
            endpoint_v3::ClusterLoadAssignment::decode(encode::endpoints(&assignment).body)
                .unwrap();
        sent.name = format!("static {index}");
        sent.eds_cluster_config = None;
        sent.cluster_discovery_type = Some(cluster_v3::cluster::ClusterDiscoveryType::Type(0));
        sent.load_assignment = Some(endpoints);
        clusters.push(sent);
    }
    assert_eq!(
        refusal(
            &envoy,
            StaticResources {
                listeners: Vec::new(),
                clusters
            }
        ),
        None
    );
}

#[test]
fn envoy_takes_listeners() {
    let envoy = envoy();
    let folder = tempfile::tempdir().unwrap();
    let (mut listeners, mut edges) = (Vec::new(), 0);
    for (index, mut listener) in samples(models::listener()).into_iter().enumerate() {
        listener.name = format!("{index}");
        listener.address = ([127, 0, 0, 1], 0).into();
        if let ListenerProtocol::Gateway(port) = &mut listener.protocol {
            describe(folder.path(), port);
            edges += 1;
        }
        listeners.push(listener_v3::Listener::decode(encode::listener(&listener).body).unwrap());
    }
    assert!(edges > 5, "{edges}");
    let resources = StaticResources {
        listeners,
        clusters: vec![control()],
    };
    assert_eq!(refusal(&envoy, resources), None);
}

/// The files that an edge's certificates are described by, which Envoy wants to see.
fn describe(folder: &Path, port: &mut gateway::GatewayPort) {
    port.certificates_in = folder.display().to_string();
    for chain in &port.chains {
        if let gateway::ChainTls::Terminate(names) = &chain.tls {
            for name in names {
                std::fs::write(folder.join(format!("{name}.yaml")), "resources: []\n").unwrap();
            }
        }
    }
}

/// Regular expressions of the strategies are such as Envoy takes.
#[test]
fn envoy_takes_inbound_listeners_of_http_and_of_tcp() {
    let envoy = envoy();
    let mut listeners = Vec::new();
    for (index, mut listener) in samples(models::inbound()).into_iter().enumerate() {
        listener.address = ([127, 0, 0, 1], 0).into();
        for encoded in [
            encode::listener(&listener),
            encode::envoy_inbound(&listener),
            encode::tcp_inbound(&listener),
        ] {
            let mut sent = listener_v3::Listener::decode(encoded.body).unwrap();
            sent.name = format!("{index} {}", listeners.len());
            listeners.push(sent);
        }
    }
    let application =
        cluster_v3::Cluster::decode(encode::application(([127, 0, 0, 1], 8080).into()).body)
            .unwrap();
    // Whom it asks about global limits, by the name that the bootstrap has.
    let asked = cluster_v3::Cluster {
        name: "xds".into(),
        ..control()
    };
    let resources = StaticResources {
        listeners,
        clusters: vec![control(), asked, application],
    };
    assert_eq!(refusal(&envoy, resources), None);
}

/// Tables come over RDS; here each stands inline in a listener of its own.
#[test]
fn envoy_takes_route_tables() {
    let envoy = envoy();
    let mut tables = samples(models::table());
    tables.iter_mut().for_each(legalise);
    tables.push(reasons());
    let listeners = tables.iter().enumerate().map(|(index, table)| {
        let table = route_v3::RouteConfiguration::decode(encode::routes(table).body).unwrap();
        inline(&index.to_string(), table)
    });
    let resources = StaticResources {
        listeners: listeners.collect(),
        clusters: vec![control()],
    };
    assert_eq!(refusal(&envoy, resources), None);
}

/// The forms that the encoder avoids are indeed refused, so silence above means consent.
#[test]
fn envoy_refuses_what_the_encoder_avoids() {
    let envoy = envoy();
    let edited = |change: fn(&mut route_v3::Route)| {
        let mut table =
            route_v3::RouteConfiguration::decode(encode::routes(&reasons()).body).unwrap();
        change(&mut table.virtual_hosts[0].routes[0]);
        let resources = StaticResources {
            listeners: vec![inline("0", table)],
            clusters: vec![control()],
        };
        refusal(&envoy, resources).unwrap_or_default()
    };
    let slash = edited(|route| {
        let path = route_v3::route_match::PathSpecifier::PathSeparatedPrefix("/a/".into());
        route.r#match.as_mut().unwrap().path_specifier = Some(path);
    });
    assert!(slash.contains("PathSeparatedPrefix"), "{slash}");
    let percent = edited(|route| {
        route.response_headers_to_add[0]
            .header
            .as_mut()
            .unwrap()
            .value = "5%".into();
    });
    assert!(percent.contains("5%"), "{percent}");
}

/// What admission sees to and the strategies don't: each domain once, patterns that compile.
fn legalise(table: &mut RouteTable) {
    let mut count = 0;
    for host in &mut table.hosts {
        for domain in &mut host.domains {
            count += 1;
            *domain = format!("{count}.{}", domain.replace('*', "any"));
        }
        for rule in &mut host.rules {
            let matches = &mut rule.matches;
            if let PathMatch::Regex(pattern) = &mut matches.path {
                *pattern = "/v[0-9]+/.*".to_owned();
            }
            let headers = matches.headers.iter_mut().map(|header| &mut header.value);
            let query = matches.query.iter_mut().map(|query| &mut query.value);
            for value in headers.chain(query) {
                if let ValueMatch::Regex(pattern) = value {
                    *pattern = "(a|b)+".to_owned();
                }
            }
        }
    }
}

fn reasons() -> RouteTable {
    let rule = |reason: &Reason| Rule {
        name: reason.to_string(),
        matches: RuleMatch::default(),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        action: Action::Respond(*reason),
    };
    let rules = Reason::ALL.iter().map(rule).collect();
    let host = VirtualHost {
        name: "any".into(),
        domains: vec!["*".into()],
        rules,
    };
    RouteTable {
        name: "reasons".into(),
        hosts: vec![host],
    }
}

fn inline(name: &str, routes: route_v3::RouteConfiguration) -> listener_v3::Listener {
    let listener = Listener {
        name: name.to_owned(),
        address: ([127, 0, 0, 1], 0).into(),
        direction: Direction::Outbound,
        protocol: ListenerProtocol::Http {
            route_table: routes.name.clone(),
        },
    };
    let mut sent = listener_v3::Listener::decode(encode::listener(&listener).body).unwrap();
    let Some(listener_v3::filter::ConfigType::TypedConfig(any)) =
        &mut sent.filter_chains[0].filters[0].config_type
    else {
        panic!("no connection manager in {sent:?}");
    };
    let mut manager = hcm_v3::HttpConnectionManager::decode(any.value.as_slice()).unwrap();
    manager.route_specifier = Some(
        hcm_v3::http_connection_manager::RouteSpecifier::RouteConfig(
            // Static tables are checked against static clusters, unless told not to.
            route_v3::RouteConfiguration {
                validate_clusters: Some(false),
                ..routes
            },
        ),
    );
    any.value = manager.encode_to_vec();
    sent
}

/// The same every time.
fn samples<S: Strategy>(strategy: S) -> Vec<S::Value> {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    (0..SAMPLES)
        .map(|_| strategy.new_tree(&mut runner).unwrap().current())
        .collect()
}

/// The cluster of the control plane, which validation doesn't call.
fn control() -> cluster_v3::Cluster {
    let address = core_v3::SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(core_v3::socket_address::PortSpecifier::PortValue(1)),
        ..Default::default()
    };
    let address = core_v3::Address {
        address: Some(core_v3::address::Address::SocketAddress(address)),
    };
    let host = endpoint_v3::Endpoint {
        address: Some(address),
        ..Default::default()
    };
    let endpoint = endpoint_v3::LbEndpoint {
        host_identifier: Some(endpoint_v3::lb_endpoint::HostIdentifier::Endpoint(host)),
        ..Default::default()
    };
    let locality = endpoint_v3::LocalityLbEndpoints {
        lb_endpoints: vec![endpoint],
        ..Default::default()
    };
    cluster_v3::Cluster {
        name: "control".into(),
        load_assignment: Some(endpoint_v3::ClusterLoadAssignment {
            cluster_name: "control".into(),
            endpoints: vec![locality],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What Envoy says against them.
fn refusal(envoy: &Path, resources: StaticResources) -> Option<String> {
    let grpc = core_v3::grpc_service::EnvoyGrpc {
        cluster_name: "control".into(),
        ..Default::default()
    };
    let service = core_v3::GrpcService {
        target_specifier: Some(core_v3::grpc_service::TargetSpecifier::EnvoyGrpc(grpc)),
        ..Default::default()
    };
    let ads = core_v3::ApiConfigSource {
        api_type: core_v3::api_config_source::ApiType::DeltaGrpc.into(),
        transport_api_version: core_v3::ApiVersion::V3.into(),
        grpc_services: vec![service],
        ..Default::default()
    };
    let bootstrap = Bootstrap {
        node: Some(core_v3::Node {
            id: "default/test/1".into(),
            cluster: "test".into(),
            ..Default::default()
        }),
        static_resources: Some(resources),
        dynamic_resources: Some(DynamicResources {
            ads_config: Some(ads),
        }),
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bootstrap.pb");
    std::fs::write(&path, bootstrap.encode_to_vec()).unwrap();
    let output = Command::new(envoy)
        .args([
            "--mode",
            "validate",
            "--reject-unknown-dynamic-fields",
            "-l",
            "warn",
            "-c",
        ])
        .arg(&path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let taken = output.status.success() && String::from_utf8_lossy(&output.stdout).contains("OK");
    (!taken || said.contains("eprecated")).then_some(said)
}

/// A missing Envoy fails the run: a check that nobody made is none.
fn envoy() -> PathBuf {
    if let Some(path) = std::env::var_os("PHALANX_ENVOY") {
        return path.into();
    }
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/venv/bin/envoy");
    assert!(
        installed.is_file(),
        "no Envoy at {}; run `cargo xtask setup`",
        installed.display()
    );
    installed
}
