//! Sessions by slot. A slot's generation tells a session from the one that had its place before, so that a late
//! answer or a stale timer finds nobody.

/// Which session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SessionId {
    slot: u32,
    generation: u32,
}

/// The sessions.
pub(super) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    live: usize,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Which socket of a session a token means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Upstream,
}

impl SessionId {
    /// The `generation`th session of a slot. Only the proxy's own ids mean anything to it; others are for tests.
    #[must_use]
    pub fn new(slot: u32, generation: u32) -> Self {
        SessionId { slot, generation }
    }

    /// The poll token of one of its sockets. A stale event can reach the slot's next session; it only makes that one
    /// try to read or write.
    pub(super) fn token(self, side: Side) -> mio::Token {
        mio::Token(self.slot as usize * 2 + usize::from(side == Side::Upstream))
    }
}

/// The slot and side of a session's token.
pub(super) fn slot_of(token: mio::Token) -> (usize, Side) {
    (token.0 / 2, if token.0.is_multiple_of(2) { Side::Client } else { Side::Upstream })
}

impl<T> Table<T> {
    pub(super) fn new() -> Self {
        Table { slots: Vec::new(), free: Vec::new(), live: 0 }
    }

    /// Sessions alive, those taken out for a moment included.
    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// Puts in what `make` builds for its id; nothing when it fails.
    pub(super) fn insert<E>(&mut self, make: impl FnOnce(SessionId) -> Result<T, E>) -> Result<SessionId, E> {
        let slot = match self.free.last() {
            Some(slot) => *slot,
            None => {
                self.slots.push(Slot { generation: 0, value: None });
                // The number of sessions is capped far below 2^32.
                let slot = (self.slots.len() - 1) as u32;
                self.free.push(slot);
                slot
            }
        };
        let place = &mut self.slots[slot as usize];
        let id = SessionId { slot, generation: place.generation };
        place.value = Some(make(id)?);
        self.free.pop();
        self.live += 1;
        Ok(id)
    }

    /// The id of the session in `slot`, unless it is empty.
    pub(super) fn id_at(&self, slot: usize) -> Option<SessionId> {
        let place = self.slots.get(slot)?;
        place.value.as_ref()?;
        Some(SessionId { slot: slot as u32, generation: place.generation })
    }

    /// The session `id`, unless it is gone.
    pub(super) fn at(&mut self, id: SessionId) -> Option<&mut T> {
        let place = self.slots.get_mut(id.slot as usize)?;
        if place.generation == id.generation { place.value.as_mut() } else { None }
    }

    /// Takes the session out to work on it; give it back with [`Table::restore`] or end it with [`Table::release`].
    pub(super) fn take(&mut self, id: SessionId) -> Option<T> {
        let place = self.slots.get_mut(id.slot as usize)?;
        if place.generation == id.generation { place.value.take() } else { None }
    }

    /// Puts a session that was taken out back in its place.
    pub(super) fn restore(&mut self, id: SessionId, value: T) {
        self.slots[id.slot as usize].value = Some(value);
    }

    /// Frees the place of a session that was taken out.
    pub(super) fn release(&mut self, id: SessionId) {
        let place = &mut self.slots[id.slot as usize];
        place.generation = place.generation.wrapping_add(1);
        self.free.push(id.slot);
        self.live -= 1;
    }

    /// Every id in use.
    pub(super) fn ids(&self) -> Vec<SessionId> {
        (0..self.slots.len()).filter_map(|slot| self.id_at(slot)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slots_next_session_is_not_found_under_the_old_id() {
        let mut table: Table<&str> = Table::new();
        let first = table.insert(|_| Ok::<_, ()>("first")).unwrap();
        assert_eq!(table.take(first), Some("first"));
        table.release(first);
        let second = table.insert(|_| Ok::<_, ()>("second")).unwrap();
        assert_eq!(slot_of(first.token(Side::Upstream)).0, slot_of(second.token(Side::Client)).0);
        assert!(table.at(first).is_none() && table.take(first).is_none());
        assert_eq!(table.at(second), Some(&mut "second"));
        assert_eq!(table.len(), 1);
        assert_eq!(table.insert(|_| Err(())), Err(()));
        assert_eq!((table.len(), table.ids()), (1, vec![second]));
    }
}
