//! What stays open for long ends when the rules in force would not let it in any more: nothing else would ever ask about it
//! again. Upgrades and raw TCP are asked about with each plan from their beginning, requests from when they last.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::futures::Notified;

use super::core::Core;
use super::exchange::{Exchange, Expiry};
use crate::account::Event;
use crate::context::StreamContext;
use crate::directory::Entry;
use crate::guard::Lasting;
use crate::plan::Plan;

/// Drives `running` until it ends, or until a plan shuts out what opened it.
pub async fn while_allowed(
    core: &Rc<Core>,
    lasting: Option<Lasting>,
    running: impl Future<Output = ()>,
) {
    match lasting {
        Some(lasting) => while_it(core, |plan| lasting.may_stay(plan), running).await,
        None => running.await,
    }
}

/// The same of what `may_stay` tells of.
pub async fn while_it(
    core: &Rc<Core>,
    may_stay: impl Fn(&Plan) -> bool,
    running: impl Future<Output = ()>,
) {
    let mut review = Review::default();
    tokio::select! {
        biased;
        () = std::future::poll_fn(|cx| review.poll_shut_out(cx, core, &may_stay)) => {
            core.count(Event::AccessDenied);
        }
        () = running => {}
    }
}

/// Drives `running` until it ends, or a while after the session that it belongs to is elsewhere: none then.
pub async fn while_seated<T>(
    seat: Option<Arc<Entry>>,
    running: impl Future<Output = T>,
) -> Option<T> {
    let Some(seat) = seat else {
        return Some(running.await);
    };
    tokio::select! {
        biased;
        ended = running => Some(ended),
        () = Box::pin(left(seat)) => None,
    }
}

/// Ends when a session has been elsewhere for a moment, another one for each that holds it: not all of its clients come
/// again at once.
async fn left(seat: Arc<Entry>) {
    seat.replaced().await;
    tokio::time::sleep(MOVED_SPREAD.mul_f64(fastrand::f64())).await;
}

/// Who looks at each plan that comes, and at where the session is.
#[derive(Default)]
pub struct Review<'c> {
    renewed: Option<Pin<Box<Notified<'c>>>>,
    seat: Option<Arc<Entry>>,
    left: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

impl<'c> Review<'c> {
    pub fn of(context: &StreamContext<'_>) -> Self {
        Self {
            seat: context.seat.clone(),
            ..Self::default()
        }
    }

    /// A request's deadlines, and whether it `may_stay`. One that is over soon is not asked about, and pays a comparison.
    #[inline]
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        core: &'c Core,
        exchange: &Exchange,
        may_stay: impl Fn(&Plan) -> bool,
    ) -> Poll<Expiry> {
        if let Poll::Ready(expiry) = exchange.poll_expiry(cx) {
            return Poll::Ready(expiry);
        }
        if !exchange.lasts() {
            return Poll::Pending;
        }
        if let Some(seat) = self.seat.take() {
            self.left = Some(Box::pin(left(seat)));
        }
        if let Some(left) = &mut self.left
            && left.as_mut().poll(cx).is_ready()
        {
            self.left = None;
            return Poll::Ready(Expiry::Moved);
        }
        self.poll_shut_out(cx, core, may_stay)
            .map(|()| Expiry::ShutOut)
    }

    /// Ready when a plan is in force by which it may not.
    fn poll_shut_out(
        &mut self,
        cx: &mut Context<'_>,
        core: &'c Core,
        may_stay: impl Fn(&Plan) -> bool,
    ) -> Poll<()> {
        loop {
            if let Some(renewed) = &mut self.renewed {
                ready!(renewed.as_mut().poll(cx));
            }
            // From before the plan is looked at: none is missed.
            self.renewed = Some(Box::pin(core.renewed.notified()));
            if !may_stay(&core.plan().plan) {
                return Poll::Ready(());
            }
        }
    }
}

/// Over how long the clients of one session are told to come again.
const MOVED_SPREAD: Duration = Duration::from_secs(1);
