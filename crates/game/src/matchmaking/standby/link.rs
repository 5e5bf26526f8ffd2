//! The connection by which a standby follows its owner. The standby dials, because it knows from the roll where the owner
//! is; the owner then sends what the standby lacks and every further record, and hears how far its disk is.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{BufReader, BufWriter},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::timeout,
};

use super::frame::{
    FRAME_BYTES_MAX, FrameError, GREETING_BYTES_MAX, Kind, NONCE_BYTES, Reader, Seal, Writer,
};
use crate::matchmaking::{
    ledger::wire,
    log::{CHECKPOINT_BYTES_MAX, Checkpoint, Position, Record, ReplicaId},
};

/// How often an owner with nothing to say says that.
pub const BEAT: Duration = Duration::from_millis(100);
/// After how long without a word a standby gives a connection up.
pub const SILENCE_MAX: Duration = Duration::from_secs(3);
const GREETING_MAX: Duration = Duration::from_secs(2);
/// Bytes that may wait for a slow standby before its connection is given up.
pub const BACKLOG_BYTES_MAX: usize = 64 << 20;
const PIECE_BYTES: usize = 1 << 20;
const SHARD_BYTES_MAX: usize = 256;
const VERSION: u8 = 1;
const FROM_OWNER: u8 = 1;
const FROM_STANDBY: u8 = 2;

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the other end took too long")]
    Silent,
    #[error("the owner has a standby already")]
    Turned,
    #[error("the other end speaks version {0} of this protocol, this is {VERSION}")]
    Version(u8),
    #[error("the standby is {bytes} bytes behind, at most {BACKLOG_BYTES_MAX} are kept for it")]
    Behind { bytes: usize },
    #[error("the owner sent a record that can't be read")]
    Record,
    #[error("the owner sent a state that can't be read")]
    State,
    #[error("whoever took the records is gone")]
    Closed,
}

type Result<T, E = LinkError> = std::result::Result<T, E>;

/// A connection after its greeting.
#[derive(Debug)]
pub struct Link {
    reader: Reader<BufReader<OwnedReadHalf>>,
    writer: Writer<BufWriter<OwnedWriteHalf>>,
}

/// What a standby says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub shard: String,
    pub replica: ReplicaId,
    pub position: Position,
}

/// What an owner sends to the standby's session.
#[derive(Debug)]
pub enum Ship {
    Turned,
    State(Checkpoint),
    Record(Record),
    /// Everything that the standby lacked at the start was sent.
    Whole,
}

impl Ship {
    pub fn bytes(&self) -> usize {
        match self {
            Ship::Turned | Ship::Whole => 0,
            Ship::State(checkpoint) => checkpoint.state.len(),
            Ship::Record(record) => record.bytes().len(),
        }
    }
}

/// What a standby has to put on its disk, in order.
#[derive(Debug)]
pub enum Shipped {
    State(Checkpoint),
    Record(Record),
    /// Nothing; to be answered with how far the disk is.
    Beat,
}

impl Link {
    fn new(stream: TcpStream, ours: u8, theirs: u8) -> Link {
        // Acknowledgements are small and waited for. A socket that won't do it is slower, not wrong.
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.into_split();
        Link {
            reader: Reader::new(
                BufReader::with_capacity(64 << 10, reader),
                Seal::none(),
                theirs,
            ),
            writer: Writer::new(
                BufWriter::with_capacity(64 << 10, writer),
                Seal::none(),
                ours,
            ),
        }
    }

    fn reseal(&mut self, seal: &Seal) {
        self.reader.reseal(seal.clone());
        self.writer.reseal(seal.clone());
    }
}

/// Owner: hears who dialled.
///
/// # Errors
/// Whoever isn't a standby with our secret.
pub async fn greet(stream: TcpStream, seal: &Seal) -> Result<(Hello, Link)> {
    let mut link = Link::new(stream, FROM_OWNER, FROM_STANDBY);
    let greeting = async {
        let nonce = nonce();
        let mut challenge = vec![VERSION];
        challenge.extend_from_slice(&nonce);
        link.writer.send(Kind::Challenge, &challenge).await?;
        link.writer.flush().await?;
        // The standby's nonce is in the hello, which is therefore sealed with what both know before it.
        link.reseal(&seal.connection(&[&nonce]));
        let (kind, payload) = link.reader.next(GREETING_BYTES_MAX).await?;
        if kind != Kind::Hello {
            return Err(FrameError::Turn(kind).into());
        }
        let (hello, theirs) = parse_hello(&payload).ok_or(FrameError::Payload(kind))?;
        link.reseal(&seal.connection(&[&nonce, &theirs]));
        Ok::<Hello, LinkError>(hello)
    };
    let hello = timeout(GREETING_MAX, greeting).await;
    let hello = hello.map_err(|_| LinkError::Silent)??;
    Ok((hello, link))
}

/// Standby: dials the owner.
///
/// # Errors
/// Nobody there, nobody who speaks this.
pub async fn dial(address: &str, seal: &Seal, hello: &Hello) -> Result<Link> {
    let greeting = async {
        let stream = TcpStream::connect(address).await;
        let mut link = Link::new(stream.map_err(FrameError::Io)?, FROM_STANDBY, FROM_OWNER);
        let (kind, challenge) = link.reader.next(GREETING_BYTES_MAX).await?;
        let (&version, theirs) = challenge.split_first().ok_or(FrameError::Payload(kind))?;
        if kind != Kind::Challenge {
            return Err(FrameError::Turn(kind).into());
        }
        if version != VERSION {
            return Err(LinkError::Version(version));
        }
        if theirs.len() != NONCE_BYTES {
            return Err(FrameError::Payload(kind).into());
        }
        let nonce = nonce();
        link.reseal(&seal.connection(&[theirs]));
        link.writer
            .send(Kind::Hello, &put_hello(hello, &nonce))
            .await?;
        link.writer.flush().await?;
        link.reseal(&seal.connection(&[theirs, &nonce]));
        Ok(link)
    };
    timeout(GREETING_MAX, greeting)
        .await
        .map_err(|_| LinkError::Silent)?
}

/// Owner: sends what comes through `ships` (whose sender counts its bytes in `backlog`), and says through `acked` what
/// the standby acknowledges, until either end goes.
///
/// # Errors
/// Why it ended.
pub async fn serve(
    link: Link,
    mut ships: mpsc::UnboundedReceiver<Ship>,
    backlog: Arc<AtomicUsize>,
    mut acked: impl FnMut(u64),
) -> Result<()> {
    let Link {
        mut reader,
        mut writer,
    } = link;
    // The whole state may take longer than a standby may say nothing; as long as it is read, somebody reads it.
    let taken = AtomicBool::new(false);
    let sending = async {
        // A standby answers a beat with how far its disk is, which says nothing while that may be another history's.
        let mut attached = false;
        loop {
            let ship = match timeout(BEAT, ships.recv()).await {
                Ok(Some(ship)) => ship,
                Ok(None) => return Err::<(), LinkError>(LinkError::Closed),
                Err(_) if !attached => continue,
                Err(_) => {
                    writer.send(Kind::Beat, &[]).await?;
                    writer.flush().await?;
                    continue;
                }
            };
            let bytes = backlog.fetch_sub(ship.bytes(), Ordering::Relaxed);
            if bytes > BACKLOG_BYTES_MAX && !matches!(ship, Ship::State(_)) {
                return Err(LinkError::Behind { bytes });
            }
            attached = true;
            send(&mut writer, ship, &taken).await?;
            if ships.is_empty() {
                writer.flush().await?;
            }
        }
    };
    let hearing = async {
        loop {
            let mut next = pin!(reader.next(GREETING_BYTES_MAX));
            let (kind, payload) = loop {
                match timeout(SILENCE_MAX, &mut next).await {
                    Ok(frame) => break frame?,
                    Err(_) if taken.swap(false, Ordering::Relaxed) => {}
                    Err(_) => return Err(LinkError::Silent),
                }
            };
            if kind != Kind::Ack {
                return Err::<(), LinkError>(FrameError::Turn(kind).into());
            }
            let seq = wire::Reader(&payload).fixed();
            acked(seq.ok_or(FrameError::Payload(kind))?);
        }
    };
    tokio::select! {
        ended = sending => ended,
        ended = hearing => ended,
    }
}

async fn send(
    writer: &mut Writer<BufWriter<OwnedWriteHalf>>,
    ship: Ship,
    taken: &AtomicBool,
) -> Result<()> {
    match ship {
        Ship::Turned => {
            writer.send(Kind::Turned, &[]).await?;
            writer.flush().await?;
            Err(LinkError::Turned)
        }
        Ship::Whole => Ok(writer.send(Kind::Beat, &[]).await?),
        Ship::Record(record) => Ok(writer.send(Kind::Record, record.bytes()).await?),
        Ship::State(checkpoint) => {
            writer.send(Kind::Piece, &checkpoint.header()).await?;
            for piece in checkpoint.state.chunks(PIECE_BYTES) {
                writer.send(Kind::Piece, piece).await?;
                taken.store(true, Ordering::Relaxed);
            }
            Ok(writer.send(Kind::LastPiece, &[]).await?)
        }
    }
}

/// Standby: hands on what the owner sends, and sends the acknowledgements that come back, until either end goes.
///
/// # Errors
/// Why it ended.
pub async fn follow(
    link: Link,
    into: mpsc::Sender<Shipped>,
    mut acks: mpsc::UnboundedReceiver<u64>,
) -> Result<()> {
    let Link {
        mut reader,
        mut writer,
    } = link;
    let hearing = async {
        let mut pieces = Vec::new();
        loop {
            let next = timeout(SILENCE_MAX, reader.next(FRAME_BYTES_MAX)).await;
            let (kind, payload) = next.map_err(|_| LinkError::Silent)??;
            let shipped = match kind {
                Kind::Beat => Some(Shipped::Beat),
                Kind::Record => Some(Shipped::Record(whole(&payload)?)),
                Kind::Piece => {
                    collect(&mut pieces, &payload)?;
                    None
                }
                Kind::LastPiece => {
                    let state = Checkpoint::parse(&std::mem::take(&mut pieces));
                    Some(Shipped::State(state.ok_or(LinkError::State)?))
                }
                Kind::Turned => return Err(LinkError::Turned),
                Kind::Challenge | Kind::Hello | Kind::Ack => {
                    return Err(FrameError::Turn(kind).into());
                }
            };
            if let Some(shipped) = shipped
                && into.send(shipped).await.is_err()
            {
                return Err::<(), LinkError>(LinkError::Closed);
            }
        }
    };
    let telling = async {
        while let Some(mut seq) = acks.recv().await {
            while let Ok(newer) = acks.try_recv() {
                seq = newer;
            }
            writer.send(Kind::Ack, &seq.to_le_bytes()).await?;
            writer.flush().await?;
        }
        Err::<(), LinkError>(LinkError::Closed)
    };
    tokio::select! {
        ended = hearing => ended,
        ended = telling => ended,
    }
}

fn whole(payload: &Bytes) -> Result<Record> {
    let record = Record::parse(payload).ok();
    let record = record.filter(|record| record.bytes().len() == payload.len());
    record.ok_or(LinkError::Record)
}

fn collect(pieces: &mut Vec<u8>, piece: &[u8]) -> Result<()> {
    if pieces.len() + piece.len() > CHECKPOINT_BYTES_MAX {
        return Err(LinkError::State);
    }
    pieces.extend_from_slice(piece);
    Ok(())
}

fn put_hello(hello: &Hello, nonce: &[u8; NONCE_BYTES]) -> Vec<u8> {
    let mut payload = nonce.to_vec();
    wire::put_fixed(&mut payload, hello.replica.0);
    wire::put_fixed(&mut payload, hello.position.seq);
    wire::put_fixed(&mut payload, hello.position.epoch);
    wire::put_fixed(&mut payload, hello.position.chain);
    wire::put_text(&mut payload, &hello.shard);
    payload
}

fn parse_hello(payload: &[u8]) -> Option<(Hello, [u8; NONCE_BYTES])> {
    let mut reader = wire::Reader(payload);
    let nonce = reader.bytes(NONCE_BYTES)?.try_into().ok()?;
    let replica = ReplicaId(reader.fixed()?);
    let position = Position {
        seq: reader.fixed()?,
        epoch: reader.fixed()?,
        chain: reader.fixed()?,
    };
    let shard = reader.text(SHARD_BYTES_MAX)?.to_owned();
    let hello = Hello {
        shard,
        replica,
        position,
    };
    reader.0.is_empty().then_some((hello, nonce))
}

/// Told apart from every other connection's; what it is need not be secret.
fn nonce() -> [u8; NONCE_BYTES] {
    fastrand::u128(..).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_reads_back_and_a_cut_one_is_refused() {
        let hello = Hello {
            shard: "duel/eu/v3".into(),
            replica: ReplicaId(7),
            position: Position {
                seq: 9,
                epoch: 2,
                chain: 11,
            },
        };
        let payload = put_hello(&hello, &[5; NONCE_BYTES]);
        assert_eq!(parse_hello(&payload), Some((hello, [5; NONCE_BYTES])));
        for length in 0..payload.len() {
            assert_eq!(parse_hello(&payload[..length]), None);
        }
    }

    /// A standby whose disk has another history says how far that goes, if it is asked before it got ours.
    #[tokio::test]
    async fn a_standby_is_asked_for_nothing_before_it_is_attached() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let hello = Hello {
            shard: "duel/eu/v1".into(),
            replica: ReplicaId(7),
            position: Position::default(),
        };
        let seal = Seal::none();
        let dialled = dial(&address, &seal, &hello);
        let greeted = async { greet(listener.accept().await.unwrap().0, &seal).await };
        let (standby, owner) = tokio::join!(dialled, greeted);
        let (mut standby, (_, owner)) = (standby.unwrap(), owner.unwrap());

        let (ships, shipped) = mpsc::unbounded_channel();
        let backlog = Arc::new(AtomicUsize::new(3));
        let serving = tokio::spawn(serve(owner, shipped, backlog, |_| {}));
        let early = timeout(4 * BEAT, standby.reader.next(FRAME_BYTES_MAX)).await;
        assert!(early.is_err(), "{early:?}");
        let checkpoint = Checkpoint {
            position: Position::default(),
            state: b"all".to_vec(),
        };
        ships.send(Ship::State(checkpoint)).unwrap();
        ships.send(Ship::Whole).unwrap();
        for expected in [Kind::Piece, Kind::Piece, Kind::LastPiece, Kind::Beat] {
            let (kind, _) = standby.reader.next(FRAME_BYTES_MAX).await.unwrap();
            assert_eq!(kind, expected);
        }
        serving.abort();
    }
}
