//! Whether a request may come in: an [`Access`] is compiled once and asked per request, without allocation in the common
//! case. Deny beats allow, and where a request can be read in several ways, the reading that refuses counts: for a denial
//! one reading that matches is enough, a permission has to match every one of them.

use std::borrow::Cow;

use super::canonical::canonical_path;
use super::pattern::PatternError;
use super::{PathTest, ValueTest};
use crate::identity::SpiffeId;
use crate::resource::{Access, AccessPolicy, AccessRule, Caller, Effect};

#[cfg(test)]
mod tests;

/// What is asked of a request.
pub trait AccessRequest {
    fn method(&self) -> &str;

    /// Canonical, without query.
    fn path(&self) -> &str;

    /// Tells every value of a header (`name` is lower case), field by field, until `each` answers false.
    fn each_value<'r>(&'r self, name: &str, each: &mut dyn FnMut(&'r [u8]) -> bool);

    /// What a header may be read as besides: a denial of that counts, a permission does not.
    fn also_read(&self, _name: &str) -> Option<&[u8]> {
        None
    }
}

/// An [`Access`] ready for requests.
#[derive(Debug, Default)]
pub struct CompiledAccess {
    deny: Box<[Policy]>,
    allow: Box<[Policy]>,
}

#[derive(Debug)]
struct Policy {
    name: Box<str>,
    rules: Box<[Rule]>,
}

#[derive(Debug)]
struct Rule {
    callers: Box<[Caller]>,
    methods: Box<[Box<str>]>,
    paths: Box<[PathTest]>,
    headers: Box<[ValueTest]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    Allowed,
    /// By this policy.
    Denied(&'a str),
    /// There are policies that allow, and none of them means this.
    NotAllowed,
}

impl Decision<'_> {
    pub fn is_allowed(self) -> bool {
        self == Self::Allowed
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error("policy `{policy}`: {source}")]
    Pattern {
        policy: String,
        source: PatternError,
    },
}

impl CompiledAccess {
    /// # Errors
    /// The first pattern that doesn't compile.
    pub fn compile(access: &Access) -> Result<Self, AccessError> {
        let of = |effect| {
            let policies = access.policies.iter();
            policies
                .filter(|policy| policy.effect == effect)
                .map(Policy::compile)
                .collect::<Result<_, _>>()
        };
        Ok(Self {
            deny: of(Effect::Deny)?,
            allow: of(Effect::Allow)?,
        })
    }

    /// Whether everybody may do everything.
    pub fn is_open(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty()
    }

    /// Of a request. `caller`: who was let in by its certificate, which is of the mesh's trust domain; nobody in plain text.
    pub fn decide(&self, caller: Option<&SpiffeId>, request: &impl AccessRequest) -> Decision<'_> {
        if self.is_open() {
            return Decision::Allowed;
        }
        let paths = Readings::of(request.path());
        self.decided(|rule, effect| {
            rule.means(caller) && rule.holds(request, &paths, effect == Effect::Deny)
        })
    }

    /// The policy by which the request is let in, where there are policies that allow; for people.
    pub fn allowed_by(
        &self,
        caller: Option<&SpiffeId>,
        request: &impl AccessRequest,
    ) -> Option<&str> {
        let paths = Readings::of(request.path());
        let means = |rule: &Rule| rule.means(caller) && rule.holds(request, &paths, false);
        let policy = self.allow.iter().find(|p| p.rules.iter().any(means))?;
        Some(&policy.name)
    }

    /// Of a connection whose bytes are not read. What a rule says of methods, paths and headers can't be seen: a denial
    /// takes it for true, a permission for false.
    pub fn decide_unread(&self, caller: Option<&SpiffeId>) -> Decision<'_> {
        self.decided(|rule, effect| {
            rule.means(caller) && (effect == Effect::Deny || !rule.asks_of_requests())
        })
    }

    fn decided(&self, mut holds: impl FnMut(&Rule, Effect) -> bool) -> Decision<'_> {
        let mut matching = |policy: &&Policy, effect| policy.rules.iter().any(|r| holds(r, effect));
        if let Some(policy) = self.deny.iter().find(|p| matching(p, Effect::Deny)) {
            return Decision::Denied(&policy.name);
        }
        if self.allow.is_empty() || self.allow.iter().any(|p| matching(&p, Effect::Allow)) {
            Decision::Allowed
        } else {
            Decision::NotAllowed
        }
    }
}

impl Policy {
    fn compile(policy: &AccessPolicy) -> Result<Self, AccessError> {
        let rules = policy.rules.iter().map(Rule::compile);
        let rules = rules.collect::<Result<_, _>>();
        Ok(Self {
            name: policy.name.as_str().into(),
            rules: rules.map_err(|source| AccessError::Pattern {
                policy: policy.name.clone(),
                source,
            })?,
        })
    }
}

impl Rule {
    fn compile(rule: &AccessRule) -> Result<Self, PatternError> {
        let headers = rule.headers.iter();
        Ok(Self {
            callers: rule.callers.clone().into(),
            methods: rule.methods.iter().map(|m| m.as_str().into()).collect(),
            paths: rule
                .paths
                .iter()
                .map(PathTest::compile)
                .collect::<Result<_, _>>()?,
            headers: headers
                .map(|m| ValueTest::compile(&m.name, &m.value))
                .collect::<Result<_, _>>()?,
        })
    }

    fn means(&self, caller: Option<&SpiffeId>) -> bool {
        let is = |one: &Caller, id: &SpiffeId| match one {
            Caller::Anyone => true,
            Caller::Id(other) => other == id,
            Caller::Namespace(namespace) => *namespace == id.service.namespace,
        };
        self.callers.is_empty()
            || caller.is_some_and(|id| self.callers.iter().any(|one| is(one, id)))
    }

    fn asks_of_requests(&self) -> bool {
        !(self.methods.is_empty() && self.paths.is_empty() && self.headers.is_empty())
    }

    /// `any`: one reading that matches is enough, else all must.
    fn holds(&self, request: &impl AccessRequest, paths: &Readings<'_>, any: bool) -> bool {
        let method = request.method();
        let path = |path: &str| self.paths.iter().any(|test| test.holds(path));
        (self.methods.is_empty() || self.methods.iter().any(|m| **m == *method))
            && (self.paths.is_empty() || paths.hold(path, any))
            && self.headers.iter().all(|test| {
                if any {
                    any_value(test, request)
                } else {
                    every_value(test, request)
                }
            })
    }
}

/// The ways a path may be read: with parameters of segments (`;…`), and without, as many servers do.
struct Readings<'p> {
    whole: &'p str,
    /// None when nothing is to be cut; an error when what is left is no path.
    cut: Option<Result<Cow<'p, str>, ()>>,
}

impl<'p> Readings<'p> {
    fn of(path: &'p str) -> Self {
        let cut = path.contains(';').then(|| {
            let segments = path.split('/');
            let bare = segments.map(|s| s.split_once(';').map_or(s, |(bare, _)| bare));
            let bare = bare.collect::<Vec<_>>().join("/");
            canonical_path(&bare)
                .map(|path| Cow::Owned(path.into_owned()))
                .map_err(|_| ())
        });
        Self { whole: path, cut }
    }

    fn hold(&self, test: impl Fn(&str) -> bool, any: bool) -> bool {
        let whole = test(self.whole);
        match &self.cut {
            None => whole,
            Some(Err(())) => any,
            Some(Ok(cut)) if any => whole || test(cut),
            Some(Ok(cut)) => whole && test(cut),
        }
    }
}

/// A value as it stands in a field, an element of a list in it, or all fields joined to one.
fn any_value(test: &ValueTest, request: &impl AccessRequest) -> bool {
    if request
        .also_read(&test.name)
        .is_some_and(|value| test.holds(value))
    {
        return true;
    }
    let (mut held, mut first, mut rest) = (false, None, Vec::new());
    request.each_value(&test.name, &mut |value| {
        held = test.holds(value)
            || (value.contains(&b',')
                && value
                    .split(|b| *b == b',')
                    .any(|element| test.holds(element.trim_ascii())));
        if first.is_none() {
            first = Some(value);
        } else {
            rest.push(value);
        }
        !held
    });
    let Some(first) = first else { return false };
    let joined = |with: &[u8]| {
        let mut all = first.to_vec();
        for value in &rest {
            all.extend_from_slice(with);
            all.extend_from_slice(value);
        }
        test.holds(&all)
    };
    held || (!rest.is_empty() && (joined(b",") || joined(b", ")))
}

fn every_value(test: &ValueTest, request: &impl AccessRequest) -> bool {
    let (mut some, mut all) = (false, true);
    request.each_value(&test.name, &mut |value| {
        some = true;
        all = test.holds(value);
        all
    });
    some && all
}
