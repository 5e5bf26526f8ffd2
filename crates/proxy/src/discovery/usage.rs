//! Which hosts are asked for, and when each was used last. Pure: uses and times come in, who has to go comes out.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// Hosts that are asked for at once, those that do not exist included. Below what a control plane takes on one stream.
pub const HOSTS_MAX: usize = 8_192;
/// Over [`HOSTS_MAX`], so many go at once, so that the search for them is rare.
const MARGIN: usize = HOSTS_MAX / 16;

/// By the name of their route table.
#[derive(Debug, Default)]
pub struct Usage {
    hosts: HashMap<String, Instant>,
}

impl Usage {
    /// Somebody wants it now; true when nobody did before.
    pub fn want(&mut self, host: &str, now: Instant) -> bool {
        match self.hosts.get_mut(host) {
            Some(used) => {
                *used = now;
                false
            }
            None => self.hosts.insert(host.to_owned(), now).is_none(),
        }
    }

    /// Notes as used those of which `take_used` says so.
    pub fn note(&mut self, now: Instant, take_used: impl Fn(&str) -> bool) {
        for (host, used) in &mut self.hosts {
            if take_used(host) {
                *used = now;
            }
        }
    }

    /// Those that nobody used for `idle`; they are forgotten.
    pub fn expire(&mut self, now: Instant, idle: Duration) -> Vec<String> {
        let expired = |used: &Instant| now.duration_since(*used) >= idle;
        let gone = self.hosts.extract_if(|_, used| expired(used));
        gone.map(|(host, _)| host).collect()
    }

    /// When there are too many, those to make room: first what does not exist, then what was used longest ago. They are
    /// forgotten.
    pub fn shrink(&mut self, is_nothing: impl Fn(&str) -> bool) -> Vec<String> {
        let Some(over) = self.hosts.len().checked_sub(HOSTS_MAX + 1) else {
            return Vec::new();
        };
        let rank = |(host, used): (&String, &Instant)| (!is_nothing(host), *used, host.clone());
        let mut ranked: Vec<_> = self.hosts.iter().map(rank).collect();
        ranked.sort_unstable();
        ranked.truncate(over + 1 + MARGIN);
        let gone: Vec<String> = ranked.into_iter().map(|(.., host)| host).collect();
        for host in &gone {
            self.hosts.remove(host);
        }
        gone
    }

    /// Whether [`Usage::shrink`] has something to do.
    pub fn is_full(&self) -> bool {
        self.hosts.len() > HOSTS_MAX
    }

    pub fn clear(&mut self) {
        self.hosts.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(mut names: Vec<String>) -> Vec<String> {
        names.sort_unstable();
        names
    }

    #[test]
    fn what_nobody_uses_goes_and_what_is_used_stays() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut usage = Usage::default();
        assert!(usage.want("a", start) && usage.want("b", start) && !usage.want("a", start));
        usage.note(after(5), |host| host == "a");
        let idle = Duration::from_secs(10);
        assert!(usage.expire(after(9), idle).is_empty());
        assert_eq!(usage.expire(after(10), idle), ["b"]);
        assert_eq!(usage.expire(after(15), idle), ["a"]);
        assert!(usage.want("b", after(15)), "it can come back");
    }

    #[test]
    fn a_flood_of_names_that_lead_nowhere_pushes_out_none_that_exists() {
        let start = Instant::now();
        let mut usage = Usage::default();
        for number in 0..100 {
            usage.want(&format!("real-{number}"), start);
        }
        for number in 0..3 * HOSTS_MAX as u64 {
            usage.want(
                &format!("fake-{number}"),
                start + Duration::from_millis(number),
            );
            let gone = usage.shrink(|host| host.starts_with("fake"));
            assert!(gone.iter().all(|host| host.starts_with("fake")));
            assert!(usage.hosts.len() <= HOSTS_MAX);
        }
        let real = usage.hosts.keys().filter(|host| host.starts_with("real"));
        assert_eq!(real.count(), 100);
    }

    #[test]
    fn of_those_that_exist_the_longest_unused_go_first() {
        let start = Instant::now();
        let mut usage = Usage::default();
        for number in 0..=HOSTS_MAX as u64 {
            let name = format!("{number:05}");
            usage.want(&name, start + Duration::from_millis(number));
        }
        usage.note(start + Duration::from_secs(60), |host| host == "00000");
        let gone = names(usage.shrink(|_| false));
        assert_eq!(gone.len(), 1 + MARGIN);
        assert_eq!(gone.first().map(String::as_str), Some("00001"));
    }
}
