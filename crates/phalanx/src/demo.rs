//! `demo`: a whole mesh of child processes on loopback, watched from outside like any other.
//!
//! Control plane, then the manifests, then every service with its sidecar, then the bots. What the table shows is what
//! the admin API answers. Nothing outlives this process.

mod board;
mod go;
mod judge;
mod process;
mod redis;
mod screen;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use ::arena::process::{ADMIN_PORT, EDGE, EDGE_HTTP_PORT, EDGE_NAME, EDGE_ROOM_PORT, ENGINE};
use clap::Args;
use phalanx_client::admin::Admin;
use phalanx_client::api::{ApplyRequest, Edges, File, Status};

use crate::exit::{Failure, Outcome};
use crate::{output, signal};
use board::Board;
use process::Process;
use redis::Redis;
use screen::Screen;

/// How long services and sidecars may take to be registered and served.
const START_MAX: Duration = Duration::from_secs(60);
/// What the control plane remembers of each edge.
const WINDOW_MAX_S: u64 = 60;
/// Reports come every second; the last ones need this long to arrive.
const LAST_REPORTS: Duration = Duration::from_millis(2200);

#[derive(Args)]
pub struct Options {
    /// End with a summary after this long, such as 30s; else at Ctrl-C
    #[arg(long, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Player actions per second
    #[arg(long, default_value_t = 250.0)]
    rate: f64,
    /// Players
    #[arg(long, default_value_t = 60)]
    bots: usize,
    /// xDS and registry
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15010")]
    xds: SocketAddr,
    /// Admin API and console
    #[arg(long, value_name = "HOST:PORT", default_value = phalanx_client::api::DEFAULT_ADMIN)]
    admin: SocketAddr,
    /// Names of the mesh, over UDP and TCP
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:15053")]
    dns: SocketAddr,
    /// With physics as a service in Go that knows nothing of a mesh; needs Go
    #[arg(long)]
    go: bool,
    /// Keep the leaderboard in Redis, there or, without an address, in one of the demo's own (needs redis-server 7);
    /// without this, in the leaderboard's process
    #[arg(long, value_name = "URL", num_args = 0..=1)]
    redis: Option<Option<String>>,
    /// Keep logs and data in this folder instead of a temporary one
    #[arg(long, value_name = "DIR")]
    keep: Option<std::path::PathBuf>,
}

pub fn run(options: Options) -> Outcome {
    crate::block_on(demo(options))
}

async fn demo(options: Options) -> Outcome {
    check_ports(&options)?;
    if let Some(None) = options.redis {
        redis::check_version()?;
    }
    let temporary = tempfile::Builder::new()
        .prefix("phalanx-demo-")
        .tempdir()
        .map_err(|e| Failure::defect(format!("no temporary folder: {e}")))?;
    let folder = options
        .keep
        .clone()
        .unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&folder)
        .map_err(|e| Failure::file(format!("cannot make {}: {e}", folder.display())))?;

    let mut mesh = Mesh {
        events: Vec::new(),
        control: None,
        redis: None,
        edge: None,
        pairs: Vec::new(),
        bots: None,
    };
    let mut stop = std::pin::pin!(signal::shutdown());
    let played = tokio::select! {
        played = play(&options, &folder, &mut mesh) => played,
        () = &mut stop => Err(Failure::refused("stopped before the mesh was up")),
    };
    let judged = match played {
        Ok(started) => watch(&options, started, &mut mesh, stop).await,
        Err(failure) => Err(failure),
    };
    mesh.stop().await;
    if judged.is_err() && options.keep.is_none() {
        let kept = temporary.keep();
        eprintln!("logs are kept in {}", kept.display());
    }
    judged
}

/// What [`watch`] needs to know of the start.
struct Started {
    at: Instant,
    client: Admin,
    config_revision: u64,
    /// Where the leaderboard is kept, if not in its process.
    redis: Option<String>,
}

/// Every child process; stopped in the order in which traffic flows.
struct Mesh {
    /// What happened to processes that were started again.
    events: Vec<String>,
    control: Option<Process>,
    /// One of the demo's own.
    redis: Option<Redis>,
    /// Where players come in who are not beside the gateway.
    edge: Option<Process>,
    /// Sidecar and service.
    pairs: Vec<(Process, Process)>,
    bots: Option<Process>,
}

impl Mesh {
    async fn stop(&mut self) {
        process::stop(self.bots.iter_mut()).await;
        process::stop(self.edge.iter_mut()).await;
        process::stop(self.pairs.iter_mut().map(|(sidecar, _)| sidecar)).await;
        process::stop(self.pairs.iter_mut().map(|(_, service)| service)).await;
        process::stop(self.redis.iter_mut().map(Redis::process)).await;
        process::stop(self.control.iter_mut()).await;
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Process> {
        self.control
            .iter_mut()
            .chain(self.redis.iter_mut().map(Redis::process))
            .chain(self.pairs.iter_mut().flat_map(|(a, b)| [a, b]))
            .chain(self.edge.iter_mut())
            .chain(self.bots.iter_mut())
    }

    /// Those that have ended without being asked.
    fn fallen(&mut self) -> Vec<String> {
        self.all().filter_map(Process::fallen).collect()
    }

    /// Starts the control plane, Redis and matchmakers again if somebody ended them, as a supervisor would.
    fn supervise(&mut self) -> Outcome {
        let services = self.pairs.iter_mut().map(|(_, service)| service);
        let matchmakers = services.filter(|service| judge::is_matchmaker(service.name()));
        for process in self.control.iter_mut().chain(matchmakers) {
            if let Some(fallen) = process.fallen() {
                self.events.push(format!("{fallen} and was started again"));
                process.restart()?;
            }
        }
        if let Some(redis) = &mut self.redis {
            self.events.extend(redis.supervise()?);
        }
        Ok(())
    }

    /// All that ended, whether or not it runs again.
    fn losses(&mut self) -> Vec<String> {
        let fallen = self.fallen();
        self.events.iter().cloned().chain(fallen).collect()
    }
}

async fn play(options: &Options, folder: &Path, mesh: &mut Mesh) -> Result<Started, Failure> {
    let say = |text: &str| eprintln!("{text}");
    say(&format!(
        "control plane on {} (open: it takes plain-text clients that do not prove who they are)",
        options.xds
    ));
    let control = ["control", "--open", "--data"].map(str::to_owned);
    let data = folder.join("data").display().to_string();
    let listen = [
        "--xds".to_owned(),
        options.xds.to_string(),
        "--admin".to_owned(),
        options.admin.to_string(),
        "--dns".to_owned(),
        options.dns.to_string(),
        // Nobody in the demo has a certificate.
        "--ocsp".to_owned(),
        "none".to_owned(),
    ];
    mesh.control = Some(Process::start(
        "control",
        control.into_iter().chain([data]).chain(listen),
        folder,
    )?);
    let client = Admin::new(&options.admin.to_string());
    wait_for("the control plane", mesh, async || {
        client.status(None).await.is_ok()
    })
    .await?;

    let files = ::arena::MANIFESTS.iter().map(|(name, text)| File {
        name: (*name).to_owned(),
        text: (*text).to_owned(),
    });
    let request = ApplyRequest {
        files: files.collect(),
        author: "demo".into(),
        message: Some("the arena".into()),
        ..ApplyRequest::default()
    };
    let applied = client.apply(&request).await?;
    say(&format!(
        "{} documents applied, revision {}",
        applied.changes.len(),
        applied.revision
    ));

    let in_go = match options.go {
        true => {
            say("building physics in Go");
            Some(go::build(folder)?)
        }
        false => None,
    };
    let redis = match &options.redis {
        None => None,
        Some(Some(url)) => Some(url.clone()),
        Some(None) => {
            let own = Redis::start(folder).await?;
            let url = own.url().to_owned();
            say(&format!("the leaderboard is kept in {url}"));
            mesh.redis = Some(own);
            Some(url)
        }
    };
    let specs = ::arena::processes();
    for spec in &specs {
        let arguments = spec.arguments(&folder.join("arena"), redis.as_deref());
        let service = ["arena".to_owned()].into_iter().chain(arguments);
        let service = Process::start(&spec.name(), service, folder)?;
        let sidecar = Process::start(
            &format!("{}-sidecar", spec.name()),
            sidecar_arguments(spec, options),
            folder,
        )?;
        mesh.pairs.push((sidecar, service));
    }
    if let Some(program) = &in_go {
        mesh.pairs.push(go::start(program, options, folder)?);
    }
    mesh.edge = Some(Process::start("edge", edge_arguments(options), folder)?);
    say(&format!(
        "{} services, each with its sidecar, and an edge are starting",
        mesh.pairs.len()
    ));
    wait_for("the leaderboard", mesh, async || {
        Board::ask(redis.as_deref()).await.is_some()
    })
    .await?;
    let expected = mesh.pairs.len();
    wait_for("all instances to be registered", mesh, async || {
        client
            .instances(None, None)
            .await
            .is_ok_and(|i| i.items.len() >= expected)
    })
    .await?;
    let status = wait_for_status(&client, expected + 1, mesh).await?;

    let bots = [
        "arena",
        "bots",
        "--gateway",
        &specs[0].inbound.to_string(),
        "--rate",
        &options.rate.to_string(),
        "--bots",
        &options.bots.to_string(),
        "--edge",
        &edge_at(EDGE_HTTP_PORT).to_string(),
        "--rooms",
        &edge_at(EDGE_ROOM_PORT).to_string(),
    ];
    mesh.bots = Some(Process::start(
        "bots",
        bots.map(str::to_owned).into_iter(),
        folder,
    )?);
    Ok(Started {
        at: Instant::now(),
        client,
        config_revision: status.config_revision,
        redis,
    })
}

fn edge_at(port: u16) -> SocketAddr {
    (EDGE, port).into()
}

fn edge_arguments(options: &Options) -> impl Iterator<Item = String> + use<> {
    flags([
        ("--gateway", EDGE_NAME.to_owned()),
        ("--bind", EDGE.to_string()),
        ("--admin", edge_at(ADMIN_PORT).to_string()),
        ("--control", options.xds.to_string()),
        ("--workers", "1".to_owned()),
        // Players of rooms say no goodbye, and there are none any more when it is stopped.
        ("--drain", "1s".to_owned()),
    ])
}

fn sidecar_arguments(
    spec: &::arena::ProcessSpec,
    options: &Options,
) -> impl Iterator<Item = String> + use<> {
    // Physics in Go stands in front of the one in Rust, which is its engine then.
    let service = match spec.service {
        ::arena::ServiceKind::Physics if options.go => ENGINE.to_owned(),
        service => service.to_string(),
    };
    let ready = spec.ready_flag().map(|how| ["--ready", how]);
    let ready = ready.into_iter().flatten().map(str::to_owned);
    let own = flags([
        ("--service", service),
        ("--app", spec.app_flag()),
        ("--labels", spec.labels_flag()),
        ("--inbound", spec.inbound.to_string()),
        ("--outbound", spec.outbound.to_string()),
        ("--admin", spec.admin.to_string()),
        ("--control", options.xds.to_string()),
        ("--workers", "1".to_owned()),
    ]);
    own.chain(ready)
}

/// The arguments of a sidecar.
fn flags<const N: usize>(flags: [(&str, String); N]) -> impl Iterator<Item = String> + use<N> {
    let flags = flags.map(|(flag, value)| [flag.to_owned(), value]);
    ["proxy".to_owned()]
        .into_iter()
        .chain(flags.into_iter().flatten())
}

/// Shows the mesh until the time is over or somebody wants to stop, then judges what it saw.
async fn watch(
    options: &Options,
    started: Started,
    mesh: &mut Mesh,
    mut stop: std::pin::Pin<&mut impl Future<Output = ()>>,
) -> Outcome {
    let client = &started.client;
    println!("console  http://{}/", options.admin);
    println!(
        "try      phalanx apply -f examples/arena/mesh-variants/battle-50-50.yaml && phalanx status --wait"
    );
    let deadline = options.duration.map(|d| Instant::now() + d);
    let mut screen = Screen::new();
    let mut every = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = &mut stop => break,
        }
        if deadline.is_some_and(|d| Instant::now() >= d) {
            break;
        }
        mesh.supervise()?;
        // A control plane that is down for a moment is part of the show.
        let board = Board::ask(started.redis.as_deref()).await;
        if let (Ok(edges), Ok(status)) = (client.edges(Some(5)).await, client.status(None).await) {
            screen.draw(&edges, &status, board.as_ref(), deadline, &mesh.losses());
        }
    }
    finish(options, &started, mesh).await
}

async fn finish(options: &Options, started: &Started, mesh: &mut Mesh) -> Outcome {
    let played = started.at.elapsed();
    process::stop(mesh.bots.iter_mut()).await;
    let summary = mesh.bots.as_mut().map(Process::output).unwrap_or_default();
    tokio::time::sleep(LAST_REPORTS).await;
    let in_go = match options.go {
        true => go::correlated().await,
        false => None,
    };
    let board = Board::ask(started.redis.as_deref()).await;
    let losses = mesh.losses();
    mesh.supervise()?;
    let deadline = Instant::now() + START_MAX;
    while started.client.status(None).await.is_err() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let window = (played + LAST_REPORTS).as_secs().clamp(1, WINDOW_MAX_S);
    let edges: Edges = started.client.edges(Some(window)).await?;
    let status: Status = started.client.status(None).await?;
    let memory = started.client.proxies().await?;
    let changed = status.config_revision != started.config_revision;
    let seen = judge::Seen {
        bots: &summary,
        edges: &edges,
        status: &status,
        proxies: &memory,
        changed,
        losses: &losses,
        in_go: in_go.as_deref(),
        board: board.as_ref(),
    };
    let verdict = judge::judge(&seen);
    output::print(&verdict.text)?;
    if options.duration.is_some() && !verdict.good {
        return Err(Failure::refused(
            "the mesh did not do what the demo promises",
        ));
    }
    Ok(())
}

/// Polls until `done`, failing early when a process has ended.
async fn wait_for(
    what: &str,
    mesh: &mut Mesh,
    done: impl AsyncFn() -> bool,
) -> Result<(), Failure> {
    let deadline = Instant::now() + START_MAX;
    while !done().await {
        if let Some(name) = mesh.fallen().first() {
            let log = mesh
                .all()
                .find(|p| name.starts_with(p.name()))
                .map(|p| p.last_words())
                .unwrap_or_default();
            return Err(Failure::refused(format!(
                "{name} while waiting for {what}:\n{log}"
            )));
        }
        if Instant::now() > deadline {
            return Err(Failure::unreachable(format!(
                "waited {START_MAX:?} for {what}"
            )));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

async fn wait_for_status(
    client: &Admin,
    proxies: usize,
    mesh: &mut Mesh,
) -> Result<Status, Failure> {
    wait_for(
        "every sidecar to apply the configuration",
        mesh,
        async || {
            client
                .status(None)
                .await
                .is_ok_and(|s| s.proxies >= proxies && s.complete())
        },
    )
    .await?;
    Ok(client.status(None).await?)
}

/// A taken port is said before anything starts.
fn check_ports(options: &Options) -> Outcome {
    let mine = [
        (options.xds, "choose another with --xds"),
        (options.admin, "choose another with --admin"),
        (options.dns, "choose another with --dns"),
    ];
    let arena = ::arena::processes();
    let theirs = arena
        .iter()
        .flat_map(|p| [p.app, p.inbound, p.outbound, p.admin])
        .chain([edge_at(EDGE_HTTP_PORT), edge_at(ADMIN_PORT)])
        .map(|a| (a, "is another demo running?"));
    let rooms = arena
        .iter()
        .filter(|p| p.service == ::arena::ServiceKind::Room);
    let rooms = rooms.map(|p| p.app).chain([edge_at(EDGE_ROOM_PORT)]);
    let datagrams = rooms.map(|a| (a, "is another demo running?"));
    let datagrams = datagrams
        .chain([(options.dns, "choose another with --dns")])
        .map(|(address, hint)| (address, hint, UdpSocket::bind(address).map(drop)));
    let streams = mine
        .into_iter()
        .chain(theirs)
        .map(|(address, hint)| (address, hint, TcpListener::bind(address).map(drop)));
    for (address, hint, bound) in streams.chain(datagrams) {
        if let Err(error) = bound {
            return Err(
                Failure::refused(format!("cannot listen on {address}: {error}")).hint(hint),
            );
        }
    }
    Ok(())
}

/// `30s`, `1m30s`, `500ms`, or a bare number of seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let wrong = || format!("`{text}` is no duration; write 30s, 1m30s or 500ms");
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u32 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            _ => return Err(wrong()),
        };
        total = unit
            .checked_mul(number)
            .and_then(|d| d.checked_add(total))
            .ok_or_else(wrong)?;
        rest = &rest[end..];
    }
    if text.is_empty() {
        Err(wrong())
    } else {
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(parse_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("30"), Ok(Duration::from_secs(30)));
        for wrong in ["", "s", "3x", "-1s", "1.5", "99999999999s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
