//! Workloads that join by the tokens of their service accounts, as in Kubernetes: the keys behind them come from a file, or over
//! https from a server that asks for a token itself. What is expired, for another audience or signed by anybody else is refused.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use phalanx_client::identity::Proof;
use phalanx_testkit::guarded::Guarded;
use phalanx_testkit::http::{self, Call};
use phalanx_testkit::member::Member;
use phalanx_testkit::process::{Process, executable};
use phalanx_testkit::{address, eventually};
use serde_json::{Value, json};

/// Debug builds on two busy cores; keys are fetched again after ten seconds.
const LIMIT: Duration = Duration::from_secs(60);
const ISSUER: &str = "https://kubernetes.default.svc";
/// What the server of the keys wants to be shown.
const POD: &str = "a-pod-s-own-token";

/// An issuer of tokens, whose keys lie in a folder.
struct Cluster<'a> {
    folder: &'a Path,
}

impl Cluster<'_> {
    fn openssl(&self, words: &str) -> anyhow::Result<Vec<u8>> {
        let mut command = Command::new("openssl");
        command.args(words.split_whitespace()).stdin(Stdio::null());
        let done = command.current_dir(self.folder).output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        anyhow::ensure!(done.status.success(), "openssl {words}\n{said}");
        Ok(done.stdout)
    }

    fn make_key(&self, id: &str) -> anyhow::Result<()> {
        let words = format!("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out {id}.key");
        self.openssl(&words).map(drop)
    }

    /// Puts these keys, and no others, into `jwks.json`.
    fn publish(&self, ids: &[&str]) -> anyhow::Result<()> {
        let mut keys = Vec::new();
        for id in ids {
            let said = self.openssl(&format!("rsa -in {id}.key -modulus -noout"))?;
            let said = String::from_utf8(said)?;
            let hex = said.trim().strip_prefix("Modulus=").context("no modulus")?;
            let modulus = (0..hex.len()).step_by(2);
            let modulus: Result<Vec<u8>, _> = modulus
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16))
                .collect();
            keys.push(json!({"kty": "RSA", "alg": "RS256", "use": "sig", "kid": id, "n": b64(modulus?), "e": "AQAB"}));
        }
        // As a whole: half a file is never seen.
        let (next, path) = (self.folder.join("jwks.next"), self.folder.join("jwks.json"));
        fs::write(&next, json!({ "keys": keys }).to_string())?;
        Ok(fs::rename(next, path)?)
    }

    /// Signed by the key `id`, whatever it claims.
    fn sign(&self, id: &str, claims: &Value) -> anyhow::Result<String> {
        let head = json!({"alg": "RS256", "kid": id}).to_string();
        let text = format!("{}.{}", b64(head), b64(claims.to_string()));
        fs::write(self.folder.join("text"), &text)?;
        let signature = self.openssl(&format!("dgst -sha256 -sign {id}.key text"))?;
        Ok(format!("{text}.{}", b64(signature)))
    }

    /// A good one.
    fn token(&self, id: &str, account: &str) -> anyhow::Result<String> {
        self.sign(id, &claims(account))
    }
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}

/// As the API server writes them.
fn claims(account: &str) -> Value {
    json!({
        "iss": ISSUER, "aud": ["phalanx"], "sub": format!("system:serviceaccount:default:{account}"),
        "iat": now(), "nbf": now(), "exp": now() + 3600,
        "kubernetes.io": {"namespace": "default", "serviceaccount": {"name": account, "uid": "u"}},
    })
}

/// Changed in one claim.
fn but(name: &str, value: impl Into<Value>) -> Value {
    let mut claims = claims("battle");
    claims[name] = value.into();
    claims
}

/// Joins as the service; what is said when that is refused.
async fn joins(plane: &Guarded, service: &str, token: &str) -> Result<(), String> {
    let joined = async {
        let member = Member::new(&plane.xds.to_string(), &plane.roots()?, service)?;
        member.join(Proof::ServiceAccount(token.to_owned())).await
    };
    joined.await.map(drop).map_err(|error| format!("{error:#}"))
}

async fn is_refused(plane: &Guarded, service: &str, token: &str, why: &str) {
    let said = joins(plane, service, token).await.unwrap_err();
    assert!(said.contains(why), "{why}: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_from_a_file_let_accounts_in_until_they_are_taken_back() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let cluster = Cluster {
        folder: folder.path(),
    };
    for id in ["one", "two", "stranger"] {
        cluster.make_key(id)?;
    }
    cluster.publish(&["one"])?;
    let jwks = folder.path().join("jwks.json").display().to_string();
    let plane = Guarded::start_with(&["--jwks", &jwks, "--jwt-issuer", ISSUER]).await?;
    let good = cluster.token("one", "battle")?;
    // Kubernetes hands the same one to a container that starts again.
    for _ in 0..2 {
        joins(&plane, "battle", &good)
            .await
            .map_err(anyhow::Error::msg)?;
    }
    is_refused(&plane, "gate", &good, "is for default/battle").await;
    for (claims, why) in [
        (but("exp", now() - 60), "expired"),
        (
            but("aud", json!(["https://kubernetes.default.svc"])),
            "another audience",
        ),
        (but("iss", "https://elsewhere"), "another issuer"),
        (but("nbf", now() + 600), "not valid yet"),
    ] {
        is_refused(&plane, "battle", &cluster.sign("one", &claims)?, why).await;
    }
    // Another key under the name of one that is known; the claims of one and the signature of another; no signature.
    fs::copy(folder.path().join("one.key"), folder.path().join("kept"))?;
    fs::copy(
        folder.path().join("stranger.key"),
        folder.path().join("one.key"),
    )?;
    let forged = cluster.token("one", "battle")?;
    fs::copy(folder.path().join("kept"), folder.path().join("one.key"))?;
    is_refused(&plane, "battle", &forged, "signature is wrong").await;
    let other = cluster.token("one", "gate")?;
    let part = |token: &str, at: usize| token.split('.').nth(at).unwrap_or_default().to_owned();
    let mixed = format!("{}.{}.{}", part(&good, 0), part(&other, 1), part(&good, 2));
    is_refused(&plane, "gate", &mixed, "signature is wrong").await;
    let none = b64(json!({"alg": "none", "kid": "one"}).to_string());
    let unsigned = format!("{none}.{}.", part(&good, 1));
    is_refused(&plane, "battle", &unsigned, "token").await;
    is_refused(&plane, "battle", "phxj1.a.b", "no service-account token").await;

    // Keys are changed: the next is found by the first token that names it.
    let next = cluster.token("two", "battle")?;
    is_refused(&plane, "battle", &next, "not in the JWKS").await;
    cluster.publish(&["one", "two"])?;
    eventually("the next key", LIMIT, async || {
        joins(&plane, "battle", &next).await.ok()
    })
    .await?;
    joins(&plane, "battle", &good)
        .await
        .map_err(anyhow::Error::msg)?;
    // And the one before goes, when the keys are read again.
    cluster.publish(&["two"])?;
    let unknown = cluster.token("stranger", "battle")?;
    eventually("the key before to be gone", LIMIT, async || {
        let _ = joins(&plane, "battle", &unknown).await;
        let said = joins(&plane, "battle", &good).await.err()?;
        said.contains("not in the JWKS").then_some(())
    })
    .await?;
    let list = plane.does(&["cert", "list", "--service", "battle"])?;
    assert!(list.contains("service account default/battle"), "{list}");
    Ok(())
}

/// Serves what lies in its folder to whoever shows a token.
const SERVER: &str = r#"
import http.server, ssl, sys
class Keys(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.headers.get("authorization") != "Bearer " + sys.argv[2]:
            self.send_error(401)
        elif self.path != "/openid/v1/jwks":
            self.send_error(404)
        else:
            body = open("jwks.json", "rb").read()
            self.send_response(200)
            self.send_header("content-type", "application/jwk-set+json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
server = http.server.ThreadingHTTPServer((sys.argv[1], 443 + 8000), Keys)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("server.pem", "server.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

/// With a certificate for its address under a root of its own, `ca.pem`.
async fn serve(cluster: &Cluster<'_>, at: SocketAddr) -> anyhow::Result<Process> {
    let key = "-newkey rsa:2048 -nodes";
    cluster.openssl(&format!(
        "req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=cluster -addext basicConstraints=critical,CA:TRUE"
    ))?;
    cluster.openssl(&format!(
        "req {key} -keyout server.key -out server.csr -subj /CN=server"
    ))?;
    let names = format!("subjectAltName=IP:{}", at.ip());
    fs::write(cluster.folder.join("names"), names)?;
    cluster.openssl("x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out server.pem -extfile names")?;
    fs::write(cluster.folder.join("server.py"), SERVER)?;
    let mut command = Command::new("python3");
    command
        .args(["server.py", &at.ip().to_string(), POD])
        .current_dir(cluster.folder);
    let server = Process::spawn(command, &cluster.folder.join("server.log"))?;
    eventually("the server of the keys", LIMIT, async || {
        tokio::net::TcpStream::connect(at).await.ok()
    })
    .await
    .with_context(|| server.log())?;
    Ok(server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_come_over_https_from_a_server_that_is_checked_and_asks_for_a_token()
-> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let cluster = Cluster {
        folder: folder.path(),
    };
    for id in ["one", "two"] {
        cluster.make_key(id)?;
    }
    cluster.publish(&["one"])?;
    let at = SocketAddr::new(address::fresh(), 8443);
    let mut server = serve(&cluster, at).await?;
    let url = format!("https://{at}/openid/v1/jwks");
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("pod"), POD)?;
    fs::write(path("wrong"), "another")?;
    let (ca, pod, wrong) = (path("ca.pem"), path("pod"), path("wrong"));
    let from = ["--jwks", &url, "--jwt-issuer", ISSUER];
    let roots = ["--jwks-roots", &ca, "--jwks-token-file"];
    let plane = Guarded::start_with(&[&from[..], &roots, &[&pod]].concat()).await?;
    let good = cluster.token("one", "battle")?;
    fs::write(path("token"), &good)?;

    // A sidecar, as in a pod.
    let ip = address::fresh();
    let admin = SocketAddr::new(ip, 15000);
    let mut command = Command::new(executable("phalanx")?);
    command
        .args(["proxy", "--service", "battle", "--workers", "1"])
        .args(["--control", &plane.xds.to_string()])
        .args(["--app", "127.0.0.1:9", "--inbound", &format!("{ip}:15006")])
        .args(["--outbound", &format!("{ip}:15001")])
        .args(["--admin", &admin.to_string()])
        .args(["--service-account-token-file", &path("token")])
        .args(["--identity-dir", &path("battle.d"), "--roots"])
        .arg(plane.data().join("admin/roots.pem"));
    let sidecar = Process::spawn(command, &folder.path().join("sidecar.log"))?;
    let certs = eventually("the sidecar's certificate", LIMIT, async || {
        let answer = http::call(admin, &Call::get("localhost", "/certs")).await;
        let certs = answer.ok()?.json();
        certs["id"].is_string().then_some(certs)
    });
    let certs = certs.await.with_context(|| sidecar.log())?;
    assert_eq!(certs["id"], "spiffe://phalanx.local/ns/default/sa/battle");

    // Its keys change while it is away for a while.
    server.kill();
    joins(&plane, "battle", &good)
        .await
        .map_err(anyhow::Error::msg)?;
    cluster.publish(&["one", "two"])?;
    let next = cluster.token("two", "battle")?;
    assert!(joins(&plane, "battle", &next).await.is_err());
    let _server = serve_again(&cluster, at).await?;
    eventually("the next key", LIMIT, async || {
        joins(&plane, "battle", &next).await.ok()
    })
    .await
    .with_context(|| plane.process.log())?;

    // One that isn't let in, and one that trusts somebody else: nobody joins, and it is said why.
    let kept = plane.data().join("admin/roots.pem").display().to_string();
    for (more, why) in [
        ([&roots[..], &[&wrong]].concat(), "401"),
        (
            vec!["--jwks-roots", &kept, "--jwks-token-file", &pod],
            "cannot connect",
        ),
    ] {
        let plane = Guarded::start_with(&[&from[..], &more].concat()).await?;
        assert!(joins(&plane, "battle", &good).await.is_err());
        eventually("the reason to be told", LIMIT, async || {
            plane.process.log().contains(why).then_some(())
        })
        .await
        .with_context(|| plane.process.log())?;
    }
    Ok(())
}

async fn serve_again(cluster: &Cluster<'_>, at: SocketAddr) -> anyhow::Result<Process> {
    let mut command = Command::new("python3");
    command
        .args(["server.py", &at.ip().to_string(), POD])
        .current_dir(cluster.folder);
    let server = Process::spawn(command, &cluster.folder.join("again.log"))?;
    eventually("the server of the keys", LIMIT, async || {
        tokio::net::TcpStream::connect(at).await.ok()
    })
    .await
    .with_context(|| server.log())?;
    Ok(server)
}

#[test]
fn what_can_not_work_is_refused_at_the_start() -> anyhow::Result<()> {
    let url = "https://127.0.0.1:1/openid/v1/jwks";
    for (words, why) in [
        (&["--jwks", url, "--jwt-issuer", ISSUER][..], "--jwks-roots"),
        (&["--jwks", "keys.json"], "--jwt-issuer"),
        (
            &[
                "--jwks",
                "keys.json",
                "--jwt-issuer",
                ISSUER,
                "--jwks-roots",
                "x",
            ],
            "is a file",
        ),
    ] {
        let mut command = Command::new(executable("phalanx")?);
        let done = command.arg("control").args(words).output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    }
    Ok(())
}
