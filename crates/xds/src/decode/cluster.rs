//! Clusters. A missing field means what it means to Envoy, so that a cluster of another control plane behaves alike.

use std::time::Duration;

use phalanx_model::ServiceName;
use phalanx_model::instance::Protocol;
use phalanx_model::resource::sessions::{Missing, SessionDirectory, SessionKey};
use phalanx_model::resource::{
    CircuitBreaker, Cluster, ConnectionPool, LoadBalancer, OutlierDetection, RetryBudget, SlowStart,
};
use phalanx_proto::envoy::config::cluster::v3 as cluster_v3;
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::extensions::upstreams::http::v3 as upstreams_v3;
use phalanx_proto::envoy::r#type::v3::Percent;

use super::field::{
    At, ads, cluster_name, duration, is_token, metadata, ours, positive, refuse, unpack,
};
use super::{DecodeError, tls};
use crate::encode;
use crate::encode::cluster::{
    COOKIE, DIRECTORY, HEADER, HTTP_OPTIONS, LATENCY_FACTOR, LOAD_BALANCER, PROTOCOL,
};

#[expect(deprecated, reason = "every field is named")]
pub(super) fn resource(message: cluster_v3::Cluster) -> Result<Cluster, DecodeError> {
    use cluster_v3::cluster::{ClusterDiscoveryType, DiscoveryType};
    let at = At::Root("Cluster");
    let cluster_v3::Cluster {
        transport_socket_matches,
        transport_socket_matcher,
        name,
        alt_stat_name: _, // Envoy's own statistics
        stats_matcher,
        eds_cluster_config,
        connect_timeout,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        lb_policy,
        load_assignment,
        health_checks,
        max_requests_per_connection,
        circuit_breakers,
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        mut typed_extension_protocol_options,
        dns_refresh_rate,
        dns_jitter,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_lookup_family,
        dns_resolvers,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        wait_for_warm_on_init,
        outlier_detection,
        cleanup_interval,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config,
        transport_socket,
        metadata: words,
        protocol_selection,
        upstream_connection_options,
        close_connections_on_host_health_failure,
        ignore_health_on_host_removal,
        filters,
        load_balancing_policy,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats,
        preconnect_policy,
        connection_pool_per_downstream_connection,
        queuing_policies,
        cluster_discovery_type,
        lb_config,
    } = message;
    refuse!(at;
        transport_socket_matcher, stats_matcher, per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout, load_assignment, health_checks, max_requests_per_connection,
        upstream_http_protocol_options, common_http_protocol_options, http_protocol_options, http2_protocol_options,
        dns_refresh_rate, dns_jitter, dns_failure_refresh_rate, respect_dns_ttl, dns_lookup_family, dns_resolvers,
        use_tcp_for_dns_lookups, dns_resolution_config, typed_dns_resolver_config, wait_for_warm_on_init,
        cleanup_interval, upstream_bind_config, lb_subset_config, transport_socket, protocol_selection,
        upstream_connection_options, close_connections_on_host_health_failure, ignore_health_on_host_removal, filters,
        load_balancing_policy, lrs_server, lrs_report_endpoint_metrics, track_timeout_budgets, upstream_config,
        track_cluster_stats, preconnect_policy, connection_pool_per_downstream_connection, queuing_policies,
    );
    if cluster_discovery_type != Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())) {
        return Err(at.field("type").invalid("must be EDS"));
    }
    eds(at.field("eds_cluster_config"), eds_cluster_config, &name)?;
    let common_at = at.field("common_lb_config");
    let panic_percent = match common_lb_config
        .as_ref()
        .and_then(|c| c.healthy_panic_threshold)
    {
        None => ENVOYS_PANIC,
        Some(threshold) => percent(&common_at.field("healthy_panic_threshold"), threshold)?,
    };
    let common = Some(encode::cluster::common_lb_config(panic_percent));
    ours(&common_at, &common_lb_config, &common)?;
    let [lb_word, protocol_word, latency_word, directory_word] = metadata(
        &at.field("metadata"),
        words,
        [LOAD_BALANCER, PROTOCOL, LATENCY_FACTOR, DIRECTORY],
    )?;
    let options = typed_extension_protocol_options.remove(HTTP_OPTIONS);
    refuse!(at; typed_extension_protocol_options);
    let options_at = at.field("typed_extension_protocol_options");
    let (protocol, mut connection_pool) = http_options(options_at, options, &protocol_word)?;
    if let Some(timeout) = connect_timeout {
        connection_pool.connect_timeout = positive(&at.field("connect_timeout"), timeout)?;
    }
    let (circuit_breaker, retry_budget) = limits(at.field("circuit_breakers"), circuit_breakers)?;
    let tls_at = at.field("transport_socket_matches");
    let (load_balancer, slow_start) = load_balancer(at, lb_policy, lb_config, &lb_word)?;
    let mut outlier_detection = detection(at.field("outlier_detection"), outlier_detection)?;
    outlier_detection.latency_factor = match latency_word.as_str() {
        "" => 0,
        word => word.parse().map_err(|_| {
            at.field("metadata")
                .invalid(format!("`{LATENCY_FACTOR}: {word}` is no number"))
        })?,
    };
    Ok(Cluster {
        name: cluster_name(&at.field("name"), &name)?,
        protocol,
        load_balancer,
        slow_start,
        panic_percent,
        connection_pool,
        circuit_breaker,
        outlier_detection,
        retry_budget,
        tls: tls::peer(tls_at, transport_socket_matches, protocol)?,
        directory: directory(&at.field("metadata"), &directory_word)?,
    })
}

/// As `encode` writes it; empty: none.
fn directory(at: &At<'_>, word: &str) -> Result<Option<SessionDirectory>, DecodeError> {
    if word.is_empty() {
        return Ok(None);
    }
    let read = || {
        let mut parts = word.split(' ');
        let (namespace, service) = parts.next()?.split_once('/')?;
        let (carrier, name) = (parts.next()?, parts.next()?);
        let missing = Missing::parse(parts.next()?)?;
        let is_name = is_token(name) && parts.next().is_none();
        let key = match carrier {
            HEADER => SessionKey::Header(name.to_ascii_lowercase()),
            COOKIE => SessionKey::Cookie(name.to_owned()),
            _ => return None,
        };
        is_name.then_some(SessionDirectory {
            service: ServiceName::parse(namespace, service).ok()?,
            key,
            missing,
        })
    };
    let refuse = || at.invalid(format!("`{DIRECTORY}: {word}` is no session directory"));
    read().ok_or_else(refuse).map(Some)
}

/// The endpoint set must have the cluster's name.
fn eds(
    at: At<'_>,
    config: Option<cluster_v3::cluster::EdsClusterConfig>,
    name: &str,
) -> Result<(), DecodeError> {
    let config = config.ok_or_else(|| at.missing())?;
    ads(&at.field("eds_config"), config.eds_config)?;
    if config.service_name.is_empty() || config.service_name == name {
        return Ok(());
    }
    Err(at
        .field("service_name")
        .invalid("must be the cluster's name"))
}

/// Envoy's, where a cluster doesn't say it.
const ENVOYS_PANIC: u32 = 50;

/// Envoy's fields decide; our word only tells apart what is one to Envoy.
fn load_balancer(
    at: At<'_>,
    policy: i32,
    config: Option<cluster_v3::cluster::LbConfig>,
    word: &str,
) -> Result<(LoadBalancer, Option<SlowStart>), DecodeError> {
    use cluster_v3::cluster::{LbConfig, LbPolicy};
    const LEAST: &[LoadBalancer] = &[LoadBalancer::LeastRequest, LoadBalancer::P2c];
    let (candidates, slow): (&[LoadBalancer], _) = match (LbPolicy::try_from(policy), config) {
        (Ok(LbPolicy::LeastRequest), None) => (LEAST, None),
        (Ok(LbPolicy::LeastRequest), Some(LbConfig::LeastRequestLbConfig(mut config))) => {
            let slow = config.slow_start_config.take();
            let at = at.field("least_request_lb_config");
            ours(&at, &config, &encode::cluster::two_choices())?;
            (LEAST, slow)
        }
        (Ok(LbPolicy::RoundRobin), None) => (&[LoadBalancer::RoundRobin], None),
        (Ok(LbPolicy::RoundRobin), Some(LbConfig::RoundRobinLbConfig(config))) => {
            (&[LoadBalancer::RoundRobin], config.slow_start_config)
        }
        (Ok(LbPolicy::Random), None) => (&[LoadBalancer::Random], None),
        (Ok(LbPolicy::RingHash), None) => (&[LoadBalancer::RingHash], None),
        (Ok(LbPolicy::RingHash), Some(LbConfig::RingHashLbConfig(config))) => {
            let at = at.field("ring_hash_lb_config");
            ours(&at, &config, &encode::cluster::ring_hash())?;
            (&[LoadBalancer::RingHash], None)
        }
        (Ok(LbPolicy::Maglev), None) => (&[LoadBalancer::Maglev], None),
        (Ok(LbPolicy::Maglev), Some(LbConfig::MaglevLbConfig(config))) => {
            let at = at.field("maglev_lb_config");
            ours(&at, &config, &encode::cluster::maglev())?;
            (&[LoadBalancer::Maglev], None)
        }
        (
            Ok(
                LbPolicy::LeastRequest
                | LbPolicy::RoundRobin
                | LbPolicy::Random
                | LbPolicy::RingHash
                | LbPolicy::Maglev,
            ),
            Some(_),
        ) => return Err(at.field("lb_config").unsupported()),
        _ => return Err(at.field("lb_policy").unsupported()),
    };
    let said =
        |lb: &&LoadBalancer| word.is_empty() || encode::cluster::load_balancer_name(**lb) == word;
    let found = candidates.iter().find(said).copied();
    let found = found.ok_or_else(|| {
        at.field("metadata")
            .invalid(format!("`{LOAD_BALANCER}: {word}` contradicts lb_policy"))
    })?;
    let slow = slow.map(|slow| slow_start(at.field("slow_start_config"), slow));
    Ok((found, slow.transpose()?))
}

fn slow_start(
    at: At<'_>,
    message: cluster_v3::cluster::SlowStartConfig,
) -> Result<SlowStart, DecodeError> {
    let cluster_v3::cluster::SlowStartConfig {
        slow_start_window,
        aggression,
        min_weight_percent,
    } = message;
    refuse!(at; aggression);
    let window = slow_start_window.ok_or_else(|| at.field("slow_start_window").missing())?;
    let least = min_weight_percent.unwrap_or(Percent { value: 10.0 });
    Ok(SlowStart {
        window: positive(&at.field("slow_start_window"), window)?,
        min_weight_percent: percent(&at.field("min_weight_percent"), least)?,
    })
}

/// The protocol, and the pool as far as it is said here.
fn http_options(
    at: At<'_>,
    options: Option<prost_types::Any>,
    word: &str,
) -> Result<(Protocol, ConnectionPool), DecodeError> {
    // Envoy's defaults, and HTTP/1.1 where nothing is said.
    let mut pool = ConnectionPool {
        max_requests_per_connection: 0,
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(3600),
    };
    let said = Protocol::parse(word)
        .ok_or_else(|| at.invalid(format!("`{PROTOCOL}: {word}` is no protocol")))?;
    let Some(options) = options else {
        let protocol = if word.is_empty() {
            Protocol::Http1
        } else {
            said
        };
        return Ok((protocol, pool));
    };
    let upstreams_v3::HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = unpack(&at, &options)?;
    refuse!(at;
        upstream_http_protocol_options, http_filters, header_validation_config, outlier_detection,
        request_mirror_policies, hash_policy, retry_policy,
    );
    let core_v3::HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = common_http_protocol_options.unwrap_or_default();
    let common = at.field("common_http_protocol_options");
    refuse!(common;
        max_connection_duration, max_connection_duration_jitter, max_headers_count, max_response_headers_kb,
        max_stream_duration, headers_with_underscores_action,
    );
    if let Some(timeout) = idle_timeout {
        pool.idle_timeout = duration(&common.field("idle_timeout"), timeout)?;
    }
    pool.max_requests_per_connection = max_requests_per_connection.unwrap_or(0);
    let chosen =
        upstream_protocol_options.ok_or_else(|| at.field("upstream_protocol_options").missing())?;
    let all = [
        Protocol::Auto,
        Protocol::Http1,
        Protocol::H2c,
        Protocol::Grpc,
        Protocol::Tcp,
        Protocol::Udp,
    ];
    let mut alike = all
        .into_iter()
        .filter(|protocol| encode::cluster::protocol_options(*protocol) == chosen)
        .peekable();
    let Some(first) = alike.peek().copied() else {
        return Err(at
            .field("upstream_protocol_options")
            .invalid("only plain HTTP/1.1, HTTP/2 or both, without options"));
    };
    if word.is_empty() {
        return Ok((first, pool));
    }
    let contradiction = || {
        at.invalid(format!(
            "`{PROTOCOL}: {word}` contradicts upstream_protocol_options"
        ))
    };
    alike
        .find(|protocol| *protocol == said)
        .map(|protocol| (protocol, pool))
        .ok_or_else(contradiction)
}

fn limits(
    at: At<'_>,
    message: Option<cluster_v3::CircuitBreakers>,
) -> Result<(CircuitBreaker, RetryBudget), DecodeError> {
    use cluster_v3::circuit_breakers::{Thresholds, thresholds};
    let cluster_v3::CircuitBreakers {
        thresholds,
        per_host_thresholds,
    } = message.unwrap_or_default();
    refuse!(at; per_host_thresholds);
    if thresholds.len() > 1 {
        return Err(at.item("thresholds", 1).unsupported());
    }
    let at = at.item("thresholds", 0);
    let Thresholds {
        priority,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget,
        track_remaining: _, // Envoy's own statistics
        max_connection_pools,
    } = thresholds.into_iter().next().unwrap_or_default();
    refuse!(at; priority, max_connection_pools);
    let breaker = CircuitBreaker {
        max_connections: max_connections.unwrap_or(1024),
        max_pending_requests: max_pending_requests.unwrap_or(1024),
        max_requests: max_requests.unwrap_or(1024),
        max_retries: max_retries.unwrap_or(3),
    };
    let Some(thresholds::RetryBudget {
        budget_percent,
        budget_interval,
        min_retry_concurrency,
    }) = retry_budget
    else {
        // Without a budget the plain limit holds.
        return Ok((
            breaker,
            RetryBudget {
                percent: 0,
                min_concurrency: breaker.max_retries,
            },
        ));
    };
    let at = at.field("retry_budget");
    refuse!(at; budget_interval);
    let budget = RetryBudget {
        percent: percent(
            &at.field("budget_percent"),
            budget_percent.unwrap_or(Percent { value: 20.0 }),
        )?,
        min_concurrency: min_retry_concurrency.unwrap_or(3),
    };
    Ok((breaker, budget))
}

fn percent(at: &At<'_>, percent: Percent) -> Result<u32, DecodeError> {
    let whole = (0..=100).find(|whole| f64::from(*whole) == percent.value);
    whole.ok_or_else(|| {
        at.invalid(format!(
            "{} is no whole number from 0 to 100",
            percent.value
        ))
    })
}

fn detection(
    at: At<'_>,
    message: Option<cluster_v3::OutlierDetection>,
) -> Result<OutlierDetection, DecodeError> {
    let Some(message) = message else {
        return Ok(OutlierDetection {
            consecutive_5xx: 0,
            consecutive_gateway: 0,
            ..OutlierDetection::default()
        });
    };
    let cluster_v3::OutlierDetection {
        consecutive_5xx,
        interval,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx,
        enforcing_success_rate,
        success_rate_minimum_hosts,
        success_rate_request_volume,
        success_rate_stdev_factor,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure,
        split_external_local_origin_errors,
        consecutive_local_origin_failure: _, // only with the split
        enforcing_consecutive_local_origin_failure: _,
        enforcing_local_origin_success_rate: _,
        failure_percentage_threshold: _, // of a detector that is off
        enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin: _,
        failure_percentage_minimum_hosts: _,
        failure_percentage_request_volume: _,
        max_ejection_time,
        max_ejection_time_jitter,
        successful_active_health_check_uneject_host: _, // there are no active checks
        monitors,
        always_eject_one_host,
        detect_degraded_hosts,
    } = message;
    refuse!(at;
        split_external_local_origin_errors, max_ejection_time, max_ejection_time_jitter, monitors,
        detect_degraded_hosts,
    );
    let success_rate_stdev = match enforcing_success_rate.unwrap_or(100) {
        0 => 0,
        100 => {
            let is_other = |value: Option<u32>, ours| value.is_some_and(|value| value != ours);
            if is_other(success_rate_minimum_hosts, 5) || is_other(success_rate_request_volume, 100)
            {
                return Err(at
                    .field("success_rate_minimum_hosts")
                    .invalid("this sidecar looks at 5 hosts or more, of 100 requests or more"));
            }
            success_rate_stdev_factor.unwrap_or(1900)
        }
        _ => {
            return Err(at
                .field("enforcing_success_rate")
                .invalid("must be 0 or 100"));
        }
    };
    if enforcing_failure_percentage.unwrap_or(0) != 0 {
        return Err(at
            .field("enforcing_failure_percentage")
            .invalid("must be 0: no such detector here"));
    }
    if always_eject_one_host != Some(true) {
        return Err(at
            .field("always_eject_one_host")
            .invalid("must be true: this sidecar always may"));
    }
    let max_ejection_percent = max_ejection_percent.unwrap_or(10);
    if max_ejection_percent > 100 {
        return Err(at
            .field("max_ejection_percent")
            .invalid("must be at most 100"));
    }
    let (of_5xx, of_gateway) = (
        "enforcing_consecutive_5xx",
        "enforcing_consecutive_gateway_failure",
    );
    let seconds = |seconds| prost_types::Duration { seconds, nanos: 0 };
    Ok(OutlierDetection {
        consecutive_5xx: enforced(
            &at.field(of_5xx),
            consecutive_5xx,
            enforcing_consecutive_5xx.unwrap_or(100),
        )?,
        consecutive_gateway: enforced(
            &at.field(of_gateway),
            consecutive_gateway_failure,
            enforcing_consecutive_gateway_failure.unwrap_or(0),
        )?,
        interval: positive(&at.field("interval"), interval.unwrap_or(seconds(10)))?,
        base_ejection: positive(
            &at.field("base_ejection_time"),
            base_ejection_time.unwrap_or(seconds(30)),
        )?,
        max_ejection_percent,
        success_rate_stdev,
        latency_factor: 0, // Envoy has no word for it
    })
}

/// The count that ejects; 0 where it never does.
fn enforced(at: &At<'_>, count: Option<u32>, percent: u32) -> Result<u32, DecodeError> {
    match percent {
        0 => Ok(0),
        100 => Ok(count.unwrap_or(5)),
        _ => Err(at.invalid("must be 0 or 100")),
    }
}
