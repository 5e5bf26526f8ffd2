//! CORS as Envoy's filter does it: preflights are answered here, answers to other requests get word for the browser.

use phalanx_model::matching::pattern::{Pattern, PatternError};
use phalanx_model::resource::{ANY, Cors, ValueMatch};
use phalanx_relay::header::FieldError;
use phalanx_relay::{Checked, Field, HeaderList, Method};

use super::table::TableError;

pub struct CorsPlan {
    origins: Box<[Origins]>,
    credentials: Option<Field>,
    methods: Asked,
    headers: Asked,
    exposed: Option<Field>,
    max_age: Option<Field>,
    /// Fields of requests; with no value.
    origin: Field,
    asked_method: Field,
    asked_headers: Field,
}

enum Origins {
    All,
    One(Box<[u8]>),
    Like(Pattern),
}

/// What a preflight asks for.
enum Asked {
    Nothing,
    /// It gets what it asks for.
    Anything,
    These(Field),
}

impl CorsPlan {
    /// # Errors
    /// A pattern or a name that is none.
    pub fn new(cors: &Cors) -> Result<Self, TableError> {
        let origin = |origin: &ValueMatch| {
            Ok(match origin {
                ValueMatch::Exact(text) if text == ANY => Origins::All,
                ValueMatch::Exact(text) => Origins::One(text.as_bytes().into()),
                ValueMatch::Regex(pattern) => Origins::Like(Pattern::parse(pattern)?),
            })
        };
        let origins: Result<_, PatternError> = cors.origins.iter().map(origin).collect();
        let yes = Field::new("access-control-allow-credentials", "true")?;
        let age = Field::new("access-control-max-age", &cors.max_age.to_string())?;
        Ok(Self {
            origins: origins?,
            credentials: Some(yes).filter(|_| cors.credentials),
            methods: Asked::new("access-control-allow-methods", &cors.methods)?,
            headers: Asked::new("access-control-allow-headers", &cors.headers)?,
            exposed: listed("access-control-expose-headers", &cors.exposed)?,
            max_age: Some(age).filter(|_| cors.max_age > 0),
            origin: Field::new("origin", "")?,
            asked_method: Field::new("access-control-request-method", "")?,
            asked_headers: Field::new("access-control-request-headers", "")?,
        })
    }

    /// What the answer to a request says of its origin; none without one, or if that is not allowed.
    pub fn allowed(&self, headers: &HeaderList) -> Option<Field> {
        let origin = headers.get(self.origin.name())?;
        let matches = |origins: &Origins| match origins {
            Origins::All => true,
            Origins::One(one) => **one == *origin,
            Origins::Like(pattern) => pattern.matches(origin),
        };
        let is_allowed = !origin.is_empty() && self.origins.iter().any(matches);
        let text = std::str::from_utf8(origin).ok().filter(|_| is_allowed)?;
        Field::new("access-control-allow-origin", text).ok()
    }

    /// The answer to a preflight: to one from an origin that is not allowed it says everything but that. None for other
    /// requests.
    pub fn preflight(&self, request: &Checked) -> Option<Vec<Field>> {
        let headers = request.headers();
        let said = |field: &Field| headers.get(field.name()).filter(|value| !value.is_empty());
        if request.method() != Method::Options || said(&self.origin).is_none() {
            return None;
        }
        let method = said(&self.asked_method)?;
        let asked = self
            .headers
            .answer("access-control-allow-headers", said(&self.asked_headers));
        let allowed = self.allowed(headers);
        let exposed = self.exposed.clone().filter(|_| allowed.is_some());
        let fields = [
            allowed,
            self.credentials.clone(),
            self.methods
                .answer("access-control-allow-methods", Some(method)),
            asked,
            exposed,
            self.max_age.clone(),
        ];
        Some(fields.into_iter().flatten().collect())
    }

    /// Sets what an answer says; `allowed` is what [`CorsPlan::allowed`] said of its request.
    pub fn answer(&self, allowed: &Field, mut set: impl FnMut(&Field)) {
        let fields = [
            Some(allowed),
            self.credentials.as_ref(),
            self.exposed.as_ref(),
        ];
        fields.into_iter().flatten().for_each(&mut set);
    }
}

impl Asked {
    fn new(name: &str, words: &[String]) -> Result<Self, FieldError> {
        Ok(match words {
            [only] if only == ANY => Self::Anything,
            words => listed(name, words)?.map_or(Self::Nothing, Self::These),
        })
    }

    fn answer(&self, name: &str, asked: Option<&[u8]>) -> Option<Field> {
        match self {
            Self::Nothing => None,
            Self::Anything => Field::new(name, std::str::from_utf8(asked?).ok()?).ok(),
            Self::These(field) => Some(field.clone()),
        }
    }
}

fn listed(name: &str, words: &[String]) -> Result<Option<Field>, FieldError> {
    let field = Field::new(name, &words.join(", "))?;
    Ok(Some(field).filter(|_| !words.is_empty()))
}
