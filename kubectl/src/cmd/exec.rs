//! `exec` and `attach`

use crate::context::Context;
use crate::error::{Error, Result};
use crate::pods;
use crate::resource::Info;
use crate::stream::{self, Streams};

/// Execute a command in a container.
#[derive(clap::Args, Debug)]
pub struct ExecArgs {
    /// POD or TYPE/NAME
    target: Vec<String>,
    /// The command
    #[arg(last = true)]
    pub command: Vec<String>,
    /// The container
    #[arg(long, short = 'c')]
    container: Option<String>,
    /// Pass stdin on
    #[arg(long, short = 'i')]
    pub stdin: bool,
    /// With a terminal
    #[arg(long, short = 't')]
    pub tty: bool,
    /// Print only what the command prints
    #[arg(long, short = 'q')]
    quiet: bool,
}

/// Attach to a running container.
#[derive(clap::Args, Debug)]
pub struct AttachArgs {
    /// POD or TYPE/NAME
    target: String,
    /// The container
    #[arg(long, short = 'c')]
    container: Option<String>,
    /// Pass stdin on
    #[arg(long, short = 'i')]
    stdin: bool,
    /// With a terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// Print only what the process prints
    #[arg(long, short = 'q')]
    quiet: bool,
}

pub async fn exec(ctx: &Context, args: &ExecArgs) -> Result<()> {
    let Some(target) = args.target.first() else {
        return Err(Error::msg("pod, type/name or --filename must be specified"));
    };
    if args.target.len() > 1 {
        return Err(Error::Plain("error: exec [POD] [COMMAND] is not supported anymore. Use exec [POD] -- [COMMAND] instead\nSee 'rkubectl exec -h' for help and examples".into()));
    }
    if args.command.is_empty() {
        return Err(Error::msg("you must specify at least one command for the container"));
    }
    let pod = pods::behind(ctx, target).await?.remove(0);
    check_phase(&pod, "exec into a container in")?;
    let container = pods::container(ctx, &pod, args.container.as_deref(), args.quiet)?;
    let streams = Streams {
        container,
        stdin: args.stdin,
        tty: tty(ctx, args.tty, args.stdin),
        quiet: args.quiet,
    };
    let process = stream::start(ctx, &pod, Some(&args.command), &streams).await?;
    stream::join(ctx, process, &streams).await
}

pub async fn attach(ctx: &Context, args: &AttachArgs) -> Result<()> {
    let pod = pods::behind(ctx, &args.target).await?.remove(0);
    check_phase(&pod, "attach a container in")?;
    let container = pods::container(ctx, &pod, args.container.as_deref(), args.quiet)?;
    let streams = Streams {
        container,
        stdin: args.stdin,
        tty: tty(ctx, args.tty, args.stdin),
        quiet: args.quiet,
    };
    attach_to(ctx, &pod, &streams).await
}

/// Attaches to a running pod's container until it ends.
pub async fn attach_to(ctx: &Context, pod: &Info, streams: &Streams) -> Result<()> {
    if streams.stdin && !streams.quiet {
        ctx.io.note("If you don't see a command prompt, try pressing enter.");
    }
    let process = stream::start(ctx, pod, None, streams).await?;
    stream::join(ctx, process, streams).await
}

/// A completed pod has no process to join, whatever is done to it.
pub fn check_phase(pod: &Info, doing: &str) -> Result<()> {
    match pod.object["status"]["phase"].as_str() {
        Some(phase @ ("Succeeded" | "Failed")) => {
            Err(Error::msg(format!("cannot {doing} a completed pod; current phase is {phase}")))
        }
        _ => Ok(()),
    }
}

fn tty(ctx: &Context, wanted: bool, stdin: bool) -> bool {
    if wanted && stdin && !ctx.io.stdin_is_terminal {
        ctx.io.note("Unable to use a TTY - input is not a terminal or the right kind of file");
        return false;
    }
    wanted
}
