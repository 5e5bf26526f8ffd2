//! Pipes that the kernel moves bytes through from one socket to another without copying them (`splice`). A core keeps some
//! for reuse; there are never more than it may have.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{
    PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice,
};

/// A pipe of this core, in use. Given back when dropped; with bytes in it, it is closed instead.
pub struct Pipe {
    ends: Option<Ends>,
    /// Bytes in it.
    held: usize,
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
}

impl Ends {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A user with many pipes gets small ones, which will do.
        let capacity =
            fcntl_setpipe_size(&write, PIPE_BYTES).or_else(|_| fcntl_getpipe_size(&write))?;
        Ok(Self {
            read,
            write,
            capacity,
        })
    }
}

impl Pipe {
    /// None: the core has as many as it may, or the system gives no more.
    pub fn take() -> Option<Self> {
        if IN_USE.get() >= PIPES_MAX {
            return None;
        }
        let ends = match IDLE.with_borrow_mut(Vec::pop) {
            Some(ends) => ends,
            None => Ends::new().ok()?,
        };
        IN_USE.set(IN_USE.get() + 1);
        Some(Self {
            ends: Some(ends),
            held: 0,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Moves what has come into the pipe, which must be empty, or a full pipe would look like a socket with nothing to read;
    /// 0 at the end.
    pub fn fill(&mut self, from: impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else {
            return Ok(0);
        };
        let moved = splice(from, None, &ends.write, None, ends.capacity, FLAGS)?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves out what the other side takes.
    pub fn drain(&mut self, to: impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else {
            return Ok(0);
        };
        let moved = splice(&ends.read, None, to, None, self.held, FLAGS)?;
        self.held = self.held.saturating_sub(moved);
        Ok(moved)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        IN_USE.set(IN_USE.get().saturating_sub(1));
        let Some(ends) = self.ends.take().filter(|_| self.held == 0) else {
            return;
        };
        // With a thread's end its pipes go, too.
        let _ = IDLE.try_with(|idle| {
            let mut idle = idle.borrow_mut();
            if idle.len() < IDLE_MAX {
                idle.push(ends);
            }
        });
    }
}

thread_local! {
    static IDLE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    static IN_USE: Cell<usize> = const { Cell::new(0) };
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);
/// What a pipe holds at most.
const PIPE_BYTES: usize = 256 << 10;
/// In use by one core; a direction that gets none copies.
const PIPES_MAX: usize = 256;
/// Kept without use.
const IDLE_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn joined() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_pass_a_pipe_in_order_and_it_is_used_again() {
        let ((mut writer, from), (to, mut reader)) = (joined(), joined());
        for round in 0..3_u8 {
            let mut pipe = Pipe::take().unwrap();
            writer.write_all(&[round; 1000]).unwrap();
            assert_eq!(pipe.fill(&from).unwrap(), 1000);
            assert!(!pipe.is_empty());
            assert_eq!(pipe.drain(&to).unwrap(), 1000);
            assert!(pipe.is_empty());
            let mut got = [9; 1000];
            reader.read_exact(&mut got).unwrap();
            assert_eq!(got, [round; 1000]);
            drop(pipe);
            assert_eq!((IDLE.with_borrow(Vec::len), IN_USE.get()), (1, 0));
        }
        drop(writer);
        assert_eq!(Pipe::take().unwrap().fill(&from).unwrap(), 0, "the end");
    }

    #[test]
    fn a_pipe_with_bytes_in_it_is_nobody_elses() {
        let (mut writer, from) = joined();
        writer.write_all(b"secret").unwrap();
        let mut pipe = Pipe::take().unwrap();
        pipe.fill(&from).unwrap();
        drop(pipe);
        assert_eq!((IDLE.with_borrow(Vec::len), IN_USE.get()), (0, 0));
    }

    #[test]
    fn a_core_has_no_more_than_it_may() {
        let pipes: Vec<_> = std::iter::from_fn(Pipe::take).collect();
        assert_eq!(pipes.len(), PIPES_MAX);
        drop(pipes);
        assert_eq!((IDLE.with_borrow(Vec::len), IN_USE.get()), (IDLE_MAX, 0));
    }
}
