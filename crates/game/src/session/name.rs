//! The nouns: what is played (a key), who serves it (an instance), where in its life a player is (a stage), and a clock.
//! Foreign text becomes a name here, once, or is refused.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant as Monotonic, SystemTime, UNIX_EPOCH};

/// Bytes of a name; what the mesh's directory takes.
pub const NAME_MAX: usize = 128;

/// No name: it has to be 1 to [`NAME_MAX`] visible ASCII characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name has 1 to {NAME_MAX} visible ASCII characters")]
pub struct BadName;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        /// 1 to [`NAME_MAX`] visible ASCII characters. Cheap to clone.
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// # Errors
            /// [`BadName`]
            pub fn parse(text: &str) -> Result<Self, BadName> {
                let fits = (1..=NAME_MAX).contains(&text.len());
                match fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
                    true => Ok(Self(text.into())),
                    false => Err(BadName),
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadName;

            fn from_str(text: &str) -> Result<Self, BadName> {
                Self::parse(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name! {
    /// What is played, or who plays: a room, a player's session, a guild. The value of `x-game-session`.
    Key
}
name! {
    /// Who serves it: the id of a room server within its service.
    Instance
}

/// Where in its life a player's session is, most urgent first: whoever has most to lose comes back first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Stage {
    InBattle,
    Reconnecting,
    Loading,
    Queueing,
    Browsing,
}

impl Stage {
    pub const COUNT: usize = 5;
    pub const ALL: [Self; Self::COUNT] = [
        Self::InBattle,
        Self::Reconnecting,
        Self::Loading,
        Self::Queueing,
        Self::Browsing,
    ];

    /// As labels of metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InBattle => "in_battle",
            Self::Reconnecting => "reconnecting",
            Self::Loading => "loading",
            Self::Queueing => "queueing",
            Self::Browsing => "browsing",
        }
    }

    /// Its place in [`Stage::ALL`].
    pub fn index(self) -> usize {
        usize::from(self as u8)
    }

    pub fn from_index(index: u8) -> Option<Self> {
        Self::ALL.get(usize::from(index)).copied()
    }
}

/// Unix time as it was at the start, plus what has passed since: shown and signed like wall-clock time, but it never jumps.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    unix: Duration,
    start: Monotonic,
}

impl Clock {
    pub fn start() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            unix: unix.unwrap_or_default(),
            start: Monotonic::now(),
        }
    }

    /// Since the Unix epoch.
    pub fn now(&self) -> Duration {
        self.unix + self.start.elapsed()
    }
}

/// Whole milliseconds; what doesn't fit is the greatest.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_visible_ascii_of_bounded_length() {
        for good in ["a", "room-7", "default/battle/7", &"x".repeat(NAME_MAX)] {
            assert_eq!(Key::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "a b", "räum", "a\n", &"x".repeat(NAME_MAX + 1)] {
            assert_eq!(Instance::parse(bad), Err(BadName), "{bad:?}");
        }
    }

    #[test]
    fn stages_come_in_the_order_of_what_is_at_stake() {
        assert!(Stage::ALL.is_sorted());
        for (index, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage.index(), index);
            assert_eq!(Stage::from_index(index as u8), Some(stage));
        }
        assert_eq!(Stage::from_index(5), None);
    }
}
