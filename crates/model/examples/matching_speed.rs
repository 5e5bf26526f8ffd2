//! How long matching and reading take: `cargo run --release -p phalanx-model --example matching_speed`.

use std::borrow::Cow;
use std::hint::black_box;
use std::time::Instant;

use phalanx_model::manifest::parse;
use phalanx_model::matching::canonical::{canonical_authority, canonical_path};
use phalanx_model::matching::{CompiledTable, Request};
use phalanx_model::reason::Reason;
use phalanx_model::resource::{
    Action, HeaderEdit, HeaderMatch, PathMatch, RouteTable, Rule, RuleMatch, ValueMatch,
    VirtualHost,
};

struct Ask<'a> {
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

impl Request for Ask<'_> {
    fn method(&self) -> &str {
        "GET"
    }
    fn path(&self) -> &str {
        self.path
    }
    fn query(&self) -> Option<&str> {
        Some("page=1&sort=up")
    }
    fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.headers
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| Cow::Borrowed(value.as_bytes()))
    }
    fn is_grpc(&self) -> bool {
        false
    }
}

fn main() {
    let header = HeaderMatch {
        name: "x-canary-id".into(),
        value: ValueMatch::Exact("7".into()),
    };
    let with = |path| RuleMatch {
        path,
        ..RuleMatch::default()
    };
    let mut matches: Vec<RuleMatch> = (0..8)
        .map(|i| with(PathMatch::Exact(format!("/battle.v1.Battle/Method{i}"))))
        .collect();
    matches.push(RuleMatch {
        headers: vec![header],
        ..with(PathMatch::Prefix("/api".into()))
    });
    matches.push(with(PathMatch::Regex("/api/v[0-9]+/board/.*".into())));
    matches.push(with(PathMatch::Prefix("/api".into())));
    let rule = |matches| Rule {
        name: "r".into(),
        matches,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        action: Action::Respond(Reason::Fault),
    };
    let rules: Vec<Rule> = matches.into_iter().map(rule).collect();
    let domains = |i| {
        ["", ".default", ".default.svc.mesh"]
            .iter()
            .flat_map(|s| [format!("service{i}{s}"), format!("service{i}{s}:80")])
            .collect()
    };
    let hosts = (0..100)
        .map(|i| VirtualHost {
            name: format!("h{i}"),
            domains: domains(i),
            rules: rules.clone(),
        })
        .collect();
    let table = CompiledTable::compile(
        &RouteTable {
            name: "t".into(),
            hosts,
        },
        |_| Ok::<_, std::convert::Infallible>(()),
    )
    .expect("a good table");

    let headers = [
        ("host", "x"),
        ("user-agent", "bot"),
        ("accept", "*/*"),
        ("x-request-id", "1"),
        ("x-canary-id", "8"),
    ];
    time("host, of 600 domains", 10_000_000, || {
        table
            .host(black_box("service42.default.svc.mesh:80"))
            .is_some()
    });
    let host = table.host("service42").expect("a known host");
    for (what, path) in [
        ("first rule", "/battle.v1.Battle/Method0"),
        ("8th rule", "/battle.v1.Battle/Method7"),
        ("a header, a regex, then a prefix", "/api/x"),
    ] {
        time(what, 5_000_000, || {
            host.find(black_box(&Ask {
                path,
                headers: &headers,
            }))
            .is_some()
        });
    }
    time("a header, then a regex", 2_000_000, || {
        host.find(black_box(&Ask {
            path: "/api/v1/board/top",
            headers: &headers,
        }))
        .is_some()
    });
    time("canonical path as it was", 5_000_000, || {
        canonical_path(black_box("/battle.v1.Battle/Method7")).is_ok()
    });
    time("canonical path with work", 1_000_000, || {
        canonical_path(black_box("/a/../b//%7ec/%e4")).is_ok()
    });
    time("canonical authority", 5_000_000, || {
        canonical_authority(black_box("service42.default.svc.mesh:80")).is_ok()
    });

    let route = include_str!("../tests/golden/routes.yaml");
    time("three documents", 2_000, || {
        parse("f", black_box(route), "default").problems.is_empty()
    });
    let mib = 1024 * 1024 - 100;
    for (what, text) in [
        ("1 MiB of [", "[".repeat(mib)),
        ("1 MiB of {", "{".repeat(mib)),
        ("1 MiB of [{", "[{".repeat(mib / 2)),
        ("1 MiB of '- '", "- ".repeat(mib / 2)),
        ("1 MiB of '? '", "? ".repeat(mib / 2)),
        ("1 MiB of ': '", ": ".repeat(mib / 2)),
        ("1 MiB of 'a: '", "a: ".repeat(mib / 3)),
        (
            "1 MiB of keys",
            (0..mib / 12).map(|i| format!("k{i:07}: 1\n")).collect(),
        ),
        (
            "1 MiB of fields",
            format!(
                "kind: Service\napiVersion: v1\nspec:\n{}",
                (0..9000)
                    .map(|i| format!("  f{i:0>100}: 1\n"))
                    .collect::<String>()
            ),
        ),
        ("1 MiB of #", "#".repeat(mib)),
        ("1 MiB of \"", "\"".repeat(mib)),
        ("1 MiB of spaces", " ".repeat(mib)),
        ("1 MiB of a scalar", "a b ".repeat(mib / 4)),
        ("1 MiB of lines", "a\n".repeat(mib / 2)),
        (
            "1 MiB of block",
            format!("a: |\n{}", " b\n".repeat(mib / 3)),
        ),
        ("1 MiB of !", "!".repeat(mib)),
        ("1 MiB of &a ", "&a ".repeat(mib / 3)),
        ("1 MiB of flow", format!("[{}", "a, ".repeat(mib / 3))),
        ("1 MiB of quoted", format!("[{}", "\"a\", ".repeat(mib / 5))),
        ("1 MiB of documents", "---\n".repeat(mib / 4)),
        ("1 MiB of ends", "...\n".repeat(mib / 4)),
    ] {
        time(what, 1, || {
            parse("f", black_box(&text), "default").problems.is_empty()
        });
    }
}

fn time(what: &str, times: u32, mut run: impl FnMut() -> bool) {
    let start = Instant::now();
    let trues = (0..times).filter(|_| run()).count();
    println!(
        "{what:40} {:>12?} each ({})",
        start.elapsed() / times,
        if trues == 0 { "no" } else { "yes" }
    );
}
