//! Clusters: endpoints over EDS, policies in Envoy's fields. What Envoy has no word for (the kind of load balancer and
//! the protocol of the application, exactly) stands beside in our metadata.

use std::time::Duration;

use phalanx_model::instance::Protocol;
use phalanx_model::resource::sessions::{SessionDirectory, SessionKey};
use phalanx_model::resource::{Cluster, ConnectionPool, LoadBalancer, OutlierDetection, SlowStart};
use phalanx_proto::envoy::config::cluster::v3 as cluster_v3;
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::extensions::upstreams::http::v3 as upstreams_v3;
use phalanx_proto::envoy::r#type::v3::Percent;

use super::{ads, any, duration, metadata, tls};

pub(crate) const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Under [`super::METADATA`].
pub(crate) const LOAD_BALANCER: &str = "lb";
pub(crate) const PROTOCOL: &str = "protocol";
/// In thousandths.
pub(crate) const LATENCY_FACTOR: &str = "latency_factor";
/// `<namespace>/<service> header|cookie <name> Balance|Refuse`
pub(crate) const DIRECTORY: &str = "directory";

/// Points of Envoy's ring; ours has a fixed number for each endpoint.
const RING_MIN: u64 = 4_096;
const RING_MAX: u64 = 65_536;
/// The default of both.
const MAGLEV_SIZE: u64 = 65_537;

pub(crate) fn message(cluster: &Cluster) -> cluster_v3::Cluster {
    use cluster_v3::cluster::{
        ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy,
    };
    let name = cluster.name.to_string();
    let socket_matches = |tls| tls::socket_matches(tls, cluster.protocol);
    let slow_start_config = cluster.slow_start.map(slow_start);
    let (policy, config) = match cluster.load_balancer {
        LoadBalancer::P2c | LoadBalancer::LeastRequest => (
            LbPolicy::LeastRequest,
            Some(LbConfig::LeastRequestLbConfig(
                cluster_v3::cluster::LeastRequestLbConfig {
                    slow_start_config,
                    ..two_choices()
                },
            )),
        ),
        LoadBalancer::RoundRobin => (
            LbPolicy::RoundRobin,
            slow_start_config.map(|config| {
                LbConfig::RoundRobinLbConfig(cluster_v3::cluster::RoundRobinLbConfig {
                    slow_start_config: Some(config),
                })
            }),
        ),
        LoadBalancer::Random => (LbPolicy::Random, None),
        LoadBalancer::RingHash => (
            LbPolicy::RingHash,
            Some(LbConfig::RingHashLbConfig(ring_hash())),
        ),
        LoadBalancer::Maglev => (LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(maglev()))),
    };
    let latency_factor = match cluster.outlier_detection.latency_factor {
        0 => String::new(),
        factor => factor.to_string(),
    };
    cluster_v3::Cluster {
        transport_socket_matches: cluster.tls.as_ref().map_or_else(Vec::new, socket_matches),
        name: name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads()),
            service_name: name,
        }),
        connect_timeout: Some(duration(cluster.connection_pool.connect_timeout)),
        lb_policy: policy.into(),
        lb_config: config,
        circuit_breakers: Some(circuit_breakers(cluster)),
        typed_extension_protocol_options: [(HTTP_OPTIONS.to_owned(), any(&http_options(cluster)))]
            .into(),
        outlier_detection: Some(outlier_detection(&cluster.outlier_detection)),
        common_lb_config: Some(common_lb_config(cluster.panic_percent)),
        metadata: metadata(&[
            (LOAD_BALANCER, load_balancer_name(cluster.load_balancer)),
            (PROTOCOL, cluster.protocol.as_str()),
            (LATENCY_FACTOR, &latency_factor),
            (DIRECTORY, &directory(cluster.directory.as_ref())),
        ]),
        ..Default::default()
    }
}

fn directory(directory: Option<&SessionDirectory>) -> String {
    directory.map_or_else(String::new, |directory| {
        let (carrier, name) = match &directory.key {
            SessionKey::Header(name) => (HEADER, name),
            SessionKey::Cookie(name) => (COOKIE, name),
        };
        let missing = directory.missing.as_str();
        format!("{} {carrier} {name} {missing}", directory.service)
    })
}

pub(crate) const HEADER: &str = "header";
pub(crate) const COOKIE: &str = "cookie";

/// As in a manifest.
pub(crate) fn load_balancer_name(load_balancer: LoadBalancer) -> &'static str {
    match load_balancer {
        LoadBalancer::P2c => "P2C",
        LoadBalancer::LeastRequest => "LeastRequest",
        LoadBalancer::RoundRobin => "RoundRobin",
        LoadBalancer::Random => "Random",
        LoadBalancer::RingHash => "RingHash",
        LoadBalancer::Maglev => "Maglev",
    }
}

pub(crate) fn two_choices() -> cluster_v3::cluster::LeastRequestLbConfig {
    cluster_v3::cluster::LeastRequestLbConfig {
        choice_count: Some(2),
        ..Default::default()
    }
}

pub(crate) fn ring_hash() -> cluster_v3::cluster::RingHashLbConfig {
    use cluster_v3::cluster::ring_hash_lb_config::HashFunction;
    cluster_v3::cluster::RingHashLbConfig {
        minimum_ring_size: Some(RING_MIN),
        maximum_ring_size: Some(RING_MAX),
        hash_function: HashFunction::XxHash.into(),
    }
}

pub(crate) fn maglev() -> cluster_v3::cluster::MaglevLbConfig {
    cluster_v3::cluster::MaglevLbConfig {
        table_size: Some(MAGLEV_SIZE),
    }
}

fn slow_start(slow: SlowStart) -> cluster_v3::cluster::SlowStartConfig {
    cluster_v3::cluster::SlowStartConfig {
        slow_start_window: Some(duration(slow.window)),
        aggression: None,
        min_weight_percent: Some(Percent {
            value: slow.min_weight_percent.into(),
        }),
    }
}

/// Below this share of healthy endpoints Envoy sends to all of them, even those that drain.
pub(crate) fn common_lb_config(panic_percent: u32) -> cluster_v3::cluster::CommonLbConfig {
    use core_v3::HealthStatus::{Degraded, Draining, Healthy, Unknown};
    let kept = [Unknown, Healthy, Degraded, Draining];
    cluster_v3::cluster::CommonLbConfig {
        // Endpoints that keep their sessions.
        override_host_status: Some(core_v3::HealthStatusSet {
            statuses: kept.map(i32::from).into(),
        }),
        healthy_panic_threshold: Some(Percent {
            value: panic_percent.into(),
        }),
        // Envoy would hold back a change of health or weight for up to 1 s.
        update_merge_window: Some(duration(Duration::ZERO)),
        ..Default::default()
    }
}

/// Envoy ignores `max_retries` where there is a retry budget, and there always is one.
fn circuit_breakers(cluster: &Cluster) -> cluster_v3::CircuitBreakers {
    use cluster_v3::circuit_breakers::{Thresholds, thresholds};
    let (limits, budget) = (&cluster.circuit_breaker, &cluster.retry_budget);
    let retry_budget = thresholds::RetryBudget {
        budget_percent: Some(Percent {
            value: budget.percent.into(),
        }),
        min_retry_concurrency: Some(budget.min_concurrency),
        ..Default::default()
    };
    let thresholds = Thresholds {
        priority: core_v3::RoutingPriority::Default.into(),
        max_connections: Some(limits.max_connections),
        max_pending_requests: Some(limits.max_pending_requests),
        max_requests: Some(limits.max_requests),
        max_retries: Some(limits.max_retries),
        retry_budget: Some(retry_budget),
        ..Default::default()
    };
    cluster_v3::CircuitBreakers {
        thresholds: vec![thresholds],
        ..Default::default()
    }
}

/// Only the detectors that are configured act; Envoy's statistical ones are on by default.
fn outlier_detection(detection: &OutlierDetection) -> cluster_v3::OutlierDetection {
    let enforcing = |consecutive: u32| Some(if consecutive == 0 { 0 } else { 100 });
    cluster_v3::OutlierDetection {
        consecutive_5xx: Some(detection.consecutive_5xx),
        enforcing_consecutive_5xx: enforcing(detection.consecutive_5xx),
        consecutive_gateway_failure: Some(detection.consecutive_gateway),
        enforcing_consecutive_gateway_failure: enforcing(detection.consecutive_gateway),
        enforcing_success_rate: enforcing(detection.success_rate_stdev),
        success_rate_stdev_factor: (detection.success_rate_stdev > 0)
            .then_some(detection.success_rate_stdev),
        interval: Some(duration(detection.interval)),
        base_ejection_time: Some(duration(detection.base_ejection)),
        max_ejection_percent: Some(detection.max_ejection_percent),
        always_eject_one_host: Some(true),
        ..Default::default()
    }
}

fn http_options(cluster: &Cluster) -> upstreams_v3::HttpProtocolOptions {
    upstreams_v3::HttpProtocolOptions {
        common_http_protocol_options: Some(pool_options(&cluster.connection_pool)),
        upstream_protocol_options: Some(protocol_options(cluster.protocol)),
        ..Default::default()
    }
}

fn pool_options(pool: &ConnectionPool) -> core_v3::HttpProtocolOptions {
    core_v3::HttpProtocolOptions {
        idle_timeout: Some(duration(pool.idle_timeout)),
        max_requests_per_connection: (pool.max_requests_per_connection > 0)
            .then_some(pool.max_requests_per_connection),
        ..Default::default()
    }
}

/// Raw TCP has none of it, but Envoy demands a choice; it is read only where HTTP is sent.
pub(crate) fn protocol_options(
    protocol: Protocol,
) -> upstreams_v3::http_protocol_options::UpstreamProtocolOptions {
    use upstreams_v3::http_protocol_options::explicit_http_config::ProtocolConfig;
    use upstreams_v3::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
    };
    let explicit = |config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(config),
        })
    };
    match protocol {
        Protocol::Auto => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(Default::default()),
                http2_protocol_options: Some(Default::default()),
                http3_protocol_options: None,
            })
        }
        Protocol::Http1 | Protocol::Tcp | Protocol::Udp => {
            explicit(ProtocolConfig::HttpProtocolOptions(Default::default()))
        }
        Protocol::H2c | Protocol::Grpc => {
            explicit(ProtocolConfig::Http2ProtocolOptions(Default::default()))
        }
    }
}
