//! A process that holds the shard: as owner with its tasks, or as one who follows and looks for the lease.

use super::*;

pub enum State {
    Down {
        until: u64,
    },
    Idle,
    /// Asked for the lease: the answer comes then, if it comes.
    Asking {
        answer: u64,
        grant: Option<(u64, u64)>,
        sent: u64,
    },
    Following,
    Owning(Box<Owning>),
}

pub struct Owning {
    pub owner: Owner<u64>,
    pub epoch: u64,
    /// What the search holds.
    pub searched: BTreeSet<TicketId>,
    /// Inputs that arrive later.
    pub coming: Vec<(u64, Input<u64>)>,
    pub amends: Vec<(u64, Amend)>,
    pub renewed: u64,
    pub invalid_since: Option<u64>,
    pub lost: bool,
}

pub struct Node {
    pub disk: Disk,
    pub state: State,
    /// Of a follower.
    pub ledger: Ledger,
    /// Clock speed in thousandths.
    pub speed: u64,
    pub reaches_service: bool,
    /// Long enough for a lease to run out under a living owner.
    pub cut_off_until: u64,
    pub looked: u64,
}

impl World {
    pub fn live(&mut self, node: usize) {
        match self.nodes[node].state {
            State::Down { until } if until <= self.at || self.peace => {
                self.nodes[node].state = State::Idle;
            }
            State::Down { .. } => {}
            State::Idle | State::Following => self.look(node),
            State::Asking { answer, .. } if answer > self.at => {}
            State::Asking { grant, sent, .. } => match grant {
                Some((epoch, asked)) if self.nodes[node].reaches_service => {
                    assert_eq!(asked, sent);
                    self.own(node, epoch, sent);
                }
                _ => self.nodes[node].state = State::Idle,
            },
            State::Owning(_) => self.work(node),
        }
    }

    pub fn look(&mut self, node: usize) {
        if self.at < self.nodes[node].looked + 50 || !self.nodes[node].reaches_service {
            return;
        }
        self.nodes[node].looked = self.at;
        let following = matches!(self.nodes[node].state, State::Following);
        match self.service.holder {
            None => {
                let roll = self.service.roll.as_ref();
                let may = roll.is_none_or(|roll| roll.in_sync.contains(&World::id(node)));
                if following {
                    self.disconnect();
                    self.stop_following(node);
                }
                if may {
                    let (there, back) = (self.delay(), self.delay());
                    // Granted now, known later: everything between is the network's.
                    let grant = self.grant(node);
                    self.nodes[node].state = State::Asking {
                        answer: self.at + there + back,
                        grant: grant.map(|epoch| (epoch, self.at)),
                        sent: self.at,
                    };
                }
            }
            Some((holder, _)) if holder != node && !following && !self.apart => {
                self.connect(node, holder);
            }
            Some(_) => {}
        }
    }

    pub fn grant(&mut self, node: usize) -> Option<u64> {
        if self.service.holder.is_some() {
            return None;
        }
        self.service.epoch += 1;
        self.service.holder = Some((node, self.at + TTL_MS));
        self.service.roll = Some(Roll {
            owner: World::id(node),
            address: String::new(),
            epoch: self.service.epoch,
            in_sync: vec![World::id(node)],
        });
        Some(self.service.epoch)
    }

    pub fn until(&self, node: usize, sent: u64) -> Duration {
        let held = Duration::from_millis(TTL_MS - TTL_MS / 8);
        Duration::from_micros(sent * self.nodes[node].speed) + held
    }

    pub fn own(&mut self, node: usize, epoch: u64, sent: u64) {
        let now = self.now(node);
        let disk = &self.nodes[node].disk;
        let (ledger, position) = (disk.ledger(), disk.position());
        self.check_nothing_is_lost(&ledger);
        self.takeovers += 1;
        let start = Start {
            ledger,
            position,
            epoch,
            lease_until: self.until(node, sent),
            log_bytes: 0,
        };
        let mut out = Vec::new();
        let owner = Owner::open(start, rules(), limits(self.ask), now, &mut out).unwrap();
        self.nodes[node].state = State::Owning(Box::new(Owning {
            owner,
            epoch,
            searched: BTreeSet::new(),
            coming: Vec::new(),
            amends: Vec::new(),
            renewed: self.at,
            invalid_since: None,
            lost: false,
        }));
        self.perform(node, out);
    }

    pub fn work(&mut self, node: usize) {
        let now = self.now(node);
        let State::Owning(mut owning) = std::mem::replace(&mut self.nodes[node].state, State::Idle)
        else {
            return;
        };
        let mut out = Vec::new();
        let mut inputs = vec![Input::Tick];
        // The disk.
        let disk = &mut self.nodes[node].disk;
        while disk
            .writing
            .front()
            .is_some_and(|&(done, _)| done <= self.at)
        {
            let (_, record) = disk.writing.pop_front().unwrap();
            inputs.push(Input::Synced(record.last()));
            disk.records.push(record);
        }
        // What comes from elsewhere.
        let (due, later) = owning.coming.drain(..).partition(|(at, _)| *at <= self.at);
        owning.coming = later;
        let due: Vec<(u64, Input<u64>)> = due;
        inputs.extend(due.into_iter().map(|(_, input)| input));
        self.stale += u64::from(owning.epoch < self.service.epoch);
        self.keep_lease(node, &mut owning);
        if self.dice.chance(1, 8) && owning.searched.len() >= 4 {
            let mut four: Vec<TicketId> = owning.searched.iter().copied().take(4).collect();
            four.iter().for_each(|ticket| {
                owning.searched.remove(ticket);
            });
            let second = four.split_off(2);
            inputs.push(Input::Proposed(vec![Proposal {
                teams: vec![four, second],
                roles: Vec::new(),
                region: RegionIndex(0),
                quality: Quality::default(),
                backfill: None,
            }]));
        }
        for input in inputs {
            owning.owner.take(input, now, &mut out).unwrap();
        }
        owning.owner.settle(now, &mut out).unwrap();
        owning.owner.ledger().audit().unwrap();
        let valid = owning.owner.is_valid(now.mono);
        let since = (!valid).then(|| owning.invalid_since.unwrap_or(self.at));
        owning.invalid_since = since;
        let over = owning.lost || since.is_some_and(|since| self.at > since + INVALID_MS);
        self.nodes[node].state = State::Owning(owning);
        self.perform(node, out);
        if over {
            self.disconnect();
            self.nodes[node].disk.finish();
            self.nodes[node].state = State::Idle;
        }
    }

    /// Renewals and changes of the roll: each reaches the service, or doesn't; its answer comes back, or doesn't.
    pub fn keep_lease(&mut self, node: usize, owning: &mut Owning) {
        let holds = self
            .service
            .holder
            .is_some_and(|(holder, _)| holder == node)
            && self.service.epoch == owning.epoch;
        if self.at >= owning.renewed + RENEW_MS && self.nodes[node].reaches_service {
            owning.renewed = self.at;
            let answered = self.at + self.delay();
            if holds {
                self.service.holder = Some((node, self.at + TTL_MS));
                let until = self.until(node, self.at);
                owning.coming.push((answered, Input::Renewed(until)));
            } else {
                owning.lost = true;
            }
        }
        let due = owning.amends.iter().position(|&(at, _)| at <= self.at);
        if let Some(due) = due {
            let (_, amend) = owning.amends.remove(due);
            if !self.nodes[node].reaches_service || self.dice.chance(1, 10) {
                owning.amends.push((self.at + 50, amend));
                return;
            }
            if !holds {
                owning.lost = true;
                return;
            }
            let mut in_sync = vec![World::id(node)];
            if let Amend::Add(standby) = amend {
                in_sync.push(standby);
            }
            self.service.roll.as_mut().unwrap().in_sync = in_sync;
            match self.dice.chance(1, 10) {
                // The answer is lost: said once more.
                true => owning.amends.push((self.at + 50, amend)),
                false => {
                    let answered = self.at + self.delay();
                    owning.coming.push((answered, Input::Amended(amend)));
                }
            }
        }
    }

    pub fn perform(&mut self, node: usize, out: Vec<Output<u64>>) {
        for output in out {
            let epoch = match &self.nodes[node].state {
                State::Owning(owning) => owning.epoch,
                _ => return,
            };
            let seen = matches!(
                output,
                Output::Answer(..) | Output::Told(_) | Output::Allocate(..) | Output::GiveBack(_)
            );
            assert!(
                !seen || epoch == self.service.epoch,
                "an owner of epoch {epoch} is heard in epoch {}",
                self.service.epoch
            );
            self.perform_one(node, output);
        }
    }

    pub fn perform_one(&mut self, node: usize, output: Output<u64>) {
        let later = self.at + self.delay();
        let sync = self.at + 1 + self.dice.below(40);
        let room_at = self.at + self.dice.below(900);
        let no_room = self.dice.chance(1, 10);
        let State::Owning(owning) = &mut self.nodes[node].state else {
            return;
        };
        match output {
            Output::Append(record) => {
                let after = self.nodes[node]
                    .disk
                    .writing
                    .back()
                    .map_or(0, |&(at, _)| at);
                let disk = &mut self.nodes[node].disk;
                disk.writing.push_back((sync.max(after), record.clone()));
                self.ship(node, Frame::Record(record));
            }
            Output::Checkpoint(_) => {}
            Output::Answer(request, answer) => self.hear(request, answer),
            Output::Told(state) => self.learn(state),
            Output::Search(Command::Insert(ticket) | Command::Return(ticket)) => {
                owning.searched.insert(ticket.id);
            }
            Output::Search(Command::Remove(ticket)) => {
                owning.searched.remove(&ticket);
            }
            Output::Search(_) => {}
            Output::Allocate(allocation, _) => {
                let id = allocation.id;
                let room = match no_room {
                    true => Err("none".to_owned()),
                    false => Ok(format!("room of {id}")),
                };
                owning.coming.push((room_at, Input::Allocated(id, room)));
                let tickets = allocation.teams.iter().flatten().map(|ticket| ticket.id);
                let tickets: BTreeSet<TicketId> = tickets.collect();
                let before = self.witness.asked.insert(id, tickets.clone());
                assert!(
                    before.is_none_or(|before| before == tickets),
                    "{id} is two matches"
                );
            }
            Output::GiveBack(id) => {
                assert!(
                    !self.witness.matches.contains(&id),
                    "the room of {id} is in use"
                );
            }
            Output::Amend(amend) => owning.amends.push((later, amend)),
            Output::Attach {
                session,
                checkpoint,
                tail,
            } => {
                if self
                    .connection
                    .as_ref()
                    .is_none_or(|connection| connection.session != session)
                {
                    return;
                }
                if let Some(checkpoint) = checkpoint {
                    self.ship(node, Frame::State(checkpoint));
                }
                for record in tail {
                    self.ship(node, Frame::Record(record));
                }
            }
            Output::Turned { session } => {
                if let Some(connection) = &mut self.connection
                    && connection.session == session
                {
                    connection.turned = true;
                }
            }
            Output::Drained => unreachable!("nobody drains"),
        }
    }
}
