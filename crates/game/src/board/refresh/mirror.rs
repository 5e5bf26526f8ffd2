//! The best members of a board as the store has them, kept in step by what changed: pure. It knows everybody up to a last
//! one and nobody behind her, so that who falls behind is forgotten, and a mirror that has lost too many must be read anew.

use std::collections::HashMap;

use crate::board::kind::PlayerId;
use crate::board::order::Order;

#[derive(Debug, Default)]
pub(super) struct Mirror {
    /// Ascending by order, then by id, as Redis has them.
    members: Vec<(Order, PlayerId)>,
    /// Members after this one are not known; `None`: there are none.
    last: Option<(Order, PlayerId)>,
}

impl Mirror {
    /// From chunks that were read one after the other, each from the last order of the one before; `whole`: nobody comes
    /// after them. What changed meanwhile may be there twice or in an old place: [`Mirror::change`] comes next.
    pub(super) fn collect(chunks: Vec<(PlayerId, Order)>, whole: bool) -> Self {
        let last = chunks
            .last()
            .filter(|_| !whole)
            .map(|(player, order)| (*order, player.clone()));
        let mut members: Vec<(Order, PlayerId)> = chunks
            .into_iter()
            .map(|(player, order)| (order, player))
            .collect();
        members.sort_unstable();
        members.dedup();
        Self { members, last }
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Nobody of the board is missing.
    pub(super) fn is_whole(&self) -> bool {
        self.last.is_none()
    }

    pub(super) fn members(&self) -> impl Iterator<Item = (&PlayerId, Order)> {
        self.members.iter().map(|(order, player)| (player, *order))
    }

    /// Members as they are now; `None` who is off the board.
    pub(super) fn change(&mut self, changes: Vec<(PlayerId, Option<Order>)>) {
        if changes.is_empty() {
            return;
        }
        let changes: HashMap<PlayerId, Option<Order>> = changes.into_iter().collect();
        self.members
            .retain(|(_, player)| !changes.contains_key(player));
        let mut new: Vec<(Order, PlayerId)> = changes
            .into_iter()
            .filter_map(|(player, order)| Some((order?, player)))
            .filter(|member| self.last.as_ref().is_none_or(|last| member <= last))
            .collect();
        new.sort_unstable();
        self.merge(new);
    }

    /// Keeps the first `most` members.
    pub(super) fn cut(&mut self, most: usize) {
        if self.members.len() > most {
            self.members.truncate(most);
            self.last = self.members.last().cloned();
        }
    }

    fn merge(&mut self, new: Vec<(Order, PlayerId)>) {
        if new.is_empty() {
            return;
        }
        let old = std::mem::take(&mut self.members);
        self.members = Vec::with_capacity(old.len() + new.len());
        let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
        while let (Some(a), Some(b)) = (old.peek(), new.peek()) {
            let from = if a < b { &mut old } else { &mut new };
            self.members.extend(from.next());
        }
        self.members.extend(old);
        self.members.extend(new);
    }
}

#[cfg(test)]
mod tests;
