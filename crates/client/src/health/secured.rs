//! Questions over mutual TLS: an endpoint that takes it is asked as its callers call it, under the identity of whoever asks.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use phalanx_model::resource::Probe;
use phalanx_pki::identity::Identity;
use phalanx_pki::tls::{ClientOptions, ClientTls};
use phalanx_pki::verifier::{CrlPolicy, Expected, StaplePolicy, is_word_on_certificate};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Target;
use crate::secure::SecureError;

/// How one target is asked over mutual TLS. Clones share the sessions.
#[derive(Clone, Debug)]
pub struct Way {
    identity: Arc<Identity>,
    tls: ClientTls,
}

/// Whatever goes wrong says nothing about the endpoint: we have nothing to show, or it does not take what we show.
#[derive(Clone, Debug, Default)]
pub struct OwnFault(Arc<AtomicBool>);

impl OwnFault {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Way {
    /// None where the target is asked in plain text.
    pub fn to(target: &Target, identity: &Arc<Identity>) -> Option<Self> {
        let http2 = target.http2 || matches!(target.check.probe, Probe::Grpc { .. });
        let options = ClientOptions {
            expected: Expected::ids(target.tls.as_ref()?.ids.iter().cloned()),
            crl: CrlPolicy::IfPresent,
            staple: StaplePolicy::IfPresent,
            alpn: vec![if http2 { "h2" } else { "http/1.1" }.into()],
        };
        let tls = ClientTls::try_new(identity.clone(), options)
            .inspect_err(|error| tracing::error!(%error, "no TLS configuration can be made"))
            .ok()?;
        Some(Self {
            identity: identity.clone(),
            tls,
        })
    }

    /// Shakes hands. The error is what is wrong with the endpoint, unless `fault` says that it is our own.
    pub(super) async fn secure(
        &self,
        stream: TcpStream,
        fault: &OwnFault,
    ) -> Result<SecuredIo, String> {
        if self.identity.credentials().is_none() {
            fault.set();
            return Err("no certificate yet".to_owned());
        }
        let address = stream.peer_addr().map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(self.tls.config().clone());
        let name = ServerName::IpAddress(address.ip().into());
        let stream = connector.connect(name, stream).await.map_err(|error| {
            note(&error, fault);
            match SecureError::of(error) {
                SecureError::Refused(refusal) => format!("is not whom we expect: {refusal}"),
                SecureError::Plain => "speaks no TLS".to_owned(),
                SecureError::Alert(alert) => format!("refused the handshake: {alert:?}"),
                SecureError::Io(error) => format!("broke the handshake off: {error}"),
            }
        })?;
        let peer = self.tls.admit(stream.get_ref().1);
        peer.map_err(|refusal| format!("is not whom we expect: {refusal}"))?;
        Ok(SecuredIo {
            stream,
            fault: fault.clone(),
        })
    }
}

/// With TLS 1.3 an endpoint refuses our certificate only after we think the handshake done.
pub(super) struct SecuredIo {
    stream: TlsStream<TcpStream>,
    fault: OwnFault,
}

fn note(error: &io::Error, fault: &OwnFault) {
    if let Some(SecureError::Alert(alert)) = SecureError::of_alert(error)
        && is_word_on_certificate(alert)
    {
        fault.set();
    }
}

impl AsyncRead for SecuredIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read {
            note(error, &self.fault);
        }
        read
    }
}

impl AsyncWrite for SecuredIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
