//! `cert list`: the issuance log.

use std::time::Duration;

use clap::Args;
use phalanx_client::api::{ISSUED_MAX, IssuedCertificate, IssuedCertificates, IssuedQuery};

use super::{dash, date, left, millis, parse_life};
use crate::AdminOptions;
use crate::exit::Outcome;
use crate::output::{self, Format, Table};

#[derive(Args)]
pub struct Options {
    /// Only this service's
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only this namespace's
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only what is good now and will not be after this long
    #[arg(long, value_name = "TIME", conflicts_with = "revoked", value_parser = parse_life)]
    expiring: Option<Duration>,
    /// Only what is revoked
    #[arg(long)]
    revoked: bool,
    /// At most so many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=ISSUED_MAX as u64))]
    limit: u64,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let query = IssuedQuery {
        namespace: options.namespace,
        service: options.service,
        serial: None,
        revoked: options.revoked,
        expiring_ms: options.expiring.map(millis),
        limit: Some(options.limit),
    };
    let found = options.admin.client().issued(&query).await?;
    output::show(options.output, &found, || render(&found))?;
    if found.more && options.output == Format::Table {
        output::tell(&format!(
            "there are more; the newest {} are shown (--limit)",
            found.items.len()
        ));
    }
    Ok(())
}

fn render(found: &IssuedCertificates) -> String {
    if found.items.is_empty() {
        return "no certificate\n".to_owned();
    }
    let mut table = Table::new(&["SERIAL", "ID", "ISSUED", "EXPIRES", "LEFT", "BY", "STATE"]);
    for item in &found.items {
        table.row(vec![
            item.serial.clone(),
            item.id.clone(),
            date(item.issued_ms),
            date(item.not_after_ms),
            left(item.not_after_ms),
            attested(item),
            state(item),
        ]);
    }
    table.render(output::stdout_style())
}

/// By what its bearer proved who it is.
pub fn attested(item: &IssuedCertificate) -> String {
    let by = match item.attested_by.as_str() {
        "join_token" => "token",
        "certificate" => "renewal of",
        "service_account" => "service account",
        "operator" => "operator",
        other => other,
    };
    let what: String = item.attested.chars().take(40).collect();
    format!("{} {}", dash(by), what).trim_end().to_owned()
}

pub fn state(item: &IssuedCertificate) -> String {
    match (item.revoked_ms, super::now().0 < item.not_after_ms as i64) {
        (Some(_), _) => format!(
            "revoked: {}",
            item.reason.as_deref().unwrap_or("unspecified")
        ),
        (None, true) => "good".to_owned(),
        (None, false) => "expired".to_owned(),
    }
}
