//! Whether somebody listens for datagrams at an address: nobody answers a connection there, and a datagram that the
//! application did not expect might hurt it. The kernel's table of sockets tells.

use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// False only where that is certain: another machine's sockets, and those of a system without the table, count as there.
pub fn is_bound(app: SocketAddr) -> bool {
    let mut known = false;
    for path in ["/proc/net/udp", "/proc/net/udp6"] {
        let Ok(table) = read(path) else { continue };
        known = true;
        if table.lines().filter_map(local).any(|at| takes(at, app)) {
            return true;
        }
    }
    !known || !is_here(app.ip())
}

fn read(path: &str) -> io::Result<String> {
    let mut table = String::new();
    let file = std::fs::File::open(path)?;
    file.take(TABLE_MAX).read_to_string(&mut table)?;
    Ok(table)
}

/// Whether a socket bound there gets what is sent to `app`; one for all of IPv6 mostly gets IPv4, too.
fn takes(bound: SocketAddr, app: SocketAddr) -> bool {
    let ip = bound.ip();
    let all = ip.is_unspecified() && (ip.is_ipv6() || app.is_ipv4());
    bound.port() == app.port()
        && (all || app.ip().is_unspecified() || ip.to_canonical() == app.ip().to_canonical())
}

/// Whether the address is this machine's, as far as can be told.
fn is_here(ip: IpAddr) -> bool {
    let bound = UdpSocket::bind((ip, 0));
    !bound.is_err_and(|error| error.kind() == ErrorKind::AddrNotAvailable)
}

/// `  12: 0100007F:1B58 00000000:0000 07 …`: words of an address are in the machine's own order.
fn local(line: &str) -> Option<SocketAddr> {
    let (ip, port) = line.split_whitespace().nth(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let text = ip.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(text, 16).ok()?.to_ne_bytes())
    };
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let bytes: [u8; 16] = words.concat().try_into().ok()?;
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Bytes of a table; 100,000 sockets have 13 million.
const TABLE_MAX: u64 = 32 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_seen_while_it_is_there() {
        for (bind, ask) in [
            ("127.0.0.1:0", [127, 0, 0, 1]),
            ("0.0.0.0:0", [127, 0, 0, 1]),
            ("127.0.0.9:0", [127, 0, 0, 9]),
        ] {
            let socket = UdpSocket::bind(bind).unwrap();
            let app = SocketAddr::from((ask, socket.local_addr().unwrap().port()));
            assert!(is_bound(app), "{bind}");
        }
        let elsewhere = UdpSocket::bind("127.0.0.8:0")
            .unwrap()
            .local_addr()
            .unwrap();
        // Freed by now; nobody else has this address.
        assert!(!is_bound(elsewhere));
    }

    #[test]
    fn rows_of_the_kernel_are_read() {
        let row = "  340: 0100007F:1B58 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 0";
        if cfg!(target_endian = "little") {
            assert_eq!(local(row), Some("127.0.0.1:7000".parse().unwrap()));
            let row = " 12: 00000000000000000000000001000000:1B58 0:0";
            assert_eq!(local(row), Some("[::1]:7000".parse().unwrap()));
        }
        for bad in [
            "",
            "sl local_address rem",
            "1: 00:1",
            "1: 0100007F:x",
            "1: äöü",
        ] {
            assert_eq!(local(bad), None, "{bad}");
        }
    }

    #[test]
    fn another_machines_socket_counts_as_there() {
        assert!(is_bound("192.0.2.1:7000".parse().unwrap()));
    }
}
