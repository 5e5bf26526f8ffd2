//! What a peer may do to one connection. Each bound has a name for a metric and a test; over it the connection ends with
//! ENHANCE_YOUR_CALM, but for the ones that only refuse a stream.

/// Which one was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Bound {
    /// More streams at once than offered; those reset but not yet let go of here count. The stream is refused.
    #[error("too many streams")]
    Streams,
    /// A list of fields over the limit. Answered with 431, or the answer is refused.
    #[error("a head over the limits")]
    Head,
    /// A block of HEADERS and CONTINUATION of twice what any list within the limits takes.
    #[error("a header block over the limits")]
    Block,
    /// Frames of one block, or one that adds nothing.
    #[error("too many CONTINUATION frames")]
    Continuations,
    /// Resets of unanswered streams, and resets that the peer's errors forced us to send.
    #[error("too many resets")]
    Resets,
    /// PING, SETTINGS, PRIORITY, WINDOW_UPDATE, empty DATA and unknown frames without progress.
    #[error("too many frames without progress")]
    Control,
    /// Entries of one SETTINGS frame.
    #[error("too many settings in one frame")]
    Settings,
    /// What a peer makes us say without reading any of it.
    #[error("too many replies unread")]
    Unread,
}

impl Bound {
    pub const ALL: [Self; 8] = [
        Self::Streams,
        Self::Head,
        Self::Block,
        Self::Continuations,
        Self::Resets,
        Self::Control,
        Self::Settings,
        Self::Unread,
    ];

    /// For a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::Head => "head",
            Self::Block => "block",
            Self::Continuations => "continuations",
            Self::Resets => "resets",
            Self::Control => "control",
            Self::Settings => "settings",
            Self::Unread => "unread",
        }
    }
}

/// Frames of one block beside HEADERS. One of 64 KiB takes four.
pub(super) const CONTINUATIONS_MAX: u32 = 32;

/// Patience for frames that bring nothing forward: spent by them, given back by progress and by time.
#[derive(Debug)]
pub(super) struct Calm {
    points: u32,
    /// Frames that may still come for streams that we ended.
    late: u32,
    seen_s: u32,
}

impl Default for Calm {
    fn default() -> Self {
        Self {
            points: POINTS_MAX,
            late: 0,
            seen_s: 0,
        }
    }
}

impl Calm {
    /// Seconds since the last time.
    pub(super) fn pass_time(&mut self, now_s: u32) -> u32 {
        let passed = now_s.saturating_sub(self.seen_s);
        if passed > 0 {
            self.seen_s = now_s;
            self.earn(passed.saturating_mul(POINTS_PER_SECOND));
        }
        passed
    }

    /// We end a stream of our own accord, and the peer may not have heard of it: what it has sent is no fault of its.
    /// `answers`: they are those of a server that we chose, which may be many messages.
    pub(super) fn expect_late(&mut self, answers: bool) {
        let more = if answers { LATE_ANSWERS } else { LATE_REQUESTS };
        self.late = self.late.saturating_add(more).min(LATE_MAX);
    }

    /// A frame of a stream that we ended.
    pub(super) fn late(&mut self) -> Result<(), Bound> {
        match self.late.checked_sub(1) {
            Some(left) => self.late = left,
            None => self.spend(1)?,
        }
        Ok(())
    }

    #[inline]
    pub(super) fn earn(&mut self, points: u32) {
        self.points = self.points.saturating_add(points).min(POINTS_MAX);
    }

    #[inline]
    pub(super) fn spend(&mut self, points: u32) -> Result<(), Bound> {
        self.points = self.points.checked_sub(points).ok_or(Bound::Control)?;
        Ok(())
    }
}

/// A peer that pings for every frame it is sent stays below; one that does nothing else is cut after so many.
pub(super) const POINTS_MAX: u32 = 1000;
const POINTS_PER_SECOND: u32 = 20;
/// A request that begins, or an answer.
pub(super) const POINTS_PER_HEAD: u32 = 10;
/// A DATA frame that was sent and not cut short to almost nothing by the peer's window.
pub(super) const POINTS_PER_DATA: u32 = 4;
pub(super) const POINTS_OF_SETTINGS: u32 = 10;
/// What may be on its way of one stream, and of all together.
const LATE_ANSWERS: u32 = 512;
const LATE_REQUESTS: u32 = 32;
const LATE_MAX: u32 = 64 << 10;
const RESETS_FORGIVEN_PER_SECOND: u32 = 5;
/// A DATA frame that a window cut shorter is no progress.
pub(super) const PROGRESS_BYTES_MIN: usize = 256;

/// Resets that a peer made or forced, beside the requests it began.
#[derive(Debug, Default)]
pub(super) struct Resets {
    resets: u32,
    begun: u32,
}

impl Resets {
    #[inline]
    pub(super) fn begin(&mut self) {
        self.begun = self.begun.saturating_add(1);
    }

    /// Somebody who gives up now and then may do so for ever.
    pub(super) fn pass_time(&mut self, passed_s: u32) {
        let forgiven = passed_s.saturating_mul(RESETS_FORGIVEN_PER_SECOND);
        self.resets = self.resets.saturating_sub(forgiven);
    }

    /// `allowed`, and a fifth of all requests beside.
    pub(super) fn count(&mut self, allowed: u32) -> Result<(), Bound> {
        self.resets = self.resets.saturating_add(1);
        if self.resets > allowed.saturating_add(self.begun / 5) {
            return Err(Bound::Resets);
        }
        Ok(())
    }
}
