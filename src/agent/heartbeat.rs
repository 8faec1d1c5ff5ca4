//! Check-ins while the permitted command runs, on a thread of their own.
//!
//! A permission was given before the command started; a daemon that goes away later takes nothing back here, since
//! what the command may reach is enforced outside the container. So a failed heartbeat is said once on stderr, and
//! its end too.

use std::time::Duration;

use super::{Session, say};

/// Between two check-ins: a restarted daemon knows the session again within this time.
const EVERY: Duration = Duration::from_secs(10);

/// Starts the heartbeat. It ends with the process.
pub fn start(session: Session) {
    let beat = move || {
        let mut lost = false;
        loop {
            std::thread::sleep(EVERY);
            match session.check_in() {
                Ok(()) if lost => {
                    say("outcall: outcalld answers again");
                    lost = false;
                }
                Ok(()) => {}
                Err(error) if !lost => {
                    say(&format!("outcall: outcalld is away while the command runs: {error}"));
                    lost = true;
                }
                Err(_) => {}
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("heartbeat".to_owned()).spawn(beat) {
        say(&format!("outcall: no heartbeat while the command runs: {error}"));
    }
}
