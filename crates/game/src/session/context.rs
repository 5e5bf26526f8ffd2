//! A game session on its way through services: `x-game-session`, trace and baggage, taken from a call that comes in and put
//! on the calls that it causes. Works on pairs of name and value, so that `http`'s headers, tonic's metadata and anything
//! else fit. Whether a session is traced follows from its name, so that it is kept or dropped whole; a span's id never does.

use phalanx_telemetry::trace::{TRACEPARENT, TRACESTATE, TraceContext, tracestate_valid};
use xxhash_rust::xxh3::xxh3_64;

use super::name::Key;

pub const GAME_SESSION: &str = "x-game-session";
pub const BAGGAGE: &str = "baggage";
/// The header that says which epoch of its seat a session has, by the mesh's sidecar.
pub const SESSION_EPOCH: &str = "x-session-epoch";

/// Bytes of all baggage; what OpenTelemetry's libraries take. More is left behind.
pub const BAGGAGE_MAX: usize = 8_192;
/// Members of it.
pub const BAGGAGE_MEMBERS_MAX: usize = 64;
/// Bytes of all trace state.
pub const STATE_MAX: usize = 8_192;

/// Randomness has so many bits (W3C Trace Context, level 2; OpenTelemetry's consistent probability sampling).
const RANDOM_BITS: u32 = 56;

/// What a call carries. Put [`Context::session`] on spans as the attribute `session.id`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    pub session: Option<Key>,
    /// Of the session's seat, where a sidecar said it.
    pub epoch: Option<u64>,
    pub trace: Option<TraceContext>,
    /// As it came; empty: none.
    state: String,
    baggage: String,
}

impl Context {
    /// Takes what is there and valid. Names are compared without regard to case; of a header that must be there once, none
    /// counts where there are several. An edge has to take away what clients write there themselves.
    pub fn extract<'a, V: AsRef<[u8]> + ?Sized + 'a>(
        headers: impl IntoIterator<Item = (&'a str, &'a V)>,
    ) -> Self {
        let mut found = Found::default();
        for (name, value) in headers {
            let value = value.as_ref();
            match name {
                _ if name.eq_ignore_ascii_case(GAME_SESSION) => found.session.add(value),
                _ if name.eq_ignore_ascii_case(SESSION_EPOCH) => found.epoch.add(value),
                _ if name.eq_ignore_ascii_case(TRACEPARENT) => found.parent.add(value),
                _ if name.eq_ignore_ascii_case(TRACESTATE) => found.state.push(value),
                _ if name.eq_ignore_ascii_case(BAGGAGE) => found.baggage.push(value),
                _ => {}
            }
        }
        let text = |once: Once<'a>| {
            once.only()
                .and_then(|value| std::str::from_utf8(value).ok())
        };
        let trace = found.parent.only();
        let trace = trace.and_then(|value| TraceContext::parse(value).ok());
        let state = match trace.is_some() && tracestate_valid(found.state.iter().copied()) {
            true => joined(&found.state, STATE_MAX),
            false => String::new(),
        };
        let members = found
            .baggage
            .iter()
            .flat_map(|value| value.split(|byte| *byte == b','));
        let baggage = match members.count() <= BAGGAGE_MEMBERS_MAX {
            true => joined(&found.baggage, BAGGAGE_MAX),
            false => String::new(),
        };
        Self {
            session: text(found.session).and_then(|text| Key::parse(text).ok()),
            epoch: text(found.epoch).and_then(|text| text.parse().ok()),
            trace,
            state,
            baggage,
        }
    }

    /// For a call that a session's own action begins: no trace yet.
    pub fn of(session: Key) -> Self {
        Self {
            session: Some(session),
            ..Self::default()
        }
    }

    /// The next hop: the same trace with a new span, or a new trace, sampled by [`sampled`] at `ratio` (0 to 1) for the
    /// session, else by chance. Whether a trace that came in is sampled was decided where it began.
    #[must_use]
    pub fn child(&self, ratio: f64, rng: &mut fastrand::Rng) -> Self {
        let (trace, state) = match (&self.trace, &self.session) {
            (Some(parent), _) => (parent.child(rng), self.state.clone()),
            (None, Some(session)) => {
                let trace = TraceContext::mint(rng, sampled(session, ratio));
                // Samplers further on decide by the same randomness.
                (trace, format!("ot=rv:{:014x}", randomness(session)))
            }
            (None, None) => {
                let sampled = rng.f64() < ratio;
                (TraceContext::mint(rng, sampled), String::new())
            }
        };
        Self {
            trace: Some(trace),
            state,
            // It is this service's; the next one is told its own by its sidecar.
            epoch: None,
            ..self.clone()
        }
    }

    /// Each header to set, in lower case. Not for calls to third parties.
    pub fn inject(&self, mut set: impl FnMut(&'static str, &str)) {
        if let Some(session) = &self.session {
            set(GAME_SESSION, session.as_str());
        }
        if let Some(trace) = &self.trace {
            let value = trace.encode();
            if let Ok(value) = std::str::from_utf8(&value) {
                set(TRACEPARENT, value);
            }
            if !self.state.is_empty() {
                set(TRACESTATE, &self.state);
            }
        }
        if !self.baggage.is_empty() {
            set(BAGGAGE, &self.baggage);
        }
    }

    pub fn baggage(&self) -> &str {
        &self.baggage
    }

    pub fn trace_state(&self) -> &str {
        &self.state
    }
}

/// Whether a session's traces are kept at `ratio` (0 to 1): the same answer in every service, and of all that is kept at a
/// lower ratio, too.
pub fn sampled(session: &Key, ratio: f64) -> bool {
    let all = 1_u64 << RANDOM_BITS;
    let kept = (ratio.clamp(0.0, 1.0) * all as f64) as u64;
    randomness(session) >= all - kept.min(all)
}

/// 56 bits that follow from a session's name.
fn randomness(session: &Key) -> u64 {
    xxh3_64(session.as_str().as_bytes()) & ((1 << RANDOM_BITS) - 1)
}

#[derive(Default)]
struct Found<'a> {
    session: Once<'a>,
    epoch: Once<'a>,
    parent: Once<'a>,
    state: Vec<&'a [u8]>,
    baggage: Vec<&'a [u8]>,
}

/// A header that is there once.
#[derive(Clone, Copy, Default)]
enum Once<'a> {
    #[default]
    None,
    One(&'a [u8]),
    Several,
}

impl<'a> Once<'a> {
    fn add(&mut self, value: &'a [u8]) {
        *self = match self {
            Self::None => Self::One(value),
            Self::One(_) | Self::Several => Self::Several,
        };
    }

    fn only(self) -> Option<&'a [u8]> {
        match self {
            Self::One(value) => Some(value),
            Self::None | Self::Several => None,
        }
    }
}

/// Values of a list as one; empty where they are too long or not to be written as one header.
fn joined(values: &[&[u8]], most: usize) -> String {
    let joined = values.join(&b","[..]);
    let fits = joined.len() <= most
        && joined
            .iter()
            .all(|byte| matches!(byte, 0x20..=0x7e | b'\t'));
    match fits {
        true => String::from_utf8(joined).unwrap_or_default(),
        false => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn set(context: &Context) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        context.inject(|name, value| headers.push((name, value.to_owned())));
        headers
    }

    #[test]
    fn what_came_in_goes_out_by_a_new_span_of_the_same_trace() {
        let came = [
            ("X-Game-Session", "room-7"),
            ("traceparent", PARENT),
            ("tracestate", "a=1"),
            ("tracestate", "b=2"),
            ("Baggage", "mode=ranked"),
            ("x-session-epoch", "41"),
            ("accept", "*/*"),
        ];
        let context = Context::extract(came);
        assert_eq!(context.epoch, Some(41));
        let mut rng = fastrand::Rng::with_seed(1);
        let next = context.child(0.0, &mut rng);
        let (parent, child) = (context.trace.unwrap(), next.trace.unwrap());
        assert_eq!(parent.trace_id(), child.trace_id());
        assert_ne!(parent.span_id(), child.span_id());
        assert!(child.sampled(), "as it was decided where it began");
        let out = set(&next);
        let names: Vec<&str> = out.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            names,
            ["x-game-session", "traceparent", "tracestate", "baggage"]
        );
        let pairs = out.iter().map(|(name, value)| (*name, value.as_str()));
        let again = Context::extract(pairs);
        assert_eq!(again, next);
        assert_eq!(again.trace_state(), "a=1,b=2");
    }

    #[test]
    fn what_is_not_valid_is_left_behind() {
        let long = "x".repeat(BAGGAGE_MAX + 1);
        let many = ["a=1"; BAGGAGE_MEMBERS_MAX + 1].join(",");
        let context = Context::extract([
            ("x-game-session", "one"),
            ("x-game-session", "two"),
            ("traceparent", "00-0-0-00"),
            ("tracestate", "a=1"),
            ("baggage", long.as_str()),
        ]);
        assert_eq!(context, Context::default());
        assert_eq!(Context::extract([("baggage", &many[..])]).baggage(), "");
        assert_eq!(Context::extract([("baggage", "a=\u{7}")]).baggage(), "");
        let bytes: [(&str, &[u8]); 1] = [("x-game-session", b"r\xff")];
        assert_eq!(Context::extract(bytes).session, None);
    }

    #[test]
    fn a_session_is_sampled_whole_and_as_often_as_asked_for() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut kept = 0;
        for n in 0..10_000 {
            let session = Key::parse(&format!("room-{n}")).unwrap();
            let first = Context::of(session.clone()).child(0.1, &mut rng);
            let second = Context::of(session.clone()).child(0.1, &mut rng);
            let (a, b) = (first.trace.unwrap(), second.trace.unwrap());
            assert_eq!(a.sampled(), b.sampled());
            assert_ne!((a.trace_id(), a.span_id()), (b.trace_id(), b.span_id()));
            assert_eq!(first.trace_state(), second.trace_state());
            assert!(tracestate_valid([first.trace_state().as_bytes()]));
            assert!(!a.sampled() || sampled(&session, 0.2));
            assert!(sampled(&session, 1.0) && !sampled(&session, 0.0));
            kept += u32::from(a.sampled());
        }
        assert!((900..1_100).contains(&kept), "{kept}");
    }
}
