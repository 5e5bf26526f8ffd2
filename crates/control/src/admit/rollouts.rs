//! What a change must not do to rollouts: two for one route, and matches that could not stay where they are.

use std::collections::BTreeSet;

use phalanx_client::api::Problem;
use phalanx_model::document::rollout::Rollout;
use phalanx_model::document::{Document, DocumentId, Kind};

use super::{Step, problem};
use crate::snapshot::Mesh;
use crate::world::World;

/// Of the world as it would be.
pub fn refused(mesh: &Mesh, world: &World, steps: &[Step]) -> Vec<Problem> {
    let changed: BTreeSet<&DocumentId> = steps
        .iter()
        .filter(|step| step.changes())
        .map(|step| &step.id)
        .collect();
    let concerns = |id: &DocumentId| {
        let kinds = [Kind::Rollout, Kind::HttpRoute, Kind::GrpcRoute];
        kinds.contains(&id.kind)
    };
    if !changed.iter().any(|id| concerns(id)) {
        return Vec::new();
    }
    let rollouts: Vec<_> = rollouts(world).collect();
    let mut problems = Vec::new();
    for (id, rollout) in &rollouts {
        let is_changed = changed.contains(id);
        let twins = rollouts
            .iter()
            .filter(|(_, other)| other.target == rollout.target);
        let mut twins = twins.filter(|(other, _)| other != id);
        if let Some((other, _)) = twins.next().filter(|_| is_changed) {
            let text = format!(
                "{id}: {} is governed by {other} already, and a route has one rollout at a time",
                rollout.target
            );
            problems.push(at(steps, id, text));
        }
        if !is_changed && !changed.contains(&rollout.target) {
            continue;
        }
        if let Some(Document::Route(route)) = world.document(&rollout.target)
            && let Some(why) = mesh.boundless(world, rollout, route)
        {
            let place = if is_changed { *id } else { &rollout.target };
            problems.push(at(steps, place, format!("{id}: {why}")));
        }
    }
    problems
}

fn rollouts(world: &World) -> impl Iterator<Item = (&DocumentId, &Rollout)> {
    let from = world
        .documents
        .starting_at(|id| id.kind.cmp(&Kind::Rollout));
    let of_kind = from.take_while(|(id, _)| id.kind == Kind::Rollout);
    of_kind.filter_map(|(id, entry)| match entry.document.as_deref()? {
        Document::Rollout(rollout) => Some((id, rollout)),
        _ => None,
    })
}

/// At its place in the files.
fn at(steps: &[Step], id: &DocumentId, text: String) -> Problem {
    let step = steps.iter().find(|step| step.id == *id);
    match step.and_then(|step| step.after.as_ref()) {
        Some(after) => after.problem(text),
        None => problem(text, None),
    }
}
