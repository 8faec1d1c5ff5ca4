//! Text of bounded length, held in place: an event is one block of memory, and recording one allocates nothing of its
//! own.

use std::fmt;

/// What ends a text that was cut.
const CUT: &str = "…";

/// At most `N` bytes of UTF-8. What is longer is cut between two characters and ends with `…`.
#[derive(Clone)]
pub struct Text<const N: usize> {
    length: u16,
    bytes: [u8; N],
}

impl<const N: usize> Text<N> {
    /// The text, cut to `N` bytes.
    #[must_use]
    pub fn new(text: &str) -> Self {
        const { assert!(N >= CUT.len() && N <= u16::MAX as usize) };
        let mut held = Text { length: 0, bytes: [0; N] };
        if text.len() <= N {
            held.push(text);
        } else {
            held.push(&text[..text.floor_char_boundary(N - CUT.len())]);
            held.push(CUT);
        }
        held
    }

    /// Callers see to it that there is room.
    fn push(&mut self, part: &str) {
        let from = usize::from(self.length);
        self.bytes[from..from + part.len()].copy_from_slice(part.as_bytes());
        // `N` fits, checked in `new`.
        self.length += part.len() as u16;
    }
}

impl<const N: usize> std::ops::Deref for Text<N> {
    type Target = str;

    fn deref(&self) -> &str {
        // Only whole characters go in.
        std::str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl<const N: usize> From<&str> for Text<N> {
    fn from(text: &str) -> Self {
        Text::new(text)
    }
}

impl<const N: usize> From<&Box<str>> for Text<N> {
    fn from(text: &Box<str>) -> Self {
        Text::new(text)
    }
}

impl<const N: usize> From<Box<str>> for Text<N> {
    fn from(text: Box<str>) -> Self {
        Text::new(&text)
    }
}

impl<const N: usize> From<String> for Text<N> {
    fn from(text: String) -> Self {
        Text::new(&text)
    }
}

impl<const N: usize> PartialEq for Text<N> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<const N: usize> Eq for Text<N> {}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut_between_characters_and_marked() {
        assert_eq!(&*Text::<8>::new("exactly8"), "exactly8");
        assert_eq!(&*Text::<8>::new("more than eight"), "more …");
        assert_eq!(&*Text::<8>::new("aaaaöööö"), "aaaa…");
        assert_eq!(Text::<8>::new("öööööö").len(), 7);
        assert_eq!(&*Text::<8>::new(""), "");
    }
}
