//! Swaps between the matches of one tick: two neighbours of a region exchange parties of the same size while both stay
//! within the rules, neither gets worse than the worse of the two was, and together they get better. Nobody enters or
//! leaves.

use super::Search;
use super::draft::Draft;

/// Matches that each match is compared with: those next to it by rating.
const NEIGHBOURS: usize = 4;

impl Search {
    pub(super) fn improve(&mut self, drafts: &mut [Draft]) {
        let mut order: Vec<(u8, i64, usize)> = drafts
            .iter()
            .enumerate()
            .filter(|(_, draft)| draft.open.is_none())
            .map(|(at, draft)| (draft.region, middle(draft), at))
            .collect();
        order.sort_unstable();
        for (place, (region, _, one)) in order.iter().enumerate() {
            for (other_region, _, two) in order.iter().skip(place + 1).take(NEIGHBOURS) {
                if region != other_region {
                    break;
                }
                if self.scratch.is_spent() {
                    return;
                }
                let (low, high) = (*one.min(two), *one.max(two));
                let (front, back) = drafts.split_at_mut(high);
                self.exchange(&mut front[low], &mut back[0]);
            }
        }
    }

    fn exchange(&mut self, one: &mut Draft, two: &mut Draft) {
        let cost = 4 * self.rules.players() as u64;
        // Swaps help only matches that overlap, or could be more even.
        for (i, j) in pairs(one, two) {
            let (a, b) = (&one.teams[i.0][i.1], &two.teams[j.0][j.1]);
            if self.scratch.is_spent() {
                return;
            }
            self.scratch.spend(1);
            if a.size() != b.size() {
                continue;
            }
            self.scratch.spend(cost);
            let before = (one.penalty, two.penalty);
            let kept = (one.quality, two.quality);
            std::mem::swap(&mut one.teams[i.0][i.1], &mut two.teams[j.0][j.1]);
            if self.is_better(one, two, before, (i.0, j.0)) {
                continue;
            }
            std::mem::swap(&mut one.teams[i.0][i.1], &mut two.teams[j.0][j.1]);
            (one.penalty, two.penalty) = before;
            (one.quality, two.quality) = kept;
        }
    }

    fn is_better(
        &self,
        one: &mut Draft,
        two: &mut Draft,
        before: (u64, u64),
        teams: (usize, usize),
    ) -> bool {
        let now = self.scratch.now_ms;
        if !one.is_allowed(&self.rules, self.brownout)
            || !two.is_allowed(&self.rules, self.brownout)
        {
            return false;
        }
        one.judge_match(&self.rules, now);
        two.judge_match(&self.rules, now);
        one.penalty + two.penalty < before.0 + before.1
            && one.penalty.max(two.penalty) <= before.0.max(before.1)
            && one.is_seated(&self.rules, teams.0, &mut 0)
            && two.is_seated(&self.rules, teams.1, &mut 0)
    }
}

/// The middle of a match's ratings.
fn middle(draft: &Draft) -> i64 {
    let sum: i64 = draft.members().map(|member| i64::from(member.value)).sum();
    sum / draft.members().count().max(1) as i64
}

type Seat = (usize, usize);

fn pairs(one: &Draft, two: &Draft) -> Vec<(Seat, Seat)> {
    let seats = |draft: &Draft| -> Vec<Seat> {
        draft
            .teams
            .iter()
            .enumerate()
            .flat_map(|(team, members)| (0..members.len()).map(move |at| (team, at)))
            .collect()
    };
    let theirs = seats(two);
    seats(one)
        .into_iter()
        .flat_map(|a| theirs.iter().map(move |b| (a, *b)))
        .collect()
}
