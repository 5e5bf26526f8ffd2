//! One attempt at one endpoint: how it is spoken to, a connection, and another one where the first was closed already.

use super::*;

impl Run<'_> {
    /// One attempt at one endpoint. A connection that turns out to be closed already, or a stream that was refused, is
    /// replaced by a fresh one at once: that is no failure of the endpoint.
    pub(super) async fn attempt(&mut self, member: usize) -> Result<Answer, Missed> {
        let core = self.door.core.clone();
        let limit = self
            .forward
            .attempt_timeout_ms
            .map_or(NEVER, |timeout| core.wheel.now_ms().saturating_add(timeout));
        self.exchange.begin_attempt(limit);
        let idempotent = self.request.method().is_idempotent();
        let mut fresh = false;
        loop {
            let ended = self.send(member, fresh).await;
            match ended {
                Err(Missed::Fault(
                    fault @ (Fault::Refused
                    | Fault::ConnectFailed
                    | Fault::NoCredentials
                    | Fault::Mistrust),
                )) => {
                    if fault == Fault::Refused
                        && let Some(address) = self.address(member)
                    {
                        core.account.witness().refused(address);
                    }
                    return Err(Missed::Fault(fault));
                }
                Err(Missed::Fault(fault @ (Fault::Unprocessed | Fault::Stale)))
                    if !fresh
                        && self.may_repeat()
                        && (fault == Fault::Unprocessed || idempotent) =>
                {
                    core.count(Event::StaleConnection);
                    fresh = true;
                }
                // After a first stale one there is no excuse any more.
                Err(Missed::Fault(Fault::Stale)) => return Err(Missed::Fault(Fault::Reset)),
                Err(Missed::Expired(Expiry::Attempt)) => {
                    core.count(Event::AttemptDeadline);
                    return Err(Missed::Fault(Fault::Timeout));
                }
                other => {
                    if other.is_ok()
                        && let Some(address) = self.address(member)
                    {
                        core.account.witness().reached(address);
                    }
                    return other;
                }
            }
        }
    }

    pub(super) fn address(&self, member: usize) -> Option<SocketAddr> {
        let (endpoint, _) = self.cluster.endpoint(member)?;
        Some(endpoint.address)
    }

    async fn send(&mut self, member: usize, fresh: bool) -> Result<Answer, Missed> {
        let cluster = self.cluster;
        let Some((endpoint, plan)) = cluster.endpoint(member) else {
            return Err(Missed::Fault(Fault::ConnectFailed));
        };
        let port = plan.port_field.as_ref();
        let core = &self.door.core;
        let outgoing = match self.speaks(endpoint) {
            Speaks::Http1 => {
                let lease = self.acquire_http1(endpoint, fresh).await?;
                Outgoing::http1(lease, core, self.request, port)
            }
            speaks => match self
                .acquire_shared(endpoint, speaks, port.is_some())
                .await?
            {
                Some(lease) => {
                    let began = (speaks == Speaks::Mesh).then_some(&core.began_as_http1);
                    Outgoing::Http2(lease.open(self.request, port.into_iter().chain(began))?)
                }
                None => {
                    let lease = self.acquire_http1(endpoint, fresh).await?;
                    Outgoing::http1(lease, core, self.request, port)
                }
            },
        };
        self.upload.again();
        let (head, outgoing) = self.answer(outgoing).await.inspect_err(|missed| {
            // Who did not take our certificate would not take it in the next moment either.
            if let Missed::Fault(Fault::Mistrust) = missed {
                endpoint.bar(core.wheel.now_ms());
            }
        })?;
        self.read(head, outgoing, port.is_some())
    }

    /// By the cluster's protocol, else as the caller speaks; WebSockets need HTTP/1. To another sidecar everything but
    /// those goes over HTTP/2, where many requests share a connection and a write.
    fn speaks(&self, endpoint: &Endpoint) -> Speaks {
        let http2 = match self.cluster.plan.protocol {
            _ if self.request.upgrade() == Some(Upgrade::WebSocket) => return Speaks::Http1,
            Protocol::H2c | Protocol::Grpc => true,
            Protocol::Http1 => false,
            Protocol::Auto | Protocol::Tcp | Protocol::Udp => {
                self.request.version() == Version::Http2 && !self.context.began_as_http1
            }
        };
        match http2 {
            true => Speaks::Http2,
            false if endpoint.tls.is_some() && endpoint.is_sidecar.get() != Some(false) => {
                Speaks::Mesh
            }
            false => Speaks::Http1,
        }
    }
}

/// What an endpoint is spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Http1,
    Http2,
    /// HTTP/2 to a sidecar of ours, which goes on over HTTP/1; HTTP/1 where there turns out to be none.
    Mesh,
}
