//! The figures of docs/decisions/0002: `cargo run --release -p phalanx-store --example figures [DIRECTORY]`

use std::{env, path::PathBuf, time::Instant};

use phalanx_store::{Config, Result, Store, Txn};

#[tokio::main]
async fn main() -> Result<()> {
    let directory = env::args_os().nth(1).map_or_else(
        || env::temp_dir().join("phalanx-store-figures"),
        PathBuf::from,
    );
    let store = Store::embedded(Config::at(&directory)).await?;

    let mut micros = Vec::new();
    for i in 0..3000 {
        micros.push(put(&store, i).await?);
    }
    report("one writer", micros);

    let began = Instant::now();
    let writers = (0..64u64).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut micros = Vec::new();
            for i in 0..2000 {
                micros.push(put(&store, writer * 7919 + i).await?);
            }
            Ok(micros)
        })
    });
    let mut micros = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        micros.extend(writer.await.expect("a writer does not panic")?);
    }
    println!(
        "64 writers: {:.0} transactions/s",
        micros.len() as f64 / began.elapsed().as_secs_f64()
    );
    report("each of them", micros);

    store.close().await;
    let began = Instant::now();
    let store = Store::embedded(Config::at(&directory)).await?;
    let status = store.status();
    println!(
        "open: {:?} for {} entries and {} MiB of log",
        began.elapsed(),
        status.entries,
        status.log_bytes >> 20
    );
    Ok(())
}

/// Microseconds of one acknowledged 1 KiB put.
async fn put(store: &Store, i: u64) -> Result<u128> {
    let began = Instant::now();
    let key = format!("/instances/default/battle/{:08}", i % 10_000);
    store
        .commit(Txn::new().put(key, vec![i as u8; 1024]))
        .await?;
    Ok(began.elapsed().as_micros())
}

fn report(what: &str, mut micros: Vec<u128>) {
    micros.sort_unstable();
    let at = |part: usize| micros[micros.len() * part / 100];
    println!("{what}: p50 {} µs, p99 {} µs", at(50), at(99));
}
