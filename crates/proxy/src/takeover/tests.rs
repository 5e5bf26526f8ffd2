//! What travels between two processes, here between two tasks.

use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::parley::Parley;
use super::*;
use crate::lasting::Lasting;

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

#[tokio::test]
async fn more_sockets_than_one_message_carries_arrive_in_order() {
    let (one, other) = UnixStream::pair().unwrap();
    let sent: Vec<TcpListener> = (0..150).map(|_| listener()).collect();
    let files: Vec<_> = sent.iter().map(AsFd::as_fd).collect();
    let (mut giver, mut taker) = (Parley::new(one), Parley::new(other));
    let (given, taken) = tokio::join!(
        async {
            giver.give(&files).await.unwrap();
            giver.say(&FromHolder::Draining).await
        },
        async {
            let taken = taker.take(sent.len()).await.unwrap();
            let said: FromHolder = taker.hear().await.unwrap();
            assert_eq!(said, FromHolder::Draining);
            taken
        }
    );
    given.unwrap();
    let ports = taken.into_iter().map(TcpListener::from);
    let ports: Vec<_> = ports
        .map(|listener| listener.local_addr().unwrap())
        .collect();
    let wanted: Vec<_> = sent
        .iter()
        .map(|listener| listener.local_addr().unwrap())
        .collect();
    assert_eq!(ports, wanted);
}

#[tokio::test]
async fn fewer_descriptors_than_were_told_are_an_error() {
    let (one, other) = UnixStream::pair().unwrap();
    let (giver, taker) = (Parley::new(one), Parley::new(other));
    let socket = listener();
    giver.give(&[socket.as_fd()]).await.unwrap();
    let error = taker.take(2).await.unwrap_err();
    assert_eq!(error.to_string(), "1 descriptors of 2 came");
}

#[tokio::test]
async fn a_message_that_is_too_long_or_no_message_is_refused_unread() {
    for bytes in [
        &[0xff, 0xff, 0xff, 0xff][..],
        &[0, 0, 0, 3, b'a', b'b', b'c'],
    ] {
        let (mut one, other) = UnixStream::pair().unwrap();
        one.write_all(bytes).await.unwrap();
        let heard = Parley::new(other).hear::<FromHeir>().await;
        assert_eq!(heard.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
fn the_first_words_stay_what_they_are() {
    let hello = FromHeir::Hello(Hello {
        inherits: false,
        protocols: vec![1],
        release: "0.1.0".into(),
        service: "default/battle".into(),
    });
    let refused = FromHolder::Refused {
        reason: "why".into(),
    };
    assert_eq!(
        serde_json::to_string(&hello).unwrap(),
        r#"{"hello":{"protocols":[1],"release":"0.1.0","service":"default/battle"}}"#
    );
    assert_eq!(
        serde_json::to_string(&refused).unwrap(),
        r#"{"refused":{"reason":"why"}}"#
    );
    // What a later release adds to its hello does not matter.
    let later = r#"{"hello":{"protocols":[2],"release":"9","service":"a/b","more":{}}}"#;
    assert!(serde_json::from_str::<FromHeir>(later).is_ok());
}

#[test]
fn only_listeners_at_their_address_are_inherited() {
    let told = |address: String| Listeners {
        role: "inbound".into(),
        address,
        sockets: 1,
    };
    let socket = listener();
    let address = socket.local_addr().unwrap();
    let mut inherited = Inherited::default();
    let elsewhere = told("127.0.0.1:1".into());
    assert!(
        inherited
            .add(&elsewhere, vec![OwnedFd::from(socket.try_clone().unwrap())])
            .is_err()
    );
    let connected = std::net::TcpStream::connect(address).unwrap();
    let local = connected.local_addr().unwrap().to_string();
    assert!(inherited.add(&told(local), vec![connected.into()]).is_err());
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(
        inherited
            .add(&told(address.to_string()), vec![file.into()])
            .is_err()
    );
    inherited
        .add(&told(address.to_string()), vec![socket.into()])
        .unwrap();
    assert!(inherited.has(address));
    assert!(
        inherited
            .expect("inbound", "127.0.0.1:0".parse().unwrap())
            .is_ok()
    );
    let other = inherited
        .expect("inbound", "127.0.0.1:1".parse().unwrap())
        .unwrap_err();
    assert!(other.to_string().contains(&address.to_string()), "{other}");
    assert!(inherited.take("outbound", address).is_none());
    assert!(inherited.take("inbound", address).is_some());
    assert!(!inherited.has(address));
}

/// A process that serves, up to the last word, for which it does what is told.
async fn holder_until_commit(socket: &Path) -> (Heir, Parley) {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let (asked, holder) = tokio::join!(Heir::ask(socket, "2", "default/battle"), async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut holder = Parley::new(stream);
        let FromHeir::Hello(_) = holder.hear().await.unwrap() else {
            panic!("no hello");
        };
        let offer = Offer {
            bequeaths: false,
            protocol: PROTOCOL,
            release: "1".into(),
            instance: "battle-1".into(),
            listeners: Vec::new(),
        };
        holder.say(&FromHolder::Offer(offer)).await.unwrap();
        holder
    });
    let (heir, _) = asked.unwrap().unwrap();
    (heir, holder)
}

#[tokio::test(start_paused = true)]
async fn an_heir_that_committed_itself_serves_though_nothing_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let (heir, mut holder) = holder_until_commit(&folder.path().join("s")).await;
    heir.commit(Duration::from_secs(1)).await.unwrap();
    // The one before, stopped for a while, finds the word and acts on it, though its heir closed the line.
    let heard: FromHeir = holder.hear().await.unwrap();
    assert_eq!(heard, FromHeir::Commit { drain_ms: 1_000 });
}

#[tokio::test]
async fn an_heir_whose_last_word_is_refused_does_not_serve() {
    let folder = tempfile::tempdir().unwrap();
    let (heir, mut holder) = holder_until_commit(&folder.path().join("s")).await;
    let reason = "too late".to_owned();
    holder.say(&FromHolder::Refused { reason }).await.unwrap();
    let refused = heir.commit(Duration::from_secs(1)).await.unwrap_err();
    assert!(
        matches!(refused, TakeoverError::Refused { .. }),
        "{refused}"
    );
}

#[tokio::test]
async fn whoever_is_told_to_drain_drains_though_its_heir_closed_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let estate = Estate {
        testator: None,
        release: "1",
        service: "default/battle".into(),
        instance: "battle-1".into(),
        bundles: Vec::new(),
        lender: None,
        registration: None,
    };
    let mut holder = Holder::spawn(
        &socket,
        listen(&socket).unwrap(),
        estate,
        &Lasting::default(),
    )
    .unwrap();
    let asked = Heir::ask(&socket, "2", "default/battle").await.unwrap();
    let (mut heir, _) = asked.unwrap();
    assert!(matches!(heir.ready().await.unwrap(), OfHolder::Said(None)));
    let drain = Duration::from_secs(3);
    let (committed, upgrade) = tokio::join!(holder.committed(), heir.commit(drain));
    assert_eq!(committed, Committed { drain });
    assert!(upgrade.unwrap().0.is_some());
}

#[tokio::test]
async fn what_is_left_behind_the_last_word_comes_whole() {
    let (one, other) = UnixStream::pair().unwrap();
    let sockets: Vec<TcpListener> = (0..70).map(|_| listener()).collect();
    let wanted: Vec<_> = sockets.iter().map(|s| s.local_addr().unwrap()).collect();
    let bequests = vec![
        Bequest {
            core: 1,
            told: vec![7; 300_000],
            files: sockets.into_iter().map(OwnedFd::from).collect(),
        },
        Bequest {
            core: 0,
            told: Vec::new(),
            files: Vec::new(),
        },
    ];
    let mut giver = Parley::new(one);
    let (given, taken) = tokio::join!(
        async {
            assert_eq!(giver.hear::<FromHeir>().await.unwrap(), FromHeir::Inherit);
            bequest::give(&mut giver, bequests).await
        },
        Legacy(Parley::new(other)).take()
    );
    given.unwrap();
    let mut taken = taken.unwrap();
    assert_eq!((taken[0].core, taken[1].core), (1, 0));
    assert_eq!(taken[0].told, vec![7; 300_000]);
    let files = std::mem::take(&mut taken[0].files).into_iter();
    let came: Vec<_> = files
        .map(|file| TcpListener::from(file).local_addr().unwrap())
        .collect();
    assert_eq!(came, wanted);
    // Whoever breaks off leaves nothing.
    let (one, other) = UnixStream::pair().unwrap();
    let mut giver = Parley::new(one);
    let sizes = bequest::Sizes {
        core: 0,
        bytes: 10,
        files: 0,
    };
    giver.say(&FromHolder::Bequests(vec![sizes])).await.unwrap();
    giver.give_bytes(b"abc").await.unwrap();
    drop(giver);
    assert!(Legacy(Parley::new(other)).take().await.is_err());
}
