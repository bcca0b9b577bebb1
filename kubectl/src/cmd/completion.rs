//! `completion` and `options`

use crate::cli;
use crate::context::Context;
use crate::error::{Error, Result};
use clap_complete::Shell;

/// Output shell completion code.
#[derive(clap::Args, Debug)]
pub struct CompletionArgs {
    /// bash, zsh or fish
    shell: Option<String>,
}

pub fn run(ctx: &Context, args: &CompletionArgs) -> Result<()> {
    let shell = match args.shell.as_deref() {
        None => {
            return Err(Error::Plain(
                "error: Shell not specified.\nSee 'rkubectl completion -h' for help and examples"
                    .into(),
            ));
        }
        Some("bash") => Shell::Bash,
        Some("zsh") => Shell::Zsh,
        Some("fish") => Shell::Fish,
        Some(other) => {
            return Err(Error::Plain(format!(
                "error: Unsupported shell type {other:?}.\nSee 'rkubectl completion -h' for help and examples"
            )));
        }
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "rkubectl", &mut script);
    ctx.io.print(script);
    Ok(())
}

pub fn options(ctx: &Context) -> Result<()> {
    ctx.io.line("The following options can be passed to any command:\n");
    for arg in cli::command().get_arguments().filter(|a| a.is_global_set() && !a.is_hide_set()) {
        let short = arg.get_short().map_or("    ".to_owned(), |c| format!("-{c}, "));
        let long = arg.get_long().unwrap_or("");
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        ctx.io.line(format!("    {short}--{long}:\n\t{help}\n"));
    }
    Ok(())
}
