//! A property over generated meshes: whatever snapshot comes of documents and instances that the door lets in, a real
//! Envoy takes (`envoy --mode validate`). So it does with the tables, clusters and server listeners of proxyless gRPC.

use std::path::{Path, PathBuf};
use std::process::Command;

use phalanx_model::resource::{
    Access, AccessPolicy, AccessRule, Caller, Effect, ServerListener, VirtualHost,
};
use phalanx_xds::encode::{self, grpc};
use phalanx_xds::separate::{self, Source};
use phalanx_xds::{Encoded, Kind};

use super::*;
use crate::snapshot::{AtGateway, Compiler, Edge};

/// Meshes that one Envoy is asked about; each has a namespace of its own.
const BATCH: u64 = 20;

#[test]
fn envoy_takes_whatever_a_mesh_compiles_to() {
    let rounds = std::env::var("PHALANX_SOAK")
        .ok()
        .and_then(|n| n.parse().ok());
    let batches = rounds.map_or(1, |rounds: u64| rounds.div_ceil(BATCH).max(1));
    for batch in 0..batches {
        let mut bootstrap = Bootstrap::default();
        let folder = tempfile::tempdir().unwrap();
        for name in CERTIFICATES {
            let described = folder.path().join(format!("{name}.yaml"));
            std::fs::write(described, "resources: []\n").unwrap();
        }
        for seed in batch * BATCH..(batch + 1) * BATCH {
            generated(seed, &mut bootstrap);
            at_edge(seed, folder.path(), &mut bootstrap);
        }
        // A mesh has five services with two ports each.
        let enough = BATCH as usize * 10;
        assert!(bootstrap.clusters.len() >= enough && bootstrap.listeners.len() > BATCH as usize);
        assert_eq!(bootstrap.refusal(), None, "seeds from {}", batch * BATCH);
    }
}

/// So silence above means consent.
#[test]
fn envoy_refuses_a_table_that_is_wrong() {
    let mut bootstrap = Bootstrap::default();
    let host = |name: &str| VirtualHost {
        name: name.into(),
        domains: vec!["twice".into()],
        rules: Vec::new(),
    };
    let table = RouteTable {
        name: "wrong".into(),
        hosts: vec![host("a"), host("b")],
    };
    bootstrap.table(&encode::routes(&table));
    let said = bootstrap.refusal().unwrap_or_default();
    assert!(said.contains("twice"), "{said}");
}

fn generated(seed: u64, bootstrap: &mut Bootstrap) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let namespace = format!("m{seed}");
    let mut fixture = Fixture::yaml(&documents(&mut dice, &namespace));
    for n in 0..dice.below(12) {
        let service = format!("s{}", dice.below(SERVICES));
        let address = format!("127.0.{}.{}:15006", dice.below(250), n + 1);
        let mut instance = instance(&service, &format!("i{n}"), &address, &[("", 9000)]);
        instance.id.service.namespace = namespace.clone();
        instance
            .labels
            .insert("namespace".into(), namespace.clone());
        instance.zone = format!("z{}", dice.below(3));
        instance.weight = dice.below(130) as u32;
        instance.mutual_tls = dice.chance(60);
        if dice.chance(40) {
            instance.labels.insert("version".into(), "v2".into());
        }
        fixture = fixture.with(instance);
    }
    let published = Compiler::default().compile(Arc::new(fixture.world()));
    let mut node = super::node();
    node.service = ServiceName::new(namespace, "s0");
    node.agent = "envoy".into();
    node.tls.has_identity = dice.chance(70);
    node.tls.inbound = Some(([127, 0, 0, 1], 0).into());
    node.tls.app = Some(([127, 0, 0, 1], 9000).into());
    let listeners = Published::listeners(&node);
    let snapshot = published.snapshot(&node, &listeners, None);
    let snapshot = Own::default().add(&snapshot, &published, &node, None);
    // Every mesh has the same listener; one Envoy takes each name once.
    snapshot
        .iter(Kind::Cluster)
        .for_each(|c| bootstrap.cluster(c));
    snapshot
        .iter(Kind::Endpoints)
        .for_each(|e| bootstrap.endpoints(e));
    snapshot.iter(Kind::Routes).for_each(|t| bootstrap.table(t));
    for listener in snapshot.iter(Kind::Listener) {
        let is_own = listener.name == encode::INBOUND;
        if is_own || seed.is_multiple_of(BATCH) {
            // Of a field that stands twice the last counts.
            let named = field(1, format!("{} {seed}", listener.name).as_bytes());
            bootstrap.listener(&[listener.body.to_vec(), named].concat());
        }
    }
    let table = published
        .mesh
        .rules
        .table(&node.service.namespace, &published.mesh.catalog);
    bootstrap.table(&grpc::routes(&table));
    for assignment in published.mesh.assignments.values() {
        bootstrap.endpoints(&grpc::endpoints(assignment));
    }
    bootstrap.listener(&server(&mut dice, seed).body);
}

/// A Gateway over a mesh as above, which a data plane of its own runs.
fn at_edge(seed: u64, folder: &Path, bootstrap: &mut Bootstrap) {
    let mut dice = Dice(seed.wrapping_mul(0x517c_c1b7_2722_0a95) | 1);
    let namespace = format!("e{seed}");
    let text = documents(&mut dice, &namespace) + &gateway_documents(&mut dice, &namespace);
    let published = Compiler::default().compile(Arc::new(Fixture::yaml(&text).world()));
    let mut node = super::node();
    node.service = ServiceName::new(namespace, "edge");
    node.agent = "envoy".into();
    node.tls.has_identity = dice.chance(50);
    node.edge = Some(Edge {
        bind: Some([127, 1, (seed % BATCH) as u8, 1].into()),
        certificates_in: folder.display().to_string(),
        ..Edge::default()
    });
    let snapshot = AtGateway::default().snapshot(&published, &node);
    assert!(snapshot.len(Kind::Listener) > 1, "seed {seed}");
    let listeners = snapshot.iter(Kind::Listener);
    listeners.for_each(|l| bootstrap.listener(&l.body));
    snapshot.iter(Kind::Routes).for_each(|t| bootstrap.table(t));
    snapshot
        .iter(Kind::Cluster)
        .for_each(|c| bootstrap.cluster(c));
}

const CERTIFICATES: [&str; 2] = ["web", "other"];

/// A Gateway and what is attached to it; among the backends are some that are not there or speak something else.
fn gateway_documents(dice: &mut Dice, namespace: &str) -> String {
    let mut text = format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: edge, namespace: {namespace}}}\nspec:\n  gatewayClassName: phalanx\n  listeners:\n  - {{name: web, port: 8080, protocol: HTTP}}\n  - {{name: own, port: 8080, protocol: HTTP, hostname: own.test}}\n"
    );
    let refs = dice.of(&["[{name: web}]", "[{name: web}, {name: other}]"]);
    let hostname = dice.of(&[
        "",
        "hostname: '*.secure.test', ",
        "hostname: a.secure.test, ",
    ]);
    for listener in [
        format!("{{name: secure, port: 8443, protocol: HTTPS, {hostname}tls: {{certificateRefs: {refs}}}}}"),
        "{name: through, port: 8443, protocol: TLS, hostname: '*.pass.test', tls: {mode: Passthrough}}".into(),
        "{name: raw, port: 9000, protocol: TCP}".into(),
    ] {
        if dice.chance(80) {
            let _ = writeln!(text, "  - {listener}");
        }
    }
    for route in 0..=dice.below(3) {
        let rules: String = (0..=dice.below(3)).map(|_| rule_text(dice)).collect();
        let hostnames = dice.of(&[
            "",
            "  hostnames: [a.secure.test]\n",
            "  hostnames: ['*.test', own.test]\n",
        ]);
        let _ = writeln!(
            text,
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: g{route}, namespace: {namespace}}}\nspec:\n  parentRefs: [{{name: edge}}]\n{hostnames}  rules:\n{rules}"
        );
    }
    for (kind, version, section, names) in [
        ("TLSRoute", "v1", "through", "  hostnames: [a.pass.test]\n"),
        ("TLSRoute", "v1", "through", ""),
        ("TCPRoute", "v1alpha2", "raw", ""),
    ] {
        let backend = |dice: &mut Dice| {
            let (service, weight) = (dice.below(SERVICES + 1), dice.of(&["0", "1", "1000000"]));
            format!("{{name: s{service}, port: 9000, weight: {weight}}}")
        };
        let backends: Vec<_> = (0..dice.below(4)).map(|_| backend(dice)).collect();
        let name = text.len(); // none is like another
        let _ = writeln!(
            text,
            "---\napiVersion: gateway.networking.k8s.io/{version}\nkind: {kind}\nmetadata: {{name: r{name}, namespace: {namespace}}}\nspec:\n  parentRefs: [{{name: edge, sectionName: {section}}}]\n{names}  rules: [{{backendRefs: [{}]}}]",
            backends.join(", ")
        );
    }
    text
}

const SERVICES: u64 = 5;

/// Services, routes, policies and slices, with every field that the door knows.
fn documents(dice: &mut Dice, namespace: &str) -> String {
    let mut text = String::new();
    for n in 0..SERVICES {
        let protocol = dice.of(&["http", "grpc", "kubernetes.io/h2c", "tcp", "http", "grpc"]);
        let _ = writeln!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}, namespace: {namespace}}}\nspec:\n  selector: {{app: s{n}}}\n  ports: [{{name: a, port: 80, appProtocol: {protocol}}}, {{name: b, port: 9000, targetPort: 9000}}]"
        );
        if dice.chance(60) {
            let balancer = dice.of(&["P2C", "LeastRequest", "RoundRobin", "Random"]);
            let (limit, percent) = (dice.below(2000) + 1, dice.below(101));
            let _ = writeln!(
                text,
                "---\napiVersion: phalanx.dev/v1alpha1\nkind: BackendPolicy\nmetadata: {{name: p{n}, namespace: {namespace}}}\nspec:\n  targetRefs: [{{kind: Service, name: s{n}}}]\n  loadBalancer: {{type: {balancer}}}\n  connectionPool: {{maxRequestsPerConnection: {}, connectTimeout: {limit}ms, idleTimeout: {limit}s}}\n  circuitBreaker: {{maxConnections: {limit}, maxPendingRequests: {percent}, maxRequests: {limit}, maxRetries: {percent}}}\n  outlierDetection: {{consecutive5xxErrors: {percent}, consecutiveGatewayErrors: {percent}, interval: {limit}ms, baseEjectionTime: {limit}ms, maxEjectionPercent: {percent}}}\n  retryBudget: {{percent: {percent}, minRetryConcurrency: {percent}}}",
                dice.below(3)
            );
        }
        for route in 0..dice.below(3) {
            let rules: String = (0..=dice.below(3)).map(|_| rule_text(dice)).collect();
            let _ = writeln!(
                text,
                "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r{n}-{route}, namespace: {namespace}}}\nspec:\n  parentRefs: [{{kind: Service, name: s{n}}}]\n  rules:\n{rules}"
            );
        }
        if dice.chance(50) {
            let action = dice.of(&["Allow", "Deny"]);
            let _ = writeln!(
                text,
                "---\napiVersion: phalanx.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: a{n}, namespace: {namespace}}}\nspec:\n  targetRefs: [{{kind: Service, name: s{n}}}]\n  action: {action}\n  rules: [{{from: [{{services: [s1, x/s2]}}, {{anyone: true}}], methods: [GET], paths: [{{type: PathPrefix, value: /a}}, {{type: RegularExpression, value: '/b.*'}}], headers: [{{name: x-a, value: '1'}}]}}, {{from: [{{namespaces: [arena]}}]}}]"
            );
        }
        if dice.chance(50) {
            let mode = dice.of(&["Strict", "Permissive", "\"Off\""]);
            let _ = writeln!(
                text,
                "---\napiVersion: phalanx.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: m{n}, namespace: {namespace}}}\nspec:\n  targetRefs: [{{kind: Service, name: s{n}}}]\n  mtls: {{mode: {mode}}}"
            );
        }
        if dice.chance(30) {
            let _ = writeln!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: e{n}, namespace: {namespace}, labels: {{kubernetes.io/service-name: s{n}}}}}\naddressType: IPv4\nports: [{{name: a, port: 8080}}]\nendpoints: [{{addresses: [10.0.0.{n}], conditions: {{ready: {}}}}}]",
                dice.chance(70)
            );
        }
    }
    if dice.chance(60) {
        let fallback = dice.of(&[
            "",
            ", fallback: Baseline",
            ", fallback: Refuse, services: [s1]",
        ]);
        let _ = writeln!(
            text,
            "---\napiVersion: phalanx.dev/v1alpha1\nkind: ColourPolicy\nmetadata: {{name: c, namespace: {namespace}}}\nspec:\n  env: {{header: {{trusted: true, allow: [dev-*]}}, networks: [{{cidr: 10.10.0.0/16, value: staging}}, {{cidr: 'fd00::/8', value: lab}}], default: prod}}\n  canaryId: {{header: x-user, generate: true}}\n  lanes: [{{colour: dev-li, selector: {{version: v2}}{fallback}}}, {{colour: dev-wu, selector: {{app: s2}}}}]"
        );
    }
    text
}

fn rule_text(dice: &mut Dice) -> String {
    let path = dice.of(&[
        "{type: Exact, value: /a}",
        "{type: PathPrefix, value: /a/b}",
        "{type: PathPrefix, value: /}",
        "{type: RegularExpression, value: '/v[0-9]+/(a|b).*'}",
        "{type: PathPrefix, value: /arena.v1.Battle/}",
        "{type: Exact, value: '/a+b$(c)'}",
    ]);
    let mut conditions = vec![format!("path: {path}")];
    if dice.chance(40) {
        conditions.push(format!("method: {}", dice.of(&["GET", "POST", "PATCH"])));
    }
    if dice.chance(40) {
        conditions.push("headers: [{name: X-Env, value: '100%'}, {name: x-b, type: RegularExpression, value: 'b-[0-9]{1,3}'}]".into());
    }
    if dice.chance(30) {
        conditions.push("queryParams: [{name: 'a b', value: 'c&d'}]".into());
    }
    let mut rule = format!("  - matches: [{{{}}}]\n", conditions.join(", "));
    let is_prefix = path.contains("PathPrefix");
    let replaced = match (is_prefix, dice.of(&["/", "/x", "/x/"])) {
        (true, to) => format!("{{type: ReplacePrefixMatch, replacePrefixMatch: {to}}}"),
        (false, to) => format!("{{type: ReplaceFullPath, replaceFullPath: {to}}}"),
    };
    if dice.chance(15) {
        let code = dice.of(&["301", "302"]);
        let _ = writeln!(
            rule,
            "    filters: [{{type: RequestRedirect, requestRedirect: {{scheme: https, hostname: x.test, port: 8443, path: {replaced}, statusCode: {code}}}}}]"
        );
        return rule;
    }
    let mut filters = Vec::new();
    if dice.chance(30) {
        filters.push("{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: '5% off \\ %'}], add: [{name: x-b, value: b}], remove: [x-c]}}".to_owned());
    }
    if dice.chance(30) {
        filters.push("{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-d, value: '%START_TIME%'}]}}".to_owned());
    }
    if dice.chance(30) {
        filters.push(format!(
            "{{type: URLRewrite, urlRewrite: {{hostname: y.test, path: {replaced}}}}}"
        ));
    }
    if dice.chance(30) {
        let share = dice.of(&[
            "",
            ", percent: 42",
            ", fraction: {numerator: 1, denominator: 3}",
        ]);
        let service = dice.below(SERVICES + 1);
        filters.push(format!(
            "{{type: RequestMirror, requestMirror: {{backendRef: {{name: s{service}, port: 80}}{share}}}}}"
        ));
    }
    if dice.chance(30) {
        let origins = dice.of(&["'*'", "'https://a.test', 'https://*.b.test:8443'"]);
        let exposed = dice.of(&["", "allowCredentials: true, exposeHeaders: [x-c], "]);
        filters.push(format!(
            "{{type: CORS, cors: {{allowOrigins: [{origins}], {exposed}allowMethods: [GET, POST], allowHeaders: [x-a], maxAge: 9}}}}"
        ));
    }
    if !filters.is_empty() {
        let _ = writeln!(rule, "    filters: [{}]", filters.join(", "));
    }
    if dice.chance(30) {
        let session = dice.of(&[
            "{}",
            "{sessionName: Room, absoluteTimeout: 1h, idleTimeout: 90s, cookieConfig: {lifetimeType: Permanent}}",
            "{type: Header, sessionName: X-Room, absoluteTimeout: 1h}",
        ]);
        let _ = writeln!(rule, "    sessionPersistence: {session}");
    }
    if dice.chance(30) {
        rule.push_str("    timeouts: {request: 2s, backendRequest: 500ms}\n");
    }
    if dice.chance(30) {
        let attempts = dice.below(5);
        let _ = writeln!(
            rule,
            "    retry: {{attempts: {attempts}, codes: [500, 503], backoff: 5ms}}"
        );
    }
    let backend = |dice: &mut Dice| {
        let (name, port) = (dice.below(SERVICES + 1), dice.of(&["80", "9000", "1"]));
        format!(
            "{{name: s{name}, port: {port}, weight: {}}}",
            dice.of(&["0", "1", "1000000"])
        )
    };
    let backends: Vec<_> = (0..dice.below(4)).map(|_| backend(dice)).collect();
    let _ = writeln!(rule, "    backendRefs: [{}]", backends.join(", "));
    rule
}

fn server(dice: &mut Dice, seed: u64) -> Encoded {
    let policy = |n: u64, dice: &mut Dice| AccessPolicy {
        name: format!("AuthorizationPolicy/default/p{n}"),
        effect: if dice.chance(50) {
            Effect::Allow
        } else {
            Effect::Deny
        },
        rules: (0..dice.below(3))
            .map(|_| AccessRule {
                methods: vec!["POST".into()],
                paths: vec![
                    PathMatch::Prefix("/a".into()),
                    PathMatch::Regex("/b.*".into()),
                ],
                headers: Vec::new(),
                callers: vec![Caller::Anyone, Caller::Namespace("arena".into())],
            })
            .collect(),
    };
    grpc::server_listener(&ServerListener {
        name: format!("server-{seed}"),
        address: ([127, 0, 0, 1], 0).into(),
        tls: None,
        trust_domain: Default::default(),
        access: Access {
            policies: (0..dice.below(4)).map(|n| policy(n, dice)).collect(),
        },
    })
}

/// The same numbers for the same seed (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// An `envoy.config.bootstrap.v3.Bootstrap`, written field by field around resources that are bytes already.
#[derive(Default)]
struct Bootstrap {
    listeners: Vec<Vec<u8>>,
    clusters: Vec<Vec<u8>>,
}

impl Bootstrap {
    fn listener(&mut self, body: &[u8]) {
        self.listeners.push(body.to_vec());
    }

    /// Envoy dies of a static cluster whose secrets come over ADS, which it sets up only afterwards.
    fn cluster(&mut self, cluster: &Encoded) {
        let source = Source {
            cluster: "control".into(),
            is_delta: true,
        };
        let rewritten = separate::rewrite(cluster, &source);
        let body = rewritten.as_ref().unwrap_or(cluster).body.to_vec();
        let unique = match cluster.name == encode::INBOUND {
            true => field(1, format!("inbound {}", self.clusters.len()).as_bytes()),
            false => Vec::new(),
        };
        self.clusters.push([body, unique].concat());
    }

    /// In a cluster of its own: beside EDS they can't be static.
    fn endpoints(&mut self, set: &Encoded) {
        let name = format!("static {}", self.clusters.len());
        self.clusters
            .push([field(1, name.as_bytes()), field(33, &set.body)].concat());
    }

    /// Inline in a listener of its own; static tables are checked against static clusters, unless told not to (field 7).
    fn table(&mut self, table: &Encoded) {
        let name = format!("inline {}", self.listeners.len());
        let unchecked = [table.body.to_vec(), field(7, &[8, 0])].concat();
        let router = any("envoy.extensions.filters.http.router.v3.Router", &[]);
        let router = [field(1, b"envoy.filters.http.router"), field(4, &router)].concat();
        let manager = [
            field(2, name.as_bytes()),
            field(4, &unchecked),
            field(5, &router),
        ]
        .concat();
        let url =
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let filter = [
            field(1, b"envoy.filters.network.http_connection_manager"),
            field(4, &any(url, &manager)),
        ];
        let socket = [field(2, b"127.0.0.1"), vec![0x18, 0]].concat();
        let chain = field(3, &filter.concat());
        let parts = [
            field(1, name.as_bytes()),
            field(2, &field(1, &socket)),
            field(3, &chain),
        ];
        self.listeners.push(parts.concat());
    }

    /// What Envoy says against it.
    fn refusal(&self) -> Option<String> {
        let control = field(1, b"control");
        let listeners = self.listeners.iter().map(|l| field(1, l));
        let clusters = [control]
            .iter()
            .chain(&self.clusters)
            .map(|c| field(2, c))
            .collect::<Vec<_>>();
        let resources: Vec<u8> = listeners.chain(clusters).flatten().collect();
        let node = [field(1, b"default/test/1"), field(2, b"test")].concat();
        // ads_config: DELTA_GRPC, v3, over cluster `control`.
        let service = field(1, &field(1, b"control"));
        let ads = [vec![0x08, 3], field(4, &service), vec![0x40, 2]].concat();
        let bytes = [
            field(1, &node),
            field(2, &resources),
            field(3, &field(3, &ads)),
        ]
        .concat();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bootstrap.pb");
        std::fs::write(&path, bytes).unwrap();
        let output = Command::new(envoy())
            .args([
                "--mode",
                "validate",
                "--reject-unknown-dynamic-fields",
                "-l",
                "warn",
                "-c",
            ])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let taken =
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("OK");
        (!taken || said.contains("eprecated")).then_some(said)
    }
}

/// Length-delimited.
fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = varint(u64::from(number) << 3 | 2);
    out.extend(varint(bytes.len() as u64));
    out.extend_from_slice(bytes);
    out
}

fn any(name: &str, value: &[u8]) -> Vec<u8> {
    let url = format!("type.googleapis.com/{name}");
    [field(1, url.as_bytes()), field(2, value)].concat()
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
    out
}

/// A missing Envoy fails the run: a check that nobody made is none.
fn envoy() -> PathBuf {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/venv/bin/envoy");
    let path = std::env::var_os("PHALANX_ENVOY").map_or(installed, PathBuf::from);
    assert!(
        path.is_file(),
        "no Envoy at {}; run `cargo xtask setup`",
        path.display()
    );
    path
}
