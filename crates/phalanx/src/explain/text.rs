//! An explanation as people read it, from the request down to where it ends.

use phalanx_proxy::explain::{
    Backend, Coloured, Copies, Ends, Explanation, Head, Outcome, RuleTold, TakenBy,
};

use crate::output::{self, Style};

pub fn write(told: &Explanation, style: Style) -> String {
    let mut out = Text {
        lines: String::new(),
        style,
    };
    out.explanation(told);
    out.lines
}

struct Text {
    lines: String,
    style: Style,
}

impl Text {
    fn line(&mut self, key: &str, text: &str) {
        let text = output::plain(text);
        self.lines.push_str(&format!("{key:<13} {text}\n"));
    }

    fn explanation(&mut self, told: &Explanation) {
        let title = format!("{} at {}", told.direction, told.node);
        self.lines
            .push_str(&format!("{}\n", self.style.bold(&output::plain(&title))));
        self.line("request", &head(&told.request));
        if let Some(why) = &told.refused {
            self.line("refused", why);
        }
        if let Some(host) = &told.host {
            let names = host.domains.join(", ");
            self.line("host", &format!("{} ({names})", host.name));
        }
        for rule in &told.rules {
            self.rule(rule);
        }
        if told.rules_behind > 0 {
            let behind = match told.rules_behind {
                1 => "1 rule behind it was not tried".to_owned(),
                count => format!("{count} rules behind it were not tried"),
            };
            self.line("", &behind);
        }
        if let Some(colour) = &told.colour {
            self.line("colour", &coloured(colour));
        }
        if let Some(access) = &told.authorization {
            let caller = access.caller.as_deref().unwrap_or("somebody in plain text");
            let policy = match (&access.policy, &access.source) {
                (Some(policy), Some(source)) => format!(" by {policy} ({source})"),
                (Some(policy), None) => format!(" by {policy}"),
                (None, _) if access.decision == "not allowed" => {
                    ": there are policies that allow, and none means this".to_owned()
                }
                (None, _) if access.decision == "allowed" => ": no policy speaks of it".to_owned(),
                (None, _) => String::new(),
            };
            let told = format!(
                "{caller} is {}{policy}; mode {}",
                access.decision, access.mode
            );
            self.line("authorization", &told);
        }
        for change in &told.changes {
            self.line("changed", change);
        }
        if let Some(limits) = &told.limits {
            let ms = |ms: Option<u64>| ms.map_or("none".to_owned(), |ms| format!("{ms}ms"));
            let default = if limits.is_default {
                " (default, to the answer's head)"
            } else {
                ""
            };
            let told = format!(
                "request {}{default}, attempt {}; {} retries, {}ms apart at least",
                ms(limits.request_timeout_ms),
                ms(limits.attempt_timeout_ms),
                limits.retries,
                limits.backoff_ms
            );
            self.line("timeouts", &told);
            if let Some(delay) = limits.hedge_delay_ms {
                let told = format!(
                    "sent once more after {delay}ms without an answer, {} times at most",
                    limits.hedges
                );
                self.line("hedging", &told);
            }
        }
        for backend in &told.backends {
            self.backend(backend);
        }
        for copies in &told.copies {
            self.line("copies", &copied(copies));
        }
        if let Some(upstream) = &told.upstream {
            self.line("sent on", &head(upstream));
        }
        for note in &told.notes {
            self.line("note", note);
        }
        for outcome in &told.outcomes {
            self.outcome(outcome);
        }
        if let Some(next) = &told.next {
            self.lines.push('\n');
            self.explanation(next);
        }
    }

    fn rule(&mut self, rule: &RuleTold) {
        let source = rule.source.as_deref().unwrap_or_default();
        let mark = if rule.met { "rule" } else { "not" };
        self.line(mark, format!("{}  {source}", rule.name).trim_end());
        for one in rule.compared.iter().filter(|one| rule.met || !one.holds) {
            let found = one.found.as_deref().unwrap_or("nothing");
            let is = if one.holds { "is" } else { "wanted," };
            let told = match one.holds {
                true => format!("  {} {is} {found} ({})", one.what, one.expected),
                false => format!("  {}: {} {is} {found} found", one.what, one.expected),
            };
            self.line("", &told);
        }
    }

    fn backend(&mut self, backend: &Backend) {
        let name = backend
            .cluster
            .as_deref()
            .unwrap_or("a Service that does not exist");
        let told = format!(
            "{name}  weight {} ({}%)",
            backend.weight, backend.share_percent
        );
        self.line("backend", &told);
        for endpoint in &backend.endpoints {
            let words = [
                Some(endpoint.address.as_str()),
                Some(endpoint.instance.as_str()),
                Some(endpoint.version.as_str()),
                Some(endpoint.zone.as_str()),
                Some(endpoint.health.as_str()),
                endpoint.ejected.then_some("ejected"),
                endpoint.stands_in.then_some("of the baseline"),
                endpoint.mutual_tls.then_some("mutual TLS"),
            ];
            let words = words.into_iter().flatten().filter(|word| !word.is_empty());
            let words: Vec<&str> = words.collect();
            let told = format!("  {}  picked {}%", words.join(" "), endpoint.picked_percent);
            self.line("", &told);
        }
    }

    fn outcome(&mut self, outcome: &Outcome) {
        let text = match outcome.ends {
            Ends::Forward => format!(
                "goes to {}",
                outcome.cluster.as_deref().unwrap_or("the application")
            ),
            // Of datagrams.
            Ends::Answer if outcome.status.is_none() => {
                format!("dropped: {}", outcome.reason.as_deref().unwrap_or_default())
            }
            Ends::Answer => {
                let grpc = outcome.grpc_status;
                let grpc = grpc.map(|status| format!(" grpc-status {status}"));
                let reason = outcome.reason.as_deref().unwrap_or("redirect");
                let location = outcome.location.as_deref();
                let location = location.map(|to| format!(" to {to}"));
                format!(
                    "answered {}{} {reason}{}",
                    outcome.status.unwrap_or_default(),
                    grpc.unwrap_or_default(),
                    location.unwrap_or_default()
                )
            }
        };
        let share = match outcome.share_percent {
            100.0 => String::new(),
            share => format!(" ({share}% of such requests)"),
        };
        let text = output::plain(&format!("{text}{share}"));
        let text = match outcome.is_error() {
            true => self.style.error(&text),
            false => self.style.good(&text),
        };
        self.lines.push_str(&format!("{:<13} {text}\n", "verdict"));
    }
}

fn coloured(told: &Coloured) -> String {
    let colour = told.colour.as_deref().unwrap_or("none");
    let id = told.canary_id.as_deref();
    let id = id.map_or(String::new(), |id| format!(", of {id}"));
    let taken = match told.taken_by {
        Some(TakenBy::Lane) => ": taken by its lane",
        Some(TakenBy::Baseline) => ": taken by the baseline",
        Some(TakenBy::Rule) => ": taken as any other",
        Some(TakenBy::Nobody) => ": taken by nobody",
        None => "",
    };
    let why = told.why.as_deref();
    let why = why.map_or(String::new(), |why| format!(", since {why}"));
    let others = match told.taken_by {
        Some(TakenBy::Baseline) if !told.lanes.is_empty() => {
            format!("; lanes here: {}", told.lanes.join(", "))
        }
        _ => String::new(),
    };
    format!("{colour}{id}{taken}{why}{others}")
}

fn copied(copies: &Copies) -> String {
    let compared = if copies.compared { ", compared" } else { "" };
    let there = match (copies.working, copies.endpoints) {
        (0, _) => "; nobody is there to get them".to_owned(),
        (working, all) => format!("; {working} of {all} endpoints work"),
    };
    format!(
        "{}  {}% of requests{compared}{there}",
        copies.cluster, copies.share_percent
    )
}

fn head(head: &Head) -> String {
    let query = head.query.as_deref();
    let query = query.map(|query| format!("?{query}"));
    format!(
        "{} {}{}{}",
        head.method,
        head.authority,
        head.path,
        query.unwrap_or_default()
    )
}
