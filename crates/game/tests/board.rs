//! A board over real Redis servers that are killed, frozen, slowed down, emptied and set back, alone and as a cluster: reads
//! never fail meanwhile, and afterwards the board equals what a simple oracle makes of the accepted results.
#![cfg(feature = "redis")]

#[path = "board/cluster.rs"]
mod cluster;
#[path = "board/errors.rs"]
mod errors;
#[path = "board/kill.rs"]
mod kill;
#[path = "board/oracle.rs"]
mod oracle;
#[path = "board/outage.rs"]
mod outage;
#[path = "board/reads.rs"]
mod reads;
#[path = "board/seasons.rs"]
mod seasons;
#[path = "board/server.rs"]
mod server;
