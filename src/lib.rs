//! The `rkube` binary as a library: it reads the command line and wires the parts together.

mod agent;
mod cli;
mod client;
mod config_file;
mod containerd;
mod hollow;
mod join;
mod member;
mod member_join;
mod node_init;
mod node_network;
mod pause;
mod peers;
mod recover;
mod server;
mod servers;
mod shutdown;
mod snapshot;
mod up;

use anyhow::{Context, Result};
use clap::{CommandFactory, FromArgMatches};
use cli::{Cli, Command, LogFormat, TokenCommand};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Runs what the command line says; an error is told on standard error.
pub fn main() -> ExitCode {
    match try_main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rkube: {}", rkube_kubectl::client::chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn try_main() -> Result<()> {
    let args = config_file::expand(std::env::args_os().collect())?;
    let cli = match Cli::command().try_get_matches_from(args) {
        Ok(matches) => Cli::from_arg_matches(&matches)?,
        Err(error) => error.exit(),
    };
    if let Command::NodeInit(args) = &cli.command {
        return node_init::run(args);
    }
    start_logging(&cli.log, cli.log_format)?;
    // The only provider in the whole graph, said once: without it the first handshake panics.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let single = matches!(
        cli.command,
        Command::Up(_)
            | Command::Token(_)
            | Command::Member(_)
            | Command::Snapshot(_)
            | Command::Node(_)
            | Command::Hollow(_)
    );
    let mut builder = match single {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.enable_all().build().context("starting the async runtime")?;
    runtime.block_on(dispatch(cli))
}

async fn dispatch(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Up(args) => up::run(args).await,
        Command::Server(args) => server::run(args).await,
        Command::Agent(args) => agent::run(args).await,
        Command::Token(TokenCommand::Create(args)) => {
            let kubeconfig = args.data.data_dir.join("admin.kubeconfig");
            let client = client::from_kubeconfig(&kubeconfig).await?;
            println!("{}", client::create_token(&client, args.role).await?);
            Ok(())
        }
        Command::Member(command) => member::run(command).await,
        Command::Snapshot(command) => snapshot::run(command).await,
        Command::Node(command) => up::node_command(command).await,
        Command::Hollow(args) => hollow::run(args).await,
        Command::NodeInit(args) => node_init::run(&args),
    }
}

fn start_logging(filter: &str, format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter:?}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
