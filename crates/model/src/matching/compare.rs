//! A rule's conditions one by one, as people ask for them: each is decided by the same tests that requests are.

use std::borrow::Cow;

use super::{CompiledRule, Expected, PathTest, Request, ValueTest, query_value};

/// One condition of a rule and how a request stands to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// `path`, `method`, `content-type`, `header NAME` or `query NAME`.
    pub what: String,
    /// `exactly …`, `prefix …` or `pattern …`.
    pub expected: String,
    /// None when the request has no such thing.
    pub found: Option<String>,
    pub holds: bool,
}

impl<A> CompiledRule<A> {
    /// All conditions, those that hold included. The rule matches when every one of them holds.
    pub fn compare(&self, request: &impl Request) -> Vec<Comparison> {
        let (path, method) = (request.path(), request.method());
        let mut all = vec![Comparison {
            what: "path".to_owned(),
            expected: self.path.told(),
            found: Some(path.to_owned()),
            holds: self.path.holds(path),
        }];
        if let Some(wanted) = self.method.as_deref() {
            all.push(Comparison {
                what: "method".to_owned(),
                expected: format!("exactly {wanted}"),
                found: Some(method.to_owned()),
                holds: wanted == method,
            });
        }
        if self.grpc {
            let found = request.header("content-type");
            all.push(Comparison {
                what: "content-type".to_owned(),
                expected: "application/grpc".to_owned(),
                found: found.map(|value| text(&value)),
                holds: request.is_grpc(),
            });
        }
        all.extend(self.headers.iter().map(|test| {
            let found = request.header(&test.name);
            test.compared(format!("header {}", test.name), found.as_deref())
        }));
        all.extend(self.query.iter().map(|test| {
            let found = query_value(request.query(), &test.name);
            test.compared(format!("query {}", test.name), found.as_deref())
        }));
        let matches = self.matches(request);
        if all.iter().all(|one| one.holds) != matches {
            // A kind of condition that this list doesn't know: rather a vague word than a wrong one.
            all.push(Comparison {
                what: "rule".to_owned(),
                expected: "its other conditions".to_owned(),
                found: None,
                holds: matches,
            });
        }
        all
    }
}

impl PathTest {
    fn told(&self) -> String {
        match self {
            Self::All => "prefix /".to_owned(),
            Self::Exact(path) => format!("exactly {path}"),
            Self::Prefix(path) => format!("prefix {path}"),
            Self::Regex(pattern) => format!("pattern {}", pattern.written()),
        }
    }
}

impl ValueTest {
    fn compared(&self, what: String, found: Option<&[u8]>) -> Comparison {
        Comparison {
            what,
            expected: match &self.expected {
                Expected::Exact(value) => format!("exactly {}", text(value)),
                Expected::Regex(pattern) => format!("pattern {}", pattern.written()),
            },
            found: found.map(text),
            holds: found.is_some_and(|value| self.holds(value)),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    match String::from_utf8_lossy(bytes) {
        Cow::Borrowed(text) => text.to_owned(),
        Cow::Owned(text) => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matching::CompiledTable;
    use crate::reason::Reason;
    use crate::resource::{
        Action, HeaderEdit, HeaderMatch, PathMatch, QueryMatch, RouteTable, Rule, RuleMatch,
        ValueMatch, VirtualHost,
    };

    struct Ask<'a>(&'a str, Option<&'a str>, &'a str);

    impl Request for Ask<'_> {
        fn method(&self) -> &str {
            "GET"
        }
        fn path(&self) -> &str {
            self.0
        }
        fn query(&self) -> Option<&str> {
            self.1
        }
        fn header(&self, name: &str) -> Option<Cow<'_, [u8]>> {
            (name == "x-env" && !self.2.is_empty()).then_some(Cow::Borrowed(self.2.as_bytes()))
        }
        fn is_grpc(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_rule_matches_exactly_when_all_that_is_told_holds() {
        let matches = RuleMatch {
            path: PathMatch::Prefix("/a/".into()),
            method: Some("GET".into()),
            headers: vec![HeaderMatch {
                name: "x-env".into(),
                value: ValueMatch::Regex("stag.*".into()),
            }],
            query: vec![QueryMatch {
                name: "beta".into(),
                value: ValueMatch::Exact("yes".into()),
            }],
            ..RuleMatch::default()
        };
        let rule = Rule {
            name: "r".into(),
            matches,
            request_headers: HeaderEdit::default(),
            response_headers: HeaderEdit::default(),
            action: Action::Respond(Reason::NoRoute),
        };
        let table = RouteTable {
            name: "t".into(),
            hosts: vec![VirtualHost {
                name: "h".into(),
                domains: vec!["*".into()],
                rules: vec![rule],
            }],
        };
        let table = CompiledTable::compile(&table, |_| Ok::<_, Reason>(())).unwrap();
        let rule = &table.host("x").unwrap().rules[0];
        for (path, path_holds) in [("/a", true), ("/a/b", true), ("/ab", false)] {
            for (query, query_holds) in [
                (Some("beta=yes"), true),
                (Some("beta=no"), false),
                (None, false),
            ] {
                for (env, env_holds) in [("staging", true), ("prod", false), ("", false)] {
                    let ask = Ask(path, query, env);
                    let told = rule.compare(&ask);
                    let holds: Vec<bool> = told.iter().map(|one| one.holds).collect();
                    assert_eq!(holds, [path_holds, true, env_holds, query_holds]);
                    assert_eq!(rule.matches(&ask), holds.iter().all(|holds| *holds));
                    assert_eq!(told[0].expected, "prefix /a");
                    assert_eq!(told[2].expected, "pattern stag.*");
                }
            }
        }
    }
}
