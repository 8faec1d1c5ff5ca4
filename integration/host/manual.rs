//! Writes the man pages and shell completions of the package, from the definitions that the programs parse with.
//!
//! `cargo run --example manual -- DIR` fills `DIR/man` and `DIR/completions`. An example, so that no shipped program
//! carries the generators. `outcall-agent` takes its words by hand and has its page written by hand, beside this file.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;

/// File name of a program's completions as each shell looks for it.
fn completion_file(shell: Shell, program: &str) -> String {
    match shell {
        Shell::Zsh => format!("_{program}"),
        Shell::Fish => format!("{program}.fish"),
        _ => program.to_owned(),
    }
}

fn write_pages(command: &Command, section: &str, directory: &Path) -> Result<(), Box<dyn Error>> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    // The long name of a subcommand, `outcall rules list`, is also its title.
    let page = clap_mangen::Man::new(command.clone()).section(section).title(name.to_uppercase());
    let mut text = Vec::new();
    page.render(&mut text)?;
    fs::write(directory.join(format!("{name}.{section}")), text)?;
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        write_pages(subcommand, section, directory)?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args_os().nth(1).map(PathBuf::from).ok_or("usage: manual DIR")?;
    let programs = [outcall::cli::Arguments::command(), outcall::daemon::Flags::command()];
    let pages = target.join("man");
    fs::create_dir_all(&pages)?;
    for mut program in programs {
        // Gives every subcommand its display name and the global flags.
        program.build();
        write_pages(&program, "1", &pages)?;
        let name = program.get_name().to_owned();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let directory = target.join("completions").join(shell.to_string());
            fs::create_dir_all(&directory)?;
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut program, name.as_str(), &mut text);
            fs::write(directory.join(completion_file(shell, &name)), text)?;
        }
    }
    Ok(())
}
