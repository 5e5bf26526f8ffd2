//! Tasks that last as long as the sidecar. One that panics leaves a process that only seems to work: whoever owns them hears
//! of it, and ends the process in good order.

use std::future::Future;

use tokio::sync::watch::{Sender, channel};
use tracing::error;

/// Where they are told of; clones are the same.
#[derive(Clone, Debug)]
pub struct Lasting(Sender<Option<&'static str>>);

impl Default for Lasting {
    fn default() -> Self {
        Self(channel(None).0)
    }
}

impl Lasting {
    /// Runs `task`; a panic in it goes on to whoever runs it, and is told here by the name of `what` it was. Dropped before
    /// its end, it is nothing to tell.
    pub fn guard<T, F: Future<Output = T>>(
        &self,
        what: &'static str,
        task: F,
    ) -> impl Future<Output = T> + use<T, F> {
        let guard = Guard {
            lasting: self.clone(),
            what,
        };
        async move {
            let _guard = guard;
            task.await
        }
    }

    /// That `what` is no more. Only the first is kept: with a thread fall all that it runs.
    pub fn tell(&self, what: &'static str) {
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                error!(task = what, "a task that must last is no more");
                *first = Some(what);
            }
            is_first
        });
    }

    /// What fell first; pending while nothing has.
    pub async fn fallen(&self) -> &'static str {
        let mut told = self.0.subscribe();
        match told.wait_for(Option::is_some).await.map(|what| *what) {
            Ok(Some(what)) => what,
            // The sender is ours.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

/// Tells when it is dropped by a panic.
struct Guard {
    lasting: Lasting,
    what: &'static str,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.lasting.tell(self.what);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::LocalSet;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    async fn panicking() {
        tokio::task::yield_now().await;
        panic!("injected");
    }

    #[tokio::test]
    async fn task_that_panics_is_told_by_name_and_the_first_one_stays() {
        let lasting = Lasting::default();
        let ended = tokio::spawn(lasting.guard("first", panicking())).await;
        assert!(ended.unwrap_err().is_panic());
        let again = LocalSet::new();
        let second = again.spawn_local(lasting.guard("second", panicking()));
        again.await;
        assert!(second.await.is_err());
        assert_eq!(timeout(SOON, lasting.fallen()).await, Ok("first"));
    }

    #[tokio::test]
    async fn task_that_ends_or_is_ended_is_nothing_to_tell() {
        let lasting = Lasting::default();
        tokio::spawn(lasting.guard("over", async {})).await.unwrap();
        let aborted = tokio::spawn(lasting.guard("aborted", std::future::pending::<()>()));
        aborted.abort();
        assert!(aborted.await.unwrap_err().is_cancelled());
        drop(lasting.guard("never run", panicking()));
        assert!(timeout(Duration::ZERO, lasting.fallen()).await.is_err());
    }
}
