//! Resources for data planes that subscribe to each kind on a stream of its own: what says "from the aggregated stream" says
//! instead from which cluster of the data plane's bootstrap, and by which protocol.

use phalanx_proto::envoy::config::cluster::v3::Cluster;
use phalanx_proto::envoy::config::core::v3 as core;
use phalanx_proto::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use phalanx_proto::envoy::config::listener::v3::Listener;
use phalanx_proto::envoy::config::listener::v3::filter::ConfigType;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use phalanx_proto::envoy::extensions::transport_sockets::tls::v3 as tls;
use prost::{Message, Name};

use crate::encode::ads;
use crate::kind::Kind;
use crate::snapshot::Encoded;

/// Where a data plane takes resources from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The bootstrap's cluster of the control plane.
    pub cluster: String,
    /// Else the state of the world.
    pub is_delta: bool,
}

/// None for what names no source, or is no resource of ours.
pub fn rewrite(resource: &Encoded, source: &Source) -> Option<Encoded> {
    let body = match resource.kind {
        Kind::Cluster => cluster(resource, source)?,
        Kind::Listener => listener(resource, source)?,
        Kind::Secret | Kind::Endpoints | Kind::Routes => return None,
    };
    let refs = resource.refs.clone();
    let rewritten = Encoded::new(resource.kind, resource.name.clone(), body.into(), refs);
    Some(rewritten.with_secrets(resource.secrets.clone()))
}

fn cluster(resource: &Encoded, source: &Source) -> Option<Vec<u8>> {
    let mut cluster = Cluster::decode(resource.body.as_ref()).ok()?;
    let eds = cluster.eds_cluster_config.as_mut();
    let eds = eds.and_then(|eds| replace(eds.eds_config.as_mut()?, source));
    let mut is_changed = eds.is_some();
    for matched in &mut cluster.transport_socket_matches {
        is_changed |= socket::<tls::UpstreamTlsContext>(&mut matched.transport_socket, source);
    }
    is_changed.then(|| cluster.encode_to_vec())
}

fn listener(resource: &Encoded, source: &Source) -> Option<Vec<u8>> {
    let mut listener = Listener::decode(resource.body.as_ref()).ok()?;
    let mut is_changed = false;
    for chain in &mut listener.filter_chains {
        is_changed |= socket::<tls::DownstreamTlsContext>(&mut chain.transport_socket, source);
    }
    let chains = listener.filter_chains.iter_mut();
    let filters = chains.flat_map(|chain| &mut chain.filters);
    for filter in filters {
        let Some(ConfigType::TypedConfig(any)) = &mut filter.config_type else {
            continue;
        };
        is_changed |= connection_manager(any, source).is_some();
    }
    is_changed.then(|| listener.encode_to_vec())
}

fn connection_manager(any: &mut prost_types::Any, source: &Source) -> Option<()> {
    use hcm::http_connection_manager::RouteSpecifier;
    if any.type_url != hcm::HttpConnectionManager::type_url() {
        return None;
    }
    let mut manager = hcm::HttpConnectionManager::decode(any.value.as_slice()).ok()?;
    let Some(RouteSpecifier::Rds(rds)) = &mut manager.route_specifier else {
        return None;
    };
    replace(rds.config_source.as_mut()?, source)?;
    any.value = manager.encode_to_vec();
    Some(())
}

/// A context of TLS, by its common part.
trait Context: Message + Name + Default {
    fn common(&mut self) -> Option<&mut tls::CommonTlsContext>;
}

impl Context for tls::UpstreamTlsContext {
    fn common(&mut self) -> Option<&mut tls::CommonTlsContext> {
        self.common_tls_context.as_mut()
    }
}

impl Context for tls::DownstreamTlsContext {
    fn common(&mut self) -> Option<&mut tls::CommonTlsContext> {
        self.common_tls_context.as_mut()
    }
}

/// Whether secrets that a socket takes come from elsewhere now.
fn socket<C: Context>(socket: &mut Option<core::TransportSocket>, source: &Source) -> bool {
    use tls::common_tls_context::ValidationContextType;
    let config = socket
        .as_mut()
        .and_then(|socket| socket.config_type.as_mut());
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = config else {
        return false;
    };
    if any.type_url != C::type_url() {
        return false;
    }
    let Ok(mut context) = C::decode(any.value.as_slice()) else {
        return false;
    };
    let Some(common) = context.common() else {
        return false;
    };
    let mut is_changed = false;
    let mut secret = |config: &mut tls::SdsSecretConfig| {
        let source = config.sds_config.as_mut().and_then(|c| replace(c, source));
        is_changed |= source.is_some();
    };
    common
        .tls_certificate_sds_secret_configs
        .iter_mut()
        .for_each(&mut secret);
    if let Some(ValidationContextType::CombinedValidationContext(combined)) =
        &mut common.validation_context_type
    {
        combined
            .validation_context_sds_secret_config
            .iter_mut()
            .for_each(&mut secret);
    }
    if is_changed {
        any.value = context.encode_to_vec();
    }
    is_changed
}

/// None when it is no aggregated source.
fn replace(config: &mut core::ConfigSource, source: &Source) -> Option<()> {
    use core::api_config_source::ApiType;
    use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
    if *config != ads() {
        return None;
    }
    let api_type = match source.is_delta {
        true => ApiType::DeltaGrpc,
        false => ApiType::Grpc,
    };
    let envoy = EnvoyGrpc {
        cluster_name: source.cluster.clone(),
        ..Default::default()
    };
    let service = core::GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(envoy)),
        ..Default::default()
    };
    let api = core::ApiConfigSource {
        api_type: api_type.into(),
        transport_api_version: core::ApiVersion::V3.into(),
        grpc_services: vec![service],
        ..Default::default()
    };
    config.config_source_specifier = Some(ConfigSourceSpecifier::ApiConfigSource(api));
    Some(())
}

#[cfg(test)]
mod tests {
    use phalanx_model::name::Direction;
    use phalanx_model::resource;

    use super::*;
    use crate::encode;

    #[test]
    fn a_listener_takes_its_routes_from_the_named_cluster() {
        let listener = encode::listener(&resource::Listener {
            name: "outbound".into(),
            address: "127.0.0.1:15001".parse().unwrap(),
            direction: Direction::Outbound,
            protocol: resource::ListenerProtocol::Http {
                route_table: "outbound".into(),
            },
        });
        let source = Source {
            cluster: "the-control-plane".into(),
            is_delta: true,
        };
        let rewritten = rewrite(&listener, &source).unwrap();
        assert_eq!(rewritten.refs, listener.refs);
        assert_ne!(rewritten.version, listener.version);
        let text = String::from_utf8_lossy(&rewritten.body).into_owned();
        assert!(text.contains("the-control-plane"));
        assert!(rewrite(&rewritten, &source).is_none(), "once is enough");
    }

    #[test]
    fn secrets_come_from_the_named_cluster_too() {
        let name = phalanx_model::ClusterName::outbound(
            phalanx_model::ServiceName::new("default", "battle"),
            80,
        );
        let cluster = encode::cluster(&resource::Cluster {
            tls: Some(resource::PeerTls { ids: Vec::new() }),
            ..resource::Cluster::new(name, phalanx_model::instance::Protocol::Auto)
        });
        let inbound = encode::listener(&resource::Listener {
            name: "inbound".into(),
            address: "127.0.0.1:15006".parse().unwrap(),
            direction: Direction::Inbound,
            protocol: resource::ListenerProtocol::Inbound {
                trust_domain: Default::default(),
                rules: Default::default(),
            },
        });
        let source = Source {
            cluster: "the-control-plane".into(),
            is_delta: false,
        };
        // Endpoints, the certificate and the roots; or the latter two.
        for (resource, sources) in [(cluster, 3), (inbound, 2)] {
            let rewritten = rewrite(&resource, &source).unwrap();
            assert_eq!(rewritten.secrets, ["default", "roots"]);
            let text = String::from_utf8_lossy(&rewritten.body).into_owned();
            assert_eq!(text.matches("the-control-plane").count(), sources);
            assert!(rewrite(&rewritten, &source).is_none(), "once is enough");
        }
    }

    #[test]
    fn what_is_not_ours_stays_as_it_is() {
        let source = Source {
            cluster: "x".into(),
            is_delta: false,
        };
        for kind in Kind::ALL {
            let garbage = Encoded::new(kind, "a", b"\xff".as_slice().into(), Vec::new());
            assert!(rewrite(&garbage, &source).is_none());
        }
    }
}
