//! Mutual TLS in Envoy's types, in the shape that Istio gave it: the certificate and the roots over SDS, the ids of the
//! other end as exact names, and per endpoint whether it is spoken at all.

use matcher_v3::string_matcher::MatchPattern;
use phalanx_model::identity::{SpiffeId, TrustDomain};
use phalanx_model::instance::Protocol;
use phalanx_model::resource::{MtlsMode, PeerTls};
use phalanx_proto::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use phalanx_proto::envoy::config::core::v3 as core_v3;
use phalanx_proto::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use phalanx_proto::envoy::extensions::transport_sockets::tls::v3 as tls_v3;
use phalanx_proto::envoy::r#type::matcher::v3 as matcher_v3;
use prost::Name;
use prost_types::Struct;

use super::{ads, any, string};

/// The names of the secrets: one's own certificate, and whom to trust.
pub const OWN: &str = "default";
pub const ROOTS: &str = "roots";

/// What an endpoint is matched by, in its `filter_metadata`.
pub(crate) const SOCKET_MATCH: &str = "envoy.transport_socket_match";
pub(crate) const MODE: &str = "tlsMode";
pub(crate) const MUTUAL: &str = "mutual";
const PLAIN: &str = "plain";

pub(crate) const TLS_SOCKET: &str = "envoy.transport_sockets.tls";
const RAW_SOCKET: &str = "envoy.transport_sockets.raw_buffer";

/// Of raw TCP between sidecars.
const ALPN_TCP: &str = "phalanx-tcp";
pub(crate) const ALPN_HTTP: [&str; 2] = ["h2", "http/1.1"];

/// The hybrid post-quantum group first.
const GROUPS: [&str; 3] = ["X25519MLKEM768", "X25519", "P-256"];

/// An empty list of names would let everybody be called.
const NOBODY: &str = "nobody";

/// Both secrets, for [`crate::Encoded::with_secrets`].
pub(crate) fn secrets() -> Vec<String> {
    vec![OWN.to_owned(), ROOTS.to_owned()]
}

/// TLS to endpoints that are marked as mutual, plain text to the others.
pub(crate) fn socket_matches(tls: &PeerTls, protocol: Protocol) -> Vec<TransportSocketMatch> {
    let mutual = Struct {
        fields: [(MODE.to_owned(), string(MUTUAL))].into(),
    };
    let matched = |name: &str, r#match, transport_socket| TransportSocketMatch {
        name: name.to_owned(),
        r#match: Some(r#match),
        transport_socket: Some(transport_socket),
    };
    vec![
        matched(MUTUAL, mutual, socket(TLS_SOCKET, &upstream(tls, protocol))),
        matched(PLAIN, Struct::default(), plain()),
    ]
}

/// In an endpoint's metadata.
pub(crate) fn mutual_endpoint() -> (String, Struct) {
    let fields = [(MODE.to_owned(), string(MUTUAL))].into();
    (SOCKET_MATCH.to_owned(), Struct { fields })
}

pub(crate) fn plain() -> core_v3::TransportSocket {
    socket(RAW_SOCKET, &RawBuffer {})
}

/// Clients must show a certificate of the mesh. Sessions are not resumed: Envoy would serve a peer whose certificate has
/// expired, or was revoked, since. A staple is sent while there is one.
pub(crate) fn downstream(trust_domain: &TrustDomain, is_tcp: bool) -> core_v3::TransportSocket {
    use tls_v3::downstream_tls_context::{OcspStaplePolicy, SessionTicketKeysType};
    let peers = san(MatchPattern::Prefix(format!("spiffe://{trust_domain}/")));
    let alpn: &[&str] = if is_tcp { &[ALPN_TCP] } else { &ALPN_HTTP };
    let context = tls_v3::DownstreamTlsContext {
        common_tls_context: Some(common(vec![peers], alpn)),
        require_client_certificate: Some(true),
        disable_stateful_session_resumption: true,
        ocsp_staple_policy: OcspStaplePolicy::LenientStapling.into(),
        session_ticket_keys_type: Some(SessionTicketKeysType::DisableStatelessSessionResumption(
            true,
        )),
        ..Default::default()
    };
    socket(TLS_SOCKET, &context)
}

/// HTTP says nothing of ALPN: Envoy then offers what the connection pool speaks, which may be the caller's choice.
fn upstream(tls: &PeerTls, protocol: Protocol) -> tls_v3::UpstreamTlsContext {
    let exact = |id: &SpiffeId| san(MatchPattern::Exact(id.to_string()));
    let mut peers: Vec<_> = tls.ids.iter().map(exact).collect();
    if peers.is_empty() {
        peers.push(san(MatchPattern::Exact(NOBODY.to_owned())));
    }
    let alpn: &[&str] = match protocol {
        Protocol::Tcp => &[ALPN_TCP],
        Protocol::Auto | Protocol::Http1 | Protocol::H2c | Protocol::Grpc | Protocol::Udp => &[],
    };
    tls_v3::UpstreamTlsContext {
        common_tls_context: Some(common(peers, alpn)),
        max_session_keys: Some(0),
        ..Default::default()
    }
}

/// The instance of the bootstrap's `certificate_providers` that gRPC takes certificates from.
const PROVIDER: &str = "default";

/// For gRPC (gRFC A29), which has no SDS, takes its own parameters and knows the untyped names only.
#[expect(deprecated, reason = "gRPC reads no other field")]
pub(crate) fn provided_upstream(tls: &PeerTls) -> core_v3::TransportSocket {
    let exact = |text: String| matcher_v3::StringMatcher {
        match_pattern: Some(MatchPattern::Exact(text)),
        ..Default::default()
    };
    let mut peers: Vec<_> = tls.ids.iter().map(|id| exact(id.to_string())).collect();
    if peers.is_empty() {
        peers.push(exact(NOBODY.to_owned()));
    }
    let context = tls_v3::CertificateValidationContext {
        match_subject_alt_names: peers,
        ..Default::default()
    };
    let context = tls_v3::UpstreamTlsContext {
        common_tls_context: Some(provided(context)),
        ..Default::default()
    };
    socket(TLS_SOCKET, &context)
}

/// A gRPC server speaks TLS or plain text, never both; whoever shows no certificate is nobody, if that is permitted.
pub(crate) fn provided_downstream(mode: MtlsMode) -> Option<core_v3::TransportSocket> {
    if mode == MtlsMode::Off {
        return None;
    }
    let context = tls_v3::DownstreamTlsContext {
        common_tls_context: Some(provided(Default::default())),
        require_client_certificate: Some(mode == MtlsMode::Strict),
        ..Default::default()
    };
    Some(socket(TLS_SOCKET, &context))
}

fn provided(context: tls_v3::CertificateValidationContext) -> tls_v3::CommonTlsContext {
    use tls_v3::common_tls_context::ValidationContextType;
    let instance = || tls_v3::CertificateProviderPluginInstance {
        instance_name: PROVIDER.to_owned(),
        ..Default::default()
    };
    let context = tls_v3::CertificateValidationContext {
        ca_certificate_provider_instance: Some(instance()),
        ..context
    };
    tls_v3::CommonTlsContext {
        tls_certificate_provider_instance: Some(instance()),
        validation_context_type: Some(ValidationContextType::ValidationContext(context)),
        ..Default::default()
    }
}

fn common(
    match_typed_subject_alt_names: Vec<tls_v3::SubjectAltNameMatcher>,
    alpn: &[&str],
) -> tls_v3::CommonTlsContext {
    use tls_v3::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
    let context = tls_v3::CertificateValidationContext {
        match_typed_subject_alt_names,
        ..Default::default()
    };
    let combined = CombinedCertificateValidationContext {
        default_validation_context: Some(context),
        validation_context_sds_secret_config: Some(sds(ROOTS)),
        ..Default::default()
    };
    tls_v3::CommonTlsContext {
        tls_params: Some(params()),
        tls_certificate_sds_secret_configs: vec![sds(OWN)],
        alpn_protocols: alpn.iter().map(|name| (*name).to_owned()).collect(),
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(combined)),
        ..Default::default()
    }
}

pub(crate) fn params() -> tls_v3::TlsParameters {
    use tls_v3::tls_parameters::TlsProtocol;
    tls_v3::TlsParameters {
        tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
        tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
        ecdh_curves: GROUPS.map(str::to_owned).to_vec(),
        ..Default::default()
    }
}

fn sds(name: &str) -> tls_v3::SdsSecretConfig {
    tls_v3::SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ads()),
    }
}

pub(crate) fn san(pattern: MatchPattern) -> tls_v3::SubjectAltNameMatcher {
    tls_v3::SubjectAltNameMatcher {
        san_type: tls_v3::subject_alt_name_matcher::SanType::Uri.into(),
        matcher: Some(matcher_v3::StringMatcher {
            match_pattern: Some(pattern),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn socket<M: Name>(name: &str, config: &M) -> core_v3::TransportSocket {
    core_v3::TransportSocket {
        name: name.to_owned(),
        config_type: Some(core_v3::transport_socket::ConfigType::TypedConfig(any(
            config,
        ))),
    }
}
