//! A bounded channel whose sends wake the receiver's mio loop.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::MAILBOX;

/// The sending side: cheap to clone, usable from any thread.
pub struct Address<T> {
    sender: Sender<T>,
    waker: Arc<mio::Waker>,
}

/// The receiving side, owned by one loop. After a `MAILBOX` event, drain it with [`Mailbox::take`] until `None`.
pub struct Mailbox<T> {
    receiver: Receiver<T>,
    /// Held so that the wake-up of a last message survives its sender: closing an eventfd takes its event away.
    _waker: Arc<mio::Waker>,
}

/// Why a message was not delivered; it carries the message back.
#[derive(Debug)]
pub enum SendError<T> {
    /// The mailbox is full: its owner is slow or stuck.
    Full(T),
    /// The owner is gone.
    Closed(T),
}

/// Makes a mailbox of `capacity` messages that wakes `poll` under [`MAILBOX`].
///
/// # Errors
/// What `eventfd` or `epoll_ctl` says.
pub fn mailbox<T>(poll: &mio::Poll, capacity: usize) -> std::io::Result<(Address<T>, Mailbox<T>)> {
    let waker = Arc::new(mio::Waker::new(poll.registry(), MAILBOX)?);
    let (sender, receiver) = crossbeam_channel::bounded(capacity);
    Ok((Address { sender, waker: Arc::clone(&waker) }, Mailbox { receiver, _waker: waker }))
}

impl<T> Address<T> {
    /// Delivers without waiting. Use this from every loop.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        let sent = match self.sender.try_send(message) {
            Ok(()) => Ok(()),
            Err(crossbeam_channel::TrySendError::Full(message)) => Err(SendError::Full(message)),
            Err(crossbeam_channel::TrySendError::Disconnected(message)) => return Err(SendError::Closed(message)),
        };
        // A full mailbox is woken too: its owner may have missed nothing, but it must get on with it.
        self.wake();
        sent
    }

    /// Delivers, waiting at most `limit` for room. Only for threads that may block (control, Docker, rules).
    pub fn send_within(&self, message: T, limit: Duration) -> Result<(), SendError<T>> {
        let sent = self.sender.send_timeout(message, limit).map_err(|error| match error {
            crossbeam_channel::SendTimeoutError::Timeout(message) => SendError::Full(message),
            crossbeam_channel::SendTimeoutError::Disconnected(message) => SendError::Closed(message),
        });
        self.wake();
        sent
    }

    fn wake(&self) {
        // Waking fails only when the eventfd is gone with its loop; then the channel is closed too and `send` said so.
        let _ = self.waker.wake();
    }
}

impl<T> Clone for Address<T> {
    fn clone(&self) -> Self {
        Address { sender: self.sender.clone(), waker: Arc::clone(&self.waker) }
    }
}

impl<T> Mailbox<T> {
    /// The next message, or `None` when the mailbox is empty or all senders are gone.
    #[must_use]
    pub fn take(&self) -> Option<T> {
        self.receiver.try_recv().ok()
    }

    /// How many messages wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.receiver.len()
    }

    /// True when no message waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.receiver.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_wakes_the_poll_and_is_received() {
        let mut poll = mio::Poll::new().unwrap();
        let (address, mailbox) = mailbox::<u32>(&poll, 2).unwrap();
        address.send(7).unwrap();
        let mut events = mio::Events::with_capacity(4);
        poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
        assert!(events.iter().any(|event| event.token() == MAILBOX));
        assert_eq!(mailbox.take(), Some(7));
        assert_eq!(mailbox.take(), None);
    }

    #[test]
    fn a_message_whose_sender_is_gone_still_wakes_the_poll() {
        let mut poll = mio::Poll::new().unwrap();
        let (address, mailbox) = mailbox::<u32>(&poll, 2).unwrap();
        address.send(7).unwrap();
        drop(address);
        let mut events = mio::Events::with_capacity(4);
        poll.poll(&mut events, Some(Duration::from_secs(5))).unwrap();
        assert!(events.iter().any(|event| event.token() == MAILBOX));
        assert_eq!(mailbox.take(), Some(7));
    }

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let poll = mio::Poll::new().unwrap();
        let (address, mailbox) = mailbox::<u32>(&poll, 1).unwrap();
        address.send(1).unwrap();
        assert!(matches!(address.send(2), Err(SendError::Full(2))));
        assert!(matches!(address.send_within(3, Duration::from_millis(1)), Err(SendError::Full(3))));
        drop(mailbox);
        assert!(matches!(address.send(4), Err(SendError::Closed(4))));
    }
}
