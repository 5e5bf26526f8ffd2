//! `cert revoke`, `cert release`: what peers take no more, by serial or a whole service at once.

use clap::Args;
use phalanx_client::api::{IssuedQuery, ReleaseCertificatesRequest, RevokeRequest};
use phalanx_pki::revocation::Reason;
use phalanx_pki::x509::Serial;

use crate::AdminOptions;
use crate::apply::author;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format};

#[derive(Args)]
pub struct Options {
    /// Serial number of a certificate, hex; may be repeated
    #[arg(long, value_name = "HEX", required_unless_present = "service", conflicts_with = "service", value_parser = serial)]
    serial: Vec<Serial>,
    /// Every certificate of this service that is alive
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Why, in RFC 5280's words: unspecified, keyCompromise, superseded, cessationOfOperation, …
    #[arg(long, default_value = "unspecified", value_parser = reason)]
    reason: Reason,
    /// Yes, a whole service
    #[arg(long)]
    yes: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let client = options.admin.client();
    if let Some(service) = options.service.as_ref().filter(|_| !options.yes) {
        let query = IssuedQuery {
            namespace: Some(options.namespace.clone()),
            service: Some(service.clone()),
            ..IssuedQuery::default()
        };
        let found = client.issued(&query).await?;
        let alive = found
            .items
            .iter()
            .filter(|c| super::list::state(c) == "good");
        return Err(Failure::usage(format!(
            "this cuts every workload of {}/{service} off: {} certificates are alive",
            options.namespace,
            alive.count()
        ))
        .hint("say --yes if that is meant; --serial revokes one"));
    }
    let request = RevokeRequest {
        serials: options.serial.iter().map(Serial::to_string).collect(),
        namespace: options.service.is_some().then_some(options.namespace),
        service: options.service,
        reason: options.reason.as_str().to_owned(),
        author: author(),
    };
    let revoked = client.revoke(&request).await?;
    output::show(options.output, &revoked, || {
        told("revoked", "was revoked before", &revoked.serials)
    })
}

#[derive(Args)]
pub struct ReleaseOptions {
    /// Serial number of a certificate, hex; may be repeated
    #[arg(long, value_name = "HEX", required = true, value_parser = serial)]
    serial: Vec<Serial>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn release(options: ReleaseOptions) -> Outcome {
    let request = ReleaseCertificatesRequest {
        serials: options.serial.iter().map(Serial::to_string).collect(),
        author: author(),
    };
    let released = options
        .admin
        .client()
        .release_certificates(&request)
        .await?;
    output::show(options.output, &released, || {
        told("released", "was not held", &released.serials)
    })
}

fn told(what: &str, nothing: &str, serials: &[String]) -> String {
    match serials {
        [] => format!("nothing to do: every one {nothing}\n"),
        some => some.iter().map(|s| format!("{what} {s}\n")).collect(),
    }
}

fn serial(text: &str) -> Result<Serial, String> {
    Serial::parse(text).map_err(|e| e.to_string())
}

fn reason(text: &str) -> Result<Reason, String> {
    Reason::parse(text).ok_or_else(|| {
        let known: Vec<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        format!("known are {}", known.join(", "))
    })
}
