//! A connection or stream for an attempt: one that is there, a new one within the cluster's limit, or the first that becomes
//! free.

use tokio::sync::oneshot;

use super::*;

impl Run<'_> {
    /// An idle connection, or a new one. What is not needed for the first lies in a box: the future of every request
    /// would be four times as large.
    pub(super) async fn acquire_http1(
        &mut self,
        endpoint: &Rc<Endpoint>,
        fresh: bool,
    ) -> Result<Lease<Box<Http1>>, Missed> {
        match self.idle_http1(endpoint, fresh).await {
            Some(lease) => Ok(lease),
            None => Box::pin(self.open_http1(endpoint, fresh)).await,
        }
    }

    async fn idle_http1(&self, endpoint: &Rc<Endpoint>, fresh: bool) -> Option<Lease<Box<Http1>>> {
        if fresh {
            return None;
        }
        let core = &self.door.core;
        let lease = |cx: &mut Context<'_>| endpoint.h1.lease(|idle| idle.is_usable_in(cx, core));
        let leased = poll_fn(|cx: &mut Context<'_>| Poll::Ready(lease(cx))).await?;
        core.count(Event::PoolReused);
        Some(leased)
    }

    /// A new connection within the limit, or the first that becomes free. It is opened whether or not this request waits
    /// for that to the end: else where handshakes take longer than requests may, there would never be one.
    async fn open_http1(
        &mut self,
        endpoint: &Rc<Endpoint>,
        fresh: bool,
    ) -> Result<Lease<Box<Http1>>, Missed> {
        let (core, pool) = (&self.door.core, &self.cluster.plan.pool);
        let mut waiting = None;
        loop {
            if let Some(slot) = self.slot() {
                let (give, taken) = oneshot::channel();
                let (core, endpoint_of) = (core.clone(), endpoint.clone());
                let (timeout, requests_max) =
                    (pool.connect_timeout, pool.max_requests_per_connection);
                tokio::task::spawn_local(async move {
                    let stream = secure::connect(&core, &endpoint_of, Alpn::Http1, timeout).await;
                    let opened = stream.map(|(stream, _)| Http1::new(stream, requests_max, slot));
                    if opened.is_ok() {
                        core.count(Event::PoolOpened);
                    }
                    if let Err(Ok(unwanted)) = give.send(opened) {
                        unwanted.rest(&core, &endpoint_of);
                    }
                });
                let opened = self.within(taken).await?;
                let opened = opened.unwrap_or(Err(Fault::ConnectFailed))?; // it panicked
                return Ok(endpoint.h1.adopt(opened));
            }
            self.wait_freed(&mut waiting).await?;
            if let Some(lease) = self.idle_http1(endpoint, fresh).await {
                return Ok(lease);
            }
        }
    }

    /// A stream on a connection that many share; none where the peer speaks HTTP/1 only, or is no sidecar of ours where one
    /// was wanted.
    pub(super) async fn acquire_shared(
        &mut self,
        endpoint: &Rc<Endpoint>,
        speaks: Speaks,
        meshed: bool,
    ) -> Result<Option<Http2Lease>, Missed> {
        let mesh = speaks == Speaks::Mesh;
        match endpoint.h2.lease(self.door.core.limits.streams, mesh) {
            Some(stream) => Ok(Some(stream)),
            None => Box::pin(self.open_shared(endpoint, mesh, meshed)).await,
        }
    }

    /// A stream on a new connection: opened by this request, or by another that is already at it.
    async fn open_shared(
        &mut self,
        endpoint: &Rc<Endpoint>,
        mesh: bool,
        meshed: bool,
    ) -> Result<Option<Http2Lease>, Missed> {
        let (core, pool) = (&self.door.core, &self.cluster.plan.pool);
        let how = Http2Use {
            alpn: if mesh { Alpn::Mesh } else { Alpn::Http2 },
            requests_max: pool.max_requests_per_connection,
            pings: core.pings.filter(|_| meshed),
        };
        let failures = endpoint.h2.failures();
        let mut waiting = None;
        loop {
            let changed = endpoint.h2.changed.notified();
            if mesh && endpoint.is_sidecar.get() == Some(false) {
                return Ok(None);
            }
            if let Some(stream) = endpoint.h2.lease(core.limits.streams, mesh) {
                return Ok(Some(stream));
            }
            if let Some(fault) = endpoint.h2.failed_since(failures) {
                return Err(Missed::Fault(fault));
            }
            let Some(connecting) = endpoint.h2.connecting() else {
                self.within(changed).await?;
                continue;
            };
            if let Some(slot) = self.slot() {
                let (core, endpoint) = (core.clone(), endpoint.clone());
                let opening = connecting.open(core, endpoint, pool.connect_timeout, how, slot);
                let opened = self.within(tokio::task::spawn_local(opening)).await?;
                let opened = opened.unwrap_or(Err(Fault::ConnectFailed))?; // it panicked
                // Not looked for in the pool once more: it may be out of there by now, as when the endpoint left the plan.
                return Ok(opened.filter(|stream| stream.is_mesh() || !mesh));
            }
            drop(connecting);
            self.wait_freed(&mut waiting).await?;
        }
    }

    /// The right to open one more connection to the cluster. At the limit, an idle one to another endpoint makes room.
    fn slot(&self) -> Option<Slot> {
        let plan = &self.cluster.plan;
        let take = || {
            Permit::take(
                plan.breaker.clone(),
                Share::Connection,
                plan.limits.max_connections,
            )
        };
        let permit = take().or_else(|| {
            if self.cluster.evict_idle() {
                take()
            } else {
                None
            }
        })?;
        Some(Slot::new(permit, &self.cluster.freed))
    }

    /// Waits until something of the cluster becomes free on this core; looks again after a while, since another core
    /// may have freed it.
    async fn wait_freed(&mut self, waiting: &mut Option<Permit<Holder>>) -> Result<(), Missed> {
        if waiting.is_none() {
            let limit = self.cluster.plan.limits.max_pending_requests;
            let permit = Permit::take(Holder(self.cluster.clone()), Share::Pending, limit);
            *waiting = Some(permit.ok_or(Missed::Fault(Fault::Overflow))?);
        }
        let freed = self.cluster.freed.notified();
        let waited = tokio::time::timeout(PENDING_LOOK, freed);
        self.within(waited).await.map(|_| ())
    }
}

const PENDING_LOOK: std::time::Duration = std::time::Duration::from_millis(10);
