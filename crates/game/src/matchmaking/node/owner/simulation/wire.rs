//! The connection between owner and standby: slow, in order, and cut at any moment.

use super::*;

pub enum Frame {
    State(Checkpoint),
    Record(Record),
}

/// From the owner to the follower, which are told by their numbers.
pub struct Connection {
    pub owner: usize,
    pub session: u64,
    pub frames: VecDeque<(u64, Frame)>,
    pub acks: VecDeque<(u64, u64)>,
    pub heard: u64,
    pub turned: bool,
}

impl World {
    pub fn disconnect(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        let (session, follower) = (connection.session, 1 - connection.owner);
        let replica = World::id(follower);
        if let State::Owning(owning) = &mut self.nodes[connection.owner].state {
            let left = Input::Left { session, replica };
            owning.coming.push((self.at, left));
        }
        self.stop_following(follower);
    }

    pub fn stop_following(&mut self, node: usize) {
        if let State::Following = self.nodes[node].state {
            // The disk's thread finishes what it was given.
            self.nodes[node].disk.finish();
            self.nodes[node].state = State::Idle;
        }
    }

    pub fn connect(&mut self, node: usize, holder: usize) {
        let State::Owning(owning) = &mut self.nodes[holder].state else {
            return;
        };
        self.sessions += 1;
        let session = self.sessions;
        owning.coming.push((
            self.at,
            Input::Joined {
                session,
                replica: World::id(node),
                position: self.nodes[node].disk.position(),
            },
        ));
        self.nodes[node].ledger = self.nodes[node].disk.ledger();
        self.nodes[node].state = State::Following;
        self.connection = Some(Connection {
            owner: holder,
            session,
            frames: VecDeque::new(),
            acks: VecDeque::new(),
            heard: self.at,
            turned: false,
        });
    }

    pub fn ship(&mut self, owner: usize, frame: Frame) {
        let at = self.at + self.delay();
        if let Some(connection) = &mut self.connection
            && connection.owner == owner
        {
            let after = connection.frames.back().map_or(0, |&(at, _)| at);
            connection.frames.push_back((at.max(after), frame));
        }
    }

    /// The connection, and the follower's disk at its end.
    pub fn carry(&mut self) {
        let Some(connection) = &self.connection else {
            return;
        };
        let (owner, silent) = (connection.owner, self.at > connection.heard + SILENCE_MS);
        let owned = matches!(self.nodes[owner].state, State::Owning(_));
        if silent || connection.turned || !owned {
            self.disconnect();
            return;
        }
        let follower = 1 - owner;
        // The disk goes on without the network.
        let mut done = None;
        let node = &mut self.nodes[follower];
        while node
            .disk
            .writing
            .front()
            .is_some_and(|&(at, _)| at <= self.at)
        {
            let (_, record) = node.disk.writing.pop_front().unwrap();
            apply(&mut node.ledger, &record).unwrap();
            node.disk.records.push(record);
            done = Some(node.disk.position().seq);
        }
        if self.at.is_multiple_of(100) {
            done = Some(node.disk.position().seq);
        }
        let ack_at = self.at + self.delay();
        let Some(connection) = &mut self.connection else {
            return;
        };
        connection.acks.extend(done.map(|seq| (ack_at, seq)));
        if self.apart {
            return;
        }
        connection.heard = self.at;
        let mut frames = Vec::new();
        while connection
            .frames
            .front()
            .is_some_and(|&(at, _)| at <= self.at)
        {
            frames.extend(connection.frames.pop_front().map(|(_, frame)| frame));
        }
        let replica = World::id(follower);
        while connection
            .acks
            .front()
            .is_some_and(|&(at, _)| at <= self.at)
        {
            let (_, seq) = connection.acks.pop_front().unwrap();
            if let State::Owning(owning) = &mut self.nodes[owner].state {
                owning.coming.push((self.at, Input::Acked { replica, seq }));
            }
        }
        for frame in frames {
            if !self.store(follower, frame) {
                self.disconnect();
                return;
            }
        }
    }

    /// As a log does: what is of an older epoch or doesn't follow is refused.
    pub fn store(&mut self, follower: usize, frame: Frame) -> bool {
        let sync = self.at + self.dice.below(40);
        let disk = &mut self.nodes[follower].disk;
        let written = disk.position();
        let position = disk
            .writing
            .back()
            .map_or(written, |(_, record)| record.position());
        match frame {
            Frame::Record(record) if record.follows(&position) => {
                let after = disk.writing.back().map_or(0, |&(at, _)| at);
                disk.writing.push_back((sync.max(after), record));
                true
            }
            Frame::Record(_) => false,
            Frame::State(checkpoint) if checkpoint.position.epoch >= position.epoch => {
                assert!(disk.writing.is_empty());
                disk.records.clear();
                self.nodes[follower].ledger = Ledger::restore(&checkpoint.state).unwrap();
                self.nodes[follower].disk.base = Some(checkpoint);
                true
            }
            Frame::State(_) => false,
        }
    }
}
