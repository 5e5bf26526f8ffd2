//! The binary: one file per verb; arguments become a `Config`, then something runs. No logic of the mesh lives here.

mod apply;
mod arena;
mod backup;
mod bootstrap;
mod canary;
mod cert;
mod compare;
mod control;
mod credentials;
mod demo;
mod diff;
mod drain;
mod etcd;
mod exit;
mod explain;
mod files;
mod get;
mod health;
mod history;
mod lanes;
mod lint;
mod migrate;
mod observe;
mod output;
mod page;
mod progress;
mod proxy;
mod release;
mod resident;
mod restore;
mod rollout;
mod session;
mod signal;
mod status;
mod tap;
mod usage;
mod user;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use exit::{Failure, Outcome};
use phalanx_client::admin::Admin;

/// Returns memory of idle connections sooner than the system's allocator, and takes half the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    name = "phalanx",
    version,
    about = "Governance for the microservices of online games",
    max_term_width = 100
)]
#[command(
    after_help = "Exit codes: 0 done, 1 findings or refused, 2 wrong usage, 3 a file that can't be opened or is no YAML,\n4 not reachable or timed out, 70 a defect of ours."
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a whole mesh on this machine: control plane, sidecars, the arena game and its bots
    Demo(demo::Options),
    /// Run the control plane
    Control(control::Options),
    /// Run the sidecar of one application
    Proxy(proxy::Options),
    /// Print what a stock Envoy has to be told at its start, beside an application or at the edge
    Bootstrap(Box<bootstrap::Options>),
    /// Store documents; one call is one transaction
    Apply(apply::Options),
    /// Remove documents
    Delete(apply::DeleteOptions),
    /// Show what an apply would change
    Diff(apply::DiffOptions),
    /// List or print documents
    Get(get::Options),
    /// Show how far a revision is: applied by N of M proxies, who refused and why
    Status(status::Options),
    /// List past changes with their authors
    History(history::Options),
    /// Make the configuration as it was at a revision the current one
    Rollback(history::RollbackOptions),
    /// Show how a change that few proxies got first goes; promote or abort it
    Canary(canary::Options),
    /// Show how the new version of a service takes over; pause, promote or abort it
    Rollout(rollout::Options),
    /// Check files without a control plane
    Lint(lint::Options),
    /// Say what becomes of a request and why: which route, rule and match, who may, which endpoints
    Explain(Box<explain::Options>),
    /// Deal in identities: join tokens, certificates, revocation, the rotation of the root
    Cert(cert::Options),
    /// Say who may ask the control plane, and what they may do
    User(user::Options),
    /// Write everything stored into one file
    Backup(backup::Options),
    /// Make a backup the store of a folder
    Restore(restore::Options),
    /// Move an embedded store into an etcd
    Migrate(migrate::Options),
    /// List connected proxies
    Ps(observe::Options),
    /// List registered instances
    Instances(observe::Options),
    /// Send new sessions of an instance elsewhere, or take them again
    Drain(drain::Options),
    /// Show which instance has a session (player, room), move or release it
    Session(session::Options),
    /// Let what is held of a service go
    Release(release::Options),
    /// List endpoints under active health checks: who checks them, what they say
    Health(health::Options),
    /// List lanes: colours with instances of their own, and how often the baseline stood in
    Lanes(lanes::Options),
    /// Show who talks to whom: requests/s, success, latency
    Edges(observe::WindowOptions),
    /// Show what mirrors answered beside the originals
    Compare(compare::Options),
    /// Show each service's golden metrics, summed over its callers
    Stat(observe::WindowOptions),
    /// Show live requests as the sidecars see them
    Tap(Box<tap::Options>),
    /// Services and bots of the demo game
    #[command(hide = true)]
    Arena(arena::Options),
}

/// How verbs find the control plane.
#[derive(Args, Clone)]
pub struct AdminOptions {
    /// Admin address of the control plane
    #[arg(long, env = "PHALANX_ADMIN", value_name = "HOST:PORT", default_value = phalanx_client::api::DEFAULT_ADMIN, value_parser = usage::parse_admin)]
    admin: String,
    #[command(flatten)]
    credentials: credentials::Credentials,
}

impl AdminOptions {
    fn client(&self) -> Admin {
        self.credentials.apply(Admin::new(&self.admin))
    }
}

/// Which namespace a verb speaks of.
#[derive(Args, Clone)]
pub struct NamespaceOptions {
    /// Namespace of documents that name none
    #[arg(short, long, default_value = "default")]
    namespace: String,
}

fn main() -> ExitCode {
    let given = usage::normalized(std::env::args_os());
    let is_json = usage::wants_json(&given);
    let arguments = match Arguments::try_parse_from(given) {
        Ok(arguments) => arguments,
        Err(error) if is_json && error.use_stderr() => {
            return usage::failure(&error).report(true);
        }
        Err(error) => error.exit(),
    };
    // A panic has said where already.
    let ended =
        std::panic::catch_unwind(AssertUnwindSafe(|| arguments.verb.run())).unwrap_or_else(|_| {
            Err(Failure::defect(
                "this should not have happened, please report it",
            ))
        });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(is_json),
    }
}

impl Verb {
    fn run(self) -> Outcome {
        match self {
            // The long-running roles choose their own runtimes.
            Self::Demo(options) => demo::run(options),
            Self::Control(options) => control::run(options),
            Self::Proxy(options) => proxy::run(options),
            Self::Arena(options) => arena::run(options),
            Self::Lint(options) => lint::run(&options),
            Self::Restore(options) => restore::run(&options),
            Self::Bootstrap(options) => bootstrap::run(&options),
            other => block_on(other.ask()),
        }
    }

    /// Verbs that ask the control plane once.
    async fn ask(self) -> Outcome {
        match self {
            Self::Apply(options) => apply::apply(options).await,
            Self::Delete(options) => apply::delete(options).await,
            Self::Diff(options) => apply::diff(options).await,
            Self::Get(options) => get::run(options).await,
            Self::Status(options) => status::run(options).await,
            Self::History(options) => history::run(options).await,
            Self::Rollback(options) => history::rollback(options).await,
            Self::Canary(options) => canary::run(options).await,
            Self::Rollout(options) => rollout::run(options).await,
            Self::Cert(options) => cert::run(options).await,
            Self::User(options) => user::run(options).await,
            Self::Backup(options) => backup::run(options).await,
            Self::Migrate(options) => migrate::run(options).await,
            Self::Ps(options) => observe::ps(options).await,
            Self::Instances(options) => observe::instances(options).await,
            Self::Drain(options) => drain::run(options).await,
            Self::Session(options) => session::run(options).await,
            Self::Release(options) => release::run(options).await,
            Self::Health(options) => health::run(options).await,
            Self::Lanes(options) => lanes::run(options).await,
            Self::Edges(options) => observe::edges(options).await,
            Self::Compare(options) => compare::run(options).await,
            Self::Stat(options) => observe::stat(options).await,
            Self::Explain(options) => explain::run(*options).await,
            Self::Tap(options) => tap::run(*options).await,
            Self::Demo(_)
            | Self::Control(_)
            | Self::Proxy(_)
            | Self::Arena(_)
            | Self::Bootstrap(_)
            | Self::Lint(_)
            | Self::Restore(_) => Ok(()),
        }
    }
}

/// Runs a future on a runtime of this thread alone.
fn block_on<T>(future: impl Future<Output = Result<T, exit::Failure>>) -> Result<T, exit::Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .map_err(|e| exit::Failure::defect(format!("cannot start a runtime: {e}")))?
        .block_on(future)
}
