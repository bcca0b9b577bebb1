//! `api-resources`, `api-versions`, `version`, `cluster-info`

use crate::context::Context;
use crate::discovery::ApiResource;
use crate::error::{Error, Result};
use crate::printers::tabwriter::{TABLE, align};
use crate::printers::{json, yaml};
use serde_json::{Value, json};

/// Print the supported resources on the server.
#[derive(clap::Args, Debug)]
pub struct ApiResourcesArgs {
    /// name or wide
    #[arg(long, short = 'o', default_value = "", hide_default_value = true)]
    output: String,
    /// Only of this group
    #[arg(long)]
    api_group: Option<String>,
    /// Only those in namespaces, or with =false only the others
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    namespaced: Option<bool>,
    /// Only those with all of these verbs
    #[arg(long, value_delimiter = ',')]
    verbs: Vec<String>,
    /// Only those of all of these categories
    #[arg(long, value_delimiter = ',')]
    categories: Vec<String>,
    /// name or kind
    #[arg(long, default_value = "", hide_default_value = true)]
    sort_by: String,
    /// No headings
    #[arg(long)]
    no_headers: bool,
    /// Accepted for kubectl's sake: nothing is cached
    #[arg(long, hide = true)]
    cached: bool,
}

/// Print the client and server version information.
#[derive(clap::Args, Debug)]
pub struct VersionArgs {
    /// Only the client's
    #[arg(long)]
    client: bool,
    /// yaml or json
    #[arg(long, short = 'o', default_value = "", hide_default_value = true)]
    output: String,
}

pub async fn resources(ctx: &Context, args: &ApiResourcesArgs) -> Result<()> {
    let mut all: Vec<&ApiResource> = ctx
        .resources()
        .await?
        .iter()
        .filter(|r| {
            args.api_group.as_ref().is_none_or(|g| *g == r.group)
                && args.namespaced.is_none_or(|n| n == r.namespaced)
                && args.verbs.iter().all(|v| r.verbs.contains(v))
                && args.categories.iter().all(|c| r.categories.contains(c))
                && !r.verbs.is_empty()
        })
        .collect();
    match args.sort_by.as_str() {
        "" => all.sort_by(|a, b| (&a.group, &a.plural).cmp(&(&b.group, &b.plural))),
        "name" => all.sort_by(|a, b| a.plural.cmp(&b.plural)),
        "kind" => all.sort_by(|a, b| a.kind.cmp(&b.kind)),
        _ => return Err(Error::msg("--sort-by accepts only name or kind")),
    }
    let wide = match args.output.as_str() {
        "name" => {
            all.iter().for_each(|r| ctx.io.line(r.qualified()));
            return Ok(());
        }
        "" => false,
        "wide" => true,
        other => return Err(Error::msg(format!("--output {other} is not available"))),
    };
    let mut table = String::new();
    if !args.no_headers {
        table.push_str("NAME\tSHORTNAMES\tAPIVERSION\tNAMESPACED\tKIND");
        table.push_str(if wide { "\tVERBS\tCATEGORIES\n" } else { "\n" });
    }
    for r in all {
        let row = format!(
            "{}\t{}\t{}\t{}\t{}",
            r.plural,
            r.short_names.join(","),
            r.api_version(),
            r.namespaced,
            r.kind
        );
        table.push_str(&row);
        if wide {
            table.push_str(&format!("\t{}\t{}", r.verbs.join(","), r.categories.join(",")));
        }
        table.push('\n');
    }
    ctx.io.print(align(&table, TABLE));
    Ok(())
}

pub async fn versions(ctx: &Context) -> Result<()> {
    let mut versions: Vec<String> =
        ctx.resources().await?.iter().map(ApiResource::api_version).collect();
    versions.sort();
    versions.dedup();
    versions.iter().for_each(|v| ctx.io.line(v));
    Ok(())
}

pub async fn version(ctx: &Context, args: &VersionArgs) -> Result<()> {
    let own = concat!("v", env!("CARGO_PKG_VERSION"));
    let server = match args.client {
        true => Ok(None),
        false => match ctx.http().await {
            Ok(http) => http.get("/version").await.map(Some),
            Err(e) => Err(e),
        },
    };
    let mut shown = json!({"clientVersion": {"gitVersion": own, "platform": platform()}});
    if let Ok(Some(version)) = &server {
        shown["serverVersion"] = version.clone();
    }
    match args.output.as_str() {
        "" => {
            ctx.io.line(format!("Client Version: {own}"));
            if let Some(version) = shown["serverVersion"]["gitVersion"].as_str() {
                ctx.io.line(format!("Server Version: {version}"));
            }
        }
        "json" => ctx.io.print(json::pretty(&shown).replace("    ", "  ")),
        "yaml" => ctx.io.print(yaml::to_string(&shown)),
        _ => return Err(Error::msg("--output must be 'yaml' or 'json'")),
    }
    server.map(|_| ())
}

fn platform() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{}/{arch}", std::env::consts::OS)
}

pub async fn cluster_info(ctx: &Context) -> Result<()> {
    let http = ctx.http().await?;
    http.get("/version").await?;
    let (green, yellow, end) = match ctx.io.color {
        true => ("\x1b[0;32m", "\x1b[0;33m", "\x1b[0m"),
        false => ("", "", ""),
    };
    ctx.io.line(format!(
        "{green}Kubernetes control plane{end} is running at {yellow}{}{end}",
        http.server
    ));
    let path = "/api/v1/namespaces/kube-system/services?labelSelector=kubernetes.io%2Fcluster-service%3Dtrue";
    let services = http.get(path).await.unwrap_or(Value::Null);
    for service in crate::describe::list(&services["items"]) {
        let metadata = &service["metadata"];
        let name = metadata["labels"]["kubernetes.io/name"].as_str().or(metadata["name"].as_str());
        let port = service["spec"]["ports"][0]["name"].as_str().map(|p| format!(":{p}"));
        ctx.io.line(format!(
            "{green}{}{end} is running at {yellow}{}/api/v1/namespaces/kube-system/services/{}{}/proxy{end}",
            name.unwrap_or(""),
            http.server,
            metadata["name"].as_str().unwrap_or(""),
            port.unwrap_or_default()
        ));
    }
    Ok(())
}
