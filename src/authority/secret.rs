//! Pages for key material, and a process that leaves no core dump.
//!
//! Owns: the system calls for it, and so all `unsafe` of this room. The invariant of [`SecretPages`]: `start` is a mapping
//! of `mapped` bytes that is its own alone from `mmap` to `munmap`, readable and writable, and `len <= mapped`.

use std::io;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::libc;
use zeroize::Zeroize;

/// Bytes on pages of their own: in no core dump (`MADV_DONTDUMP`), in no child (`MADV_DONTFORK`), in no swap where the
/// limit on locked memory allows, and zeroed before they go.
pub(super) struct SecretPages {
    start: NonNull<u8>,
    mapped: usize,
    len: usize,
}

// The mapping belongs to this value alone, like a `Box<[u8]>`.
unsafe impl Send for SecretPages {}

impl SecretPages {
    /// `len` zero bytes.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        // mmap refuses a length of nothing.
        let mapped = len.max(1);
        // An anonymous mapping at an address of the kernel's choice touches no memory that is in use.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let pages = SecretPages { start, mapped, len };
        for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
            // Advice on a mapping of our own; it changes no byte of it.
            Errno::result(unsafe { libc::madvise(start.as_ptr().cast(), mapped, advice) })?;
        }
        // RLIMIT_MEMLOCK may say no: then the pages are like all others to the swap, for the short time they live.
        let _ = unsafe { libc::mlock(start.as_ptr().cast(), mapped) };
        Ok(pages)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // `len` bytes of a live mapping, initialised by the kernel.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // As above, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Leaves out what is behind the first `len` bytes.
    pub(super) fn truncate(&mut self, len: usize) {
        if let Some(rest) = self.bytes_mut().get_mut(len..) {
            rest.zeroize();
            self.len = len;
        }
    }
}

impl Drop for SecretPages {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        // The mapping of `new`, which nothing refers to any more.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

/// From here on the kernel writes no core dump of this process, and only root may trace it (prctl(2),
/// `PR_SET_DUMPABLE`). An exec sets it anew, so children are as before.
pub(super) fn forbid_core_dumps() -> io::Result<()> {
    // Changes a flag of this process only.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The `VmFlags` of the mapping at `address` (proc(5), smaps): `dd` is "not in core dumps", `dc` "not in children".
    fn flags_at(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let ends = range.and_then(|(from, to)| {
                Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
            });
            if let Some((from, to)) = ends {
                inside = (from..to).contains(&address);
            } else if let (true, Some(flags)) = (inside, line.strip_prefix("VmFlags:")) {
                return flags.to_owned();
            }
        }
        panic!("no mapping at {address:x}");
    }

    #[test]
    fn key_pages_are_in_no_dump_and_no_child() {
        let mut pages = SecretPages::new(5000).unwrap();
        pages.bytes_mut()[4999] = 7;
        let flags = flags_at(pages.bytes().as_ptr() as usize);
        assert!(flags.contains(" dd") && flags.contains(" dc"), "{flags}");
        pages.truncate(4);
        assert_eq!(pages.bytes(), [0; 4]);
    }

    #[test]
    fn nothing_needs_no_pages() {
        assert_eq!(SecretPages::new(0).unwrap().bytes(), b"");
    }
}
