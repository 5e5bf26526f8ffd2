//! Mutual TLS towards a cluster: whom it expects is read out of its sockets, the rest has to be as ours.

use phalanx_model::instance::Protocol;
use phalanx_model::resource::PeerTls;
use phalanx_proto::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::extensions::transport_sockets::tls::v3 as tls_v3;
use phalanx_proto::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use prost_types::value::Kind as ValueKind;

use super::DecodeError;
use super::field::{At, unpack};
use crate::encode::tls::{MODE, MUTUAL, SOCKET_MATCH, socket_matches};

/// Of `transport_socket_matches`; none without any.
pub(super) fn peer(
    at: At<'_>,
    matches: Vec<TransportSocketMatch>,
    protocol: Protocol,
) -> Result<Option<PeerTls>, DecodeError> {
    let Some(first) = matches.first() else {
        return Ok(None);
    };
    let socket = first.transport_socket.as_ref();
    let Some(core_v3::transport_socket::ConfigType::TypedConfig(config)) =
        socket.and_then(|socket| socket.config_type.as_ref())
    else {
        return Err(at.field("transport_socket").missing());
    };
    let context: tls_v3::UpstreamTlsContext = unpack(&at, config)?;
    let mut ids: Vec<_> = names(&context)
        .filter_map(|name| name.parse().ok())
        .collect();
    ids.sort_unstable();
    ids.dedup();
    let tls = PeerTls { ids };
    if socket_matches(&tls, protocol) != matches {
        let why = "must be mutual TLS with exact SPIFFE ids for `tlsMode: mutual`, and plain text";
        return Err(at.invalid(why));
    }
    Ok(Some(tls))
}

fn names(context: &tls_v3::UpstreamTlsContext) -> impl Iterator<Item = &str> {
    use tls_v3::common_tls_context::ValidationContextType;
    let common = context.common_tls_context.as_ref();
    let validation = common.and_then(|common| common.validation_context_type.as_ref());
    let names = match validation {
        Some(ValidationContextType::CombinedValidationContext(combined)) => combined
            .default_validation_context
            .as_ref()
            .map_or(&[][..], |context| &context.match_typed_subject_alt_names),
        _ => &[],
    };
    names.iter().filter_map(
        |name| match name.matcher.as_ref()?.match_pattern.as_ref()? {
            MatchPattern::Exact(text) => Some(text.as_str()),
            _ => None,
        },
    )
}

/// Whether an endpoint's metadata says that it is called with mutual TLS.
pub(super) fn is_mutual(metadata: Option<&core_v3::Metadata>) -> bool {
    let words = metadata.and_then(|metadata| metadata.filter_metadata.get(SOCKET_MATCH));
    let mode = words.and_then(|words| words.fields.get(MODE));
    matches!(mode.and_then(|mode| mode.kind.as_ref()), Some(ValueKind::StringValue(text)) if text == MUTUAL)
}
