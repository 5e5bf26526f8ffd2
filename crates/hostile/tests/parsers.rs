//! Every parser over its corpus in `fuzz/corpus`, and over as much of what that is turned into as a short test may: always the
//! same bytes. `PHALANX_SOAK=N` makes it N times as much, other bytes each time.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use phalanx_hostile::mutate::mutate;
use phalanx_hostile::{TARGETS, Target};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn names(folder: &Path) -> BTreeSet<String> {
    let stem = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
    files(folder).iter().map(stem).collect()
}

/// Says which bytes it was.
fn feed(target: &Target, bytes: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes))) {
        eprintln!("{}: b\"{}\"", target.name, bytes.escape_ascii());
        std::panic::resume_unwind(panic);
    }
}

fn share(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let corpus = files(&folder().join("corpus").join(name));
    let corpus: Vec<Vec<u8>> = corpus.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(!corpus.is_empty(), "{name} has no corpus");
    corpus.iter().for_each(|bytes| feed(target, bytes));
    let rounds = std::env::var("PHALANX_SOAK").ok();
    let rounds: u64 = rounds.map_or(1, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let mut rng = fastrand::Rng::with_seed(round);
        for _ in 0..target.share {
            feed(target, &mutate(&corpus, &mut rng));
        }
    }
}

macro_rules! shares {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            share(stringify!($name));
        })*

        const SHARES: &[&str] = &[$(stringify!($name)),*];
    };
}

shares! {
    http1_requests http1_answers chunked http2_requests http2_answers hpack checked paths authorities manifests xds durations
    certificates requests_to_sign ocsp jwt join_tokens names_of_peers sessions client_hello beginnings dns redis imports descriptors templates queries
    json_bodies grpc_answers wills reconnect_tokens ledgers
}

#[test]
fn each_parser_has_a_test_a_corpus_and_a_program_for_the_fuzzer() {
    let wanted: BTreeSet<String> = TARGETS.iter().map(|target| target.name.into()).collect();
    let shares = SHARES.iter().map(|share| (*share).to_owned());
    assert_eq!(wanted, shares.collect());
    assert_eq!(wanted, names(&folder().join("corpus")));
    assert_eq!(wanted, names(&folder().join("fuzz_targets")));
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).unwrap();
    for name in wanted {
        let path = format!("path = \"fuzz_targets/{name}.rs\"");
        assert!(
            manifest.contains(&path),
            "fuzz/Cargo.toml does not know {name}"
        );
    }
}
