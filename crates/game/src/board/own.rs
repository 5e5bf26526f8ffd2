//! Reads about particular players: her place, the players around her, her friends. Who is in the top is answered from the
//! snapshot at once. For others the store is asked, for [`BoardSpec::store_wait_ms`](super::BoardSpec) at most; if it
//! doesn't answer, the sketch estimates with a bound, as long as anybody knows her score.

use super::kind::{BadPlayer, FRIENDS_MAX, Kind, PlayerId, RADIUS_MAX};
use super::order::Order;
use super::page::{Freshness, Moved, Page, View};
use super::sketch::Estimate;
use super::snapshot::Snapshot;
use super::{Board, Neighbours, ReadError, Reply, Standing, StoreReader, StoreState, Unavailable};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// One player, and what her reader asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    pub player: PlayerId,
    /// Her score as the caller knows it (from her profile): allows an estimate where nobody else knows it. For best and
    /// sum boards; of no use where scores fade.
    pub hint: Option<i64>,
    /// Refuse to answer from a snapshot that is older, ms.
    pub max_age_ms: Option<u64>,
}

impl Own {
    pub fn new(player: &str) -> Result<Self, BadPlayer> {
        let player = PlayerId::parse(player)?;
        Ok(Self {
            player,
            hint: None,
            max_age_ms: None,
        })
    }
}

/// Where a player stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    /// In the top: exact for this version, `pending` if a write of this process put her there that the store doesn't have.
    Top {
        place: u64,
        order: Order,
        pending: bool,
    },
    /// Outside the top, exact: the store just said so.
    Store { place: u64, order: Order },
    /// Outside the top, estimated from the sketch. Without an estimate only her score is known.
    About {
        order: Order,
        estimate: Option<Estimate>,
        pending: bool,
    },
    /// She isn't on the board.
    Absent,
    /// She isn't in the top, and neither store nor memory knew her score.
    Unknown,
}

impl Rank {
    /// Exact or estimated.
    pub fn place(&self) -> Option<u64> {
        match self {
            Self::Top { place, .. } | Self::Store { place, .. } => Some(*place),
            Self::About { estimate, .. } => estimate.map(|estimate| estimate.place),
            Self::Absent | Self::Unknown => None,
        }
    }

    pub fn order(&self) -> Option<Order> {
        match self {
            Self::Top { order, .. } | Self::Store { order, .. } | Self::About { order, .. } => {
                Some(*order)
            }
            Self::Absent | Self::Unknown => None,
        }
    }
}

/// A player's place beside the version that it belongs to.
#[derive(Clone, Debug)]
pub struct Place {
    pub rank: Rank,
    pub snapshot: Arc<Snapshot>,
    pub freshness: Freshness,
}

/// The players around one.
#[derive(Clone, Debug)]
pub enum Around {
    /// She is in the top: rows of one version. Near the end of the top there are fewer behind her.
    Top(Page),
    /// She is outside, and the store answered: as it is now.
    Store {
        neighbours: Neighbours,
        place: Place,
    },
    /// She is outside, and the store did not answer, does not know her, or not yet her newest result: her own place alone.
    Alone(Place),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Friend {
    pub player: PlayerId,
    /// Never [`Rank::Store`]: of friends outside the top the store is asked for scores only, so that places are estimates.
    pub rank: Rank,
}

/// Friends, best first; those without a known score at the end, by id.
#[derive(Clone, Debug)]
pub struct Friends {
    pub friends: Vec<Friend>,
    pub snapshot: Arc<Snapshot>,
    pub freshness: Freshness,
}

impl Board {
    /// Her place. Runs inside a Tokio runtime with a timer; waits for the store at most
    /// [`BoardSpec::store_wait_ms`](super::BoardSpec) (Tokio's timer adds up to a millisecond).
    pub async fn rank(&self, own: &Own, now_ms: u64) -> Result<Place, ReadError> {
        let (snapshot, freshness) = self.count(self.admit(own.max_age_ms, now_ms))?;
        let rank = self.place_of(&snapshot, own).await;
        self.counts.ranked(&rank);
        Ok(Place {
            rank,
            snapshot,
            freshness,
        })
    }

    /// The players from `radius` (at most [`RADIUS_MAX`]) places before her to `radius` after. As [`Self::rank`].
    pub async fn around(&self, own: &Own, radius: usize, now_ms: u64) -> Result<Around, ReadError> {
        self.bounded("radius", radius, RADIUS_MAX)?;
        let (snapshot, freshness) = self.count(self.admit(own.max_age_ms, now_ms))?;
        let player = own.player.as_str();
        let moved = self.moved(&snapshot, player);
        let index = match &moved {
            Some(moved) => moved.to,
            None => snapshot.index(player),
        };
        if let Some(index) = index {
            let view = View { snapshot, moved };
            return Ok(Around::Top(
                self.around_index(view, index, radius, freshness),
            ));
        }
        let pending = moved.map(|moved| moved.order);
        let neighbours = self.ask(|store| store.around(player, radius)).await;
        let place = |rank| {
            self.counts.ranked(&rank);
            Place {
                rank,
                snapshot: Arc::clone(&snapshot),
                freshness,
            }
        };
        match neighbours {
            Ok(Some(neighbours)) => {
                let mut places = (neighbours.first..).zip(&neighbours.members);
                let own = places.find(|(_, (who, _))| *who == own.player);
                if let Some((at, &(_, order))) = own
                    && self.newer(pending, order).is_none()
                {
                    let rank = Rank::Store { place: at, order };
                    return Ok(Around::Store {
                        neighbours,
                        place: place(rank),
                    });
                }
            }
            Ok(None) if pending.is_none() => return Ok(Around::Alone(place(Rank::Absent))),
            Ok(None) | Err(Unavailable) => {}
        }
        // The store had its chance; a second wait would double the bound.
        let rank = self.guess(&snapshot, own, pending);
        Ok(Around::Alone(place(rank)))
    }

    /// Where some players stand; at most [`FRIENDS_MAX`], each told once. As [`Self::rank`]: one wait for all.
    pub async fn friends(
        &self,
        players: &[PlayerId],
        max_age_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<Friends, ReadError> {
        self.bounded("list of friends", players.len(), FRIENDS_MAX)?;
        let (snapshot, freshness) = self.count(self.admit(max_age_ms, now_ms))?;
        let (mut friends, mut outside, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for player in players.iter().filter(|player| seen.insert(player.as_str())) {
            match self.in_top(&snapshot, player.as_str()) {
                Ok(rank) => friends.push(Friend {
                    player: player.clone(),
                    rank,
                }),
                Err(pending) => outside.push((player.clone(), pending)),
            }
        }
        let asked: Vec<PlayerId> = outside.iter().map(|(player, _)| player.clone()).collect();
        let orders = match asked.is_empty() {
            true => Err(Unavailable),
            false => self.ask(|store| store.orders(&asked)).await,
        };
        let orders = orders.ok().filter(|orders| orders.len() == asked.len());
        for (at, (player, pending)) in outside.into_iter().enumerate() {
            let rank = match (pending, orders.as_ref().map(|orders| orders[at])) {
                (pending, Some(Some(order))) => match self.newer(pending, order) {
                    Some(pending) => self.about(&snapshot, pending, true),
                    None => self.about(&snapshot, order, false),
                },
                (Some(pending), _) => self.about(&snapshot, pending, true),
                (None, Some(None)) => Rank::Absent,
                (None, None) => self.remember(&snapshot, player.as_str(), None),
            };
            friends.push(Friend { player, rank });
        }
        friends.sort_by(|a, b| {
            let key = |friend: &Friend| (friend.rank.order().is_none(), friend.rank.order());
            key(a).cmp(&key(b)).then_with(|| a.player.cmp(&b.player))
        });
        Ok(Friends {
            friends,
            snapshot,
            freshness,
        })
    }

    async fn place_of(&self, snapshot: &Snapshot, own: &Own) -> Rank {
        let player = own.player.as_str();
        let pending = match self.in_top(snapshot, player) {
            Ok(rank) => return rank,
            Err(pending) => pending,
        };
        match self.ask(|store| store.standing(player)).await {
            Ok(Standing::At { place, order }) => match self.newer(pending, order) {
                Some(pending) => self.about(snapshot, pending, true),
                None => Rank::Store { place, order },
            },
            Ok(Standing::Absent) => match pending {
                Some(pending) => self.about(snapshot, pending, true),
                None => Rank::Absent,
            },
            Err(Unavailable) => self.guess(snapshot, own, pending),
        }
    }

    /// Her place in the top; or her pending order, if she isn't there.
    fn in_top(&self, snapshot: &Snapshot, player: &str) -> Result<Rank, Option<Order>> {
        let place = |index: usize| index as u64 + 1;
        if let Some(moved) = self.moved(snapshot, player) {
            let Moved { order, to, .. } = moved;
            let top = to.map(|to| Rank::Top {
                place: place(to),
                order,
                pending: true,
            });
            return top.ok_or(Some(order));
        }
        let index = snapshot.index(player).ok_or(None)?;
        let entry = snapshot.entry(index).ok_or(None)?;
        Ok(Rank::Top {
            place: entry.place,
            order: entry.order,
            pending: false,
        })
    }

    /// Her pending standing, if what the store says is of before it.
    fn newer(&self, pending: Option<Order>, store: Order) -> Option<Order> {
        pending.filter(|pending| match self.law().kind() {
            Kind::Best(_) => *pending < store,
            // A loss makes it worse.
            Kind::Sum(_) | Kind::Decayed { .. } => *pending != store,
        })
    }

    fn guess(&self, snapshot: &Snapshot, own: &Own, pending: Option<Order>) -> Rank {
        match pending {
            Some(order) => self.about(snapshot, order, true),
            None => self.remember(snapshot, own.player.as_str(), own.hint),
        }
    }

    fn remember(&self, snapshot: &Snapshot, player: &str, hint: Option<i64>) -> Rank {
        if snapshot.len() as u64 == snapshot.total() {
            // Everybody is in this version.
            return Rank::Absent;
        }
        let remembered = self
            .reader
            .get()
            .and_then(|reader| reader.remembered(player));
        if let Some(order) = remembered {
            return self.about(snapshot, order, false);
        }
        // When she reached it isn't known: from the first who has it to the last.
        let Some((first, last)) = hint.and_then(|score| self.law().orders(score)) else {
            return Rank::Unknown;
        };
        let (top, total) = (snapshot.len() as u64, snapshot.total());
        let estimate = |order| snapshot.sketch().estimate(order, top, total);
        let estimate = estimate(first).zip(estimate(last));
        let estimate = estimate.map(|(first, last)| Estimate::between(first.low, last.high));
        Rank::About {
            order: first,
            estimate,
            pending: false,
        }
    }

    fn about(&self, snapshot: &Snapshot, order: Order, pending: bool) -> Rank {
        let (top, total) = (snapshot.len() as u64, snapshot.total());
        let estimate = snapshot.sketch().estimate(order, top, total);
        let estimate = match pending {
            true => estimate.map(Estimate::apart),
            false => estimate,
        };
        Rank::About {
            order,
            estimate,
            pending,
        }
    }

    /// Asks the store, for a bounded time, unless it is known to be away.
    async fn ask<'a, T>(
        &'a self,
        question: impl FnOnce(&'a dyn StoreReader) -> Reply<'a, Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        let Some(reader) = self
            .reader
            .get()
            .filter(|_| self.store() != StoreState::Open)
        else {
            return Err(Unavailable);
        };
        let wait = Duration::from_millis(self.spec().store_wait_ms);
        let answer = tokio::time::timeout(wait, question(reader.as_ref())).await;
        answer.unwrap_or(Err(Unavailable))
    }

    fn bounded(&self, what: &'static str, asked: usize, max: usize) -> Result<(), ReadError> {
        if asked > max {
            return self.count(Err(ReadError::TooMany { what, asked, max }));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
