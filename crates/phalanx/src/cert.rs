//! `cert`: tokens to join with, certificates issued, listed, looked at, renewed and revoked, and the rotation of the root.
//! What is asked of the control plane goes through the admin API; keys are made here and stay here.

mod issue;
mod list;
mod look;
mod renew;
mod revoke;
mod rotate;
mod token;

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use phalanx_model::ServiceName;
use phalanx_pki::clock::{Clock, SystemClock, UnixMillis};
use phalanx_pki::examine::CertificateDer;
use phalanx_pki::files::{self, Access, FileError};
use phalanx_pki::name::{Name, Workload};
use phalanx_pki::roots::Roots;
use phalanx_pki::x509::{self, Cert};

use crate::AdminOptions;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format};

#[derive(Args)]
#[command(arg_required_else_help = true)]
pub struct Options {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a token with which one workload joins once; prints it with the roots to trust
    Token(token::Options),
    /// List tokens that were neither used nor expired
    Tokens(token::ListOptions),
    /// Sign a certificate request; prints leaf and intermediate
    Sign(issue::SignOptions),
    /// Print the roots that the mesh trusts, as PEM
    Roots(RootsOptions),
    /// List issued certificates, newest first
    List(list::Options),
    /// Show one certificate: by serial, from a file, or as somebody presents it
    Show(look::ShowOptions),
    /// Make a key here and have its certificate issued: cert.pem, key.pem, roots.pem
    Issue(issue::Options),
    /// Renew the certificate of a folder by itself
    Renew(renew::Options),
    /// Revoke certificates: peers refuse them within seconds and close what is open
    Revoke(revoke::Options),
    /// Let certificates go that were revoked with certificateHold
    Release(revoke::ReleaseOptions),
    /// Replace the root step by step, without a failed request
    RotateRoot(rotate::Options),
    /// Make an intermediate under this mesh's root for another control plane (its --ca DIR)
    Intermediate(issue::IntermediateOptions),
    /// Check a file, a folder or an address: chain, key, names, dates, staple, revocation
    Verify(look::VerifyOptions),
}

/// Whose certificate.
#[derive(Args, Clone)]
pub struct WorkloadOptions {
    /// Service it is for
    #[arg(long, value_name = "NAME")]
    service: String,
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Zone where it runs, which gives it the name <service>-<zone>.internal too
    #[arg(long)]
    zone: Option<String>,
}

impl WorkloadOptions {
    fn check(&self) -> Result<(), Failure> {
        ServiceName::parse(&self.namespace, &self.service).map_err(Failure::usage)?;
        Ok(())
    }
}

pub async fn run(options: Options) -> Outcome {
    match options.verb {
        Verb::Token(options) => token::run(options).await,
        Verb::Tokens(options) => token::list(options).await,
        Verb::Sign(options) => issue::sign(options).await,
        Verb::Roots(options) => roots(options).await,
        Verb::List(options) => list::run(options).await,
        Verb::Show(options) => look::show(options).await,
        Verb::Issue(options) => issue::run(options).await,
        Verb::Renew(options) => renew::run(options).await,
        Verb::Revoke(options) => revoke::run(options).await,
        Verb::Release(options) => revoke::release(options).await,
        Verb::RotateRoot(options) => rotate::run(options).await,
        Verb::Intermediate(options) => issue::intermediate(options).await,
        Verb::Verify(options) => look::verify(options).await,
    }
}

#[derive(Args)]
struct RootsOptions {
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

async fn roots(options: RootsOptions) -> Outcome {
    let trust = options.admin.client().trust().await?;
    output::show(options.output, &trust, || trust.pem.clone())
}

/// A life: in days, or as any duration.
pub fn parse_life(text: &str) -> Result<Duration, String> {
    let days = text.strip_suffix('d').and_then(|d| d.parse::<u32>().ok());
    match days {
        Some(days) => Ok(Duration::from_secs(u64::from(days) * 86_400)),
        None => crate::demo::parse_duration(text)
            .map_err(|_| format!("`{text}` is no duration; write 90s, 1h30m, 72h or 30d")),
    }
}

fn now() -> UnixMillis {
    SystemClock.now()
}

/// `2026-11-22T15:40:49Z`
fn date(ms: u64) -> String {
    UnixMillis(i64::try_from(ms).unwrap_or(i64::MAX)).to_string()
}

/// How much longer, or how long since.
fn left(not_after_ms: u64) -> String {
    let (now, end) = (
        now(),
        UnixMillis(i64::try_from(not_after_ms).unwrap_or(i64::MAX)),
    );
    match now < end {
        true => phalanx_pki::examine::span(now.until(end)),
        false => format!("over {}", phalanx_pki::examine::span(end.until(now))),
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn dash(text: &str) -> String {
    match text {
        "" => "-".to_owned(),
        text => text.to_owned(),
    }
}

/// Whose a certificate is, by its own names.
fn workload_of(leaf: &[u8]) -> Option<Workload> {
    let cert = Cert::parse(leaf).ok()?;
    let id: phalanx_pki::name::SpiffeId = cert.names.iter().find_map(|name| match name {
        Name::Uri(uri) => uri.parse().ok(),
        _ => None,
    })?;
    let service = &id.service;
    let own = Workload::parse(&id.trust_domain, &service.namespace, &service.name, None).ok()?;
    Some(own.with_zone_of(&cert.names))
}

/// A file's bytes, or what keeps them from being read.
fn read(path: &Path, access: Access) -> Result<Vec<u8>, Failure> {
    files::read(path, access).map_err(of_file)
}

fn of_file(error: FileError) -> Failure {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    Failure::file(format!("{error}{}", cause.unwrap_or_default()))
}

/// Certificates of a file in PEM, the leaf first.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let bytes = read(path, Access::Public)?;
    x509::certs_from_pem(&bytes).map_err(|e| Failure::file(format!("{}: {e}", path.display())))
}

fn roots_of(path: &Path) -> Result<Roots, Failure> {
    let bytes = read(path, Access::Public)?;
    Roots::from_pem(&bytes).map_err(|e| Failure::file(format!("{}: {e}", path.display())))
}
