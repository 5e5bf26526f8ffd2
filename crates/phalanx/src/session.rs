//! `session`: who has a key of the session directory; putting it at another instance, letting it go.

use clap::{Args, Subcommand};
use phalanx_client::api::{SessionAnswer, SessionPage, SessionRequest, SessionView};

use crate::exit::{Failure, Outcome};
use crate::output::{self, Format, Table};
use crate::{AdminOptions, NamespaceOptions};

#[derive(Args)]
#[command(arg_required_else_help = true)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List sessions, or show one
    Show(ShowOptions),
    /// Put a session at another instance: every gateway follows at once
    Move(MoveOptions),
    /// Nobody has the session any more
    Release(ReleaseOptions),
}

#[derive(Args)]
struct ShowOptions {
    /// Only this session
    #[arg(requires = "service")]
    key: Option<String>,
    #[arg(short, long)]
    service: Option<String>,
    /// Only those of this instance
    #[arg(long, requires = "service", conflicts_with = "key")]
    instance: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Args)]
struct MoveOptions {
    key: String,
    #[arg(short, long)]
    service: String,
    /// The id of the instance that is to have it
    #[arg(long, value_name = "INSTANCE")]
    to: String,
    /// Only if this is its epoch
    #[arg(long, value_name = "EPOCH", value_parser = clap::value_parser!(u64).range(1..))]
    expect: Option<u64>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Args)]
struct ReleaseOptions {
    key: String,
    #[arg(short, long)]
    service: String,
    /// Only if this is its epoch
    #[arg(long, value_name = "EPOCH", value_parser = clap::value_parser!(u64).range(1..))]
    expect: Option<u64>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    match options.verb {
        Verb::Show(options) => show(options).await,
        Verb::Move(options) => relocate(options).await,
        Verb::Release(options) => release(options).await,
    }
}

async fn show(options: ShowOptions) -> Outcome {
    let client = options.admin.client();
    let namespace = &options.namespace.namespace;
    let (service, instance) = (options.service.as_deref(), options.instance.as_deref());
    let mut page = SessionPage::default();
    loop {
        let after = page.items.last().map(|last| last.key.clone());
        let key = options.key.as_deref();
        let next = client.sessions(namespace, service, key, instance, after.as_deref());
        let next = next.await?;
        (page.more, page.count) = (next.more, next.count);
        page.items.extend(next.items);
        // Without a service there is nothing to go on behind.
        if !page.more || service.is_none() {
            break;
        }
    }
    if let (Some(key), []) = (&options.key, page.items.as_slice()) {
        return Err(Failure::refused(format!("nobody has session `{key}`")));
    }
    if page.more {
        output::tell(&format!(
            "{} of {} sessions; --service lists all of one",
            page.items.len(),
            page.count
        ));
    }
    output::show(options.output, &page, || table(&page.items))
}

fn table(sessions: &[SessionView]) -> String {
    let mut table = Table::new(&["SERVICE", "KEY", "INSTANCE", "EPOCH", "TTL", "STATE"]);
    for session in sessions {
        let ttl = match session.ttl_ms {
            0 => "-".to_owned(),
            ms => format!("{:?}", std::time::Duration::from_millis(ms)),
        };
        table.row(vec![
            session.service.clone(),
            session.key.clone(),
            session.instance.clone(),
            session.epoch.to_string(),
            ttl,
            if session.away { "away" } else { "there" }.to_owned(),
        ]);
    }
    table.render(output::stdout_style())
}

async fn relocate(options: MoveOptions) -> Outcome {
    let request = SessionRequest {
        namespace: options.namespace.namespace,
        service: options.service,
        key: options.key,
        instance: options.to,
        expect: options.expect.unwrap_or_default(),
        ttl_ms: 0,
    };
    let answer = options.admin.client().session("move", &request).await?;
    told(options.output, &answer, &request.key)
}

async fn release(options: ReleaseOptions) -> Outcome {
    let request = SessionRequest {
        namespace: options.namespace.namespace,
        service: options.service,
        key: options.key,
        expect: options.expect.unwrap_or_default(),
        ..SessionRequest::default()
    };
    let answer = options.admin.client().session("release", &request).await?;
    output::show(options.output, &answer, || match &answer.session {
        Some(was) => format!("{} is released by {}\n", request.key, was.instance),
        None => format!("nobody has {}\n", request.key),
    })
}

fn told(format: Format, answer: &SessionAnswer, key: &str) -> Outcome {
    output::show(format, answer, || match &answer.session {
        Some(now) => format!("{key} is at {}, epoch {}\n", now.instance, now.epoch),
        None => format!("nobody has {key}\n"),
    })
}
