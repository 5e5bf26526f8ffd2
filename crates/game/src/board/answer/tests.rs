use super::*;
use crate::board::StoreState;
use crate::board::kind::BoardSpec;
use crate::board::order::Order;
use crate::board::tests::{self, NOW, Pending, best, of, snapshot};
use serde_json::{Value, json};

async fn get(board: &Board, path: &str, query: &str, now_ms: u64) -> Answer {
    let request = Request {
        path,
        query,
        if_none_match: None,
    };
    board.answer(request, now_ms).await
}

fn body(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

#[tokio::test]
async fn a_page_says_version_time_and_rows() {
    let board = of(3, best());
    let answer = get(&board, "top", "limit=2", NOW + 300).await;
    assert_eq!(answer.status, 200);
    let told = body(&answer);
    assert_eq!(told["version"], "1.1");
    assert_eq!(told["as_of"], NOW);
    assert_eq!(told["total"], 3);
    let rows = json!([
        {"place": 1, "player": "p0", "score": 10_000_000},
        {"place": 2, "player": "p1", "score": 9_999_999},
    ]);
    assert_eq!(told["entries"], rows);
    let next = format!("token={}", told["next"].as_str().unwrap());
    let last = body(&get(&board, "top", &next, NOW).await);
    assert_eq!(last["entries"][0]["player"], "p2");
    assert_eq!(last["next"], Value::Null);
}

#[tokio::test]
async fn headers_tell_age_and_freshness() {
    let board = of(3, best());
    board.set_store(StoreState::Up);
    let fresh = get(&board, "top", "", NOW + 300).await;
    assert_eq!(fresh.header("x-cache"), Some("HIT"));
    assert_eq!(fresh.header("age"), Some("0"));
    assert_eq!(
        fresh.header("cache-status"),
        Some("phalanx-board; hit; ttl=0; key=\"arena\"")
    );
    assert_eq!(fresh.header("cache-control"), Some("max-age=1"));
    board.set_store(StoreState::Open);
    let stale = get(&board, "top", "", NOW + 3_600).await;
    assert_eq!(stale.status, 200);
    assert_eq!(stale.header("x-cache"), Some("STALE"));
    assert_eq!(stale.header("age"), Some("3"));
    let status = "phalanx-board; hit; ttl=-3; key=\"arena\"; detail=\"redis-open\"";
    assert_eq!(stale.header("cache-status"), Some(status));
    assert_eq!(stale.header("cache-control"), Some("no-cache"));
    // The body is the version's, whatever its age.
    assert_eq!(stale.body, fresh.body);
    assert_eq!(stale.header("etag"), fresh.header("etag"));
}

#[tokio::test]
async fn a_version_that_is_known_is_not_sent_again() {
    let board = of(3, best());
    let first = get(&board, "top", "", NOW).await;
    let etag = first.header("etag").unwrap();
    for seen in [
        etag.to_owned(),
        format!("W/{etag}"),
        format!("\"x\", {etag}"),
        "*".into(),
    ] {
        let request = Request {
            path: "top",
            query: "",
            if_none_match: Some(&seen),
        };
        let again = board.answer(request, NOW + 2_000).await;
        assert_eq!((again.status, again.body.len()), (304, 0), "{seen}");
        assert_eq!(again.header("etag"), Some(etag));
        assert_eq!(again.header("age"), Some("2"));
        assert_eq!(again.header("x-cache"), Some("STALE"));
    }
    board.publish(snapshot(&board, 2, &[])).unwrap();
    let request = Request {
        path: "top",
        query: "",
        if_none_match: Some(etag),
    };
    assert_eq!(board.answer(request, NOW).await.status, 200);
}

#[tokio::test]
async fn a_page_that_is_hers_alone_is_private() {
    let board = of(30, best());
    Pending::on(&board).write("p20", Order::BEST);
    let shared = get(&board, "top", "", NOW).await;
    let hers = get(&board, "top", "viewer=p20", NOW).await;
    assert_eq!(hers.header("cache-control"), Some("private, no-cache"));
    assert_ne!(hers.header("etag"), shared.header("etag"));
    let row = json!({"place": 1, "player": "p20", "score": 99_999_999, "pending": true});
    assert_eq!(body(&hers)["entries"][0], row);
    // Somebody without pending writes gets everybody's page.
    let another = get(&board, "top", "viewer=p21", NOW).await;
    assert_eq!(another.body, shared.body);
    assert_eq!(another.header("etag"), shared.header("etag"));
    // Which nobody keeps for her: after her next result it would hide that.
    assert_eq!(another.header("cache-control"), Some("private, no-cache"));
}

#[tokio::test]
async fn the_rows_around_somebody_are_never_kept_as_a_page() {
    let board = of(30, best());
    let own = crate::board::Own::new("p5").unwrap();
    let Ok(Around::Top(page)) = board.around(&own, 5, NOW).await else {
        panic!("in the top");
    };
    let around = board.page_answer(&page, None);
    assert_eq!(around.header("cache-control"), Some("private, no-cache"));
    let shared = body(&get(&board, "top", "limit=11", NOW).await);
    assert!(shared["next"].is_string(), "there are more");
}

#[tokio::test]
async fn refusals_have_a_status_and_a_reason() {
    let board = of(
        30,
        BoardSpec {
            refuse_after_ms: Some(5_000),
            ..best()
        },
    );
    let token = format!(
        "token={}",
        body(&get(&board, "top", "limit=5", NOW).await)["next"]
            .as_str()
            .unwrap()
    );
    for seq in 2..=4 {
        board.publish(snapshot(&board, seq, &[])).unwrap();
    }
    let many = "player=a&".repeat(201);
    for (path, query, after, status, reason) in [
        ("top", token.as_str(), 0, 410, "gone"),
        ("top", "token=abc", 0, 400, "bad_token"),
        ("top", "limit=201", 0, 400, "bad_query"),
        ("top", "limit=many", 0, 400, "bad_query"),
        ("top", "player=a", 0, 400, "bad_query"),
        ("top", "require=exact", 0, 400, "bad_query"),
        ("top", "viewer=%zz", 0, 400, "bad_query"),
        ("top", "viewer=%ff", 0, 400, "bad_query"),
        ("rank/", "", 0, 400, "bad_query"),
        ("rank/p1", "score=-1", 0, 400, "bad_query"),
        ("around/p1", "radius=51", 0, 400, "bad_query"),
        ("friends", many.as_str(), 0, 400, "bad_query"),
        ("best", "", 0, 404, "no_such_read"),
        ("top", "require=fresh", 1_001, 503, "stale"),
        ("top", "max_age_ms=10", 11, 503, "stale"),
        ("rank/p1", "", 5_001, 503, "stale"),
    ] {
        let answer = get(&board, path, query, NOW + after).await;
        assert_eq!(answer.status, status, "{path}?{query}");
        assert_eq!(body(&answer)["reason"], reason, "{path}?{query}");
        assert_eq!(answer.header("retry-after").is_some(), status == 503);
    }
    let unknown = format!("ofset{}=4", "x".repeat(40_000));
    let unknown = body(&get(&board, "top", &unknown, NOW).await);
    let error = unknown["error"].as_str().unwrap();
    assert!(error.contains("ofset") && error.len() < 200, "{error}");
    let cold = tests::board(best());
    let answer = get(&cold, "top", "", NOW).await;
    assert_eq!(
        (answer.status, body(&answer)["reason"].as_str()),
        (503, Some("empty"))
    );
}

#[tokio::test]
async fn own_places_say_where_they_come_from() {
    let board = of(5_000, BoardSpec { top: 100, ..best() });
    let own = |answer: &Answer| body(answer)["own"].clone();
    let top = own(&get(&board, "rank/p9", "", NOW).await);
    let expected = json!({
        "source": "top", "place": 10, "low": 10, "high": 10, "score": 9_999_991, "pending": false
    });
    assert_eq!(top, expected);
    let about = own(&get(&board, "rank/p%34000", "score=9996000", NOW).await);
    assert_eq!(
        (&about["source"], &about["score"]),
        (&json!("estimate"), &json!(9_996_000))
    );
    assert!(about["low"].as_u64() <= Some(4_001) && about["high"].as_u64() >= Some(4_001));
    let unknown = own(&get(&board, "rank/p4000", "", NOW).await);
    assert_eq!(
        (&unknown["source"], &unknown["place"]),
        (&json!("unknown"), &Value::Null)
    );
    let around = body(&get(&board, "around/p9", "radius=1", NOW).await);
    assert_eq!(around["entries"].as_array().unwrap().len(), 3);
    let friends = body(&get(&board, "friends", "player=p44&player=p4", NOW).await);
    assert_eq!(friends["friends"][0]["player"], "p4");
    assert_eq!(friends["friends"][1]["place"], 45);
}

#[tokio::test]
async fn any_name_is_written_as_json() {
    let board = tests::board(best());
    let name = "\"\\</script>玩家 🎮";
    let members = tests::ranked([(name.to_owned(), Order::BEST)]);
    board.publish(snapshot(&board, 1, &members)).unwrap();
    let told = body(&get(&board, "top", "", NOW).await);
    assert_eq!(told["entries"][0]["player"], name);
}

#[tokio::test]
async fn a_faded_score_is_shown_as_of_the_version() {
    let hour = 3_600_000;
    let kind = crate::board::Kind::Decayed { half_life_ms: hour };
    let board = tests::board(tests::spec(kind));
    let order = board.law().order(1_000, NOW - hour).unwrap();
    board
        .publish(snapshot(
            &board,
            1,
            &tests::ranked([("a".to_owned(), order)]),
        ))
        .unwrap();
    let told = body(&get(&board, "top", "", NOW + 5 * hour).await);
    let score = told["entries"][0]["score"].as_f64().unwrap();
    assert!((score - 500.0).abs() < 1e-5, "{score}");
}
