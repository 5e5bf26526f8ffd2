//! Who may come in: the mode of the port that was chosen, then the policies, over the request as it was checked. Whoever is
//! let in with a certificate is named to the application.

mod lasting;

use phalanx_model::matching::access::AccessRequest;
use phalanx_model::name::Direction;
use phalanx_model::reason::Reason;
use phalanx_model::resource::MtlsMode;
use phalanx_relay::{Checked, HeaderList, Reply, Verdict, names};

use crate::context::{Caller, StreamContext};
use crate::plan::Plan;

pub use self::lasting::{Lasting, may_stay};

/// Outbound nobody is asked: the caller is this sidecar's own application.
pub fn admit<'p>(_: &'p Plan, request: &mut Checked, context: &mut StreamContext<'p>) -> Verdict {
    if context.direction == Direction::Outbound {
        return Verdict::Continue;
    }
    let known = match context.caller {
        Caller::Known(known) => Some(known),
        Caller::Plain => None,
        Caller::Nobody | Caller::Outside(_) => return refused(),
    };
    let Some(entry) = context.entry else {
        // Not the caller's mistake, and it may come.
        return if context.guarded {
            Reason::NoHealthyUpstream.into()
        } else {
            named(request, context)
        };
    };
    if entry.mode == MtlsMode::Strict && known.is_none() {
        return refused();
    }
    let caller = known.map(|known| &known.peer.id);
    if !entry.access.decide(caller, &Asked(request)).is_allowed() {
        return Reason::Denied.into();
    }
    named(request, context)
}

/// Nothing of such a connection will be taken.
fn refused() -> Verdict {
    Verdict::Respond(Reply::of(Reason::Unauthenticated).and_close())
}

/// What an outsider may have written there was taken away at the door.
fn named(request: &mut Checked, context: &StreamContext<'_>) -> Verdict {
    if let Caller::Known(known) = context.caller {
        request.headers_mut().set_field(&known.header);
    }
    Verdict::Continue
}

/// A request as policies ask for it.
pub(crate) struct Asked<'r>(pub(crate) &'r Checked);

impl AccessRequest for Asked<'_> {
    fn method(&self) -> &str {
        self.0.method_str()
    }

    fn path(&self) -> &str {
        self.0.path()
    }

    /// With those of the name's twins, which many servers can't tell from it.
    fn each_value<'r>(&'r self, name: &str, each: &mut dyn FnMut(&'r [u8]) -> bool) {
        each_of(self.0.authority().as_bytes(), self.0.headers(), name, each);
    }

    /// A host is the same with and without its port.
    fn also_read(&self, name: &str) -> Option<&[u8]> {
        let has_port = name.as_bytes() == names::HOST.as_bytes() && self.0.port().is_some();
        has_port.then(|| self.0.host().as_bytes())
    }
}

fn each_of<'r>(
    authority: &'r [u8],
    headers: &'r HeaderList,
    name: &str,
    each: &mut dyn FnMut(&'r [u8]) -> bool,
) {
    if name.as_bytes() == names::HOST.as_bytes() {
        each(authority);
        return;
    }
    for (field, value) in headers.iter() {
        if reads_as(field.as_bytes(), name.as_bytes()) && !each(value) {
            return;
        }
    }
}

/// Equal, where `_` may stand for `-`.
fn reads_as(field: &[u8], name: &[u8]) -> bool {
    let same = |(a, b): (&u8, &u8)| a == b || (*a == b'_' && *b == b'-');
    field.len() == name.len() && field.iter().zip(name).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twins_read_as_the_name() {
        assert!(reads_as(b"x_role", b"x-role"));
        assert!(reads_as(b"x-role", b"x-role"));
        for other in [&b"x-roles"[..], b"x.role", b"xx-role", b"x-rolE"] {
            assert!(!reads_as(other, b"x-role"));
        }
        assert!(!reads_as(b"x-role", b"x_role"));
    }
}
