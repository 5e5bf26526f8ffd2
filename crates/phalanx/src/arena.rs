//! The hidden verb that runs one service of the demo game, or its bots.

use std::net::SocketAddr;
use std::time::Duration;

use ::arena::{ServiceConfig, ServiceKind, bots, run_service};
use clap::{Args, Subcommand};

use crate::exit::{Failure, Outcome};
use crate::{output, signal};

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Players; prints its summary as JSON when it ends
    Bots(BotOptions),
    /// One service
    #[command(external_subcommand)]
    Service(Vec<String>),
}

#[derive(Args)]
struct BotOptions {
    #[arg(long)]
    gateway: SocketAddr,
    #[arg(long)]
    rate: f64,
    #[arg(long)]
    bots: usize,
    #[arg(long, value_parser = crate::demo::parse_duration)]
    duration: Option<Duration>,
    /// The edge, over HTTP
    #[arg(long, requires = "rooms")]
    edge: Option<SocketAddr>,
    /// The edge, over UDP
    #[arg(long)]
    rooms: Option<SocketAddr>,
}

#[derive(clap::Parser)]
#[command(no_binary_name = true)]
struct ServiceOptions {
    service: ServiceKind,
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    outbound: SocketAddr,
    #[arg(long)]
    version: String,
    #[arg(long, default_value_t = 1)]
    replica: u32,
    /// What services keep
    #[arg(long)]
    folder: Option<std::path::PathBuf>,
    /// Where the leaderboard is kept
    #[arg(long)]
    redis: Option<String>,
}

pub fn run(options: Options) -> Outcome {
    signal::start_log();
    crate::block_on(async {
        match options.role {
            Role::Bots(options) => play(options).await,
            Role::Service(arguments) => serve(arguments).await,
        }
    })
}

async fn serve(arguments: Vec<String>) -> Outcome {
    let options =
        <ServiceOptions as clap::Parser>::try_parse_from(arguments).map_err(Failure::usage)?;
    let config = ServiceConfig {
        listen: options.listen,
        outbound: options.outbound,
        version: options.version,
        replica: options.replica,
        folder: options.folder,
        redis: options.redis,
    };
    run_service(options.service, config, signal::shutdown())
        .await
        .map_err(|e| Failure::refused(format!("{e:#}")))
}

async fn play(options: BotOptions) -> Outcome {
    let config = bots::BotConfig {
        gateway: vec![options.gateway],
        bots: options.bots,
        rate: options.rate,
        duration: options.duration,
        edge: options
            .edge
            .zip(options.rooms)
            .map(|(http, room)| bots::Edge { http, room }),
    };
    let summary = bots::run(config, signal::shutdown()).await;
    output::show(output::Format::Json, &summary, String::new)
}
