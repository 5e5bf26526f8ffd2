//! Sessions stay where they began: behind our sidecar, behind a real Envoy, and from one to the other with the same token.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use phalanx_testkit::envoy::{Envoy, Protocol};
use phalanx_testkit::http::{Answer, Call, Connection, call};
use phalanx_testkit::mesh::{Mesh, READY_MAX};
use phalanx_testkit::{address, eventually};

/// `solo` has one backend, `split` two.
const ROUTES: &str = "
apiVersion: v1
kind: Service
metadata: {name: solo}
spec: {ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
---
# In turn, so that everybody gets newcomers.
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {name: solo}
spec:
  targetRefs: [{kind: Service, name: solo}]
  loadBalancer: {type: RoundRobin}
---
apiVersion: v1
kind: Service
metadata: {name: split}
spec: {selector: {app: nobody}, ports: [{port: 80, appProtocol: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: other}
spec: {ports: [{port: 80, targetPort: 8080, appProtocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: solo}
spec:
  parentRefs: [{kind: Service, name: solo}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /cookie}}]
    sessionPersistence: {sessionName: room}
    backendRefs: [{name: solo, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /header}}]
    sessionPersistence: {type: Header, sessionName: x-room}
    backendRefs: [{name: solo, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /timed}}]
    sessionPersistence: {sessionName: timed, absoluteTimeout: 1h, cookieConfig: {lifetimeType: Permanent}}
    backendRefs: [{name: solo, port: 80}]
  - name: own
    matches: [{path: {type: PathPrefix, value: /own}}]
    sessionPersistence: {absoluteTimeout: 1h}
    backendRefs: [{name: solo, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split}
spec:
  parentRefs: [{kind: Service, name: split}]
  rules:
  - sessionPersistence: {sessionName: room}
    backendRefs: [{name: solo, port: 80, weight: WEIGHT}, {name: other, port: 80, weight: 1}]
";

fn routes(weight: u32) -> String {
    ROUTES.replace("WEIGHT", &weight.to_string())
}

/// Endpoints of a Service, those in `draining` on their way out.
fn slice(service: &str, endpoints: &[IpAddr], draining: &[IpAddr]) -> String {
    let endpoint = |ip: &IpAddr| {
        let conditions = match draining.contains(ip) {
            true => "{ready: false, serving: true, terminating: true}",
            false => "{ready: true}",
        };
        format!("- {{addresses: [\"{ip}\"], conditions: {conditions}}}\n")
    };
    let endpoints: String = endpoints.iter().map(endpoint).collect();
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n{endpoints}"
    )
}

/// A client that keeps what it is told to send.
#[derive(Clone)]
struct Client {
    call: Call,
    token: Option<(String, String)>,
}

impl Client {
    fn new(authority: &str, path: &str) -> Self {
        Self {
            call: Call::get(authority, path),
            token: None,
        }
    }

    /// Of a session that began at this endpoint.
    async fn begun(outbound: SocketAddr, path: &str, at: &str) -> anyhow::Result<Self> {
        let mut connection = Connection::open(outbound, false).await?;
        for _ in 0..200 {
            let mut client = Self::new("solo", path);
            let (by, is_told) = client.ask(&mut connection).await?;
            anyhow::ensure!(is_told, "{path}: no token");
            if by == at {
                return Ok(client);
            }
        }
        anyhow::bail!("{at} never answered")
    }

    /// Who answers, and whether the client was told anything.
    async fn ask(&mut self, connection: &mut Connection) -> anyhow::Result<(String, bool)> {
        let mut call = self.call.clone();
        if let Some((name, value)) = &self.token {
            call = call.header(name, value);
        }
        let answer = connection.send(&call).await?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        let told = token(&answer);
        let is_told = told.is_some();
        self.token = told.or(self.token.take());
        Ok((answer.header("x-echo").to_owned(), is_told))
    }

    /// The same one answers twenty times, and tells nothing new.
    async fn stays(&mut self, outbound: SocketAddr, by: &str) -> anyhow::Result<()> {
        let mut connection = Connection::open(outbound, false).await?;
        for _ in 0..20 {
            assert_eq!(self.ask(&mut connection).await?, (by.to_owned(), false));
        }
        Ok(())
    }
}

fn token(answer: &Answer) -> Option<(String, String)> {
    let cookie = answer.header("set-cookie");
    if let Some((pair, _)) = cookie.split_once(';') {
        return Some(("cookie".to_owned(), pair.to_owned()));
    }
    let room = answer.header("x-room");
    (!room.is_empty()).then(|| ("x-room".to_owned(), room.to_owned()))
}

/// Who answers those without a session.
async fn newcomers(outbound: SocketAddr) -> anyhow::Result<BTreeSet<String>> {
    let mut connection = Connection::open(outbound, false).await?;
    let mut seen = BTreeSet::new();
    for _ in 0..60 {
        let mut client = Client::new("solo", "/cookie");
        seen.insert(client.ask(&mut connection).await?.0);
    }
    Ok(seen)
}

/// What the endpoint's session is called, in the very bytes.
async fn told(outbound: SocketAddr, path: &str, by: &str) -> anyhow::Result<String> {
    for _ in 0..200 {
        let answer = call(outbound, &Call::get("solo", path)).await?;
        if answer.header("x-echo") == by {
            let (cookie, room) = (answer.header("set-cookie"), answer.header("x-room"));
            return Ok(format!("{cookie}{room}"));
        }
    }
    anyhow::bail!("{by} never answered")
}

#[tokio::test]
async fn sessions_stay_at_their_endpoint_whoever_leads_there() -> anyhow::Result<()> {
    let mut mesh = Mesh::start().await?;
    let ips: Vec<IpAddr> = (0..4).map(|_| address::fresh()).collect();
    let names = ["a", "b", "c", "d"];
    let mut apps = Vec::new();
    for (ip, name) in ips.iter().zip(names) {
        apps.push(mesh.echo(SocketAddr::new(*ip, 8080), name)?);
    }
    let ours = mesh.instance("gateway", "v1", "gateway").await?;
    let solo = |count: usize, draining: &[IpAddr]| slice("solo", &ips[..count], draining);
    mesh.apply(&(routes(1) + &solo(2, &[]) + &slice("other", &ips[3..], &[])))
        .await?;
    let envoy = Envoy::start(&mut mesh, "gateway", Protocol::Delta).await?;
    let both = [ours.outbound, envoy.outbound];
    for outbound in both {
        eventually("routes and endpoints", READY_MAX, async || {
            newcomers(outbound)
                .await
                .ok()
                .filter(|seen| seen.len() == 2)
        })
        .await?;
    }

    // The same word for the same endpoint.
    for path in ["/cookie", "/header"] {
        let [mine, theirs] = [
            told(ours.outbound, path, "a").await?,
            told(envoy.outbound, path, "a").await?,
        ];
        assert_eq!(mine, theirs, "{path}");
    }
    let timed = told(ours.outbound, "/timed", "a").await?;
    assert!(timed.contains("Max-Age=3600; Path=/; HttpOnly"), "{timed}");
    let theirs = told(envoy.outbound, "/timed", "a").await?;
    assert!(
        theirs.contains("Max-Age=3600; Path=/; HttpOnly"),
        "{theirs}"
    );
    let own = told(ours.outbound, "/own", "a").await?;
    assert!(own.starts_with("session.http.default.solo.own=\""), "{own}");
    assert!(!own.contains("Max-Age"), "{own}");

    // Begun at one, kept at the other.
    let mut clients = Vec::new();
    for (first, second) in [(both[0], both[1]), (both[1], both[0])] {
        for (path, by) in [("/cookie", "a"), ("/header", "a"), ("/timed", "b")] {
            let mut client = Client::begun(first, path, by).await?;
            client.stays(first, by).await?;
            client.stays(second, by).await?;
            clients.push((client, by));
        }
    }

    // More endpoints: nobody moves.
    mesh.apply(&solo(3, &[])).await?;
    for outbound in both {
        eventually("the third", READY_MAX, async || {
            newcomers(outbound)
                .await
                .ok()
                .filter(|seen| seen.len() == 3)
        })
        .await?;
        for (client, by) in &mut clients {
            client.stays(outbound, by).await?;
        }
    }

    // On its way out it keeps its own, and gets nobody new.
    mesh.apply(&solo(3, &ips[..1])).await?;
    for outbound in both {
        eventually("only the others", READY_MAX, async || {
            let seen = newcomers(outbound).await.ok()?;
            (!seen.contains("a")).then_some(())
        })
        .await?;
        for (client, by) in &mut clients {
            client.stays(outbound, by).await?;
        }
    }

    // Gone: another takes over, and says so once.
    mesh.apply(&slice("solo", &ips[1..3], &[])).await?;
    for outbound in both {
        eventually("the others", READY_MAX, async || {
            let mut client = clients[0].0.clone();
            let mut connection = Connection::open(outbound, false).await.ok()?;
            let (by, _) = client.ask(&mut connection).await.ok()?;
            (by != "a").then_some(())
        })
        .await?;
        for (former, at) in &clients {
            let mut client = former.clone();
            let mut connection = Connection::open(outbound, false).await?;
            let (next, is_told) = client.ask(&mut connection).await?;
            assert_eq!(is_told, *at == "a", "{next}");
            assert_ne!(next, "a");
            client.stays(outbound, &next).await?;
        }
    }

    // A session outranks the split, even a backend's weight of zero.
    let mut client = Client::new("split", "/");
    let mut connection = Connection::open(ours.outbound, false).await?;
    let by = loop {
        client.token = None;
        let (by, _) = client.ask(&mut connection).await?;
        if by != "d" {
            break by;
        }
    };
    client.stays(ours.outbound, &by).await?;
    mesh.apply(&routes(0)).await?;
    client.stays(ours.outbound, &by).await?;
    let mut newcomer = Client::new("split", "/");
    assert_eq!(newcomer.ask(&mut connection).await?.0, "d");
    Ok(())
}
