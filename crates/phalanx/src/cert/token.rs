//! `cert token`, `cert tokens`: what a workload joins with.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use phalanx_client::api::{JoinTokenRequest, JoinTokenView, RevokeTokenRequest};
use phalanx_pki::files::{self, Access};

use super::{dash, date, left, millis, of_file, parse_life};
use crate::AdminOptions;
use crate::apply::author;
use crate::exit::Outcome;
use crate::output::{self, Format, Table};

#[derive(Args)]
pub struct Options {
    /// Service whose workload joins
    #[arg(
        long,
        value_name = "NAME",
        required_unless_present = "revoke",
        conflicts_with = "revoke"
    )]
    service: Option<String>,
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Zone where it runs; a workload that says another is refused
    #[arg(long, conflicts_with = "revoke")]
    zone: Option<String>,
    /// How long it may be unused
    #[arg(long, default_value = "1h", value_parser = parse_life)]
    ttl: Duration,
    /// Write it to this file, which nobody else may read (0600)
    #[arg(long, value_name = "FILE", conflicts_with = "revoke")]
    out: Option<PathBuf>,
    /// Make this token good for nothing
    #[arg(long, value_name = "ID")]
    revoke: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let client = options.admin.client();
    if let Some(id) = options.revoke {
        let author = author();
        let gone = client
            .revoke_token(&RevokeTokenRequest { id, author })
            .await?;
        return output::show(options.output, &gone, || {
            format!(
                "token {} of {}/{} is good no more\n",
                gone.id, gone.namespace, gone.service
            )
        });
    }
    let request = JoinTokenRequest {
        namespace: options.namespace,
        // clap asks for one.
        service: options.service.unwrap_or_default(),
        zone: options.zone,
        ttl_ms: millis(options.ttl),
        author: author(),
    };
    let token = client.join_token(&request).await?;
    let text = format!("{}\n{}", token.token, token.roots);
    let Some(path) = &options.out else {
        return output::show(options.output, &token, || text);
    };
    files::write(path, text.as_bytes(), Access::Private).map_err(of_file)?;
    let shown = JoinTokenView {
        id: token.id.clone(),
        namespace: token.namespace.clone(),
        service: token.service.clone(),
        zone: token.zone.clone(),
        expires_ms: token.expires_ms,
        author: request.author,
    };
    output::show(options.output, &shown, || {
        format!(
            "token {} for one workload of {}/{} in {}, good for {}\n",
            shown.id,
            shown.namespace,
            shown.service,
            path.display(),
            whole(options.ttl)
        )
    })
}

/// As it was asked for: what is left of it is a moment less.
fn whole(ttl: Duration) -> String {
    match ttl.as_secs() {
        secs if secs > 0 && secs % 86_400 == 0 => format!("{}d", secs / 86_400),
        secs if secs > 0 && secs % 3600 == 0 => format!("{}h", secs / 3600),
        _ => phalanx_pki::examine::span(ttl),
    }
}

#[derive(Args)]
pub struct ListOptions {
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn list(options: ListOptions) -> Outcome {
    let tokens = options.admin.client().join_tokens().await?;
    output::show(options.output, &tokens, || {
        if tokens.items.is_empty() {
            return "no token waits to be used\n".to_owned();
        }
        let mut table = Table::new(&[
            "ID",
            "NAMESPACE",
            "SERVICE",
            "ZONE",
            "EXPIRES",
            "LEFT",
            "BY",
        ]);
        for token in &tokens.items {
            table.row(vec![
                token.id.clone(),
                token.namespace.clone(),
                token.service.clone(),
                dash(token.zone.as_deref().unwrap_or_default()),
                date(token.expires_ms),
                left(token.expires_ms),
                dash(&token.author),
            ]);
        }
        table.render(output::stdout_style())
    })
}
