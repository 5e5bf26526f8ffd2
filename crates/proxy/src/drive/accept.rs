//! From a listener to a connection that knows what it speaks. Each connection is a task: a panic ends that one, and is
//! counted.

mod edge;
mod redirected;
mod relay;
mod sniff;

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use phalanx_model::name::Direction;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use self::relay::relay;
pub use self::sniff::first_bytes;
use self::sniff::{Meant, Spoken, detect, may_enter, may_stay, unread_app};
use super::Shared;
use super::core::Core;
use super::deadline::Watch;
use super::secure::{self, Accepted};
use super::server::{self, Door};
use super::shut;
use super::stream::Stream;
use crate::account::Event;
use crate::context::Caller;
use crate::plan::{Alpn, Plan};

/// What a listener is for.
#[derive(Clone, Copy, Debug)]
pub enum Service {
    Http(Direction),
    /// By place in the plan's `tcp`.
    Tcp(usize),
    /// Where a Gateway says so, at this address.
    Gateway(SocketAddr),
    /// What the kernel redirects: calls of the application, or connections to it.
    Redirected(Direction),
}

/// Accepts until told to close; then takes what is in the backlog already, and closes.
pub async fn run(
    core: Rc<Core>,
    listener: TcpListener,
    service: Service,
    shared: Arc<Shared>,
    mut closing: watch::Receiver<bool>,
) {
    loop {
        let closed = *closing.borrow_and_update();
        let accepted = if closed {
            poll_fn(|cx| match listener.poll_accept(cx) {
                Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
                Poll::Pending => Poll::Ready(None),
            })
            .await
        } else {
            tokio::select! {
                accepted = listener.accept() => Some(accepted),
                changed = closing.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    continue;
                }
            }
        };
        match accepted {
            None => return,
            Some(Ok((stream, peer))) => admit(&core, stream, peer, service, &shared),
            Some(Err(error)) => {
                core.count(Event::AcceptFailed);
                if !is_of_one_connection(&error) {
                    // Out of descriptors, most likely: make some free, and don't spin.
                    core.sweep();
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted
    )
}

/// Takes a connection in unless a limit says no.
fn admit(
    core: &Rc<Core>,
    stream: TcpStream,
    peer: SocketAddr,
    service: Service,
    shared: &Arc<Shared>,
) {
    // What is redirected on its way out comes from here, whatever its address is.
    let is_foreign = !matches!(service, Service::Redirected(Direction::Outbound));
    let source = Some(peer.ip()).filter(|ip| is_foreign && !ip.is_loopback());
    let Some(live) = Live::enter(core, peer, source, shared) else {
        return;
    };
    tokio::task::spawn_local(async move {
        let core = live.core.clone();
        let _ = stream.set_nodelay(true); // a slower connection is still one
        match service {
            Service::Http(direction) => serve(&core, &live.watch, stream, direction, None).await,
            Service::Redirected(direction) => {
                Box::pin(redirected::serve(&core, &live.watch, stream, direction)).await;
            }
            Service::Gateway(address) => {
                Box::pin(edge::serve(&core, &live.watch, stream, address)).await;
            }
            Service::Tcp(place) => {
                let plan = core.plan();
                if let Some(cluster) = plan
                    .plan
                    .tcp
                    .get(place)
                    .copied()
                    .flatten()
                    .and_then(|place| plan.cluster(place))
                {
                    Box::pin(relay(&core, cluster, Stream::Plain(stream), None)).await;
                }
            }
        }
        drop(live);
    });
}

/// Counts a connection for as long as it lives.
struct Live {
    core: Rc<Core>,
    watch: Rc<Watch>,
    key: usize,
    /// It is one of the connections from there; none: its own machine's are not limited.
    source: Option<IpAddr>,
    shared: Arc<Shared>,
}

impl Live {
    fn enter(
        core: &Rc<Core>,
        peer: SocketAddr,
        source: Option<IpAddr>,
        shared: &Arc<Shared>,
    ) -> Option<Self> {
        core.accepted();
        if shared.connections.fetch_add(1, Ordering::Relaxed) >= core.limits.connections {
            shared.connections.fetch_sub(1, Ordering::Relaxed);
            core.count(Event::ConnectionLimit);
            return None;
        }
        if let Some(source) = source {
            let mut sources = core.sources.borrow_mut();
            let count = sources.entry(source).or_default();
            // Each core sees its share of a source's connections; the limit holds per core.
            if *count >= core.limits.connections_per_source {
                shared.connections.fetch_sub(1, Ordering::Relaxed);
                core.count(Event::SourceLimit);
                return None;
            }
            *count += 1;
        }
        core.count(Event::Accepted);
        let watch = Watch::new(core, Some(peer));
        let key = core.connections.borrow_mut().insert(watch.clone());
        if core.is_draining() {
            watch.drain(core);
        }
        Some(Self {
            core: core.clone(),
            watch,
            key,
            source,
            shared: shared.clone(),
        })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.core.connections.borrow_mut().try_remove(self.key);
        if let Some(source) = self.source {
            let mut sources = self.core.sources.borrow_mut();
            if let Some(count) = sources.get_mut(&source) {
                *count -= 1;
                if *count == 0 {
                    sources.remove(&source);
                }
            }
        }
        self.core.count(if std::thread::panicking() {
            Event::Panicked
        } else {
            Event::Closed
        });
    }
}

/// `meant`: which port of the application was called, where that is known.
async fn serve(
    core: &Rc<Core>,
    watch: &Rc<Watch>,
    stream: TcpStream,
    direction: Direction,
    meant: Option<Meant>,
) {
    let spoken = Box::pin(detect(core, watch, &stream, direction, meant)).await;
    let door = || Door::of(core, watch, direction, Caller::Plain, meant.map(|m| m.port));
    match spoken {
        Spoken::Http1 => server::serve_http1(&door(), Stream::Plain(stream)).await,
        Spoken::Http2 => server::serve_http2(&door(), Stream::Plain(stream)).await,
        Spoken::Tls => Box::pin(secured(core, watch, stream, meant.map(|m| m.port))).await,
        Spoken::Raw(cluster, port) => {
            let relaying = relay(core, &cluster, Stream::Plain(stream), None);
            Box::pin(shut::while_it(
                core,
                move |_| may_stay(core, port, None),
                relaying,
            ))
            .await;
        }
        Spoken::Nothing => {}
    }
}

/// A handshake, and what was agreed on in it.
async fn secured(core: &Rc<Core>, watch: &Rc<Watch>, stream: TcpStream, meant: Option<u16>) {
    let Some(accepted) = secure::accept(core, stream).await else {
        return;
    };
    let Accepted {
        stream,
        alpn,
        caller,
    } = accepted;
    match (alpn, caller) {
        (Some(Alpn::Http2 | Alpn::Mesh), caller) => {
            let door = Door::of(core, watch, Direction::Inbound, caller, meant);
            server::serve_http2(&door, stream).await;
        }
        (Some(Alpn::Http1) | None, caller) => {
            let door = Door::of(core, watch, Direction::Inbound, caller, meant);
            server::serve_http1(&door, stream).await;
        }
        (Some(Alpn::Tcp), Caller::Known(known)) => {
            let Some(app) = unread_app(core, meant) else {
                core.count(Event::UnknownProtocol);
                return;
            };
            if may_enter(core, app.entry.as_deref(), Some(&known.peer.id)) {
                let caller = Some(&known.peer.id);
                let relaying = relay(core, &app.cluster, stream, caller);
                let may_stay = |_: &Plan| may_stay(core, app.number, caller);
                shut::while_it(core, may_stay, relaying).await;
            }
        }
        (Some(Alpn::Tcp), Caller::Plain | Caller::Nobody | Caller::Outside(_)) => {}
    }
}

const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use phalanx_relay::{Deadlines, Limits};

    use super::*;
    use crate::account::Account;

    /// Of a future that is never made.
    fn size<F: Future>(_: impl FnOnce() -> F) -> usize {
        size_of::<F>()
    }

    fn any<T>() -> T {
        unreachable!("nobody asks")
    }

    /// Thousands of connections wait for their next request: what they need then is what their task is as large as.
    #[test]
    fn task_of_a_connection_is_small() {
        let task = size(|| serve(any::<&Rc<Core>>(), any(), any(), any(), any()));
        assert!(task <= 720, "{task} bytes");
    }

    #[test]
    fn panic_ends_one_connection_and_gives_back_what_it_held() {
        let account = Arc::new(Account::new(1));
        let plan = Arc::new(ArcSwap::from_pointee(Plan::empty()));
        let core = Core::new(
            0,
            plan,
            account.clone(),
            Limits::default(),
            &Deadlines::default(),
            None,
        );
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        let shared = Arc::<Shared>::default();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build_local(tokio::runtime::LocalOptions::default())
            .unwrap();
        let enter = || Live::enter(&core, peer, Some(peer.ip()), &shared).unwrap();
        let (good, bad) = (enter(), enter());
        let panicked = runtime.block_on(async {
            let bad = tokio::task::spawn_local(async move {
                let _bad = bad;
                panic!("a defect, in a test");
            });
            let good = tokio::task::spawn_local(async move { drop(good) });
            let panicked = bad.await.is_err_and(|error| error.is_panic());
            good.await.unwrap();
            panicked
        });
        assert!(panicked, "the runtime goes on");
        let count = |event| {
            account
                .events()
                .iter()
                .find(|(e, _)| *e == event)
                .unwrap()
                .1
        };
        assert_eq!((count(Event::Panicked), count(Event::Closed)), (1, 1));
        assert_eq!((core.live(), core.sources.borrow().len()), (0, 0));
        assert_eq!(shared.connections.load(Ordering::Relaxed), 0);
    }
}
