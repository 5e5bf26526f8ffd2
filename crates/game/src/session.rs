//! Sessions: who plays where, who may come back, when, and how a room server ends without ending a game. Each part works
//! alone: a [`Directory`] of seats with epochs; a [`Desk`] that lets players back in by single-use passes; a [`Governor`] that
//! spreads reconnects over what logins bear; a [`Drain`] that finishes rooms; a [`Placement`] by counts of their owners; and the
//! [`context`] that a call carries.
//!
//! Module order (a module imports only later ones): notice, drain, placement, local, table, storm, calendar, desk, token,
//! pass, directory, context, name.

mod calendar;
pub mod context;
mod desk;
mod directory;
mod drain;
mod local;
mod name;
#[cfg(feature = "tokens")]
mod notice;
mod pass;
mod placement;
mod storm;
mod table;
#[cfg(feature = "tokens")]
mod token;

pub use calendar::{CLIENTS_MAX, SLOT, SLOTS_MAX};
pub use desk::{Desk, DeskError, DeskOptions, OVER_MAX, Resumed, Session};
pub use directory::{Directory, DirectoryError, Follow, Seat, Update};
pub use drain::{
    Drain, LENGTHS_MAX, Moved, OpenError, Order, PER_SECOND, Phase, ROOMS_MAX, Room, Rooms,
    RoomsError, Status, Step,
};
pub use local::{Local, LocalWatch};
pub use name::{BadName, Clock, Instance, Key, NAME_MAX, Stage};
#[cfg(feature = "tokens")]
pub use notice::{Notice, notices};
pub use pass::{Pass, ResumeError, SKEW};
pub use placement::{
    INSTANCES_MAX, Load, PlaceError, Placement, PlacementOptions, RESERVED_MAX, Reservation,
};
pub use storm::{
    AGAIN, Arrival, Budget, Claim, Governor, GovernorError, HOLD_MAX, Metrics, REGIONS_MAX,
    STORMS_MAX, Verdict, Why,
};
pub use table::{CLOSED_MAX, LOG_MAX, SEATS_MAX, TTL_MAX, TTL_MIN, Table};
#[cfg(feature = "tokens")]
pub use token::{
    KEYS_MAX, Keyring, KeyringError, SECRET_MIN, SealError, Secret, TOKEN_MAX, TokenError,
};
