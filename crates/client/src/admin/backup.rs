//! A backup as it comes, which may be larger than memory should hold.

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Method;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::{Admin, AdminError};

#[derive(Debug, thiserror::Error)]
pub enum BackupFailed {
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("the backup can't be written")]
    Write(#[source] io::Error),
}

impl Admin {
    /// Writes a backup of everything stored to `into`. Whether it is whole, only reading it tells.
    ///
    /// # Errors
    /// [`BackupFailed`]
    pub async fn backup(&self, into: &mut impl Write) -> Result<(), BackupFailed> {
        let late = |_| AdminError::TimedOut {
            address: self.address.clone(),
            after: SILENCE_MAX,
        };
        let connected = timeout(self.timeout, self.connect()).await;
        let stream = connected.map_err(late)??;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| self.broken(e.into()))?;
        let request = self
            .request(Method::POST, "/api/v1/backup", "application/octet-stream")
            .body(Full::new(Bytes::from_static(b"{}")))
            .map_err(|e| self.broken(e.into()))?;
        let exchange = async {
            let response = timeout(SILENCE_MAX, sender.send_request(request)).await;
            let response = response.map_err(late)?.map_err(|e| self.broken(e.into()))?;
            let status = response.status();
            let mut body = response.into_body();
            if !status.is_success() {
                let text = Limited::new(body, REFUSAL_MAX).collect().await;
                let text = text.map_err(|e| self.broken(e))?.to_bytes();
                let refusal = self.json::<serde::de::IgnoredAny>((status, text));
                return refusal.map(drop).map_err(BackupFailed::Admin);
            }
            while let Some(frame) = timeout(SILENCE_MAX, body.frame()).await.map_err(late)? {
                let frame = frame.map_err(|e| self.broken(e.into()))?;
                if let Some(piece) = frame.data_ref() {
                    into.write_all(piece).map_err(BackupFailed::Write)?;
                }
            }
            Ok(())
        };
        tokio::pin!(connection);
        tokio::select! {
            done = exchange => done,
            // The connection ends with the exchange, or because it broke, which the exchange would never hear.
            ended = &mut connection => Err(match ended {
                Err(error) => self.broken(error.into()).into(),
                Ok(()) => self.broken("the control plane ended the connection".into()).into(),
            }),
        }
    }
}

/// Between two pieces.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const REFUSAL_MAX: usize = 1 << 20;
