//! A bounded channel whose sends wake the receiver's mio loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::MAILBOX;

/// The sending side: cheap to clone, usable from any thread.
pub struct Address<T> {
    // Boxed: the channel holds its whole room from the start, and most mailboxes never fill.
    sender: Sender<Box<T>>,
    bell: Arc<Bell>,
}

/// What wakes the receiver: one system call for all that is sent before it looks.
struct Bell {
    waker: mio::Waker,
    /// Set until the mailbox was found empty after it rang.
    rung: AtomicBool,
}

/// The receiving side, owned by one loop. After a `MAILBOX` event, drain it with [`Mailbox::take`] until `None`.
pub struct Mailbox<T> {
    receiver: Receiver<Box<T>>,
    /// Held also so that the wake-up of a last message survives its sender: closing an eventfd takes its event away.
    bell: Arc<Bell>,
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
    let bell = Arc::new(Bell { waker: mio::Waker::new(poll.registry(), MAILBOX)?, rung: AtomicBool::new(false) });
    let (sender, receiver) = crossbeam_channel::bounded(capacity);
    Ok((Address { sender, bell: Arc::clone(&bell) }, Mailbox { receiver, bell }))
}

impl<T> Address<T> {
    /// Delivers without waiting. Use this from every loop.
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        let sent = match self.sender.try_send(Box::new(message)) {
            Ok(()) => Ok(()),
            Err(crossbeam_channel::TrySendError::Full(message)) => Err(SendError::Full(*message)),
            Err(crossbeam_channel::TrySendError::Disconnected(message)) => return Err(SendError::Closed(*message)),
        };
        // A full mailbox is woken too: its owner may have missed nothing, but it must get on with it.
        self.bell.ring();
        sent
    }

    /// Delivers, waiting at most `limit` for room. Only for threads that may block (control, Docker, rules).
    pub fn send_within(&self, message: T, limit: Duration) -> Result<(), SendError<T>> {
        let sent = self.sender.send_timeout(Box::new(message), limit).map_err(|error| match error {
            crossbeam_channel::SendTimeoutError::Timeout(message) => SendError::Full(*message),
            crossbeam_channel::SendTimeoutError::Disconnected(message) => SendError::Closed(*message),
        });
        self.bell.ring();
        sent
    }
}

impl Bell {
    /// After a message was put in.
    fn ring(&self) {
        // Either the message is in the channel before the receiver looks, or the bell is found silent here.
        fence(Ordering::SeqCst);
        if !self.rung.swap(true, Ordering::SeqCst) {
            // Fails only when the eventfd is gone with its loop; then the channel is closed too and `send` said so.
            let _ = self.waker.wake();
        }
    }

    /// Before a last look.
    fn silence(&self) {
        self.rung.store(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }
}

impl<T> Clone for Address<T> {
    fn clone(&self) -> Self {
        Address { sender: self.sender.clone(), bell: Arc::clone(&self.bell) }
    }
}

impl<T> Mailbox<T> {
    /// The next message, or `None` when the mailbox is empty or all senders are gone.
    #[must_use]
    pub fn take(&self) -> Option<T> {
        let message = self.receiver.try_recv().or_else(|_| {
            self.bell.silence();
            self.receiver.try_recv()
        });
        message.ok().map(|message| *message)
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
    fn every_message_of_a_receiver_that_sleeps_between_is_heard() {
        const MESSAGES: u32 = 20_000;
        let mut poll = mio::Poll::new().unwrap();
        let (address, mailbox) = mailbox::<u32>(&poll, 8).unwrap();
        let sending = std::thread::spawn(move || {
            (0..MESSAGES).for_each(|message| address.send_within(message, Duration::from_secs(10)).unwrap());
        });
        let mut events = mio::Events::with_capacity(4);
        let mut heard = 0;
        while heard < MESSAGES {
            poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
            assert!(!events.is_empty(), "nobody woke the receiver after message {heard}");
            while let Some(message) = mailbox.take() {
                assert_eq!(message, heard);
                heard += 1;
            }
        }
        sending.join().unwrap();
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
