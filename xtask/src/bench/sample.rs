//! What one measurement says, and CPU time as the kernel accounts for it.

/// A column's value.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    pub name: &'static str,
    pub value: f64,
    pub digits: usize,
}

/// The first figure is the one that proxies are compared by, unless the case is about tails.
#[derive(Clone, Debug, Default)]
pub struct Sample(pub Vec<Figure>);

impl Sample {
    pub fn add(&mut self, name: &'static str, value: f64, digits: usize) {
        self.0.push(Figure {
            name,
            value,
            digits,
        });
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        let figure = self.0.iter().find(|figure| figure.name == name)?;
        Some(figure.value)
    }

    /// Of `count` units, each with its share of user and system time.
    pub fn add_cpu(&mut self, spent: Cpu, count: f64) {
        if spent.ns == 0 {
            return;
        }
        let total = spent.ns as f64 / 1e3 / count;
        let ticks = (spent.user_ticks + spent.system_ticks).max(1) as f64;
        let user = total * spent.user_ticks as f64 / ticks;
        self.add(CPU, total, 2);
        self.add("user", user, 2);
        self.add("system", total - user, 2);
    }
}

/// Of all threads of the proxies since their start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu {
    /// By the scheduler, exactly.
    pub ns: u64,
    /// By the timer's interrupt, which sees what was running.
    pub user_ticks: u64,
    pub system_ticks: u64,
}

impl Cpu {
    pub fn since(self, before: Self) -> Self {
        Self {
            ns: self.ns.saturating_sub(before.ns),
            user_ticks: self.user_ticks.saturating_sub(before.user_ticks),
            system_ticks: self.system_ticks.saturating_sub(before.system_ticks),
        }
    }
}

pub const CPU: &str = "CPU-\u{b5}s";
pub const P50: &str = "p50 \u{b5}s";
pub const P99: &str = "p99 \u{b5}s";
/// What does not go through a proxy.
pub const DIRECT: &str = "direct";
