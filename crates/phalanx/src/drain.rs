//! `drain`: new sessions of an instance go elsewhere, until that is undone; those that it has may end, until the deadline.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use phalanx_client::admin::Admin;
use phalanx_client::api::{DrainRequest, DrainResponse};

use crate::exit::{Failure, Outcome};
use crate::output::{self, Format, Table};
use crate::{AdminOptions, NamespaceOptions, status};

#[derive(Args)]
pub struct Options {
    /// Its id, with its service where several have an instance of that id
    #[arg(value_name = "[SERVICE/]INSTANCE", required_unless_present = "status")]
    instance: Option<String>,
    /// Take traffic again
    #[arg(long, visible_alias = "cancel")]
    undo: bool,
    /// Show instances that are drained: how many sessions are left, and until when
    #[arg(long, conflicts_with_all = ["undo", "grace", "deadline", "handover", "wait"])]
    status: bool,
    /// Until then its sessions may end by themselves; then those in the session directory are handed over, and it is drained
    #[arg(long, conflicts_with_all = ["undo", "grace"], value_parser = crate::demo::parse_duration)]
    deadline: Option<Duration>,
    /// What becomes of sessions at the deadline
    #[arg(long, value_enum, requires = "deadline", default_value_t = Handover::Move)]
    handover: Handover,
    /// Hand over no more of them in a second: each is a client that comes again [default: 100]
    #[arg(long, value_name = "N", requires = "deadline", value_parser = clap::value_parser!(u32).range(1..))]
    reconnects_per_second: Option<u32>,
    /// After this long its sessions go elsewhere, too; 0s: at once
    #[arg(long, conflicts_with = "undo", value_parser = crate::demo::parse_duration)]
    grace: Option<Duration>,
    /// End only when every proxy has it; with --grace or --deadline, when it is drained
    #[arg(long)]
    wait: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

/// What becomes of the sessions that are left.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Handover {
    /// Other instances of the service get them
    Move,
    /// Whoever claims them next gets them
    Release,
    /// They stay until the instance is gone
    None,
}

pub async fn run(options: Options) -> Outcome {
    let (service, instance) = match options.instance.as_deref().unwrap_or_default() {
        named if named.contains('/') => {
            let (service, instance) = named.split_once('/').unwrap_or_default();
            (Some(service.to_owned()), instance.to_owned())
        }
        instance => (None, instance.to_owned()),
    };
    if options.status {
        return show(&options, service.as_deref(), &instance).await;
    }
    let end = options.deadline.or(options.grace);
    let grace_ms = end.map(|end| end.as_millis() as u64);
    let handover = match options.handover {
        Handover::Move => "move",
        Handover::Release => "release",
        Handover::None => "none",
    };
    let hands_over = options.deadline.is_some() && options.handover != Handover::None;
    let request = DrainRequest {
        namespace: options.namespace.namespace,
        service,
        instance,
        undo: options.undo,
        grace_ms,
        handover: options.deadline.map(|_| handover.to_owned()),
        reconnects_per_second: options.reconnects_per_second.filter(|_| hands_over),
        author: crate::apply::author(),
    };
    let client = options.admin.client();
    let answer = client.drain(&request).await?;
    output::show(options.output, &answer, || {
        format!(
            "{}/{}/{} is {}\nrevision {}\n",
            answer.namespace, answer.service, answer.id, answer.traffic, answer.revision
        )
    })?;
    if !options.wait {
        return Ok(());
    }
    status::wait_for(&client, answer.revision).await?;
    let Some(end) = end else { return Ok(()) };
    // How long a handover takes depends on how many sessions are left.
    drained(&client, &answer, end, hands_over).await?;
    if options.output == Format::Table {
        let DrainResponse {
            namespace,
            service,
            id,
            ..
        } = &answer;
        output::print(&format!("{namespace}/{service}/{id} is drained\n"))?;
    }
    Ok(())
}

async fn show(options: &Options, service: Option<&str>, instance: &str) -> Outcome {
    let client = options.admin.client();
    let mut drains = client.drains().await?;
    drains.items.retain(|item| {
        item.namespace == options.namespace.namespace
            && (instance.is_empty() || item.id == instance)
            && service.is_none_or(|service| item.service == service)
    });
    let mut stuck = Vec::new();
    for item in drains
        .items
        .iter()
        .filter(|_| options.output == Format::Table)
    {
        if item.traffic == "draining" && item.left_ms == Some(0) && item.handover == "move" {
            stuck.extend(nobody(&client, &item.namespace, &item.service, &item.id).await?);
        }
    }
    output::show(options.output, &drains, || {
        let mut table = Table::new(&["INSTANCE", "TRAFFIC", "SESSIONS", "ENDS IN", "THEN", "BY"]);
        for item in &drains.items {
            let traffic = match item.traffic.as_str() {
                "" => "not registered",
                traffic => traffic,
            };
            let ends = match item.left_ms {
                _ if item.traffic == "drained" => "-".to_owned(),
                None => "never".to_owned(),
                Some(0) => "now".to_owned(),
                Some(left) => format!("{:?}", Duration::from_secs(left.div_ceil(1000))),
            };
            let then = match item.handover.as_str() {
                "none" => "-",
                handover => handover,
            };
            table.row(vec![
                format!("{}/{}", item.service, item.id),
                traffic.to_owned(),
                item.sessions.to_string(),
                ends,
                then.to_owned(),
                item.author.clone(),
            ]);
        }
        let told = stuck.iter().map(|told| format!("{told}\n"));
        table.render(output::stdout_style()) + &told.collect::<String>()
    })
}

/// Why sessions that are to be handed over stay where they are: nobody could get them.
async fn nobody(
    client: &Admin,
    namespace: &str,
    service: &str,
    id: &str,
) -> Result<Option<String>, Failure> {
    let instances = client.instances(Some(service), Some(namespace)).await?;
    let mut others = instances.items.iter().filter(|item| item.id != id);
    Ok(match others.any(|item| item.traffic == "accepting") {
        true => None,
        false => Some(format!(
            "{service}/{id} keeps its sessions beyond the deadline: no other instance of {service} is accepting"
        )),
    })
}

/// Waits until its time is over, its sessions are handed over where they are, and every proxy knows.
async fn drained(
    client: &Admin,
    drain: &DrainResponse,
    end: Duration,
    hands_over: bool,
) -> Outcome {
    let DrainResponse {
        namespace,
        service,
        id,
        ..
    } = drain;
    let late = Instant::now() + end + LATE_MAX;
    let mut look_at = Instant::now() + end + PAUSE;
    loop {
        let instances = client.instances(Some(&drain.service), Some(&drain.namespace));
        let instances = instances.await?;
        let found = instances.items.iter().find(|item| item.id == drain.id);
        // One that left by itself has nothing more to drain.
        if found.is_none_or(|item| item.traffic == "drained") {
            return status::wait_for(client, instances.revision).await;
        }
        if !hands_over && Instant::now() >= late {
            let told = format!("{id} was not drained within {end:?}");
            return Err(Failure::unreachable(told));
        }
        if hands_over && Instant::now() >= look_at {
            look_at = Instant::now() + LOOK;
            if let Some(why) = nobody(client, namespace, service, id).await? {
                eprintln!("{}", output::plain(&why));
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Beyond its grace: a control plane that was just replaced counts it anew.
const LATE_MAX: Duration = Duration::from_secs(30);
/// Between looks for who could get its sessions.
const LOOK: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);
