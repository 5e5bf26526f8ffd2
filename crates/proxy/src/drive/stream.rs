//! A TCP connection, in plain text or under TLS. One that is secured knows its peer, and ends as soon as that is revoked,
//! whoever holds it.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use phalanx_model::name::Direction;
use phalanx_pki::identity::Identity;
use phalanx_pki::verifier::{Peer, Refusal, is_word_on_certificate};
use rustls::{CommonState, Error as TlsError};
use slab::Slab;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::account::{Account, Event, SecuredConnection, TlsRefused};

pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsIo>),
}

impl Stream {
    /// Resets it. (Under TLS the missing end tells enough.)
    pub fn abort(self) {
        if let Self::Plain(stream) = &self {
            let _ = socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
        }
    }

    /// Whether there are bytes that the runtime may not have heard of yet: it looks once in a turn, which may be long.
    pub fn has_unheard(&self) -> bool {
        let socket = match self {
            Self::Plain(stream) => stream,
            Self::Tls(io) => io.stream.get_ref().0,
        };
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let seen = socket2::SockRef::from(socket).peek(&mut byte);
        seen.is_ok_and(|count| count > 0)
    }

    /// What is known of it when it is secured.
    pub fn link(&self) -> Option<&Rc<Link>> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(io) => Some(&io.link),
        }
    }
}

/// A TLS connection whose peer was let in.
pub struct TlsIo {
    stream: TlsStream<TcpStream>,
    link: Rc<Link>,
    /// A byte of the peer's own has come.
    heard: bool,
    links: Rc<Links>,
    key: usize,
}

/// What others know of a secured connection.
pub struct Link {
    pub connection: Arc<SecuredConnection>,
    shown: usize,
    revoked: Cell<bool>,
    /// The peer refused us after we had thought the handshake done (TLS 1.3).
    rejected: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Link {
    pub fn is_rejected(&self) -> bool {
        self.rejected.get()
    }

    /// Whoever moves the connection is woken when its peer is revoked.
    fn park(&self, cx: &Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        if !waiting
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            *waiting = Some(cx.waker().clone());
        }
    }

    fn revoke(&self) {
        self.revoked.set(true);
        if let Some(waker) = self.waiting.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// The secured connections of a core.
pub struct Links {
    core: usize,
    account: Arc<Account>,
    open: RefCell<Slab<Rc<Link>>>,
}

impl Links {
    pub fn new(core: usize, account: Arc<Account>) -> Rc<Self> {
        Rc::new(Self {
            core,
            account,
            open: RefCell::default(),
        })
    }

    /// Enters a connection whose peer was let in; it leaves when it is dropped.
    pub fn enter(
        self: &Rc<Self>,
        stream: TlsStream<TcpStream>,
        connection: SecuredConnection,
    ) -> Stream {
        let connection = Arc::new(connection);
        self.account.count(self.core, Event::SecuredOpened);
        if connection.resumed {
            self.account.count(self.core, Event::SecuredResumed);
        }
        let link = Rc::new(Link {
            shown: self.account.secured().enter(self.core, connection.clone()),
            connection,
            revoked: Cell::new(false),
            rejected: Cell::new(false),
            waiting: RefCell::default(),
        });
        let key = self.open.borrow_mut().insert(link.clone());
        Stream::Tls(Box::new(TlsIo {
            stream,
            link,
            heard: false,
            links: self.clone(),
            key,
        }))
    }

    /// Ends the connections whose peers are on a revocation list by now; returns how many.
    pub async fn recheck(&self, identity: &Identity) -> usize {
        let links: Vec<Rc<Link>> = {
            let open = self.open.borrow();
            open.iter().map(|(_, link)| link.clone()).collect()
        };
        let mut ended = 0;
        for (number, link) in links.into_iter().enumerate() {
            if number % RECHECKED_AT_ONCE == RECHECKED_AT_ONCE - 1 {
                super::yield_once().await;
            }
            let known = &link.connection;
            let good = |peer: &Arc<Peer>| identity.recheck(peer).is_ok();
            if link.revoked.get() || known.peer.as_ref().is_none_or(good) {
                continue;
            }
            link.revoke();
            ended += 1;
            self.account.count(self.core, Event::SecuredRevoked);
            let reason = TlsRefused::Peer(Refusal::Revoked);
            self.account
                .secured()
                .refuse(known.direction, reason, known.address);
        }
        ended
    }
}

impl Drop for TlsIo {
    fn drop(&mut self) {
        self.links.open.borrow_mut().try_remove(self.key);
        let (core, shown) = (self.links.core, self.link.shown);
        self.links.account.secured().leave(core, shown);
    }
}

impl TlsIo {
    fn revoked(&self) -> io::Result<()> {
        if self.link.revoked.get() {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the peer's certificate was revoked",
            ));
        }
        Ok(())
    }

    /// An alert before anything else is the peer's word on our certificate.
    fn failed(&mut self, error: &io::Error) {
        if self.heard || self.link.connection.direction == Direction::Inbound {
            return;
        }
        if is_word_on_us(error) && !self.link.rejected.replace(true) {
            let reason = TlsRefused::Peer(Refusal::PeerAlert);
            let known = &self.link.connection;
            self.links
                .account
                .secured()
                .refuse(known.direction, reason, known.address);
        }
    }

    fn written<T>(&self, cx: &Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_pending() {
            self.link.park(cx);
        }
        result
    }
}

/// What rustls says is behind an error of a stream.
pub fn tls_error(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

/// Whether a handshake, or what follows it, broke on the peer's word on our certificate.
pub fn is_word_on_us(error: &io::Error) -> bool {
    matches!(tls_error(error), Some(TlsError::AlertReceived(alert)) if is_word_on_certificate(*alert))
}

/// The name of the version that was agreed on.
pub fn version(connection: &CommonState) -> &'static str {
    match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "1.3",
        Some(rustls::ProtocolVersion::TLSv1_2) => "1.2",
        _ => "",
    }
}

impl AsyncRead for TlsIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.revoked()?;
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &result {
            Poll::Pending => self.link.park(cx),
            Poll::Ready(Ok(())) => self.heard = true,
            Poll::Ready(Err(error)) => self.failed(error),
        }
        result
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.revoked()?;
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.revoked()?;
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.revoked()?;
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.written(cx, result)
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(&mut **io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(&mut **io).poll_write(cx, buf),
        }
    }

    #[inline]
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(io) => Pin::new(&mut **io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    #[inline]
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(io) => Pin::new(&mut **io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(&mut **io).poll_shutdown(cx),
        }
    }
}

/// Connections looked at before others of the core get a turn.
const RECHECKED_AT_ONCE: usize = 256;
