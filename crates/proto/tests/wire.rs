//! What the rest of the mesh relies on in the generated code: equal messages have equal bytes, types know
//! their URLs, and both ends of every service exist.

use phalanx_proto::envoy::config::cluster::v3::Cluster;
use phalanx_proto::envoy::config::core::v3::Metadata;
use phalanx_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use phalanx_proto::envoy::config::listener::v3::Listener;
use phalanx_proto::envoy::config::route::v3::RouteConfiguration;
use phalanx_proto::envoy::extensions::filters::http::router::v3::Router;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use phalanx_proto::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use phalanx_proto::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use prost::{Message, Name};
use prost_types::{Any, Struct, Value, value::Kind};

const KEYS: [&str; 6] = ["zulu", "alpha", "mike", "bravo", "yankee", "charlie"];

fn cluster<'a>(keys: impl Iterator<Item = &'a str> + Clone) -> Cluster {
    let labels = || Struct {
        fields: keys
            .clone()
            .map(|key| {
                (
                    key.to_string(),
                    Value {
                        kind: Some(Kind::StringValue(key.to_uppercase())),
                    },
                )
            })
            .collect(),
    };
    let options = |key: &str| {
        let options = HttpProtocolOptions::default();
        (
            key.to_string(),
            Any::from_msg(&options).expect("a Vec has room for any message"),
        )
    };
    Cluster {
        name: "match".into(),
        typed_extension_protocol_options: keys.clone().map(options).collect(),
        metadata: Some(Metadata {
            filter_metadata: keys
                .clone()
                .map(|key| (key.to_string(), labels()))
                .collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[test]
fn insertion_order_of_map_entries_leaves_no_trace_in_the_bytes() {
    let forward = cluster(KEYS.into_iter()).encode_to_vec();
    let backward = cluster(KEYS.into_iter().rev()).encode_to_vec();
    assert_eq!(forward, backward);

    let decoded = Cluster::decode(forward.as_slice()).unwrap();
    assert_eq!(decoded.typed_extension_protocol_options.len(), KEYS.len());
    assert_eq!(decoded.encode_to_vec(), forward);
}

#[test]
fn type_urls_are_those_of_the_xds_protocol() {
    let urls = [
        (Cluster::type_url(), "envoy.config.cluster.v3.Cluster"),
        (
            ClusterLoadAssignment::type_url(),
            "envoy.config.endpoint.v3.ClusterLoadAssignment",
        ),
        (Listener::type_url(), "envoy.config.listener.v3.Listener"),
        (
            RouteConfiguration::type_url(),
            "envoy.config.route.v3.RouteConfiguration",
        ),
        (
            Router::type_url(),
            "envoy.extensions.filters.http.router.v3.Router",
        ),
        (
            HttpConnectionManager::type_url(),
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        ),
        (
            TcpProxy::type_url(),
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        ),
        (
            HttpProtocolOptions::type_url(),
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        ),
    ];
    for (url, name) in urls {
        assert_eq!(url, format!("type.googleapis.com/{name}"));
    }
}

#[test]
fn any_round_trips_by_type_url() {
    let router = Router {
        suppress_envoy_headers: true,
        ..Default::default()
    };
    let any = Any::from_msg(&router).unwrap();
    assert_eq!(any.type_url, Router::type_url());
    assert_eq!(any.to_msg::<Router>().unwrap(), router);
    assert!(any.to_msg::<Cluster>().is_err());
}

#[test]
fn services_carry_the_names_their_peers_dial() {
    use phalanx_proto::envoy::service::discovery::v3::aggregated_discovery_service_server as ads;
    use phalanx_proto::phalanx::{observe::v1::observe_server, registry::v1::registry_server};
    assert_eq!(
        ads::SERVICE_NAME,
        "envoy.service.discovery.v3.AggregatedDiscoveryService"
    );
    assert_eq!(
        registry_server::SERVICE_NAME,
        "phalanx.registry.v1.Registry"
    );
    assert_eq!(observe_server::SERVICE_NAME, "phalanx.observe.v1.Observe");
}
