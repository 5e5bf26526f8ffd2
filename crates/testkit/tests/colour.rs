//! Colours end to end: an edge gives them, a chain of services carries them, a lane takes them in the middle and the baseline
//! stands in.

use std::net::SocketAddr;
use std::process::Command;

use phalanx_testkit::http::{Call, call};
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, eventually};
use serde_json::Value;

const MANIFESTS: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: phalanx
  listeners: [{name: web, port: 8080, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: play}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: lobby, port: 8080}]}]
---
apiVersion: phalanx.dev/v1alpha1
kind: ColourPolicy
metadata: {name: colours}
spec:
  env:
    header: {trusted: true, allow: [dev-*]}
    networks: [{cidr: 127.0.0.0/8, value: office}]
    default: prod
  canaryId: {header: x-user, generate: true}
  lanes: [{colour: dev-li, selector: {lane: dev-li}}]
"#;

/// Who answered at each hop, and the colour that the last one was told.
fn hops(answer: &Value) -> (Vec<String>, String) {
    let mut names = Vec::new();
    let mut at = answer;
    loop {
        names.push(at["name"].as_str().unwrap_or("?").to_owned());
        if at["next"].is_null() {
            let colour = at["headers"]["x-env"].as_str().unwrap_or("-");
            return (names, colour.to_owned());
        }
        at = &at["next"];
    }
}

fn phalanx(mesh: &Mesh, arguments: &[&str]) -> anyhow::Result<Value> {
    let mut command = Command::new(executable("phalanx")?);
    command.env("PHALANX_ADMIN", mesh.admin.to_string());
    let output = command.args(arguments).output()?;
    anyhow::ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_colour_goes_through_its_lane_in_the_middle_and_the_baseline_stands_in()
-> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let log = mesh.folder().join("access.log");
    let logged = ["--access-log", &log.display().to_string()].map(str::to_owned);
    let options = [&logged[0], &logged[1], "--access-log-sample", "100%"];
    let lobby = mesh.instance_with("lobby", "v1", "lobby", &options).await?;
    let battle = mesh.instance("battle", "v1", "battle").await?;
    let lane = ["--labels", "lane=dev-li"];
    let mut of_lane = mesh
        .instance_with("battle", "v1", "battle-li", &lane)
        .await?;
    let _store = mesh.instance("store", "v1", "store").await?;
    mesh.apply(MANIFESTS).await?;
    let ip = address::fresh();
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["proxy", "--gateway", "edge", "--bind", &ip.to_string()])
        .args(["--admin", &SocketAddr::new(ip, 15000).to_string()])
        .args(["--control", &mesh.xds.to_string(), "--workers", "1"]);
    let _edge = Process::spawn(command, &mesh.folder().join("edge.log"))?;
    let edge = SocketAddr::new(ip, 8080);

    // The lobby calls battle, and whichever that is calls the store, each through the sidecar that is told.
    let chain = |battle: SocketAddr| format!("{}=battle:8080,{battle}=store:8080", lobby.outbound);
    let met = async |colour: Option<&str>, outbound: SocketAddr| {
        let mut request = Call::get("any", "/x").header("x-next", &chain(outbound));
        if let Some(colour) = colour {
            request = request.header("x-env", colour);
        }
        let answer = call(edge, &request)
            .await
            .ok()
            .filter(|answer| answer.status == 200)?;
        Some(hops(&answer.json()))
    };
    let until = async |colour, outbound, names: [&str; 3], told: &str| {
        let what = format!("{colour:?} to meet {names:?} as {told}");
        let wanted = (names.map(str::to_owned).to_vec(), told.to_owned());
        let mut last = None;
        let seen = eventually(&what, READY_MAX, async || {
            last = met(colour, outbound).await;
            (last.as_ref() == Some(&wanted)).then_some(())
        });
        seen.await
            .map_err(|error| anyhow::anyhow!("{error:#}: last {last:?}"))
    };
    until(
        Some("dev-li"),
        of_lane.outbound,
        ["lobby", "battle-li", "store"],
        "dev-li",
    )
    .await?;
    until(
        Some("dev-wu"),
        battle.outbound,
        ["lobby", "battle", "store"],
        "dev-wu",
    )
    .await?;
    // Not among those that are taken: the network decides, as for who says nothing.
    until(
        Some("office-forged"),
        battle.outbound,
        ["lobby", "battle", "store"],
        "office",
    )
    .await?;
    until(
        None,
        battle.outbound,
        ["lobby", "battle", "store"],
        "office",
    )
    .await?;
    for _ in 0..20 {
        let seen = met(Some("dev-li"), of_lane.outbound)
            .await
            .map(|(names, _)| names);
        assert_eq!(
            seen.as_deref(),
            Some(&["lobby", "battle-li", "store"].map(str::to_owned)[..])
        );
        let seen = met(None, battle.outbound).await.map(|(names, _)| names);
        assert_eq!(
            seen.as_deref(),
            Some(&["lobby", "battle", "store"].map(str::to_owned)[..])
        );
    }
    // Whose it is comes from the header that the policy names, or is made; what is forged is not heard.
    let forged = Call::get("any", "/x").header("x-canary-id", "forged");
    let id = |answer: Value| {
        answer["headers"]["x-canary-id"]
            .as_str()
            .unwrap_or("-")
            .to_owned()
    };
    let made = id(call(edge, &forged).await?.json());
    assert!(made.len() == 16 && made != "forged", "{made}");
    let named = call(edge, &forged.header("x-user", "li")).await?;
    assert_eq!(id(named.json()), "li");

    let lanes = phalanx(&mesh, &["lanes", "-o", "json"])?;
    let of = &lanes["items"][0];
    assert_eq!(
        (of["colour"].as_str(), of["fallback"].as_str()),
        (Some("dev-li"), Some("Baseline"))
    );
    let service = &of["services"][0];
    assert_eq!(
        (service["service"].as_str(), service["healthy"].as_u64()),
        (Some("battle"), Some(1))
    );

    // Whose colour takes a request where is explained, at a sidecar and at the edge, and stands in the access log.
    let explained = |at: SocketAddr, url: &str, more: &[&str]| {
        let arguments = [
            "explain",
            "--proxy",
            &at.to_string(),
            "GET",
            url,
            "-o",
            "json",
        ];
        let told = phalanx(&mesh, &[&arguments, more].concat())?;
        let text = |key: &str| told["colour"][key].as_str().unwrap_or("-").to_owned();
        anyhow::Ok([text("colour"), text("taken_by"), text("why")])
    };
    let at_lobby = |more: &[&str]| explained(lobby.admin, "http://battle:8080/x", more);
    assert_eq!(at_lobby(&["-H", "x-env: dev-li"])?, ["dev-li", "lane", "-"]);
    assert_eq!(
        at_lobby(&["-H", "x-env: dev-wu"])?,
        [
            "dev-wu",
            "baseline",
            "no ColourPolicy in force has a lane dev-wu"
        ]
    );
    assert_eq!(at_lobby(&[])?[..2], ["-", "baseline"]);
    let at_edge = |more: &[&str]| explained(SocketAddr::new(ip, 15000), "http://any/x", more);
    assert_eq!(
        at_edge(&["-H", "x-env: dev-li"])?,
        [
            "dev-li",
            "baseline",
            "lane dev-li of ColourPolicy/default/colours has no instance for lobby.default"
        ]
    );
    assert_eq!(at_edge(&["-H", "x-env: forged"])?[0], "office");
    assert_eq!(at_edge(&["--from", "192.0.2.1"])?[0], "prod");
    let logs = async |colour: &str, lane: &str| {
        let what = format!("a line of {colour} that the {lane} took");
        let is_meant = |line: &Value| {
            line["direction"] == "outbound" && line["colour"] == colour && line["lane"] == lane
        };
        eventually(&what, READY_MAX, async || {
            let text = std::fs::read_to_string(&log).ok()?;
            let mut lines = text
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok());
            lines.any(|line: Value| is_meant(&line)).then_some(())
        })
        .await
    };
    logs("dev-li", "lane").await?;

    // The lane's application dies without a word: the baseline stands in while the instance is still known.
    of_lane.app.kill();
    of_lane.sidecar.kill();
    until(
        Some("dev-li"),
        battle.outbound,
        ["lobby", "battle", "store"],
        "dev-li",
    )
    .await?;
    eventually("the fallback to be counted", READY_MAX, async || {
        let lanes = phalanx(&mesh, &["lanes", "dev-li", "-o", "json"]).ok()?;
        let services = lanes["items"][0]["services"].as_array()?;
        // Where the instance has expired meanwhile, there is no lane any more, and nothing to fall back from.
        let done = services.is_empty() || services[0]["fallbacks"].as_u64() > Some(0);
        done.then_some(())
    })
    .await?;
    let metrics = call(lobby.admin, &Call::get("localhost", "/metrics")).await?;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let counted = r#"phalanx_requests_by_colour_total{direction="outbound",colour="dev-li"}"#;
    assert!(metrics.contains(counted), "{metrics}");
    Ok(())
}
