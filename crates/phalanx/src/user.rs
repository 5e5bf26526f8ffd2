//! `user`: people and tools that may ask the control plane, and what they may do.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use phalanx_client::api::{UserRequest, UserView};
use phalanx_pki::clock::UnixMillis;
use phalanx_pki::files::{self, Access};

use crate::AdminOptions;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format, Table};

#[derive(Args)]
#[command(arg_required_else_help = true)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a user; prints the token, this once
    Add(AddOptions),
    /// List users
    List(ListOptions),
    /// Take a user's token back
    Remove(RemoveOptions),
}

/// What a user may do; each may what the ones before it may.
#[derive(Clone, Copy, ValueEnum)]
enum Role {
    /// Looks
    Viewer,
    /// Changes the configuration and operates instances
    Operator,
    /// Deals in certificates, users and backups
    Admin,
}

#[derive(Args)]
struct AddOptions {
    name: String,
    #[arg(long, value_enum)]
    role: Role,
    /// How long the token is good, such as 12h or 30d; for ever by default
    #[arg(long, value_parser = crate::cert::parse_life)]
    ttl: Option<Duration>,
    /// Write the token to this file, which nobody else may read (0600)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Args)]
struct ListOptions {
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Args)]
struct RemoveOptions {
    name: String,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    match options.verb {
        Verb::Add(options) => add(options).await,
        Verb::List(options) => list(options).await,
        Verb::Remove(options) => remove(options).await,
    }
}

async fn add(options: AddOptions) -> Outcome {
    let role = match options.role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    };
    let ttl = options.ttl.map(|ttl| u64::try_from(ttl.as_millis()));
    let request = UserRequest {
        name: options.name,
        role: role.to_owned(),
        ttl_ms: ttl.transpose().map_err(Failure::usage)?,
    };
    let made = options.admin.client().add_user(&request).await?;
    let Some(path) = &options.out else {
        return output::show(options.output, &made, || made.token.clone() + "\n");
    };
    // With the roots below, the file is all that its bearer needs.
    let text = format!("{}\n{}", made.token, made.roots);
    files::write(path, text.as_bytes(), Access::Private)
        .map_err(|e| Failure::file(format!("{e}: {}", source(&e))))?;
    output::show(options.output, &made.user, || {
        format!(
            "{} is {}: PHALANX_TOKEN_FILE={}\n",
            made.user.name,
            made.user.role,
            path.display()
        )
    })
}

fn source(error: &dyn std::error::Error) -> String {
    error.source().map(ToString::to_string).unwrap_or_default()
}

async fn list(options: ListOptions) -> Outcome {
    let users = options.admin.client().users().await?;
    output::show(options.output, &users, || {
        let mut table = Table::new(&["NAME", "ROLE", "MADE", "BY", "EXPIRES"]);
        for user in &users.items {
            table.row(vec![
                user.name.clone(),
                user.role.clone(),
                UnixMillis(user.created_ms).to_string(),
                match user.author.as_str() {
                    "" => "-".to_owned(),
                    author => author.to_owned(),
                },
                expires(user),
            ]);
        }
        table.render(output::stdout_style())
    })
}

fn expires(user: &UserView) -> String {
    match user.expires_ms {
        Some(at) => UnixMillis(at).to_string(),
        None => "never".to_owned(),
    }
}

async fn remove(options: RemoveOptions) -> Outcome {
    let gone = options.admin.client().remove_user(&options.name).await?;
    output::show(options.output, &gone, || {
        format!("{} is {} no more\n", gone.name, gone.role)
    })
}
