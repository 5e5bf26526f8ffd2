//! One ticket looks for its match: outward from its rating, region by region, on the tightest rung that works. Also the
//! open seats of running matches.

use super::assemble::Seats;
use super::draft::{Draft, Open};
use super::look::{Candidate, LANE_COST, Scratch, View};
use super::pool::{Hot, Pools, key};
use super::{Cold, Quality, Search, TickReport};
use crate::matchmaking::rules::MatchRules;
use crate::matchmaking::ticket::OpenSeats;

impl Search {
    /// The best match around a ticket that the rules allow now; none too if operations run out before that is known.
    pub(super) fn seek(&mut self, slot: u32) -> Option<Draft> {
        let hot = self.hot[slot as usize];
        let (mut best, mut partner) = (None, None);
        for region in 0..self.rules.spec().regions.len() {
            if hot.regions & (1 << region) == 0 {
                continue;
            }
            let rungs = self.pools.rungs(region, &hot, &mut self.scratch.plans);
            self.scratch.spend(4);
            if rungs == 0 {
                continue;
            }
            if self.scratch.pairs {
                self.seek_partner(slot, region, &mut partner);
                continue;
            }
            let seats = self.seek_group(slot, region, rungs);
            let Some(found) = seats.and_then(|seats| self.draft(region, &seats)) else {
                continue;
            };
            if best
                .as_ref()
                .is_none_or(|best: &Draft| found.penalty < best.penalty)
            {
                best = Some(found);
            }
        }
        match partner {
            Some((partner, region)) => self.draft(region, &[(slot, 0), (partner.slot, 1)]),
            None => best,
        }
    }

    /// Running matches first: their players are short of somebody already. They may spend half of what is left.
    pub(super) fn fill_open(&mut self, drafts: &mut Vec<Draft>, report: &mut TickReport) {
        let total = self.scratch.limit();
        let spent = self.scratch.spent.min(total);
        self.scratch.set_limit(spent + (total - spent) / 2);
        let mut at = 0;
        while let Some(open) = self.backfills.get_mut(at) {
            let region = usize::from(open.backfill.region.0);
            open.pending |= self.pools.stirred_near(region, open.value, open.step);
            if !open.pending || self.scratch.is_spent() {
                report.pending += usize::from(open.pending);
                at += 1;
                continue;
            }
            report.examined += 1;
            let found = self.seek_open(at);
            if let Some(draft) = found {
                self.claim(&draft);
                drafts.push(draft);
                self.backfills.remove(at);
            } else {
                self.backfills[at].pending = self.scratch.is_cut();
                report.pending += usize::from(self.scratch.is_cut());
                at += 1;
            }
        }
        self.scratch.set_limit(total);
    }

    fn seek_partner(&mut self, slot: u32, region: usize, best: &mut Option<(Candidate, usize)>) {
        let (view, scratch) = split(
            &self.rules,
            &self.pools,
            &self.hot,
            &self.cold,
            region,
            &mut self.scratch,
        );
        let from = key(view.hot(slot).value, slot, view.hot(slot).size);
        for lane in view.pools.lanes(region) {
            let (above, below) = lane.keys.around(&from);
            scratch.spent += LANE_COST;
            scratch.partner(&view, slot, above, best);
            scratch.partner(&view, slot, below, best);
        }
    }

    /// The tightest rung alone, as it mostly works; the others from one look around, unless there is too much to see.
    fn seek_group(&mut self, slot: u32, region: usize, rungs: u16) -> Option<Seats> {
        let ladder = self.rules.ladder(self.brownout);
        let (view, scratch) = split(
            &self.rules,
            &self.pools,
            &self.hot,
            &self.cold,
            region,
            &mut self.scratch,
        );
        let (first, last) = (rungs.trailing_zeros() as usize, rungs.ilog2() as usize);
        let (mut is_first, mut is_whole) = (true, false);
        for (rung, step) in ladder.iter().enumerate().take(last + 1).skip(first) {
            if rungs & (1 << rung) == 0 {
                continue;
            }
            if !scratch.are_enough(&view, slot, step.window) {
                continue;
            }
            if !is_whole {
                scratch.gather(&view, slot, rung as u8, step.window);
                scratch.candidates.clone_from(&scratch.around);
            } else {
                scratch.narrow(&view, slot, rung as u8, step.window);
            }
            if scratch.is_cut() {
                return None;
            }
            let seats = scratch.assemble(&view, slot, step.window, step.gap);
            if seats.is_some() || scratch.is_cut() {
                return seats;
            }
            if is_first && rung != last {
                is_whole = scratch.gather(&view, slot, rung as u8 + 1, ladder[last].window);
            }
            is_first = false;
        }
        None
    }

    fn seek_open(&mut self, at: usize) -> Option<Draft> {
        let open = &self.backfills[at];
        let backfill = &open.backfill;
        let region = usize::from(backfill.region.0);
        let (view, scratch) = split(
            &self.rules,
            &self.pools,
            &self.hot,
            &self.cold,
            region,
            &mut self.scratch,
        );
        scratch.gather_open(
            &view,
            open.value,
            open.step,
            backfill.open.iter().map(OpenSeats::total).sum(),
        );
        let seated = scratch.take_seats(&view, &backfill.open);
        if seated.is_empty() {
            return None;
        }
        let places = scratch.seating.places();
        let id = backfill.id;
        let value = open.value;
        let mut teams = vec![Vec::new(); self.rules.teams()];
        let mut roles = vec![Vec::new(); self.rules.teams()];
        for (slot, first) in seated {
            let member = self.member(slot, region as u8)?;
            let team = usize::from(places[first].0);
            let own = places[first..first + member.size()].iter();
            roles[team].extend(own.map(|(_, role)| *role));
            teams[team].push(member);
        }
        let mut draft = Draft {
            region: region as u8,
            teams,
            quality: Quality::default(),
            penalty: 0,
            open: Some(Open { id, roles }),
        };
        let spread = draft
            .members()
            .map(|member| (member.value - value).abs())
            .max()
            .unwrap_or(0);
        draft.judge(&self.rules, self.scratch.now_ms, spread, 0);
        Some(draft)
    }

    fn draft(&mut self, region: usize, seats: &[(u32, u8)]) -> Option<Draft> {
        let mut teams = vec![Vec::new(); self.rules.teams()];
        for (slot, team) in seats {
            teams[usize::from(*team)].push(self.member(*slot, region as u8)?);
        }
        let mut draft = Draft {
            region: region as u8,
            teams,
            quality: Quality::default(),
            penalty: 0,
            open: None,
        };
        let tried = draft.even_out(&self.rules);
        self.scratch.spend(2 * tried + 20 * seats.len() as u64 + 40);
        draft.judge_match(&self.rules, self.scratch.now_ms);
        Some(draft)
    }
}

fn split<'a>(
    rules: &'a MatchRules,
    pools: &'a Pools,
    hot: &'a [Hot],
    cold: &'a [Cold],
    region: usize,
    scratch: &'a mut Scratch,
) -> (View<'a>, &'a mut Scratch) {
    let view = View {
        rules,
        pools,
        hot,
        cold,
        region,
    };
    (view, scratch)
}
