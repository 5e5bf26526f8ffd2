//! What moves on one open stream: bytes and messages, counted on the stream's edge as they pass, for streams may stay open
//! for hours. Chunks go in, in order; where a message begins or ends within them does not matter.
//!
//! No socket, no allocation, no copy: of a message only its length is read.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use super::Edge;

/// Of one stream; shared by the two directions of it, on one core.
pub struct Flow {
    core: usize,
    /// Where it is counted; another one after an attempt that failed.
    edge: RefCell<Option<Arc<Edge>>>,
    request: Direction,
    response: Direction,
}

struct Direction {
    counter: RefCell<Counter>,
    bytes: Cell<u64>,
    messages: Cell<u64>,
}

/// What is spoken on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// Bytes without messages.
    Bytes,
    Grpc,
    WebSocket,
}

impl Flow {
    pub fn new(core: usize, speaks: Speaks) -> Self {
        let direction = || Direction {
            counter: RefCell::new(Counter::new(speaks)),
            bytes: Cell::new(0),
            messages: Cell::new(0),
        };
        Self {
            core,
            edge: RefCell::new(None),
            request: direction(),
            response: direction(),
        }
    }

    /// From now on it is counted there.
    pub fn goes_to(&self, edge: &Arc<Edge>) {
        *self.edge.borrow_mut() = Some(edge.clone());
    }

    /// From its caller, as it is read for the first time.
    pub fn request(&self, chunk: &[u8]) {
        let messages = self.request.pass(chunk);
        if let Some(edge) = &*self.edge.borrow() {
            edge.cell(self.core)
                .request_moved(chunk.len() as u64, messages);
        }
    }

    /// To its caller.
    pub fn response(&self, chunk: &[u8]) {
        let messages = self.response.pass(chunk);
        if let Some(edge) = &*self.edge.borrow() {
            edge.cell(self.core)
                .response_moved(chunk.len() as u64, messages);
        }
    }

    /// Bytes from the caller and to it.
    pub fn bytes(&self) -> (u64, u64) {
        (self.request.bytes.get(), self.response.bytes.get())
    }

    /// Messages from the caller and to it.
    pub fn messages(&self) -> (u64, u64) {
        (self.request.messages.get(), self.response.messages.get())
    }
}

impl Direction {
    /// Messages that ended in `chunk`.
    fn pass(&self, chunk: &[u8]) -> u64 {
        let messages = self.counter.borrow_mut().push(chunk);
        let bytes = self.bytes.get().saturating_add(chunk.len() as u64);
        self.bytes.set(bytes);
        self.messages
            .set(self.messages.get().saturating_add(messages));
        messages
    }
}

/// Counts the messages of one direction.
#[derive(Clone, Debug)]
pub struct Counter {
    speaks: Speaks,
    head: [u8; HEAD_MAX],
    /// Bytes of the head that are there.
    read: u8,
    /// Bytes of the frame that are still to come, once its head is whole.
    rest: u64,
    /// This frame ends a message.
    ends: bool,
}

/// A WebSocket frame: two bytes, eight of length, four of mask.
const HEAD_MAX: usize = 14;
/// gRPC: compressed or not, and four bytes of length.
const GRPC_HEAD: usize = 5;

impl Counter {
    pub fn new(speaks: Speaks) -> Self {
        Self {
            speaks,
            head: [0; HEAD_MAX],
            read: 0,
            rest: 0,
            ends: false,
        }
    }

    /// How many messages ended in `chunk`. What is no message of the protocol is counted in some way, and never more than
    /// once per [`GRPC_HEAD`] or two bytes.
    pub fn push(&mut self, mut chunk: &[u8]) -> u64 {
        if self.speaks == Speaks::Bytes {
            return 0;
        }
        let mut ended = 0;
        while !chunk.is_empty() {
            if self.rest > 0 {
                let taken = self.rest.min(chunk.len() as u64);
                self.rest -= taken;
                chunk = chunk
                    .get(usize::try_from(taken).unwrap_or(usize::MAX)..)
                    .unwrap_or_default();
                ended += u64::from(self.rest == 0 && self.ends);
                continue;
            }
            let Some((byte, after)) = chunk.split_first() else {
                break;
            };
            if let Some(place) = self.head.get_mut(usize::from(self.read)) {
                *place = *byte;
            }
            self.read += 1;
            chunk = after;
            if let Some((length, ends)) = self.frame() {
                (self.read, self.rest, self.ends) = (0, length, ends);
                ended += u64::from(length == 0 && ends);
            }
        }
        ended
    }

    /// Once the head is whole: the payload's length, and whether a message ends with it.
    fn frame(&self) -> Option<(u64, bool)> {
        let head = self.head.get(..usize::from(self.read))?;
        match self.speaks {
            Speaks::Bytes => None,
            Speaks::Grpc => {
                let length = head.get(1..GRPC_HEAD)?;
                Some((number(length), true))
            }
            Speaks::WebSocket => {
                let [first, second, rest @ ..] = head else {
                    return None;
                };
                let masked = if second & 0x80 != 0 { 4 } else { 0 };
                let (wide, short) = match second & 0x7f {
                    126 => (2, 0),
                    127 => (8, 0),
                    short => (0, u64::from(short)),
                };
                if rest.len() < wide + masked {
                    return None;
                }
                let length = match wide {
                    0 => short,
                    _ => number(rest.get(..wide)?),
                };
                // RFC 6455 §5.2: the last frame of a message, of text or binary; close, ping and pong are none.
                let (fin, opcode) = (first & 0x80 != 0, first & 0x0f);
                Some((length, fin && opcode < 8))
            }
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grpc(payloads: &[usize]) -> Vec<u8> {
        let frame = |length: &usize| {
            let mut bytes = vec![0];
            bytes.extend_from_slice(&u32::try_from(*length).unwrap().to_be_bytes());
            bytes.resize(5 + length, 7);
            bytes
        };
        payloads.iter().flat_map(frame).collect()
    }

    fn websocket(frames: &[(u8, usize, bool)]) -> Vec<u8> {
        let frame = |(first, length, masked): &(u8, usize, bool)| {
            let mask = if *masked { 0x80 } else { 0 };
            let mut bytes = vec![*first];
            match *length {
                0..126 => bytes.push(mask | *length as u8),
                126..65_536 => {
                    bytes.push(mask | 126);
                    bytes.extend_from_slice(&(*length as u16).to_be_bytes());
                }
                _ => {
                    bytes.push(mask | 127);
                    bytes.extend_from_slice(&(*length as u64).to_be_bytes());
                }
            }
            bytes.resize(bytes.len() + usize::from(*masked) * 4 + length, 9);
            bytes
        };
        frames.iter().flat_map(frame).collect()
    }

    fn counted(speaks: Speaks, bytes: &[u8], rng: &mut fastrand::Rng) -> u64 {
        let mut counter = Counter::new(speaks);
        let (mut count, mut rest) = (0, bytes);
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(rng.usize(1..=rest.len().min(40)));
            count += counter.push(chunk);
            rest = after;
        }
        count
    }

    #[test]
    fn messages_are_counted_however_the_bytes_are_cut() {
        let mut rng = fastrand::Rng::with_seed(7);
        let told = grpc(&[0, 1, 300, 0, 70_000]);
        let spoken = websocket(&[
            (0x81, 5, true),       // text
            (0x02, 200, false),    // binary, first part
            (0x89, 3, false),      // a ping in between
            (0x00, 0, false),      // a part
            (0x80, 70_000, false), // the last part
            (0x88, 0, true),       // close
        ]);
        for _ in 0..50 {
            assert_eq!(counted(Speaks::Grpc, &told, &mut rng), 5);
            assert_eq!(counted(Speaks::WebSocket, &spoken, &mut rng), 2);
            assert_eq!(counted(Speaks::Bytes, &told, &mut rng), 0);
        }
    }

    #[test]
    fn a_message_counts_when_its_last_byte_has_passed() {
        let mut counter = Counter::new(Speaks::Grpc);
        let told = grpc(&[10]);
        let (last, first) = told.split_last().unwrap();
        assert_eq!(counter.push(first), 0);
        assert_eq!(counter.push(&[*last]), 1);
    }

    #[test]
    fn any_bytes_are_counted_somehow() {
        let mut rng = fastrand::Rng::with_seed(3);
        for speaks in [Speaks::Grpc, Speaks::WebSocket] {
            for _ in 0..200 {
                let bytes: Vec<u8> = (0..rng.usize(0..400)).map(|_| rng.u8(..)).collect();
                assert!(counted(speaks, &bytes, &mut rng) <= bytes.len() as u64 / 2);
            }
        }
    }
}
