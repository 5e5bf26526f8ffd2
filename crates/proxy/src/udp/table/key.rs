//! What a session is found by: its client's address, its token, or both.

use std::net::SocketAddr;

use super::super::kin::Kin;
use super::super::session::Session;
use super::Table;

/// What a session is found by.
#[derive(Clone, Copy)]
pub(super) enum Key<'k> {
    Client(SocketAddr),
    Token(&'k [u8]),
    Both(SocketAddr, &'k [u8]),
}

impl Table {
    #[inline]
    pub(super) fn find(&self, port: u16, key: Key<'_>) -> Option<u32> {
        let is_it = |place| {
            let session = self.sessions.get(place);
            session.is_some_and(|session| session.port == port && key.is_of(session))
        };
        self.index.find(self.hash(port, key), is_it)
    }

    #[inline]
    pub(super) fn hash(&self, port: u16, key: Key<'_>) -> u64 {
        let token = key.token().unwrap_or_default();
        super::super::hash(
            self.seed.wrapping_add(u64::from(port)),
            &[],
            key.client(),
            token,
        )
    }
}

impl<'k> Key<'k> {
    pub(super) fn of(session: &'k Session) -> Self {
        match &session.ticket {
            None => Self::Client(session.client),
            Some(ticket) if ticket.roams => Self::Token(&ticket.token),
            Some(ticket) => Self::Both(session.client, &ticket.token),
        }
    }

    #[inline]
    fn is_of(self, session: &Session) -> bool {
        match (self, &session.ticket) {
            (Self::Client(from), None) => session.client == from,
            (Self::Token(token), Some(ticket)) => ticket.roams && *ticket.token == *token,
            (Self::Both(from, token), Some(ticket)) => {
                !ticket.roams && session.client == from && *ticket.token == *token
            }
            _ => false,
        }
    }

    #[inline]
    pub(super) fn client(self) -> Option<SocketAddr> {
        match self {
            Self::Client(from) | Self::Both(from, _) => Some(from),
            Self::Token(_) => None,
        }
    }

    #[inline]
    pub(super) fn token(self) -> Option<&'k [u8]> {
        match self {
            Self::Client(_) => None,
            Self::Token(token) | Self::Both(_, token) => Some(token),
        }
    }

    pub(super) fn of_kin(self, kin: &Kin, port: SocketAddr) -> u64 {
        kin.key(port, self.client(), self.token().unwrap_or_default())
    }
}
