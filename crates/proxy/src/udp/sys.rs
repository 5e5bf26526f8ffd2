//! Many datagrams with one call of the system: recvmmsg, sendmmsg, and runs of equal ones to one address as one (UDP_SEGMENT).
//! The only room of this crate with `unsafe` in it; what goes in and comes out is plain.
#![allow(unsafe_code)]

use std::io;
use std::mem::{self, MaybeUninit};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use libc::{c_int, c_void, cmsghdr, iovec, mmsghdr, msghdr, sockaddr_storage, socklen_t};

/// Datagrams that came, of one socket or several; the same memory for all of a core.
pub struct Inbox {
    memory: Box<[u8]>,
    names: Box<[sockaddr_storage]>,
    controls: Box<[Control]>,
    came: Vec<Came>,
}

struct Came {
    from: Option<SocketAddr>,
    local: Option<IpAddr>,
    len: usize,
}

/// A datagram in an [`Inbox`].
pub struct Datagram<'i> {
    /// None: the system gave an address of a kind that we do not know.
    pub from: Option<SocketAddr>,
    pub local: Option<IpAddr>,
    pub bytes: &'i [u8],
}

/// Part of a datagram of an [`Inbox`], to be sent.
#[derive(Clone, Debug)]
pub struct Message {
    pub to: SocketAddr,
    /// The address of ours that it is to come from; none: as the system likes.
    pub local: Option<IpAddr>,
    /// Its place in the inbox.
    pub place: usize,
    pub body: Range<usize>,
}

/// What became of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub sent: usize,
    /// The system did not take them.
    pub failed: usize,
}

/// Where runs of equal length are not taken as one, and until when: a device on the way can't, or a segment is longer than goes
/// there in one piece.
#[derive(Default)]
pub struct Runs {
    refused: Vec<(SocketAddr, u64)>,
}

impl Runs {
    #[inline]
    fn may(&self, to: SocketAddr, now_ns: u64) -> bool {
        let mut refused = self.refused.iter();
        // With so many it is the same everywhere, as long as they last.
        let is_full = self.refused.len() >= REFUSED_MAX;
        !refused.any(|(at, until)| *until > now_ns && (*at == to || is_full))
    }

    fn refuse(&mut self, to: SocketAddr, now_ns: u64) {
        self.refused
            .retain(|(at, until)| *until > now_ns && *at != to);
        if self.refused.len() < REFUSED_MAX {
            self.refused.push((to, now_ns.saturating_add(REFUSED_NS)));
        }
    }
}

/// Addresses whose runs were refused.
const REFUSED_MAX: usize = 32;
/// Before it is tried again.
const REFUSED_NS: u64 = 60_000_000_000;

/// Room for control messages: an address of ours, and the length of a segment.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

const CONTROL_BYTES: usize = 88;
/// Datagrams in an inbox, and in one call.
pub const BATCH: usize = 64;
/// No datagram is longer.
const DATAGRAM_BYTES: usize = 1 << 16;
/// Of one run, as the system takes it.
const RUN_BYTES: usize = 60_000;

impl Inbox {
    /// 4 MB, of which what is touched counts.
    pub fn new() -> Self {
        // SAFETY: a sockaddr_storage is plain bytes, for which zero is a value.
        let name: sockaddr_storage = unsafe { mem::zeroed() };
        Self {
            memory: vec![0; BATCH * DATAGRAM_BYTES].into(),
            names: vec![name; BATCH].into(),
            controls: vec![Control([0; CONTROL_BYTES]); BATCH].into(),
            came: Vec::with_capacity(BATCH),
        }
    }

    pub fn clear(&mut self) {
        self.came.clear();
    }

    pub fn len(&self) -> usize {
        self.came.len()
    }

    /// Places left.
    pub fn room(&self) -> usize {
        BATCH - self.came.len()
    }

    /// Adds what is there, at most `max`; fewer than that, or than there is [`Inbox::room`] for: the socket is empty.
    ///
    /// # Errors
    /// Of `recvmmsg`; `WouldBlock`: there is nothing.
    pub fn receive(&mut self, socket: impl AsFd, max: usize) -> io::Result<usize> {
        let first = self.came.len();
        let count = max.min(self.room());
        let mut parts = [const { MaybeUninit::<iovec>::uninit() }; BATCH];
        let mut headers = [const { MaybeUninit::<mmsghdr>::uninit() }; BATCH];
        let memory = self.memory.chunks_exact_mut(DATAGRAM_BYTES).skip(first);
        let names = self.names.iter_mut().skip(first);
        let controls = self.controls.iter_mut().skip(first);
        let rooms = memory.zip(names).zip(controls).take(count);
        let all = parts.iter_mut().zip(&mut headers);
        for (((memory, name), control), (part, header)) in rooms.zip(all) {
            let part = part.write(iovec {
                iov_base: memory.as_mut_ptr().cast(),
                iov_len: memory.len(),
            });
            // SAFETY: a msghdr is integers and pointers, for which zero is a value.
            let mut message: msghdr = unsafe { mem::zeroed() };
            message.msg_name = ptr::from_mut(name).cast();
            message.msg_namelen = NAME_BYTES;
            message.msg_iov = part;
            message.msg_iovlen = 1;
            message.msg_control = control.0.as_mut_ptr().cast();
            message.msg_controllen = CONTROL_BYTES as _;
            header.write(mmsghdr {
                msg_hdr: message,
                msg_len: 0,
            });
        }
        // SAFETY: the first `count` headers were written above; each points to one name, one control buffer and one part of
        // `memory`, which `self` owns, nobody else uses meanwhile, and whose lengths are told. `count` is at most BATCH, of
        // which there are as many of each.
        let got = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr().cast(),
                count as u32,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        for (header, name) in headers.iter().zip(self.names.iter().skip(first)).take(got) {
            // SAFETY: written above, for `got` is at most `count`.
            let header = unsafe { header.assume_init_ref() };
            self.came.push(Came {
                from: address(name, header.msg_hdr.msg_namelen),
                local: local(&header.msg_hdr),
                len: header.msg_len as usize,
            });
        }
        Ok(got)
    }

    pub fn get(&self, place: usize) -> Option<Datagram<'_>> {
        let came = self.came.get(place)?;
        let memory = self.memory.get(place * DATAGRAM_BYTES..)?;
        Some(Datagram {
            from: came.from,
            local: came.local,
            bytes: memory.get(..came.len.min(DATAGRAM_BYTES))?,
        })
    }

    fn body(&self, message: &Message) -> &[u8] {
        let datagram = self.get(message.place);
        let body = datagram.and_then(|datagram| datagram.bytes.get(message.body.clone()));
        body.unwrap_or_default()
    }

    /// Sends one, which needs less of the system than several.
    pub fn send_one(&self, socket: &UdpSocket, message: &Message) -> Sent {
        let sent = socket.send_to(self.body(message), message.to);
        Sent {
            sent: usize::from(sent.is_ok()),
            failed: usize::from(sent.is_err()),
        }
    }

    /// By a socket that is connected to where all of them go: how many were sent before the system told of anything, of these
    /// or of earlier ones.
    pub fn send_connected(
        &self,
        socket: &UdpSocket,
        messages: &[Message],
        runs: &Runs,
        now_ns: u64,
    ) -> usize {
        if let [one] = messages {
            return usize::from(socket.send(self.body(one)).is_ok());
        }
        let mut sent = 0;
        while let Some(rest @ [_, ..]) = messages.get(sent..) {
            let (done, error) = self.send_some(&socket, true, rest, |to| runs.may(to, now_ns));
            sent += done;
            match error {
                None => {}
                Some((error, _)) if error.raw_os_error() == Some(libc::EINTR) => {}
                Some(_) => break,
            }
        }
        sent
    }

    /// Sends in order, from one socket. What the system does not take is left out. Neighbours to one address whose
    /// lengths allow it are given to the system as one, where `runs` says that it takes that.
    pub fn send(
        &self,
        socket: impl AsFd,
        messages: &[Message],
        runs: &mut Runs,
        now_ns: u64,
    ) -> Sent {
        let (mut told, mut rest) = (Sent::default(), messages);
        while !rest.is_empty() {
            let (done, error) = self.send_some(&socket, false, rest, |to| runs.may(to, now_ns));
            told.sent += done;
            rest = rest.get(done..).unwrap_or_default();
            let Some((error, tried)) = error else {
                continue;
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE) if tried > 1 => {
                    if let Some(first) = rest.first() {
                        runs.refuse(first.to, now_ns);
                    }
                }
                _ => {
                    told.failed += tried;
                    rest = rest.get(tried..).unwrap_or_default();
                }
            }
        }
        told
    }

    /// How many were sent; and if the next ones were refused, why, and how many they are.
    fn send_some(
        &self,
        socket: &impl AsFd,
        is_connected: bool,
        messages: &[Message],
        runs: impl Fn(SocketAddr) -> bool,
    ) -> (usize, Option<(io::Error, usize)>) {
        let mut parts = [const { MaybeUninit::<iovec>::uninit() }; BATCH];
        let mut headers = [const { MaybeUninit::<mmsghdr>::uninit() }; BATCH];
        let mut names = [const { MaybeUninit::<sockaddr_storage>::uninit() }; BATCH];
        let mut controls = [const { MaybeUninit::<Control>::uninit() }; BATCH];
        let mut lengths = [0_usize; BATCH];
        let messages = messages.get(..BATCH).unwrap_or(messages);
        let mut written = parts.iter_mut();
        let slots = headers.iter_mut().zip(&mut names).zip(&mut controls);
        let (mut count, mut rest) = (0, messages);
        for (((header, name), control), length) in slots.zip(&mut lengths) {
            let Some(first) = rest.first() else { break };
            let run = match runs(first.to) {
                true => self.run(rest),
                false => 1,
            };
            let (now, later) = rest.split_at(run.min(rest.len()));
            rest = later;
            // SAFETY: a msghdr is integers and pointers, for which zero is a value.
            let mut out: msghdr = unsafe { mem::zeroed() };
            for message in now {
                let body = self.body(message);
                if let Some(part) = written.next() {
                    let part = part.write(iovec {
                        iov_base: body.as_ptr().cast_mut().cast(),
                        iov_len: body.len(),
                    });
                    if out.msg_iov.is_null() {
                        out.msg_iov = part;
                    }
                    out.msg_iovlen += 1;
                }
            }
            if !is_connected {
                out.msg_namelen = put_address(name, first.to);
                out.msg_name = name.as_mut_ptr().cast();
            }
            let segment = (now.len() > 1).then(|| first.body.len());
            if first.local.is_some() || segment.is_some() {
                put_control(&mut out, control, first.local, segment);
            }
            header.write(mmsghdr {
                msg_hdr: out,
                msg_len: 0,
            });
            *length = now.len();
            count += 1;
        }
        // SAFETY: the first `count` headers were written above. Each points to no name and control buffer or to some of this frame, and
        // to as many parts, one after the other, as it says; those point into the inbox, which is not written by this call.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr().cast(),
                count,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            )
        };
        match usize::try_from(sent) {
            Ok(sent) => (lengths.iter().take(sent).sum(), None),
            Err(_) => {
                let tried = lengths.first().copied().unwrap_or(1).max(1);
                (0, Some((io::Error::last_os_error(), tried)))
            }
        }
    }

    /// How many of the first messages are one run: to and from the same addresses, of the same length but for a shorter last.
    fn run(&self, messages: &[Message]) -> usize {
        let Some(first) = messages.first() else {
            return 0;
        };
        let length = first.body.len();
        if length == 0 {
            return 1;
        }
        let (mut run, mut bytes) = (1, length);
        for next in messages.iter().skip(1) {
            let is_same = (next.to, next.local) == (first.to, first.local);
            bytes += next.body.len();
            if !is_same || next.body.is_empty() || next.body.len() > length || bytes > RUN_BYTES {
                break;
            }
            run += 1;
            if next.body.len() < length {
                break;
            }
        }
        run
    }
}

const NAME_BYTES: socklen_t = size_of::<sockaddr_storage>() as socklen_t;

fn address(name: &sockaddr_storage, length: socklen_t) -> Option<SocketAddr> {
    let length = length as usize;
    match c_int::from(name.ss_family) {
        libc::AF_INET if length >= size_of::<libc::sockaddr_in>() => {
            // SAFETY: the family and length say that this is what the storage holds, which is large and aligned enough for it.
            let name = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(name.sin_port)).into())
        }
        libc::AF_INET6 if length >= size_of::<libc::sockaddr_in6>() => {
            // SAFETY: as above.
            let name = unsafe { &*ptr::from_ref(name).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(name.sin6_addr.s6_addr);
            let port = u16::from_be(name.sin6_port);
            // Without the flow label: it is no part of who this is.
            Some(SocketAddrV6::new(ip, port, 0, name.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn put_address(name: &mut MaybeUninit<sockaddr_storage>, to: SocketAddr) -> socklen_t {
    let place = name.as_mut_ptr();
    match to {
        SocketAddr::V4(to) => {
            let told = libc::sockaddr_in {
                sin_family: libc::AF_INET as _,
                sin_port: to.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*to.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: a sockaddr_storage is large and aligned enough for any address.
            unsafe { place.cast::<libc::sockaddr_in>().write(told) };
            size_of::<libc::sockaddr_in>() as socklen_t
        }
        SocketAddr::V6(to) => {
            let told = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as _,
                sin6_port: to.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: to.ip().octets(),
                },
                sin6_scope_id: to.scope_id(),
            };
            // SAFETY: as above.
            unsafe { place.cast::<libc::sockaddr_in6>().write(told) };
            size_of::<libc::sockaddr_in6>() as socklen_t
        }
    }
}

/// To which address of ours a datagram came, where the socket was asked to tell ([`tell_local`]).
fn local(header: &msghdr) -> Option<IpAddr> {
    // SAFETY: the system filled `msg_control` and `msg_controllen`; the macros stay within them, and the data of a message of
    // either kind is the structure that is read, however it is aligned.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let told = ptr::read_unaligned(data.cast::<libc::in_pktinfo>());
                    let ip = Ipv4Addr::from(u32::from_be(told.ipi_spec_dst.s_addr));
                    return Some(ip.into());
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let told = ptr::read_unaligned(data.cast::<libc::in6_pktinfo>());
                    return Some(Ipv6Addr::from(told.ipi6_addr.s6_addr).into());
                }
                _ => message = libc::CMSG_NXTHDR(header, message),
            }
        }
    }
    None
}

fn put_control(
    out: &mut msghdr,
    control: &mut MaybeUninit<Control>,
    local: Option<IpAddr>,
    segment: Option<usize>,
) {
    out.msg_control = control
        .write(Control([0; CONTROL_BYTES]))
        .0
        .as_mut_ptr()
        .cast();
    out.msg_controllen = CONTROL_BYTES as _;
    // SAFETY: the buffer is zeroed, aligned, and long enough for both messages (24 to 40 bytes and 24), as the macros walk it.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(out);
        let mut used = 0;
        if let Some(segment) = segment {
            let segment = u16::try_from(segment).unwrap_or(u16::MAX);
            used += put_one(next, (libc::SOL_UDP, libc::UDP_SEGMENT), segment);
            next = libc::CMSG_NXTHDR(out, next);
        }
        match local {
            _ if next.is_null() => {}
            Some(IpAddr::V4(ip)) => {
                let told = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from(ip).to_be(),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                used += put_one(next, (libc::IPPROTO_IP, libc::IP_PKTINFO), told);
            }
            Some(IpAddr::V6(ip)) => {
                let told = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: ip.octets(),
                    },
                    ipi6_ifindex: 0,
                };
                used += put_one(next, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), told);
            }
            None => {}
        }
        out.msg_controllen = used as _;
    }
}

/// Bytes that it takes.
///
/// # Safety
/// `message` has room for a header and a `T`.
unsafe fn put_one<T>(message: *mut cmsghdr, (level, kind): (c_int, c_int), value: T) -> usize {
    let bytes = size_of::<T>() as u32;
    // SAFETY: as the caller says.
    unsafe {
        (*message).cmsg_level = level;
        (*message).cmsg_type = kind;
        (*message).cmsg_len = libc::CMSG_LEN(bytes) as _;
        ptr::write_unaligned(libc::CMSG_DATA(message).cast::<T>(), value);
        libc::CMSG_SPACE(bytes) as usize
    }
}

/// From now on [`Datagram::local`] is there.
///
/// # Errors
/// Of `setsockopt`.
pub fn tell_local(socket: impl AsFd, is_ipv6: bool) -> io::Result<()> {
    let (level, option) = match is_ipv6 {
        true => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
        false => (libc::IPPROTO_IP, libc::IP_PKTINFO),
    };
    let on: c_int = 1;
    // SAFETY: the option takes an int, which lives through the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            ptr::from_ref(&on).cast::<c_void>(),
            size_of::<c_int>() as socklen_t,
        )
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Datagrams that the system dropped before a socket took them, since that was opened; wraps.
pub fn dropped(socket: impl AsFd) -> Option<u32> {
    let mut told = [0_u32; libc::SK_MEMINFO_DROPS as usize + 1];
    let mut length = size_of_val(&told) as socklen_t;
    // SAFETY: the option fills at most as many bytes as it is told there are.
    let got = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            told.as_mut_ptr().cast::<c_void>(),
            &raw mut length,
        )
    };
    (got == 0 && length as usize == size_of_val(&told)).then(|| told.last().copied())?
}

/// Has the runtime tell when there is something to read.
///
/// # Errors
/// Of `epoll_ctl`.
pub fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is one open descriptor until it is dropped, and is given out here by reference only.
    let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    watched.map_err(Into::into)
}

/// Descriptors that this process may have.
pub fn descriptors_max() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn socket(at: &str) -> UdpSocket {
        let socket = UdpSocket::bind(at).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        socket
    }

    /// Until `count` have come.
    fn receive(inbox: &mut Inbox, socket: &UdpSocket, count: usize) {
        while inbox.len() < count {
            match inbox.receive(socket, BATCH) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                got => assert!(got.unwrap() > 0),
            }
        }
    }

    #[test]
    fn datagrams_of_all_lengths_come_and_go_whole_over_both_families_with_runs_and_without() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let (peer, ours, far) = (socket(at), socket(at), socket(at));
            let lengths = [5, 5, 5, 3, 9, 9, 0, 0, 1400, 1400, 700, 60_000, 1];
            for (at, length) in lengths.iter().enumerate() {
                let bytes = vec![at as u8; *length];
                peer.send_to(&bytes, ours.local_addr().unwrap()).unwrap();
            }
            let mut inbox = Inbox::new();
            receive(&mut inbox, &ours, lengths.len());
            for no_runs in [false, true] {
                let mut runs = Runs::default();
                if no_runs {
                    runs.refuse(far.local_addr().unwrap(), 0);
                }
                let message = |place: usize| {
                    let datagram = inbox.get(place).unwrap();
                    assert_eq!(datagram.from, Some(peer.local_addr().unwrap()));
                    assert_eq!(datagram.bytes, vec![place as u8; lengths[place]]);
                    Message {
                        to: far.local_addr().unwrap(),
                        local: None,
                        place,
                        body: 0..datagram.bytes.len(),
                    }
                };
                let messages: Vec<_> = (0..lengths.len()).map(message).collect();
                let told = inbox.send(&ours, &messages, &mut runs, 0);
                assert_eq!((told.sent, told.failed), (lengths.len(), 0));
                let mut buffer = vec![0; DATAGRAM_BYTES];
                for (place, length) in lengths.iter().enumerate() {
                    let (got, from) = far.recv_from(&mut buffer).unwrap();
                    assert_eq!((got, from), (*length, ours.local_addr().unwrap()));
                    assert_eq!(buffer[..got], vec![place as u8; *length]);
                }
            }
        }
    }

    #[test]
    fn an_answer_comes_from_the_address_that_was_asked() {
        for (all, one, client) in [
            ("0.0.0.0:0", "127.0.0.77", "127.0.0.1:0"),
            ("[::]:0", "::1", "[::1]:0"),
        ] {
            let (ours, client) = (socket(all), socket(client));
            tell_local(&ours, ours.local_addr().unwrap().is_ipv6()).unwrap();
            let asked = SocketAddr::new(one.parse().unwrap(), ours.local_addr().unwrap().port());
            for _ in 0..2 {
                client.send_to(b"who", asked).unwrap();
            }
            let mut inbox = Inbox::new();
            receive(&mut inbox, &ours, 2);
            let message = |place| {
                let datagram = inbox.get(place).unwrap();
                assert_eq!(datagram.local, Some(asked.ip()));
                Message {
                    to: datagram.from.unwrap(),
                    local: datagram.local,
                    place,
                    body: 1..3,
                }
            };
            let told = inbox.send(&ours, &[message(0), message(1)], &mut Runs::default(), 0);
            assert_eq!(told.sent, 2);
            for _ in 0..2 {
                let mut buffer = [0; 10];
                let (got, from) = client.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..got], from), (&b"ho"[..], asked));
            }
        }
    }

    #[test]
    fn one_that_can_not_be_sent_does_not_hold_up_the_others() {
        let (ours, far) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        ours.send_to(b"x", ours.local_addr().unwrap()).unwrap();
        let mut inbox = Inbox::new();
        receive(&mut inbox, &ours, 1);
        let message = |to: SocketAddr| Message {
            to,
            local: None,
            place: 0,
            body: 0..1,
        };
        let nowhere = "[::1]:9".parse().unwrap(); // another family
        let there = far.local_addr().unwrap();
        let messages = [message(there), message(nowhere), message(there)];
        let told = inbox.send(&ours, &messages, &mut Runs::default(), 0);
        assert_eq!((told.sent, told.failed), (2, 1));
    }

    #[test]
    fn a_connected_socket_sends_as_any_other_and_says_where_it_stops() {
        let (ours, peer) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        ours.send_to(b"abc", ours.local_addr().unwrap()).unwrap();
        let mut inbox = Inbox::new();
        receive(&mut inbox, &ours, 1);
        let nobody = socket("127.0.0.1:0").local_addr().unwrap();
        let runs = Runs::default();
        let connected = |to: SocketAddr| {
            let connected = socket("127.0.0.1:0");
            connected.connect(to).unwrap();
            connected
        };
        let message = |to, body| Message {
            to,
            local: None,
            place: 0,
            body,
        };
        let to = peer.local_addr().unwrap();
        let messages = [message(to, 0..1), message(to, 1..2), message(to, 0..3)];
        let hot = connected(to);
        assert_eq!(inbox.send_connected(&hot, &messages, &runs, 0), 3);
        assert_eq!(inbox.send_connected(&hot, &messages[2..], &runs, 0), 1);
        let mut buffer = [0; 10];
        let heard = (0..4).map(|_| {
            let got = peer.recv(&mut buffer).unwrap();
            buffer[..got].to_vec()
        });
        assert_eq!(heard.collect::<Vec<_>>().concat(), b"ababcabc");
        // The second tells what became of the first.
        let messages = [message(nobody, 0..1), message(nobody, 1..2)];
        let hot = connected(nobody);
        assert_eq!(inbox.send_connected(&hot, &messages[..1], &runs, 0), 1);
        assert_eq!(inbox.send_connected(&hot, &messages, &runs, 0), 0);
    }

    #[test]
    fn runs_that_were_refused_are_tried_again_after_a_minute_and_elsewhere_at_once() {
        let at = |port: u16| SocketAddr::from(([10, 0, 0, 1], port));
        let mut runs = Runs::default();
        runs.refuse(at(1), 5);
        assert!(!runs.may(at(1), 6) && runs.may(at(2), 6));
        assert!(runs.may(at(1), 5 + REFUSED_NS));
        // Where it is refused again and again, it is not tried any more.
        (0..1000).for_each(|port| runs.refuse(at(port), 7));
        assert_eq!(runs.refused.len(), REFUSED_MAX);
        assert!(!runs.may(at(2000), 7) && runs.may(at(2000), 7 + REFUSED_NS));
    }

    #[test]
    fn what_the_system_dropped_is_known() {
        let (ours, peer) = (socket("127.0.0.1:0"), socket("127.0.0.1:0"));
        assert_eq!(dropped(&ours), Some(0));
        for _ in 0..3_000 {
            peer.send_to(&[0; 500], ours.local_addr().unwrap()).unwrap();
        }
        assert!(dropped(&ours).unwrap() > 0);
    }
}
