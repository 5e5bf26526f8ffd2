//! What asks a role to stop: Ctrl-C or SIGTERM.

use tokio::signal::unix::{SignalKind, signal};

/// Resolves at the first of the two; never if neither can be listened to.
pub async fn shutdown() {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// Log lines on standard error; `RUST_LOG` narrows or widens them.
pub fn start_log() {
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::prelude::*;
    // Not the filter with patterns: it would bring the regex engine into every sidecar's memory.
    let wanted = std::env::var("RUST_LOG")
        .ok()
        .and_then(|text| text.parse::<Targets>().ok());
    // Of each connection that breaks the rules h2 writes a line: that would be the peer's to fill the disk with.
    let usual = || {
        Targets::new()
            .with_default(tracing::Level::INFO)
            .with_target("h2", tracing::Level::ERROR)
    };
    let filter = wanted.unwrap_or_else(usual);
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        .with_target(false);
    tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .init();
}
