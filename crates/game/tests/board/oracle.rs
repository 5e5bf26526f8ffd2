//! What a board should be: the rule applied to the accepted results, one after the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Poll;

use phalanx_game::board::redis::RedisBoard;
use phalanx_game::board::{Better, Board, BoardSpec, Kind, Law, Order, PlayerId, now_ms};

use crate::server::{Redis, until};

pub const KINDS: [(&str, Kind); 4] = [
    ("best", Kind::Best(Better::Higher)),
    ("laps", Kind::Best(Better::Lower)),
    ("sum", Kind::Sum(Better::Higher)),
    (
        "decayed",
        Kind::Decayed {
            half_life_ms: 3_600_000,
        },
    ),
];

pub fn spec(name: &str, kind: Kind) -> BoardSpec {
    let mut spec = BoardSpec::new(name, kind);
    spec.top = 200;
    // On a busy machine three are few.
    spec.store_wait_ms = 50;
    spec
}

pub fn board(name: &str, kind: Kind) -> Arc<Board> {
    Arc::new(Board::try_new(spec(name, kind)).unwrap())
}

pub fn player(number: usize) -> PlayerId {
    PlayerId::parse(&format!("player-{number}")).unwrap()
}

pub struct Oracle {
    law: Law,
    /// Order, and how many results made it.
    pub members: BTreeMap<PlayerId, (Order, u64)>,
}

impl Oracle {
    pub fn new(board: &Board) -> Self {
        Self {
            law: *board.law(),
            members: BTreeMap::new(),
        }
    }

    pub fn apply(&mut self, player: &PlayerId, points: i64, at_ms: u64) {
        let (current, count) = match self.members.get(player) {
            Some(&(order, count)) => (Some(order), count),
            None => (None, 0),
        };
        let order = self.law.apply(current, points, at_ms).unwrap();
        self.members.insert(player.clone(), (order, count + 1));
    }

    /// Submits a result and believes in it once it is accepted.
    pub async fn submit(&mut self, live: &RedisBoard, player: &PlayerId, points: i64) {
        let at_ms = now_ms();
        live.submit_at(player, points, at_ms).await.unwrap();
        self.apply(player, points, at_ms);
    }

    /// As many [`Oracle::submit`]s, in that order, with as few syncs of the disk as possible.
    pub async fn submit_all(&mut self, live: &RedisBoard, results: Vec<(PlayerId, i64)>) {
        let at_ms = now_ms();
        let mut waiting: Vec<_> = results
            .iter()
            .map(|(player, points)| Some(Box::pin(live.submit_at(player, *points, at_ms))))
            .collect();
        // Appends queue up when they are first polled, which is in order.
        std::future::poll_fn(|cx| {
            for submit in &mut waiting {
                if let Some(polled) = submit.as_mut().map(|submit| submit.as_mut().poll(cx))
                    && let Poll::Ready(accepted) = polled
                {
                    accepted.unwrap();
                    *submit = None;
                }
            }
            match waiting.iter().all(Option::is_none) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
        drop(waiting);
        for (player, points) in &results {
            self.apply(player, *points, at_ms);
        }
    }

    /// Waits until everything has arrived, and compares all of the board in Redis, and the snapshot, with this.
    pub async fn check(&self, live: &RedisBoard, redis: &Redis) {
        until("everything has arrived", async || {
            (live.metrics().writes.pending == 0).then_some(())
        })
        .await;
        let client = redis::Client::open(redis.url()).unwrap();
        let mut connection = client.get_connection().unwrap();
        let name = &live.board().spec().name;
        let key = format!("phalanx:{{board:{name}}}:e{}", live.epoch().unwrap());
        let found: Vec<(String, f64)> = redis::cmd("ZRANGE")
            .arg(key)
            .arg(0)
            .arg(-1)
            .arg("WITHSCORES")
            .query(&mut connection)
            .unwrap();
        assert_eq!(found.len(), self.members.len(), "members of {name}");
        for (who, score) in &found {
            let order = Order::from_redis(*score).unwrap();
            let (expected, count) = self.members[who.as_str()];
            self.compare(who, order, expected, count);
        }
        until("readers see it", async || {
            self.is_seen(live.board()).then_some(())
        })
        .await;
    }

    fn compare(&self, who: &str, found: Order, expected: Order, count: u64) {
        // Logarithms of two libraries may round differently, by a step of 2^-30 each time.
        let apart = found.bits().abs_diff(expected.bits());
        let allowed = match self.law.kind() {
            Kind::Decayed { .. } => count,
            Kind::Best(_) | Kind::Sum(_) => 0,
        };
        assert!(
            apart <= allowed,
            "{who}: {found:?} instead of {expected:?}, {count} results"
        );
    }

    fn is_seen(&self, board: &Board) -> bool {
        let Some(snapshot) = board.snapshot() else {
            return false;
        };
        let exact = !matches!(self.law.kind(), Kind::Decayed { .. });
        let mut sorted: Vec<_> = self
            .members
            .iter()
            .map(|(who, (order, _))| (*order, who))
            .collect();
        sorted.sort();
        sorted.truncate(board.spec().top);
        snapshot.total() == self.members.len() as u64
            && snapshot.len() == sorted.len()
            && snapshot.entries().zip(sorted).all(|(entry, (order, who))| {
                !exact || (entry.player == who.as_str() && entry.order == order)
            })
    }
}
