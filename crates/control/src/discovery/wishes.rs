//! What the operator of a data plane may ask for in its node metadata, beside who it is.

use std::time::Duration;

use phalanx_proto::envoy::config::core::v3 as core;
use phalanx_xds::Kind;
use phalanx_xds::separate::Source;
use prost_types::value::Kind as Value;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Clusters and listeners are dropped by the data plane when nobody has confirmed them for so long; zero: never.
    pub resource_ttl: Duration,
    /// The data plane's own name for the control plane, where it subscribes to each kind on a stream of its own: the
    /// clusters and listeners that it gets must say from where it takes their endpoints and routes.
    xds_cluster: Option<String>,
}

/// Why they can't be met. The text goes to the peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    #[error(
        "node.metadata.{RESOURCE_TTL} is no number of seconds from {RESOURCE_TTL_MIN_S} to {RESOURCE_TTL_MAX_S}"
    )]
    ResourceTtl,
    #[error(
        "node.metadata.{ENDPOINT_TTL}: Envoy keeps endpoints whose time to live has ended (use {RESOURCE_TTL}, after which it drops clusters and listeners)"
    )]
    EndpointTtl,
    #[error(
        "node.metadata.{XDS_CLUSTER} is no name of 1 to {CLUSTER_MAX} characters (the bootstrap's cluster of this control plane)"
    )]
    XdsCluster,
}

impl Wishes {
    /// From the first request of a stream.
    ///
    /// # Errors
    /// What is wrong, in words for the peer.
    pub fn parse(node: Option<&core::Node>) -> Result<Self, WishError> {
        let metadata = node.and_then(|node| node.metadata.as_ref());
        let value = |key| metadata.and_then(|m| m.fields.get(key)?.kind.as_ref());
        if value(ENDPOINT_TTL).is_some() {
            return Err(WishError::EndpointTtl);
        }
        let resource_ttl = match value(RESOURCE_TTL) {
            None => Duration::ZERO,
            Some(Value::NumberValue(seconds)) => ttl(*seconds).ok_or(WishError::ResourceTtl)?,
            Some(Value::StringValue(text)) => {
                let seconds = text.strip_suffix('s').unwrap_or(text).parse();
                let seconds = seconds.map_err(|_| WishError::ResourceTtl)?;
                ttl(seconds).ok_or(WishError::ResourceTtl)?
            }
            Some(_) => return Err(WishError::ResourceTtl),
        };
        let is_name = |text: &str| {
            !text.is_empty() && text.len() <= CLUSTER_MAX && !text.chars().any(char::is_control)
        };
        let xds_cluster = match value(XDS_CLUSTER) {
            None => None,
            Some(Value::StringValue(text)) if is_name(text) => Some(text.clone()),
            Some(_) => return Err(WishError::XdsCluster),
        };
        Ok(Self {
            resource_ttl,
            xds_cluster,
        })
    }

    /// Where the resources of a stream must say that others come from; none: from the aggregated stream, as they do.
    pub fn source(&self, only: Option<Kind>, is_delta: bool) -> Option<Source> {
        only.filter(|kind| matches!(kind, Kind::Cluster | Kind::Listener))?;
        Some(Source {
            cluster: self.xds_cluster.clone()?,
            is_delta,
        })
    }
}

fn ttl(seconds: f64) -> Option<Duration> {
    let bounds = RESOURCE_TTL_MIN_S as f64..=RESOURCE_TTL_MAX_S as f64;
    bounds
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}

const RESOURCE_TTL: &str = "resource_ttl";
/// Refused.
const ENDPOINT_TTL: &str = "endpoint_ttl";
const XDS_CLUSTER: &str = "xds_cluster";
/// Heartbeats come three times in each; more often is noise.
const RESOURCE_TTL_MIN_S: u32 = 6;
const RESOURCE_TTL_MAX_S: u32 = 86_400;
/// Of the name of a cluster.
const CLUSTER_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &str, value: Value) -> Result<Wishes, WishError> {
        let value = prost_types::Value { kind: Some(value) };
        let metadata = prost_types::Struct {
            fields: [(key.to_owned(), value)].into(),
        };
        Wishes::parse(Some(&core::Node {
            metadata: Some(metadata),
            ..Default::default()
        }))
    }

    fn text(text: &str) -> Value {
        Value::StringValue(text.to_owned())
    }

    #[test]
    fn a_time_to_live_is_seconds_within_bounds_or_refused() {
        for value in [text("30s"), text("30"), Value::NumberValue(30.0)] {
            let wishes = check(RESOURCE_TTL, value).unwrap();
            assert_eq!(wishes.resource_ttl, Duration::from_secs(30));
        }
        for value in [
            text("soon"),
            text("1s"),
            Value::NumberValue(f64::NAN),
            Value::NumberValue(-3.0),
            Value::NumberValue(1e9),
            Value::BoolValue(true),
        ] {
            assert_eq!(check(RESOURCE_TTL, value), Err(WishError::ResourceTtl));
        }
        let refused = check(ENDPOINT_TTL, text("30s"));
        assert_eq!(refused, Err(WishError::EndpointTtl));
        assert_eq!(Wishes::parse(None), Ok(Wishes::default()));
    }

    #[test]
    fn only_clusters_and_listeners_on_streams_of_their_own_say_where_others_come_from() {
        let wishes = check(XDS_CLUSTER, text("xds")).unwrap();
        let source = |only| wishes.source(only, true).map(|source| source.cluster);
        assert_eq!(source(Some(Kind::Cluster)).as_deref(), Some("xds"));
        assert_eq!((source(None), source(Some(Kind::Routes))), (None, None));
        assert_eq!(check(XDS_CLUSTER, text("")), Err(WishError::XdsCluster));
        assert_eq!(
            Wishes::default().source(Some(Kind::Cluster), true),
            None,
            "without a name nothing changes"
        );
    }
}
