//! A node that refuses tables holding certain documents, and what it ends up with.

use super::*;
use crate::snapshot::Compiler;
use crate::world::fixture::Fixture;

struct Peer {
    isolation: Isolation,
    compiler: Compiler,
    node: Node,
    /// Names of documents it can't take.
    hates: Vec<&'static str>,
    names: bool,
    holds: Vec<String>,
    answers: usize,
}

impl Peer {
    fn new(hates: &[&'static str]) -> Self {
        let service = phalanx_model::ServiceName::new("default", "match");
        let node = Node {
            id: "n".into(),
            service,
            version: String::new(),
            zone: String::new(),
            instance: String::new(),
            outbound: None,
            agent: "envoy".into(),
            tls: Default::default(),
            edge: None,
            udp: Vec::new(),
        };
        Self {
            isolation: Isolation::default(),
            compiler: Compiler::default(),
            node,
            hates: hates.to_vec(),
            names: false,
            holds: Vec::new(),
            answers: 0,
        }
    }

    /// Offers a world until the node has nothing more to answer.
    fn offer(&mut self, fixture: &Fixture) {
        let published = self.compiler.compile(Arc::new(fixture.world()));
        let listeners = Published::listeners(&self.node);
        loop {
            let snapshot = self.isolation.snapshot(&published, &self.node, &listeners);
            self.answers += 1;
            assert!(self.answers < 50, "no end");
            let nonce = self.answers.to_string();
            self.isolation.sent(&nonce);
            let table = snapshot.get(Kind::Routes, OUTBOUND).unwrap();
            let table = phalanx_xds::decode::routes(OUTBOUND, &table.body).unwrap();
            let mut held: Vec<String> = table
                .hosts
                .iter()
                .flat_map(|h| &h.rules)
                .map(|r| r.name.clone())
                .filter(|name| name.contains("Route/"))
                .collect();
            held.sort();
            held.dedup();
            let bad = self
                .hates
                .iter()
                .find(|hated| held.iter().any(|name| name.contains(&format!("/{hated}/"))));
            let error = bad.map(|bad| {
                if self.names {
                    format!("rule HTTPRoute/default/{bad}/0 is bad")
                } else {
                    "bad".to_owned()
                }
            });
            if error.is_none() {
                self.holds = held;
            }
            if !self
                .isolation
                .answered(&nonce, error.as_deref(), &published)
            {
                return;
            }
        }
    }

    fn refused(&self, fixture: &Fixture) -> Vec<String> {
        let published = Compiler::default().compile(Arc::new(fixture.world()));
        self.isolation
            .refused(&Progress::default(), &published)
            .into_iter()
            .map(|r| r.rule)
            .collect()
    }
}

fn base() -> Fixture {
    Fixture::yaml(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  selector: {app: web}\n  ports: [{port: 80}]\n",
    )
}

fn routes_of(names: &[&str]) -> String {
    let route = |name: &&str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  parentRefs: [{{kind: Service, name: web}}]\n  rules: [{{matches: [{{path: {{value: /{name}}}}}], backendRefs: [{{name: web, port: 80}}]}}]\n---\n"
        )
    };
    names.iter().map(route).collect()
}

fn id(name: &str) -> String {
    format!("HTTPRoute/default/{name}")
}

fn rules(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| format!("{}/0", id(name))).collect()
}

#[test]
fn the_guilty_of_one_apply_are_found_and_the_others_are_in_force() {
    let first = base().and_yaml(&routes_of(&["a"]));
    let second = first
        .clone()
        .and_yaml(&routes_of(&["b", "bad", "c", "worse"]));
    let mut peer = Peer::new(&["bad", "worse"]);
    peer.offer(&first);
    assert_eq!(peer.holds, rules(&["a"]));
    peer.offer(&second);
    assert_eq!(peer.holds, rules(&["a", "b", "c"]));
    assert_eq!(peer.refused(&second), [id("bad"), id("worse")]);
}

#[test]
fn a_node_that_starts_with_a_bad_document_gets_the_rest() {
    let fixture = base()
        .and_yaml(&routes_of(&["a", "b"]))
        .and_yaml(&routes_of(&["bad"]))
        .and_yaml(&routes_of(&["c"]));
    let mut peer = Peer::new(&["bad"]);
    peer.offer(&fixture);
    assert_eq!(peer.holds, rules(&["a", "b", "c"]));
    assert_eq!(peer.refused(&fixture), [id("bad")]);
}

#[test]
fn whoever_is_named_is_blamed_alone() {
    let fixture = base().and_yaml(&routes_of(&["a", "bad", "c"]));
    let mut peer = Peer {
        names: true,
        ..Peer::new(&["bad"])
    };
    peer.offer(&fixture);
    assert_eq!(
        (peer.holds.clone(), peer.refused(&fixture)),
        (rules(&["a", "c"]), vec![id("bad")])
    );
    assert!(peer.answers <= 3, "{} answers", peer.answers);
}

#[test]
fn a_bad_change_keeps_the_version_before() {
    let mut fixture = base().and_yaml(&routes_of(&["a"]));
    let mut peer = Peer::new(&[]);
    peer.offer(&fixture);
    // The same document once more: another revision of it.
    fixture = fixture.and_yaml(&routes_of(&["a"]).replace("value: /a", "value: /changed"));
    peer.hates = vec!["a"];
    let published = peer.compiler.compile(Arc::new(fixture.world()));
    let listeners = Published::listeners(&peer.node);
    peer.isolation.snapshot(&published, &peer.node, &listeners);
    peer.isolation.sent("x");
    assert!(peer.isolation.answered("x", Some("bad"), &published));
    let table = peer.isolation.snapshot(&published, &peer.node, &listeners);
    let table =
        phalanx_xds::decode::routes(OUTBOUND, &table.get(Kind::Routes, OUTBOUND).unwrap().body)
            .unwrap();
    assert_eq!(
        table.hosts[0].rules[0].matches.path,
        phalanx_model::resource::PathMatch::Prefix("/a".into())
    );
}

#[test]
fn a_corrected_document_is_offered_again() {
    let fixture = base().and_yaml(&routes_of(&["a", "bad"]));
    let mut peer = Peer::new(&["bad"]);
    peer.offer(&fixture);
    peer.hates.clear();
    let corrected = fixture.and_yaml(&routes_of(&["bad"]));
    peer.offer(&corrected);
    assert_eq!(
        (peer.holds.clone(), peer.refused(&corrected).len()),
        (rules(&["a", "bad"]), 0)
    );
}

#[test]
fn a_refusal_without_routes_to_blame_changes_nothing() {
    let fixture = base();
    let published = Compiler::default().compile(Arc::new(fixture.world()));
    let mut peer = Peer::new(&[]);
    peer.isolation
        .snapshot(&published, &peer.node, &Published::listeners(&peer.node));
    peer.isolation.sent("1");
    assert!(
        !peer.isolation.answered("0", Some("stale"), &published)
            && !peer.isolation.answered("1", Some("no"), &published)
    );
}
