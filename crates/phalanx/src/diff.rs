//! What a change does, as people read it: documents line by line, and its effect on rules, resources and proxies.

use phalanx_client::api::{Change, Effect, HistoryChange, ResourceEffect, RuleEffect};
use serde_json::Value;

use crate::output::{self, Style};

/// A document before and after, in YAML.
pub fn document(change: &Change) -> String {
    let name = format!("{}/{}/{}", change.kind, change.namespace, change.name);
    unified(
        &name,
        change.action.as_str(),
        change.before.as_ref(),
        change.after.as_ref(),
    )
}

pub fn past(change: &HistoryChange) -> String {
    let action = match (&change.before, &change.after) {
        (None, _) => "created",
        (_, None) => "deleted",
        _ => "configured",
    };
    unified(
        &change.id,
        action,
        change.before.as_ref(),
        change.after.as_ref(),
    )
}

/// Lines removed and added, with all lines between in order (documents are short).
fn unified(name: &str, action: &str, before: Option<&Value>, after: Option<&Value>) -> String {
    let lines = |value: Option<&Value>| -> Vec<String> {
        value
            .map(|v| output::yaml(v).lines().map(str::to_owned).collect())
            .unwrap_or_default()
    };
    let (before, after) = (lines(before), lines(after));
    let style = output::stdout_style();
    let head = style.bold(&format!("--- {name}\n+++ {name} ({action})"));
    let mut text = format!("{head}\n");
    for step in steps(&before, &after) {
        text.push_str(&match step {
            Step::Same(line) => format!("  {line}\n"),
            Step::Gone(line) => format!("{}\n", style.error(&format!("- {line}"))),
            Step::New(line) => format!("{}\n", style.good(&format!("+ {line}"))),
        });
    }
    text
}

#[derive(Debug, PartialEq)]
enum Step<'a> {
    Same(&'a str),
    Gone(&'a str),
    New(&'a str),
}

/// The longest common subsequence, by the textbook's table, of what differs between a common start and a common end.
fn steps<'a>(before: &'a [String], after: &'a [String]) -> Vec<Step<'a>> {
    let start = before.iter().zip(after).take_while(|(a, b)| a == b).count();
    let ends = before[start..]
        .iter()
        .rev()
        .zip(after[start..].iter().rev());
    let end = ends.take_while(|(a, b)| a == b).count();
    let same = |lines: &'a [String]| lines.iter().map(|line| Step::Same(line));
    let (old, new) = (
        &before[start..before.len() - end],
        &after[start..after.len() - end],
    );
    let mut steps: Vec<Step<'a>> = same(&before[..start]).collect();
    if old.len().saturating_mul(new.len()) > CELLS_MAX {
        steps.extend(old.iter().map(|line| Step::Gone(line)));
        steps.extend(new.iter().map(|line| Step::New(line)));
    } else {
        steps.extend(table(old, new));
    }
    steps.extend(same(&before[before.len() - end..]));
    steps
}

fn table<'a>(before: &'a [String], after: &'a [String]) -> Vec<Step<'a>> {
    let mut longest = vec![vec![0u32; after.len() + 1]; before.len() + 1];
    for i in (0..before.len()).rev() {
        for j in (0..after.len()).rev() {
            longest[i][j] = if before[i] == after[j] {
                longest[i + 1][j + 1] + 1
            } else {
                longest[i + 1][j].max(longest[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut steps) = (0, 0, Vec::new());
    while i < before.len() || j < after.len() {
        if i < before.len() && j < after.len() && before[i] == after[j] {
            steps.push(Step::Same(&before[i]));
            (i, j) = (i + 1, j + 1);
        } else if j == after.len() || (i < before.len() && longest[i + 1][j] >= longest[i][j + 1]) {
            steps.push(Step::Gone(&before[i]));
            i += 1;
        } else {
            steps.push(Step::New(&after[j]));
            j += 1;
        }
    }
    steps
}

/// What proxies would receive, rule by rule and resource by resource.
pub fn effect(effect: &Effect, style: Style) -> String {
    if effect.rules.is_empty() && effect.resources.is_empty() {
        return "no effect on any proxy\n".to_owned();
    }
    let head = format!(
        "effect on {} of {}:",
        effect.concerned,
        proxies(effect.proxies)
    );
    let mut text = format!("{}\n", style.bold(&head));
    for rule in &effect.rules {
        text += &of_rule(rule);
    }
    for resource in &effect.resources {
        text += &of_resource(resource);
    }
    for finding in &effect.arising {
        let line = format!(
            "  would not be in force: {}: {}\n",
            finding.id, finding.message
        );
        text += &style.warn(&line);
    }
    for finding in &effect.resolved {
        text += &format!(
            "  would be in force: {} (now {})\n",
            finding.id, finding.message
        );
    }
    if !effect.nodes.is_empty() {
        let named = effect.nodes.iter().take(NAMED_MAX);
        let named: Vec<_> = named.map(|node| node.node.as_str()).collect();
        let more = effect.concerned.saturating_sub(named.len());
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        text += &format!("  received by {}{more}\n", named.join(", "));
    }
    text
}

fn of_rule(rule: &RuleEffect) -> String {
    let host = rule.service.strip_suffix(":80").unwrap_or(&rule.service);
    let sign = match rule.action.as_str() {
        "added" => "+ ",
        "removed" => "- ",
        _ => "",
    };
    let details = rule.details.join(", ");
    format!(
        "  {host}: {sign}{details} for {} ({})\n",
        proxies(rule.proxies),
        rule.rule
    )
}

fn of_resource(resource: &ResourceEffect) -> String {
    let details = if resource.details.is_empty() {
        String::new()
    } else {
        format!(": {}", resource.details.join(", "))
    };
    format!(
        "  {} {} {} for {}{details}\n",
        resource.kind,
        resource.name,
        resource.action,
        proxies(resource.proxies)
    )
}

fn proxies(count: usize) -> String {
    match count {
        1 => "1 proxy".to_owned(),
        many => format!("{many} proxies"),
    }
}

/// Proxies named in a line.
const NAMED_MAX: usize = 5;
/// Of the table; documents of a thousand lines fit.
const CELLS_MAX: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_keeps_what_is_common() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (before, after) = (lines("a b c"), lines("a x c"));
        assert_eq!(
            steps(&before, &after),
            [
                Step::Same("a"),
                Step::Gone("b"),
                Step::New("x"),
                Step::Same("c")
            ]
        );
    }

    #[test]
    fn a_rule_reads_as_a_sentence() {
        let rule = RuleEffect {
            service: "battle.default.svc.mesh:80".into(),
            rule: "HTTPRoute/default/battle/0".into(),
            action: "changed".into(),
            details: vec!["weights 90/10 → 50/50".into()],
            proxies: 7,
        };
        assert_eq!(
            of_rule(&rule),
            "  battle.default.svc.mesh: weights 90/10 → 50/50 for 7 proxies (HTTPRoute/default/battle/0)\n"
        );
    }
}
