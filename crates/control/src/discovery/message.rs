//! A request of one of the two protocols, as far as a stream has to look into it.

use phalanx_client::session::SEAT_TYPE;
use phalanx_proto::envoy::config::core::v3::Node;
use phalanx_proto::envoy::service::discovery::v3 as wire;
use phalanx_xds::server::{Request, Response};

use super::lost::Claim;

pub trait Message: Into<Request> + Send + 'static {
    type Response: Send + 'static;
    const PROTOCOL: &'static str;

    fn node(&self) -> Option<&Node>;
    fn answer(&self) -> Answer<'_>;
    /// Whether it changes what is asked for by name.
    fn changes_names(&self) -> bool;
    /// Names that it asks for.
    fn names(&self) -> &[String];
    /// Whether it says that something is held from an earlier stream.
    fn comes_back(&self) -> bool;
    /// What it says is held already, by the first request of its kind after a reconnect.
    fn claim(&self) -> Option<Claim>;
    /// Itself, where it is about the session directory.
    fn of_sessions(&self) -> Option<&wire::DeltaDiscoveryRequest>;
    fn response(response: Response) -> Option<Self::Response>;
}

/// What a request answers, if it answers something.
pub struct Answer<'a> {
    /// May be empty on a stream of one kind.
    pub type_url: &'a str,
    pub nonce: &'a str,
    /// The peer's words when it refuses.
    pub error: Option<&'a str>,
}

impl Message for wire::DeltaDiscoveryRequest {
    type Response = wire::DeltaDiscoveryResponse;
    const PROTOCOL: &'static str = "delta";

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn answer(&self) -> Answer<'_> {
        Answer {
            type_url: &self.type_url,
            nonce: &self.response_nonce,
            error: self.error_detail.as_ref().map(|e| e.message.as_str()),
        }
    }

    fn changes_names(&self) -> bool {
        let (more, less) = (
            &self.resource_names_subscribe,
            &self.resource_names_unsubscribe,
        );
        !more.is_empty() || !less.is_empty()
    }

    fn names(&self) -> &[String] {
        &self.resource_names_subscribe
    }

    fn comes_back(&self) -> bool {
        !self.initial_resource_versions.is_empty()
    }

    fn claim(&self) -> Option<Claim> {
        let held = &self.initial_resource_versions;
        let held = held
            .iter()
            .map(|(name, version)| (name.clone(), version.clone()));
        let held: Vec<_> = held.collect();
        (!held.is_empty()).then_some(Claim::Delta(held))
    }

    fn of_sessions(&self) -> Option<&wire::DeltaDiscoveryRequest> {
        (self.type_url == SEAT_TYPE).then_some(self)
    }

    fn response(response: Response) -> Option<Self::Response> {
        response.into_delta()
    }
}

impl Message for wire::DiscoveryRequest {
    type Response = wire::DiscoveryResponse;
    const PROTOCOL: &'static str = "sotw";

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn answer(&self) -> Answer<'_> {
        Answer {
            type_url: &self.type_url,
            nonce: &self.response_nonce,
            error: self.error_detail.as_ref().map(|e| e.message.as_str()),
        }
    }

    fn changes_names(&self) -> bool {
        false // only a delta stream is asked on demand
    }

    fn names(&self) -> &[String] {
        &self.resource_names
    }

    fn comes_back(&self) -> bool {
        !self.version_info.is_empty()
    }

    fn claim(&self) -> Option<Claim> {
        let is_first = self.response_nonce.is_empty() && !self.version_info.is_empty();
        let named = self.resource_names.iter().filter(|name| *name != "*");
        is_first.then(|| Claim::Sotw {
            version: self.version_info.clone(),
            names: named.cloned().collect(),
        })
    }

    fn of_sessions(&self) -> Option<&wire::DeltaDiscoveryRequest> {
        None // only a delta stream can follow it
    }

    fn response(response: Response) -> Option<Self::Response> {
        response.into_sotw()
    }
}
