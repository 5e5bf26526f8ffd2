//! etcd's leases. Each has a key of its own, which tells watchers why its keys went: a revocation marks it first.

use std::time::Duration;

use phalanx_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseRevokeRequest,
    LeaseTimeToLiveRequest, lease_client::LeaseClient,
};
use tonic::Response;

use super::{
    LIMITS, Shared, at,
    keys::signed,
    wire::{Fault, LEASE_EXISTS, NO_LEASE, Repeat},
};
use crate::{Error, LeaseId, Result, Revision};

pub const GRANTED: &[u8] = b"granted";
pub const REVOKED: &[u8] = b"revoked";

impl Shared {
    /// etcd counts whole seconds; a part of one becomes a whole.
    pub(super) async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        if ttl.is_zero() || ttl > LIMITS.lease_ttl_max {
            let most = LIMITS.lease_ttl_max;
            return Err(Error::Invalid {
                problem: format!("a lease of {ttl:?}, it has to be above 0 and at most {most:?}"),
            });
        }
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        // Chosen here, so that granting twice is granting once.
        let lease = LeaseId(fastrand::u64(1..=i64::MAX as u64));
        let request = LeaseGrantRequest {
            ttl: signed(seconds),
            id: signed(lease.0),
        };
        let call = self.wire.call(Repeat::Always, |link| {
            let request = link.request(request);
            async move { LeaseClient::new(link.channel).lease_grant(request).await }
        });
        match call.await {
            Ok(_) => {}
            Err(fault @ Fault::Told { repeated: true, .. }) if fault.says(LEASE_EXISTS) => {}
            Err(fault) => return Err(fault.of_write()),
        }
        // Failing here leaves a lease without keys, which ends by itself.
        let mark = self.keys.mark(lease, GRANTED, false);
        let marked = self.txn(Repeat::Always, &mark).await;
        marked.map_err(|fault| not_found(lease, fault))?;
        Ok(lease)
    }

    pub(super) async fn keep_alive(&self, lease: LeaseId) -> Result<Duration> {
        let request = LeaseKeepAliveRequest {
            id: signed(lease.0),
        };
        let call = self.wire.call(Repeat::Always, |link| {
            let request = link.request_with_leader(tokio_stream::once(request));
            async move {
                let mut client = LeaseClient::new(link.channel);
                let mut answers = client.lease_keep_alive(request).await?.into_inner();
                let answer = answers.message().await?;
                let ended = || tonic::Status::unavailable("the stream ended without an answer");
                answer.map(Response::new).ok_or_else(ended)
            }
        });
        let answer: LeaseKeepAliveResponse = call.await.map_err(|fault| not_found(lease, fault))?;
        match u64::try_from(answer.ttl) {
            Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
            _ => Err(Error::LeaseNotFound { lease }),
        }
    }

    pub(super) async fn revoke(&self, lease: LeaseId) -> Result<Revision> {
        let mark = self.keys.mark(lease, REVOKED, true);
        let marked = self.txn(Repeat::Always, &mark).await;
        if !marked.map_err(|fault| not_found(lease, fault))?.succeeded {
            return Err(Error::LeaseNotFound { lease });
        }
        let request = LeaseRevokeRequest {
            id: signed(lease.0),
        };
        let call = self.wire.call(Repeat::Always, |link| {
            let request = link.request(request);
            async move { LeaseClient::new(link.channel).lease_revoke(request).await }
        });
        let revision = match call.await {
            Ok(answer) => at(&answer.header),
            // An attempt whose answer was lost did it.
            Err(fault @ Fault::Told { repeated: true, .. }) if fault.says(NO_LEASE) => {
                self.head().await?
            }
            Err(fault) => return Err(not_found(lease, fault)),
        };
        self.learn(revision);
        Ok(revision)
    }

    pub(super) async fn is_alive(&self, lease: LeaseId) -> Result<bool, Fault> {
        let request = LeaseTimeToLiveRequest {
            id: signed(lease.0),
            keys: false,
        };
        let call = self.wire.call(Repeat::Always, |link| {
            let request = link.request(request);
            async move {
                LeaseClient::new(link.channel)
                    .lease_time_to_live(request)
                    .await
            }
        });
        match call.await {
            Ok(answer) => Ok(answer.ttl > 0),
            Err(fault) if fault.says(NO_LEASE) => Ok(false),
            Err(fault) => Err(fault),
        }
    }
}

fn not_found(lease: LeaseId, fault: Fault) -> Error {
    match fault.says(NO_LEASE) {
        true => Error::LeaseNotFound { lease },
        false => fault.of_write(),
    }
}
