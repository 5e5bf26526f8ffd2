//! What the operating system knows of this process, under the names every Prometheus client uses. Read from /proc at the
//! time of asking; what can't be read is left out.

use std::fs;

use crate::metrics::{Exposition, Family};

const RESIDENT: Family = Family::gauge(
    "process_resident_memory_bytes",
    "Resident memory size in bytes.",
);
const VIRTUAL: Family = Family::gauge(
    "process_virtual_memory_bytes",
    "Virtual memory size in bytes.",
);
const CPU: Family = Family::counter(
    "process_cpu_seconds_total",
    "Total user and system CPU time spent in seconds.",
);
const FDS: Family = Family::gauge("process_open_fds", "Number of open file descriptors.");
const THREADS: Family = Family::gauge("process_threads", "Number of OS threads.");
const START: Family = Family::gauge(
    "process_start_time_seconds",
    "Start time of the process since the Unix epoch in seconds.",
);

/// Linux' USER_HZ, the unit of times in /proc/PID/stat: 100 on every architecture we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Writes all `process_*` families that can be read.
pub fn write(out: &mut Exposition) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let stat = Stat::parse(&stat);
    if let Some(bytes) = kilobytes(&status, "VmRSS:") {
        out.family(&RESIDENT).sample(&[], bytes);
    }
    if let Some(bytes) = kilobytes(&status, "VmSize:") {
        out.family(&VIRTUAL).sample(&[], bytes);
    }
    if let Some(stat) = &stat {
        out.family(&CPU)
            .sample(&[], stat.cpu_ticks as f64 / TICKS_PER_SECOND);
        out.family(&THREADS).sample(&[], stat.threads);
    }
    if let Ok(fds) = fs::read_dir("/proc/self/fd") {
        // The listing itself holds one of them.
        out.family(&FDS)
            .sample(&[], fds.count().saturating_sub(1) as u64);
    }
    if let (Some(stat), Some(boot)) = (&stat, boot_seconds()) {
        out.family(&START).sample(
            &[],
            boot as f64 + stat.start_ticks as f64 / TICKS_PER_SECOND,
        );
    }
}

/// Resident memory of this process in bytes; none where /proc can't be read.
pub fn resident_bytes() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

fn kilobytes(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn boot_seconds() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
}

impl Stat {
    /// Fields are numbered from 1 in proc(5); the second, the name, may hold spaces and parentheses.
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            start_ticks: field(22)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_itself() {
        let mut out = Exposition::new();
        write(&mut out);
        let text = out.finish();
        for family in [RESIDENT, VIRTUAL, CPU, FDS, THREADS, START] {
            assert!(
                text.contains(&format!("\n{} ", family.name)),
                "{} missing in\n{text}",
                family.name
            );
        }
        assert!(resident_bytes().unwrap() > 100_000);
    }

    #[test]
    fn names_with_parentheses_do_not_shift_fields() {
        let stat =
            Stat::parse("7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 30 12 13 14 15 16 4 18 999 20").unwrap();
        assert_eq!(
            (stat.cpu_ticks, stat.threads, stat.start_ticks),
            (42, 4, 999)
        );
    }
}
