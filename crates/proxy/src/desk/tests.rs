use std::sync::atomic::AtomicBool;

use super::*;

fn desk() -> (Arc<Desk>, mpsc::Receiver<Box<str>>) {
    let (desk, questions) = Desk::new();
    desk.set_connected(true);
    (desk, questions)
}

#[tokio::test]
async fn a_request_goes_on_with_the_plan_that_has_its_host() {
    let (desk, mut questions) = desk();
    let there = Arc::new(AtomicBool::new(false));
    let waiting = tokio::spawn({
        let (desk, there) = (desk.clone(), there.clone());
        async move { desk.wait("battle", || there.load(Ordering::SeqCst)).await }
    });
    assert_eq!(questions.recv().await.as_deref(), Some("battle"));
    desk.planned(); // of something else
    assert_eq!(desk.parked(), 1);
    there.store(true, Ordering::SeqCst);
    desk.planned();
    assert_eq!(waiting.await.unwrap(), Ok(()));
    assert_eq!(desk.parked(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_a_word_a_request_waits_no_longer_than_its_bound() {
    let (desk, _questions) = desk();
    let start = tokio::time::Instant::now();
    let answer = desk.wait("battle", || false).await;
    assert_eq!(answer, Err(Reason::NoHealthyUpstream));
    assert_eq!(start.elapsed(), ANSWER_MAX);
}

#[tokio::test]
async fn a_full_house_is_told_at_once_and_who_leaves_makes_room() {
    let (desk, mut questions) = desk();
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..PARKED_MAX {
        let desk = desk.clone();
        waiting.spawn(async move { desk.wait(&format!("h{number}"), || false).await });
    }
    while desk.parked() < PARKED_MAX {
        tokio::task::yield_now().await;
    }
    assert_eq!(desk.wait("more", || false).await, Err(Reason::Overload));
    // Callers went away; their questions are still to be read.
    waiting.shutdown().await;
    assert_eq!(desk.parked(), 0);
    assert_eq!(desk.wait("more", || false).await, Err(Reason::Overload));
    while questions.try_recv().is_ok() {}
    assert_eq!(desk.wait("more", || true).await, Ok(()));
}

#[tokio::test]
async fn with_nobody_to_ask_the_answer_is_immediate() {
    let (desk, questions) = Desk::new();
    drop(questions);
    let answer = desk.wait("battle", || false).await;
    assert_eq!(answer, Err(Reason::NoHealthyUpstream));
    assert_eq!(desk.parked(), 0);
}

#[test]
fn a_stream_that_is_away_for_a_moment_is_waited_for() {
    let (desk, _questions) = desk();
    assert!(!desk.is_lost());
    desk.set_connected(false);
    assert!(!desk.is_lost(), "just now");
    desk.lost_ms.store(0, Ordering::Relaxed);
    desk.set_connected(false);
    assert_eq!(
        desk.lost_ms.load(Ordering::Relaxed),
        0,
        "an attempt that fails is no new loss"
    );
}
