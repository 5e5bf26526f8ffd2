//! The colour of a request that is explained: whose endpoints take it, those of its lane or the baseline's, and why; and the
//! copies that its rule makes.

use phalanx_model::name::{ClusterName, is_colour};
use phalanx_model::resource::{Action, Rule};
use phalanx_relay::names;

use super::told::{Backend, Coloured, Copies, Explanation, Head, TakenBy};
use super::{Setting, percent};

/// By what a trust edge has `given` it, where it passed one. None: nothing of it depends on a colour, and it has none.
pub(super) fn coloured(
    setting: &Setting<'_>,
    told: &Explanation,
    given: Option<&Head>,
    rules: &[Rule],
    has_session: bool,
) -> Option<Coloured> {
    let head = given.unwrap_or(&told.request);
    let colour = header(head, names::X_ENV.as_str());
    let lanes = lanes_of(rules);
    if colour.is_none() && lanes.is_empty() {
        return None;
    }
    let canary_id = header(head, names::X_CANARY_ID.as_str());
    let mut found = Coloured {
        colour: colour.map(str::to_owned),
        canary_id: canary_id.map(str::to_owned),
        lanes,
        ..Coloured::default()
    };
    if let Some((by, why)) = taken_by(setting, told, &found, has_session) {
        found.taken_by = Some(by);
        found.why = why;
    }
    Some(found)
}

/// Colours that have rules of their own here.
fn lanes_of(rules: &[Rule]) -> Vec<String> {
    let forwards = rules.iter().filter_map(|rule| match &rule.action {
        Action::Forward(forward) => Some(forward),
        Action::Redirect(_) | Action::Respond(_) => None,
    });
    let backends = forwards.flat_map(|forward| &forward.backends);
    let lanes = backends.filter_map(|backend| backend.cluster.as_ref()?.lane.clone());
    let mut lanes: Vec<String> = lanes.collect();
    lanes.sort();
    lanes.dedup();
    lanes
}

fn taken_by(
    setting: &Setting<'_>,
    told: &Explanation,
    found: &Coloured,
    has_session: bool,
) -> Option<(TakenBy, Option<String>)> {
    let colour = found.colour.as_deref();
    let met = told.rules.iter().find(|rule| rule.met)?;
    if told.backends.is_empty() {
        return None; // a redirect, or an answer of the rule's own
    }
    let of_lane = told.backends.iter().filter_map(|backend| {
        let name: ClusterName = backend.cluster.as_ref()?.parse().ok()?;
        name.lane.is_some().then_some((name, backend))
    });
    let of_lane: Vec<(ClusterName, &Backend)> = of_lane.collect();
    if !of_lane.is_empty() {
        return Some(in_lane(setting, told, &of_lane, has_session));
    }
    let picked = told.backends.iter().flat_map(|backend| &backend.endpoints);
    let is_taken = picked.map(|endpoint| endpoint.picked_percent).sum::<f64>() > 0.0;
    let there = told.backends.iter().map(|backend| backend.endpoints.len());
    if !is_taken && !found.lanes.is_empty() && there.sum::<usize>() == 0 {
        let why = "the baseline has no instance: those that there are belong to lanes";
        return Some((TakenBy::Nobody, Some(why.to_owned())));
    }
    let why = match colour {
        None => {
            "it has no x-env (a call of the application is given that of its cause, where that is sure)".to_owned()
        }
        Some(colour) if !is_colour(colour.as_bytes()) => {
            "this is no colour (1 to 32 of a-z, 0-9 and -), so no lane has it".to_owned()
        }
        Some(_) if met.compared.iter().any(|one| one.what == COLOUR_COMPARED) => {
            return Some((TakenBy::Rule, Some("the rule speaks of this colour itself".to_owned())));
        }
        Some(colour) if found.lanes.iter().any(|lane| lane == colour) => {
            format!("no backend of this rule has an instance of lane {colour}; other rules of the host lead to some")
        }
        Some(colour) => {
            let names = services(&told.backends).join(", ");
            format!("no instance of a lane {colour} is registered for {names}, or no ColourPolicy has such a lane")
        }
    };
    Some((TakenBy::Baseline, Some(why)))
}

/// Of the lane's own clusters: who of them is picked.
fn in_lane(
    setting: &Setting<'_>,
    told: &Explanation,
    of_lane: &[(ClusterName, &Backend)],
    has_session: bool,
) -> (TakenBy, Option<String>) {
    // Where most of it goes; where nothing goes, all of them are in the same case.
    let likeliest = told.outcomes.first().and_then(|one| one.cluster.as_ref());
    let chosen = of_lane
        .iter()
        .find(|(_, backend)| backend.cluster.as_ref() == likeliest)
        .or(of_lane.first());
    let Some((name, backend)) = chosen else {
        return (TakenBy::Nobody, None);
    };
    let picks = |stands_in: bool| {
        let some = backend.endpoints.iter();
        let some = some.filter(|endpoint| endpoint.stands_in == stands_in);
        some.map(|endpoint| endpoint.picked_percent).sum::<f64>() > 0.0
    };
    if picks(false) {
        return (TakenBy::Lane, None);
    }
    let group = setting.plan.cluster(name).map(|plan| &plan.group);
    let members = group.map_or(0, |group| (0..).map_while(|at| group.member(at)).count());
    let near = group.map_or(0, |group| {
        let all = (0..members).filter_map(|at| group.member(at));
        all.filter(|member| !member.is_far).count()
    });
    let of = match near {
        0 => "no instance of the lane is ready".to_owned(),
        1 => "the lane's only instance does not work".to_owned(),
        near => format!("none of the lane's {near} instances works"),
    };
    match (picks(true), near < members) {
        (true, _) if has_session => (
            TakenBy::Baseline,
            Some("its session is at an instance of the baseline".to_owned()),
        ),
        (true, _) => (
            TakenBy::Baseline,
            Some(format!("{of}; its fallback is Baseline")),
        ),
        (false, true) => (
            TakenBy::Nobody,
            Some(format!("{of}, and none of the baseline's either")),
        ),
        (false, false) => (
            TakenBy::Nobody,
            Some(format!(
                "{of}, and its fallback is Refuse (or there is no baseline)"
            )),
        ),
    }
}

/// `<service>.<namespace>` of each backend.
fn services(backends: &[Backend]) -> Vec<String> {
    let names = backends.iter().filter_map(|backend| {
        let name: ClusterName = backend.cluster.as_ref()?.parse().ok()?;
        Some(format!("{}.{}", name.service.name, name.service.namespace))
    });
    let mut names: Vec<String> = names.collect();
    names.dedup();
    names
}

fn header<'h>(head: &'h Head, name: &str) -> Option<&'h str> {
    let mut all = head.headers.iter();
    all.find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}

/// What the rule copies, and whether somebody is there to get it.
pub(super) fn copies(setting: &Setting<'_>, rule: &Rule) -> Vec<Copies> {
    let Action::Forward(forward) = &rule.action else {
        return Vec::new();
    };
    let mirrors = forward.mirrors.iter().map(|mirror| {
        let plan = setting.plan.cluster(&mirror.cluster);
        let count = plan.map_or(0, |plan| plan.endpoints.len());
        let now_ms = setting.now_us / 1000;
        let working = plan.map_or(0, |plan| {
            (0..count)
                .filter(|at| plan.group.keeps(*at, now_ms))
                .count()
        });
        Copies {
            cluster: mirror.cluster.to_string(),
            share_percent: percent_of_million(mirror.per_million),
            compared: forward.compare.is_some(),
            endpoints: count,
            working,
        }
    });
    mirrors.collect()
}

/// In steps of a millionth, which [`percent`] would round away.
fn percent_of_million(per_million: u32) -> f64 {
    match per_million {
        small @ 0..1_000 => f64::from(small) / 10_000.0,
        more => percent(u64::from(more), 1_000_000),
    }
}

/// As a rule names the condition.
const COLOUR_COMPARED: &str = "header x-env";
