//! `unirl completions` and `unirl man`.

use unirl::error::{Context, Result, unknown_name};

use crate::args::{self, CompletionsArgs, ManArgs};
use crate::io;

pub(crate) fn completions(args: CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "unirl", &mut script);
    io::print(&String::from_utf8_lossy(&script))
}

pub(crate) fn man(args: &ManArgs) -> Result<()> {
    let mut command = args::command();
    command.build(); // sets the name of the page of `reward score` to `unirl-reward-score`
    for name in &args.command {
        let known: Vec<&str> = command
            .get_subcommands()
            .filter(|subcommand| !subcommand.is_hide_set())
            .map(clap::Command::get_name)
            .collect();
        let found = command.find_subcommand(name).cloned();
        command = found.ok_or_else(|| unknown_name("command", name, &known))?;
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).context(|| "cannot write the manual page")?;
    io::print(&String::from_utf8_lossy(&page))
}
