//! Peers who have not proven anything yet: a bounded number, and when there are more, the one who has been there for longest
//! goes. So whoever holds connections open and says nothing keeps nobody else out for long. Who proves who it is leaves the
//! crowd, and nobody pushes it out any more.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::oneshot;

/// Of one port.
pub struct Crowd {
    most: usize,
    /// Short critical sections, never across an await.
    there: Mutex<There>,
}

#[derive(Default)]
struct There {
    next: u64,
    /// In the order in which they came.
    places: BTreeMap<u64, oneshot::Sender<()>>,
}

/// Of one peer; dropping it leaves.
pub struct Place {
    standing: Standing,
    /// None: it can't be pushed out any more.
    out: Option<oneshot::Receiver<()>>,
}

/// By which a peer leaves the crowd that has proven something. Of somebody who is in no crowd it does nothing.
#[derive(Clone, Default)]
pub struct Standing(Option<(Arc<Crowd>, u64)>);

impl Crowd {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most: most.max(1),
            there: Mutex::default(),
        })
    }

    pub fn enter(self: &Arc<Self>) -> Place {
        let (sender, out) = oneshot::channel();
        let mut there = self.there();
        while there.places.len() >= self.most {
            let Some((_, oldest)) = there.places.pop_first() else {
                break;
            };
            // Who is gone already needs no push.
            let _ = oldest.send(());
        }
        let id = there.next;
        there.next += 1;
        there.places.insert(id, sender);
        drop(there);
        Place {
            standing: Standing(Some((self.clone(), id))),
            out: Some(out),
        }
    }

    fn there(&self) -> MutexGuard<'_, There> {
        self.there.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    pub fn standing(&self) -> Standing {
        self.standing.clone()
    }

    /// Ends when the peer has to go.
    pub async fn pushed_out(&mut self) {
        poll_fn(|context| self.poll_out(context)).await;
    }

    /// Ready, once, when the peer has to go.
    pub fn poll_out(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(out) = &mut self.out else {
            return Poll::Pending;
        };
        match Pin::new(out).poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                self.out = None;
                Poll::Ready(())
            }
            // It left.
            Poll::Ready(Err(_)) => {
                self.out = None;
                Poll::Pending
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.standing.proven();
    }
}

impl Standing {
    /// The peer is somebody.
    pub fn proven(&self) {
        if let Some((crowd, id)) = &self.0 {
            crowd.there().places.remove(id);
        }
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Some(_) => "unproven",
            None => "proven",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_out(place: &mut Place) -> bool {
        let mut context = Context::from_waker(std::task::Waker::noop());
        place.poll_out(&mut context).is_ready()
    }

    #[test]
    fn the_oldest_goes_and_who_has_proven_something_stays() {
        let crowd = Crowd::new(2);
        let (mut known, mut old) = (crowd.enter(), crowd.enter());
        known.standing().proven();
        let mut young = crowd.enter();
        assert!(!is_out(&mut known) && !is_out(&mut old) && !is_out(&mut young));
        let newest = crowd.enter();
        assert!(is_out(&mut old) && !is_out(&mut young) && !is_out(&mut known));
        drop(newest);
        drop(crowd.enter());
        assert!(!is_out(&mut young), "whoever leaves makes room");
        assert_eq!(crowd.there().places.len(), 1);
    }
}
