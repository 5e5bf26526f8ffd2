//! Pages of one version. A page's rows, its token for the next page and its age all come from one snapshot that was loaded
//! once; the next page is read from the same version, or refused. A viewer's own pending write moves her row, and only
//! hers, in what she sees.

mod token;
mod view;

pub use token::BadToken;
pub(super) use view::{Moved, View};

use super::kind::{PAGE_MAX, PlayerId};
use super::order::{Law, Order};
use super::snapshot::{Snapshot, Version};
use super::{Board, Overlay, ReadError, StoreState};
use std::sync::Arc;
use token::Cursor;

/// Rows of a page that doesn't say.
pub const PAGE_DEFAULT: usize = 50;

/// Which rows. `PageQuery::default()` is the first [`PAGE_DEFAULT`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageQuery {
    /// Places to leave out at the top.
    pub offset: usize,
    /// At most [`PAGE_MAX`].
    pub limit: usize,
    /// [`Page::next`] of the page before: says offset, limit and version, so that the others don't count.
    pub token: Option<String>,
    /// Whose pending writes are merged in.
    pub viewer: Option<PlayerId>,
    /// Refuse to answer from a snapshot that is older, ms: `require=fresh`.
    pub max_age_ms: Option<u64>,
}

impl Default for PageQuery {
    fn default() -> Self {
        Self {
            offset: 0,
            limit: PAGE_DEFAULT,
            token: None,
            viewer: None,
            max_age_ms: None,
        }
    }
}

/// How old an answer is, and whether that is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    pub age_ms: u64,
    /// What is left until it is stale, ms; negative afterwards. `None`: it is final.
    pub ttl_ms: Option<i64>,
    pub stale: bool,
    pub store: StoreState,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row<'a> {
    /// From 1.
    pub place: u64,
    pub player: &'a str,
    pub order: Order,
    /// Whole and exact for best and sum boards; as of [`Page::as_of_ms`] for decayed ones.
    pub score: f64,
    /// The store doesn't have it yet: it comes from a write of this process.
    pub pending: bool,
}

/// Some rows of one version.
#[derive(Clone, Debug)]
pub struct Page {
    view: View,
    law: Law,
    from: usize,
    to: usize,
    next: Option<String>,
    fresh: Freshness,
    pub(super) of: Audience,
}

/// Whose a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    Everybody,
    /// As everybody's, until she writes.
    Viewer,
    Her,
}

impl Page {
    pub fn rows(&self) -> impl ExactSizeIterator<Item = Row<'_>> {
        (self.from..self.to).map(|index| self.view.row(index, &self.law))
    }

    pub fn version(&self) -> Version {
        self.view.snapshot.version()
    }

    /// Unix ms.
    pub fn as_of_ms(&self) -> u64 {
        self.view.snapshot.as_of_ms()
    }

    /// Members of the whole board.
    pub fn total(&self) -> u64 {
        self.view.total()
    }

    /// Give it back as [`PageQuery::token`]; `None` on the last page.
    pub fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    pub fn freshness(&self) -> Freshness {
        self.fresh
    }

    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.view.snapshot
    }

    /// Its rows, or which rows they are, are this viewer's.
    pub fn is_personal(&self) -> bool {
        self.of == Audience::Her
    }

    pub(super) fn range(&self) -> (usize, usize) {
        (self.from, self.to)
    }
}

impl Board {
    /// A page of the newest version, or with a token of the version that the page before came from. `now_ms`: Unix, see
    /// [`super::now_ms`].
    pub fn page(&self, query: &PageQuery, now_ms: u64) -> Result<Page, ReadError> {
        if query.limit == 0 || query.limit > PAGE_MAX {
            let (what, asked, max) = ("page", query.limit, PAGE_MAX);
            return self.count(Err(ReadError::TooMany { what, asked, max }));
        }
        let page = match &query.token {
            None => self.first_page(query, now_ms),
            Some(token) => self.next_page(query, token, now_ms),
        };
        self.count(page)
    }

    fn first_page(&self, query: &PageQuery, now_ms: u64) -> Result<Page, ReadError> {
        let (snapshot, fresh) = self.admit(query.max_age_ms, now_ms)?;
        let moved = query
            .viewer
            .as_ref()
            .and_then(|viewer| self.moved(&snapshot, viewer.as_str()));
        let cursor = Cursor {
            version: snapshot.version(),
            tag: snapshot.tag() as u32,
            offset: query.offset.min(u32::MAX as usize) as u32,
            limit: query.limit as u16,
            seen: moved.as_ref().map(|moved| moved.order),
        };
        Ok(self.cut(
            View { snapshot, moved },
            cursor,
            query.viewer.as_ref(),
            fresh,
        ))
    }

    fn next_page(&self, query: &PageQuery, token: &str, now_ms: u64) -> Result<Page, ReadError> {
        let cursor = Cursor::parse(token, &self.spec().name, query.viewer.as_ref())?;
        let held = self.version(cursor.version);
        let Some(snapshot) = held.filter(|held| held.tag() as u32 == cursor.tag) else {
            let Some(newest) = self.snapshot() else {
                return Err(self.empty());
            };
            return Err(ReadError::Gone {
                board: self.spec().name.clone(),
                asked: cursor.version,
                newest: newest.version(),
            });
        };
        let fresh = self.fresh_enough(&snapshot, query.max_age_ms, now_ms)?;
        // Her row stays where she saw it on the first page, whatever she wrote since.
        let moved = match (&query.viewer, cursor.seen) {
            (Some(viewer), Some(order)) => Some(Moved::of(&snapshot, viewer.as_str(), order)),
            _ => None,
        };
        Ok(self.cut(
            View { snapshot, moved },
            cursor,
            query.viewer.as_ref(),
            fresh,
        ))
    }

    fn cut(&self, view: View, cursor: Cursor, viewer: Option<&PlayerId>, fresh: Freshness) -> Page {
        let from = (cursor.offset as usize).min(view.len());
        let to = (from + usize::from(cursor.limit)).min(view.len());
        let next = (to < view.len()).then(|| {
            let next = Cursor {
                offset: to as u32,
                ..cursor
            };
            next.text(&self.spec().name, viewer)
        });
        let of = match (&view.moved, viewer) {
            (Some(_), _) => Audience::Her,
            (None, Some(_)) => Audience::Viewer,
            (None, None) => Audience::Everybody,
        };
        Page {
            view,
            law: *self.law(),
            from,
            to,
            next,
            fresh,
            of,
        }
    }

    /// The newest snapshot, if it is young enough.
    pub(super) fn admit(
        &self,
        max_age_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<(Arc<Snapshot>, Freshness), ReadError> {
        let snapshot = self.snapshot().ok_or_else(|| self.empty())?;
        let fresh = self.fresh_enough(&snapshot, max_age_ms, now_ms)?;
        Ok((snapshot, fresh))
    }

    fn fresh_enough(
        &self,
        snapshot: &Snapshot,
        max_age_ms: Option<u64>,
        now_ms: u64,
    ) -> Result<Freshness, ReadError> {
        let (age_ms, store, spec) = (snapshot.age_ms(now_ms), self.store(), self.spec());
        if snapshot.is_final() {
            return Ok(Freshness {
                age_ms,
                ttl_ms: None,
                stale: false,
                store,
            });
        }
        let allowed = [spec.refuse_after_ms, max_age_ms]
            .into_iter()
            .flatten()
            .min();
        if let Some(allowed_ms) = allowed.filter(|&allowed| age_ms > allowed) {
            let board = spec.name.clone();
            return Err(ReadError::Stale {
                board,
                age_ms,
                allowed_ms,
            });
        }
        let ttl_ms = spec.fresh_ms.min(i64::MAX as u64) as i64;
        let ttl_ms = ttl_ms.saturating_sub_unsigned(age_ms);
        Ok(Freshness {
            age_ms,
            ttl_ms: Some(ttl_ms),
            stale: ttl_ms < 0,
            store,
        })
    }

    fn empty(&self) -> ReadError {
        ReadError::Empty {
            board: self.spec().name.clone(),
        }
    }

    /// Where her pending writes put her.
    pub(super) fn moved(&self, snapshot: &Snapshot, player: &str) -> Option<Moved> {
        let overlay: &dyn Overlay = self.overlay.get()?.as_ref();
        let base = snapshot
            .index(player)
            .and_then(|index| snapshot.entry(index))
            .map(|entry| entry.order);
        let order = overlay.pending(player, base, snapshot.as_of_ms())?;
        (base != Some(order)).then(|| Moved::of(snapshot, player, order))
    }

    pub(super) fn around_index(
        &self,
        view: View,
        index: usize,
        radius: usize,
        fresh: Freshness,
    ) -> Page {
        let from = index.saturating_sub(radius);
        let to = (index + radius + 1).min(view.len());
        Page {
            view,
            law: *self.law(),
            from,
            to,
            next: None,
            fresh,
            of: Audience::Her,
        }
    }
}

#[cfg(test)]
mod tests;
