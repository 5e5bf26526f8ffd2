//! What becomes of datagrams: `UDP ADDRESS:PORT` of a socket of the plan, with a token in hex under the header `token`.

use std::net::SocketAddr;

use phalanx_model::reason::Reason;
use phalanx_model::resource::colour::Network;
use phalanx_model::resource::udp::{TokenAt, UdpRules, token};

use super::told::{Backend, Ends, Explanation, Head, Host, Outcome};
use super::{Asking, Setting, endpoints, percent, unchecked};
use crate::plan::UdpPortPlan;
use crate::plan::udp::{Placed, UdpBackend};

/// Whether datagrams are asked about.
pub fn is_meant(asking: &Asking) -> bool {
    asking.method.eq_ignore_ascii_case("udp")
}

pub fn explain(setting: &Setting<'_>, asking: &Asking) -> Explanation {
    let mut told = Explanation {
        direction: setting.direction.as_str().to_owned(),
        node: setting.node.clone(),
        request: Head {
            method: "UDP".to_owned(),
            path: String::new(),
            ..unchecked(asking)
        },
        ..Explanation::default()
    };
    let Some(port) = find(&setting.plan.udp, &asking.authority) else {
        let known = setting.plan.udp.iter().map(|port| port.address.to_string());
        let known: Vec<String> = known.collect();
        told.refused = Some(match known.is_empty() {
            true => "no socket here takes datagrams".to_owned(),
            false => format!(
                "no socket here takes datagrams there, but {}",
                known.join(", ")
            ),
        });
        told.outcomes = vec![dropped(Reason::NoRoute, 100.0)];
        return told;
    };
    told.host = Some(Host {
        name: port.name.to_string(),
        domains: vec![port.address.to_string()],
    });
    told.notes = words(&port.rules);
    told.notes.extend(sources(setting, port));
    let mut of_sources = port.by_source.iter();
    let of_source = setting
        .peer
        .and_then(|peer| of_sources.find(|(network, _)| network.holds(peer)));
    let shares = of_source.map_or(&port.backends, |(_, shares)| shares);
    told.backends = backends(setting, shares);
    let mut of_token = asking.headers.iter().filter(|(name, _)| name == "token");
    match (of_token.next(), port.rules.token) {
        (Some((_, hex)), Some(rule)) => match token(hex) {
            Some(bytes) if bytes.len() == usize::from(rule.len) => {
                if by_token(setting, port, &bytes, &mut told) {
                    return told;
                }
                if rule.required {
                    told.notes.push("the token leads nowhere here".to_owned());
                    told.outcomes = vec![dropped(Reason::NoRoute, 100.0)];
                    return told;
                }
                told.notes
                    .push("the token leads nowhere here, so weights decide".to_owned());
            }
            _ => told.notes.push(format!(
                "`{hex}` is no token of {} bytes in hex, so weights decide",
                rule.len
            )),
        },
        (Some(_), None) => told.notes.push("tokens are not looked at".to_owned()),
        (None, _) => {}
    }
    told.outcomes = outcomes(&told.backends);
    told
}

/// By its address, or by its port where one socket alone has that.
fn find<'p>(ports: &'p [UdpPortPlan], text: &str) -> Option<&'p UdpPortPlan> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        let mut all = ports
            .iter()
            .filter(|port| port.address.port() == address.port());
        let ip = address.ip();
        return all.find(|port| port.address.ip() == ip || port.address.ip().is_unspecified());
    }
    let number: u16 = text.trim_start_matches(':').parse().ok()?;
    let mut all = ports.iter().filter(|port| port.address.port() == number);
    all.next().filter(|_| all.next().is_none())
}

/// Whether the session directory or an instance's label says where it leads.
fn by_token(
    setting: &Setting<'_>,
    port: &UdpPortPlan,
    token: &[u8],
    told: &mut Explanation,
) -> bool {
    let key: String = token.iter().map(|byte| format!("{byte:02x}")).collect();
    let (target, by) = match port.placed(setting.plan, key.as_bytes()) {
        Placed::At(address, held) => {
            let by = format!(
                "the session directory has it at {}, epoch {}",
                held.instance, held.epoch
            );
            (port.at(setting.plan, address), by)
        }
        Placed::Elsewhere(held) => {
            told.notes.push(match held {
                Some(held) => format!(
                    "the session directory has the token at {}, which is no endpoint here (`elsewhere`)",
                    held.instance
                ),
                None => "the session directory, which may have the token, has not come yet (`elsewhere`)"
                    .to_owned(),
            });
            told.outcomes = vec![dropped(Reason::NoHealthyUpstream, 100.0)];
            return true;
        }
        Placed::Nobody => (
            port.by_token(setting.plan, token),
            "it is an instance's label".to_owned(),
        ),
    };
    let Some(target) = target else { return false };
    let Some(cluster) = setting.plan.clusters.get(target.cluster) else {
        return false;
    };
    let address = cluster.endpoints.get(target.endpoint).map(|e| e.address);
    let address = address.map_or_else(String::new, |address| address.to_string());
    let note = format!("the token leads to {address}: {by}");
    told.notes.push(note);
    for endpoint in told.backends.iter_mut().flat_map(|b| &mut b.endpoints) {
        endpoint.picked_percent = match endpoint.address == address {
            true => 100.0,
            false => 0.0,
        };
    }
    told.outcomes = vec![forwarded(cluster.name.to_string(), 100.0)];
    true
}

/// Who goes elsewhere, by where he comes from.
fn sources(setting: &Setting<'_>, port: &UdpPortPlan) -> Vec<String> {
    let of_source = |(network, backends): &(Network, Box<[UdpBackend]>)| {
        let names = backends.iter().map(|backend| {
            let cluster = backend.cluster.and_then(|at| setting.plan.clusters.get(at));
            cluster.map_or("nowhere".to_owned(), |cluster| cluster.name.to_string())
        });
        format!("from {network} to {}", names.collect::<Vec<_>>().join(", "))
    };
    port.by_source.iter().map(of_source).collect()
}

fn backends(setting: &Setting<'_>, backends: &[UdpBackend]) -> Vec<Backend> {
    let resources = setting.configuration.resources();
    let weights = UdpPortPlan::weights(backends);
    let total: u64 = weights.iter().sum();
    let backend = |(backend, weight): (&UdpBackend, &u64)| {
        let place = backend.cluster;
        let cluster = place.and_then(|place| setting.plan.clusters.get(place));
        let sent = cluster.and_then(|cluster| resources.assignments.get(&cluster.name));
        Backend {
            cluster: cluster.map(|cluster| cluster.name.to_string()),
            weight: u32::try_from(*weight).unwrap_or(u32::MAX),
            share_percent: percent(*weight, total),
            endpoints: cluster
                .map(|cluster| {
                    let sent = sent.map(|sent| &**sent);
                    endpoints(cluster, sent, (None, None), setting.now_us)
                })
                .unwrap_or_default(),
            requests: (0, 0),
        }
    };
    backends.iter().zip(&weights).map(backend).collect()
}

fn outcomes(backends: &[Backend]) -> Vec<Outcome> {
    if backends.is_empty() {
        return vec![dropped(Reason::InvalidBackend, 100.0)];
    }
    let outcome = |backend: &Backend| match &backend.cluster {
        Some(cluster) if !backend.endpoints.is_empty() => {
            forwarded(cluster.clone(), backend.share_percent)
        }
        Some(_) => dropped(Reason::NoHealthyUpstream, backend.share_percent),
        None => dropped(Reason::InvalidBackend, backend.share_percent),
    };
    let mut outcomes: Vec<Outcome> = backends.iter().map(outcome).collect();
    outcomes.sort_by(|a, b| b.share_percent.total_cmp(&a.share_percent));
    outcomes
}

fn forwarded(cluster: String, share_percent: f64) -> Outcome {
    Outcome {
        share_percent,
        ends: Ends::Forward,
        cluster: Some(cluster),
        ..Outcome::default()
    }
}

fn dropped(reason: Reason, share_percent: f64) -> Outcome {
    Outcome {
        share_percent,
        ends: Ends::Answer,
        reason: Some(reason.as_str().to_owned()),
        ..Outcome::default()
    }
}

fn words(rules: &UdpRules) -> Vec<String> {
    let limits = rules.limits;
    let or_none = |number: u64| match number {
        0 => "any number of".to_owned(),
        number => number.to_string(),
    };
    let mut words = vec![format!(
        "a session ends after {:?} without a datagram; {} sessions at most, {} from one source, with {} datagrams and {} bytes a second",
        rules.idle_timeout,
        limits.sessions,
        limits.sessions_per_source,
        or_none(limits.packets_per_second_per_source.into()),
        or_none(limits.bytes_per_second_per_source)
    )];
    words.extend(rules.token.map(|token| {
        let place = match token.at {
            TokenAt::Prefix => "first",
            TokenAt::Suffix => "last",
        };
        let then = if token.strip { ", and cut off" } else { "" };
        let need = if token.required {
            "required"
        } else {
            "looked for"
        };
        format!("a token is {need} in the {place} {} bytes{then}", token.len)
    }));
    words
}
