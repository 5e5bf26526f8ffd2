//! A connection to the admin port: TLS where there are roots, else plain text.

use std::error::Error;
use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{Admin, AdminError};
use crate::secure::SecureError;

pub trait Line: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Line for T {}

impl Admin {
    /// # Errors
    /// [`AdminError::Unreachable`], [`AdminError::Untrusted`], [`AdminError::Rootless`]
    pub(super) async fn connect(&self) -> Result<Box<dyn Line>, AdminError> {
        match (&self.secure, &self.token) {
            (None, Some(_)) => return Err(AdminError::Rootless { what: "a token" }),
            (None, None) if self.https => {
                let what = "an https:// address";
                return Err(AdminError::Rootless { what });
            }
            _ => {}
        }
        let unreachable = |source: io::Error| AdminError::Unreachable {
            address: self.address.clone(),
            source: source.into(),
        };
        let stream = TcpStream::connect(&self.address)
            .await
            .map_err(unreachable)?;
        // Only costs time where it fails.
        let _ = stream.set_nodelay(true);
        let Some(secure) = &self.secure else {
            return Ok(Box::new(stream));
        };
        match secure.connect(stream, &self.address).await {
            Ok((stream, _)) => Ok(Box::new(stream)),
            Err(SecureError::Io(source)) => Err(AdminError::Handshake {
                address: self.address.clone(),
                source,
            }),
            Err(source) => Err(self.untrusted(source)),
        }
    }

    pub(super) fn untrusted(&self, source: SecureError) -> AdminError {
        AdminError::Untrusted {
            address: self.address.clone(),
            source,
        }
    }

    /// A connection that broke, or one that the other side did not want: in TLS 1.3 it says so after the handshake.
    pub(super) fn broken(&self, source: Box<dyn Error + Send + Sync>) -> AdminError {
        let mut cause: Option<&(dyn Error + 'static)> = Some(source.as_ref());
        while let Some(error) = cause {
            if let Some(refused) = error.downcast_ref().and_then(SecureError::of_alert) {
                return self.untrusted(refused);
            }
            cause = error.source();
        }
        AdminError::Broken {
            address: self.address.clone(),
            source,
        }
    }
}
