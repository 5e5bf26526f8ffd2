//! Listeners. What is fixed in an HTTP connection manager must be unset or as [`crate::encode::listener`] has it; our
//! sidecar normalises paths and keeps its limits either way.

use phalanx_model::identity::TrustDomain;
use phalanx_model::name::Direction;
use phalanx_model::resource::{Listener, ListenerProtocol};
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::config::listener::v3 as listener_v3;
use phalanx_proto::envoy::extensions::filters::http::router::v3::Router;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;
use phalanx_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_v3;
use prost::Name;

use super::field::{At, address, ads, cluster_name, fixed, nonempty, refuse, single, unpack};
use super::{DecodeError, gateway, inbound, udp};
use crate::encode;

#[expect(deprecated, reason = "every field is named")]
pub(super) fn resource(message: listener_v3::Listener) -> Result<Listener, DecodeError> {
    let at = At::Root("Listener");
    if let Some(domain) = inbound::trust_domain(&message) {
        let domain = TrustDomain::parse(domain);
        let domain = domain.map_err(|error| at.field("metadata").invalid(format!("{error}")))?;
        return inbound::resource(message, domain);
    }
    if gateway::is_ours(&message) {
        return gateway::resource(message);
    }
    if udp::is_ours(&message) {
        return udp::resource(message);
    }
    let listener_v3::Listener {
        name,
        address: socket,
        additional_addresses,
        stat_prefix: _, // Envoy's own statistics
        stats_matcher,
        filter_chains,
        fcds_config,
        filter_chain_matcher,
        use_original_dst,
        default_filter_chain,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        metadata: _,
        deprecated_v1,
        drain_type,
        listener_filters,
        listener_filters_timeout,
        continue_on_listener_filters_timeout,
        transparent,
        freebind,
        socket_options,
        tcp_fast_open_queue_length,
        traffic_direction,
        udp_listener_config,
        api_listener,
        connection_balance_config,
        reuse_port,
        enable_reuse_port,
        access_log,
        tcp_backlog_size,
        max_connections_to_accept_per_socket_event,
        bind_to_port,
        enable_mptcp,
        ignore_global_conn_limit,
        bypass_overload_manager,
        tcp_keepalive,
        listener_specifier,
    } = message;
    refuse!(at;
        additional_addresses, stats_matcher, fcds_config, filter_chain_matcher, use_original_dst,
        default_filter_chain, per_connection_buffer_limit_bytes, per_connection_buffer_high_watermark_timeout,
        deprecated_v1, drain_type, listener_filters, listener_filters_timeout,
        continue_on_listener_filters_timeout, transparent, freebind, socket_options, tcp_fast_open_queue_length,
        udp_listener_config, api_listener, connection_balance_config, reuse_port, enable_reuse_port, access_log,
        tcp_backlog_size, max_connections_to_accept_per_socket_event, bind_to_port, enable_mptcp,
        ignore_global_conn_limit, bypass_overload_manager, tcp_keepalive, listener_specifier,
    );
    let direction = match core_v3::TrafficDirection::try_from(traffic_direction) {
        Ok(core_v3::TrafficDirection::Inbound) => Direction::Inbound,
        Ok(core_v3::TrafficDirection::Outbound) => Direction::Outbound,
        _ => {
            return Err(at
                .field("traffic_direction")
                .invalid("must be INBOUND or OUTBOUND"));
        }
    };
    let chain = single(&at.field("filter_chains"), filter_chains)?;
    Ok(Listener {
        name: nonempty(&at.field("name"), name)?,
        address: address(&at.field("address"), socket)?,
        direction,
        protocol: filter_chain(at.item("filter_chains", 0), chain, direction)?,
    })
}

#[expect(deprecated, reason = "every field is named")]
fn filter_chain(
    at: At<'_>,
    chain: listener_v3::FilterChain,
    direction: Direction,
) -> Result<ListenerProtocol, DecodeError> {
    let listener_v3::FilterChain {
        filter_chain_match,
        filters,
        use_proxy_proto,
        metadata: _,
        transport_socket,
        transport_socket_connect_timeout,
        name: _, // for updates in Envoy
    } = chain;
    refuse!(at; filter_chain_match, use_proxy_proto, transport_socket, transport_socket_connect_timeout);
    let listener_v3::Filter {
        name: _,
        config_type,
    } = single(&at.field("filters"), filters)?;
    let at = at.item("filters", 0);
    let config = match config_type {
        Some(listener_v3::filter::ConfigType::TypedConfig(config)) => config,
        Some(_) => return Err(at.field("config_discovery").unsupported()),
        None => return Err(at.field("typed_config").missing()),
    };
    let at = at.field("typed_config");
    if config.type_url.ends_with(&tcp_v3::TcpProxy::full_name()) {
        return tcp_proxy(at, unpack(&at, &config)?);
    }
    let route_table = connection_manager(at, unpack(&at, &config)?, direction)?;
    Ok(ListenerProtocol::Http { route_table })
}

/// The name of its route table.
#[expect(deprecated, reason = "every field is named")]
fn connection_manager(
    at: At<'_>,
    message: hcm_v3::HttpConnectionManager,
    direction: Direction,
) -> Result<String, DecodeError> {
    use hcm_v3::http_connection_manager::RouteSpecifier;
    let hcm_v3::HttpConnectionManager {
        codec_type,
        stat_prefix: _, // Envoy's own statistics
        http_filters,
        add_user_agent,
        tracing,
        common_http_protocol_options,
        http1_safe_max_connection_duration,
        http_protocol_options,
        http2_protocol_options,
        http3_protocol_options,
        server_name,
        server_header_transformation,
        scheme_header_transformation,
        max_request_headers_kb,
        stream_idle_timeout,
        stream_flush_timeout,
        request_timeout,
        request_headers_timeout,
        drain_timeout,
        drain_timeout_jitter,
        delayed_close_timeout,
        access_log,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        internal_address_config,
        skip_xff_append,
        via,
        generate_request_id,
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert_details,
        set_current_client_cert_details,
        forward_client_cert_matcher,
        proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        upgrade_configs,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port,
        stream_error_on_invalid_http_message,
        path_normalization_options,
        strip_trailing_host_dot,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload,
        add_proxy_protocol_connection_state,
        forward_proto_config,
        route_specifier,
        strip_port_mode,
    } = message;
    refuse!(at;
        add_user_agent, tracing, http1_safe_max_connection_duration, http_protocol_options, http3_protocol_options,
        server_name, scheme_header_transformation, stream_flush_timeout, request_timeout, drain_timeout_jitter,
        delayed_close_timeout, access_log, access_log_flush_interval, flush_access_log_on_new_request,
        access_log_options, use_remote_address, xff_num_trusted_hops, original_ip_detection_extensions,
        early_header_mutation_extensions, internal_address_config, skip_xff_append, via, generate_request_id,
        preserve_external_request_id, always_set_request_id_in_response, forward_client_cert_details,
        set_current_client_cert_details, forward_client_cert_matcher, proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6, request_id_extension, strip_matching_host_port,
        stream_error_on_invalid_http_message, path_normalization_options, proxy_status_config,
        typed_header_validation_config, append_x_forwarded_port, append_local_overload,
        add_proxy_protocol_connection_state, forward_proto_config, strip_port_mode,
    );
    let ours = encode::listener::connection_manager("", direction, "");
    fixed!(at, ours;
        codec_type, common_http_protocol_options, http2_protocol_options, server_header_transformation,
        max_request_headers_kb, stream_idle_timeout, request_headers_timeout, drain_timeout, upgrade_configs,
        normalize_path, merge_slashes, path_with_escaped_slashes_action, local_reply_config, strip_trailing_host_dot,
    );
    filters(at, http_filters)?;
    match route_specifier {
        Some(RouteSpecifier::Rds(hcm_v3::Rds {
            config_source,
            route_config_name,
        })) => {
            let at = at.field("rds");
            ads(&at.field("config_source"), config_source)?;
            nonempty(&at.field("route_config_name"), route_config_name)
        }
        Some(RouteSpecifier::RouteConfig(_)) => Err(at.field("route_config").unsupported()),
        Some(RouteSpecifier::ScopedRoutes(_)) => Err(at.field("scoped_routes").unsupported()),
        None => Err(at.field("rds").missing()),
    }
}

/// The router, and before it only what routes can ask for.
#[expect(deprecated, reason = "every field is named")]
fn filters(at: At<'_>, mut filters: Vec<hcm_v3::HttpFilter>) -> Result<(), DecodeError> {
    let last = filters.pop().ok_or_else(|| {
        at.field("http_filters")
            .invalid("the router filter is required")
    })?;
    let known = encode::routes::beside::filters();
    if let Some(place) = filters.iter().position(|filter| !known.contains(filter)) {
        return Err(at.item("http_filters", place).unsupported());
    }
    let at = at.item("http_filters", filters.len());
    let hcm_v3::HttpFilter {
        name: _,
        is_optional: _,
        disabled,
        config_type,
    } = last;
    refuse!(at; disabled);
    let config = match config_type {
        Some(hcm_v3::http_filter::ConfigType::TypedConfig(config)) => config,
        Some(_) => return Err(at.field("config_discovery").unsupported()),
        None => return Err(at.field("typed_config").missing()),
    };
    let at = at.field("typed_config");
    let Router {
        dynamic_stats: _, // Envoy's own statistics
        start_child_span,
        upstream_log,
        upstream_log_options,
        suppress_envoy_headers: _, // we never write any
        strict_check_headers,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats: _,
        upstream_http_filters,
        reject_connect_request_early_data,
    } = unpack(&at, &config)?;
    refuse!(at;
        start_child_span, upstream_log, upstream_log_options, strict_check_headers, respect_expected_rq_timeout,
        upstream_http_filters, reject_connect_request_early_data,
    );
    Ok(())
}

#[expect(deprecated, reason = "every field is named")]
fn tcp_proxy(at: At<'_>, message: tcp_v3::TcpProxy) -> Result<ListenerProtocol, DecodeError> {
    use tcp_v3::tcp_proxy::ClusterSpecifier;
    let tcp_v3::TcpProxy {
        stat_prefix: _, // Envoy's own statistics
        on_demand,
        metadata_match,
        idle_timeout,
        downstream_idle_timeout,
        upstream_idle_timeout,
        access_log,
        max_connect_attempts,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval,
        flush_access_log_on_connected,
        access_log_options,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy,
        upstream_connect_mode,
        max_early_data_bytes,
        check_drain_close,
        cluster_specifier,
    } = message;
    refuse!(at;
        on_demand, metadata_match, idle_timeout, downstream_idle_timeout, upstream_idle_timeout, access_log,
        max_connect_attempts, backoff_options, hash_policy, tunneling_config, max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage, access_log_flush_interval,
        flush_access_log_on_connected, access_log_options, proxy_protocol_tlvs, proxy_protocol_tlv_merge_policy,
        upstream_connect_mode, max_early_data_bytes, check_drain_close,
    );
    match cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => Ok(ListenerProtocol::Tcp {
            cluster: cluster_name(&at.field("cluster"), &name)?,
        }),
        Some(ClusterSpecifier::WeightedClusters(_)) => {
            Err(at.field("weighted_clusters").unsupported())
        }
        None => Err(at.field("cluster").missing()),
    }
}
