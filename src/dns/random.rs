//! Random bits from the kernel, fetched a block at a time.

/// A block serves some dozens of questions with one `getrandom`, in bytes.
const BLOCK: usize = 512;

/// A pool of unused random bytes.
pub(super) struct Random {
    block: [u8; BLOCK],
    used: usize,
}

impl Random {
    pub(super) fn new() -> Self {
        Random { block: [0; BLOCK], used: BLOCK }
    }

    /// Fresh bytes; `None` when the kernel gives none, and then nothing may be asked.
    pub(super) fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        if self.used + N > BLOCK {
            getrandom::fill(&mut self.block).ok()?;
            self.used = 0;
        }
        let taken = *self.block[self.used..].first_chunk::<N>()?;
        self.used += N;
        Some(taken)
    }
}
