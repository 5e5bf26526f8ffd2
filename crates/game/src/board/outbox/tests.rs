use std::fs;
use std::sync::Arc;

use super::*;

fn small() -> OutboxConfig {
    OutboxConfig {
        bytes_max: 64 << 10,
        retained_bytes: 0,
        segment_bytes: 1 << 10,
    }
}

fn payload(number: u64) -> Vec<u8> {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(8 + (number % 40) as usize, number as u8);
    payload
}

async fn fill(outbox: &Outbox, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        assert_eq!(outbox.append(payload(number)).await, Ok(number));
    }
}

fn numbers(outbox: &Outbox, from: u64) -> Vec<u64> {
    let mut cursor = outbox.cursor(from);
    let mut numbers = Vec::new();
    loop {
        let records = cursor.read(7).unwrap();
        if records.is_empty() {
            return numbers;
        }
        for record in records {
            assert_eq!(record.payload, payload(record.number));
            numbers.push(record.number);
        }
    }
}

#[tokio::test]
async fn records_come_back_in_order_over_segments_and_openings() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(directory.path(), small()).unwrap();
    let source = outbox.source();
    fill(&outbox, 1..=100).await;
    assert!(outbox.shared.segments().len() > 2);
    assert_eq!(numbers(&outbox, 1), (1..=100).collect::<Vec<_>>());
    assert_eq!(numbers(&outbox, 55), (55..=100).collect::<Vec<_>>());
    drop(outbox);
    let outbox = Outbox::open(directory.path(), small()).unwrap();
    assert_eq!(outbox.source(), source);
    fill(&outbox, 101..=120).await;
    assert_eq!(numbers(&outbox, 90), (90..=120).collect::<Vec<_>>());
    assert_eq!(outbox.metrics().pending, 120);
}

#[tokio::test]
async fn appends_of_many_tasks_share_syncs_and_have_numbers_without_gaps() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = Arc::new(Outbox::open(directory.path(), OutboxConfig::default()).unwrap());
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let outbox = outbox.clone();
            tokio::spawn(async move { outbox.append(vec![7; 30]).await.unwrap() })
        })
        .collect();
    let mut numbers = Vec::new();
    for task in tasks {
        numbers.push(task.await.unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=200).collect::<Vec<_>>());
    assert!(outbox.metrics().syncs_total < 200);
}

#[tokio::test]
async fn a_log_torn_at_any_byte_opens_with_the_whole_records_before_it() {
    let made = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(made.path(), OutboxConfig::default()).unwrap();
    fill(&outbox, 1..=6).await;
    drop(outbox);
    let name = segment::name(1);
    let whole = fs::read(made.path().join(&name)).unwrap();
    let source = fs::read(made.path().join("source")).unwrap();
    let mut ends = vec![segment::HEAD_BYTES];
    for number in 1..=6 {
        let last = ends[ends.len() - 1];
        ends.push(last + segment::RECORD_HEAD_BYTES + payload(number).len());
    }
    for cut in 0..=whole.len() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("source"), &source).unwrap();
        fs::write(directory.path().join(&name), &whole[..cut]).unwrap();
        let outbox = Outbox::open(directory.path(), OutboxConfig::default()).unwrap();
        let kept = ends
            .iter()
            .filter(|end| **end <= cut)
            .count()
            .saturating_sub(1) as u64;
        assert_eq!(outbox.durable(), kept, "cut at {cut}");
        fill(&outbox, kept + 1..=kept + 2).await;
        assert_eq!(numbers(&outbox, 1), (1..=kept + 2).collect::<Vec<_>>());
        drop(outbox);
        let outbox = Outbox::open(directory.path(), OutboxConfig::default()).unwrap();
        assert_eq!(outbox.durable(), kept + 2, "cut at {cut}");
    }
}

#[tokio::test]
async fn a_changed_byte_at_the_end_is_cut_off_and_before_it_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(directory.path(), small()).unwrap();
    fill(&outbox, 1..=100).await;
    let segments: Vec<Segment> = outbox.shared.segments().iter().copied().collect();
    drop(outbox);
    let flip = |first: u64, at: usize| {
        let path = directory.path().join(segment::name(first));
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    let last = segments.last().unwrap();
    flip(last.first, segment::HEAD_BYTES + segment::RECORD_HEAD_BYTES);
    let outbox = Outbox::open(directory.path(), small()).unwrap();
    assert_eq!(outbox.durable(), last.first - 1);
    drop(outbox);
    flip(
        segments[0].first,
        segment::HEAD_BYTES + segment::RECORD_HEAD_BYTES,
    );
    let error = Outbox::open(directory.path(), small()).unwrap_err();
    assert!(matches!(error, OutboxError::Damaged(_)), "{error}");
    fs::remove_file(directory.path().join(segment::name(segments[1].first))).unwrap();
    flip(
        segments[0].first,
        segment::HEAD_BYTES + segment::RECORD_HEAD_BYTES,
    );
    let error = Outbox::open(directory.path(), small()).unwrap_err();
    assert!(matches!(error, OutboxError::Gap(_)), "{error}");
}

#[tokio::test]
async fn a_full_log_refuses_and_takes_again_once_records_have_arrived() {
    let directory = tempfile::tempdir().unwrap();
    let config = small();
    let outbox = Outbox::open(directory.path(), config).unwrap();
    let mut last = 0;
    let refused = loop {
        match outbox.append(payload(last + 1)).await {
            Ok(number) => last = number,
            Err(error) => break error,
        }
    };
    assert_eq!(
        refused,
        AppendError::Full {
            bytes_max: config.bytes_max
        }
    );
    assert!(outbox.metrics().bytes <= config.bytes_max);
    assert!(outbox.metrics().refused_total > 0);
    outbox.acknowledge(last / 2, 9);
    fill(&outbox, last + 1..=last + 20).await;
    assert!(outbox.oldest() > 1 && outbox.oldest() <= last / 2 + 1);
    let expected: Vec<u64> = (outbox.oldest()..=last + 20).collect();
    // A reader that was left behind goes on with the oldest.
    assert_eq!(numbers(&outbox, 1), expected);
}

#[tokio::test]
async fn what_has_arrived_is_known_after_a_restart_and_kept_as_long_as_wanted() {
    let directory = tempfile::tempdir().unwrap();
    let config = OutboxConfig {
        retained_bytes: 1 << 20,
        ..small()
    };
    let outbox = Outbox::open(directory.path(), config).unwrap();
    fill(&outbox, 1..=100).await;
    outbox.acknowledge(80, 9);
    // More than there is can't have arrived.
    outbox.acknowledge(800, 9);
    outbox.rewind(90);
    fill(&outbox, 101..=101).await;
    assert_eq!(outbox.oldest(), 1);
    drop(outbox);
    let outbox = Outbox::open(directory.path(), config).unwrap();
    assert_eq!((outbox.acknowledged(), outbox.arrived_in()), (90, Some(9)));
    assert_eq!(outbox.metrics().pending, 11);
}

#[tokio::test]
async fn numbers_do_not_come_again_after_the_files_are_gone() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(directory.path(), small()).unwrap();
    fill(&outbox, 1..=10).await;
    outbox.acknowledge(10, 9);
    drop(outbox);
    fs::remove_file(directory.path().join(segment::name(1))).unwrap();
    let outbox = Outbox::open(directory.path(), small()).unwrap();
    fill(&outbox, 11..=12).await;
    assert_eq!(numbers(&outbox, 1), [11, 12]);
}

#[tokio::test]
async fn a_disowned_past_is_another_source_s() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(directory.path(), small()).unwrap();
    let before = outbox.source();
    fill(&outbox, 1..=10).await;
    let after = outbox.disown(6).unwrap();
    assert_ne!(before, after);
    assert_eq!((outbox.acknowledged(), outbox.oldest()), (6, 7));
    assert_eq!(numbers(&outbox, 1), [7, 8, 9, 10]);
    drop(outbox);
    let outbox = Outbox::open(directory.path(), small()).unwrap();
    assert_eq!(outbox.source(), after);
    assert_eq!(numbers(&outbox, 1), [7, 8, 9, 10]);
}

#[test]
fn a_directory_is_one_process_s() {
    let directory = tempfile::tempdir().unwrap();
    let _outbox = Outbox::open(directory.path(), small()).unwrap();
    let error = Outbox::open(directory.path(), small()).unwrap_err();
    assert!(matches!(error, OutboxError::Locked(_)), "{error}");
}

#[tokio::test]
async fn a_record_that_is_too_large_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(directory.path(), small()).unwrap();
    let refused = outbox.append(vec![0; RECORD_BYTES_MAX + 1]).await;
    assert_eq!(
        refused,
        Err(AppendError::TooLarge {
            bytes: RECORD_BYTES_MAX + 1
        })
    );
    assert_eq!(outbox.append(vec![0; RECORD_BYTES_MAX]).await, Ok(1));
}

#[tokio::test]
async fn a_log_no_larger_than_a_segment_takes_records_again_once_all_have_arrived() {
    let directory = tempfile::tempdir().unwrap();
    let config = OutboxConfig {
        bytes_max: 1 << 10,
        retained_bytes: 1 << 20,
        segment_bytes: 4 << 20,
    };
    let outbox = Outbox::open(directory.path(), config).unwrap();
    for number in 1..=100 {
        // Two of the larger ones don't fit.
        let bytes = if number % 3 == 0 { 30 } else { 900 };
        assert_eq!(outbox.append(vec![7; bytes]).await, Ok(number));
        assert!(outbox.metrics().bytes <= config.bytes_max);
        outbox.acknowledge(number, 9);
    }
    drop(outbox);
    let outbox = Outbox::open(directory.path(), config).unwrap();
    assert_eq!(outbox.durable(), 100);
}

#[tokio::test]
async fn records_of_nobody_known_are_not_sent_under_another_name() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(directory.path(), small()).unwrap();
    fill(&outbox, 1..=10).await;
    let before = outbox.source();
    drop(outbox);
    fs::remove_file(directory.path().join("source")).unwrap();
    let outbox = Outbox::open(directory.path(), small()).unwrap();
    assert_ne!(outbox.source(), before);
    assert_eq!((outbox.acknowledged(), outbox.oldest()), (10, 11));
    fill(&outbox, 11..=12).await;
    assert_eq!(numbers(&outbox, 1), [11, 12]);
}

#[tokio::test]
async fn what_arrived_before_an_epoch_is_known_whatever_is_offered_again() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(directory.path(), small()).unwrap();
    assert_eq!(outbox.entered(1), 0);
    fill(&outbox, 1..=10).await;
    outbox.acknowledge(10, 9);
    outbox.rewind(3);
    assert_eq!(outbox.entered(2), 10);
    drop(outbox);
    let outbox = Outbox::open(directory.path(), small()).unwrap();
    assert_eq!((outbox.entered(1), outbox.acknowledged()), (10, 3));
}
