//! The shim in containers.

fn main() -> std::process::ExitCode {
    outcall::agent::main(std::env::args_os().skip(1))
}
