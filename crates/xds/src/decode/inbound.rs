//! The listener for what others send. What it says of modes and callers is read out of its chains; then it has to be what
//! these make, to the byte, so that nothing in it is passed over.

use phalanx_model::identity::TrustDomain;
use phalanx_model::name::Direction;
use phalanx_model::resource::colour::EdgeColours;
use phalanx_model::resource::{
    Access, AccessPolicy, Effect, Inbound, InboundRule, Listener, ListenerProtocol, MtlsMode,
};
use phalanx_proto::envoy::config::listener::v3 as listener_v3;
use phalanx_proto::envoy::extensions::filters::http::rbac::v3 as filter_v3;
use phalanx_proto::envoy::extensions::filters::network::http_connection_manager::v3 as hcm_v3;

use super::DecodeError;
use super::field::{At, address, metadata, nonempty, single, unpack};
use super::{access, limits};
use crate::encode;
use crate::encode::gateway::COLOURS;
use crate::encode::inbound::{IN_PLAIN, OVER_TLS, Spoken, TRUST_DOMAIN};

/// None: it is another kind of listener.
pub(super) fn trust_domain(message: &listener_v3::Listener) -> Option<&str> {
    use prost_types::value::Kind as ValueKind;
    let words = message
        .metadata
        .as_ref()?
        .filter_metadata
        .get(encode::METADATA)?;
    match words.fields.get(TRUST_DOMAIN)?.kind.as_ref()? {
        ValueKind::StringValue(text) => Some(text),
        _ => None,
    }
}

pub(super) fn resource(
    message: listener_v3::Listener,
    trust_domain: TrustDomain,
) -> Result<Listener, DecodeError> {
    let at = At::Root("Listener");
    let name = nonempty(&at.field("name"), message.name.clone())?;
    let socket = address(&at.field("address"), message.address.clone())?;
    let words_at = at.field("metadata");
    let words = [TRUST_DOMAIN, COLOURS];
    let [_, colours] = metadata(&words_at, message.metadata.clone(), words)?;
    let colours = colours.parse::<EdgeColours>();
    let mut rules = Inbound {
        colours: colours.map_err(|error| words_at.invalid(error.to_string()))?,
        ..Inbound::default()
    };
    let mut has_default = false;
    for (index, chain) in message.filter_chains.iter().enumerate() {
        let at = at.item("filter_chains", index);
        let (port, mode, access) = rule(at, chain, &trust_domain)?;
        let limits = limits::limits(&at, chain.metadata.as_ref())?;
        let known = match port {
            Some(port) => rules.ports.get_mut(&port),
            None => has_default.then_some(&mut rules.default),
        };
        let rule = match known {
            // The second chain of a rule: both ways are taken.
            Some(known)
                if known.access == access && known.limits == limits && known.mode != mode =>
            {
                InboundRule {
                    mode: MtlsMode::Permissive,
                    access,
                    limits,
                }
            }
            Some(_) => return Err(at.invalid("is not one of two chains of one rule")),
            None => InboundRule {
                mode,
                access,
                limits,
            },
        };
        match port {
            Some(port) => drop(rules.ports.insert(port, rule)),
            None => (rules.default, has_default) = (rule, true),
        }
    }
    if !has_default {
        return Err(at
            .field("filter_chains")
            .invalid("none is for ports that are not named"));
    }
    let ours = encode::inbound::message(&name, socket, &trust_domain, &rules, Spoken::Http);
    if ours != message {
        return Err(difference(at, &message, &ours));
    }
    Ok(Listener {
        name,
        address: socket,
        direction: Direction::Inbound,
        protocol: ListenerProtocol::Inbound {
            trust_domain,
            rules,
        },
    })
}

fn difference(
    at: At<'_>,
    message: &listener_v3::Listener,
    ours: &listener_v3::Listener,
) -> DecodeError {
    let mut pairs = message.filter_chains.iter().zip(&ours.filter_chains);
    let why = "holds something that this sidecar can't honour";
    match pairs.position(|(theirs, ours)| theirs != ours) {
        Some(index) => at.item("filter_chains", index).invalid(why),
        None => at.invalid(why),
    }
}

fn rule(
    at: At<'_>,
    chain: &listener_v3::FilterChain,
    trust_domain: &TrustDomain,
) -> Result<(Option<u16>, MtlsMode, Access), DecodeError> {
    let matched = chain.filter_chain_match.clone().unwrap_or_default();
    let match_at = at.field("filter_chain_match");
    let port = matched.destination_port.map(u16::try_from).transpose();
    let port = port.map_err(|_| match_at.field("destination_port").invalid("is no port"))?;
    let mode = match matched.transport_protocol.as_str() {
        OVER_TLS => MtlsMode::Strict,
        IN_PLAIN => MtlsMode::Off,
        _ => {
            return Err(match_at
                .field("transport_protocol")
                .invalid(format!("must be `{OVER_TLS}` or `{IN_PLAIN}`")));
        }
    };
    let filter = single(&at.field("filters"), chain.filters.clone())?;
    let at = at.item("filters", 0);
    let Some(listener_v3::filter::ConfigType::TypedConfig(config)) = filter.config_type else {
        return Err(at.field("typed_config").missing());
    };
    let at = at.field("typed_config");
    let manager: hcm_v3::HttpConnectionManager = unpack(&at, &config)?;
    let mut access = Access::default();
    for (index, filter) in manager.http_filters.into_iter().enumerate() {
        let effect = match filter.name.as_str() {
            encode::access::DENY => Effect::Deny,
            encode::access::ALLOW => Effect::Allow,
            _ => continue, // the router, or the comparison finds it
        };
        let at = at.item("http_filters", index);
        let Some(hcm_v3::http_filter::ConfigType::TypedConfig(config)) = filter.config_type else {
            return Err(at.field("typed_config").missing());
        };
        let rbac: filter_v3::Rbac = unpack(&at.field("typed_config"), &config)?;
        let policies = access::policies(&at, rbac.rules.unwrap_or_default(), trust_domain)?;
        access
            .policies
            .extend(policies.into_iter().map(|(name, rules)| AccessPolicy {
                name,
                effect,
                rules,
            }));
    }
    Ok((port, mode, access))
}
