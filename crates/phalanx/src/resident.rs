//! Giving back what only the start needed: a sidecar runs beside every application, so its idle memory counts.

use std::time::Duration;

/// After this long the first connections are made and the first configuration is compiled.
const SETTLED: Duration = Duration::from_secs(2);

/// Waits until the start is over, then unmaps code, and what else is as the files hold it. The kernel keeps the pages in its
/// cache and maps again, sixteen at a time, those that are still used; what only relocated, parsed arguments or opened the
/// first connections stays out.
pub async fn release_start() {
    tokio::time::sleep(SETTLED).await;
    let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else {
        return;
    };
    for (start, end) in clean(&maps) {
        // SAFETY: the range is a private mapping of a file that nobody may write and nobody has written, as the kernel says
        // of its pages. Dropped pages are read again from the file at the next access, also by threads that run in them.
        #[allow(unsafe_code)]
        unsafe {
            libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
        }
    }
}

/// Start and end of the mappings that hold what their files hold: read-only, without a page of our own (one that is
/// "dirty" may be the file's). Data that was relocated is read-only too, and not what the file holds.
fn clean(smaps: &str) -> Vec<(usize, usize)> {
    let (mut found, mut open) = (Vec::new(), None);
    for line in smaps.lines() {
        match line.split_once(':') {
            Some(("Anonymous" | "Swap", size)) => {
                if size.trim() != "0 kB" {
                    open = None;
                }
            }
            // The last of a mapping.
            Some(("VmFlags", _)) => found.extend(open.take()),
            _ => open = mapping(line).or(open),
        }
    }
    found
}

/// The first line of a private, read-only mapping of a file.
fn mapping(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, rights) = (words.next()?, words.next()?);
    if !matches!(rights, "r-xp" | "r--p") || !words.nth(3)?.starts_with('/') {
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

    fn smap(rights: &str, file: &str, dirty: u32) -> String {
        format!(
            "1000-3000 {rights} 00000000 fe:00 12 {file}\nSize: 8 kB\nPrivate_Clean: 8 kB\nSwap: 0 kB\n\
             Anonymous: {dirty} kB\nVmFlags: rd mr mw me\n"
        )
    }

    #[test]
    fn only_what_the_files_hold_is_released() {
        for (rights, file, dirty, released) in [
            ("r-xp", "/bin/phalanx", 0, true),
            ("r--p", "/bin/phalanx", 0, true),
            ("r-xp", "/lib/libc.so.6", 0, true),
            ("r--p", "/bin/phalanx", 4, false),
            ("rw-p", "/bin/phalanx", 0, false),
            ("r-xp", "[vdso]", 0, false),
            ("r--p", "", 0, false),
        ] {
            let found = clean(&smap(rights, file, dirty));
            let wanted = [(0x1000, 0x3000)];
            assert_eq!(found == wanted, released, "{rights} {file} {dirty}");
        }
    }

    #[test]
    fn one_mapping_says_nothing_of_the_next() {
        let both = smap("rw-p", "/bin/phalanx", 0) + &smap("r-xp", "/bin/phalanx", 0);
        assert_eq!(clean(&both).len(), 1);
        let both = smap("r-xp", "/bin/phalanx", 4) + &smap("r--p", "/bin/phalanx", 0);
        assert_eq!(clean(&both).len(), 1);
    }

    /// As the kernel really writes it.
    #[test]
    fn own_code_is_found() {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let code = clean as *const () as usize;
        assert!(
            clean(&smaps)
                .iter()
                .any(|(start, end)| (*start..*end).contains(&code))
        );
    }
}
