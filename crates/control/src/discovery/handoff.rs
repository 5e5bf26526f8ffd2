//! One place between a stream and its connection: what lies there waits for the socket. A channel would do, in twenty times
//! the memory.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio_stream::Stream;

/// Both ends of a place.
pub fn handoff<T>() -> (Giver<T>, Taker<T>) {
    let inner = Arc::new(Mutex::new(Inner {
        lies: None,
        giver: None,
        taker: None,
        is_given_up: false,
        is_left: false,
    }));
    (Giver(inner.clone()), Taker(inner))
}

pub struct Giver<T>(Arc<Mutex<Inner<T>>>);

/// Ends when the giver has gone and nothing lies there.
pub struct Taker<T>(Arc<Mutex<Inner<T>>>);

/// Short critical sections, never across an await.
struct Inner<T> {
    lies: Option<T>,
    giver: Option<Waker>,
    taker: Option<Waker>,
    is_given_up: bool,
    is_left: bool,
}

/// Nobody takes anything any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Left;

impl<T> Giver<T> {
    /// Waits until nothing lies there.
    ///
    /// # Errors
    /// [`Left`]
    pub async fn free(&self) -> Result<(), Left> {
        poll_fn(|cx| {
            let mut inner = lock(&self.0);
            if inner.is_left {
                return Poll::Ready(Err(Left));
            }
            if inner.lies.is_none() {
                return Poll::Ready(Ok(()));
            }
            park(&mut inner.giver, cx);
            Poll::Pending
        })
        .await
    }

    /// Once it is free.
    pub fn give(&self, what: T) {
        let mut inner = lock(&self.0);
        debug_assert!(inner.lies.is_none(), "something lies there");
        inner.lies = Some(what);
        wake(&inner.taker);
    }
}

impl<T> Drop for Giver<T> {
    fn drop(&mut self) {
        let mut inner = lock(&self.0);
        inner.is_given_up = true;
        wake(&inner.taker);
    }
}

impl<T> Stream for Taker<T> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut inner = lock(&self.0);
        if let Some(what) = inner.lies.take() {
            wake(&inner.giver);
            return Poll::Ready(Some(what));
        }
        if inner.is_given_up {
            return Poll::Ready(None);
        }
        park(&mut inner.taker, cx);
        Poll::Pending
    }
}

impl<T> Drop for Taker<T> {
    fn drop(&mut self) {
        let mut inner = lock(&self.0);
        inner.is_left = true;
        wake(&inner.giver);
    }
}

fn lock<T>(inner: &Mutex<Inner<T>>) -> MutexGuard<'_, Inner<T>> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

fn park(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(known) => known.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

fn wake(waker: &Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn what_is_given_is_taken_in_order_and_the_last_even_after_the_giver_has_gone() {
        let (giver, taker) = handoff();
        let giving = tokio::spawn(async move {
            for number in 0..1000 {
                giver.free().await.unwrap();
                giver.give(number);
            }
        });
        let taken: Vec<u32> = taker.collect().await;
        giving.await.unwrap();
        assert_eq!(taken, Vec::from_iter(0..1000));
    }

    #[tokio::test]
    async fn a_giver_who_waits_hears_that_nobody_takes() {
        let (giver, taker) = handoff();
        giver.give(1);
        let waiting = tokio::spawn(async move { giver.free().await });
        tokio::task::yield_now().await;
        drop(taker);
        assert_eq!(waiting.await.unwrap(), Err(Left));
    }
}
