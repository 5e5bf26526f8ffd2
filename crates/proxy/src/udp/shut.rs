//! The door: sources that flood are shut out by a filter in the system, so that their datagrams neither fill our queue nor wake
//! us. Classic BPF, which needs no privilege; it is made anew whenever somebody is put on the list or taken off.

use std::net::SocketAddr;

use socket2::SockFilter;

use super::source::prefix;

/// Who may not come in, and until when.
#[derive(Default)]
pub struct Shut {
    /// The source and the end, in ns.
    out: Vec<(u128, u64)>,
}

impl Shut {
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// False: there is no place for another.
    pub fn put(&mut self, from: SocketAddr, until_ns: u64) -> bool {
        let source = prefix(from);
        self.out.retain(|(out, _)| *out != source);
        let fits = self.out.len() < SHUT_MAX;
        if fits {
            self.out.push((source, until_ns));
        }
        fits
    }

    /// True when somebody may come in again.
    pub fn sweep(&mut self, now_ns: u64) -> bool {
        let before = self.out.len();
        self.out.retain(|(_, until)| *until > now_ns);
        self.out.len() != before
    }

    /// The filter of the socket, which sees each datagram with its IP header before it.
    pub fn program(&self) -> Vec<SockFilter> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (source, _) in &self.out {
            match u32::try_from(*source) {
                Ok(ip) => v4.push(ip),
                Err(_) => v6.push(((source >> 96) as u32, (source >> 64) as u32)),
            }
        }
        let step = |code, yes, no, value| SockFilter::new(code, yes, no, value);
        // Steps from the last test of the one at `at` of `count`, each `long`, to the end.
        let to_drop = |at: usize, count: usize, long: usize| {
            u8::try_from((count - 1 - at) * long + 1).unwrap_or(u8::MAX)
        };
        let v4_steps = u8::try_from(v4.len() + 3).unwrap_or(u8::MAX);
        let mut program = vec![
            step(LOAD_BYTE, 0, 0, NET),
            step(SHIFT_RIGHT, 0, 0, 4),
            step(IS_EQUAL, 0, v4_steps, 4),
            step(LOAD_WORD, 0, 0, NET + 12),
        ];
        let count = v4.len();
        for (at, ip) in v4.into_iter().enumerate() {
            program.push(step(IS_EQUAL, to_drop(at, count, 1), 0, ip));
        }
        let end = || [step(RETURN, 0, 0, u32::MAX), step(RETURN, 0, 0, 0)];
        program.extend(end());
        let count = v6.len();
        for (at, (high, low)) in v6.into_iter().enumerate() {
            program.extend([
                step(LOAD_WORD, 0, 0, NET + 8),
                step(IS_EQUAL, 0, 2, high),
                step(LOAD_WORD, 0, 0, NET + 12),
                step(IS_EQUAL, to_drop(at, count, 4), 0, low),
            ]);
        }
        program.extend(end());
        program
    }
}

/// Sources shut out at once, of one socket.
const SHUT_MAX: usize = 32;

const LOAD_BYTE: u16 = 0x30;
const LOAD_WORD: u16 = 0x20;
const SHIFT_RIGHT: u16 = 0x74;
const IS_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Offsets from here are into the IP header (`SKF_NET_OFF`).
const NET: u32 = 0xfff0_0000;

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, UdpSocket};

    use socket2::SockRef;

    use super::*;

    /// Who of `from` gets through to a socket at `at`.
    fn through(at: &str, from: &[&str], out: &[&str]) -> Vec<bool> {
        let ours = UdpSocket::bind(at).unwrap();
        let port = ours.local_addr().unwrap().port();
        let mut shut = Shut::default();
        for out in out {
            let ip: IpAddr = out.parse().unwrap();
            assert!(shut.put(SocketAddr::new(ip, 1), 5));
        }
        SockRef::from(&ours).attach_filter(&shut.program()).unwrap();
        ours.set_nonblocking(true).unwrap();
        let passes = |from: &&str| {
            let ip: IpAddr = from.parse().unwrap();
            let client = UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap();
            let to = match ip {
                IpAddr::V4(_) => SocketAddr::from(([127, 0, 0, 1], port)),
                IpAddr::V6(_) => SocketAddr::new("::1".parse().unwrap(), port),
            };
            client.send_to(b"let me in", to).unwrap();
            let mut buffer = [0; 20];
            let got = ours.recv_from(&mut buffer).ok();
            got.inspect(|(length, _)| assert_eq!(&buffer[..*length], b"let me in"))
                .is_some()
        };
        from.iter().map(passes).collect()
    }

    #[test]
    fn who_is_shut_out_does_not_come_in_and_everybody_else_does() {
        let clients = ["127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4"];
        let out = ["127.0.0.2", "10.1.2.3", "127.0.0.4", "2001:db8::1"];
        assert_eq!(
            through("127.0.0.1:0", &clients, &out),
            [true, false, true, false]
        );
        assert_eq!(through("127.0.0.1:0", &clients, &[]), [true; 4]);
        let many: Vec<String> = (0..31).map(|n| format!("10.0.0.{n}")).collect();
        let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
        many.insert(3, "127.0.0.3");
        assert_eq!(
            through("127.0.0.1:0", &clients, &many),
            [true, true, false, true]
        );
    }

    #[test]
    fn a_socket_of_both_families_shuts_out_both() {
        let clients = ["127.0.0.1", "127.0.0.2", "::1"];
        let of = |out: &[&str]| through("[::]:0", &clients, out);
        assert_eq!(of(&["127.0.0.2"]), [true, false, true]);
        assert_eq!(
            of(&["2001:db8::1", "::5", "127.0.0.1"]),
            [false, true, false]
        );
        assert_eq!(of(&["2001:db8::1", "2001:db8:0:1::1"]), [true, true, true]);
    }

    #[test]
    fn after_its_time_a_source_comes_in_again() {
        let mut shut = Shut::default();
        assert!(shut.put("10.0.0.1:1".parse().unwrap(), 10) && !shut.is_empty());
        assert!(!shut.sweep(9) && shut.sweep(10) && shut.is_empty());
        let full = (0..100_u8).filter(|n| shut.put(SocketAddr::from(([10, 0, 0, *n], 1)), 10));
        assert_eq!(full.count(), SHUT_MAX);
    }
}
