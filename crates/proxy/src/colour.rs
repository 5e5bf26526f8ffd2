//! The colour of a request. At a trust edge `x-env` and `x-canary-id` are what ColourPolicy gives, whatever came; inside the
//! mesh they are what they are, and rules match them.
//!
//! Trust edges are Gateways, and an inbound listener for callers in plain text where others show who they are. Where nobody
//! has an identity everybody in the mesh calls in plain text, and is believed.

use std::net::IpAddr;

use phalanx_model::name::Direction;
use phalanx_model::resource::MtlsMode;
use phalanx_model::resource::colour::{EdgeColours, is_canary_id};
use phalanx_relay::{Checked, Field, HeaderList, Name, Value, Verdict, names};

use crate::context::{Caller, StreamContext};
use crate::plan::Plan;
use crate::plan::key::cookie;

/// A stage behind `route`, which inbound says what the chosen port asks of callers, and before `guard`, whose policies may
/// go by the colour.
pub fn admit<'p>(
    plan: &'p Plan,
    request: &mut Checked,
    context: &mut StreamContext<'p>,
) -> Verdict {
    if context.direction == Direction::Inbound && context.guarded {
        let is_plain = matches!(context.caller, Caller::Plain);
        if let Some(entry) = context
            .entry
            .filter(|entry| is_plain && entry.mode != MtlsMode::Off)
        {
            let (headers, peer) = (request.headers_mut(), context.peer);
            let given = Given::find(&entry.colours, headers, peer, &mut context.rng);
            headers.remove_where(|name, _| is_colours(name));
            given.put(headers);
        }
    }
    let value = request.headers().get(names::X_ENV);
    context.colour = value.map(|value| plan.colours.find(value));
    Verdict::Continue
}

/// What a request from outside is given, found before its own headers are taken away.
pub(crate) struct Given {
    colour: Option<String>,
    canary: Option<String>,
}

impl Given {
    pub(crate) fn find(
        rules: &EdgeColours,
        headers: &HeaderList,
        peer: Option<IpAddr>,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let said = sole(headers, names::X_ENV);
        let canary = &rules.canary;
        let of_header = || {
            let field = Field::new(canary.header.as_deref()?, "").ok()?;
            sole(headers, field.name())
        };
        let of_cookie = || {
            let name = canary.cookie.as_deref()?.as_bytes();
            let mut values = headers.get_all(names::COOKIE);
            values.find_map(|value| cookie(value, name))
        };
        let is_id = |value: &&[u8]| is_canary_id(value);
        let id = of_header()
            .filter(is_id)
            .or_else(|| of_cookie().filter(is_id));
        let id = id.and_then(|id| String::from_utf8(id.to_vec()).ok());
        let mut made = || format!("{:016x}", rng.u64(..));
        Self {
            colour: rules.colour(said, peer).map(str::to_owned),
            canary: id.or_else(|| canary.generate.then(&mut made)),
        }
    }

    pub(crate) fn put(self, headers: &mut HeaderList) {
        let pairs = [
            (names::X_ENV, self.colour),
            (names::X_CANARY_ID, self.canary),
        ];
        for (name, value) in pairs {
            if let Some(value) = value.as_deref().and_then(|v| Value::new(v.as_bytes())) {
                headers.set(name, value);
            }
        }
    }
}

/// Who says a thing twice says nothing.
fn sole<'h>(headers: &'h HeaderList, name: Name<'_>) -> Option<&'h [u8]> {
    let mut values = headers.get_all(name);
    values.next().filter(|_| values.next().is_none())
}

fn is_colours(name: Name<'_>) -> bool {
    name == names::X_ENV || name == names::X_CANARY_ID
}

#[cfg(test)]
mod tests {
    use phalanx_relay::{Http1Line, Version, Workspace};

    use super::*;
    use crate::plan::Entry;

    /// Colour and canary id, `-` for none, of a request with these headers from `peer`.
    fn given(rules: &str, peer: &str, headers: &[(&str, &str)]) -> (String, String) {
        let rules: EdgeColours = rules.parse().unwrap();
        let mut list = HeaderList::new();
        for (name, value) in headers {
            list.push_field(&Field::new(name, value).unwrap());
        }
        let mut rng = fastrand::Rng::with_seed(1);
        let given = Given::find(&rules, &list, peer.parse().ok(), &mut rng);
        list.remove_where(|name, _| is_colours(name));
        given.put(&mut list);
        let text = |name| {
            let value = list.get(name);
            value.map_or("-".into(), |v| String::from_utf8_lossy(v).into_owned())
        };
        (text(names::X_ENV), text(names::X_CANARY_ID))
    }

    #[test]
    fn a_forged_colour_is_replaced_and_one_said_twice_is_none() {
        let rules = "take=dev-* net=10.10.0.0/16=staging default=prod";
        let colour = |peer, headers| given(rules, peer, headers).0;
        assert_eq!(colour("192.0.2.1", &[("x-env", "staging")]), "prod");
        assert_eq!(colour("192.0.2.1", &[("x-env", "dev-li")]), "dev-li");
        let twice = [("x-env", "dev-li"), ("x-env", "dev-wu")];
        assert_eq!(colour("10.10.1.1", &twice), "staging");
        assert_eq!(
            colour("10.10.1.1", &[("x-forwarded-for", "192.0.2.1")]),
            "staging"
        );
        assert_eq!(given("", "10.10.1.1", &[("x-env", "prod")]).0, "-");
    }

    #[test]
    fn a_canary_id_comes_from_the_header_else_the_cookie_else_it_is_made() {
        let rules = "id-header=x-user id-cookie=uid id-made";
        let id = |headers: &[(&str, &str)]| given(rules, "10.0.0.1", headers).1;
        assert_eq!(id(&[("x-user", "li"), ("cookie", "uid=wu")]), "li");
        assert_eq!(id(&[("x-user", "l i"), ("cookie", "a=1; uid=wu")]), "wu");
        let made = id(&[("x-canary-id", "forged")]);
        assert!(made.len() == 16 && made != "forged", "{made}");
        assert_eq!(given("", "10.0.0.1", &[("x-canary-id", "forged")]).1, "-");
    }

    /// What an inbound request with this colour has behind the stage, where callers are asked for `mode`.
    fn inbound(guarded: bool, mode: MtlsMode) -> (Option<String>, Option<String>) {
        let colours: EdgeColours = "net=10.10.0.0/16=staging default=prod".parse().unwrap();
        let entry = Entry {
            mode,
            colours: colours.into(),
            ..Entry::default()
        };
        let plan = Plan::empty();
        plan.colours.keep(["staging"].into_iter());
        let line = Http1Line {
            method: "GET",
            authority: None,
            path: "/",
            query: None,
            version: Version::Http11,
        };
        let fields = [
            ("host", "a"),
            ("x-env", "forged"),
            ("x-canary-id", "forged"),
        ];
        let fields = fields.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let limits = phalanx_relay::Limits::default();
        let made = Checked::http1(Workspace::default(), line, fields.into_iter(), &limits);
        let mut request = made.map_err(|(refusal, _)| refusal).unwrap();
        let rng = fastrand::Rng::with_seed(1);
        let mut context = StreamContext::new(Direction::Inbound, &Caller::Plain, guarded, rng);
        context.peer = "10.10.1.1".parse().ok();
        context.entry = Some(&entry);
        assert_eq!(admit(&plan, &mut request, &mut context), Verdict::Continue);
        let of = |name| {
            let value = request.headers().get(name)?;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        let colour = context.colour.map(|colour| plan.colours.name(colour));
        let told = of(names::X_ENV);
        let expected = match told.as_deref() {
            Some("staging") => "staging",
            _ => "other",
        };
        assert_eq!(colour.as_deref(), Some(expected));
        (told, of(names::X_CANARY_ID))
    }

    #[test]
    fn in_plain_text_a_colour_counts_only_where_nobody_shows_who_they_are() {
        let forged = (Some("forged".to_owned()), Some("forged".to_owned()));
        assert_eq!(
            inbound(true, MtlsMode::Permissive),
            (Some("staging".into()), None)
        );
        assert_eq!(inbound(true, MtlsMode::Off), forged);
        assert_eq!(inbound(false, MtlsMode::Permissive), forged);
    }
}
