//! A version as one viewer sees it.

use super::Row;
use crate::board::order::{Law, Order};
use crate::board::snapshot::Snapshot;
use std::sync::Arc;

/// A snapshot as one viewer sees it: her own row, and no other, may stand elsewhere.
#[derive(Clone, Debug)]
pub struct View {
    pub snapshot: Arc<Snapshot>,
    pub moved: Option<Moved>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    pub player: Box<str>,
    pub order: Order,
    /// Her index in the snapshot.
    from: Option<usize>,
    /// Her index now; `None` where it can't be told, as somebody outside the top may be better.
    pub to: Option<usize>,
}

impl Moved {
    pub fn of(snapshot: &Snapshot, player: &str, order: Order) -> Self {
        let from = snapshot.index(player);
        // How many others are better.
        let better = snapshot.index_of(order, player);
        let herself = from.is_some_and(|from| from < better);
        let to = better - usize::from(herself);
        let others = snapshot.len() - usize::from(from.is_some());
        let whole = snapshot.len() as u64 == snapshot.total();
        Self {
            player: player.into(),
            order,
            from,
            to: (to < others || whole).then_some(to),
        }
    }
}

impl View {
    pub fn len(&self) -> usize {
        let len = self.snapshot.len();
        self.moved.as_ref().map_or(len, |moved| {
            len - usize::from(moved.from.is_some()) + usize::from(moved.to.is_some())
        })
    }

    /// One more if she is new on a board of which the snapshot has everybody; of another nobody knows.
    pub fn total(&self) -> u64 {
        let total = self.snapshot.total();
        let whole = self.snapshot.len() as u64 == total;
        let joined = self
            .moved
            .as_ref()
            .is_some_and(|moved| moved.from.is_none());
        total + u64::from(joined && whole)
    }

    /// `index` is below [`Self::len`].
    pub fn row(&self, index: usize, law: &Law) -> Row<'_> {
        let (mut at, place) = (index, index as u64 + 1);
        let as_of_ms = self.snapshot.as_of_ms();
        if let Some(moved) = &self.moved {
            if moved.to == Some(index) {
                return Row {
                    place,
                    player: &moved.player,
                    order: moved.order,
                    score: law.score(moved.order, as_of_ms),
                    pending: true,
                };
            }
            at -= usize::from(moved.to.is_some_and(|to| to < index));
            at += usize::from(moved.from.is_some_and(|from| from <= at));
        }
        let entry = self
            .snapshot
            .entry(at)
            .expect("an index below the view's length");
        Row {
            place,
            player: entry.player,
            order: entry.order,
            score: law.score(entry.order, as_of_ms),
            pending: false,
        }
    }
}
