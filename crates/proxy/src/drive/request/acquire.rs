//! A connection or stream for an attempt: one that is there, a new one within the cluster's limit, or the first that becomes
//! free.

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

    /// A new connection within the limit, or the first that becomes free.
    async fn open_http1(
        &mut self,
        endpoint: &Rc<Endpoint>,
        fresh: bool,
    ) -> Result<Lease<Box<Http1>>, Missed> {
        let (core, pool) = (&self.door.core, &self.cluster.plan.pool);
        let mut waiting = None;
        loop {
            if let Some(slot) = self.slot() {
                let stream = secure::connect(core, endpoint, Alpn::Http1, pool.connect_timeout);
                let (stream, _) = self.within(stream).await??;
                let opened = Http1::new(stream, pool.max_requests_per_connection, slot);
                core.count(Event::PoolOpened);
                return Ok(endpoint.h1.adopt(opened));
            }
            self.wait_freed(&mut waiting).await?;
            if let Some(lease) = self.idle_http1(endpoint, fresh).await {
                return Ok(lease);
            }
        }
    }

    /// A stream on a connection that many share; none where there is no sidecar of ours, if one was wanted.
    pub(super) async fn acquire_shared(
        &mut self,
        endpoint: &Rc<Endpoint>,
        speaks: Speaks,
        meshed: bool,
    ) -> Result<Option<Opened>, Missed> {
        let mesh = speaks == Speaks::Mesh;
        match endpoint.h2.lease(self.door.core.limits.streams, mesh) {
            Some(stream) => Ok(Some(Opened::Shared(stream))),
            None => Box::pin(self.open_shared(endpoint, mesh, meshed)).await,
        }
    }

    /// A stream on a new connection: opened by this request, or by another that is already at it.
    async fn open_shared(
        &mut self,
        endpoint: &Rc<Endpoint>,
        mesh: bool,
        meshed: bool,
    ) -> Result<Option<Opened>, Missed> {
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
                return Ok(Some(Opened::Shared(stream)));
            }
            if let Some(fault) = endpoint.h2.failed_since(failures) {
                return Err(Missed::Fault(fault));
            }
            let Some(connecting) = endpoint.h2.connecting() else {
                self.within(changed).await?;
                continue;
            };
            if let Some(slot) = self.slot() {
                let opened = connecting.open(core, endpoint, pool.connect_timeout, how, slot);
                let opened = self.within(opened).await??;
                core.count(Event::PoolOpened);
                return Ok(Some(opened));
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
