//! Fighting again what was recorded, with this build, and telling where the results differ.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use xxhash_rust::xxh3::xxh3_64;

use super::context::rerun;
use super::record::{Record, RecordError};
use super::{Battle, Call, Reject};

/// Differences that a report keeps, and bytes of input of each.
const DIFFERENCES_MAX: usize = 64;
const INPUT_BYTES_KEPT: usize = 4 * 1024;

/// The hash of how a fight ended, over canonical bytes: the same on every machine, in every build. `None` for an end that
/// doesn't follow from the input (a deadline, a caller that left).
pub fn digest<B: Battle>(end: &Result<B::Output, Reject>) -> Option<u64> {
    digest_with::<B>(end, &mut Vec::new())
}

/// As [`digest`], in a buffer of the caller's.
pub(crate) fn digest_with<B: Battle>(
    end: &Result<B::Output, Reject>,
    scratch: &mut Vec<u8>,
) -> Option<u64> {
    scratch.clear();
    match end {
        Ok(output) => {
            scratch.push(0);
            B::write_output(output, scratch);
        }
        Err(Reject::Foul(why)) => {
            scratch.push(1);
            scratch.extend_from_slice(why.as_bytes());
        }
        Err(Reject::Exhausted { .. }) => scratch.push(2),
        Err(Reject::Panicked { .. }) => scratch.push(3),
        Err(_) => return None,
    }
    Some(xxh3_64(scratch))
}

/// What replaying some records showed.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Records that were fought again.
    pub fights: u64,
    pub same: u64,
    pub different: u64,
    /// Of other kinds of battle.
    pub others: u64,
    /// Records whose version of the rules isn't there.
    pub without_rules: u64,
    /// Records whose input this build can't read.
    pub unreadable: u64,
    /// The first differences, 64 at most.
    pub differences: Vec<Difference>,
    /// Why the file couldn't be read to its end.
    pub broken: Option<RecordError>,
}

/// Two ends of what should have been one fight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which fight, counted from 0.
    pub at: u64,
    pub rules: u64,
    pub seed: u64,
    pub session: Option<String>,
    /// Digests; `None`: it ended in a way that can't be compared.
    pub expected: Option<u64>,
    pub found: Option<u64>,
    /// Empty when it is larger than 4 KiB.
    pub input: Vec<u8>,
}

/// Fights all records of `kind` again, on the rules that `rules` knows by their version.
pub fn replay<B: Battle>(
    battle: &B,
    kind: &str,
    mut rules: impl FnMut(u64) -> Option<Arc<B::Rules>>,
    records: impl IntoIterator<Item = Result<Record, RecordError>>,
) -> Replayed {
    let mut report = Replayed::default();
    for record in records {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                report.broken = Some(error);
                break;
            }
        };
        if record.kind != kind {
            report.others += 1;
            continue;
        }
        let Some(version) = rules(record.rules) else {
            report.without_rules += 1;
            continue;
        };
        let Some(input) = B::read_input(&record.input) else {
            report.unreadable += 1;
            continue;
        };
        let end = rerun(battle, record.rules, &version, &record.call(), &input);
        let found = digest::<B>(&end);
        if found == Some(record.digest) {
            report.same += 1;
        } else {
            report.different += 1;
            report.keep(record, found);
        }
        report.fights += 1;
    }
    report
}

impl Replayed {
    fn keep(&mut self, record: Record, found: Option<u64>) {
        if self.differences.len() >= DIFFERENCES_MAX {
            return;
        }
        self.differences.push(Difference {
            at: self.fights,
            rules: record.rules,
            seed: record.seed,
            session: record.session,
            expected: Some(record.digest),
            found,
            input: small(record.input),
        });
    }
}

pub(crate) fn small(input: Vec<u8>) -> Vec<u8> {
    if input.len() > INPUT_BYTES_KEPT {
        Vec::new()
    } else {
        input
    }
}

/// Fights each of `cases` (a seed and an input) again and again, `runs` fights in all, on `threads` threads, and returns one
/// hash of all their digests in order; or the first case whose end was not always the same.
pub fn prove<B: Battle>(
    battle: &B,
    version: u64,
    rules: &B::Rules,
    cases: &[(u64, B::Input)],
    runs: u64,
    threads: usize,
) -> Result<u64, Difference> {
    let fight = |(seed, input): &(u64, B::Input)| {
        digest::<B>(&rerun(battle, version, rules, &Call::new(*seed), input))
    };
    let expected: Vec<Option<u64>> = cases.iter().map(fight).collect();
    let (next, over) = (AtomicU64::new(cases.len() as u64), AtomicBool::new(false));
    let difference = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let index = (at as usize).checked_rem(cases.len());
                    let case = index.and_then(|index| cases.get(index).zip(expected.get(index)));
                    let Some((case, expected)) = case.filter(|_| at < runs) else {
                        return;
                    };
                    let found = fight(case);
                    if found != *expected {
                        over.store(true, Ordering::Relaxed);
                        let mut input = Vec::new();
                        B::write_input(&case.1, &mut input);
                        let mut slot = difference.lock().unwrap_or_else(PoisonError::into_inner);
                        slot.get_or_insert(Difference {
                            at,
                            rules: version,
                            seed: case.0,
                            session: None,
                            expected: *expected,
                            found,
                            input: small(input),
                        });
                    }
                }
            });
        }
    });
    let found = difference
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    if let Some(difference) = found {
        return Err(difference);
    }
    let mut bytes = Vec::with_capacity(9 * expected.len());
    for digest in expected {
        bytes.push(u8::from(digest.is_some()));
        bytes.extend_from_slice(&digest.unwrap_or(0).to_le_bytes());
    }
    Ok(xxh3_64(&bytes))
}
