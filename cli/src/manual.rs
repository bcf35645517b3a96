//! `loadtest completions` and `loadtest man`: what the command line says about itself.

use std::io::Write;

use clap::CommandFactory;

use crate::{
    arguments::{Arguments, CompletionsArguments},
    exit::Exit,
};

/// Prints a script that completes commands and options in a shell.
pub(crate) fn print_completions(
    arguments: &CompletionsArguments,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "loadtest", &mut script);
    out.write_all(&script)?;
    Ok(Exit::Passed)
}

/// Prints the manual page of the command, and one of each sub-command after it.
pub(crate) fn print_manual(out: &mut impl Write) -> anyhow::Result<Exit> {
    let mut command = Arguments::command().name("loadtest");
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for part in command.get_subcommands().filter(|part| part.get_name() != "help") {
        clap_mangen::Man::new(part.clone()).render(&mut page)?;
    }
    out.write_all(&page)?;
    Ok(Exit::Passed)
}
