//! Matchmaking: parties come in as tickets, matches with a room come out, and no player is lost or matched twice on the
//! way. The search ([`Search`]) is pure and usable alone; a [`Shard`] is a search with an owner, a log, a standby and a
//! waiting room; a [`Node`] is a process that holds several.
//!
//! A shard has one owner at a time, fenced by a lease ([`lease`]). Every change is an entry ([`ledger`]) of an ordered log
//! (`log`), which the owner ships to one standby (`standby`). Clients are answered when what they are told is on the
//! owner's disk, and on the standby's for as long as that may take over. A proposal reserves its tickets, players confirm,
//! a room is found, the match is made; whatever goes wrong before, the others wait on with their original time.
//!
//! Module order: node, lease, standby, log, waiting, ledger, twin, fairness, search, rules, ticket, rating.

pub mod fairness;
pub mod lease;
pub mod ledger;
mod log;
pub mod node;
pub mod rating;
pub mod rules;
pub mod search;
mod standby;
pub mod ticket;
pub mod twin;
mod waiting;

pub use lease::{Lease, LeaseError, local::LocalLease};
pub use ledger::{Entry, How, Ledger, Match, MatchId, Party};
pub use log::ReplicaId;
pub use node::{
    AllocateError, Allocates, Allocation, Allocator, Answer, Limits, Node, NodeConfig, NodeError,
    Refusal, Request, Role, Shard, ShardConfig, ShardKey, ShardMetrics, Stage, TicketState,
    Watching,
};
pub use rating::Rating;
pub use rules::{Brownout, Budget, MatchRules, RulesSpec};
pub use search::{Proposal, Quality, Refused, Search, TickReport};
pub use standby::frame::Seal;
#[cfg(feature = "tokens")]
pub use standby::frame::ShortSecret;
pub use ticket::{
    Backfill, BackfillId, Latency, OpenSeats, Player, Problems, RegionIndex, Roles, Ticket,
    TicketId,
};
pub use waiting::Estimate;

#[cfg(feature = "etcd")]
pub use lease::etcd::{EtcdConfig, Store, StoreLease};
