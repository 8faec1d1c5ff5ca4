//! The host daemon.

fn main() {
    // Before anything else: the child that vets rules must hold nothing of the daemon.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == outcall::rule_engine::GUARDED_ARGUMENT) {
        outcall::rule_engine::guarded_child_main();
    }
}
