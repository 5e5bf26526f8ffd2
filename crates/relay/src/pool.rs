//! The memory of one core: buffers, requests and heads that no connection needs right now. Connections take what they
//! need and give it back as soon as they are idle, so that an idle one holds none.

use crate::checked::Workspace;
use crate::header::HeaderList;
use crate::response::ResponseHead;

/// One per core. What exceeds its bounds is freed instead of kept.
#[derive(Default)]
pub struct Pool {
    buffers: Vec<Vec<u8>>,
    /// What they hold together.
    kept: usize,
    workspaces: Vec<Workspace>,
    heads: Vec<ResponseHead>,
    lists: Vec<HeaderList>,
    /// Where a head stands while it is parsed.
    pub(crate) scratch: Vec<u8>,
}

impl Pool {
    /// An empty buffer.
    pub fn buffer(&mut self) -> Vec<u8> {
        let buffer = self.buffers.pop().unwrap_or_default();
        self.kept -= buffer.capacity();
        buffer
    }

    pub fn put_buffer(&mut self, mut buffer: Vec<u8>) {
        let small = (1..=BUFFER_BYTES_KEPT_MAX).contains(&buffer.capacity());
        let kept = self.kept.saturating_add(buffer.capacity());
        if small && kept <= BYTES_KEPT_MAX && self.buffers.len() < BUFFERS_KEPT_MAX {
            self.kept = kept;
            buffer.clear();
            self.buffers.push(buffer);
        }
    }

    pub fn workspace(&mut self) -> Workspace {
        self.workspaces.pop().unwrap_or_default()
    }

    pub fn put_workspace(&mut self, workspace: Workspace) {
        if self.workspaces.len() < HEADS_KEPT_MAX {
            self.workspaces.push(workspace);
        }
    }

    pub fn head(&mut self) -> ResponseHead {
        self.heads.pop().unwrap_or_default()
    }

    pub fn put_head(&mut self, mut head: ResponseHead) {
        if self.heads.len() < HEADS_KEPT_MAX {
            head.headers.clear();
            self.heads.push(head);
        }
    }

    /// An empty list, as for trailers.
    pub fn list(&mut self) -> HeaderList {
        self.lists.pop().unwrap_or_default()
    }

    pub fn put_list(&mut self, mut list: HeaderList) {
        if self.lists.len() < HEADS_KEPT_MAX {
            list.clear();
            self.lists.push(list);
        }
    }

    /// Makes room for what comes after one odd head.
    pub(crate) fn trim_scratch(&mut self) {
        self.scratch.clear();
        self.scratch.shrink_to(BUFFER_BYTES_KEPT_MAX);
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("buffers", &self.buffers.len())
            .field("workspaces", &self.workspaces.len())
            .field("heads", &self.heads.len())
            .field("lists", &self.lists.len())
            .finish_non_exhaustive()
    }
}

/// What a core keeps at most, in buffers of this size and smaller.
const BYTES_KEPT_MAX: usize = 4 << 20;
const BUFFER_BYTES_KEPT_MAX: usize = 64 << 10;
const BUFFERS_KEPT_MAX: usize = 256;
const HEADS_KEPT_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_are_freed_and_others_used_again() {
        let mut pool = Pool::default();
        pool.put_buffer(Vec::new());
        pool.put_buffer(Vec::with_capacity(BUFFER_BYTES_KEPT_MAX * 2));
        assert_eq!(pool.buffer().capacity(), 0);
        let mut used = Vec::with_capacity(100);
        used.push(1);
        pool.put_buffer(used);
        let again = pool.buffer();
        assert!(again.is_empty() && again.capacity() >= 100);
    }

    #[test]
    fn pool_keeps_a_bounded_number() {
        let mut pool = Pool::default();
        for _ in 0..BUFFERS_KEPT_MAX * 2 {
            pool.put_buffer(Vec::with_capacity(1));
            pool.put_workspace(Workspace::default());
            pool.put_head(ResponseHead::default());
            pool.put_list(HeaderList::default());
        }
        assert_eq!(pool.buffers.len(), BUFFERS_KEPT_MAX);
        assert_eq!(pool.workspaces.len(), HEADS_KEPT_MAX);
        assert_eq!(pool.heads.len(), HEADS_KEPT_MAX);
        assert_eq!(pool.lists.len(), HEADS_KEPT_MAX);
    }
}
