//! `drain`: new sessions of an instance go elsewhere, until that is undone.

use std::time::{Duration, Instant};

use clap::Args;
use phalanx_client::admin::Admin;
use phalanx_client::api::{DrainRequest, DrainResponse};

use crate::exit::{Failure, Outcome};
use crate::output::{self, Format};
use crate::{AdminOptions, NamespaceOptions, status};

#[derive(Args)]
pub struct Options {
    /// Its id, with its service where several have an instance of that id
    #[arg(value_name = "[SERVICE/]INSTANCE")]
    instance: String,
    /// Take traffic again
    #[arg(long)]
    undo: bool,
    /// After this long its sessions go elsewhere, too; 0s: at once
    #[arg(long, conflicts_with = "undo", value_parser = crate::demo::parse_duration)]
    grace: Option<Duration>,
    /// End only when every proxy has it; with --grace, when it is drained
    #[arg(long)]
    wait: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let (service, instance) = match options.instance.split_once('/') {
        Some((service, instance)) => (Some(service.to_owned()), instance),
        None => (None, options.instance.as_str()),
    };
    let grace_ms = options.grace.map(|grace| grace.as_millis() as u64);
    let request = DrainRequest {
        namespace: options.namespace.namespace,
        service,
        instance: instance.to_owned(),
        undo: options.undo,
        grace_ms,
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
    match options.grace {
        Some(grace) => drained(&client, &answer, grace).await,
        None => Ok(()),
    }
}

/// Waits until its grace is over, and every proxy knows.
async fn drained(client: &Admin, drain: &DrainResponse, grace: Duration) -> Outcome {
    let deadline = Instant::now() + grace + LATE_MAX;
    loop {
        let instances = client.instances(Some(&drain.service), Some(&drain.namespace));
        let instances = instances.await?;
        let found = instances.items.iter().find(|item| item.id == drain.id);
        // One that left by itself has nothing more to drain.
        if found.is_none_or(|item| item.traffic == "drained") {
            return status::wait_for(client, instances.revision).await;
        }
        if Instant::now() >= deadline {
            return Err(Failure::unreachable(format!(
                "{} was not drained within {grace:?}",
                drain.id
            )));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Beyond its grace: a control plane that was just replaced counts it anew.
const LATE_MAX: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);
