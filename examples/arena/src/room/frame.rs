//! What players and rooms say: one datagram each way per frame, numbers in network order.

/// A player's word: who, which frame, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub player: u32,
    /// From 1, one more with each frame.
    pub frame: u32,
    pub dx: i16,
    pub dy: i16,
}

/// The room's word: where the player is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    pub room: u8,
    pub player: u32,
    /// The one that is answered.
    pub frame: u32,
    /// How many the player has made in this room.
    pub steps: u32,
    pub x: i32,
    pub y: i32,
    pub players: u32,
}

pub const STEP_LEN: usize = 12;
pub const MOVED_LEN: usize = 25;

impl Step {
    pub fn written(&self) -> [u8; STEP_LEN] {
        let mut bytes = [0; STEP_LEN];
        bytes[..4].copy_from_slice(&self.player.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.frame.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.dx.to_be_bytes());
        bytes[10..].copy_from_slice(&self.dy.to_be_bytes());
        bytes
    }

    /// None for what is no step.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; STEP_LEN] = bytes.try_into().ok()?;
        let [p0, p1, p2, p3, f0, f1, f2, f3, x0, x1, y0, y1] = *bytes;
        Some(Self {
            player: u32::from_be_bytes([p0, p1, p2, p3]),
            frame: u32::from_be_bytes([f0, f1, f2, f3]),
            dx: i16::from_be_bytes([x0, x1]),
            dy: i16::from_be_bytes([y0, y1]),
        })
    }
}

impl Moved {
    pub fn written(&self) -> [u8; MOVED_LEN] {
        let mut bytes = [0; MOVED_LEN];
        bytes[0] = self.room;
        let words = [
            self.player,
            self.frame,
            self.steps,
            self.x.cast_unsigned(),
            self.y.cast_unsigned(),
            self.players,
        ];
        for (place, word) in bytes[1..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes
    }

    /// None for what is no answer.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (room, words) = bytes.split_first()?;
        let (words, rest) = words.as_chunks::<4>();
        let [player, frame, steps, x, y, players] = words else {
            return None;
        };
        rest.is_empty().then(|| Self {
            room: *room,
            player: u32::from_be_bytes(*player),
            frame: u32::from_be_bytes(*frame),
            steps: u32::from_be_bytes(*steps),
            x: i32::from_be_bytes(*x),
            y: i32::from_be_bytes(*y),
            players: u32::from_be_bytes(*players),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let step = Step {
            player: 7,
            frame: 0x0102_0304,
            dx: -5,
            dy: 200,
        };
        assert_eq!(Step::read(&step.written()), Some(step));
        let moved = Moved {
            room: 2,
            player: 7,
            frame: 9,
            steps: 8,
            x: -10_000,
            y: 3,
            players: 40,
        };
        assert_eq!(Moved::read(&moved.written()), Some(moved));
        for len in [0, 1, 11, 13, 24, 26] {
            assert_eq!(Step::read(&vec![0; len]), None);
            assert_eq!(Moved::read(&vec![0; len]), None);
        }
    }
}
