//! One-shot replies: a command carries the way back to whoever asked.
//!
//! A loop that asks gives a closure that posts into its own mailbox; a thread that may block uses [`reply_channel`].
//! A reply that is dropped unsent (its owner died or refused the command) is seen by a blocked asker as a closed
//! channel, and by a loop as its own deadline.

use crossbeam_channel::Receiver;

/// The way back for one answer.
pub struct Reply<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Reply<T> {
    /// A reply that runs `deliver` on the answering thread; it must not block.
    pub fn new(deliver: impl FnOnce(T) + Send + 'static) -> Self {
        Reply(Box::new(deliver))
    }

    /// A reply that nobody waits for.
    #[must_use]
    pub fn nobody() -> Self {
        Reply::new(|_| ())
    }

    /// Answers.
    pub fn send(self, answer: T) {
        (self.0)(answer);
    }
}

impl<T> std::fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply")
    }
}

/// A reply that a blocking thread can wait for with `recv_timeout`.
#[must_use]
pub fn reply_channel<T: Send + 'static>() -> (Reply<T>, Receiver<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let reply = Reply::new(move |answer| {
        // The asker may have given up already; the answer is then nobody's.
        let _ = sender.send(answer);
    });
    (reply, receiver)
}
