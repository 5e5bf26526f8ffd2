//! A service's battles: fights with deadlines and priorities, new rules that run in the shadow before they count, and a
//! record that any build can replay. `cargo run -p phalanx-game --example battle`; with a file as argument it records into
//! it, or replays it if it is there (try `--release` for the second run: the hashes are the same).

#[path = "battle/duel.rs"]
mod duel;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use duel::{Duel, GOLDEN, Rules, Teams, golden_cases};
use phalanx_game::battle::{
    Call, Class, Executor, Options, Reader, Recorder, RecorderOptions, ShadowOptions, prove, replay,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let place = tempfile::tempdir()?;
    let given = std::env::args_os().nth(1).map(Into::into);
    let path = given.unwrap_or_else(|| place.path().join("duels"));
    if path.exists() {
        return show_replay(&path);
    }
    let executor = Executor::start(Options::default())?;
    let duels = executor.register("duel", Duel, 1, Rules::first())?;
    let recorder = Recorder::create(&path, RecorderOptions::default())?;
    duels.record(&recorder, 1);
    duels.shadow(2, Rules::second(), ShadowOptions { one_in: 2, kept: 8 });

    // A battle of several fights stays on the rules that it began with.
    let campaign = duels.pin();
    for seed in 0..500 {
        let input = Teams::sample(seed, 5, 2_000, 200);
        let call = Call::new(seed)
            .within(Duration::from_millis(200))
            .session(format!("session-{}", seed % 10));
        let fought = duels.submit(input, call).await?;
        if seed < 3 {
            let winner = fought.output.winner;
            println!(
                "fight {seed}: team {winner} after {} rounds, {:?}",
                fought.output.rounds, fought.took
            );
        }
    }
    let shadow = duels.end_shadow().unwrap_or_default();
    println!(
        "rules 2 beside rules 1: {} fights compared, {} differ; outcomes {:?} became {:?}",
        shadow.compared,
        shadow.different,
        &shadow.outcomes_live[..3],
        &shadow.outcomes_shadow[..3],
    );
    duels.publish(2, Rules::second())?;
    let old = duels
        .submit_pinned(&campaign, Teams::sample(1, 5, 2_000, 200), Call::new(1))
        .await?;
    let sweep = Call::new(1).class(Class::Sweep);
    let new = duels.submit(Teams::sample(1, 5, 2_000, 200), sweep).await?;
    println!(
        "the campaign fights on rules {}, others on rules {}",
        old.rules, new.rules
    );
    drop(campaign);

    let drained = executor.drain(Duration::from_secs(5)).await;
    println!(
        "drained, {} cut short; recorded {:?}",
        drained.cut,
        recorder.close()
    );
    show_replay(&path)
}

fn show_replay(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let rules = |version| match version {
        1 => Some(Arc::new(Rules::first())),
        2 => Some(Arc::new(Rules::second())),
        _ => None,
    };
    let report = replay(&Duel, "duel", rules, Reader::open(path)?);
    println!(
        "replayed {}: {} the same, {} different",
        report.fights, report.same, report.different
    );
    // Every build of every machine gets this hash, or somebody's result has changed.
    let hash = prove(&Duel, 1, &Rules::first(), &golden_cases(), 10_000, 2);
    println!(
        "10,000 fights on two threads, as committed: {}",
        hash == Ok(GOLDEN)
    );
    Ok(())
}
