//! `/metrics` of the control plane: one family per fact, read when asked.

use std::sync::atomic::{AtomicU64, Ordering};

use phalanx_store::Store;
use phalanx_telemetry::metrics::{Exposition, Family};
use phalanx_telemetry::process;

use crate::discovery::{Fleet, PUSH_BOUNDS_MS};
use crate::dns;
use crate::observe::Observe;
use crate::registry::Registry;
use crate::snapshot::Published;

/// The whole text.
pub fn write(
    store: &Store,
    published: &Published,
    registry: &Registry,
    observe: &Observe,
    fleet: &Fleet,
    dns: Option<&dns::Counts>,
) -> String {
    let mut out = Exposition::new();
    process::write(&mut out);
    of_store(&mut out, store);
    of_world(&mut out, published);
    of_registry(&mut out, registry);
    of_discovery(&mut out, fleet);
    if let Some(dns) = dns {
        of_dns(&mut out, dns);
    }
    counter(
        &mut out,
        "phalanx_control_reports_total",
        "Reports taken from proxies.",
        observe.reports(),
    );
    counter(
        &mut out,
        "phalanx_control_edges_dropped_total",
        "Reported edges beyond the bound.",
        observe.dropped(),
    );
    out.finish()
}

fn of_store(out: &mut Exposition, store: &Store) {
    let status = store.status();
    let is_broken = status.read_only.is_some() || status.fatal.is_some();
    gauge(
        out,
        "phalanx_control_store_revision",
        "Newest revision of the store.",
        status.revision,
    );
    gauge(
        out,
        "phalanx_control_store_entries",
        "Keys in the store.",
        status.entries as u64,
    );
    gauge(
        out,
        "phalanx_control_store_queued",
        "Transactions that wait to be written.",
        status.queued as u64,
    );
    gauge(
        out,
        "phalanx_control_store_read_only",
        "1 while no write is taken.",
        is_broken.into(),
    );
    counter(
        out,
        "phalanx_control_store_written_total",
        "Transactions written.",
        status.written,
    );
    counter(
        out,
        "phalanx_control_store_groups_total",
        "Synced groups that carried them.",
        status.groups,
    );
}

fn of_world(out: &mut Exposition, published: &Published) {
    gauge(
        out,
        "phalanx_control_revision",
        "Newest compiled revision.",
        published.revision,
    );
    gauge(
        out,
        "phalanx_control_documents",
        "Stored documents.",
        published.world.documents.len() as u64,
    );
    gauge(
        out,
        "phalanx_control_instances",
        "Stored instances.",
        published.world.instances.len() as u64,
    );
    let quarantined = published.world.quarantined.len() + published.findings.len();
    gauge(
        out,
        "phalanx_control_quarantined",
        "Documents that are not, or not wholly, in force.",
        quarantined as u64,
    );
}

fn of_registry(out: &mut Exposition, registry: &Registry) {
    let counts = registry.counts();
    gauge(
        out,
        "phalanx_control_leases",
        "Instances with a lease.",
        registry.len() as u64,
    );
    gauge(
        out,
        "phalanx_control_held_instances",
        "Instances that expired but are still served.",
        registry.held().len() as u64,
    );
    gauge(
        out,
        "phalanx_control_registry_watchers",
        "Open registry watches.",
        registry.watchers() as u64,
    );
    for (name, help, count) in [
        (
            "phalanx_control_registrations_total",
            "Register calls.",
            &counts.registrations,
        ),
        (
            "phalanx_control_heartbeats_total",
            "Heartbeat calls.",
            &counts.heartbeats,
        ),
        (
            "phalanx_control_deregistrations_total",
            "Instances that left by themselves.",
            &counts.deregistrations,
        ),
        (
            "phalanx_control_expirations_total",
            "Instances that went by expiry.",
            &counts.expirations,
        ),
    ] {
        counter(out, name, help, load(count));
    }
}

fn of_discovery(out: &mut Exposition, fleet: &Fleet) {
    let counts = fleet.counts();
    gauge(
        out,
        "phalanx_control_proxies",
        "Connected proxies.",
        fleet.len() as u64,
    );
    counter(
        out,
        "phalanx_control_responses_total",
        "Discovery responses sent.",
        load(&counts.responses),
    );
    counter(
        out,
        "phalanx_control_nacks_total",
        "Discovery responses refused.",
        load(&counts.nacks),
    );
    let buckets: Vec<u64> = counts.push_ms.iter().map(load).collect();
    let bounds: Vec<f64> = PUSH_BOUNDS_MS.iter().map(|ms| ms / 1000.0).collect();
    let family = Family::histogram(
        "phalanx_control_push_seconds",
        "From a change being stored to its acknowledgement by one proxy.",
    );
    out.family(&family).histogram(
        &[],
        &bounds,
        &buckets,
        load(&counts.push_us_sum) as f64 / 1e6,
    );
}

fn of_dns(out: &mut Exposition, counts: &dns::Counts) {
    let family = Family::counter("phalanx_dns_queries_total", "DNS questions, by transport.");
    let mut samples = out.family(&family);
    for (transport, count) in [("udp", &counts.udp), ("tcp", &counts.tcp)] {
        samples.sample(&[("transport", transport)], load(count));
    }
    let family = Family::counter(
        "phalanx_dns_responses_total",
        "DNS answers, by response code.",
    );
    let mut samples = out.family(&family);
    for ((code, _), count) in dns::CODES.iter().zip(&counts.codes) {
        samples.sample(&[("code", code)], load(count));
    }
    for (name, help, count) in [
        (
            "phalanx_dns_truncated_total",
            "DNS answers that only say: ask over TCP.",
            &counts.truncated,
        ),
        (
            "phalanx_dns_limited_total",
            "DNS questions over the rate of their source.",
            &counts.limited,
        ),
        (
            "phalanx_dns_dropped_total",
            "DNS messages without an answer.",
            &counts.dropped,
        ),
    ] {
        counter(out, name, help, load(count));
    }
    for (name, help, value) in [
        (
            "phalanx_dns_connections",
            "Open TCP connections for DNS.",
            counts.connections.load(Ordering::Relaxed) as u64,
        ),
        (
            "phalanx_dns_services",
            "Services that have names in DNS.",
            counts.services.load(Ordering::Relaxed) as u64,
        ),
        (
            "phalanx_dns_revision",
            "Revision of the answers of DNS.",
            load(&counts.revision),
        ),
    ] {
        gauge(out, name, help, value);
    }
}

fn gauge(out: &mut Exposition, name: &'static str, help: &'static str, value: u64) {
    out.family(&Family::gauge(name, help)).sample(&[], value);
}

fn counter(out: &mut Exposition, name: &'static str, help: &'static str, value: u64) {
    out.family(&Family::counter(name, help)).sample(&[], value);
}

fn load(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}
