//! Sessions that end with their epoch: tickets of the server and the store of the client are made anew as soon as credentials,
//! roots or revocations have changed. Otherwise a peer would resume with a certificate that is revoked or was replaced.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::NamedGroup;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::ProducesTickets;
use rustls::time_provider::TimeProvider;

use crate::clock::{Clock, UnixMillis};
use crate::identity::Identity;

/// How long a client resumes: the longest that a server whose staple has turned could go on unnoticed without a CRL.
pub const SESSION_AGE_MAX: Duration = Duration::from_secs(600);
/// Servers that a client remembers sessions of, per set of expected ids.
const SERVERS_MAX: usize = 256;

/// rustls reads the time from our clock.
#[derive(Debug)]
pub(super) struct ClockTime(pub Arc<dyn Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(
            self.0.now().as_secs(),
        )))
    }
}

/// Ticket keys of the current epoch; rustls changes them every six hours besides.
#[derive(Debug)]
pub(super) struct Tickets {
    identity: Arc<Identity>,
    /// Held to look at the epoch and clone a handle; a handshake does so twice.
    inner: Mutex<Option<(u64, Arc<dyn ProducesTickets>)>>,
}

impl Tickets {
    pub fn new(identity: Arc<Identity>) -> Self {
        Self {
            identity,
            inner: Mutex::default(),
        }
    }

    /// `None` if the system has no randomness: then there is no resumption.
    fn current(&self) -> Option<Arc<dyn ProducesTickets>> {
        let epoch = self.identity.epoch();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, tickets)) = &*inner
            && *made == epoch
        {
            return Some(tickets.clone());
        }
        let fresh = Ticketer::new().ok()?;
        *inner = Some((epoch, fresh.clone()));
        Some(fresh)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(SESSION_AGE_MAX.as_secs()).unwrap_or(0)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.current()?.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.current()?.decrypt(cipher)
    }
}

/// Sessions of the current epoch, none older than [`SESSION_AGE_MAX`].
#[derive(Debug)]
pub(super) struct Sessions {
    identity: Arc<Identity>,
    /// Held to look at the epoch and clone a handle.
    inner: Mutex<Era>,
}

#[derive(Debug)]
struct Era {
    epoch: u64,
    since: UnixMillis,
    store: Arc<ClientSessionMemoryCache>,
}

impl Era {
    fn new(identity: &Identity) -> Self {
        let store = Arc::new(ClientSessionMemoryCache::new(SERVERS_MAX));
        Self {
            epoch: identity.epoch(),
            since: identity.now(),
            store,
        }
    }
}

impl Sessions {
    pub fn new(identity: Arc<Identity>) -> Self {
        let inner = Mutex::new(Era::new(&identity));
        Self { identity, inner }
    }

    fn current(&self) -> Arc<ClientSessionMemoryCache> {
        let mut era = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let over = era.since.until(self.identity.now()) > SESSION_AGE_MAX;
        if over || era.epoch != self.identity.epoch() {
            *era = Era::new(&self.identity);
        }
        era.store.clone()
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.current().set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.current().kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.current().set_tls12_session(server, value);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.current().tls12_session(server)
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.current().remove_tls12_session(server);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.current().insert_tls13_ticket(server, value);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.current().take_tls13_ticket(server)
    }
}
