//! A record of the log: format, operation, epoch (u32), when it was written (Unix ms), points and their time, the player.
//! Whole numbers little endian.

use crate::board::kind::{Kind, PlayerId};
use crate::board::order::Law;
use crate::board::redis::script::{Change, Operation};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::board) struct Write {
    pub(in crate::board) record: Record,
    /// The epoch that it is meant for, 0 if nobody knew.
    pub(in crate::board) epoch: u32,
    pub(in crate::board) player: PlayerId,
    pub(in crate::board) written_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::board) enum Record {
    Points { points: i64, at_ms: u64 },
    Remove,
    Ban,
    Unban,
}

impl Write {
    pub(in crate::board) fn encode(&self) -> Vec<u8> {
        let (operation, points, at_ms) = match self.record {
            Record::Points { points, at_ms } => (POINTS, points, at_ms),
            Record::Remove => (REMOVE, 0, 0),
            Record::Ban => (BAN, 0, 0),
            Record::Unban => (UNBAN, 0, 0),
        };
        let mut bytes = vec![FORMAT, operation];
        bytes.extend_from_slice(&self.epoch.to_le_bytes());
        bytes.extend_from_slice(&self.written_ms.to_le_bytes());
        bytes.extend_from_slice(&points.to_le_bytes());
        bytes.extend_from_slice(&at_ms.to_le_bytes());
        bytes.extend_from_slice(self.player.as_str().as_bytes());
        bytes
    }

    /// `None` for what another version wrote.
    pub(in crate::board) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&[format, operation], rest) = bytes.split_first_chunk()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (written_ms, rest) = rest.split_first_chunk()?;
        let (points, rest) = rest.split_first_chunk()?;
        let (at_ms, player) = rest.split_first_chunk()?;
        let record = match operation {
            POINTS => Record::Points {
                points: i64::from_le_bytes(*points),
                at_ms: u64::from_le_bytes(*at_ms),
            },
            REMOVE => Record::Remove,
            BAN => Record::Ban,
            UNBAN => Record::Unban,
            _ => return None,
        };
        let player = PlayerId::parse(std::str::from_utf8(player).ok()?).ok()?;
        (format == FORMAT).then_some(Self {
            record,
            epoch: u32::from_le_bytes(*epoch),
            player,
            written_ms: u64::from_le_bytes(*written_ms),
        })
    }
}

/// What the store is to do about a record, by the board's rule; also about one that can't be read, which keeps its number.
pub(super) fn change(law: &Law, write: Option<Write>) -> Change {
    let skip = |player: String| Change {
        operation: Operation::Skip,
        epoch: 0,
        player,
        numbers: (0, 0),
    };
    let Some(write) = write else {
        return skip(String::new());
    };
    let player: String = write.player.into();
    let change = |operation, numbers| Change {
        operation,
        epoch: write.epoch,
        player: player.clone(),
        numbers,
    };
    match write.record {
        Record::Remove => change(Operation::Remove, (0, 0)),
        Record::Ban => change(Operation::Ban, (0, 0)),
        Record::Unban => change(Operation::Unban, (0, 0)),
        Record::Points { points, at_ms } => match law.kind() {
            Kind::Best(_) => match law.order(points, at_ms) {
                Ok(order) => change(Operation::Best, (order.bits() as i64, 0)),
                Err(_) => skip(player),
            },
            Kind::Sum(_) => {
                let step = law.sum_step(points, at_ms);
                change(Operation::Sum, (step.step, step.tick))
            }
            Kind::Decayed { .. } => match law.decay_step(points, at_ms) {
                Ok(step) => change(Operation::Decay, (step.gain as i64, 0)),
                Err(_) => skip(player),
            },
        },
    }
}

const FORMAT: u8 = 1;
const POINTS: u8 = 0;
const REMOVE: u8 = 1;
const BAN: u8 = 2;
const UNBAN: u8 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_are_read_as_they_were_written(
            operation in 0_u8..4,
            (points, at_ms, written_ms) in any::<(i64, u64, u64)>(),
            epoch in any::<u32>(),
            player in "[a-zé0-9]{1,20}",
        ) {
            let record = match operation {
                0 => Record::Points { points, at_ms },
                1 => Record::Remove,
                2 => Record::Ban,
                _ => Record::Unban,
            };
            let player = PlayerId::parse(&player).unwrap();
            let write = Write { record, epoch, player, written_ms };
            prop_assert_eq!(Write::decode(&write.encode()), Some(write));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Write::decode(&bytes);
        }
    }
}
