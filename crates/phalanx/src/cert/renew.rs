//! `cert renew`, and the stay of `cert issue --watch`: the next certificate of a folder, by the one that is in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use phalanx_client::channel::Control;
use phalanx_client::identity::{CallError, Client};
use phalanx_client::inspect;
use phalanx_pki::clock::SystemClock;
use phalanx_pki::credentials::{Credentials, Parts};
use phalanx_pki::csr;
use phalanx_pki::examine;
use phalanx_pki::identity::Identity;
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::renewal::RenewalPolicy;
use phalanx_proxy::config::{IdentityConfig, Source};
use phalanx_proxy::identity::Certificates;
use phalanx_proxy::lasting::Lasting;
use serde::Serialize;

use super::{look, now, parse_life, workload_of};
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format};
use crate::signal;

#[derive(Args)]
pub struct Options {
    /// Folder with cert.pem, key.pem and roots.pem
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The control plane's xDS address, where certificates are renewed
    #[arg(
        long,
        value_name = "HOST:PORT[,HOST:PORT]",
        default_value = "127.0.0.1:15010"
    )]
    control: String,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// How files are kept good.
#[derive(Args)]
pub struct KeepOptions {
    /// With --watch: the control plane's xDS address, where certificates are renewed
    #[arg(
        long,
        value_name = "HOST:PORT[,HOST:PORT]",
        default_value = "127.0.0.1:15010"
    )]
    control: String,
    /// With --watch: renew when less than this is left, at the latest when a third is
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_life)]
    renew_before: Duration,
    /// With --watch: how often the remaining life is looked at
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_life)]
    cert_check: Duration,
}

#[derive(Serialize)]
struct Renewed {
    folder: String,
    id: String,
    serial: String,
    not_after_ms: i64,
    /// The one before, which stays good until its own end.
    replaces: String,
}

pub async fn run(options: Options) -> Outcome {
    let before = look::credentials(&options.dir)?;
    let own = before
        .parts()
        .chain
        .first()
        .and_then(|leaf| workload_of(leaf));
    let own = own.ok_or_else(|| Failure::defect("a checked certificate has no id"))?;
    let old = before.peer().serial.to_string();
    let identity = Identity::new(Arc::new(SystemClock));
    identity.publish(before.clone());
    let control = Control::secure(&options.control, Arc::new(identity));
    let control = control.map_err(Failure::usage)?;
    let key = Key::generate(KeyKind::default()).map_err(Failure::from_error)?;
    let csr = csr::request(&key, &own).map_err(Failure::from_error)?;
    let grant = Client::new(control.channel()).renew(csr).await;
    let grant = match grant {
        Ok(grant) => grant,
        Err(error) => return Err(failed(error, &options.control, &before).await),
    };
    let parts = Parts {
        chain: grant.chain,
        key,
        // It is not written: whoever uses the files can't show it.
        staple: None,
        roots: grant.roots,
    };
    let next = Credentials::try_new(parts, &own, now()).map_err(Failure::from_error)?;
    next.save(&options.dir).map_err(Failure::from_error)?;
    let renewed = Renewed {
        folder: options.dir.display().to_string(),
        id: next.peer().id.to_string(),
        serial: next.peer().serial.to_string(),
        not_after_ms: next.not_after().0,
        replaces: old,
    };
    output::show(options.output, &renewed, || {
        format!(
            "{} in {}: serial {} in place of {}, good until {}, {} more\n",
            renewed.id,
            renewed.folder,
            renewed.serial,
            renewed.replaces,
            next.not_after(),
            examine::span(now().until(next.not_after()))
        )
    })
}

/// Whether nobody is there, or our certificate is not taken: TLS tells a client only after the handshake, and on the channel
/// only that the connection broke.
async fn failed(error: CallError, control: &str, own: &Credentials) -> Failure {
    let broken = || format!("asked was {control}; another address goes with --control HOST:PORT");
    let verify =
        "the files are as they were; `phalanx cert verify DIR` says what is wrong with them";
    match error {
        CallError::Unavailable { .. } => {
            let first = control.split(',').next().unwrap_or_default().trim();
            let seen = inspect::handshake(first, Some(own)).await;
            match seen.ok().and_then(|seen| seen.ended.filter(|_| seen.asks)) {
                Some(why) => Failure::refused(format!(
                    "the control plane at {first} does not take the certificate: {why}"
                ))
                .hint(verify),
                None => Failure::unreachable(error).hint(broken()),
            }
        }
        other => Failure::from_error(other).hint(verify),
    }
}

/// Renews the files of a folder, and follows the roots in them, until a signal.
pub async fn keep(dir: &Path, options: &KeepOptions) -> Outcome {
    signal::start_log();
    let current = look::credentials(dir)?;
    let id = current.peer().id.clone();
    let leaf = current
        .parts()
        .chain
        .first()
        .and_then(|leaf| workload_of(leaf));
    let zone = leaf.and_then(|own| own.zone().map(str::to_owned));
    let config = IdentityConfig {
        trust_domain: id.trust_domain.clone(),
        renewal: RenewalPolicy {
            before: options.renew_before,
            check: options.cert_check,
            ..RenewalPolicy::default()
        },
        ..IdentityConfig::new(Source::Issued {
            dir: dir.to_owned(),
            proof: None,
        })
    };
    let clock = Arc::new(SystemClock);
    let certificates = Certificates::open(&config, &id.service, zone.as_deref(), clock);
    let certificates = certificates.map_err(Failure::from_error)?;
    let control = Control::secure_as_workload(&options.control, certificates.identity().clone());
    let control = control.map_err(Failure::usage)?;
    let running = certificates.spawn(control, &options.control, &Lasting::default());
    let _running = running.map_err(Failure::from_error)?;
    signal::shutdown().await;
    Ok(())
}
