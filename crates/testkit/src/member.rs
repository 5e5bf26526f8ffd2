//! A workload without a sidecar: it joins, renews and follows whom to trust by the `Identity` service, as a sidecar does, and has
//! each answer at hand for a test or a benchmark.

use std::sync::Arc;

use anyhow::Context;
use phalanx_client::channel::Control;
use phalanx_client::identity::{CallError, Client, Following, Grant, Proof};
use phalanx_client::secure::trusting;
use phalanx_pki::credentials::{Credentials, Parts};
use phalanx_pki::csr;
use phalanx_pki::identity::Identity;
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{ServiceName, TrustDomain, Workload};
use phalanx_pki::roots::Roots;
use phalanx_pki::x509::Serial;

/// Of a renewal.
const TRIES: usize = 4;

pub struct Member {
    identity: Arc<Identity>,
    workload: Workload,
    control: Control,
    client: Client,
}

impl Member {
    /// Of a service in namespace `default` and the usual trust domain, without a certificate yet; `control` is
    /// `HOST:PORT[,HOST:PORT…]`, known by `roots` (PEM). Must be called within a runtime.
    ///
    /// # Errors
    /// For what can't be such a thing.
    pub fn new(control: &str, roots: &str, service: &str) -> anyhow::Result<Self> {
        let identity = trusting(Roots::from_pem(roots.as_bytes())?);
        let control = Control::secure(control, identity.clone())?;
        let workload = Workload::parse(&TrustDomain::default(), "default", service, None)?;
        Ok(Self {
            client: Client::new(control.channel()),
            identity,
            workload,
            control,
        })
    }

    /// Joins, and shows the certificate from then on; returns its serial.
    ///
    /// # Errors
    /// [`CallError`] within.
    pub async fn join(&self, proof: Proof) -> anyhow::Result<Serial> {
        self.join_as(proof, Key::generate(KeyKind::default())?)
            .await
    }

    /// The same with a key: a token is good for the first that is shown, so an answer that was lost can be asked for again.
    ///
    /// # Errors
    /// [`CallError`] within.
    pub async fn join_as(&self, proof: Proof, key: Key) -> anyhow::Result<Serial> {
        let grant = self.ask(proof, &key).await?;
        let serial = self.take(grant, key)?;
        self.control.reconnect();
        Ok(serial)
    }

    /// Only what is answered for a key.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn ask(&self, proof: Proof, key: &Key) -> Result<Grant, CallError> {
        let csr = self.request(key);
        let service = self.service();
        self.client.join(proof, service, None, csr).await
    }

    /// The next certificate by the one that it has; returns its serial. A call may go down with a connection that is being left,
    /// so it is tried again, a few times at once.
    ///
    /// # Errors
    /// [`CallError`] within.
    pub async fn renew(&self) -> anyhow::Result<Serial> {
        let key = Key::generate(KeyKind::default())?;
        let mut tries = 1..TRIES;
        loop {
            match self.client.renew(self.request(&key)).await {
                Ok(grant) => return self.take(grant, key),
                Err(error) if error.is_refusal() || tries.next().is_none() => {
                    return Err(error.into());
                }
                Err(_) => {}
            }
        }
    }

    /// Follows whom to trust, with the certificate that it has.
    ///
    /// # Errors
    /// [`CallError`] within, or when it has none.
    pub async fn follow(&self) -> anyhow::Result<Following> {
        let serial = self.serial().context("it has no certificate")?;
        Ok(self.client.trust(0, &serial).await?)
    }

    /// Of the certificate that it has.
    pub fn serial(&self) -> Option<Serial> {
        Some(self.identity.credentials()?.peer().serial.clone())
    }

    pub fn service(&self) -> &ServiceName {
        &self.workload.id().service
    }

    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Leaves the connection in use; the next shows the certificate that is there by then.
    pub fn reconnect(&self) {
        self.control.reconnect();
    }

    /// Goes over to the next address.
    pub fn go_over(&self) {
        if let Some((at, _)) = self.control.others().first() {
            self.control.prefer(*at);
        }
    }

    /// PKCS#10, DER.
    fn request(&self, key: &Key) -> Vec<u8> {
        // A key made a moment ago signs.
        csr::request(key, &self.workload).unwrap_or_default()
    }

    /// Checks all of it, as a sidecar does.
    fn take(&self, grant: Grant, key: Key) -> anyhow::Result<Serial> {
        let parts = Parts {
            chain: grant.chain,
            key,
            roots: grant.roots,
            staple: grant.staple,
        };
        let credentials = Credentials::try_new(parts, &self.workload, self.identity.now())?;
        let serial = credentials.peer().serial.clone();
        self.identity.publish(credentials);
        Ok(serial)
    }
}
