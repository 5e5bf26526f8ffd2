//! Crashes at every byte, and everything else that may happen to a directory.

use std::fs;

use super::{files::*, *};

const EPOCH: u64 = 3;

fn record(after: &Position, at: u32) -> Record {
    let body: Vec<u8> = (0..10 + at * 3).map(|byte| (byte * 7 + at) as u8).collect();
    Record::seal(EPOCH, after, 1 + at % 3, &body)
}

/// Appends `count` records; what was appended is returned.
fn fill(log: &mut Log, count: u32) -> Vec<Record> {
    let append = |at| {
        let record = record(&log.position(), at);
        log.append(&record).unwrap();
        record
    };
    (0..count).map(append).collect()
}

fn open(directory: &Path) -> (Log, Recovered) {
    Log::open(directory).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_log_reads_back_with_the_same_identity() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, recovered) = open(directory.path());
    assert!(recovered.records.is_empty() && recovered.checkpoint.is_none());
    let written = fill(&mut log, 5);
    let (replica, position) = (log.replica(), log.position());
    drop(log);
    let (log, recovered) = open(directory.path());
    assert_eq!(recovered.records, written);
    assert_eq!((log.replica(), log.position()), (replica, position));
    assert_eq!(recovered.cut_bytes, 0);
}

#[test]
fn a_crash_at_any_byte_loses_nothing_that_was_synced() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path());
    let mut written = fill(&mut log, 3);
    assert!(log.checkpoint(b"the first three".to_vec()).unwrap());
    written.clear();
    written.extend(fill(&mut log, 6));
    drop(log);
    let segment = segment_path(directory.path(), 2);
    let whole = fs::read(&segment).unwrap();
    let sizes: usize = written.iter().map(|record| record.bytes().len()).sum();
    let start = whole.len() - sizes;
    let scratch = tempfile::tempdir().unwrap();
    for length in start..=whole.len() {
        let place = scratch.path().join(length.to_string());
        copy(directory.path(), &place);
        fs::write(segment_path(&place, 2), &whole[..length]).unwrap();
        let (mut log, recovered) = open(&place);
        let mut end = start;
        let synced = written.iter().take_while(|record| {
            end += record.bytes().len();
            end <= length
        });
        let synced: Vec<Record> = synced.cloned().collect();
        assert_eq!(recovered.records, synced, "cut to {length}");
        assert_eq!(recovered.checkpoint.unwrap().state, b"the first three");
        // And it goes on from there.
        let next = record(&log.position(), 9);
        log.append(&next).unwrap();
        drop(log);
        assert_eq!(open(&place).1.records.last(), Some(&next));
        fs::remove_dir_all(&place).unwrap();
    }
}

#[test]
fn a_last_record_of_half_written_bytes_is_cut_and_an_earlier_one_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path());
    let written = fill(&mut log, 4);
    drop(log);
    let segment = segment_path(directory.path(), 1);
    let whole = fs::read(&segment).unwrap();
    let last = whole.len() - written[3].bytes().len();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&segment, &bytes).unwrap();
        match Log::open(directory.path()) {
            Ok((_, recovered)) => {
                assert!(at >= last, "byte {at} was lost without a word");
                assert_eq!(recovered.records, written[..3], "byte {at}");
                fs::write(&segment, &whole).unwrap();
            }
            Err(error) => {
                assert!(
                    matches!(error, LogError::Damaged { .. }),
                    "byte {at}: {error}"
                );
                assert!(at < last, "byte {at}: {error}");
            }
        }
    }
    // Zeros at the end are what a file system may leave of a write that didn't happen.
    let mut bytes = whole[..last].to_vec();
    bytes.resize(last + 4096, 0);
    fs::write(&segment, &bytes).unwrap();
    let (_, recovered) = open(directory.path());
    assert_eq!((recovered.records.len(), recovered.cut_bytes), (3, 4096));
}

#[test]
fn checkpoints_bound_the_log_and_a_crash_between_their_steps_is_no_matter() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path());
    let mut newest = Vec::new();
    for round in 0..20_u8 {
        newest = fill(&mut log, 30);
        while !log.checkpoint(vec![round; 100]).unwrap() {
            std::thread::yield_now();
        }
    }
    drop(log);
    let files = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(files, 4, "identity, lock, a checkpoint and its segment");
    let scratch = tempfile::tempdir().unwrap();

    // After the new segment, before the checkpoint has its name: the one before and both segments.
    let (mut log, recovered) = open(directory.path());
    assert_eq!(recovered.checkpoint.unwrap().state, [19; 100]);
    let records = fill(&mut log, 3);
    let position = log.position();
    drop(log);
    let place = scratch.path().join("begun");
    copy(directory.path(), &place);
    Segment::make(&place, 22, &position).unwrap();
    fs::write(place.join("0000000000000016.unfinished"), b"half a check").unwrap();
    let (mut log, recovered) = open(&place);
    assert_eq!(recovered.records, records);
    fill(&mut log, 2);
    drop(log);
    assert_eq!(open(&place).1.records.len(), 5);

    // After the name, before the old files went.
    let place = scratch.path().join("named");
    copy(directory.path(), &place);
    Segment::make(&place, 22, &position).unwrap();
    let state = vec![20; 50];
    Checkpoint { position, state }.write(&place, 22).unwrap();
    let (_, recovered) = open(&place);
    assert_eq!(recovered.checkpoint.unwrap().state, [20; 50]);
    assert!(recovered.records.is_empty());
    assert!(
        !segment_path(&place, 21).exists(),
        "what it replaces goes at the next start"
    );
    drop(newest);
}

#[test]
fn another_history_is_installed_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path());
    fill(&mut log, 4);
    let position = Position {
        seq: 2,
        epoch: 9,
        chain: 4711,
    };
    let state = b"a shorter one".to_vec();
    let other = Checkpoint { position, state };
    log.install(&other).unwrap();
    assert_eq!(log.position(), position);
    let next = Record::seal(9, &position, 1, b"next");
    log.append(&next).unwrap();
    let stale = Record::seal(8, &next.position(), 1, b"stale");
    assert!(matches!(
        log.append(&stale),
        Err(LogError::Fenced { found: 8, epoch: 9 })
    ));
    let gap = Record::seal(9, &position, 1, b"gap");
    assert!(matches!(log.append(&gap), Err(LogError::Gap { .. })));
    drop(log);
    let (mut log, recovered) = open(directory.path());
    assert_eq!(recovered.checkpoint, Some(other.clone()));
    assert_eq!(recovered.records, [next]);
    let older = Checkpoint {
        position: Position {
            epoch: 8,
            ..position
        },
        ..other
    };
    assert!(matches!(log.install(&older), Err(LogError::Fenced { .. })));
}

#[test]
fn a_failed_sync_is_final() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path());
    let written = fill(&mut log, 2);
    log.sync = |_| Err(io::Error::other("the disk is gone"));
    let next = record(&log.position(), 2);
    assert!(matches!(log.append(&next), Err(LogError::Io { .. })));
    log.sync = File::sync_data;
    assert!(matches!(log.append(&next), Err(LogError::Broken)));
    assert!(matches!(log.checkpoint(Vec::new()), Err(LogError::Broken)));
    drop(log);
    // Whether the record is there is unknown, and nobody was told of it.
    let recovered = open(directory.path()).1.records;
    assert_eq!(recovered[..2], written);
}

#[test]
fn two_processes_and_emptied_or_foreign_directories_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let (mut log, _) = open(directory.path());
    fill(&mut log, 2);
    assert!(matches!(
        Log::open(directory.path()),
        Err(LogError::InUse { .. })
    ));
    drop(log);

    let identity = fs::read(directory.path().join("identity")).unwrap();
    fs::write(directory.path().join("identity"), b"somebody").unwrap();
    assert!(matches!(
        Log::open(directory.path()),
        Err(LogError::Damaged { .. })
    ));
    fs::remove_file(directory.path().join("identity")).unwrap();
    assert!(matches!(
        Log::open(directory.path()),
        Err(LogError::Damaged { .. })
    ));
    fs::write(directory.path().join("identity"), &identity).unwrap();
    assert_eq!(open(directory.path()).1.records.len(), 2);

    let (mut log, _) = open(directory.path());
    assert!(log.checkpoint(b"state".to_vec()).unwrap());
    fill(&mut log, 2);
    drop(log);
    let checkpoint = checkpoint_path(directory.path(), 2);
    let whole = fs::read(&checkpoint).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&checkpoint, &bytes).unwrap();
        let refused = Log::open(directory.path());
        assert!(
            matches!(refused, Err(LogError::Damaged { .. })),
            "byte {at}"
        );
    }
    fs::remove_file(&checkpoint).unwrap();
    assert!(matches!(
        Log::open(directory.path()),
        Err(LogError::Damaged { .. })
    ));
}

#[test]
fn what_was_left_half_written_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("made/with/those/above");
    let (mut log, _) = open(&directory);
    fill(&mut log, 3);
    drop(log);
    for left in [
        checkpoint_path(&directory, 2).with_extension(UNFINISHED),
        segment_path(&directory, 2).with_extension("unfinished-segment"),
    ] {
        fs::write(&left, [7; 100]).unwrap();
        let (_, recovered) = open(&directory);
        assert_eq!(recovered.records.len(), 3);
        assert!(!left.exists());
    }
}

#[test]
fn a_lock_that_was_let_go_is_free_though_a_child_still_has_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    let lock = Lock::try_new(&path).unwrap().unwrap();
    assert!(Lock::try_new(&path).unwrap().is_none());
    let child = lock.0.try_clone().unwrap();
    drop(lock);
    assert!(Lock::try_new(&path).unwrap().is_some());
    drop(child);
}
