//! What a board is in Redis, and the scripts that read and change it. All of a board's keys share one hash tag, so that they
//! live on one node of a cluster and a script sees one state of all of them.
//!
//! | key | what |
//! |---|---|
//! | `…:meta` | hash: `epoch`, `seq` (goes up with every change), `law`, `born` (drawn when the board was made), `floor`, `closed` |
//! | `…:e<epoch>` | the board: sorted set of players by order, smaller is better |
//! | `…:changed:e<epoch>` | sorted set: player by the `seq` of her last change, the newest [`CHANGED_MAX`] |
//! | `…:sources`, `…:seen` | the last number applied of each log, and when (Unix s) |
//! | `…:banned` | set of players who stay off the board |

use std::sync::OnceLock;

use redis::{Cmd, Script, Value, cmd};

use super::link::{Failure, StoreError, Text};
use crate::board::kind::PlayerId;
use crate::board::order::Order;
use crate::board::snapshot::Version;

/// The names of a board's keys.
#[derive(Clone, Debug)]
pub(in crate::board) struct Keys {
    root: String,
}

impl Keys {
    /// `prefix` tells apart who shares a Redis.
    pub(in crate::board) fn new(prefix: &str, board: &str) -> Self {
        Self {
            root: format!("{prefix}{{board:{board}}}"),
        }
    }

    pub(in crate::board) fn meta(&self) -> String {
        format!("{}:meta", self.root)
    }

    pub(in crate::board) fn board(&self, epoch: u32) -> String {
        format!("{}:e{epoch}", self.root)
    }

    fn changed(&self, epoch: u32) -> String {
        format!("{}:changed:e{epoch}", self.root)
    }

    fn sources(&self) -> String {
        format!("{}:sources", self.root)
    }

    fn all(&self, epoch: u32) -> [String; 6] {
        [
            self.meta(),
            self.board(epoch),
            self.changed(epoch),
            self.sources(),
            format!("{}:seen", self.root),
            format!("{}:banned", self.root),
        ]
    }
}

/// A script with its keys and arguments.
pub(in crate::board) struct Call<'a> {
    pub(super) script: &'a Script,
    pub(super) text: &'static str,
    keys: Vec<String>,
    arguments: Vec<String>,
}

impl Call<'_> {
    pub(super) fn command(&self, name: &str, script: &str) -> Cmd {
        let mut command = cmd(name);
        command.arg(script).arg(self.keys.len());
        for key in &self.keys {
            command.arg(key);
        }
        for argument in &self.arguments {
            command.arg(argument);
        }
        command
    }
}

fn text(cell: &'static OnceLock<Text>, text: &'static str) -> &'static Text {
    cell.get_or_init(|| Text {
        script: Script::new(text),
        text,
    })
}

fn call(of: &'static Text, keys: Vec<String>, arguments: Vec<String>) -> Call<'static> {
    Call {
        script: &of.script,
        text: of.text,
        keys,
        arguments,
    }
}

/// The state of a board at one instant, without its members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::board) struct Head {
    pub(in crate::board) epoch: u32,
    pub(in crate::board) seq: u64,
    /// Zero until something was written.
    pub(in crate::board) born: u64,
    /// Zero until something was written.
    pub(in crate::board) law: u64,
    pub(in crate::board) closed: bool,
    pub(in crate::board) total: u64,
    /// The last number applied of the source asked about.
    pub(in crate::board) applied: Option<u64>,
}

/// Members that changed, with their order now; `None` who is off the board.
pub(in crate::board) type Changes = Vec<(PlayerId, Option<Order>)>;

#[derive(Clone, Debug)]
pub(in crate::board) struct Reading {
    pub(in crate::board) head: Head,
    /// `None`: more than the store remembers, or `since` was none.
    pub(in crate::board) changes: Option<Changes>,
    /// (place from 1, order), as asked.
    pub(in crate::board) pivots: Vec<(u64, Order)>,
    /// Members that no writer of ours made.
    pub(in crate::board) foreign: u64,
}

/// The head, what changed after `since`, and who has `places`: all of one instant. If the board has another epoch by now,
/// the head alone.
pub(in crate::board) fn read(
    keys: &Keys,
    epoch: u32,
    source: Option<u64>,
    since: Option<u64>,
    places: &[u64],
) -> Call<'static> {
    static TEXT: OnceLock<Text> = OnceLock::new();
    let keys = vec![
        keys.meta(),
        keys.board(epoch),
        keys.changed(epoch),
        keys.sources(),
    ];
    let mut arguments = vec![
        epoch.to_string(),
        source.map_or_else(String::new, |source| source.to_string()),
        since.map_or_else(String::new, |since| since.to_string()),
        CHANGED_MAX.to_string(),
    ];
    arguments.extend(places.iter().map(|place| (place - 1).to_string()));
    call(text(&TEXT, READ), keys, arguments)
}

pub(in crate::board) fn reading(value: &Value) -> Result<Reading, StoreError> {
    let [head, all, changes, pivots] = list(value)? else {
        return Err(Failure::Protocol.into());
    };
    let [epoch, seq, born, law, closed, total, applied] = list(head)? else {
        return Err(Failure::Protocol.into());
    };
    let head = Head {
        epoch: of_epoch(epoch)?,
        seq: number(seq).and_then(|seq| match seq >> Version::SEQ_BITS {
            0 => Ok(seq),
            _ => Err(Failure::Protocol.into()),
        })?,
        born: number(born)?,
        law: number(law)?,
        closed: number(closed)? != 0,
        total: number(total)?,
        applied: optional(applied)?,
    };
    let mut foreign = 0;
    let mut changed = Changes::new();
    for pair in list(changes)?.chunks_exact(2) {
        match (player(&pair[0]), order(&pair[1])) {
            (Some(player), Ok(order)) => changed.push((player, order)),
            _ => foreign += 1,
        }
    }
    let mut at = Vec::new();
    for pair in list(pivots)?.chunks_exact(2) {
        if let Ok(Some(order)) = order(&pair[1]) {
            at.push((place(&pair[0])?, order));
        }
    }
    Ok(Reading {
        head,
        changes: (number(all)? != 0).then_some(changed),
        pivots: at,
        foreign,
    })
}

/// Members from `from` on, that one included, best first.
pub(in crate::board) fn chunk(keys: &Keys, epoch: u32, from: Option<Order>, most: usize) -> Cmd {
    let mut command = cmd("ZRANGE");
    command.arg(keys.board(epoch));
    match from {
        Some(from) => command.arg(from.bits()),
        None => command.arg("-inf"),
    };
    command.arg("+inf").arg("BYSCORE");
    command.arg("LIMIT").arg(0).arg(most).arg("WITHSCORES");
    command
}

/// Members with their orders, as `ZRANGE … WITHSCORES` gives them; how many there were, with those that no writer of ours made.
pub(in crate::board) fn members(
    value: &Value,
) -> Result<(Vec<(PlayerId, Order)>, usize), StoreError> {
    let values = list(value)?;
    let mut members = Vec::with_capacity(values.len() / 2);
    for pair in values.chunks_exact(2) {
        if let (Some(player), Ok(Some(order))) = (player(&pair[0]), order(&pair[1])) {
            members.push((player, order));
        }
    }
    Ok((members, values.len() / 2))
}

/// One change, as the script takes it: `operation`, epoch, player, two numbers.
#[derive(Clone, Debug)]
pub(in crate::board) struct Change {
    pub(in crate::board) operation: Operation,
    /// Zero: whatever the board's epoch is.
    pub(in crate::board) epoch: u32,
    pub(in crate::board) player: String,
    pub(in crate::board) numbers: (i64, u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::board) enum Operation {
    /// The order of a best result.
    Best,
    /// Step and tick of a sum.
    Sum,
    /// Gain of a decayed board.
    Decay,
    Remove,
    Ban,
    Unban,
    /// A record that this version can't read or the rule refuses: counted, nothing changes.
    Skip,
}

/// The rule's constants: (scale, range, origin) of sums, (ceiling, steps, ln 2) of decayed boards.
pub(in crate::board) type Constants = [String; 3];

/// What the shipper says with a batch.
#[derive(Clone, Debug)]
pub(in crate::board) struct Batch<'a> {
    pub(in crate::board) epoch: u32,
    pub(in crate::board) law: u64,
    pub(in crate::board) source: u64,
    /// The number before the batch's first.
    pub(in crate::board) from: u64,
    /// What the store was just found to know of the source, if records are missing between that and `from`.
    pub(in crate::board) gap: Option<Option<u64>>,
    pub(in crate::board) constants: &'a Constants,
    pub(in crate::board) changes: &'a [Change],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::board) enum Applied {
    Done {
        /// The last number that has been applied.
        last: u64,
        born: u64,
        /// Results of another epoch, or after the end: they change nothing.
        fenced: u64,
        /// Results of players who are banned.
        barred: u64,
        /// The orders of the last ones of the batch, `None` who is off the board.
        orders: Vec<Option<Order>>,
    },
    /// The board is in this epoch.
    Epoch(u32),
    /// The store doesn't have what was before the batch.
    Behind,
}

pub(in crate::board) fn apply(keys: &Keys, batch: &Batch<'_>) -> Call<'static> {
    static TEXT: OnceLock<Text> = OnceLock::new();
    let gap = match batch.gap {
        None => "-".to_owned(),
        Some(None) => String::new(),
        Some(Some(last)) => last.to_string(),
    };
    let mut arguments = vec![
        batch.epoch.to_string(),
        batch.law.to_string(),
        batch.source.to_string(),
        batch.from.to_string(),
        gap,
        fastrand::u64(1..).to_string(),
        CHANGED_MAX.to_string(),
        SOURCES_MAX.to_string(),
        SOURCE_IDLE_S.to_string(),
    ];
    arguments.extend(batch.constants.iter().cloned());
    for change in batch.changes {
        let operation = match change.operation {
            Operation::Best => "best",
            Operation::Sum => "sum",
            Operation::Decay => "decay",
            Operation::Remove => "remove",
            Operation::Ban => "ban",
            Operation::Unban => "unban",
            Operation::Skip => "skip",
        };
        arguments.push(operation.to_owned());
        arguments.push(change.epoch.to_string());
        arguments.push(change.player.clone());
        arguments.push(change.numbers.0.to_string());
        arguments.push(change.numbers.1.to_string());
    }
    call(text(&TEXT, APPLY), keys.all(batch.epoch).into(), arguments)
}

pub(in crate::board) fn applied(value: &Value) -> Result<Applied, StoreError> {
    let (word, rest) = answer(value)?;
    match (word, rest) {
        (b"ok", [last, born, fenced, barred, orders]) => Ok(Applied::Done {
            last: number(last)?,
            born: number(born)?,
            fenced: number(fenced)?,
            barred: number(barred)?,
            orders: list(orders)?.iter().map(order).collect::<Result<_, _>>()?,
        }),
        (b"epoch", [epoch]) => Ok(Applied::Epoch(of_epoch(epoch)?)),
        (b"behind", []) => Ok(Applied::Behind),
        (b"law", []) => Err(Failure::Foreign.into()),
        (b"crowded", []) => Err(Failure::Crowded.into()),
        _ => Err(Failure::Protocol.into()),
    }
}

/// Begins the next epoch with an empty board, or ends the board; `Err` of the epoch if it isn't `epoch`.
pub(in crate::board) fn turn(keys: &Keys, epoch: u32, law: u64, turn: Turn) -> Call<'static> {
    static TEXT: OnceLock<Text> = OnceLock::new();
    let (word, keep_s) = match turn {
        Turn::Reset { keep_s } => ("reset", keep_s),
        Turn::Close => ("close", 0),
    };
    let arguments = vec![
        epoch.to_string(),
        law.to_string(),
        word.to_owned(),
        keep_s.to_string(),
        fastrand::u64(1..).to_string(),
        EPOCH_MAX.to_string(),
    ];
    call(text(&TEXT, TURN), keys.all(epoch).into(), arguments)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::board) enum Turn {
    Reset { keep_s: u64 },
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::board) enum Turned {
    /// The board's epoch and `seq` now.
    Done {
        epoch: u32,
        seq: u64,
    },
    /// Somebody else was first.
    Epoch(u32),
    Closed,
    Last,
}

pub(in crate::board) fn turned(value: &Value) -> Result<Turned, StoreError> {
    let (word, rest) = answer(value)?;
    match (word, rest) {
        (b"ok", [at, seq]) => Ok(Turned::Done {
            epoch: of_epoch(at)?,
            seq: number(seq)?,
        }),
        (b"epoch", [at]) => Ok(Turned::Epoch(of_epoch(at)?)),
        (b"closed", []) => Ok(Turned::Closed),
        (b"last", []) => Ok(Turned::Last),
        (b"law", []) => Err(Failure::Foreign.into()),
        _ => Err(Failure::Protocol.into()),
    }
}

/// The store has lost its past, readers have seen (`epoch`, `seq`): what comes now must be numbered after it.
pub(in crate::board) fn heal(keys: &Keys, epoch: u32, seq: u64) -> Call<'static> {
    static TEXT: OnceLock<Text> = OnceLock::new();
    let arguments = vec![
        epoch.to_string(),
        seq.to_string(),
        fastrand::u64(1..).to_string(),
    ];
    call(text(&TEXT, HEAL), vec![keys.meta()], arguments)
}

/// (place from 1, order) of a player; nothing if the board's epoch is another.
pub(in crate::board) fn standing(keys: &Keys, epoch: u32, player: &str) -> Call<'static> {
    static TEXT: OnceLock<Text> = OnceLock::new();
    let keys = vec![keys.meta(), keys.board(epoch)];
    call(
        text(&TEXT, STANDING),
        keys,
        vec![epoch.to_string(), player.to_owned()],
    )
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::board) enum Stands {
    At(u64, Order),
    Absent,
    OtherEpoch,
}

pub(in crate::board) fn stands(value: &Value) -> Result<Stands, StoreError> {
    match answer(value)? {
        (b"at", [rank, at]) => {
            let at = order(at)?.ok_or(Failure::Protocol)?;
            Ok(Stands::At(place(rank)?, at))
        }
        (b"absent", []) => Ok(Stands::Absent),
        (b"epoch", []) => Ok(Stands::OtherEpoch),
        _ => Err(Failure::Protocol.into()),
    }
}

/// The members around a player.
pub(in crate::board) fn around(
    keys: &Keys,
    epoch: u32,
    player: &str,
    radius: usize,
) -> Call<'static> {
    static TEXT: OnceLock<Text> = OnceLock::new();
    let keys = vec![keys.meta(), keys.board(epoch)];
    let arguments = vec![epoch.to_string(), player.to_owned(), radius.to_string()];
    call(text(&TEXT, AROUND), keys, arguments)
}

/// The first one's place from 1 and the run of members; `Some(None)` if she is absent, `None` if the epoch is another.
pub(in crate::board) type Run = Option<Option<(u64, Vec<(PlayerId, Order)>)>>;

pub(in crate::board) fn run(value: &Value) -> Result<Run, StoreError> {
    match answer(value)? {
        (b"at", [first, run]) => Ok(Some(Some((place(first)?, members(run)?.0)))),
        (b"absent", []) => Ok(Some(None)),
        (b"epoch", []) => Ok(None),
        _ => Err(Failure::Protocol.into()),
    }
}

/// `ZMSCORE`.
pub(in crate::board) fn orders_of(keys: &Keys, epoch: u32, players: &[PlayerId]) -> Cmd {
    let mut command = cmd("ZMSCORE");
    command.arg(keys.board(epoch));
    for player in players {
        command.arg(player.as_str());
    }
    command
}

pub(in crate::board) fn orders(value: &Value) -> Result<Vec<Option<Order>>, StoreError> {
    list(value)?.iter().map(order).collect()
}

fn answer(value: &Value) -> Result<(&[u8], &[Value]), StoreError> {
    let [word, rest @ ..] = list(value)? else {
        return Err(Failure::Protocol.into());
    };
    Ok((bytes(word).ok_or(Failure::Protocol)?, rest))
}

fn list(value: &Value) -> Result<&[Value], StoreError> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(Failure::Protocol.into()),
    }
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.as_bytes()),
        _ => None,
    }
}

/// Whole and not negative; no answer at all is nought.
fn number(value: &Value) -> Result<u64, StoreError> {
    Ok(optional(value)?.unwrap_or(0))
}

/// From 1; Redis counts from 0.
fn place(value: &Value) -> Result<u64, StoreError> {
    Ok(number(value)?.checked_add(1).ok_or(Failure::Protocol)?)
}

fn of_epoch(value: &Value) -> Result<u32, StoreError> {
    let epoch = u32::try_from(number(value)?).ok();
    let epoch = epoch.filter(|epoch| *epoch <= EPOCH_MAX);
    Ok(epoch.ok_or(Failure::Protocol)?)
}

fn optional(value: &Value) -> Result<Option<u64>, StoreError> {
    let number = match value {
        Value::Nil => return Ok(None),
        Value::Int(number) => (*number).try_into().ok(),
        other => bytes(other)
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .and_then(|text| text.parse().ok()),
    };
    Ok(Some(number.ok_or(Failure::Protocol)?))
}

fn player(value: &Value) -> Option<PlayerId> {
    PlayerId::parse(std::str::from_utf8(bytes(value)?).ok()?).ok()
}

fn order(value: &Value) -> Result<Option<Order>, StoreError> {
    match value {
        Value::Nil => Ok(None),
        Value::Double(score) => Ok(Some(Order::from_redis(*score).ok_or(Failure::Protocol)?)),
        other => {
            let text = bytes(other).ok_or(Failure::Protocol)?;
            if text.is_empty() {
                return Ok(None);
            }
            Ok(Some(Order::from_text(text).ok_or(Failure::Protocol)?))
        }
    }
}

/// Changes that a refresher may ask for; with more of them it reads the top anew.
pub(in crate::board) const CHANGED_MAX: usize = 20_000;
/// Logs that a board remembers, and how long one must have been silent to make room for another, in s.
const SOURCES_MAX: usize = 4096;
pub(in crate::board) const SOURCE_IDLE_S: u64 = 30 * 24 * 3600;
/// A version has 24 bits for it.
const EPOCH_MAX: u32 = (1 << 24) - 1;

const READ: &str = include_str!("script/read.lua");
const APPLY: &str = include_str!("script/apply.lua");
const TURN: &str = include_str!("script/turn.lua");
const HEAL: &str = include_str!("script/heal.lua");
const STANDING: &str = include_str!("script/standing.lua");
const AROUND: &str = include_str!("script/around.lua");

#[cfg(test)]
mod tests;
