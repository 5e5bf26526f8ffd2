//! 100 % of 12,000 clients are dropped at once, and the logins bear 1,000 a second. Prints what arrives there in each second:
//! left to themselves (each client tries again with exponential backoff and jitter), and by the governor.
//!
//! `cargo run -p phalanx-game --example session`

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use phalanx_game::dice::Dice;
use phalanx_game::session::{Arrival, Budget, Governor, Key, Pass, Stage, Verdict};

const CLIENTS: usize = 12_000;
const BUDGET: u32 = 1_000;
const SECONDS: usize = 24;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (alone, mean_alone) = left_alone();
    let (governed, mean) = governed()?;
    println!("second  left alone  governed (logins that bear {BUDGET}/s)");
    for second in 0..SECONDS {
        let (alone, governed) = (alone[second], governed[second]);
        let bar = "#".repeat(governed / 50);
        println!("{second:>6}  {alone:>10}  {governed:>8}  {bar}");
    }
    println!("mean time to be back: {mean_alone:.1} s left alone, {mean:.1} s governed");
    Ok(())
}

/// Logins serve 1,000 a second, and fail the rest, which tries again: after up to 1, 2, 4 … 16 s. That is kind to them: a
/// refusal costs nothing here, and nobody gives up.
fn left_alone() -> (Vec<usize>, f64) {
    let mut dice = Dice::new(1);
    let (mut arrivals, mut served) = (vec![0; 4 * SECONDS], vec![0; 4 * SECONDS]);
    let mut events: BinaryHeap<_> = (0..CLIENTS).map(|_| Reverse((0_u64, 1_000_u64))).collect();
    let mut sum = 0.0;
    while let Some(Reverse((ms, wait))) = events.pop() {
        let second = (ms / 1_000) as usize;
        if second >= arrivals.len() {
            continue;
        }
        arrivals[second] += 1;
        if served[second] < BUDGET as usize {
            served[second] += 1;
            sum += ms as f64 / 1_000.0;
        } else {
            events.push(Reverse((ms + 1 + dice.below(wait), (wait * 2).min(16_000))));
        }
    }
    (arrivals, sum / CLIENTS as f64)
}

fn governed() -> Result<(Vec<usize>, f64), Box<dyn std::error::Error>> {
    let mut dice = Dice::new(2);
    let region = "eu".to_owned();
    let per_second = BUDGET;
    let mut governor = Governor::try_new(&[Budget { region, per_second }], 3)?;
    let now = Duration::from_secs(1_700_000_000);
    let stage = |client: usize| Stage::ALL[client % Stage::COUNT];
    governor.population(0, [(CLIENTS / Stage::COUNT) as u32; Stage::COUNT])?;
    let (mut events, mut knocking) = (BinaryHeap::new(), Vec::new());
    for client in 0..CLIENTS {
        // What each client has in its pocket when the connection breaks; a `Desk` makes it, a `Keyring` seals it.
        let spread = governor.spread(0, stage(client))?;
        let pass = Pass {
            session: Key::parse(&format!("session-{client}"))?,
            player: client as u64,
            room: Key::parse("room-1")?,
            epoch: 1,
            serial: 1,
            region: 0,
            stage: stage(client),
            issued: now,
            earliest: Duration::ZERO,
            spread,
            expires: now + Duration::from_secs(600),
        };
        let latency = Duration::from_millis(dice.below(80));
        events.push(Reverse((now + spread + latency, client)));
        knocking.push(Arrival::from(&pass));
    }
    let (mut arrivals, mut sum) = (vec![0; 4 * SECONDS], 0.0);
    while let Some(Reverse((at, client))) = events.pop() {
        match governor.arrive(at, &knocking[client])? {
            Verdict::Admit { hold } => {
                let back = (at + hold - now).as_secs_f64();
                arrivals[back as usize] += 1;
                sum += back;
            }
            Verdict::Wait { at, .. } => events.push(Reverse((at, client))),
        }
    }
    Ok((arrivals, sum / CLIENTS as f64))
}
