use super::*;

fn record(seed: u64) -> Record {
    Record {
        kind: "duel".into(),
        rules: 7,
        seed,
        fuel: u64::MAX,
        session: seed.is_multiple_of(2).then(|| format!("session-{seed}")),
        input: vec![seed as u8; (seed % 50) as usize],
        digest: seed.wrapping_mul(31),
    }
}

fn file(records: &[Record]) -> Vec<u8> {
    let mut bytes = header().to_vec();
    for record in records {
        bytes.extend(record.encode().unwrap());
    }
    bytes
}

/// The records that can be read, and whether an error came after them.
fn read(bytes: &[u8]) -> (Vec<Record>, bool) {
    let mut records = Vec::new();
    let Ok(reader) = Reader::new(bytes) else {
        return (records, true);
    };
    for record in reader {
        match record {
            Ok(record) => records.push(record),
            Err(_) => return (records, true),
        }
    }
    (records, false)
}

#[test]
fn what_was_recorded_is_read_again() {
    let records: Vec<Record> = (0..100).map(record).collect();
    assert_eq!(read(&file(&records)), (records, false));
}

#[test]
fn the_format_is_frozen() {
    let mut record = record(2);
    record.input = b"in".to_vec();
    let bytes = file(&[record]);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let body = "046475656c0700000000000000\
                0200000000000000ffffffffffffffff0900\
                73657373696f6e2d323e00000000000000696e";
    assert_eq!(hex.get(..24), Some("50485842544c010032000000"));
    assert_eq!(hex.get(40..), Some(body));
}

#[test]
fn a_torn_or_damaged_record_ends_the_file_and_spares_those_before() {
    let records: Vec<Record> = (0..10).map(record).collect();
    let bytes = file(&records);
    for cut in HEADER_BYTES..bytes.len() {
        let (found, _) = read(&bytes[..cut]);
        assert!(records.starts_with(&found), "cut at {cut}");
        let mut damaged = bytes.clone();
        damaged[cut] ^= 0x40;
        let (found, error) = read(&damaged);
        assert!(error && records.starts_with(&found), "damaged at {cut}");
    }
    assert!(matches!(
        Reader::new(&b"PHXBTL\x09\0"[..]),
        Err(RecordError::Version { found: 9 })
    ));
    assert!(matches!(
        Reader::new(&b"something else"[..]),
        Err(RecordError::NoRecords)
    ));
}

proptest::proptest! {
    #[test]
    fn foreign_bytes_never_panic(bytes in proptest::collection::vec(0_u8.., 0..300)) {
        let mut file = header().to_vec();
        file.extend(&bytes);
        read(&file);
        Record::decode(&bytes);
    }
}

#[test]
fn the_file_stays_within_its_bytes_and_the_newest_records_are_kept() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("duels");
    let options = RecorderOptions {
        bytes_max: 3 << 20,
        ..RecorderOptions::default()
    };
    let recorder = Recorder::create(&path, options).unwrap();
    for seed in 0..200 {
        let big = Record {
            input: vec![1; 100_000],
            ..record(seed)
        };
        // The queue is bounded too: wait for room, so that the last one is in.
        while recorder.state().written + recorder.state().failed + 20 < seed {
            std::thread::yield_now();
        }
        recorder.write(&big);
    }
    let state = recorder.close();
    assert_eq!((state.written, state.dropped, state.failed), (200, 0, 0));
    let sizes = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
    let aside = place.path().join("duels.1");
    assert!(sizes(&path) + sizes(&aside) <= 3 << 20);
    let newest = Reader::open(&path).unwrap().last().unwrap().unwrap();
    assert_eq!(newest.seed, 199);
    recorder.write(&record(1));
    assert_eq!(recorder.state().dropped, 1, "after the end");
}

#[test]
fn an_input_that_is_too_large_is_counted_and_not_written() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("duels");
    let recorder = Recorder::create(&path, RecorderOptions::default()).unwrap();
    recorder.write(&Record {
        input: vec![0; BODY_BYTES_MAX],
        ..record(1)
    });
    let state = recorder.close();
    assert_eq!((state.written, state.dropped), (0, 1));
    assert_eq!(Reader::open(&path).unwrap().count(), 0);
}
