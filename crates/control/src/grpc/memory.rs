//! What a thread lends to the connection whose turn it is: one buffer to read into, events, and buffers to write from.

use std::cell::Cell;

use phalanx_relay::Pool;
use phalanx_relay::http2::Batch;

pub struct Memory {
    pub read: Vec<u8>,
    pub batch: Batch,
    pub pool: Pool,
    /// To write from. A burst makes many, and few are needed afterwards.
    spares: Vec<Vec<u8>>,
}

thread_local! {
    static MEMORY: Cell<Option<Box<Memory>>> = const { Cell::new(None) };
}

/// Whoever asks for it while somebody else has it gets one of its own.
pub fn lend<R>(turn: impl FnOnce(&mut Memory) -> R) -> R {
    let mut memory = MEMORY.take().unwrap_or_else(Memory::boxed);
    let done = turn(&mut memory);
    MEMORY.set(Some(memory));
    done
}

impl Memory {
    fn boxed() -> Box<Self> {
        Box::new(Self {
            read: vec![0; READ_BYTES],
            batch: Batch::new(),
            pool: Pool::default(),
            spares: Vec::new(),
        })
    }

    /// An empty buffer.
    pub fn buffer(&mut self) -> Vec<u8> {
        self.spares.pop().unwrap_or_default()
    }

    pub fn put_buffer(&mut self, mut buffer: Vec<u8>) {
        let is_kept = (1..=SPARE_BYTES_MAX).contains(&buffer.capacity());
        if is_kept && self.spares.len() < SPARES_MAX {
            buffer.clear();
            self.spares.push(buffer);
        }
    }
}

const READ_BYTES: usize = 64 << 10;
const SPARES_MAX: usize = 8;
const SPARE_BYTES_MAX: usize = 16 << 10;
