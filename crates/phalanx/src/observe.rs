//! `ps`, `instances`, `edges`, `stat`: what is connected and what flows.

use std::collections::BTreeMap;

use clap::Args;
use phalanx_client::api::{Edge, ProxyCertificate};
use serde::Serialize;

use crate::AdminOptions;
use crate::exit::Outcome;
use crate::output::{self, Format, Table};

#[derive(Args)]
pub struct Options {
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Args)]
pub struct WindowOptions {
    /// What rates and quantiles cover, up to 60s
    #[arg(long, default_value = "10s", value_parser = crate::demo::parse_duration)]
    window: std::time::Duration,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

impl WindowOptions {
    fn seconds(&self) -> u64 {
        self.window.as_secs().clamp(1, 60)
    }
}

pub async fn ps(options: Options) -> Outcome {
    let proxies = options.admin.client().proxies().await?;
    output::show(options.output, &proxies, || {
        let now = output::now_ms();
        let mut table = Table::new(&[
            "NODE",
            "VERSION",
            "AGENT",
            "APPLIED",
            "TARGET",
            "REFUSED",
            "MEMORY",
            "CERT",
            "CONNECTED",
        ]);
        for p in &proxies.items {
            table.row(vec![
                p.node.clone(),
                dash(&p.version),
                p.agent.clone(),
                p.acked_revision.to_string(),
                p.target_revision.to_string(),
                p.refusals.len().to_string(),
                if p.memory_bytes == 0 {
                    "-".into()
                } else {
                    format!("{:.1}MB", p.memory_bytes as f64 / 1e6)
                },
                match &p.certificate {
                    None => "-".to_owned(),
                    Some(certificate) => remaining(certificate, now),
                },
                output::age(p.connected_ms, now),
            ]);
        }
        table.render(output::stdout_style())
    })
}

/// Of its life; a mark where it should have been renewed by now.
fn remaining(certificate: &ProxyCertificate, now_ms: u64) -> String {
    let left = output::age(now_ms, certificate.not_after_ms);
    match (certificate.not_after_ms <= now_ms, certificate.late) {
        (true, _) => "expired".to_owned(),
        (false, true) => format!("{left} late"),
        (false, false) => left,
    }
}

pub async fn instances(options: Options) -> Outcome {
    let instances = options.admin.client().instances(None, None).await?;
    output::show(options.output, &instances, || {
        let mut table = Table::new(&[
            "NAMESPACE",
            "SERVICE",
            "INSTANCE",
            "VERSION",
            "ZONE",
            "STATE",
            "TRAFFIC",
            "LEASE",
            "HEALTH",
            "SOURCE",
            "ADDRESS",
        ]);
        for i in &instances.items {
            let addresses: Vec<&str> = i.ports.iter().map(|p| p.address.as_str()).collect();
            table.row(vec![
                i.namespace.clone(),
                i.service.clone(),
                i.id.clone(),
                dash(&i.version),
                dash(&i.zone),
                i.state.clone(),
                match i.drained_by.as_str() {
                    "" => dash(&i.traffic),
                    author => format!("{} (by {author})", i.traffic),
                },
                format!("{:.1}s", i.lease_ms as f64 / 1e3),
                match i.health_reason.as_str() {
                    "" => dash(&i.health),
                    reason => format!("{}: {reason}", i.health),
                },
                dash(&i.source),
                addresses.join(","),
            ]);
        }
        table.render(output::stdout_style())
    })
}

pub async fn edges(options: WindowOptions) -> Outcome {
    let edges = options
        .admin
        .client()
        .edges(Some(options.seconds()))
        .await?;
    output::show(options.output, &edges, || {
        if edges.edges.is_empty() {
            return format!("no calls in the last {} s\n", edges.window_s);
        }
        edge_table(&edges.edges).render(output::stdout_style())
    })
}

/// One row per caller, callee and callee's version.
pub fn edge_table(edges: &[Edge]) -> Table {
    let mut table = Table::new(&[
        "FROM", "TO", "VERSION", "PROTOCOL", "RPS", "SUCCESS", "P50", "P99", "RETRIES",
    ]);
    for e in edges {
        table.row(vec![
            e.source.clone(),
            e.destination.clone(),
            dash(&e.destination_version),
            e.protocol.clone(),
            format!("{:.1}", e.rps),
            format!("{:.2}%", e.success * 100.0),
            milliseconds(e.p50_ms),
            milliseconds(e.p99_ms),
            e.retries.to_string(),
        ]);
    }
    table
}

#[derive(Serialize, Default)]
struct Golden {
    service: String,
    callers: usize,
    rps: f64,
    success: f64,
    retries: u64,
    /// The worst of its callers'.
    p99_ms: Option<f64>,
}

pub async fn stat(options: WindowOptions) -> Outcome {
    let edges = options
        .admin
        .client()
        .edges(Some(options.seconds()))
        .await?;
    let mut services: BTreeMap<String, Vec<&Edge>> = BTreeMap::new();
    for edge in &edges.edges {
        services
            .entry(format!(
                "{}/{}",
                edge.destination_namespace, edge.destination
            ))
            .or_default()
            .push(edge);
    }
    let golden: Vec<Golden> = services
        .into_iter()
        .map(|(service, edges)| sum(service, &edges))
        .collect();
    output::show(options.output, &golden, || {
        let mut table = Table::new(&["SERVICE", "CALLERS", "RPS", "SUCCESS", "P99", "RETRIES"]);
        for g in &golden {
            let success = format!("{:.2}%", g.success * 100.0);
            table.row(vec![
                g.service.clone(),
                g.callers.to_string(),
                format!("{:.1}", g.rps),
                success,
                milliseconds(g.p99_ms),
                g.retries.to_string(),
            ]);
        }
        table.render(output::stdout_style())
    })
}

fn sum(service: String, edges: &[&Edge]) -> Golden {
    let requests: u64 = edges.iter().map(|e| e.requests).sum();
    let failures: u64 = edges.iter().map(|e| e.failures).sum();
    let mut callers: Vec<&str> = edges.iter().map(|e| e.source.as_str()).collect();
    callers.sort_unstable();
    callers.dedup();
    Golden {
        service,
        callers: callers.len(),
        rps: edges.iter().map(|e| e.rps).sum(),
        success: if requests == 0 {
            1.0
        } else {
            1.0 - failures as f64 / requests as f64
        },
        retries: edges.iter().map(|e| e.retries).sum(),
        p99_ms: edges.iter().filter_map(|e| e.p99_ms).max_by(f64::total_cmp),
    }
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}ms"))
}

fn dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        text.to_owned()
    }
}
