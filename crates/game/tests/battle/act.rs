//! A battle that does as its input says, with handles through which tests see into it. No example of a battle: a real one
//! has no such handles.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use phalanx_game::battle::{Battle, Call, Context, Executor, Fight, Kind, Options, Reject, Stage};

#[derive(Clone)]
pub enum Act {
    /// Says the number.
    Say(u64),
    /// Writes the number down and says it.
    Note(Arc<Mutex<Vec<u64>>>, u64),
    /// Works until the gate opens, looking at its context.
    Wait(Arc<Gate>),
    /// Works until the gate opens, looking at nothing else.
    Ignore(Arc<Gate>),
    /// Under rules 0 says so; under others works until the gate opens.
    Shy(Arc<Gate>),
    /// Under rules 0 says so; under others works until the gate opens, looking at nothing else.
    Deaf(Arc<Gate>),
    Panic(u64),
    /// Says so, but panics when it is forgotten.
    Bomb(Arc<Bomb>),
    /// Takes so many bytes from the arena.
    Take(usize),
    Foul,
}

#[derive(Default)]
pub struct Gate {
    open: AtomicBool,
    inside: AtomicUsize,
}

impl Gate {
    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    pub fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }
}

pub struct Bomb(pub u64);

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("as the test asked for");
    }
}

pub struct Actor;

impl Battle for Actor {
    type Input = Act;
    type Output = u64;
    type Rules = u64;

    fn fight(&self, cx: &mut Context<'_, u64>, act: &Act) -> Result<u64, Reject> {
        match act {
            Act::Say(number) => Ok(*number),
            Act::Note(notes, number) => {
                notes.lock().unwrap().push(*number);
                Ok(*number)
            }
            Act::Bomb(bomb) => Ok(bomb.0),
            Act::Shy(_) | Act::Deaf(_) if *cx.rules() == 0 => Ok(0),
            Act::Wait(gate) | Act::Shy(gate) => {
                gate.inside.fetch_add(1, Ordering::SeqCst);
                let leave = Leave(gate);
                while !gate.open.load(Ordering::SeqCst) {
                    cx.spend(100_000)?;
                    thread::sleep(Duration::from_micros(200));
                }
                drop(leave);
                Ok(0)
            }
            Act::Ignore(gate) | Act::Deaf(gate) => {
                gate.inside.fetch_add(1, Ordering::SeqCst);
                let _leave = Leave(gate);
                while !gate.open.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_micros(200));
                }
                Ok(0)
            }
            Act::Panic(_) => panic!("as the test asked for"),
            Act::Take(bytes) => Ok(cx.arena().alloc_slice_fill_copy(*bytes, 1_u8).len() as u64),
            Act::Foul => Err(Reject::Foul("not allowed")),
        }
    }

    fn write_input(act: &Act, out: &mut Vec<u8>) {
        let (tag, number) = match act {
            Act::Say(number) => (0, *number),
            Act::Note(_, number) => (1, *number),
            Act::Wait(_) => (2, 0),
            Act::Ignore(_) => (3, 0),
            Act::Panic(number) => (4, *number),
            Act::Take(bytes) => (5, *bytes as u64),
            Act::Foul => (6, 0),
            Act::Shy(_) => (7, 0),
            Act::Deaf(_) => (8, 0),
            Act::Bomb(_) => (9, 0),
        };
        out.push(tag);
        out.extend(number.to_le_bytes());
    }

    fn read_input(bytes: &[u8]) -> Option<Act> {
        let (&tag, number) = bytes.split_first()?;
        let number = u64::from_le_bytes(number.try_into().ok()?);
        match tag {
            0 => Some(Act::Say(number)),
            4 => Some(Act::Panic(number)),
            _ => None,
        }
    }

    fn write_output(output: &u64, out: &mut Vec<u8>) {
        out.extend(output.to_le_bytes());
    }
}

struct Leave<'a>(&'a Gate);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An executor of so many cores that is patient with slow machines: nothing is late by itself.
pub fn patient(cores: usize) -> Options {
    let mut options = Options {
        cores,
        longest: Duration::from_secs(600),
        ..Options::default()
    };
    for class in &mut options.classes {
        class.target = Duration::from_secs(60);
    }
    options
}

pub fn actors(options: Options) -> (Executor, Kind<Actor>) {
    let executor = Executor::start(options).unwrap();
    let kind = executor.register("act", Actor, 1, 0).unwrap();
    (executor, kind)
}

/// Occupies a core until the gate opens. By a kind of its own, for its time says nothing about others'.
pub fn occupy(executor: &Executor, name: &'static str) -> (Arc<Gate>, Fight<Actor>) {
    let gate = Arc::new(Gate::default());
    let kind = executor.register(name, Actor, 1, 0).unwrap();
    let fight = kind.submit(Act::Wait(gate.clone()), Call::new(0));
    until("the core is occupied", || gate.inside() == 1);
    (gate, fight)
}

/// Submits until a fight isn't late before it began (the machine was busy), and returns how it ended.
pub fn begun(submit: impl Fn() -> Fight<Actor>) -> Reject {
    loop {
        match submit().wait() {
            Ok(fought) => panic!("it should not have ended with {fought:?}"),
            Err(Reject::DeadlinePassed {
                stage: Stage::Enqueue | Stage::Dequeue,
            }) => {}
            Err(reject) => return reject,
        }
    }
}

/// Polls for a state, to a deadline that only a defect reaches.
pub fn until(what: &str, state: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !state() {
        assert!(Instant::now() < end, "never: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}
