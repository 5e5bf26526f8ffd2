//! Writing the log: whoever comes while a transaction is under way waits for the next one, together with everybody else, so a
//! thousand renewals at once cost a handful of transactions. No task of its own: one of those who wait writes for all.

use std::sync::{Arc, Mutex, PoisonError};

use phalanx_store::{Error, Op, Store, Txn};
use tokio::sync::{Mutex as Turn, oneshot};

/// Most that wait; beyond it, callers are told to come again.
const WAITING_MAX: usize = 16_384;
/// Operations and bytes of one transaction.
const OPS_MAX: usize = 512;
const BYTES_MAX: usize = 512 << 10;

#[derive(Clone, Debug, Default)]
pub(super) struct Appender(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Short critical sections, never across an await.
    waiting: Mutex<Vec<Waiting>>,
    /// Whose turn it is to write.
    turn: Arc<Turn<()>>,
}

#[derive(Debug)]
struct Waiting {
    op: Op,
    done: oneshot::Sender<Result<(), Error>>,
}

impl Appender {
    /// Returns when it is on disk.
    ///
    /// # Errors
    /// The store's, of the transaction that it was part of.
    pub async fn append(&self, store: &Store, op: Op) -> Result<(), Error> {
        let (done, mut answer) = oneshot::channel();
        self.enqueue(Waiting { op, done })?;
        let turn = tokio::select! {
            biased;
            answer = &mut answer => return answer.unwrap_or(Err(Error::Closed)),
            turn = self.0.turn.clone().lock_owned() => turn,
        };
        // A task, so that a caller who goes away doesn't take the others' answers along.
        let (inner, store) = (self.0.clone(), store.clone());
        tokio::spawn(async move {
            let _turn = turn;
            inner.write(&store).await;
        });
        answer.await.unwrap_or(Err(Error::Closed))
    }

    fn enqueue(&self, waiting: Waiting) -> Result<(), Error> {
        let mut queue = self.0.lock();
        if queue.len() >= WAITING_MAX {
            let reason = format!("{WAITING_MAX} certificates wait to be recorded");
            return Err(Error::Unreachable { reason });
        }
        queue.push(waiting);
        Ok(())
    }
}

impl Inner {
    /// All that wait now, in one transaction after the other.
    async fn write(&self, store: &Store) {
        loop {
            let group = self.take();
            if group.is_empty() {
                return;
            }
            let (ops, done): (Vec<Op>, Vec<_>) = group.into_iter().map(|w| (w.op, w.done)).unzip();
            let txn = Txn {
                expect: Vec::new(),
                ops,
            };
            let outcome = store.commit(txn).await.map(|_| ());
            for done in done {
                // Who has gone away needs no answer.
                let _ = done.send(outcome.clone());
            }
        }
    }

    fn take(&self) -> Vec<Waiting> {
        let mut queue = self.lock();
        let mut bytes = 0;
        let size = |op: &Op| op.key().len() + op.value().map_or(0, |v| v.len());
        let fits = |w: &&Waiting| {
            bytes += size(&w.op);
            bytes <= BYTES_MAX
        };
        let count = queue.iter().take(OPS_MAX).take_while(fits).count();
        let count = count.max(1).min(queue.len());
        queue.drain(..count).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_thousand_at_once_cost_a_handful_of_transactions() {
        let store = Store::memory().await.unwrap();
        let appender = Appender::default();
        let before = store.revision();
        let put = |n: usize| {
            let (appender, store) = (appender.clone(), store.clone());
            async move {
                let op = Op::Put {
                    key: format!("ca/issued/{n}"),
                    value: "x".into(),
                    lease: None,
                };
                appender.append(&store, op).await
            }
        };
        let tasks: Vec<_> = (0..1000).map(|n| tokio::spawn(put(n))).collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(store.list("ca/issued/").await.unwrap().entries.len(), 1000);
        let transactions = store.revision() - before;
        assert!(transactions <= 20, "{transactions}");
    }

    #[tokio::test]
    async fn one_that_goes_away_takes_nobody_along() {
        let store = Store::memory().await.unwrap();
        let appender = Appender::default();
        let op = |key: &str| Op::Put {
            key: key.into(),
            value: "x".into(),
            lease: None,
        };
        let first = tokio::spawn({
            let (appender, store, op) = (appender.clone(), store.clone(), op("a"));
            async move { appender.append(&store, op).await }
        });
        tokio::task::yield_now().await;
        first.abort();
        appender.append(&store, op("b")).await.unwrap();
        assert!(store.get("b").await.unwrap().is_some());
    }
}
