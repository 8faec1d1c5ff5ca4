//! An owner of state, played by a thread.

use std::thread::JoinHandle;

use outcall::event_loop::{Address, mailbox};

/// `answer` gets each command, and gives `true` to end.
pub fn owner<C: Send + 'static>(mut answer: impl FnMut(C) -> bool + Send + 'static) -> (Address<C>, JoinHandle<()>) {
    let mut poll = mio::Poll::new().unwrap();
    let (address, inbox) = mailbox(&poll, 64).unwrap();
    let thread = std::thread::spawn(move || {
        let mut events = mio::Events::with_capacity(4);
        loop {
            poll.poll(&mut events, None).unwrap();
            while let Some(command) = inbox.take() {
                if answer(command) {
                    return;
                }
            }
        }
    });
    (address, thread)
}
