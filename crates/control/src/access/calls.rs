//! Calls under way of those who come with a certificate: bounded for each certificate, and streams of configuration for each
//! service too, so that one who is let in can't take the place of all others.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::{Body as HttpBody, Frame, SizeHint};
use phalanx_pki::name::SpiffeId;
use phalanx_pki::verifier::Peer;
use phalanx_pki::x509::Serial;

use super::shares::{Share, Shares};

/// Of one certificate. A sidecar has six; what shares its connection among many instances, some hundreds.
pub const PER_CERTIFICATE_MAX: usize = 512;
/// Of one service, whatever its certificates: three quarters of the streams that there can be.
pub const DISCOVERY_PER_SERVICE_MAX: usize = 15_000;
/// Where streams of configuration begin.
const DISCOVERY: &str = "/envoy.service.";

#[derive(Clone)]
pub struct Calls {
    certificates: Shares<Serial>,
    services: Shares<SpiffeId>,
}

/// One call's share; given back when it ends.
#[derive(Debug)]
pub struct Call {
    _certificate: Share<Serial>,
    _service: Option<Share<SpiffeId>>,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            certificates: Shares::new(PER_CERTIFICATE_MAX),
            services: Shares::new(DISCOVERY_PER_SERVICE_MAX),
        }
    }
}

impl Calls {
    /// None: the peer has its share.
    pub fn begin(&self, peer: &Peer, path: &str) -> Option<Call> {
        let service = match path.starts_with(DISCOVERY) {
            true => Some(self.services.take(&peer.id)?),
            false => None,
        };
        Some(Call {
            _certificate: self.certificates.take(&peer.serial)?,
            _service: service,
        })
    }
}

/// An answer that holds its call's share until its end, or until nobody reads it any more.
pub fn counted(body: Body, call: Call) -> Body {
    Body::new(Counted { body, _call: call })
}

struct Counted {
    body: Body,
    _call: Call,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
