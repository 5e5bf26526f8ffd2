//! Counts the bytes that parsers look at, so that tests can tell linear cost from quadratic. Nothing outside of tests.

#[cfg(test)]
thread_local! {
    static STEPS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[inline(always)]
pub(super) fn add(_bytes: usize) {
    #[cfg(test)]
    STEPS.set(STEPS.get() + _bytes as u64);
}

#[cfg(test)]
pub(super) fn take() -> u64 {
    STEPS.replace(0)
}
