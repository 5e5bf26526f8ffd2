//! Datagrams: an echo, clients at a constant rate, clients that say hello and stay silent, and one that floods.
//!
//! A datagram of the paced clients carries the time at which it was to be sent, so that its echo says how long it took, also
//! where it was sent late.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio::task::JoinSet;

/// At each of `count` addresses, from the first one upwards.
pub async fn echo(first: SocketAddr, count: u8) -> anyhow::Result<()> {
    let mut echoing = JoinSet::new();
    for number in 0..count {
        let mut address = first;
        if let SocketAddr::V4(v4) = &mut address {
            let [a, b, c, d] = v4.ip().octets();
            v4.set_ip(Ipv4Addr::new(a, b, c, d.wrapping_add(number)));
        }
        let socket = std::net::UdpSocket::bind(address);
        let socket = socket.with_context(|| format!("cannot listen on {address}"))?;
        grow(&socket);
        echoing.spawn_blocking(move || -> std::io::Result<()> {
            let mut buffer = [0; 2048];
            loop {
                let (length, from) = socket.recv_from(&mut buffer)?;
                let _ = socket.send_to(&buffer[..length], from); // whoever is gone needs none
            }
        });
    }
    while let Some(ended) = echoing.join_next().await {
        ended??;
    }
    Ok(())
}

/// Prints `sent N`, `answered N`, and `p50 µs`, `p99 µs`, `max µs` of those that were answered.
pub async fn paced(to: SocketAddr, rate: u32, sockets: usize, seconds: u64) -> anyhow::Result<()> {
    ensure!(rate > 0 && sockets > 0, "no load");
    let begun = Instant::now();
    let took = Arc::new(std::sync::Mutex::new(Vec::<u32>::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let mut senders = Vec::new();
    for _ in 0..sockets {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        grow(&socket);
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        senders.push(socket);
    }
    let readers = senders.iter().map(|socket| socket.try_clone());
    let readers = readers.collect::<std::io::Result<Vec<_>>>()?;
    let heard = took.clone();
    std::thread::spawn(move || read(&readers, begun, &heard));
    let count = u64::from(rate) * seconds;
    let stopping = stop.clone();
    let clock = std::thread::spawn(move || {
        super::paced::sharpen();
        let start = begun.elapsed();
        let mut datagram = [0; BYTES];
        let mut sent = 0_u64;
        for number in 0..count {
            let due = start + Duration::from_nanos(number * 1_000_000_000 / u64::from(rate));
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            datagram[..8].copy_from_slice(&(due.as_nanos() as u64).to_le_bytes());
            let socket = &senders[(number % senders.len() as u64) as usize];
            sent += u64::from(socket.send(&datagram).is_ok());
        }
        stopping.store(true, Ordering::Release);
        sent
    });
    let answered = || {
        took.lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .len() as u64
    };
    let mut silent_since = (answered(), Instant::now());
    while !stop.load(Ordering::Acquire) || silent_since.1.elapsed() < SILENCE {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = answered();
        if now != silent_since.0 {
            silent_since = (now, Instant::now());
        }
        if now >= count {
            break;
        }
    }
    let sent = clock.join().ok().context("the clock panicked")?;
    let mut took = took
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    ensure!(!took.is_empty(), "nothing was answered");
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    println!("sent {sent}\nanswered {}", took.len());
    println!("p50 {}\np99 {}\nmax {}", at(0.50), at(0.99), at(1.0));
    Ok(())
}

/// Until the process ends: what has come to which socket costs one call for all of them, and one for each datagram.
fn read(sockets: &[std::net::UdpSocket], begun: Instant, took: &std::sync::Mutex<Vec<u32>>) {
    let poll = |socket: &std::net::UdpSocket| libc::pollfd {
        fd: std::os::fd::AsRawFd::as_raw_fd(socket),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut polled: Vec<libc::pollfd> = sockets.iter().map(poll).collect();
    let (mut buffer, mut came) = ([0; 2048], Vec::new());
    loop {
        // SAFETY: the array is as long as it is said to be, and its descriptors are open.
        #[allow(unsafe_code)]
        let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) };
        if ready <= 0 {
            continue;
        }
        for (socket, polled) in sockets.iter().zip(&polled) {
            if polled.revents & libc::POLLIN == 0 {
                continue;
            }
            let Ok(length) = socket.recv(&mut buffer) else {
                continue;
            };
            let now = begun.elapsed().as_nanos() as u64;
            let due = buffer[..length].first_chunk::<8>();
            let due = due.map_or(now, |due| u64::from_le_bytes(*due));
            came.push((now.saturating_sub(due) / 1000) as u32);
        }
        let mut took = took
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        took.append(&mut came);
    }
}

/// `count` clients that say hello, hear the answer, and are not heard of again. Prints `open N`.
pub fn hello(to: SocketAddr, count: u32) -> anyhow::Result<()> {
    let mut answered = 0;
    for number in 0..count {
        let [_, a, b, _] = (number / 100 * 256).to_be_bytes();
        let from = SocketAddr::from(([127, 1, a, b], 20_000 + (number % 100) as u16));
        let socket = std::net::UdpSocket::bind(from)?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut buffer = [0; 64];
        for _ in 0..10 {
            socket.send_to(b"hello", to)?;
            if socket.recv(&mut buffer).is_ok() {
                answered += 1;
                break;
            }
        }
    }
    println!("open {answered}");
    Ok(())
}

/// One source that sends as fast as it can. Prints `attacks N`.
pub fn flood(to: SocketAddr, seconds: u64) -> anyhow::Result<()> {
    let socket = std::net::UdpSocket::bind("127.0.0.66:0")?;
    let (until, mut sent) = (Instant::now() + Duration::from_secs(seconds), 0_u64);
    while Instant::now() < until {
        for _ in 0..64 {
            sent += u64::from(socket.send_to(&[7; BYTES], to).is_ok());
        }
    }
    println!("attacks {sent}");
    Ok(())
}

/// As much of a queue as the system allows.
fn grow(socket: &std::net::UdpSocket) {
    let _ = socket2::SockRef::from(socket).set_recv_buffer_size(4 << 20);
}

/// Of a datagram.
const BYTES: usize = 120;
/// After the last answer.
const SILENCE: Duration = Duration::from_millis(500);
