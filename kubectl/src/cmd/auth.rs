//! `auth can-i`, `auth whoami`

use crate::context::Context;
use crate::describe::{list, text};
use crate::error::{Error, Result};
use crate::printers::tabwriter::{TABLE, align};
use crate::printers::{Format, OutputFlags};
use serde_json::{Value, json};

/// Inspect authorization.
#[derive(clap::Args, Debug)]
pub struct AuthArgs {
    #[command(subcommand)]
    sub: Sub,
}

#[derive(clap::Subcommand, Debug)]
enum Sub {
    /// Check whether an action is allowed
    CanI {
        /// VERB TYPE[/NAME] [NAME], or VERB /PATH
        args: Vec<String>,
        /// In all namespaces
        #[arg(long, short = 'A')]
        all_namespaces: bool,
        /// Say nothing, only exit with 0 or 1
        #[arg(long, short = 'q')]
        quiet: bool,
        /// A subresource
        #[arg(long, default_value = "", hide_default_value = true)]
        subresource: String,
        /// Show all that is allowed
        #[arg(long)]
        list: bool,
        /// No headings
        #[arg(long)]
        no_headers: bool,
    },
    /// Show who the server takes us for
    Whoami {
        #[command(flatten)]
        output: OutputFlags,
    },
}

pub async fn run(ctx: &Context, args: &AuthArgs) -> Result<()> {
    match &args.sub {
        Sub::CanI { list: true, no_headers, .. } => rules(ctx, *no_headers).await,
        Sub::CanI { args, all_namespaces, quiet, subresource, .. } => {
            can_i(ctx, args, *all_namespaces, *quiet, subresource).await
        }
        Sub::Whoami { output } => whoami(ctx, output).await,
    }
}

async fn can_i(
    ctx: &Context,
    args: &[String],
    all: bool,
    quiet: bool,
    subresource: &str,
) -> Result<()> {
    let (verb, what, name) = match args {
        [verb, what] => (verb, what, None),
        [verb, what, name] => (verb, what, Some(name.as_str())),
        _ => {
            return Err(Error::Plain("error: you must specify two arguments: verb resource or verb resource/resourceName.\nSee 'rkubectl auth can-i -h' for help and examples.".into()));
        }
    };
    let spec = if what.starts_with('/') {
        json!({"nonResourceAttributes": {"verb": verb, "path": what}})
    } else {
        let namespace = if all { String::new() } else { ctx.namespace().await? };
        resource_attributes(ctx, verb, what, name, subresource, &namespace).await?
    };
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": spec});
    let answer = ctx
        .http()
        .await?
        .post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review)
        .await?;
    let status = &answer["status"];
    let allowed = status["allowed"] == true;
    if !quiet {
        let mut line = if allowed { "yes" } else { "no" }.to_owned();
        if !text(&status["reason"]).is_empty() {
            line.push_str(&format!(" - {}", text(&status["reason"])));
        }
        if !text(&status["evaluationError"]).is_empty() {
            line.push_str(&format!(" - {}", text(&status["evaluationError"])));
        }
        ctx.io.line(line);
    }
    if allowed { Ok(()) } else { Err(Error::Exit(1)) }
}

async fn resource_attributes(
    ctx: &Context,
    verb: &str,
    what: &str,
    name: Option<&str>,
    subresource: &str,
    namespace: &str,
) -> Result<Value> {
    let (typed, inline) = what.split_once('/').map_or((what, None), |(t, n)| (t, Some(n)));
    let (group, plural) = match typed {
        "*" => ("*".to_owned(), "*".to_owned()),
        _ => match ctx.resource(typed).await {
            Ok(r) => (r.group, r.plural),
            Err(Error::Message(_)) => {
                ctx.io
                    .note(format!("Warning: the server doesn't have a resource type '{typed}'\n"));
                let (plural, group) = typed.split_once('.').unwrap_or((typed, ""));
                (group.to_owned(), plural.to_owned())
            }
            Err(other) => return Err(other),
        },
    };
    let mut attributes =
        json!({"verb": verb, "group": group, "resource": plural, "namespace": namespace});
    if let Some(name) = name.or(inline) {
        attributes["name"] = name.into();
    }
    if !subresource.is_empty() {
        attributes["subresource"] = subresource.into();
    }
    Ok(json!({"resourceAttributes": attributes}))
}

async fn rules(ctx: &Context, no_headers: bool) -> Result<()> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": ctx.namespace().await?},
    });
    let answer = ctx
        .http()
        .await?
        .post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &review)
        .await?;
    let bracketed =
        |v: &Value| format!("[{}]", list(v).iter().map(text).collect::<Vec<_>>().join(" "));
    let mut table = String::new();
    if !no_headers {
        table.push_str("Resources\tNon-Resource URLs\tResource Names\tVerbs\n");
    }
    let mut rows = Vec::new();
    for rule in list(&answer["status"]["resourceRules"]) {
        for group in list(&rule["apiGroups"]) {
            for resource in list(&rule["resources"]) {
                let name = match text(group) {
                    "" => text(resource).to_owned(),
                    group => format!("{}.{group}", text(resource)),
                };
                rows.push(format!(
                    "{name}\t[]\t{}\t{}\n",
                    bracketed(&rule["resourceNames"]),
                    bracketed(&rule["verbs"])
                ));
            }
        }
    }
    for rule in list(&answer["status"]["nonResourceRules"]) {
        for url in list(&rule["nonResourceURLs"]) {
            rows.push(format!("\t[{}]\t[]\t{}\n", text(url), bracketed(&rule["verbs"])));
        }
    }
    table.push_str(&rows.concat());
    ctx.io.print(align(&table, TABLE));
    Ok(())
}

async fn whoami(ctx: &Context, output: &OutputFlags) -> Result<()> {
    let format = output.format(true)?;
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = ctx
        .http()
        .await?
        .post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &review)
        .await?;
    if !matches!(format, Format::Human { .. }) {
        ctx.io.print(
            format.render(&answer, "selfsubjectreview.authentication.k8s.io/")?.unwrap_or_default(),
        );
        return Ok(());
    }
    let user = &answer["status"]["userInfo"];
    let bracketed =
        |v: &Value| format!("[{}]", list(v).iter().map(text).collect::<Vec<_>>().join(" "));
    let mut table = String::from("ATTRIBUTE\tVALUE\n");
    table.push_str(&format!("Username\t{}\n", text(&user["username"])));
    if !text(&user["uid"]).is_empty() {
        table.push_str(&format!("UID\t{}\n", text(&user["uid"])));
    }
    if !list(&user["groups"]).is_empty() {
        table.push_str(&format!("Groups\t{}\n", bracketed(&user["groups"])));
    }
    let mut extra: Vec<_> = user["extra"].as_object().into_iter().flatten().collect();
    extra.sort_by(|a, b| a.0.cmp(b.0));
    for (key, values) in extra {
        table.push_str(&format!("Extra: {key}\t{}\n", bracketed(values)));
    }
    ctx.io.print(align(&table, TABLE));
    Ok(())
}
