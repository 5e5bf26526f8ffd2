//! `canary`: how a change that few proxies got first goes, and the decision by hand.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use phalanx_client::admin::Admin;
use phalanx_client::api::{Canary, CanaryDecision, CanaryEnd, CanaryStatus, Traffic};

use crate::exit::{Failure, Outcome};
use crate::output::{self, Format, Style, Table};
use crate::{AdminOptions, status};

#[derive(Args)]
pub struct Options {
    /// What to do with it
    #[arg(value_enum, default_value_t)]
    act: Act,
    /// Why, for the history
    #[arg(short, long)]
    message: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Act {
    #[default]
    Show,
    /// Every proxy gets the change now
    Promote,
    /// Nobody keeps it
    Abort,
}

pub async fn run(options: Options) -> Outcome {
    let client = options.admin.client();
    let status = match options.act {
        Act::Show => client.canary().await?,
        act => decide(&client, act, options.message).await?,
    };
    output::show(options.output, &status, || {
        render_all(&status, output::stdout_style())
    })
}

pub async fn decide(
    client: &Admin,
    act: Act,
    message: Option<String>,
) -> Result<CanaryStatus, Failure> {
    let decision = CanaryDecision {
        decision: match act {
            Act::Promote => "promote",
            Act::Abort | Act::Show => "abort",
        }
        .to_owned(),
        author: crate::apply::author(),
        message,
    };
    Ok(client.decide_canary(&decision).await?)
}

/// Waits until the canary is decided; that it went back is no success.
pub async fn wait(client: &Admin, canary: &Canary) -> Outcome {
    let patience = Duration::from_millis(canary.watch_ms) + DECIDED_MAX;
    let deadline = Instant::now() + patience;
    let mut away = status::Away::default();
    loop {
        let Some(now) = away.bridge(client.canary().await)? else {
            tokio::time::sleep(POLL).await;
            continue;
        };
        let is_mine = |sequence: u64| sequence == canary.sequence;
        if now.current.as_ref().is_none_or(|c| !is_mine(c.sequence)) {
            return decided(client, now.last.filter(|last| is_mine(last.sequence))).await;
        }
        if Instant::now() >= deadline {
            return Err(Failure::unreachable(format!(
                "the canary was not decided within {patience:?}"
            ))
            .hint("`phalanx canary` shows how it goes"));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn decided(client: &Admin, last: Option<CanaryEnd>) -> Outcome {
    let Some(last) = last else {
        return Err(
            Failure::refused("the canary was decided, and another one since")
                .hint("`phalanx history` tells how it ended"),
        );
    };
    if last.stage != "promoted" {
        return Err(
            Failure::refused(format!("the change went back: {}", last.reason))
                .hint("no proxy keeps it; `phalanx history --diff` shows what was tried"),
        );
    }
    output::tell(&format!("promoted: {}", last.reason));
    let revision = client.status(None).await?.config_revision;
    status::wait_for(client, revision).await
}

pub fn render_all(status: &CanaryStatus, style: Style) -> String {
    match (&status.current, &status.last) {
        (Some(canary), _) => render(canary, style),
        (None, Some(last)) => render_end(last, style),
        (None, None) => "no canary is under way\n".to_owned(),
    }
}

pub fn render_end(last: &CanaryEnd, style: Style) -> String {
    let age = output::age(last.time_ms, output::now_ms());
    let reason = output::plain(&last.reason);
    let line = format!("last canary ({age} ago): {}: {reason}", last.stage);
    let line = if last.stage == "promoted" {
        style.good(&line)
    } else {
        style.warn(&line)
    };
    format!("{line}\n")
}

pub fn render(canary: &Canary, style: Style) -> String {
    let left = canary.until_ms.map(|until| {
        let left = until.saturating_sub(output::now_ms()).div_ceil(1000);
        format!("watched for {left}s more")
    });
    let mut text = format!(
        "{}\n",
        style.warn(&format!(
            "canary of {} by {}: on {} of {} proxies first ({} concerned), {}",
            canary.changes.join(", "),
            output::plain(&canary.author),
            canary.applied,
            canary.nodes.len(),
            canary.concerned,
            left.unwrap_or_else(|| canary.stage.clone()),
        ))
    );
    let mut table = Table::new(&["PROXY", "STATE", "REQUESTS", "FAILED", "BEFORE", "MESSAGE"]);
    for node in &canary.nodes {
        table.row(vec![
            node.node.clone(),
            node.state.clone(),
            node.traffic.requests.to_string(),
            percent(&node.traffic),
            percent(&node.before),
            node.message.clone(),
        ]);
    }
    table.row(vec![
        "(all others)".to_owned(),
        String::new(),
        canary.others.requests.to_string(),
        percent(&canary.others),
        String::new(),
        String::new(),
    ]);
    text += &table.render(style);
    for problem in &canary.problems {
        let problem = output::plain(problem);
        text += &format!("{} {problem}\n", style.error("problem:"));
    }
    text
}

fn percent(traffic: &Traffic) -> String {
    if traffic.requests == 0 {
        return "-".to_owned();
    }
    let share = traffic.failures as f64 / traffic.requests as f64;
    format!("{:.1}%", share * 100.0)
}

/// `5%` or `0.05`.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is no share of requests; write 5% or 0.05");
    let (number, of) = match text.strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text, 1.0),
    };
    let rate = number.parse::<f64>().map_err(|_| wrong())? / of;
    Some(rate)
        .filter(|rate| (0.0..=1.0).contains(rate))
        .ok_or_else(wrong)
}

const POLL: Duration = Duration::from_millis(200);
/// Beyond the watch itself: until all have it, and until somebody has decided.
const DECIDED_MAX: Duration = Duration::from_secs(90);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_percentage_or_a_share() {
        assert_eq!(parse_rate("5%"), Ok(0.05));
        assert_eq!(parse_rate("0.5"), Ok(0.5));
        for wrong in ["", "5", "-1%", "101%", "x%"] {
            assert!(parse_rate(wrong).is_err(), "{wrong}");
        }
    }
}
