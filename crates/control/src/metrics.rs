//! `/metrics` of the control plane: one family per fact, read when asked.

use std::sync::atomic::{AtomicU64, Ordering};

use phalanx_pki::clock::{Clock, SystemClock};
use phalanx_store::Store;
use phalanx_telemetry::metrics::{Exposition, Family};
use phalanx_telemetry::process;

use crate::access::Refusals;
use crate::ca::Ca;
use crate::discovery::{Fleet, Load, Loads, PUSH_BOUNDS_MS, Summary};
use crate::dns;
use crate::health::Health;
use crate::limits::Limits;
use crate::observe::Observe;
use crate::registry::Registry;
use crate::rollout::Rollouts;
use crate::sessions::Sessions;
use crate::snapshot::Published;

/// Whose facts are told.
pub struct Sources<'a> {
    pub store: &'a Store,
    pub published: &'a Published,
    pub registry: &'a Registry,
    pub observe: &'a Observe,
    pub fleet: &'a Fleet,
    pub loads: &'a Loads,
    pub health: &'a Health,
    pub dns: Option<&'a dns::Counts>,
    pub refusals: &'a Refusals,
    pub ca: Option<&'a Ca>,
    pub limits: &'a Limits,
    pub sessions: &'a Sessions,
    pub rollouts: &'a Rollouts,
}

/// The whole text.
pub fn write(sources: &Sources<'_>) -> String {
    let Sources {
        store,
        published,
        registry,
        observe,
        fleet,
        loads,
        health,
        dns,
        refusals,
        ca,
        limits,
        rollouts,
        sessions,
    } = *sources;
    let mut out = Exposition::new();
    process::write(&mut out);
    of_store(&mut out, store);
    of_world(&mut out, published);
    of_registry(&mut out, registry);
    of_discovery(&mut out, fleet);
    of_loads(&mut out, &loads.summary());
    of_health(&mut out, health);
    if let Some(dns) = dns {
        of_dns(&mut out, dns);
    }
    of_refusals(&mut out, refusals);
    of_limits(&mut out, limits);
    of_sessions(&mut out, sessions);
    of_rollouts(&mut out, rollouts);
    if let Some(ca) = ca {
        of_ca(&mut out, ca);
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

/// How far each is, as every control plane knows; what was decided, where it was.
fn of_rollouts(out: &mut Exposition, rollouts: &Rollouts) {
    let views = rollouts.views(None);
    let family = Family::gauge(
        "phalanx_rollout_phase",
        "1 for the phase that a rollout is in.",
    );
    let mut phases = out.family(&family);
    for view in &views {
        let (namespace, name) = (view.namespace.as_str(), view.name.as_str());
        let labels = [
            ("namespace", namespace),
            ("rollout", name),
            ("phase", view.phase.as_str()),
        ];
        phases.sample(&labels, 1);
    }
    type Value = fn(&phalanx_client::api::RolloutView) -> u64;
    let of_each: [(&'static str, &'static str, Value); 3] = [
        (
            "phalanx_rollout_weight",
            "Of a hundred requests, how many go to the new version.",
            |view| u64::from(view.weight),
        ),
        (
            "phalanx_rollout_step",
            "The step under way, from 1; 0 before the first.",
            |view| view.step as u64,
        ),
        (
            "phalanx_rollout_attempt",
            "How often a rollout was started.",
            |view| u64::from(view.attempt),
        ),
    ];
    for (name, help, value) in of_each {
        let mut family = out.family(&Family::gauge(name, help));
        for view in &views {
            let (namespace, of) = (view.namespace.as_str(), view.name.as_str());
            family.sample(&[("namespace", namespace), ("rollout", of)], value(view));
        }
    }
    let counts = rollouts.counts();
    let family = Family::counter(
        "phalanx_rollout_measurements_total",
        "Measurements of new versions, by what came of them.",
    );
    let mut measured = out.family(&family);
    measured.sample(&[("verdict", "good")], load(&counts.good));
    measured.sample(&[("verdict", "bad")], load(&counts.bad));
    let family = Family::counter(
        "phalanx_rollout_ended_total",
        "Rollouts that ended, by how.",
    );
    let mut ended = out.family(&family);
    ended.sample(&[("phase", "promoted")], load(&counts.promoted));
    ended.sample(&[("phase", "rolled-back")], load(&counts.rolled_back));
    counter(
        out,
        "phalanx_rollout_unstored_total",
        "Moves of rollouts that the store did not take.",
        load(&counts.unstored),
    );
}

fn of_sessions(out: &mut Exposition, sessions: &Sessions) {
    let counts = sessions.counts();
    let told = [
        (
            "phalanx_control_session_changes_total",
            "Sessions claimed, moved and released.",
            &counts.changes,
        ),
        (
            "phalanx_control_session_conflicts_total",
            "Changes that another control plane was faster with.",
            &counts.conflicts,
        ),
        (
            "phalanx_control_session_refused_total",
            "Changes of sessions whose epoch was another than expected.",
            &counts.refused,
        ),
        (
            "phalanx_control_session_throttled_total",
            "Changes of sessions beyond a bound.",
            &counts.throttled,
        ),
        (
            "phalanx_control_session_dropped_total",
            "Sessions let go because their instance was away or their time was over.",
            &counts.dropped,
        ),
        (
            "phalanx_control_session_handed_over_total",
            "Sessions moved or released at the end of a drain.",
            &counts.handed_over,
        ),
        (
            "phalanx_control_session_pushes_total",
            "Messages about sessions to data planes.",
            &counts.pushed,
        ),
    ];
    for (name, help, count) in told {
        counter(out, name, help, count.load(Ordering::Relaxed));
    }
    gauge(
        out,
        "phalanx_control_sessions",
        "Sessions in the directory.",
        sessions.len() as u64,
    );
}

fn of_limits(out: &mut Exposition, limits: &Limits) {
    let counts = limits.counts();
    let told = [
        (
            "phalanx_control_limit_tokens_leased_total",
            "Tokens of global rate limits leased to sidecars.",
            &counts.leased,
        ),
        (
            "phalanx_control_limit_tokens_spent_total",
            "Requests that sidecars let through on credit.",
            &counts.spent,
        ),
        (
            "phalanx_control_limit_dry_total",
            "Questions that found an empty bucket.",
            &counts.dry,
        ),
        (
            "phalanx_control_limit_unanswered_total",
            "Questions about limits that the asker has not.",
            &counts.unanswered,
        ),
    ];
    for (name, help, count) in told {
        counter(out, name, help, count.load(Ordering::Relaxed));
    }
    gauge(
        out,
        "phalanx_control_limit_buckets",
        "Buckets of global rate limits in memory.",
        limits.held() as u64,
    );
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
        "phalanx_control_planes",
        "Control planes over this store that are alive.",
        published.world.planes.len() as u64,
    );
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
        "phalanx_registry_held",
        "Alarm: instances whose lease is over, served because most of their service would go with them.",
        registry.held().len() as u64,
    );
    gauge(
        out,
        "phalanx_control_plane_lease",
        "Whether this control plane holds its lease on the store, and may act for instances.",
        registry.planes().held().is_some().into(),
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
        (
            "phalanx_registry_evidence_total",
            "Reports that a caller was refused by an instance.",
            &counts.evidence,
        ),
        (
            "phalanx_registry_buried_total",
            "Expired instances of whom there was other evidence of death than silence.",
            &counts.buried,
        ),
        (
            "phalanx_registry_released_total",
            "Held instances that an operator let go.",
            &counts.released,
        ),
        (
            "phalanx_registry_takeovers_total",
            "Instances that came here from another control plane.",
            &counts.takeovers,
        ),
        (
            "phalanx_registry_adopted_total",
            "Instances that this control plane watches because theirs is gone.",
            &counts.adopted,
        ),
        (
            "phalanx_registry_handed_over_total",
            "Instances that another control plane took.",
            &counts.handed_over,
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
        fleet.nodes() as u64,
    );
    gauge(
        out,
        "phalanx_control_streams",
        "Open discovery streams, of which a proxy may have several.",
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

/// By cluster and locality, of which the number is bounded.
fn of_loads(out: &mut Exposition, loads: &Summary) {
    gauge(
        out,
        "phalanx_lrs_streams",
        "Stock data planes that report their load.",
        loads.streams as u64,
    );
    counter(
        out,
        "phalanx_lrs_reports_total",
        "Load reports taken.",
        loads.reports,
    );
    counter(
        out,
        "phalanx_lrs_rows_dropped_total",
        "Rows of load reports beyond the bounds.",
        loads.dropped,
    );
    type Value = fn(&Load) -> u64;
    let counters: [(&'static str, &'static str, Value); 3] = [
        (
            "phalanx_lrs_requests_issued_total",
            "Requests that data planes reported to have sent.",
            |load| load.issued,
        ),
        (
            "phalanx_lrs_requests_succeeded_total",
            "Of those, answered without an error.",
            |load| load.succeeded,
        ),
        (
            "phalanx_lrs_requests_failed_total",
            "Of those, failed.",
            |load| load.failed,
        ),
    ];
    for (name, help, value) in counters {
        of_places(out, &Family::counter(name, help), loads, value);
    }
    let family = Family::gauge(
        "phalanx_lrs_requests_in_progress",
        "Requests in progress at the last reports.",
    );
    of_places(out, &family, loads, |load| load.in_progress);
    let family = Family::counter(
        "phalanx_lrs_requests_refused_total",
        "Requests that data planes turned away by themselves.",
    );
    let mut samples = out.family(&family);
    for (cluster, requests) in &loads.refused {
        samples.sample(&[("cluster", cluster)], *requests);
    }
}

fn of_places(out: &mut Exposition, family: &Family, loads: &Summary, value: fn(&Load) -> u64) {
    let mut samples = out.family(family);
    for (place, load, _) in &loads.places {
        let labels = [
            ("cluster", place.cluster.as_str()),
            ("region", place.region.as_str()),
            ("zone", place.zone.as_str()),
            ("sub_zone", place.sub_zone.as_str()),
        ];
        samples.sample(&labels, value(load));
    }
}

fn of_health(out: &mut Exposition, health: &Health) {
    let (gauges, counts) = (health.gauges(), health.counts());
    for (name, help, value) in [
        (
            "phalanx_health_targets",
            "Endpoints under active health checks that this control plane sees to.",
            gauges.targets,
        ),
        (
            "phalanx_health_probed",
            "Of them, those that this control plane asks itself.",
            gauges.probed,
        ),
        (
            "phalanx_health_unhealthy",
            "Of them, those that are unhealthy.",
            gauges.unhealthy,
        ),
        (
            "phalanx_health_checkers",
            "Data planes that offer health checks.",
            gauges.checkers,
        ),
    ] {
        gauge(out, name, help, value as u64);
    }
    for (name, help, count) in [
        (
            "phalanx_health_reports_total",
            "Lines of health reports from data planes.",
            &counts.reports,
        ),
        (
            "phalanx_health_reports_ignored_total",
            "Of them, about endpoints that the reporter was not asked about.",
            &counts.ignored,
        ),
        (
            "phalanx_health_probes_total",
            "Health questions that this control plane asked itself.",
            &counts.probes,
        ),
        (
            "phalanx_health_write_failures_total",
            "Transactions of verdicts that failed; they are tried again.",
            &counts.write_failures,
        ),
    ] {
        counter(out, name, help, load(count));
    }
    let family = Family::counter(
        "phalanx_health_transitions_total",
        "Verdicts that changed, by what they became.",
    );
    let mut samples = out.family(&family);
    for (to, count) in [
        ("healthy", &counts.to_healthy),
        ("unhealthy", &counts.to_unhealthy),
    ] {
        samples.sample(&[("to", to)], load(count));
    }
}

fn of_refusals(out: &mut Exposition, refusals: &Refusals) {
    let family = Family::counter(
        "phalanx_tls_refused_total",
        "Connections that were not let in, or were cut off, by port and reason.",
    );
    let mut samples = out.family(&family);
    for ((port, reason), count) in refusals.of_tls() {
        samples.sample(&[("port", port), ("reason", reason)], count);
    }
    let family = Family::counter(
        "phalanx_access_denied_total",
        "Requests and calls that were turned down, by reason.",
    );
    let mut samples = out.family(&family);
    for (reason, count) in refusals.of_requests() {
        samples.sample(&[("reason", reason)], count);
    }
}

fn of_ca(out: &mut Exposition, ca: &Ca) {
    let (now, authority, own) = (SystemClock.now(), ca.authority(), ca.own().credentials());
    let roots = ca.roots().iter().map(|root| root.not_after()).min();
    let ends = [
        ("root", roots),
        ("intermediate", Some(authority.active().not_after())),
        ("own", own.map(|own| own.not_after())),
    ];
    let family = Family::gauge(
        "phalanx_ca_certificate_expiry_seconds",
        "How long the authority's certificates are good: of the roots the first to end, what signs, the control plane's own.",
    );
    let mut samples = out.family(&family);
    for (kind, end) in ends {
        let left = end.map_or(0, |end| now.until(end).as_secs());
        samples.sample(&[("kind", kind)], left);
    }
    let family = Family::gauge(
        "phalanx_certificates",
        "Certificates in the issuance log, by state; late is an alarm: in use, and not renewed in time.",
    );
    let census = ca.census();
    let mut samples = out.family(&family);
    for (state, count) in [
        ("good", census.good),
        ("late", census.late),
        ("renewed", census.renewed),
        ("revoked", census.revoked),
        ("expired", census.expired),
    ] {
        samples.sample(&[("state", state)], count);
    }
    let family = Family::counter(
        "phalanx_ca_requests_total",
        "Joins and renewals, by outcome: granted, or why not.",
    );
    let mut samples = out.family(&family);
    for ((kind, outcome), count) in ca.requests() {
        samples.sample(&[("kind", kind), ("outcome", outcome)], count);
    }
    let family = Family::counter(
        "phalanx_ocsp_answers_total",
        "What OCSP said of each certificate it was asked about, or of a request that it refused.",
    );
    let mut samples = out.family(&family);
    for (answer, count) in ca.ocsp_answers() {
        samples.sample(&[("answer", answer)], count);
    }
    gauge(
        out,
        "phalanx_ca_followers",
        "Streams that follow whom to trust.",
        ca.followers() as u64,
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
