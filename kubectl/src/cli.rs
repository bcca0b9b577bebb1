//! The command line: global flags and, from each verb's module, its own.

use crate::cmd;
use clap::{Arg, ArgAction, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};

/// rkubectl controls a Kubernetes cluster.
#[derive(Parser, Debug)]
#[command(
    name = "rkubectl",
    version = env!("CARGO_PKG_VERSION"),
    disable_version_flag = true,
    disable_help_subcommand = true,
    infer_long_args = false,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    pub global: GlobalFlags,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags that every verb takes.
#[derive(Args, Clone, Debug, Default)]
pub struct GlobalFlags {
    /// Path to the kubeconfig file to use
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<String>,
    /// The name of the kubeconfig context to use
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// The name of the kubeconfig cluster to use
    #[arg(long, global = true, value_name = "NAME")]
    pub cluster: Option<String>,
    /// The name of the kubeconfig user to use
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// The namespace of this request
    #[arg(long, short = 'n', global = true, value_name = "NAME")]
    pub namespace: Option<String>,
    /// The address and port of the API server
    #[arg(long, short = 's', global = true, value_name = "URL")]
    pub server: Option<String>,
    /// Bearer token for authentication to the API server
    #[arg(long, global = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Path to a file with certificates of authorities
    #[arg(long, global = true, value_name = "FILE")]
    pub certificate_authority: Option<String>,
    /// Path to a client certificate file for TLS
    #[arg(long, global = true, value_name = "FILE")]
    pub client_certificate: Option<String>,
    /// Path to a client key file for TLS
    #[arg(long, global = true, value_name = "FILE")]
    pub client_key: Option<String>,
    /// The name that the server's certificate is checked against
    #[arg(long, global = true, value_name = "NAME")]
    pub tls_server_name: Option<String>,
    /// Do not check the server's certificate; this makes the connection insecure
    #[arg(long, global = true)]
    pub insecure_skip_tls_verify: bool,
    /// How long to wait for one request (1s, 2m); 0 waits for ever
    #[arg(long, global = true, value_name = "DURATION")]
    pub request_timeout: Option<String>,
    /// Log level: 6 shows requests, 8 their bodies
    #[arg(long = "v", short = 'v', global = true, value_name = "LEVEL", default_value_t = 0)]
    pub verbosity: u8,
    /// Username to impersonate
    #[arg(long = "as", global = true, value_name = "USER")]
    pub as_user: Option<String>,
    /// Group to impersonate; may be repeated
    #[arg(long = "as-group", global = true, value_name = "GROUP")]
    pub as_group: Vec<String>,
    /// Accepted for kubectl's sake: nothing is cached
    #[arg(long, global = true, value_name = "DIR", hide = true)]
    pub cache_dir: Option<String>,
}

/// kubectl's verbs.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Display one or many resources
    Get(cmd::get::GetArgs),
    /// Show details of a resource or a group of resources
    Describe(cmd::describe::DescribeArgs),
    /// Create a resource from a file or from stdin
    Create(cmd::create::CreateArgs),
    /// Apply a configuration to a resource by file name or stdin
    Apply(cmd::apply::ApplyArgs),
    /// Diff the live version against a would-be applied version
    Diff(cmd::diff::DiffArgs),
    /// Delete resources by file names, stdin, names, or by label selector
    Delete(cmd::delete::DeleteArgs),
    /// Edit a resource on the server
    Edit(cmd::edit::EditArgs),
    /// Replace a resource by file name or stdin
    Replace(cmd::replace::ReplaceArgs),
    /// Update fields of a resource
    Patch(cmd::patch::PatchArgs),
    /// Update the labels on a resource
    Label(cmd::label::LabelArgs),
    /// Update the annotations on a resource
    Annotate(cmd::label::AnnotateArgs),
    /// Set a new size for a deployment or replica set
    Scale(cmd::scale::ScaleArgs),
    /// Set specific features on objects
    Set(cmd::set::SetArgs),
    /// Manage the rollout of a resource
    Rollout(cmd::rollout::RolloutArgs),
    /// Print the logs of a container in a pod
    #[command(alias = "log")]
    Logs(cmd::logs::LogsArgs),
    /// Execute a command in a container
    Exec(cmd::exec::ExecArgs),
    /// Attach to a running container
    Attach(cmd::exec::AttachArgs),
    /// Forward one or more local ports to a pod
    PortForward(cmd::port_forward::PortForwardArgs),
    /// Copy files and folders to and from containers
    Cp(cmd::cp::CpArgs),
    /// Run a particular image on the cluster
    Run(cmd::run::RunArgs),
    /// Expose a resource as a new service
    Expose(cmd::expose::ExposeArgs),
    /// List events
    Events(cmd::events::EventsArgs),
    /// Get documentation for a resource
    Explain(cmd::explain::ExplainArgs),
    /// Print the supported resources on the server
    ApiResources(cmd::api::ApiResourcesArgs),
    /// Print the supported API versions on the server
    ApiVersions,
    /// Display addresses of the control plane
    ClusterInfo,
    /// Print the client and server version information
    Version(cmd::api::VersionArgs),
    /// Wait for a specific condition on one or many resources
    Wait(cmd::wait::WaitArgs),
    /// Mark node as unschedulable
    Cordon(cmd::drain::CordonArgs),
    /// Mark node as schedulable
    Uncordon(cmd::drain::CordonArgs),
    /// Drain node in preparation for maintenance
    Drain(cmd::drain::DrainArgs),
    /// Update the taints on one or more nodes
    Taint(cmd::taint::TaintArgs),
    /// Inspect authorization
    Auth(cmd::auth::AuthArgs),
    /// Modify kubeconfig files
    Config(cmd::config::ConfigArgs),
    /// Output shell completion code for the specified shell (bash, zsh, fish)
    Completion(cmd::completion::CompletionArgs),
    /// Print the list of flags inherited by all commands
    Options,
}

/// clap's description of the command line, with kubectl's habit that each switch also takes
/// `=true` and `=false`.
pub fn command() -> Command {
    fn switches_take_values(command: Command) -> Command {
        command
            .mut_args(|arg: Arg| match arg.get_action() {
                ArgAction::SetTrue => arg
                    .action(ArgAction::Set)
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_value("false")
                    .default_missing_value("true")
                    .hide_default_value(true)
                    .hide_possible_values(true)
                    .value_parser(clap::value_parser!(bool)),
                _ => arg,
            })
            .mut_subcommands(switches_take_values)
    }
    switches_take_values(Cli::command())
}

/// Reads a command line.
pub fn parse(args: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(args)?;
    Cli::from_arg_matches(&matches)
}

/// A refusal of the command line in kubectl's words; None for what clap itself prints well (help).
pub fn explain_refusal(error: &clap::Error, args: &[String]) -> Option<String> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(s)) => Some(s.clone()),
        Some(ContextValue::Strings(list)) => list.first().cloned(),
        _ => None,
    };
    let path = verb_path(args);
    let see = format!("See '{path} --help' for usage.");
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => None,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => None,
        ErrorKind::InvalidSubcommand => {
            let name = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            let near = suggestions(args, &name);
            let hint = match near.is_empty() {
                true => String::new(),
                false => format!("\n\nDid you mean this?\n\t{}", near.join("\n\t")),
            };
            Some(format!("error: unknown command {name:?} for {path:?}{hint}"))
        }
        ErrorKind::UnknownArgument => {
            let arg = context(ContextKind::InvalidArg).unwrap_or_default();
            let hint = context(ContextKind::SuggestedArg)
                .map(|s| format!("\nDid you mean {s}?"))
                .unwrap_or_default();
            Some(match arg.strip_prefix('-') {
                Some(rest) if !rest.starts_with('-') => {
                    format!("error: unknown shorthand flag: {rest:?} in {arg}\n{see}{hint}")
                }
                Some(_) => format!("error: unknown flag: {arg}\n{see}{hint}"),
                None => format!("error: unexpected argument {arg:?}\n{see}"),
            })
        }
        ErrorKind::MissingRequiredArgument => {
            let names = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(list)) => list.clone(),
                Some(ContextValue::String(s)) => vec![s.clone()],
                _ => Vec::new(),
            };
            let flags: Vec<String> = names
                .iter()
                .filter_map(|n| n.strip_prefix("--"))
                .map(|n| format!("{:?}", n.split([' ', '=']).next().unwrap_or(n)))
                .collect();
            Some(match flags.as_slice() {
                [] => format!("error: required argument {} not given\n{see}", names.join(", ")),
                _ => format!("error: required flag(s) {} not set", flags.join(", ")),
            })
        }
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or("").trim_start_matches("error: ");
            Some(format!("error: {first}\n{see}"))
        }
    }
}

/// The verbs that a mistyped one may stand for: two slips away, or longer.
fn suggestions(args: &[String], typed: &str) -> Vec<String> {
    let root = command();
    let here = args
        .iter()
        .skip(1)
        .filter(|a| *a != typed)
        .fold(&root, |here, arg| here.find_subcommand(arg).unwrap_or(here));
    let mut near: Vec<String> = here
        .get_subcommands()
        .map(|c| c.get_name().to_owned())
        .filter(|name| distance(name, typed) <= 2 || name.starts_with(typed))
        .collect();
    near.sort();
    near
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut above_left = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = above_left + usize::from(x != *y);
            above_left = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

/// `rkubectl rollout status`: the names of the verbs on a command line.
fn verb_path(args: &[String]) -> String {
    let root = command();
    let mut here = &root;
    let mut path = String::from("rkubectl");
    for arg in args.iter().skip(1) {
        if let Some(found) = here.find_subcommand(arg) {
            path.push(' ');
            path.push_str(found.get_name());
            here = found;
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(line: &str) -> String {
        let args: Vec<String> = line.split(' ').map(Into::into).collect();
        let error = parse(args.iter().map(Into::into)).unwrap_err();
        explain_refusal(&error, &args).unwrap_or_default()
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn refusals_read_like_kubectls() {
        assert_eq!(
            refusal("rkubectl nonsense"),
            "error: unknown command \"nonsense\" for \"rkubectl\""
        );
        assert_eq!(
            refusal("rkubectl gte"),
            "error: unknown command \"gte\" for \"rkubectl\"\n\nDid you mean this?\n\tget"
        );
        assert_eq!(
            refusal("rkubectl get --nope"),
            "error: unknown flag: --nope\nSee 'rkubectl get --help' for usage."
        );
        assert_eq!(refusal("rkubectl run x"), "error: required flag(s) \"image\" not set");
    }

    #[test]
    fn switches_take_values() {
        let cli =
            parse(["rkubectl", "delete", "pod", "x", "--wait=false"].map(Into::into)).unwrap();
        let Verb::Delete(args) = cli.verb else { panic!() };
        assert!(!args.wait());
        let cli =
            parse(["rkubectl", "exec", "-it", "x", "-n", "a", "--", "sh", "-c"].map(Into::into))
                .unwrap();
        let Verb::Exec(args) = cli.verb else { panic!() };
        assert!(args.stdin && args.tty);
        assert_eq!(args.command, ["sh", "-c"]);
        assert_eq!(cli.global.namespace.as_deref(), Some("a"));
    }
}
