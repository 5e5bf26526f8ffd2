//! Buckets in a Redis: several control planes share them, and they outlive all of these. One connection, one script per
//! question, a call's questions in one flight.

use std::str::FromStr;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::{Given, OVERDRAFT, Take};

/// `redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`
#[derive(Clone, PartialEq, Eq)]
pub struct RedisAddress {
    host: String,
    port: u16,
    user: Option<String>,
    password: Option<String>,
    database: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RedisAddressError {
    #[error(
        "`rediss://` (TLS) is not supported by this version: use a Redis that this machine reaches safely"
    )]
    Tls,
    #[error("expected redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]")]
    Shape,
}

impl FromStr for RedisAddress {
    type Err = RedisAddressError;

    fn from_str(text: &str) -> Result<Self, RedisAddressError> {
        use RedisAddressError::{Shape, Tls};
        if text.starts_with("rediss://") {
            return Err(Tls);
        }
        let rest = text.strip_prefix("redis://").ok_or(Shape)?;
        let (rest, database) = match rest.split_once('/') {
            Some((rest, "")) => (rest, 0),
            Some((rest, number)) => (rest, number.parse().map_err(|_| Shape)?),
            None => (rest, 0),
        };
        let (user, password, place) = match rest.rsplit_once('@') {
            Some((secret, place)) => {
                let (user, password) = secret.split_once(':').ok_or(Shape)?;
                let user = Some(user.to_owned()).filter(|user| !user.is_empty());
                (user, Some(password.to_owned()), place)
            }
            None => (None, None, rest),
        };
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, port.parse().map_err(|_| Shape)?)
            }
            _ => (place, PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(Shape);
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            user,
            password,
            database,
        })
    }
}

/// Without the password.
impl std::fmt::Debug for RedisAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "redis://{}:{}/{}", self.host, self.port, self.database)
    }
}

#[derive(Debug, thiserror::Error)]
pub(super) enum RedisError {
    #[error("no connection")]
    Io(#[from] std::io::Error),
    #[error("no answer in time")]
    Timeout,
    #[error("it has failed a moment ago")]
    Lately,
    #[error("it says: {0}")]
    Said(String),
    #[error("its answer is none of Redis' protocol")]
    Protocol,
}

#[derive(Debug)]
pub(super) struct Redis {
    address: RedisAddress,
    /// Held for one flight: answers come in the order of the questions.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    connection: Option<Connection>,
    failed_at: Option<Instant>,
}

#[derive(Debug)]
struct Connection {
    stream: BufReader<TcpStream>,
    /// Of the script, as this Redis has it.
    digest: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Value {
    Number(i64),
    Text(String),
    List(Vec<Value>),
    Error(String),
    Nothing,
}

impl Redis {
    pub(super) fn new(address: RedisAddress) -> Self {
        Self {
            address,
            state: Mutex::default(),
        }
    }

    pub(super) async fn take(&self, takes: &[Take]) -> Result<Vec<Given>, RedisError> {
        if takes.is_empty() {
            return Ok(Vec::new());
        }
        let mut state = self.state.lock().await;
        let lately = |failed: Instant| failed.elapsed() < AGAIN;
        if state.failed_at.is_some_and(lately) {
            return Err(RedisError::Lately);
        }
        let taken = timeout(FLIGHT, self.flight(&mut state, takes)).await;
        let taken = taken.unwrap_or(Err(RedisError::Timeout));
        if let Err(error) = &taken {
            tracing::warn!(%error, redis = ?self.address, "rate limits have no Redis");
            *state = State {
                connection: None,
                failed_at: Some(Instant::now()),
            };
        }
        taken
    }

    async fn flight(&self, state: &mut State, takes: &[Take]) -> Result<Vec<Given>, RedisError> {
        let mut connection = match state.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.address).await?,
        };
        let given = connection.take(takes).await?;
        *state = State {
            connection: Some(connection),
            failed_at: None,
        };
        Ok(given)
    }
}

impl Connection {
    async fn open(address: &RedisAddress) -> Result<Self, RedisError> {
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        stream.set_nodelay(true)?;
        let mut connection = Self {
            stream: BufReader::new(stream),
            digest: String::new(),
        };
        if let Some(password) = &address.password {
            let user = address.user.as_deref();
            let words: Vec<&str> = ["AUTH"]
                .into_iter()
                .chain(user)
                .chain([password.as_str()])
                .collect();
            connection.ask(&words).await?;
        }
        if address.database != 0 {
            connection
                .ask(&["SELECT", &address.database.to_string()])
                .await?;
        }
        match connection.ask(&["SCRIPT", "LOAD", SCRIPT]).await? {
            Value::Text(digest) => connection.digest = digest,
            _ => return Err(RedisError::Protocol),
        }
        Ok(connection)
    }

    async fn ask(&mut self, words: &[&str]) -> Result<Value, RedisError> {
        let mut out = Vec::new();
        command(&mut out, words);
        self.stream.get_mut().write_all(&out).await?;
        self.answer().await
    }

    async fn take(&mut self, takes: &[Take]) -> Result<Vec<Given>, RedisError> {
        let mut out = Vec::with_capacity(takes.len() * 200);
        for take in takes {
            let key = format!("phalanx:limit:{}:{:016x}", take.policy, take.key);
            let every_us = take.rate.interval_ns() as f64 / 1_000.0;
            let numbers = [
                every_us.to_string(),
                take.rate.burst.to_string(),
                take.spent.to_string(),
                take.wanted.to_string(),
                take.returned.to_string(),
                OVERDRAFT.to_string(),
            ];
            let words = ["EVALSHA", &self.digest, "1", &key];
            let words = words.into_iter().chain(numbers.iter().map(String::as_str));
            command(&mut out, &words.collect::<Vec<_>>());
        }
        self.stream.get_mut().write_all(&out).await?;
        let mut given = Vec::with_capacity(takes.len());
        for _ in takes {
            let Value::List(answer) = self.answer().await? else {
                return Err(RedisError::Protocol);
            };
            let [Value::Number(tokens), Value::Number(dry_us)] = answer.as_slice() else {
                return Err(RedisError::Protocol);
            };
            given.push(Given {
                tokens: u32::try_from(*tokens).map_err(|_| RedisError::Protocol)?,
                dry_ns: u64::try_from(*dry_us)
                    .map_err(|_| RedisError::Protocol)?
                    .saturating_mul(1_000),
            });
        }
        Ok(given)
    }

    async fn answer(&mut self) -> Result<Value, RedisError> {
        answer(&mut self.stream).await
    }
}

/// For whoever feeds it foreign bytes: reads answers until one is none, and tells how many there were.
pub async fn answers(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while answer(&mut bytes).await.is_ok() {
        count += 1;
    }
    count
}

/// An error of the server's is one of ours.
async fn answer(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Value, RedisError> {
    let value = match line(stream).await? {
        Value::List(items) => {
            let mut values = Vec::with_capacity(items.len());
            for _ in items {
                values.push(line(stream).await?);
            }
            Value::List(values)
        }
        other => other,
    };
    match value {
        Value::Error(text) => Err(RedisError::Said(text)),
        value => Ok(value),
    }
}

/// A list comes with as many nothings as it has items; none of ours holds another.
async fn line(stream: &mut (impl AsyncBufRead + Unpin)) -> Result<Value, RedisError> {
    let mut line = String::new();
    let read = (&mut *stream).take(LINE_MAX).read_line(&mut line).await?;
    if read == 0 {
        return Err(RedisError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    let line = line.strip_suffix("\r\n").ok_or(RedisError::Protocol)?;
    let (kind, rest) = line.split_at_checked(1).ok_or(RedisError::Protocol)?;
    let number = || rest.parse::<i64>().map_err(|_| RedisError::Protocol);
    let length = || match number()? {
        length @ 0..=LENGTH_MAX => Ok(Some(length as usize)),
        -1 => Ok(None),
        _ => Err(RedisError::Protocol),
    };
    Ok(match kind {
        "+" => Value::Text(rest.to_owned()),
        "-" => Value::Error(rest.to_owned()),
        ":" => Value::Number(number()?),
        "*" => length()?.map_or(Value::Nothing, |length| {
            Value::List((0..length).map(|_| Value::Nothing).collect())
        }),
        "$" => match length()? {
            None => Value::Nothing,
            Some(length) => {
                let mut text = vec![0; length + 2];
                stream.read_exact(&mut text).await?;
                text.truncate(length);
                Value::Text(String::from_utf8(text).map_err(|_| RedisError::Protocol)?)
            }
        },
        _ => return Err(RedisError::Protocol),
    })
}

fn command(out: &mut Vec<u8>, words: &[&str]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// What [`super::memory`] does, by the server's clock, in µs.
const SCRIPT: &str = r"
local every, burst, spent, wanted, returned = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(kept[1]) or burst, tonumber(kept[2]) or now
tokens = math.min(burst, tokens + math.max(0, now - at) / every + returned) - spent
tokens = math.max(tokens, -burst * tonumber(ARGV[6]))
local given = 0
if wanted > 0 and tokens >= 1 then
  given = math.max(1, math.min(wanted, math.floor(tokens / 2)))
  tokens = tokens - given
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens), 'at', string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil((burst - tokens) * every / 1000) + 1000)
local dry = 0
if tokens < 1 then dry = math.ceil((1 - tokens) * every) end
return {given, dry}
";
const PORT: u16 = 6379;
/// Of a call's questions, connecting included: a sidecar waits no longer either.
const FLIGHT: Duration = Duration::from_millis(400);
/// One that failed is left alone for so long.
const AGAIN: Duration = Duration::from_millis(500);
const LINE_MAX: u64 = 64 * 1024;
const LENGTH_MAX: i64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_their_passwords_not_shown() {
        let read = |text: &str| text.parse::<RedisAddress>();
        let address = read("redis://user:p:w@redis.internal:7000/3").unwrap();
        assert_eq!(format!("{address:?}"), "redis://redis.internal:7000/3");
        assert_eq!(address.password.as_deref(), Some("p:w"));
        assert_eq!(read("redis://127.0.0.1").unwrap().port, 6379);
        assert_eq!(read("redis://[::1]:1").unwrap().host, "::1");
        assert_eq!(read("rediss://x"), Err(RedisAddressError::Tls));
        for wrong in [
            "",
            "redis://",
            "http://x",
            "redis://x:y",
            "redis://x/z",
            "redis://a@b",
        ] {
            assert_eq!(read(wrong), Err(RedisAddressError::Shape), "{wrong}");
        }
    }
}
