//! Where the leaderboard is kept, and how it was read: asked of the leaderboard itself.

use std::time::Duration;

use ::arena::ServiceKind;
use ::arena::leaderboard::Kept;
use phalanx_client::admin::Admin;

/// One that is late is not waited for: the table goes on.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// What it says of itself; `redis` is what it was started with.
pub struct Board {
    pub kept: Kept,
    place: String,
}

impl Board {
    pub async fn ask(redis: Option<&str>) -> Option<Self> {
        let mut all = ::arena::processes().into_iter();
        let leaderboard = all.find(|spec| spec.service == ServiceKind::Leaderboard)?;
        let client = Admin::new(&leaderboard.app.to_string()).with_timeout(ANSWER_MAX);
        let answer = client.text("/kept").await.ok()?;
        Some(Self {
            kept: serde_json::from_str(&answer.body).ok()?,
            place: redis.map_or_else(|| "in its process".to_owned(), place),
        })
    }

    /// `in Redis at 127.0.0.1:6379: 95 reads, 94.7 % HIT, 5.3 % STALE (the oldest 6 s), 0 refused; away once, 0 results on
    /// their way`
    pub fn told(&self) -> String {
        let kept = &self.kept;
        let reads = kept.hits + kept.stale;
        let share = |count: u64| match reads {
            0 => 0.0,
            _ => count as f64 * 100.0 / reads as f64,
        };
        let mut told = format!(
            "{}: {} reads, {:.1} % HIT, {:.1} % STALE (the oldest {} s), {} refused",
            self.place,
            reads + kept.refused,
            share(kept.hits),
            share(kept.stale),
            kept.oldest_s,
            kept.refused
        );
        if kept.in_redis {
            let away = match (kept.up, kept.outages) {
                (false, _) => "away now".to_owned(),
                (true, 0) => "never away".to_owned(),
                (true, 1) => "away once".to_owned(),
                (true, times) => format!("away {times} times"),
            };
            told.push_str(&format!("; {away}, {} results on their way", kept.pending));
        }
        told
    }
}

/// Without the password that may be in it.
fn place(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let address = rest.rsplit_once('@').map_or(rest, |(_, address)| address);
    format!(
        "in Redis at {}",
        address.split('/').next().unwrap_or(address)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        assert_eq!(
            place("redis://user:p@ss@10.0.0.5:6379/2"),
            "in Redis at 10.0.0.5:6379"
        );
    }

    #[test]
    fn a_board_that_was_read_during_an_outage_says_so() {
        let kept = Kept {
            in_redis: true,
            up: true,
            outages: 1,
            pending: 0,
            hits: 90,
            stale: 10,
            refused: 0,
            oldest_s: 6,
        };
        let board = Board {
            kept,
            place: place("redis://127.0.0.1:6379"),
        };
        assert_eq!(
            board.told(),
            "in Redis at 127.0.0.1:6379: 100 reads, 90.0 % HIT, 10.0 % STALE (the oldest 6 s), 0 refused; away once, \
             0 results on their way"
        );
    }
}
