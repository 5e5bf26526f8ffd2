//! The shape of the house, as far as a reader of text can check it: module order, where foreign types may stand, sizes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Past this many lines something is hiding in a file.
const LINES_MAX: usize = 1000;
/// The phrase in a crate's module doc that begins its ordered list of modules.
const ORDER_MARK: &str = "Module order";
/// Crates that must state their order.
const ORDERED: &[&str] = &[
    "model",
    "store",
    "telemetry",
    "xds",
    "relay",
    "client",
    "control",
    "proxy",
    "testkit",
    "pki",
];
/// Crates in which foreign bytes must not be able to panic.
const NEVER_PANIC: &[&str] = &["relay", "proxy", "pki"];
/// Where types of `http` and `hyper` may stand in the data plane.
const ADAPTERS: &[&str] = &["admin.rs", "admin/"];

pub fn run(root: &Path) -> anyhow::Result<()> {
    let mut findings = Vec::new();
    for name in ORDERED {
        check_order(root, name, &mut findings)?;
    }
    for name in NEVER_PANIC {
        check_panics(root, name, &mut findings)?;
    }
    check_adapters(root, &mut findings)?;
    for file in rust_files(root)? {
        check_file(root, &file, &mut findings)?;
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy found {} thing(s)", findings.len());
    }
    println!("tidy: nothing to say");
    Ok(())
}

/// A module imports only modules that stand later in its crate's list.
fn check_order(root: &Path, name: &str, findings: &mut Vec<String>) -> anyhow::Result<()> {
    let source = root.join("crates").join(name).join("src");
    let lib = read(&source.join("lib.rs"))?;
    let Some(order) = stated_order(&lib) else {
        findings.push(format!(
            "crates/{name}/src/lib.rs: the module doc states no `{ORDER_MARK} …: a, b, c.`"
        ));
        return Ok(());
    };
    let place: BTreeMap<&str, usize> = order
        .iter()
        .enumerate()
        .map(|(i, m)| (m.as_str(), i))
        .collect();
    for declared in lib.lines().filter_map(declared_module) {
        if !place.contains_key(declared) && declared != "tests" {
            findings.push(format!(
                "crates/{name}/src/lib.rs: module `{declared}` is not in the stated order"
            ));
        }
    }
    for file in rust_files(&source)? {
        let relative = file.strip_prefix(&source)?.to_string_lossy().into_owned();
        let module = relative
            .split(['/', '.'])
            .next()
            .unwrap_or_default()
            .to_owned();
        let Some(&mine) = place.get(module.as_str()) else {
            continue;
        };
        let text = read(&file)?;
        for (number, line) in text.lines().enumerate() {
            for used in crate_paths(line) {
                if place.get(used).is_some_and(|&theirs| theirs < mine) {
                    findings.push(format!(
                        "crates/{name}/src/{relative}:{}: `{module}` imports `{used}`, which stands before it in the order",
                        number + 1
                    ));
                }
            }
        }
    }
    Ok(())
}

/// The names after [`ORDER_MARK`] … `:` up to the full stop, over several doc lines.
fn stated_order(lib: &str) -> Option<Vec<String>> {
    let doc: String = lib
        .lines()
        .filter_map(|l| l.strip_prefix("//!"))
        .collect::<Vec<_>>()
        .join(" ");
    let list = doc.split_once(ORDER_MARK)?.1.split_once(':')?.1;
    let list = list.split_once('.').map_or(list, |(before, _)| before);
    Some(
        list.split(',')
            .map(|m| {
                m.trim()
                    .trim_matches(|c| c == '`' || c == '[' || c == ']')
                    .to_owned()
            })
            .collect(),
    )
}

fn declared_module(line: &str) -> Option<&str> {
    let rest = line.trim().strip_prefix("pub ").unwrap_or(line.trim());
    let rest = rest.strip_prefix("pub(crate) ").unwrap_or(rest);
    rest.strip_prefix("mod ")?.strip_suffix(';')
}

/// Every `x` of `crate::x` in a line of code.
fn crate_paths(line: &str) -> Vec<&str> {
    if line.trim_start().starts_with("//") {
        return Vec::new();
    }
    let name = |rest: &'_ str| -> usize {
        rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len())
    };
    line.match_indices("crate::")
        .filter(|(at, _)| *at == 0 || !line[..*at].ends_with('$'))
        .map(|(at, mark)| {
            let rest = &line[at + mark.len()..];
            &rest[..name(rest)]
        })
        .collect()
}

fn check_panics(root: &Path, name: &str, findings: &mut Vec<String>) -> anyhow::Result<()> {
    let lib = read(&root.join("crates").join(name).join("src/lib.rs"))?;
    for lint in [
        "clippy::unwrap_used",
        "clippy::expect_used",
        "clippy::indexing_slicing",
    ] {
        if !lib.contains(lint) {
            findings.push(format!("crates/{name}/src/lib.rs: does not deny {lint}"));
        }
    }
    Ok(())
}

/// The request path sees flat header lists; `http` and `hyper` stay in the adapters.
fn check_adapters(root: &Path, findings: &mut Vec<String>) -> anyhow::Result<()> {
    for crate_name in ["proxy", "relay"] {
        let source = root.join("crates").join(crate_name).join("src");
        for file in rust_files(&source)? {
            let relative = file.strip_prefix(&source)?.to_string_lossy().into_owned();
            if ADAPTERS.iter().any(|a| relative.starts_with(a)) {
                continue;
            }
            for (number, line) in read(&file)?.lines().enumerate() {
                let code = line.trim_start();
                let foreign = [
                    "http::",
                    "hyper::",
                    "hyper_util::",
                    "http_body::",
                    "http_body_util::",
                ];
                let named = |f: &&str| {
                    code.match_indices(*f).any(|(at, _)| {
                        !code[..at]
                            .ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':')
                    })
                };
                if !code.starts_with("//") && foreign.iter().any(named) {
                    findings.push(format!("crates/{crate_name}/src/{relative}:{}: names a type of http or hyper above the adapter", number + 1));
                }
            }
        }
    }
    Ok(())
}

fn check_file(root: &Path, file: &Path, findings: &mut Vec<String>) -> anyhow::Result<()> {
    let shown = file.strip_prefix(root)?.to_string_lossy().into_owned();
    if file.file_name().is_some_and(|n| n == "mod.rs") && !shown.contains("/tests/") {
        findings.push(format!(
            "{shown}: modules are `foo.rs` beside `foo/`, never mod.rs"
        ));
    }
    let lines = read(file)?.lines().count();
    if lines > LINES_MAX && !shown.contains("generated") {
        findings.push(format!("{shown}: {lines} lines; something is hiding in it"));
    }
    Ok(())
}

fn rust_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
        {
            let path = entry?.path();
            let name = path
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
                .unwrap_or_default();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                open.push(path);
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn read(file: &Path) -> anyhow::Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}
