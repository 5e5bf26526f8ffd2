//! `cert rotate-root`: from one root to the next in steps, each of which waits for whoever would be refused by the one after.

use std::time::{Duration, Instant};

use clap::{ArgGroup, Args};
use phalanx_client::admin::Admin;
use phalanx_client::api::{RotateRequest, Rotation};

use super::{date, left, parse_life};
use crate::AdminOptions;
use crate::apply::author;
use crate::exit::{Failure, Outcome};
use crate::output::{self, Format};
use crate::status::Away;

/// Between two looks at how far it is.
const PAUSE: Duration = Duration::from_millis(500);
/// Of the peers that are waited for, those shown.
const SHOWN_MAX: usize = 20;

#[derive(Args)]
#[command(group = ArgGroup::new("step").multiple(false))]
pub struct Options {
    /// Make a new root (or take the one in --ca DIR/next) and have everybody trust both
    #[arg(long, group = "step")]
    begin: bool,
    /// Show how far it is: who has not confirmed, which certificates of the old root live
    #[arg(long, group = "step")]
    status: bool,
    /// Back from --begin
    #[arg(long, group = "step")]
    abort: bool,
    /// Sign with the new root; refused while a peer does not trust it
    #[arg(long, group = "step")]
    switch: bool,
    /// Trust the old root no more; refused while certificates of it live
    #[arg(long, group = "step")]
    finish: bool,
    /// With --switch and --finish: wait until it can be done
    #[arg(long)]
    wait: bool,
    /// With --wait: give up after this long
    #[arg(long, default_value = "10m", value_parser = parse_life)]
    timeout: Duration,
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    admin: AdminOptions,
}

pub async fn run(options: Options) -> Outcome {
    let client = options.admin.client();
    let steps = [
        (options.begin, "begin"),
        (options.abort, "abort"),
        (options.switch, "switch"),
        (options.finish, "finish"),
    ];
    let step = steps
        .iter()
        .find(|(given, _)| *given)
        .map(|(_, step)| *step);
    let waits = matches!(step, Some("switch" | "finish"));
    if options.wait && !waits {
        return Err(Failure::usage("--wait goes with --switch or --finish"));
    }
    let rotation = match step {
        None => client.rotation().await?,
        Some(step) => {
            if options.wait {
                until_ready(&client, step, options.timeout).await?;
            }
            let request = RotateRequest {
                step: step.to_owned(),
                author: author(),
            };
            client.rotate(&request).await?
        }
    };
    output::show(options.output, &rotation, || render(&rotation))
}

/// Until nobody has to be waited for any more before a step.
async fn until_ready(client: &Admin, step: &str, timeout: Duration) -> Outcome {
    let deadline = Instant::now() + timeout;
    let mut away = Away::default();
    loop {
        let found = away.bridge(client.rotation().await)?;
        let is_ready = found.as_ref().is_some_and(|found| match step {
            "switch" => found.phase != "overlap" || found.unconfirmed == 0,
            _ => found.phase != "switched" || found.outstanding == 0,
        });
        if is_ready {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let waiting = found.map(|found| waiting(&found)).unwrap_or_default();
            return Err(Failure::unreachable(format!(
                "--{step} was not possible within {timeout:?}"
            ))
            .hint(waiting.trim_end()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn waiting(rotation: &Rotation) -> String {
    let mut text = String::new();
    let (count, connected) = (rotation.unconfirmed, rotation.unconfirmed_connected);
    let certificates = |n: u64| match n {
        1 => "1 certificate".to_owned(),
        n => format!("{n} certificates"),
    };
    if count > 0 {
        text += &format!(
            "unconfirmed holders of {} do not trust the new root yet, {connected} of them connected
",
            certificates(count)
        );
    }
    for who in rotation.waiting.iter().take(SHOWN_MAX) {
        let state = match (who.plane.as_str(), who.error.as_str()) {
            ("", _) if rotation.settling => {
                "not seen yet by a control plane that has just started".to_owned()
            }
            ("", _) => "not connected".to_owned(),
            (plane, "") => format!("connected to {plane}"),
            (_, error) => format!("refuses: {error}"),
        };
        let (id, serial, left) = (&who.id, &who.serial, left(who.not_after_ms));
        let line = format!("{id} serial {serial}, {state}, {left} more");
        text += &format!("            {}\n", output::plain(&line));
    }
    let shown = rotation.waiting.len().min(SHOWN_MAX) as u64;
    if count > shown && shown > 0 {
        text += &format!("            and {} more\n", count - shown);
    }
    if rotation.outstanding > 0 {
        let until = rotation.outstanding_until_ms.map(date).unwrap_or_default();
        let count = rotation.outstanding;
        text +=
            &format!("outstanding {count} certificates of the old root, the last until {until}\n");
    }
    text
}

fn render(rotation: &Rotation) -> String {
    let style = output::stdout_style();
    let (phase, next) = match rotation.phase.as_str() {
        "overlap" => (
            "overlap: both roots are trusted, the old one signs",
            "the new one signs by itself as soon as everybody trusts it; --switch leaves those behind that are not connected, --abort goes back",
        ),
        "switched" => (
            "switched: both roots are trusted, the new one signs",
            "the old one goes by itself when no certificate of it lives any more; --finish --wait waits for that",
        ),
        _ => (
            "steady: no rotation is under way",
            "`phalanx cert rotate-root --begin` starts one",
        ),
    };
    let line = |name: &str, value: &str| format!("{name:<12}{}\n", output::plain(value));
    let mut text = format!("phase       {}\n", style.bold(phase));
    if !rotation.led_by.is_empty() {
        let (author, begun) = (&rotation.author, date(rotation.begun_ms));
        text += &line(
            "led by",
            &format!("{}, begun by {author} at {begun}", rotation.led_by),
        );
    }
    let issuer = &rotation.issuer;
    let (end, left) = (date(issuer.not_after_ms), left(issuer.not_after_ms));
    text += &line(
        "signing",
        &format!("{} until {end}, {left} more", issuer.subject),
    );
    for (index, root) in rotation.roots.iter().enumerate() {
        let word = if index == 0 { "trusted" } else { "" };
        let part = match root.fingerprint.as_str() {
            print if rotation.old.iter().any(|old| old == print) => ", goes",
            print if rotation.new.iter().any(|new| new == print) => ", comes",
            _ => "",
        };
        let print: String = root.fingerprint.chars().take(16).collect();
        let end = date(root.not_after_ms);
        let root = format!("{} (sha256 {print}…) until {end}{part}", root.subject);
        text += &line(word, &root);
    }
    text += &waiting(rotation);
    text + &line("next", next)
}
