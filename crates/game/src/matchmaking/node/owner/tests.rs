//! An owner by itself: what it holds back, and what it does with everything that comes.

use super::{journal::BATCH_BYTES_MAX, *};
use crate::matchmaking::{
    ledger::{How, tests::ticket},
    node::talk::{Refusal, Request},
    rules::{RegionRules, RulesSpec},
    search::{Proposal, Quality},
    ticket::{Backfill, BackfillId, OpenSeats, RegionIndex},
};

/// An owner whose disk and search are the test.
struct Bench {
    owner: Owner<u64>,
    now: Now,
    out: Vec<Output<u64>>,
}

fn rules() -> Arc<MatchRules> {
    let mut spec = RulesSpec::simple(2, 1, "eu", 200);
    spec.regions.push(RegionRules {
        name: "us".into(),
        latency_ms_max: 200,
    });
    Arc::new(spec.check().unwrap())
}

impl Bench {
    fn new(limits: Limits) -> Bench {
        Bench::after(Ledger::new(), Position::default(), 1, limits)
    }

    fn after(ledger: Ledger, position: Position, epoch: u64, limits: Limits) -> Bench {
        let now = Now {
            mono: Duration::from_secs(100),
            ms: 1_000_000,
        };
        let start = Start {
            ledger,
            position,
            epoch,
            lease_until: Duration::MAX,
            log_bytes: 0,
        };
        let mut out = Vec::new();
        let owner = Owner::open(start, rules(), limits, now, &mut out).unwrap();
        let mut bench = Bench { owner, now, out };
        bench.sync();
        bench
    }

    fn wait(&mut self, ms: u64) {
        self.now.mono += Duration::from_millis(ms);
        self.now.ms += ms;
        self.take(Input::Tick);
    }

    fn take(&mut self, input: Input<u64>) {
        self.owner.take(input, self.now, &mut self.out).unwrap();
        self.owner.settle(self.now, &mut self.out).unwrap();
    }

    /// The disk does what it has, until nothing is left.
    fn sync(&mut self) {
        while self.owner.synced < self.owner.journal.position().seq {
            self.take(Input::Synced(self.owner.journal.position().seq));
        }
    }

    fn asked(&mut self, request: Request) -> Answer {
        self.out.clear();
        self.take(Input::Request(request, 7));
        self.sync();
        let mut answers = self.out.iter().filter_map(|output| match output {
            Output::Answer(7, answer) => Some(answer.clone()),
            _ => None,
        });
        answers.next().expect("an answer")
    }

    fn enqueue(&mut self, id: u64) -> Answer {
        self.asked(enqueue(id))
    }

    fn propose(&mut self, one: u64, other: u64) -> MatchId {
        let id = self.owner.ledger.next_match();
        self.out.clear();
        self.take(Input::Proposed(vec![proposal(one, other)]));
        self.sync();
        id
    }

    fn stage(&mut self, id: u64) -> Stage {
        let look = Request::Look {
            ticket: TicketId(id),
        };
        self.asked(look).unwrap().stage
    }

    fn inserted(&self) -> Vec<u64> {
        let inserted = self.out.iter().filter_map(|output| match output {
            Output::Search(Command::Insert(ticket) | Command::Return(ticket)) => Some(ticket.id.0),
            _ => None,
        });
        inserted.collect()
    }
}

fn enqueue(id: u64) -> Request {
    Request::Enqueue {
        ticket: (*ticket(id, &[id * 10], 0)).clone(),
        class: 3,
    }
}

fn proposal(one: u64, other: u64) -> Proposal {
    Proposal {
        teams: vec![vec![TicketId(one)], vec![TicketId(other)]],
        roles: Vec::new(),
        region: RegionIndex(0),
        quality: Quality::default(),
        backfill: None,
    }
}

fn quick() -> Limits {
    Limits {
        ask: false,
        ..Limits::default()
    }
}

#[test]
fn an_answer_waits_for_the_disk_and_the_search_does_not() {
    let mut bench = Bench::new(Limits::default());
    bench.out.clear();
    bench.take(Input::Request(enqueue(1), 7));
    assert_eq!(bench.inserted(), [1]);
    let told = |output: &Output<u64>| matches!(output, Output::Answer(..));
    assert!(!bench.out.iter().any(told));
    bench.sync();
    assert!(bench.out.iter().any(told));
}

#[test]
fn the_same_ticket_again_is_the_same_ticket() {
    let mut bench = Bench::new(Limits::default());
    let first = bench.enqueue(1).unwrap();
    assert_eq!(
        first.stage,
        Stage::Waiting {
            since_ms: 1_000_000
        }
    );
    bench.wait(5_000);
    assert_eq!(bench.enqueue(1).unwrap(), first);
    let other = Request::Enqueue {
        ticket: (*ticket(1, &[99], 0)).clone(),
        class: 3,
    };
    assert_eq!(bench.asked(other), Err(Refusal::Taken(TicketId(1))));
    let twice = Request::Enqueue {
        ticket: (*ticket(2, &[20, 10], 0)).clone(),
        class: 3,
    };
    let queued = bench.asked(twice);
    assert!(
        matches!(queued, Err(Refusal::Unfit(_) | Refusal::Queued { .. })),
        "{queued:?}"
    );
    let cancel = Request::Cancel {
        ticket: TicketId(1),
    };
    let gone = bench.asked(cancel.clone()).unwrap();
    assert_eq!(gone.stage, Stage::Ended(How::Cancelled));
    assert_eq!(
        bench.asked(cancel).unwrap(),
        gone,
        "and so is the same cancellation"
    );
    assert_eq!(bench.enqueue(1).unwrap(), gone);
}

#[test]
fn a_room_is_asked_for_only_when_the_match_is_safe() {
    let mut bench = Bench::new(quick());
    bench.enqueue(1).unwrap();
    bench.enqueue(2).unwrap();
    bench.out.clear();
    let id = bench.owner.ledger.next_match();
    bench.take(Input::Proposed(vec![proposal(1, 2)]));
    let asked = |output: &Output<u64>| matches!(output, Output::Allocate(..));
    assert!(!bench.out.iter().any(asked));
    bench.sync();
    assert!(bench.out.iter().any(asked));
    bench.take(Input::Allocated(id, Ok("10.0.0.1:7000".into())));
    bench.sync();
    let Stage::Ended(How::Matched(made)) = bench.stage(1) else {
        panic!("not matched");
    };
    assert_eq!((made.id, &*made.room), (id, "10.0.0.1:7000"));
    let back = Request::LookFor { player: 20 };
    let found = bench.asked(back).unwrap();
    assert_eq!(
        found.stage,
        Stage::Ended(How::Matched(made)),
        "whoever reconnects learns of it"
    );
}

#[test]
fn a_refusal_sends_the_others_back_and_the_room_too() {
    let mut bench = Bench::new(Limits::default());
    bench.enqueue(1).unwrap();
    bench.wait(3_000);
    bench.enqueue(2).unwrap();
    let id = bench.propose(1, 2);
    for player in [10, 20] {
        let yes = Request::Confirm { id, player };
        assert!(matches!(
            bench.asked(yes).unwrap().stage,
            Stage::Reserved { .. }
        ));
    }
    let no = Request::Refuse { id, player: 20 };
    let gone = bench.asked(no.clone()).unwrap().stage;
    assert_eq!(gone, Stage::Ended(How::Refused { id, player: 20 }));
    assert_eq!(bench.inserted(), [1]);
    let given_back = |output: &Output<u64>| matches!(output, Output::GiveBack(back) if *back == id);
    assert!(bench.out.iter().any(given_back));
    assert_eq!(
        bench.stage(1),
        Stage::Waiting {
            since_ms: 1_000_000
        }
    );
    assert_eq!(
        bench.asked(no).unwrap().stage,
        gone,
        "said twice is said once"
    );
    let late = Request::Confirm { id, player: 10 };
    assert_eq!(bench.asked(late), Err(Refusal::NoSeat { id, player: 10 }));
    // A room that comes now has nobody.
    bench.out.clear();
    bench.take(Input::Allocated(id, Ok("late".into())));
    bench.sync();
    assert!(bench.out.iter().any(given_back));
}

#[test]
fn silence_lapses_and_a_reserved_ticket_is_not_cancelled() {
    let mut bench = Bench::new(Limits::default());
    bench.enqueue(1).unwrap();
    bench.enqueue(2).unwrap();
    let id = bench.propose(1, 2);
    let reserved = Refusal::Reserved {
        ticket: TicketId(1),
        id,
    };
    assert_eq!(
        bench.asked(Request::Cancel {
            ticket: TicketId(1)
        }),
        Err(reserved)
    );
    bench.asked(Request::Confirm { id, player: 10 }).unwrap();
    bench.wait(12_000);
    bench.sync();
    assert!(matches!(bench.stage(1), Stage::Waiting { .. }));
    assert_eq!(bench.stage(2), Stage::Ended(How::Unconfirmed { id }));
}

#[test]
fn a_proposal_of_who_left_sends_the_others_back_to_the_search() {
    let mut bench = Bench::new(Limits::default());
    bench.enqueue(1).unwrap();
    bench.enqueue(2).unwrap();
    bench
        .asked(Request::Cancel {
            ticket: TicketId(2),
        })
        .unwrap();
    bench.propose(1, 2);
    assert_eq!(bench.inserted(), [1]);
    assert!(matches!(bench.stage(1), Stage::Waiting { .. }));
}

#[test]
fn tickets_expire_and_the_search_hears_of_it() {
    let mut bench = Bench::new(Limits::default());
    bench.enqueue(1).unwrap();
    bench.out.clear();
    bench.wait(600_000);
    let removed = |output: &Output<u64>| matches!(output, Output::Search(Command::Remove(ticket)) if *ticket == TicketId(1));
    assert!(bench.out.iter().any(removed));
    bench.sync();
    assert_eq!(bench.stage(1), Stage::Ended(How::Expired));
}

#[test]
fn who_does_not_fit_waits_outside_in_order_of_class_and_arrival() {
    let mut bench = Bench::new(Limits {
        inside_max: 1,
        outside_max: 3,
        ..quick()
    });
    bench.enqueue(1).unwrap();
    let ahead = |answer: Answer| match answer.unwrap().stage {
        Stage::Outside(estimate) => estimate.ahead,
        stage => panic!("{stage:?}"),
    };
    assert_eq!(ahead(bench.enqueue(2)), 0);
    assert_eq!(ahead(bench.enqueue(3)), 1);
    let Request::Enqueue { ticket, .. } = enqueue(4) else {
        unreachable!()
    };
    let friend = bench.asked(Request::Enqueue { ticket, class: 0 });
    assert_eq!(ahead(friend), 0, "who comes back goes first");
    assert_eq!(bench.enqueue(5), Err(Refusal::Full { max: 3 }));
    bench.out.clear();
    bench
        .asked(Request::Cancel {
            ticket: TicketId(1),
        })
        .unwrap();
    assert_eq!(bench.inserted(), [4]);
    assert_eq!(
        ahead(bench.asked(Request::Look {
            ticket: TicketId(3)
        })),
        1
    );
    let metrics = bench.owner.metrics();
    assert_eq!(
        (metrics.inside, metrics.outside, metrics.refused.full),
        (1, 2, 1)
    );

    // The line survives its owner.
    let (ledger, position) = (bench.owner.ledger.clone(), bench.owner.journal.position());
    let mut next = Bench::after(ledger, position, 2, quick());
    assert!(
        matches!(next.stage(3), Stage::Waiting { .. }),
        "this one has room for all"
    );
}

#[test]
fn a_watched_ticket_is_told_of_every_stage() {
    let mut bench = Bench::new(quick());
    bench.enqueue(1).unwrap();
    bench.enqueue(2).unwrap();
    bench
        .asked(Request::Watch {
            ticket: TicketId(1),
        })
        .unwrap();
    let id = bench.propose(1, 2);
    bench.take(Input::Allocated(id, Ok("room".into())));
    bench.sync();
    let told = bench.out.iter().filter_map(|output| match output {
        Output::Told(state) if state.ticket == TicketId(1) => Some(&state.stage),
        _ => None,
    });
    let told: Vec<&Stage> = told.collect();
    assert!(matches!(
        told[..],
        [Stage::Reserved { .. }, Stage::Ended(How::Matched(_))]
    ));
    assert_eq!(bench.owner.metrics().watched, 0);
}

#[test]
fn an_owner_goes_on_where_the_one_before_was_killed() {
    let mut bench = Bench::new(Limits::default());
    bench.enqueue(1).unwrap();
    bench.enqueue(2).unwrap();
    bench.enqueue(3).unwrap();
    let id = bench.propose(1, 2);
    bench.asked(Request::Confirm { id, player: 10 }).unwrap();
    bench.asked(Request::Confirm { id, player: 20 }).unwrap();
    let (ledger, position) = (bench.owner.ledger.clone(), bench.owner.journal.position());
    let mut next = Bench::after(ledger, position, 2, Limits::default());
    assert_eq!(next.inserted(), [3]);
    let asked = next
        .out
        .iter()
        .any(|output| matches!(output, Output::Allocate(allocation, _) if allocation.id == id));
    assert!(asked, "the same match asks for the same room");
    next.take(Input::Allocated(id, Ok("room".into())));
    next.sync();
    assert!(matches!(next.stage(2), Stage::Ended(How::Matched(_))));
    let again = next.asked(Request::Confirm { id, player: 10 }).unwrap();
    assert!(matches!(again.stage, Stage::Ended(How::Matched(_))));
    assert_eq!(next.owner.ledger.next_match().epoch, 2);
}

#[test]
fn open_seats_are_offered_until_they_are_filled() {
    let mut bench = Bench::new(quick());
    let seats = |any| OpenSeats { roles: vec![], any };
    let backfill = Backfill {
        id: BackfillId(5),
        region: RegionIndex(0),
        rating: 20.0,
        open: vec![seats(1), seats(0)],
        since_ms: 0,
    };
    let open = Request::OpenBackfill {
        backfill: backfill.clone(),
        room: "running".into(),
    };
    assert_eq!(
        bench.asked(open.clone()).unwrap().stage,
        Stage::Offered(true)
    );
    assert_eq!(bench.asked(open).unwrap().stage, Stage::Offered(true));
    bench.enqueue(1).unwrap();
    let fill = Proposal {
        teams: vec![vec![TicketId(1)], vec![]],
        backfill: Some(BackfillId(5)),
        ..proposal(1, 1)
    };
    let id = bench.owner.ledger.next_match();
    bench.out.clear();
    bench.take(Input::Proposed(vec![fill.clone()]));
    bench.sync();
    let room = bench.out.iter().find_map(|output| match output {
        Output::Allocate(allocation, _) => allocation.backfill.clone(),
        _ => None,
    });
    assert_eq!(room.as_deref(), Some("running"));
    let close = Request::CloseBackfill { id: BackfillId(5) };
    assert_eq!(
        bench.asked(close.clone()),
        Err(Refusal::Filling(BackfillId(5)))
    );
    // The room says no: the seats are offered again.
    bench.out.clear();
    bench.take(Input::Allocated(id, Err("full".into())));
    let offered = |output: &Output<u64>| matches!(output, Output::Search(Command::Offer(_)));
    assert!(bench.out.iter().any(offered));
    bench.sync();
    let id = bench.owner.ledger.next_match();
    bench.take(Input::Proposed(vec![fill]));
    bench.sync();
    bench.take(Input::Allocated(id, Ok("running".into())));
    bench.sync();
    let Stage::Ended(How::Matched(made)) = bench.stage(1) else {
        panic!("not matched");
    };
    assert_eq!(made.backfill, Some(BackfillId(5)));
    assert_eq!(bench.asked(close).unwrap().stage, Stage::Offered(false));
}

#[test]
fn a_drained_owner_has_nothing_reserved_and_nothing_unwritten() {
    let mut bench = Bench::new(Limits::default());
    bench.enqueue(1).unwrap();
    bench.enqueue(2).unwrap();
    bench.enqueue(3).unwrap();
    bench.propose(1, 2);
    bench.take(Input::Drain);
    assert_eq!(bench.enqueue(4), Err(Refusal::Draining));
    assert!(bench.enqueue(3).is_ok(), "whoever is in is told so");
    let drained = |output: &Output<u64>| matches!(output, Output::Drained);
    assert!(!bench.out.iter().any(drained));
    bench.out.clear();
    bench.wait(12_000);
    bench.sync();
    assert!(bench.out.iter().any(drained));
    assert_eq!(bench.owner.ledger.live_len(), 1);
}

#[test]
fn a_standby_gets_the_state_or_what_it_lacks() {
    let mut bench = Bench::new(Limits::default());
    bench.enqueue(1).unwrap();
    let position = bench.owner.journal.position();
    bench.enqueue(2).unwrap();
    let mut attach = |position| {
        bench.out.clear();
        let replica = ReplicaId(2);
        bench.take(Input::Joined {
            session: 1,
            replica,
            position,
        });
        let attached = bench.out.iter().find_map(|output| match output {
            Output::Attach {
                checkpoint, tail, ..
            } => Some((checkpoint.is_some(), tail.len())),
            _ => None,
        });
        bench.take(Input::Left {
            session: 1,
            replica,
        });
        attached
    };
    assert_eq!(attach(position), Some((false, 1)));
    let other = Position {
        chain: 1,
        ..position
    };
    assert_eq!(
        attach(other),
        Some((true, 0)),
        "another history is replaced"
    );
    assert_eq!(
        attach(Position::default()),
        Some((false, 3)),
        "all of it is still here"
    );
}

#[test]
fn an_epoch_that_is_not_above_the_logs_is_refused() {
    let mut bench = Bench::new(Limits::default());
    bench.enqueue(1).unwrap();
    let start = Start {
        ledger: bench.owner.ledger.clone(),
        position: bench.owner.journal.position(),
        epoch: 1,
        lease_until: Duration::MAX,
        log_bytes: 0,
    };
    let opened = Owner::<u64>::open(
        start,
        rules(),
        Limits::default(),
        bench.now,
        &mut Vec::new(),
    );
    assert!(matches!(opened, Err(Defect::Impossible(_))));
}

#[test]
fn what_does_not_wait_for_the_disk_is_written_in_records_that_can_be_read() {
    let mut bench = Bench::new(Limits::default());
    bench.out.clear();
    let seats = |any| OpenSeats { roles: vec![], any };
    let open = |id: u64| Request::OpenBackfill {
        backfill: Backfill {
            id: BackfillId(id),
            region: RegionIndex(0),
            rating: 25.0,
            open: [1, 0].map(seats).to_vec(),
            since_ms: 1_000_000,
        },
        room: "r".repeat(1_000),
    };
    // The first is being written for all that time.
    for id in 1..=4_000 {
        bench.take(Input::Request(open(id), 7));
    }
    assert!(bench.owner.is_full());
    bench.sync();
    assert!(!bench.owner.is_full());
    let records = bench.out.iter().filter_map(|output| match output {
        Output::Append(record) => Some(record),
        _ => None,
    });
    let mut ledger = Ledger::new();
    let opened = Entry::Opened {
        epoch: 1,
        at_ms: 1_000_000,
    };
    ledger.apply(&opened, &mut Vec::new()).unwrap();
    let mut largest = 0;
    for record in records {
        largest = largest.max(record.body().len());
        crate::matchmaking::node::replica::apply(&mut ledger, record).unwrap();
    }
    assert_eq!(ledger.backfills_len(), 4_000);
    assert_eq!(ledger.seq(), bench.owner.journal.position().seq);
    assert!(largest < BATCH_BYTES_MAX + 4_096, "{largest}");
}

#[test]
fn questions_wait_when_too_many_answers_do() {
    let mut bench = Bench::new(Limits::default());
    bench.take(Input::Request(enqueue(1), 7));
    let look = Request::Look {
        ticket: TicketId(1),
    };
    while !bench.owner.is_full() {
        assert!(bench.owner.held.len() <= HELD_MAX);
        let (now, input) = (bench.now, Input::Request(look.clone(), 7));
        bench.owner.take(input, now, &mut bench.out).unwrap();
    }
    bench.sync();
    assert!(!bench.owner.is_full());
}

#[test]
fn places_are_not_told_again_while_nobody_has_heard_them() {
    let limits = Limits {
        inside_max: 1,
        ..Limits::default()
    };
    let mut bench = Bench::new(limits);
    for id in 1..=3 {
        bench.enqueue(id).unwrap();
        let watch = Request::Watch {
            ticket: TicketId(id),
        };
        bench.asked(watch).unwrap();
    }
    // A disk that hangs.
    bench.take(Input::Request(enqueue(4), 7));
    bench.wait(1_000);
    let held = bench.owner.held.len();
    for _ in 0..20 {
        bench.wait(1_000);
    }
    assert_eq!(bench.owner.held.len(), held);
    bench.sync();
    bench.out.clear();
    bench.wait(1_000);
    let told = |output: &&Output<u64>| matches!(output, Output::Told(_));
    assert_eq!(bench.out.iter().filter(told).count(), 2);
}

#[test]
fn a_standby_that_has_what_was_never_sent_is_not_believed() {
    let mut bench = Bench::new(Limits::default());
    let replica = ReplicaId(2);
    let position = Position {
        seq: 500,
        epoch: 1,
        chain: 77,
    };
    bench.take(Input::Joined {
        session: 1,
        replica,
        position,
    });
    bench.out.clear();
    bench.take(Input::Acked { replica, seq: 500 });
    let amended = |output: &Output<u64>| matches!(output, Output::Amend(_));
    assert!(!bench.out.iter().any(amended));
    let seq = bench.owner.journal.position().seq;
    bench.take(Input::Acked { replica, seq });
    assert!(bench.out.iter().any(amended));
}

#[test]
fn a_log_that_grew_through_many_short_lives_gets_its_checkpoint() {
    let now = Now {
        mono: Duration::ZERO,
        ms: 1,
    };
    let start = Start {
        ledger: Ledger::new(),
        position: Position::default(),
        epoch: 1,
        lease_until: Duration::MAX,
        log_bytes: Limits::default().checkpoint_bytes,
    };
    let mut out: Vec<Output<u64>> = Vec::new();
    Owner::open(start, rules(), Limits::default(), now, &mut out).unwrap();
    let checkpoint = |output: &Output<u64>| matches!(output, Output::Checkpoint(_));
    assert!(out.iter().any(checkpoint));
}

#[test]
fn nobody_is_late_for_a_match_because_the_shard_had_no_owner() {
    let mut bench = Bench::new(Limits::default());
    bench.enqueue(1).unwrap();
    bench.enqueue(2).unwrap();
    let id = bench.propose(1, 2);
    // The next owner comes long after the time to confirm, or its clock is ahead.
    let mut ledger = bench.owner.ledger.clone();
    let away = 3_600_000;
    let opened = Entry::Opened {
        epoch: 2,
        at_ms: 1_000_000 + away,
    };
    ledger.apply(&opened, &mut Vec::new()).unwrap();
    let within_ms = Limits::default().confirm_within.as_millis() as u64;
    assert_eq!(ledger.due_lapse(1_000_000 + away + within_ms - 1), None);
    assert_eq!(ledger.due_lapse(1_000_000 + away + within_ms), Some(id));
    assert!(ledger.audit().is_ok());
}
