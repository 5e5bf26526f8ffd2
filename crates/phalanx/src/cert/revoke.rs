//! `cert revoke`, `cert release`: what peers take no more, by serial, all that a holder has, or a whole service at once.

use clap::Args;
use phalanx_client::api::{IssuedQuery, ReleaseCertificatesRequest, RevokeRequest};
use phalanx_pki::name::{IdentityError, SpiffeId};
use phalanx_pki::revocation::Reason;
use phalanx_pki::x509::Serial;

use crate::AdminOptions;
use crate::apply::author;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format};

#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    what: What,
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

#[derive(Args)]
#[group(required = true, multiple = false)]
struct What {
    /// This certificate alone, by its serial number, hex; may be repeated
    #[arg(long, value_name = "HEX", value_parser = serial)]
    serial: Vec<Serial>,
    /// Every certificate that is alive of whoever holds the one with this serial number: those that it had before, and after; may
    /// be repeated
    #[arg(long, value_name = "HEX", value_parser = serial)]
    holder: Vec<Serial>,
    /// Every certificate of this service that is alive
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// The same, by the service's SPIFFE id
    #[arg(long, value_name = "spiffe://…", value_parser = workload)]
    workload: Option<SpiffeId>,
}

pub async fn run(options: Options) -> Outcome {
    let client = options.admin.client();
    let service = match (&options.what.service, &options.what.workload) {
        (_, Some(id)) => Some((id.service.namespace.clone(), id.service.name.clone())),
        (Some(service), None) => Some((options.namespace.clone(), service.clone())),
        (None, None) => None,
    };
    if let Some((namespace, service)) = service.filter(|_| !options.yes) {
        let query = IssuedQuery {
            namespace: Some(namespace.clone()),
            service: Some(service.clone()),
            ..IssuedQuery::default()
        };
        let found = client.issued(&query).await?;
        let alive = found
            .items
            .iter()
            .filter(|c| super::list::state(c) == "good");
        return Err(Failure::usage(format!(
            "this cuts every workload of {namespace}/{service} off: {} certificates are alive",
            alive.count()
        ))
        .hint("say --yes if that is meant; --holder revokes all that one workload has, --serial one certificate"));
    }
    let texts = |serials: &[Serial]| serials.iter().map(Serial::to_string).collect();
    let request = RevokeRequest {
        serials: texts(&options.what.serial),
        holders: texts(&options.what.holder),
        workload: options.what.workload.map(|id| id.to_string()),
        namespace: options.what.service.is_some().then_some(options.namespace),
        service: options.what.service,
        reason: options.reason.as_str().to_owned(),
        author: author(),
    };
    let revoked = client.revoke(&request).await?;
    output::show(options.output, &revoked, || {
        let mut text = told("revoked", "was revoked before", &revoked.serials);
        if !revoked.left.is_empty() {
            text += &format!(
                "the same holder has others that stay good: {} (--holder revokes all of them)\n",
                revoked.left.join(", ")
            );
        }
        text
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

fn workload(text: &str) -> Result<SpiffeId, String> {
    text.parse().map_err(|e: IdentityError| e.to_string())
}

fn reason(text: &str) -> Result<Reason, String> {
    Reason::parse(text).ok_or_else(|| {
        let known: Vec<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        format!("known are {}", known.join(", "))
    })
}
