//! The verbs, one module each, and what they share.

pub mod api;
pub mod apply;
pub mod auth;
pub mod completion;
pub mod config;
pub mod cp;
pub mod create;
pub mod delete;
pub mod describe;
pub mod diff;
pub mod drain;
pub mod edit;
pub mod events;
pub mod exec;
pub mod explain;
pub mod expose;
pub mod get;
pub mod label;
pub mod logs;
pub mod patch;
pub mod port_forward;
pub mod replace;
pub mod rollout;
pub mod run;
pub mod scale;
pub mod set;
pub mod taint;
pub mod wait;

use crate::cli::Verb;
use crate::client::query;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::printers::OutputFlags;
use crate::resource::Info;
use serde_json::Value;

/// Does what the verb says.
pub async fn run(ctx: &Context, verb: Verb) -> Result<()> {
    match verb {
        Verb::Get(args) => get::run(ctx, &args).await,
        Verb::Describe(args) => describe::run(ctx, &args).await,
        Verb::Create(args) => create::run(ctx, &args).await,
        Verb::Apply(args) => apply::run(ctx, &args).await,
        Verb::Diff(args) => diff::run(ctx, &args).await,
        Verb::Delete(args) => delete::run(ctx, &args).await,
        Verb::Edit(args) => edit::run(ctx, &args).await,
        Verb::Replace(args) => replace::run(ctx, &args).await,
        Verb::Patch(args) => patch::run(ctx, &args).await,
        Verb::Label(args) => label::label(ctx, &args).await,
        Verb::Annotate(args) => label::annotate(ctx, &args).await,
        Verb::Scale(args) => scale::run(ctx, &args).await,
        Verb::Set(args) => set::run(ctx, &args).await,
        Verb::Rollout(args) => rollout::run(ctx, &args).await,
        Verb::Logs(args) => logs::run(ctx, &args).await,
        Verb::Exec(args) => exec::exec(ctx, &args).await,
        Verb::Attach(args) => exec::attach(ctx, &args).await,
        Verb::PortForward(args) => port_forward::run(ctx, &args).await,
        Verb::Cp(args) => cp::run(ctx, &args).await,
        Verb::Run(args) => run::run(ctx, &args).await,
        Verb::Expose(args) => expose::run(ctx, &args).await,
        Verb::Events(args) => events::run(ctx, &args).await,
        Verb::Explain(args) => explain::run(ctx, &args).await,
        Verb::ApiResources(args) => api::resources(ctx, &args).await,
        Verb::ApiVersions => api::versions(ctx).await,
        Verb::ClusterInfo => api::cluster_info(ctx).await,
        Verb::Version(args) => api::version(ctx, &args).await,
        Verb::Wait(args) => wait::run(ctx, &args).await,
        Verb::Cordon(args) => drain::cordon(ctx, &args, true).await,
        Verb::Uncordon(args) => drain::cordon(ctx, &args, false).await,
        Verb::Drain(args) => drain::drain(ctx, &args).await,
        Verb::Taint(args) => taint::run(ctx, &args).await,
        Verb::Auth(args) => auth::run(ctx, &args).await,
        Verb::Config(args) => config::run(ctx, &args).await,
        Verb::Completion(args) => completion::run(ctx, &args),
        Verb::Options => completion::options(ctx),
    }
}

/// Whether a change is made, and where it is only tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DryRun {
    /// The change is made.
    #[default]
    None,
    /// Nothing is sent that changes something.
    Client,
    /// The server does all but store it.
    Server,
}

/// The flags of verbs that change something.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ChangeFlags {
    /// Only try it: here (client) or with all of the server's checks (server)
    #[arg(long, value_name = "WHERE", num_args = 0..=1, require_equals = true, default_value = "none", default_missing_value = "client")]
    pub dry_run: DryRun,
    /// The name that the changed fields are tracked under
    #[arg(long, value_name = "NAME")]
    pub field_manager: Option<String>,
    #[command(flatten)]
    pub output: OutputFlags,
}

impl ChangeFlags {
    /// The query of a write.
    pub fn query(&self, manager: &str) -> Vec<(&'static str, String)> {
        let manager = self.field_manager.as_deref().unwrap_or(manager);
        let mut pairs = vec![("fieldManager", manager.to_owned())];
        if self.dry_run == DryRun::Server {
            pairs.push(("dryRun", "All".into()));
        }
        pairs
    }

    /// The query of a write, as text.
    pub fn query_text(&self, manager: &str) -> String {
        query(&self.query(manager))
    }

    /// Prints what was done, or the object if `-o` asks for it.
    pub fn report(&self, ctx: &Context, info: &Info, object: &Value, done: &str) -> Result<()> {
        let format = self.output.format(true)?;
        let object = self.output.shown(object.clone());
        match format.render(&object, &info.shown())? {
            Some(text) => ctx.io.print(text),
            None => ctx.io.line(format!("{} {done}{}", info.shown(), self.suffix())),
        }
        Ok(())
    }

    /// ` (dry run)`, ` (server dry run)` or nothing.
    pub fn suffix(&self) -> &'static str {
        match self.dry_run {
            DryRun::None => "",
            DryRun::Client => " (dry run)",
            DryRun::Server => " (server dry run)",
        }
    }
}

/// How strictly unknown fields are taken.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ValidateFlag {
    /// What to do about unknown or doubled fields: strict (or true), warn, ignore (or false)
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_value = "strict", default_missing_value = "strict")]
    validate: String,
}

impl ValidateFlag {
    /// The pair for a write's query.
    pub fn pair(&self) -> Result<(&'static str, String)> {
        let value = match self.validate.as_str() {
            "strict" | "true" => "Strict",
            "warn" => "Warn",
            "ignore" | "false" => "Ignore",
            other => {
                return Err(Error::msg(format!(
                    "invalid - validate option {other:?}; must be one of: strict (or true), warn, ignore (or false)"
                )));
            }
        };
        Ok(("fieldValidation", value.into()))
    }
}

/// Adds to a refusal where in the manifest each blamed field stands.
pub fn with_places(e: Error, info: &Info) -> Error {
    let (Some(manifest), Some(status)) = (&info.manifest, e.status()) else { return e };
    let mut lines: Vec<String> = Vec::new();
    for (field, text) in &status.causes {
        let place = manifest.place(field).filter(|_| !field.is_empty());
        lines.extend(place.map(|p| format!("{p}: {field}: {text}")));
    }
    for (what, field) in blamed_fields(&status.message) {
        lines.extend(manifest.place(field).map(|p| format!("{p}: {what} field {field:?}")));
    }
    if let Some((kind, field)) = mistyped_field(&status.message) {
        let place = manifest.place_of_mistyped(field, kind);
        lines.extend(
            place.map(|(p, path)| format!("{p}: {path}: a {kind} is not what belongs here")),
        );
    }
    lines.dedup();
    if lines.is_empty() {
        return e;
    }
    Error::Plain(format!("{e}\n{}", lines.join("\n")))
}

/// The fields of `unknown field "spec.x"` and `duplicate field "spec.y"`.
fn blamed_fields(message: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for what in ["unknown", "duplicate"] {
        let mark = format!("{what} field \"");
        for (at, _) in message.match_indices(&mark) {
            let rest = &message[at + mark.len()..];
            if let Some((field, _)) = rest.split_once('"') {
                found.push((&message[at..at + what.len()], field));
            }
        }
    }
    found
}

/// The kind of value and the path in `cannot unmarshal string into Go struct field
/// DeploymentSpec.spec.replicas of type int32`.
fn mistyped_field(message: &str) -> Option<(&str, &str)> {
    let (_, rest) = message.split_once("cannot unmarshal ")?;
    let (kind, rest) = rest.split_once(" into Go struct field ")?;
    let (path, _) = rest.split_once(" of type ")?;
    Some((kind, path.split_once('.')?.1))
}

/// The map at a path of keys, made where it is missing.
pub fn entry<'a>(object: &'a mut Value, path: &[&str]) -> &'a mut Value {
    path.iter().fold(object, |here, key| {
        if !here.is_object() {
            *here = Value::Object(Default::default());
        }
        &mut here[*key]
    })
}

/// `key=value` at the first `=`.
pub fn key_value(text: &str) -> Option<(&str, &str)> {
    text.split_once('=').filter(|(k, _)| !k.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistyped_fields_are_found() {
        let text = "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32";
        assert_eq!(mistyped_field(text), Some(("string", "spec.replicas")));
        let text = "apiVersion: apps/v1\nkind: Deployment\nspec:\n  a:\n  - x: 1\n  - x: two\n";
        let manifest = crate::manifest::parse("d.yaml", text).unwrap().remove(0);
        let found = manifest.place_of_mistyped("spec.a.x", "string");
        assert_eq!(found, Some(("d.yaml:6:5".to_owned(), "spec.a[1].x".to_owned())));
    }

    #[test]
    fn blamed_fields_are_found() {
        let message = "strict decoding error: unknown field \"spec.a\", unknown field \"spec.b[0].c\", duplicate field \"x\"";
        let fields: Vec<_> = blamed_fields(message);
        assert_eq!(fields, [("unknown", "spec.a"), ("unknown", "spec.b[0].c"), ("duplicate", "x")]);
    }
}
