//! `cert issue`, `cert sign`, `cert intermediate`: certificates for keys that stay where they were made.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use phalanx_client::admin::Admin;
use phalanx_client::api::{IntermediateRequest, SignRequest, Signed};
use phalanx_pki::ca::Ca;
use phalanx_pki::credentials::{Credentials, Parts};
use phalanx_pki::csr;
use phalanx_pki::files::Access;
use phalanx_pki::issuer::Issuer;
use phalanx_pki::key::{Key, KeyKind};
use phalanx_pki::name::{TrustDomain, Workload};
use phalanx_pki::roots::Roots;
use phalanx_pki::x509;
use serde::Serialize;

use super::renew::KeepOptions;
use super::{WorkloadOptions, date, left, millis, now, parse_life, read, renew};
use crate::AdminOptions;
use crate::apply::author;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format};

#[derive(Args)]
pub struct SignOptions {
    /// Certificate request (PKCS#10, PEM); its names have to be the service's own
    #[arg(long, value_name = "FILE")]
    csr: PathBuf,
    #[command(flatten)]
    workload: WorkloadOptions,
    /// How long it lives; the control plane's --leaf-ttl by default
    #[arg(long, value_parser = parse_life)]
    ttl: Option<Duration>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn sign(options: SignOptions) -> Outcome {
    let name = options.csr.display();
    let pem = read(&options.csr, Access::Public)?;
    // What can be said without asking anybody is said here.
    csr::Csr::from_pem(&pem).map_err(|e| Failure::file(format!("{name}: {e}")))?;
    let pem = String::from_utf8(pem).map_err(|_| Failure::file(format!("{name} is no text")))?;
    let client = options.admin.client();
    let signed = ask(&client, pem, &options.workload, options.ttl).await?;
    output::show(options.output, &signed, || signed.chain.clone())
}

async fn ask(
    client: &Admin,
    csr: String,
    workload: &WorkloadOptions,
    ttl: Option<Duration>,
) -> Result<Signed, Failure> {
    workload.check()?;
    let request = SignRequest {
        csr,
        namespace: workload.namespace.clone(),
        service: workload.service.clone(),
        zone: workload.zone.clone(),
        ttl_ms: ttl.map(millis),
        author: author(),
    };
    Ok(client.sign(&request).await?)
}

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    workload: WorkloadOptions,
    /// Folder for cert.pem, key.pem (0600) and roots.pem, which change as one
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long it lives; the control plane's --leaf-ttl by default
    #[arg(long, value_parser = parse_life)]
    ttl: Option<Duration>,
    /// Stay, renew the files by themselves and follow the roots, until Ctrl-C
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    keep: KeepOptions,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

/// What was made.
#[derive(Serialize)]
struct Made {
    folder: String,
    id: String,
    serial: String,
    not_after_ms: u64,
}

pub async fn run(options: Options) -> Outcome {
    options.workload.check()?;
    let client = options.admin.client();
    let domain = TrustDomain::parse(&client.trust().await?.trust_domain);
    let domain = domain.map_err(Failure::from_error)?;
    let WorkloadOptions {
        service,
        namespace,
        zone,
    } = &options.workload;
    let own = Workload::parse(&domain, namespace, service, zone.as_deref());
    let own = own.map_err(Failure::usage)?;
    let (key, csr) = fresh(&own)?;
    let signed = ask(&client, csr, &options.workload, options.ttl).await?;
    let unusable = |e: &dyn std::fmt::Display| {
        Failure::refused(format!(
            "what the control plane answered can't be used: {e}"
        ))
    };
    let parts = Parts {
        chain: x509::certs_from_pem(signed.chain.as_bytes()).map_err(|e| unusable(&e))?,
        key,
        staple: None,
        roots: Roots::from_pem(signed.roots.as_bytes()).map_err(|e| unusable(&e))?,
    };
    let credentials = Credentials::try_new(parts, &own, now()).map_err(Failure::from_error)?;
    credentials
        .save(&options.out)
        .map_err(Failure::from_error)?;
    let made = Made {
        folder: options.out.display().to_string(),
        id: signed.id,
        serial: signed.serial,
        not_after_ms: signed.not_after_ms,
    };
    output::show(options.output, &made, || {
        format!(
            "{} in {}: serial {}, good until {}, {} more\n",
            made.id,
            made.folder,
            made.serial,
            date(made.not_after_ms),
            left(made.not_after_ms)
        )
    })?;
    match options.watch {
        true => renew::keep(&options.out, &options.keep).await,
        false => Ok(()),
    }
}

/// A new key and a request for all names of a workload, PEM.
pub fn fresh(own: &Workload) -> Result<(Key, String), Failure> {
    let key = Key::generate(KeyKind::default()).map_err(Failure::from_error)?;
    let der = csr::request(&key, own).map_err(Failure::from_error)?;
    Ok((key, x509::pem("CERTIFICATE REQUEST", &der)))
}

#[derive(Args)]
pub struct IntermediateOptions {
    /// Folder for root-cert.pem, ca-cert.pem, ca-key.pem (0600) and cert-chain.pem, as `phalanx control --ca DIR` takes them
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn intermediate(options: IntermediateOptions) -> Outcome {
    let client = options.admin.client();
    let domain = TrustDomain::parse(&client.trust().await?.trust_domain);
    let domain = domain.map_err(Failure::from_error)?;
    if options.out.join("ca-key.pem").exists() {
        return Err(Failure::usage(format!(
            "{} holds an intermediate already",
            options.out.display()
        ))
        .hint("choose another folder"));
    }
    let request = IntermediateRequest { author: author() };
    let answer = client.intermediate(&request).await?;
    let unusable = |e: &dyn std::fmt::Display| {
        Failure::refused(format!(
            "what the control plane answered can't be used: {e}"
        ))
    };
    let certs = |pem: &str| x509::certs_from_pem(pem.as_bytes()).map_err(|e| unusable(&e));
    let key = Key::from_pem(answer.ca_key.as_bytes()).map_err(|e| unusable(&e))?;
    let der = certs(&answer.ca_cert)?.into_iter().next();
    let der = der.ok_or_else(|| unusable(&"no certificate"))?;
    let roots = Roots::from_pem(answer.root_cert.as_bytes()).map_err(|e| unusable(&e))?;
    let ca = Ca::try_new(der, key).map_err(|e| unusable(&e))?;
    let above = certs(&answer.cert_chain)?;
    let issuer = Issuer::try_new(ca, above, roots, &domain, now());
    let issuer = issuer.map_err(Failure::from_error)?;
    issuer.save(&options.out).map_err(Failure::from_error)?;
    let made = Made {
        folder: options.out.display().to_string(),
        id: domain.to_string(),
        serial: issuer.ca().cert().serial.to_string(),
        not_after_ms: answer.not_after_ms,
    };
    output::show(options.output, &made, || {
        format!(
            "intermediate {} of {} in {}, good until {}; start the other control plane with --ca {}\n",
            made.serial,
            made.id,
            made.folder,
            date(made.not_after_ms),
            made.folder
        )
    })
}
