//! Envoy's rate limit service: a stock Envoy asks for every request and keeps nothing, so it can only be told yes or no.

use phalanx_model::ServiceName;
use phalanx_pki::x509::sha256;
use phalanx_proto::envoy::extensions::common::ratelimit::v3 as common_v3;
use phalanx_proto::envoy::service::ratelimit::v3 as wire;
use tonic::{Request, Response, Status};
use wire::rate_limit_response::{Code, DescriptorStatus};

use super::{Asker, KIND, Limits, Take};
use crate::access::Who;

#[tonic::async_trait]
impl wire::rate_limit_service_server::RateLimitService for Limits {
    async fn should_rate_limit(
        &self,
        request: Request<wire::RateLimitRequest>,
    ) -> Result<Response<wire::RateLimitResponse>, Status> {
        let who = Who::of(request.extensions());
        let request = request.into_inner();
        let unknown = || Status::not_found("no such limit of the caller's");
        let service = match &who {
            Who::Workload(peer) => peer.id.service.clone(),
            _ => self.target(&request.domain).ok_or_else(unknown)?,
        };
        let asker = Asker {
            service,
            instance: None,
        };
        who.owns(&asker.service)?;
        let limit = self.limit(&request.domain, &asker).ok_or_else(unknown)?;
        let policy = request.domain.strip_prefix(KIND).ok_or_else(unknown)?;
        let take = |descriptor: &common_v3::RateLimitDescriptor| Take {
            policy: policy.to_owned(),
            key: key(descriptor),
            rate: limit.rate,
            spent: 0,
            wanted: 1,
            returned: 0,
        };
        let takes: Vec<Take> = request
            .descriptors
            .iter()
            .take(DESCRIPTORS_MAX)
            .map(take)
            .collect();
        let given = self.take(&takes).await;
        let given = given.map_err(|error| Status::unavailable(error.to_string()))?;
        let codes = given.iter().map(|given| match given.tokens {
            0 => Code::OverLimit,
            _ => Code::Ok,
        });
        let statuses: Vec<DescriptorStatus> = codes
            .map(|code| DescriptorStatus {
                code: code.into(),
                ..DescriptorStatus::default()
            })
            .collect();
        let over = statuses
            .iter()
            .any(|s| s.code == i32::from(Code::OverLimit));
        let overall = if over { Code::OverLimit } else { Code::Ok };
        Ok(Response::new(wire::RateLimitResponse {
            overall_code: overall.into(),
            statuses,
            ..wire::RateLimitResponse::default()
        }))
    }
}

/// As sidecars make it of the same value.
fn key(descriptor: &common_v3::RateLimitDescriptor) -> u64 {
    let mut entries = descriptor.entries.iter();
    let Some(entry) = entries.find(|entry| entry.key == VALUE) else {
        return 0;
    };
    let digest = sha256(entry.value.as_bytes());
    let first = digest.first_chunk::<8>();
    first.map_or(0, |bytes| u64::from_be_bytes(*bytes)).max(2)
}

impl Limits {
    /// For callers that can't say who they are.
    fn target(&self, policy: &str) -> Option<ServiceName> {
        let world = self.0.worlds.borrow();
        let policy = self.policy(&world, policy)?;
        policy.targets.first().cloned()
    }
}

/// The descriptor's key of a header's value, as `xds` writes it.
const VALUE: &str = "value";
/// There is one per limit.
const DESCRIPTORS_MAX: usize = 16;
