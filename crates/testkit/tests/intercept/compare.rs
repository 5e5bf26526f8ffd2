//! What interception adds to one exchange, beside Envoy under the same rules of nftables on both sides: Envoy passes everything
//! on to where it was going, in plain text; ours are asked in plain text too, and then over mutual TLS. By hand:
//! `cargo test --release -p phalanx-testkit --test intercept -- --ignored --nocapture`.

use anyhow::{Context, ensure};
use phalanx_testkit::process::Process;

use super::*;

const COUNT: usize = 1_000;
const ROUNDS: usize = 5; // each of them interleaved with the others
/// Kind, address, port.
const EXCHANGES: [(&str, &str, u16); 5] = [
    ("http", "10.77.0.11", 8080),
    ("connect", "10.77.0.11", 8080),
    ("redis", "10.77.0.13", 6379),
    ("greeting", "10.77.0.15", 3306),
    ("grpc", "10.77.0.16", 10000),
];

const OFF: &str = "
apiVersion: phalanx.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: default, namespace: phalanx-system}
spec: {mtls: {mode: Off}}
";

fn median(player: &Host, (kind, host, port): (&str, &str, u16)) -> anyhow::Result<f64> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python/median.py");
    let python = tools().join("venv/bin/python");
    let words = format!(
        "{} {} {COUNT} {kind} {host} {port}",
        python.display(),
        script.display()
    );
    Ok(player.net.says(&words)?.trim().parse()?)
}

fn all(player: &Host) -> anyhow::Result<Vec<f64>> {
    EXCHANGES.iter().map(|one| median(player, *one)).collect()
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Of each exchange over the rounds.
fn middles(rounds: &[Vec<f64>]) -> Vec<f64> {
    let of = |place: usize| middle(rounds.iter().map(|round| round[place]).collect());
    (0..EXCHANGES.len()).map(of).collect()
}

/// As our own listeners: by original destination, HTTP read, the ports of protocols where the server speaks first not looked at.
fn envoy_config() -> String {
    let chain = |direction: &str| {
        format!(
            r#"
      listener_filters_timeout: 0.05s
      continue_on_listener_filters_timeout: true
      listener_filters:
      - name: original_dst
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}
      - name: http_inspector
        typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}
        filter_disabled:
          or_match:
            rules:
            - destination_port_range: {{start: 3306, end: 3307}}
            - destination_port_range: {{start: 6379, end: 6380}}
      filter_chains:
      - filter_chain_match: {{application_protocols: [http/1.1, h2c]}}
        filters:
        - name: hcm
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
            stat_prefix: {direction}
            route_config:
              virtual_hosts: [{{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: original}}}}]}}]
            http_filters:
            - name: router
              typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
      default_filter_chain:
        filters:
        - name: tcp
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
            stat_prefix: {direction}
            cluster: original
"#
        )
    };
    format!(
        r#"
static_resources:
  listeners:
    - name: outbound
      address: {{socket_address: {{address: 127.0.0.1, port_value: 15102}}}}{}
    - name: inbound
      address: {{socket_address: {{address: 0.0.0.0, port_value: 15103}}}}{}
  clusters:
    - name: original
      type: ORIGINAL_DST
      lb_policy: CLUSTER_PROVIDED
      connect_timeout: 1s
      upstream_bind_config:
        source_address: {{address: 0.0.0.0, port_value: 0}}
        socket_options: [{{level: 1, name: 36, int_value: 0x50484c58, state: STATE_PREBIND}}]
      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          use_downstream_protocol_config: {{http_protocol_options: {{}}, http2_protocol_options: {{}}}}
"#,
        chain("outbound"),
        chain("inbound")
    )
}

/// Envoys beside the sidecars, on ports of their own.
struct Envoys {
    _all: Vec<Process>,
    rules: PathBuf,
}

impl Envoys {
    /// Their rules are ours, asked first.
    async fn start(mesh: &Mesh, hosts: &mut Hosts) -> anyhow::Result<Self> {
        let (config, rules) = (mesh.file("envoy.yaml"), mesh.file("envoy.nft"));
        std::fs::write(&config, envoy_config())?;
        let ours = hosts
            .player
            .net
            .says("nft list table inet phalanx-intercept")?;
        let theirs = ours
            .replace("phalanx-intercept", "compare")
            .replace("priority dstnat", "priority -110")
            .replace("priority -100", "priority -110")
            .replace("redirect to :15002", "redirect to :15102")
            .replace("redirect to :15003", "redirect to :15103")
            .replace("15003, 15006", "15003, 15006, 15102, 15103");
        ensure!(
            theirs.matches("priority -110").count() == 2 && theirs.contains("15102, 15103"),
            "{theirs}"
        );
        std::fs::write(&rules, theirs)?;
        let mut all = Vec::new();
        for host in hosts.all() {
            let mut envoy = host.net.command(tools().join("venv/bin/envoy"));
            envoy.arg("-c").arg(&config);
            envoy.args("--concurrency 1 -l error --disable-hot-restart".split(' '));
            all.push(
                host.net
                    .spawn(envoy, &format!("envoy-{}", host.net.number))?,
            );
            let listens = "curl --silent --max-time 5 http://127.0.0.1:15102/";
            eventually("Envoy to listen", READY, async || {
                // It has nowhere to send that to.
                host.net
                    .output(listens)
                    .ok()
                    .filter(|done| done.status.code() != Some(7))
            })
            .await
            .with_context(|| all.last().map(Process::log).unwrap_or_default())?;
        }
        Ok(Self { _all: all, rules })
    }

    /// Measured while they intercept, and not we.
    fn instead(&self, hosts: &mut Hosts) -> anyhow::Result<Vec<f64>> {
        under(hosts, &self.rules)
    }
}

/// Measured while these rules, of a table `compare`, stand before ours.
fn under(hosts: &mut Hosts, rules: &Path) -> anyhow::Result<Vec<f64>> {
    let words = format!("nft -f {}", rules.display());
    for host in hosts.all() {
        host.net.does(&words)?;
    }
    let measured = all(&hosts.player)?;
    for host in hosts.all() {
        host.net.does("nft delete table inet compare")?;
    }
    Ok(measured)
}

/// What nobody tracks, nobody redirects: with the sidecars beside it, so that both are measured in the same minute.
const DIRECT: &str = "
table inet compare {
  chain outgoing { type filter hook output priority -300; meta l4proto tcp notrack; }
  chain incoming { type filter hook prerouting priority -300; meta l4proto tcp notrack; }
}
";

/// All that is measured, and who measures, share one core: spread over several by chance, each round would be of another kind.
fn on_one_core() -> anyhow::Result<()> {
    let own = std::process::id().to_string();
    let done = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", "1", &own])
        .output()
        .context("cannot run taskset")?;
    ensure!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    Ok(())
}

#[tokio::test]
#[ignore = "measures: by hand, built for release"]
async fn interception_adds_less_than_envoy_under_the_same_rules() -> anyhow::Result<()> {
    if !is_root() {
        return Ok(());
    }
    on_one_core()?;
    let mesh = Mesh::start().await?;
    let mut hosts = Hosts::join(&mesh)?;
    let _applications = Applications::start(&mesh, &hosts)?;
    hosts.start().await?;
    hosts.are_whole().await?;
    let envoys = Envoys::start(&mesh, &mut hosts).await?;
    let direct = mesh.file("direct.nft");
    std::fs::write(&direct, DIRECT)?;

    let (mut secured, mut before) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        secured.push(all(&hosts.player)?);
        before.push(under(&mut hosts, &direct)?);
    }
    mesh.apply("off", OFF)?;
    let (mut plain, mut envoy, mut base) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        plain.push(all(&hosts.player)?);
        envoy.push(envoys.instead(&mut hosts)?);
        base.push(under(&mut hosts, &direct)?);
    }

    let (secured, before) = (middles(&secured), middles(&before));
    let (plain, envoy, base) = (middles(&plain), middles(&envoy), middles(&base));
    println!("median, µs     direct | added: ours   ours, mutual TLS   Envoy");
    for (place, (kind, ..)) in EXCHANGES.iter().enumerate() {
        println!(
            "{kind:<10} {:>10.1} | {:>11.1} {:>18.1} {:>7.1}",
            base[place],
            plain[place] - base[place],
            secured[place] - before[place],
            envoy[place] - base[place]
        );
    }
    for (place, (kind, ..)) in EXCHANGES.iter().enumerate() {
        ensure!(plain[place] < envoy[place], "{kind}: Envoy adds less");
    }
    Ok(())
}
