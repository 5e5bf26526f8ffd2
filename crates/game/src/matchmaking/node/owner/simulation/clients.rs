//! Clients and rooms: what they ask and learn, and what has to hold of it.

use super::*;

/// What clients were told.
#[derive(Default)]
pub struct Witness {
    pub requests: HashMap<u64, Request>,
    /// Tickets that were acknowledged, with the last thing heard of them.
    pub known: BTreeMap<TicketId, Option<How>>,
    pub matched: HashMap<u64, MatchId>,
    pub asked: HashMap<MatchId, BTreeSet<TicketId>>,
    pub seats: BTreeSet<(MatchId, u64)>,
    /// What clients will ask next.
    pub intents: VecDeque<Request>,
    pub acknowledged: u64,
    pub matches: BTreeSet<MatchId>,
}

impl World {
    pub fn clients(&mut self) {
        for node in [0, 1] {
            if !matches!(self.nodes[node].state, State::Owning(_)) {
                continue;
            }
            if self.quiet && !self.dice.chance(1, 12) {
                continue;
            }
            for _ in 0..self.dice.below(5) {
                let request = self.request();
                let State::Owning(owning) = &mut self.nodes[node].state else {
                    continue;
                };
                let number = self.next_request;
                self.next_request += 1;
                self.witness.requests.insert(number, request.clone());
                let at = self.at + self.dice.below(30);
                owning.coming.push((at, Input::Request(request, number)));
            }
        }
    }

    pub fn request(&mut self) -> Request {
        // Now and then one is forgotten, or the owner it goes to is none any more.
        if self.dice.chance(2, 3)
            && let Some(intent) = self.witness.intents.pop_front()
        {
            return intent;
        }
        let old = TicketId(1 + self.dice.below(self.next_ticket));
        match self.dice.below(12) {
            0..=4 => {
                // Now and then the same again: an answer may have been lost.
                let again = self.dice.chance(1, 4);
                if !again {
                    self.next_ticket += 1;
                }
                let id = if again { old.0 } else { self.next_ticket };
                let players = [id * 10, id * 10 + 1];
                let count = 1 + (id % 2) as usize;
                Request::Enqueue {
                    ticket: (*ticket(id, &players[..count], 0)).clone(),
                    class: (id % 4) as u8,
                }
            }
            5 if !self.witness.seats.is_empty() => {
                // Any seat there ever was.
                let at = self.dice.below(self.witness.seats.len() as u64) as usize;
                let (id, player) = *self.witness.seats.iter().nth(at).unwrap();
                match self.dice.chance(1, 3) {
                    true => Request::Refuse { id, player },
                    false => Request::Confirm { id, player },
                }
            }
            9 if self.dice.chance(1, 3) => Request::Cancel { ticket: old },
            10 => Request::LookFor { player: old.0 * 10 },
            _ => Request::Watch { ticket: old },
        }
    }

    pub fn hear(&mut self, request: u64, answer: Answer) {
        let Ok(state) = answer else {
            return;
        };
        self.witness.acknowledged += 1;
        let request = self
            .witness
            .requests
            .remove(&request)
            .expect("an answer to somebody");
        if let Request::Enqueue { ticket, .. } = request {
            let watch = Request::Watch { ticket: ticket.id };
            self.witness.intents.push_back(watch);
        }
        self.learn(state);
    }

    pub fn learn(&mut self, state: TicketState) {
        let witness = &mut self.witness;
        let known = witness.known.entry(state.ticket).or_default();
        let how = match state.stage {
            Stage::Ended(how) => how,
            Stage::Reserved { id, .. } => {
                assert!(
                    known.is_none(),
                    "{} is reserved after {known:?}",
                    state.ticket
                );
                let players = [state.ticket.0 * 10, state.ticket.0 * 10 + 1];
                let count = 1 + (state.ticket.0 % 2) as usize;
                for &player in &players[..count] {
                    if witness.seats.insert((id, player)) {
                        let no = (id.number + player).is_multiple_of(23);
                        witness.intents.push_back(match no {
                            true => Request::Refuse { id, player },
                            false => Request::Confirm { id, player },
                        });
                    }
                }
                return;
            }
            _ => {
                assert!(known.is_none(), "{} waits after {known:?}", state.ticket);
                return;
            }
        };
        if let Some(before) = known {
            assert_eq!(*before, how, "{} ended twice", state.ticket);
        }
        if let How::Matched(made) = &how {
            witness.matches.insert(made.id);
            for party in made.teams.iter().flatten() {
                for &player in &party.players {
                    let before = witness.matched.insert(player, made.id);
                    assert!(
                        before.is_none_or(|before| before == made.id),
                        "player {player} is matched twice"
                    );
                }
            }
        }
        *known = Some(how);
    }

    pub fn check_nothing_is_lost(&self, ledger: &Ledger) {
        for (&ticket, how) in &self.witness.known {
            let ended = ledger.ended(ticket).map(|ended| &ended.how);
            match how {
                Some(how) => assert_eq!(ended, Some(how), "what {ticket} was told"),
                None => {
                    let there = ledger.live(ticket).is_some() || ended.is_some();
                    assert!(there, "{ticket} is lost");
                }
            }
        }
    }

    pub fn check_the_end(&self) {
        let owners = self.nodes.iter().filter_map(|node| match &node.state {
            State::Owning(owning) => Some(owning),
            _ => None,
        });
        let owners: Vec<_> = owners.collect();
        assert_eq!(owners.len(), 1, "one owner");
        let owner = &owners[0].owner;
        self.check_nothing_is_lost(owner.ledger());
        assert!(owner.copies.in_sync().is_some(), "a standby in sync");
        let follower = self
            .nodes
            .iter()
            .find(|node| matches!(node.state, State::Following));
        let follower = follower.expect("a follower");
        let behind = owner.ledger().seq() - follower.ledger.seq();
        assert!(behind < 200, "the standby is {behind} entries behind");
    }
}
