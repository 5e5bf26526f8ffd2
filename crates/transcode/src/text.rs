//! The well-known types that are strings in JSON: timestamps, durations, field masks.

/// Seconds since 1970 and nanoseconds, from RFC 3339.
pub fn parse_timestamp(text: &str) -> Option<(i64, u32)> {
    let bytes = text.as_bytes();
    let number = |from: usize, len: usize| -> Option<i64> {
        let digits = text.get(from..from + len)?;
        let all = digits.bytes().all(|byte| byte.is_ascii_digit());
        all.then(|| digits.parse().ok()).flatten()
    };
    let is = |at: usize, wanted: &[u8]| bytes.get(at).is_some_and(|byte| wanted.contains(byte));
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    let punctuated = is(4, b"-") && is(7, b"-") && is(10, b"T") && is(13, b":") && is(16, b":");
    if !punctuated || year < 1 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    if !(1..=12).contains(&month) || day < 1 || day > month_days(year, month) {
        return None;
    }
    let rest = text.get(19..)?;
    let (fraction, zone) = match rest.strip_prefix('.') {
        Some(rest) => {
            let end = rest.find(|c: char| !c.is_ascii_digit())?;
            rest.split_at_checked(end)?
        }
        None => ("", rest),
    };
    if rest.starts_with('.') && fraction.is_empty() {
        return None;
    }
    let offset = match zone {
        "Z" => 0,
        zone => {
            let sign = match zone.as_bytes().first()? {
                b'+' => 1,
                b'-' => -1,
                _ => return None,
            };
            let (hours, minutes) = zone.get(1..)?.split_once(':')?;
            if hours.len() != 2 || minutes.len() != 2 {
                return None;
            }
            let (hours, minutes) = (hours.parse::<u8>().ok()?, minutes.parse::<u8>().ok()?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            sign * (i64::from(hours) * 3600 + i64::from(minutes) * 60)
        }
    };
    let seconds =
        days_from_civil(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    (TIMESTAMP_MIN..=TIMESTAMP_MAX)
        .contains(&seconds)
        .then_some((seconds, nanos(fraction)?))
}

/// None outside of the years 1 to 9999.
pub fn format_timestamp(seconds: i64, nanos: i64) -> Option<String> {
    if !(TIMESTAMP_MIN..=TIMESTAMP_MAX).contains(&seconds) || !(0..NANOS).contains(&nanos) {
        return None;
    }
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let fraction = format_nanos(nanos);
    Some(format!(
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z"
    ))
}

/// `-1.5s`, as seconds and nanoseconds of the same sign.
pub fn parse_duration(text: &str) -> Option<(i64, i32)> {
    let number = text.strip_suffix('s')?;
    let (negative, number) = match number.strip_prefix('-') {
        Some(number) => (true, number),
        None => (false, number),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || number.ends_with('.') {
        return None;
    }
    let seconds: i64 = whole.parse().ok().filter(|value| *value <= DURATION_MAX)?;
    let nanos = i32::try_from(nanos(fraction)?).ok()?;
    Some(match negative {
        true => (-seconds, -nanos),
        false => (seconds, nanos),
    })
}

pub fn format_duration(seconds: i64, nanos: i64) -> Option<String> {
    let in_range = seconds.abs() <= DURATION_MAX && nanos.abs() < NANOS;
    if !in_range || (seconds > 0 && nanos < 0) || (seconds < 0 && nanos > 0) {
        return None;
    }
    let sign = if seconds < 0 || nanos < 0 { "-" } else { "" };
    let fraction = format_nanos(nanos.abs());
    Some(format!("{sign}{}{fraction}s", seconds.abs()))
}

/// `fooBar.baz` as `foo_bar.baz`. Names that are so already stay.
pub fn snake(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 4);
    for char in path.chars() {
        match char {
            'A'..='Z' => {
                out.push('_');
                out.push(char.to_ascii_lowercase());
            }
            _ => out.push(char),
        }
    }
    out
}

pub fn camel(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut upper = false;
    for char in path.chars() {
        match char {
            '_' => upper = true,
            _ if std::mem::take(&mut upper) => out.push(char.to_ascii_uppercase()),
            _ => out.push(char),
        }
    }
    out
}

fn nanos(fraction: &str) -> Option<u32> {
    if fraction.len() > 9 {
        return None;
    }
    format!("{fraction:0<9}").parse().ok()
}

/// With 0, 3, 6 or 9 digits.
fn format_nanos(nanos: i64) -> String {
    match nanos {
        0 => String::new(),
        _ if nanos % 1_000_000 == 0 => format!(".{:03}", nanos / 1_000_000),
        _ if nanos % 1_000 == 0 => format!(".{:06}", nanos / 1_000),
        _ => format!(".{nanos:09}"),
    }
}

fn month_days(year: i64, month: i64) -> i64 {
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Howard Hinnant's algorithm, over years that begin in March.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

const NANOS: i64 = 1_000_000_000;
const TIMESTAMP_MIN: i64 = -62_135_596_800;
const TIMESTAMP_MAX: i64 = 253_402_300_799;
const DURATION_MAX: i64 = 315_576_000_000;
