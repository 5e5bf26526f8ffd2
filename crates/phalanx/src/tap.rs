//! `tap`: live requests, as the sidecars see them.

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::exit::{Failure, Outcome};
use crate::output::{self, Format};
use crate::page::{self, Sidecar, encoded};
use crate::{AdminOptions, NamespaceOptions};

#[derive(Args)]
pub struct Options {
    /// Sidecars beside this service's instances; all that are registered by default
    #[arg(value_name = "[NAMESPACE/]SERVICE[/INSTANCE]")]
    service: Option<String>,
    /// One sidecar's admin address, or its instance's name; may be repeated
    #[arg(long, value_name = "HOST:PORT|NAME", conflicts_with = "service")]
    proxy: Vec<String>,
    /// Of calls to this service only
    #[arg(long, value_name = "SERVICE[.NAMESPACE]")]
    to: Option<String>,
    /// Whose caller's id contains this
    #[arg(long, value_name = "TEXT")]
    from: Option<String>,
    /// Whose path begins so
    #[arg(long, value_name = "/PATH")]
    path: Option<String>,
    #[arg(long)]
    method: Option<String>,
    /// Such as 503 or 5xx; 0 for callers that went away
    #[arg(long, value_name = "STATUS")]
    status: Option<String>,
    #[arg(long, value_name = "NUMBER")]
    grpc_status: Option<u8>,
    /// Answered by the sidecar itself with this x-phalanx-reason
    #[arg(long)]
    reason: Option<String>,
    /// With this x-env only, which of an application's call may be its cause's
    #[arg(long)]
    colour: Option<String>,
    /// What ended in an error only
    #[arg(long)]
    errors: bool,
    /// `inbound` (to the application) or `outbound` (its own calls); both by default
    #[arg(long, value_name = "DIRECTION", value_parser = ["inbound", "outbound"])]
    direction: Option<String>,
    /// What took longer only
    #[arg(long, value_name = "TIME", value_parser = crate::demo::parse_duration)]
    slower: Option<Duration>,
    /// A part of all traces, the same one at every hop
    #[arg(long, value_name = "SHARE", default_value = "100%")]
    sample: String,
    /// With the requests' headers; authorization, cookies and what looks like a secret are blotted out
    #[arg(long)]
    headers: bool,
    /// End after so many requests
    #[arg(long, value_name = "COUNT")]
    max: Option<u64>,
    /// End after this time
    #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = crate::demo::parse_duration)]
    time: Duration,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    namespace: NamespaceOptions,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let sidecars = sidecars(&options).await?;
    let page = options.page();
    let (sender, mut lines) = mpsc::channel::<(String, Value)>(WAITING_MAX);
    let mut streams = JoinSet::new();
    let (mut listening, mut failed) = (0, None);
    for sidecar in sidecars {
        match sidecar.get(&page).await {
            Ok(opened) if opened.is_ok() => {
                listening += 1;
                let sender = sender.clone();
                streams.spawn(async move {
                    let mut opened = opened;
                    while let Ok(Some(line)) = opened.line(&sidecar).await {
                        let Ok(value) = serde_json::from_str(&line) else {
                            continue;
                        };
                        if sender
                            .send((sidecar.name().to_owned(), value))
                            .await
                            .is_err()
                        {
                            return;
                        }
                    }
                });
            }
            Ok(refused) => return refused.json(&sidecar).await.map(drop),
            // Of many, those that can be reached are shown.
            Err(failure) => failed = Some(failure),
        }
    }
    drop(sender);
    match (listening, failed) {
        (0, Some(failure)) => return Err(failure),
        (_, Some(failure)) => drop(failure.report(false)),
        _ => {}
    }
    let until = tokio::time::Instant::now() + options.time;
    let mut left = options.max.unwrap_or(u64::MAX);
    while left > 0 {
        let next = tokio::time::timeout_at(until, lines.recv()).await;
        let Ok(Some((node, mut value))) = next else {
            break;
        };
        if let Some(lost) = value.get("lost") {
            output::tell(&format!("{node}: {lost} requests more were not shown"));
            continue;
        }
        left -= 1;
        value["node"] = node.clone().into();
        match options.output {
            Format::Table => output::print(&(line(&node, &value) + "\n"))?,
            Format::Json => output::print(&format!("{value}\n"))?,
            Format::Yaml => output::print(&format!("---\n{}", output::yaml(&value)))?,
        }
    }
    Ok(())
}

async fn sidecars(options: &Options) -> Result<Vec<Sidecar>, Failure> {
    let namespace = &options.namespace.namespace;
    let named = options.proxy.iter().chain(&options.service);
    let mut found = Vec::new();
    for name in named {
        found.extend(page::find(name, namespace, &options.admin).await?);
    }
    if found.is_empty() {
        let all = page::all(&options.admin).await?;
        found.extend(all.into_iter().map(|(_, sidecar)| sidecar));
    }
    if found.is_empty() {
        return Err(Failure::refused("no sidecar is registered"));
    }
    if found.len() > SIDECARS_MAX {
        return Err(Failure::refused(format!(
            "{} sidecars at once are more than {SIDECARS_MAX}",
            found.len()
        ))
        .hint("name a service, or some of them by --proxy"));
    }
    Ok(found)
}

impl Options {
    fn page(&self) -> String {
        let mut page = format!(
            "/tap?sample={}&seconds={}",
            encoded(&self.sample),
            self.time.as_secs().max(1)
        );
        let mut say = |key: &str, value: &str| {
            page.push_str(&format!("&{key}={}", encoded(value)));
        };
        let texts = [
            ("service", &self.to),
            ("caller", &self.from),
            ("path", &self.path),
            ("method", &self.method),
            ("status", &self.status),
            ("reason", &self.reason),
            ("direction", &self.direction),
            ("colour", &self.colour),
        ];
        for (key, value) in texts {
            if let Some(value) = value {
                say(key, value);
            }
        }
        if let Some(status) = self.grpc_status {
            say("grpc_status", &status.to_string());
        }
        if let Some(slower) = self.slower {
            say("slower_ms", &slower.as_millis().to_string());
        }
        if let Some(max) = self.max {
            say("max", &max.to_string());
        }
        for (key, is_set) in [("errors", self.errors), ("headers", self.headers)] {
            if is_set {
                say(key, "1");
            }
        }
        page
    }
}

/// The colour, who took the request where a lane is for it, and how surely the colour is known where the call did not say.
fn coloured(colour: &str, lane: &str, correlation: &str) -> String {
    let how = match (colour, correlation) {
        ("", "ambiguous") => "colour ambiguous",
        ("", _) => "",
        (_, "carried") => "",
        (_, how) => how,
    };
    let taken = match lane {
        "lane" => "taken by its lane",
        "baseline" => "taken by the baseline",
        "nobody" => "taken by nobody",
        _ => "",
    };
    let words = [colour, how, taken];
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    match words.is_empty() {
        true => String::new(),
        false => format!(" [{}]", words.join(", ")),
    }
}

/// One request on one line, and its headers below.
fn line(node: &str, seen: &Value) -> String {
    let text = |key: &str| seen.get(key).and_then(Value::as_str).unwrap_or_default();
    let time = text("time").get(11..23).unwrap_or_default();
    let arrow = match text("direction") {
        "inbound" => "<-",
        _ => "->",
    };
    let grpc = seen
        .get("grpc_status")
        .map(|status| format!(" grpc={status}"));
    let reason = match text("reason") {
        "" => String::new(),
        reason => format!(" {reason}"),
    };
    let upstream = match text("upstream") {
        "" => String::new(),
        upstream => format!(" {upstream}"),
    };
    let told = format!(
        "{time} {node} {arrow} {} {}{} {}{}{reason} {}ms{upstream}{}",
        text("method"),
        text("authority"),
        text("path"),
        seen["status"],
        grpc.unwrap_or_default(),
        seen["duration_ms"],
        coloured(text("colour"), text("lane"), text("correlation")),
    );
    let headers = seen.get("headers").and_then(Value::as_array);
    let headers = headers.into_iter().flatten().map(|pair| {
        let part = |place: usize| pair.get(place).and_then(Value::as_str).unwrap_or_default();
        format!("    {}: {}", part(0), part(1))
    });
    let lines = std::iter::once(told).chain(headers);
    let lines: Vec<String> = lines.map(|line| output::plain(&line)).collect();
    lines.join("\n")
}

/// Requests that wait to be printed.
const WAITING_MAX: usize = 1_024;
const SIDECARS_MAX: usize = 256;
