//! What stays open for long ends when the rules in force would not let it in any more: nothing else would ever ask about it
//! again. Upgrades and raw TCP are asked about with each plan from their beginning, requests from when they last.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::sync::futures::Notified;

use super::core::Core;
use super::exchange::{Exchange, Expiry};
use crate::account::Event;
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

/// Who looks at each plan that comes.
#[derive(Default)]
pub struct Review<'c> {
    renewed: Option<Pin<Box<Notified<'c>>>>,
}

impl<'c> Review<'c> {
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
        match exchange.lasts() {
            true => self
                .poll_shut_out(cx, core, may_stay)
                .map(|()| Expiry::ShutOut),
            false => Poll::Pending,
        }
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
