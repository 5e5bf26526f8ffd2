//! Ties a thread to a processor, of those that this process may use, and lets others go before it.

use std::io;

/// The processors that this process may run on, ascending.
#[allow(unsafe_code)]
pub(crate) fn allowed() -> io::Result<Vec<usize>> {
    // SAFETY: a cpu_set_t is a plain bit set, for which all zeroes are a value; the kernel writes at most its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return Err(io::Error::last_os_error());
        }
        set
    };
    let bits = 8 * size_of::<libc::cpu_set_t>();
    Ok((0..bits)
        // SAFETY: `bit` is below the set's size in bits.
        .filter(|&bit| unsafe { libc::CPU_ISSET(bit, &set) })
        .collect())
}

/// From now on the calling thread runs on `processor` only.
#[allow(unsafe_code)]
pub(crate) fn pin(processor: usize) -> io::Result<()> {
    if processor >= 8 * size_of::<libc::cpu_set_t>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: as above; `processor` is below the set's size in bits, and thread 0 is the caller.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// From now on the calling thread yields to others by so many levels of niceness (0 to 19).
#[allow(unsafe_code)]
pub(crate) fn step_back(levels: u8) -> io::Result<()> {
    // SAFETY: takes numbers only; on Linux process 0 is the calling thread.
    let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, i32::from(levels.min(19))) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
