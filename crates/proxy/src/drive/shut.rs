//! What stays open for long ends when the rules in force would not let it in any more: nothing else would ever ask about it
//! again.

use std::rc::Rc;

use super::core::Core;
use crate::account::Event;
use crate::guard::Lasting;

/// Drives `running` until it ends, or until a plan shuts out what opened it.
pub async fn while_allowed(
    core: &Rc<Core>,
    lasting: Option<Lasting>,
    running: impl Future<Output = ()>,
) {
    let shut_out = async {
        let Some(lasting) = lasting else {
            return std::future::pending().await;
        };
        loop {
            let renewed = core.renewed.notified();
            if !lasting.may_stay(&core.plan().plan) {
                return;
            }
            renewed.await;
        }
    };
    tokio::select! {
        biased;
        () = shut_out => core.count(Event::AccessDenied),
        () = running => {}
    }
}
