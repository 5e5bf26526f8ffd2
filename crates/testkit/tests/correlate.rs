//! Colour and trace across services in Go that copy no header, on net/http and gRPC Go: what is not sure goes to the
//! baseline and is counted, and nobody gets the colour of another.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use phalanx_testkit::http::{Answer, Call, Connection, call};
use phalanx_testkit::mesh::{Instance, Mesh, READY_MAX};
use phalanx_testkit::process::Process;
use phalanx_testkit::{address, eventually};

const CONNECTIONS: usize = 64;
/// Requests of one colour before those of another: some meet their own only, some do not.
const RUN: usize = 200;
const COLOURS: [&str; 3] = ["blue", "green", "red"];

const SERVICES: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: NAME}\nspec:\n  selector: {app: NAME}\n  ports: [{port: 80, appProtocol: PROTOCOL}]\n---\n";

/// A service that knows nothing of the mesh.
struct Unaware {
    _app: Process,
    _sidecar: Process,
    admin: SocketAddr,
}

/// `unaware` of `clients/go` with its sidecar: `mode` and what follows its address.
async fn unaware(
    mesh: &mut Mesh,
    service: &str,
    mode: &str,
    copied: &[&str],
    options: &[&str],
) -> anyhow::Result<Unaware> {
    let ip: IpAddr = address::fresh();
    let at = |port| SocketAddr::new(ip, port);
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/go-unaware");
    anyhow::ensure!(
        std::path::Path::new(program).is_file(),
        "{program} is missing; run `cargo xtask setup`"
    );
    let mut command = Command::new(program);
    command.args([mode, &at(8080).to_string()]);
    if mode != "last" {
        command.arg(at(15001).to_string()).args(copied);
    }
    let app = Process::spawn(command, &mesh.folder().join(format!("{service}.log")))?;
    let own = at(8080).to_string();
    // Nothing was here before.
    let arguments = [&["--app", &own, "--correlate-settle", "0s"], options].concat();
    let sidecar = mesh.sidecar(service, "v1", ip, &arguments)?;
    mesh.registered(service, at(15006)).await?;
    mesh.ready(at(15000)).await?;
    Ok(Unaware {
        _app: app,
        _sidecar: sidecar,
        admin: at(15000),
    })
}

/// A caller, a hop and the last one.
struct Chain {
    mesh: Mesh,
    caller: Instance,
    hop: Unaware,
    _last: Last,
    is_grpc: bool,
}

enum Last {
    Http { _echo: Instance },
    Grpc { _tells: Unaware },
}

impl Chain {
    async fn start(is_grpc: bool, copied: &[&str], options: &[&str]) -> anyhow::Result<Self> {
        let mut mesh = Mesh::start().await?;
        let (mode, protocol) = match is_grpc {
            true => ("grpc", "grpc"),
            false => ("http", "http"),
        };
        let last = match is_grpc {
            true => Last::Grpc {
                _tells: unaware(&mut mesh, "last", "last", &[], &[]).await?,
            },
            false => Last::Http {
                _echo: mesh.instance("last", "v1", "last").await?,
            },
        };
        let hop = unaware(&mut mesh, "hop", mode, copied, options).await?;
        let caller = mesh.instance("caller", "v1", "caller").await?;
        let service = |name| SERVICES.replace("NAME", name).replace("PROTOCOL", protocol);
        mesh.apply(&(service("hop") + &service("last"))).await?;
        let chain = Self {
            mesh,
            caller,
            hop,
            _last: last,
            is_grpc,
        };
        let first = chain.call("");
        eventually("the way to be open", READY_MAX, async || {
            let answer = call(chain.caller.outbound, &first).await.ok()?;
            chain.is_good(&answer).then_some(())
        })
        .await?;
        chain.rest().await;
        Ok(chain)
    }

    /// A request of this colour; empty: of none.
    fn call(&self, colour: &str) -> Call {
        let request = match self.is_grpc {
            true => Call::grpc("hop", "/a.Room/Join"),
            false => Call::get("hop", "/join"),
        };
        match colour {
            "" => request,
            colour => request
                .header("x-env", colour)
                .header("x-canary-id", &format!("of-{colour}")),
        }
    }

    fn is_good(&self, answer: &Answer) -> bool {
        let grpc = !self.is_grpc || answer.grpc_status() == Some("0");
        answer.status == 200 && grpc
    }

    /// What reached the last hop.
    fn seen(&self, answer: &Answer, name: &str) -> String {
        match self.is_grpc {
            true => answer.header(&format!("seen-{name}")).to_owned(),
            false => {
                let told = answer.json();
                told["headers"][name]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            }
        }
    }

    /// Until nothing that was asked before may be the cause of anything.
    async fn rest(&self) {
        tokio::time::sleep(Duration::from_millis(600)).await;
    }

    /// `total` requests over [`CONNECTIONS`], each `run` of each of `colours` in turn: how many of them arrived
    /// with it, without, or were refused. One that arrives with another's is an error.
    async fn run(
        self: &Arc<Self>,
        total: usize,
        colours: &[&'static str],
        run: usize,
    ) -> anyhow::Result<Tally> {
        let (next, colours) = (Arc::new(AtomicUsize::new(0)), colours.to_vec());
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (chain, next, colours) = (self.clone(), next.clone(), colours.clone());
            tasks.spawn(async move {
                let mut tally = Tally::default();
                let mut connection = Connection::open(chain.caller.outbound, chain.is_grpc).await?;
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= total {
                        return anyhow::Ok(tally);
                    }
                    let colour = colours[number / run % colours.len()];
                    let answer = connection.send(&chain.call(colour)).await?;
                    tally.add(&chain, &answer, colour)?;
                }
            });
        }
        let mut all = Tally::default();
        while let Some(tally) = tasks.join_next().await {
            let tally = tally??;
            all.kept += tally.kept;
            all.baseline += tally.baseline;
            all.refused += tally.refused;
        }
        Ok(all)
    }

    /// The hop's counts by how surely.
    async fn counted(&self) -> anyhow::Result<BTreeMap<String, u64>> {
        let page = call(self.hop.admin, &Call::get("localhost", "/metrics")).await?;
        let text = String::from_utf8(page.body.to_vec())?;
        let lines = text.lines().filter_map(|line| {
            let rest = line.strip_prefix("phalanx_correlation_total{how=\"")?;
            let (how, count) = rest.split_once("\"} ")?;
            Some((how.to_owned(), count.parse::<f64>().ok()? as u64))
        });
        Ok(lines.collect())
    }
}

#[derive(Debug, Default)]
struct Tally {
    kept: usize,
    baseline: usize,
    refused: usize,
}

impl Tally {
    fn add(&mut self, chain: &Chain, answer: &Answer, colour: &str) -> anyhow::Result<()> {
        if !chain.is_good(answer) {
            self.refused += 1;
            return Ok(());
        }
        let seen = chain.seen(answer, "x-env");
        let canary = chain.seen(answer, "x-canary-id");
        if seen.is_empty() && canary.is_empty() {
            self.baseline += 1;
            return Ok(());
        }
        anyhow::ensure!(seen == colour, "{colour} arrived as {seen}");
        anyhow::ensure!(
            canary == format!("of-{colour}"),
            "{colour} arrived as {canary}"
        );
        self.kept += 1;
        Ok(())
    }
}

/// In a test run some hundred, in a soak 10,000.
fn requests() -> usize {
    match std::env::var_os("PHALANX_SOAK") {
        Some(_) => 10_000,
        None => 500,
    }
}

fn of(counted: &BTreeMap<String, u64>, how: &str) -> usize {
    counted.get(how).copied().unwrap_or_default() as usize
}

async fn nobody_gets_the_colour_of_another(is_grpc: bool) -> anyhow::Result<()> {
    let chain = Arc::new(Chain::start(is_grpc, &[], &["--correlate-linger", "20ms"]).await?);
    // Of one colour only: all of them are known.
    let alone = chain.run(100, &COLOURS[..1], 1).await?;
    anyhow::ensure!(alone.kept == 100, "{alone:?}");
    chain.rest().await;
    let before = chain.counted().await?;
    let total = requests();
    let mixed = chain.run(total, &COLOURS, RUN).await?;
    let after = chain.counted().await?;
    let since = |how| of(&after, how) - of(&before, how);
    println!("{total} of mixed colours: {mixed:?}, {after:?}");
    anyhow::ensure!(
        mixed.refused == 0 && mixed.kept + mixed.baseline == total,
        "{mixed:?}"
    );
    // What is counted as not sure is what reached the baseline, one for one.
    anyhow::ensure!(since("ambiguous") == mixed.baseline, "{mixed:?}, {after:?}");
    anyhow::ensure!(since("correlated") == mixed.kept, "{mixed:?}, {after:?}");
    anyhow::ensure!(since("none") == 0 && since("carried") == 0, "{after:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn colours_survive_a_go_http_service_that_copies_nothing() -> anyhow::Result<()> {
    nobody_gets_the_colour_of_another(false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn colours_survive_a_go_grpc_service_that_copies_nothing() -> anyhow::Result<()> {
    nobody_gets_the_colour_of_another(true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_passes_traces_on_keeps_every_colour() -> anyhow::Result<()> {
    let chain = Arc::new(Chain::start(false, &["traceparent"], &[]).await?);
    let total = requests();
    let mixed = chain.run(total, &COLOURS, 1).await?;
    // A core remembers so many: of more than it has room for, some are not known.
    anyhow::ensure!(mixed.kept >= total * 3 / 4, "{mixed:?}");
    let counted = chain.counted().await?;
    anyhow::ensure!(of(&counted, "traced") >= total * 3 / 4, "{counted:?}");
    anyhow::ensure!(
        of(&counted, "ambiguous") == mixed.baseline,
        "{mixed:?}, {counted:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_on_where_one_request_can_be_the_cause() -> anyhow::Result<()> {
    let chain = Chain::start(false, &[], &[]).await?;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = chain
        .call("")
        .header("traceparent", trace)
        .header("tracestate", "vendor=opaque")
        .header("x-request-id", "request-1");
    let answer = call(chain.caller.outbound, &request).await?;
    anyhow::ensure!(chain.is_good(&answer), "{answer:?}");
    let seen = chain.seen(&answer, "traceparent");
    anyhow::ensure!(seen.starts_with(&trace[..35]) && seen != trace, "{seen}");
    anyhow::ensure!(chain.seen(&answer, "tracestate") == "vendor=opaque");
    anyhow::ensure!(chain.seen(&answer, "x-request-id") == "request-1");
    drop(chain.mesh);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_fails_the_hop_that_lost_the_colour() -> anyhow::Result<()> {
    let options = ["--correlate", "strict"];
    let chain = Arc::new(Chain::start(false, &[], &options).await?);
    let mixed = chain.run(300, &COLOURS, 1).await?;
    let counted = chain.counted().await?;
    // Nothing goes to the baseline unnoticed.
    anyhow::ensure!(mixed.baseline == 0 && mixed.refused > 0, "{mixed:?}");
    // More often than that: the caller's sidecar tries again what was answered with 503.
    anyhow::ensure!(
        of(&counted, "ambiguous") >= mixed.refused,
        "{mixed:?}, {counted:?}"
    );
    let page = call(chain.hop.admin, &Call::get("localhost", "/metrics")).await?;
    let page = String::from_utf8(page.body.to_vec())?;
    anyhow::ensure!(page.contains("reason=\"colour_lost\""), "{page}");
    chain.rest().await;
    let alone = chain.run(100, &COLOURS[..1], 1).await?;
    anyhow::ensure!(alone.kept == 100, "{alone:?}");
    Ok(())
}
