//! Header fields: in order, as sent, looked up without regard to case.

use std::ops::Range;

use super::scan::trim;

/// The fields of a head. One allocation for the text, one for the places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    text: Vec<u8>,
    places: Vec<(Range<u32>, Range<u32>)>,
}

impl Fields {
    /// Appends a field; `value` is stored without whitespace around it.
    pub(super) fn push(&mut self, name: &str, value: &[u8]) {
        let name = self.store(name.as_bytes());
        let value = self.store(trim(value));
        self.places.push((name, value));
    }

    fn store(&mut self, bytes: &[u8]) -> Range<u32> {
        // Heads are capped far below 4 GiB before they come here.
        let start = self.text.len() as u32;
        self.text.extend_from_slice(bytes);
        start..self.text.len() as u32
    }

    /// Drops every field called `name`.
    #[cfg(feature = "daemon")] // the proxy's alone
    pub(crate) fn remove(&mut self, name: &str) {
        let text = &self.text;
        self.places
            .retain(|(found, _)| !text[found.start as usize..found.end as usize].eq_ignore_ascii_case(name.as_bytes()));
    }

    /// Every field: name as sent, value without whitespace around it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.places.iter().map(|(name, value)| {
            // Names are tokens, checked before they were pushed: ASCII.
            (std::str::from_utf8(self.slice(name)).unwrap_or(""), self.slice(value))
        })
    }

    fn slice(&self, place: &Range<u32>) -> &[u8] {
        &self.text[place.start as usize..place.end as usize]
    }

    /// The values of every field called `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The value of the first field called `name`.
    #[must_use]
    pub fn first(&self, name: &str) -> Option<&[u8]> {
        self.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The members of the comma-separated list that all fields called `name` make together. RFC 9110 5.6.1.
    pub fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.all(name).flat_map(|value| value.split(|byte| *byte == b',')).map(trim).filter(|member| !member.is_empty())
    }

    /// True when the list `name` has `token`, in any case.
    #[must_use]
    pub fn lists(&self, name: &str, token: &str) -> bool {
        self.list(name).any(|member| member.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Whether `Connection` has this hop drop the fields called `name`. Not those that each hop makes anew whatever it
    /// lists: their meaning goes on. RFC 9110 7.6.1.
    pub(crate) fn drops(&self, name: &str) -> bool {
        const MADE_ANEW: [&str; 5] = ["host", "content-length", "transfer-encoding", "connection", "upgrade"];
        !MADE_ANEW.iter().any(|anew| name.eq_ignore_ascii_case(anew)) && self.lists("connection", name)
    }

    /// How many fields there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// True without fields.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_in_any_case_and_lists_join() {
        let mut fields = Fields::default();
        fields.push("Connection", b" close , X-One");
        fields.push("connection", b"x-two\t");
        assert_eq!(fields.list("CONNECTION").count(), 3);
        assert!(fields.lists("Connection", "X-Two") && !fields.lists("connection", "x-three"));
        assert_eq!(fields.first("Connection"), Some(&b"close , X-One"[..]));
        assert_eq!(fields.len(), 2);
        fields.push("Expect", b"100-continue");
        fields.remove("EXPECT");
        assert!(fields.first("expect").is_none() && fields.len() == 2);
    }
}
