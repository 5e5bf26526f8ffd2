//! Leasing tokens of limits that sidecars share.

use std::time::Duration;

use phalanx_proto::phalanx::limits::v1 as wire;
use phalanx_proto::phalanx::limits::v1::limits_client::LimitsClient;
use tokio::time::timeout;
use tonic::Status;
use tonic::transport::Channel;

/// Questions in a call.
pub const ASKS_MAX: usize = 1_000;
/// Of a call: requests are refused, or let through unseen, while one waits.
const CALL_TIMEOUT: Duration = Duration::from_millis(500);

/// About one key of one limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// `BackendPolicy/<namespace>/<name>`
    pub policy: String,
    pub key: u64,
    /// Let through already.
    pub spent: u32,
    pub wanted: u32,
    pub returned: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    pub tokens: u32,
    /// How long there are no more, in ns; 0: there are.
    pub dry_ns: u64,
}

#[derive(Debug)]
pub struct Lessee {
    client: LimitsClient<Channel>,
    node: String,
}

impl Lessee {
    /// `node`: as in discovery.
    pub fn new(control: Channel, node: String) -> Self {
        Self {
            client: LimitsClient::new(control),
            node,
        }
    }

    /// In the order of the questions, at most [`ASKS_MAX`]; none where the control plane knows no such limit.
    ///
    /// # Errors
    /// [`LeaseError`]: nothing was told.
    pub async fn lease(&mut self, asks: &[Ask]) -> Result<Vec<Option<Grant>>, LeaseError> {
        let asked = asks.iter().map(|ask| wire::Ask {
            policy: ask.policy.clone(),
            key: ask.key,
            spent: ask.spent,
            wanted: ask.wanted,
            returned: ask.returned,
        });
        let request = wire::LeaseRequest {
            node: self.node.clone(),
            asks: asked.collect(),
        };
        let answer = timeout(CALL_TIMEOUT, self.client.lease(request)).await;
        let grants = answer
            .map_err(|_| LeaseError::Timeout)??
            .into_inner()
            .grants;
        if grants.len() != asks.len() {
            return Err(LeaseError::Grants);
        }
        let grant = |grant: wire::Grant| {
            (!grant.unanswered).then_some(Grant {
                tokens: grant.tokens,
                dry_ns: grant.dry_ns,
            })
        };
        Ok(grants.into_iter().map(grant).collect())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("the control plane leases nothing")]
    Call(#[source] Box<Status>),
    #[error("the control plane did not answer in time")]
    Timeout,
    #[error("the control plane answered other questions")]
    Grants,
}

impl From<Status> for LeaseError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}
