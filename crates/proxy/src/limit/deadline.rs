//! `grpc-timeout`: up to eight digits and a unit (gRPC over HTTP/2, "Requests").

use phalanx_relay::Value;

/// In ns; none for what no gRPC client sends.
pub fn parse(text: &[u8]) -> Option<u64> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let unit_ns = UNITS.iter().find(|(known, _)| known == unit)?.1;
    let number = digits
        .iter()
        .fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some(number.saturating_mul(unit_ns))
}

/// As it is sent on: never more than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    text: [u8; DIGITS_MAX + 1],
    from: usize,
}

impl Timeout {
    /// None when less than the smallest unit that is sent is left.
    pub fn new(left_ns: u64) -> Option<Self> {
        let fits = |unit_ns: &u64| left_ns / unit_ns < NUMBER_END;
        let (unit, unit_ns) = UNITS.iter().skip(1).find(|(_, unit_ns)| fits(unit_ns))?;
        let mut number = left_ns / unit_ns;
        if number == 0 {
            return None;
        }
        let mut text = [b'0'; DIGITS_MAX + 1];
        let mut from = DIGITS_MAX;
        let (last, digits) = text.split_last_mut()?;
        *last = *unit;
        for digit in digits.iter_mut().rev() {
            if number == 0 {
                break;
            }
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
            from -= 1;
        }
        Some(Self { text, from })
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(self.from..).unwrap_or_default()
    }

    pub fn value(&self) -> Option<Value<'_>> {
        Value::new(self.as_bytes())
    }
}

/// In ns; the finest first, which is only read.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];
const DIGITS_MAX: usize = 8;
const NUMBER_END: u64 = 100_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_of_all_units_are_read() {
        let read = |text: &str| parse(text.as_bytes());
        assert_eq!(read("1S"), Some(1_000_000_000));
        assert_eq!(read("250m"), Some(250_000_000));
        assert_eq!(read("5u"), Some(5_000));
        assert_eq!(read("0n"), Some(0));
        assert_eq!(read("99999999H"), Some(u64::MAX));
        for none in [
            "",
            "S",
            "1",
            "1s",
            "-1S",
            "+1S",
            "1.5S",
            "123456789S",
            " 1S",
            "1S ",
        ] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_sent_on_is_never_more_than_is_left() {
        let mut rng = fastrand::Rng::with_seed(7);
        let edges = [1_000, 999_999, 99_999_999_999, 100_000_000_000, u64::MAX];
        let random = std::iter::repeat_with(move || rng.u64(..) >> rng.u32(0..54)).take(10_000);
        for left_ns in random.chain(edges) {
            match Timeout::new(left_ns) {
                Some(timeout) => {
                    let sent = parse(timeout.as_bytes()).unwrap();
                    assert!(
                        sent <= left_ns && sent >= left_ns / 1000 * 999,
                        "{left_ns} {sent}"
                    );
                }
                None => assert!(left_ns < 1_000, "{left_ns}"),
            }
        }
        let text = |ns| String::from_utf8(Timeout::new(ns).unwrap().as_bytes().to_vec()).unwrap();
        assert_eq!(text(1_500_000), "1500u");
        assert_eq!(text(3_600_000_000_000), "3600000m");
    }
}
