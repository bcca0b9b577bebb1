//! rkubectl: kubectl's verbs, flags and output for rkube and any Kubernetes cluster.
//!
//! A run is: parse the command line ([`cli`]), turn arguments and files into objects
//! ([`resource`], [`manifest`]), talk to the server ([`client`]), print ([`printers`]). Objects stay
//! `serde_json::Value` all the way, so nothing that this program doesn't know is lost.

pub mod cli;
pub mod client;
mod cmd;
pub mod context;
mod describe;
mod discovery;
mod duration;
pub mod error;
pub mod io;
mod kubeconfig;
mod manifest;
mod pods;
mod printers;
mod resource;
mod spdy;
mod stream;
mod tar;
mod terminal;
mod threeway;
mod ways;

use context::Context;
use io::Io;
use std::ffi::OsString;

/// Runs a command line with the process's streams and gives the exit code.
pub async fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    let io = Io::process();
    match parse(&args, &io) {
        Ok(cli) => {
            let context = Context::new(cli.global.clone(), io);
            run(&context, cli.verb).await
        }
        Err(code) => code,
    }
}

/// Reads a command line; what is wrong with it, or the help it asks for, is printed already.
pub fn parse(args: &[OsString], io: &Io) -> Result<cli::Cli, u8> {
    cli::parse(args.iter().cloned()).map_err(|e| {
        let texts: Vec<String> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
        match cli::explain_refusal(&e, &texts) {
            Some(text) => {
                io.note(text);
                1
            }
            // Help goes to stdout; it is a failure where a verb of verbs stands alone.
            None => {
                io.print(e.to_string());
                u8::from(e.use_stderr() && args.len() > 1)
            }
        }
    })
}

/// Runs a verb, prints its failure, gives the exit code.
pub async fn run(context: &Context, verb: cli::Verb) -> u8 {
    match cmd::run(context, verb).await {
        Ok(()) => 0,
        Err(e) => {
            if !matches!(e, error::Error::Exit(_)) {
                context.io.note(e.to_string());
            }
            e.code()
        }
    }
}
