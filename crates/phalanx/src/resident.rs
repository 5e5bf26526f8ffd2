//! Giving back what only the start needed: a sidecar runs beside every application, so its idle memory counts.

use std::time::Duration;

/// After this long the first connections are made and the first configuration is compiled.
const SETTLED: Duration = Duration::from_secs(2);

/// Waits until the start is over, then unmaps the pages of the executable's code. The kernel keeps them in its cache and
/// maps again, sixteen at a time, those that are still used; what only parsed arguments or opened the first connections
/// stays out.
pub async fn release_start() {
    tokio::time::sleep(SETTLED).await;
    let (Ok(maps), Ok(executable)) = (
        std::fs::read_to_string("/proc/self/maps"),
        std::fs::read_link("/proc/self/exe"),
    ) else {
        return;
    };
    let executable = executable.to_string_lossy();
    for (start, end) in maps.lines().filter_map(|line| code(line, &executable)) {
        // SAFETY: the range is a mapping of this executable's code as the kernel names it: private, never written, backed
        // by the file. Dropped pages are read again from the file at the next access, also by threads that run in them.
        #[allow(unsafe_code)]
        unsafe {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
        }
    }
}

/// Start and end of a mapping that is read-only, executable and of this file. Data is left alone: relocated pages are not
/// what the file holds.
fn code(line: &str, executable: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, rights) = (words.next()?, words.next()?);
    if rights != "r-xp" || words.nth(3)? != executable {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    Some((
        usize::from_str_radix(start, 16).ok()?,
        usize::from_str_radix(end, 16).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_executables_own_code_is_released() {
        let line = |rights, file| format!("1000-3000 {rights} 00000000 fe:00 12 {file}");
        assert_eq!(
            code(&line("r-xp", "/bin/phalanx"), "/bin/phalanx"),
            Some((0x1000, 0x3000))
        );
        for (rights, file) in [
            ("r--p", "/bin/phalanx"),
            ("rw-p", "/bin/phalanx"),
            ("r-xp", "/lib/libc.so"),
        ] {
            assert_eq!(code(&line(rights, file), "/bin/phalanx"), None);
        }
        assert_eq!(code("1000-3000 r-xp 0 0:0 0", "/bin/phalanx"), None);
    }
}
