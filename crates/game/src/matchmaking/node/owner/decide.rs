//! What an owner makes of requests, proposals and rooms.

use std::time::Duration;

use super::{Command, Defect, Held, Now, Output, Owner};
use crate::matchmaking::{
    ledger::{CLASSES, Entry, How, MatchId, Proposed, ROOM_BYTES_MAX, Waits},
    node::talk::{Answer, Refusal, Request, Stage, TicketState},
    search::Proposal,
    ticket::{Backfill, BackfillId, Ticket, TicketId},
};

impl<R> Owner<R> {
    pub(super) fn decide(
        &mut self,
        request: Request,
        now: Now,
        out: &mut Vec<Output<R>>,
    ) -> Result<Answer, Defect> {
        match request {
            Request::Enqueue { ticket, class } => self.enqueue(ticket, class, now, out),
            Request::Cancel { ticket } => self.cancel(ticket, now, out),
            Request::Confirm { id, player } => self.confirm(id, player, now, out),
            Request::Refuse { id, player } => self.refuse(id, player, now, out),
            Request::Look { ticket } => Ok(self.look(ticket)),
            Request::LookFor { player } => {
                let newest = self.ledger.newest_of(player);
                let ticket = newest.ok_or(Refusal::NoPlayer(player));
                Ok(ticket.and_then(|ticket| self.look(ticket)))
            }
            Request::Watch { ticket } => Ok(self.watch(ticket)),
            Request::OpenBackfill { backfill, room } => {
                self.open_backfill(backfill, room, now, out)
            }
            Request::CloseBackfill { id } => self.close_backfill(id, now, out),
        }
    }

    pub(super) fn count_refusal(&mut self, refusal: &Refusal) {
        let count = match refusal {
            Refusal::Unfit(_) => &mut self.refused.unfit,
            Refusal::Queued { .. } | Refusal::Taken(_) => &mut self.refused.queued,
            Refusal::Full { .. } => &mut self.refused.full,
            Refusal::Draining => &mut self.refused.draining,
            _ => &mut self.refused.other,
        };
        *count += 1;
    }

    fn look(&self, ticket: TicketId) -> Answer {
        let stage = self.stage(ticket).ok_or(Refusal::NoTicket(ticket))?;
        Ok(TicketState { ticket, stage })
    }

    fn watch(&mut self, ticket: TicketId) -> Answer {
        let state = self.look(ticket)?;
        if !state.stage.is_final() && !self.watched.contains(&ticket) {
            let max = self.limits.watches_max;
            if self.watched.len() >= max {
                return Err(Refusal::WatchesFull { max });
            }
            self.watched.insert(ticket);
        }
        Ok(state)
    }

    fn enqueue(
        &mut self,
        mut ticket: Ticket,
        class: u8,
        now: Now,
        out: &mut Vec<Output<R>>,
    ) -> Result<Answer, Defect> {
        let id = ticket.id;
        if let Some(known) = self.known(&ticket) {
            return Ok(known);
        }
        if self.draining {
            return Ok(Err(Refusal::Draining));
        }
        if let Err(problems) = self.rules.admit(&ticket) {
            return Ok(Err(Refusal::Unfit(problems)));
        }
        for player in &ticket.players {
            if let Some(other) = self.ledger.live_of(player.id) {
                return Ok(Err(Refusal::Queued {
                    player: player.id,
                    ticket: other,
                }));
            }
        }
        let outside = !self.line.is_empty() || self.inside() >= self.limits.inside_max;
        let max = self.limits.outside_max;
        if outside && self.line.len() >= max {
            return Ok(Err(Refusal::Full { max }));
        }
        let at_ms = self.clock(now);
        ticket.enqueued_ms = at_ms;
        let entry = Entry::Enqueued {
            ticket: ticket.into(),
            class: class.min(CLASSES - 1),
            outside,
            expires_ms: at_ms.saturating_add(millis(self.limits.ticket_ttl)),
        };
        self.write(entry, out)?;
        Ok(self.look(id))
    }

    /// The answer to a ticket that came before.
    fn known(&self, ticket: &Ticket) -> Option<Answer> {
        let asked = ticket.players.iter().map(|player| player.id);
        let same = if let Some(live) = self.ledger.live(ticket.id) {
            asked.eq(live.ticket.players.iter().map(|player| player.id))
        } else {
            asked.eq(self.ledger.ended(ticket.id)?.players.iter().copied())
        };
        Some(match same {
            true => self.look(ticket.id),
            false => Err(Refusal::Taken(ticket.id)),
        })
    }

    /// Tickets in search and proposals.
    pub(super) fn inside(&self) -> usize {
        self.ledger.live_len() - self.line.len()
    }

    /// Lets in as many as there is room for.
    pub(super) fn fill_from_line(
        &mut self,
        now: Now,
        out: &mut Vec<Output<R>>,
    ) -> Result<(), Defect> {
        while self.inside() < self.limits.inside_max
            && !self.is_full()
            && let Some(ticket) = self.line.pop()
        {
            let at_ms = self.clock(now);
            self.write(Entry::Admitted { ticket, at_ms }, out)?;
        }
        Ok(())
    }

    fn cancel(
        &mut self,
        ticket: TicketId,
        now: Now,
        out: &mut Vec<Output<R>>,
    ) -> Result<Answer, Defect> {
        if let Some(live) = self.ledger.live(ticket) {
            if let Waits::Reserved(id) = live.stage {
                return Ok(Err(Refusal::Reserved { ticket, id }));
            }
            let at_ms = self.clock(now);
            self.write(Entry::Cancelled { ticket, at_ms }, out)?;
        }
        Ok(self.look(ticket))
    }

    fn confirm(
        &mut self,
        id: MatchId,
        player: u64,
        now: Now,
        out: &mut Vec<Output<R>>,
    ) -> Result<Answer, Defect> {
        let Some(ticket) = self.ledger.seat(id, player) else {
            return Ok(self.seated_before(id, player));
        };
        let reserved = self.ledger.reserved(id);
        let new = reserved
            .is_some_and(|reserved| reserved.proposed.ask && !reserved.confirmed.contains(&player));
        if new {
            let at_ms = self.clock(now);
            self.write(Entry::Confirmed { id, player, at_ms }, out)?;
            let reserved = self.ledger.reserved(id);
            if reserved.is_some_and(|reserved| reserved.is_agreed()) {
                self.hold(Held::Allocate(id));
            }
        }
        Ok(self.look(ticket))
    }

    /// For an answer that comes again after the match was made.
    fn seated_before(&self, id: MatchId, player: u64) -> Answer {
        let newest = self.ledger.newest_of(player);
        let ended = newest.and_then(|ticket| Some((ticket, self.ledger.ended(ticket)?)));
        if let Some((ticket, ended)) = ended
            && let How::Matched(made) = &ended.how
            && made.id == id
        {
            return self.look(ticket);
        }
        Err(Refusal::NoSeat { id, player })
    }

    fn refuse(
        &mut self,
        id: MatchId,
        player: u64,
        now: Now,
        out: &mut Vec<Output<R>>,
    ) -> Result<Answer, Defect> {
        let Some(ticket) = self.ledger.seat(id, player) else {
            let newest = self.ledger.newest_of(player);
            let ended = newest.and_then(|ticket| self.ledger.ended(ticket));
            let again = ended.is_some_and(
                |ended| matches!(ended.how, How::Refused { id: other, .. } if other == id),
            );
            return Ok(match newest {
                Some(ticket) if again => self.look(ticket),
                _ => self.seated_before(id, player),
            });
        };
        let at_ms = self.clock(now);
        self.dissolve(id, Entry::Refused { id, player, at_ms }, out)?;
        Ok(self.look(ticket))
    }

    /// Writes the end of a reservation that became no match.
    pub(super) fn dissolve(
        &mut self,
        id: MatchId,
        end: Entry,
        out: &mut Vec<Output<R>>,
    ) -> Result<(), Defect> {
        let reserved = self.ledger.reserved(id);
        let backfill = reserved.and_then(|reserved| reserved.proposed.backfill);
        self.write(end, out)?;
        if let Some(open) = backfill.and_then(|id| self.ledger.backfill(id)) {
            let offer = Command::Offer(open.backfill.clone());
            out.push(Output::Search(offer));
        }
        if self.allocating.remove(&id) {
            self.hold(Held::GiveBack(id));
        }
        Ok(())
    }

    pub(super) fn propose(
        &mut self,
        proposal: Proposal,
        now: Now,
        out: &mut Vec<Output<R>>,
    ) -> Result<(), Defect> {
        if !self.stands(&proposal) {
            self.send_back(&proposal, out);
            return Ok(());
        }
        let at_ms = self.clock(now);
        let ask = self.limits.ask;
        let within = match ask {
            true => self.limits.confirm_within,
            false => self.limits.allocate_within,
        };
        let id = self.ledger.next_match();
        let proposed = Proposed {
            id,
            teams: proposal.teams,
            roles: proposal.roles,
            region: proposal.region,
            quality: proposal.quality,
            backfill: proposal.backfill,
            ask,
            until_ms: at_ms.saturating_add(millis(within)),
            allocate_ms: millis(self.limits.allocate_within),
            at_ms,
        };
        self.write(Entry::Proposed(proposed), out)?;
        if !ask {
            self.hold(Held::Allocate(id));
        }
        Ok(())
    }

    /// Whether everybody in it still waits: the search may not have heard of the newest.
    fn stands(&self, proposal: &Proposal) -> bool {
        let waits = |ticket: TicketId| {
            let live = self.ledger.live(ticket);
            live.is_some_and(|live| live.stage == Waits::Inside)
        };
        let open = proposal.backfill.is_none_or(|id| {
            let open = self.ledger.backfill(id);
            open.is_some_and(|open| open.taken.is_none())
        });
        let mut tickets = proposal.tickets();
        !self.draining && open && tickets.all(waits) && proposal.tickets().next().is_some()
    }

    /// Those who still wait, wait on.
    fn send_back(&mut self, proposal: &Proposal, out: &mut Vec<Output<R>>) {
        for ticket in proposal.tickets() {
            if let Some(live) = self.ledger.live(ticket)
                && live.stage == Waits::Inside
            {
                let again = Command::Return(live.ticket.clone());
                out.push(Output::Search(again));
            }
        }
        let open = proposal.backfill.and_then(|id| self.ledger.backfill(id));
        if let Some(open) = open.filter(|open| open.taken.is_none()) {
            out.push(Output::Search(Command::Offer(open.backfill.clone())));
        }
    }

    pub(super) fn allocated(
        &mut self,
        id: MatchId,
        room: Result<String, String>,
        now: Now,
        out: &mut Vec<Output<R>>,
    ) -> Result<(), Defect> {
        let reserved = self.ledger.reserved(id);
        let stands = reserved.is_some_and(|reserved| reserved.is_agreed());
        let room = room.and_then(|room| match room.len() <= ROOM_BYTES_MAX {
            true => Ok(room),
            false => Err(format!("a room of {} bytes", room.len())),
        });
        match room {
            // Whoever gave up on the match couldn't give back what wasn't there yet.
            Ok(_) if !stands => self.hold(Held::GiveBack(id)),
            Ok(room) => {
                let at_ms = self.clock(now);
                self.allocating.remove(&id);
                self.write(Entry::Committed { id, room, at_ms }, out)?;
            }
            Err(reason) if stands => {
                tracing::warn!(%id, reason, "no room for a match");
                let at_ms = self.clock(now);
                self.dissolve(id, Entry::Lapsed { id, at_ms }, out)?;
            }
            Err(_) => {}
        }
        Ok(())
    }

    fn open_backfill(
        &mut self,
        mut backfill: Backfill,
        room: String,
        now: Now,
        out: &mut Vec<Output<R>>,
    ) -> Result<Answer, Defect> {
        if let Some(open) = self.ledger.backfill(backfill.id) {
            if backfill.since_ms == 0 {
                backfill.since_ms = open.backfill.since_ms;
            }
            return Ok(match open.room == room && open.backfill == backfill {
                true => Ok(offered(true)),
                false => Err(Refusal::OtherBackfill(backfill.id)),
            });
        }
        if self.draining {
            return Ok(Err(Refusal::Draining));
        }
        if room.len() > ROOM_BYTES_MAX {
            return Ok(Err(Refusal::RoomTooLong {
                max: ROOM_BYTES_MAX,
            }));
        }
        if let Err(problems) = self.rules.admit_backfill(&backfill) {
            return Ok(Err(Refusal::Unfit(problems)));
        }
        let max = self.limits.backfills_max;
        if self.ledger.backfills_len() >= max {
            return Ok(Err(Refusal::BackfillsFull { max }));
        }
        let at_ms = self.clock(now);
        if backfill.since_ms == 0 {
            backfill.since_ms = at_ms;
        }
        out.push(Output::Search(Command::Offer(backfill.clone())));
        let entry = Entry::BackfillOpened {
            backfill,
            room,
            at_ms,
        };
        self.write(entry, out)?;
        Ok(Ok(offered(true)))
    }

    fn close_backfill(
        &mut self,
        id: BackfillId,
        now: Now,
        out: &mut Vec<Output<R>>,
    ) -> Result<Answer, Defect> {
        if let Some(open) = self.ledger.backfill(id) {
            if open.taken.is_some() {
                return Ok(Err(Refusal::Filling(id)));
            }
            out.push(Output::Search(Command::Withdraw(id)));
            let at_ms = self.clock(now);
            self.write(Entry::BackfillClosed { id, at_ms }, out)?;
        }
        Ok(Ok(offered(false)))
    }
}

fn offered(open: bool) -> TicketState {
    TicketState {
        ticket: TicketId::default(),
        stage: Stage::Offered(open),
    }
}

fn millis(span: Duration) -> u64 {
    span.as_millis() as u64
}
