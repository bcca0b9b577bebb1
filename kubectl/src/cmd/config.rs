//! `config`: the kubeconfig itself.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::kubeconfig::{Kubeconfig, SECTIONS, named_entry, update};
use crate::printers::tabwriter::{TABLE, align};
use crate::printers::{OutputFlags, yaml};
use base64::Engine;
use serde_json::{Value, json};

/// Modify kubeconfig files.
#[derive(clap::Args, Debug)]
pub struct ConfigArgs {
    #[command(subcommand)]
    sub: Sub,
}

#[derive(clap::Subcommand, Debug)]
enum Sub {
    /// Show the merged kubeconfig
    View {
        /// With certificates, keys and tokens
        #[arg(long)]
        raw: bool,
        /// Only what the current context uses
        #[arg(long)]
        minify: bool,
        /// With the content of files in place of their names
        #[arg(long)]
        flatten: bool,
        #[command(flatten)]
        output: OutputFlags,
    },
    /// Describe one or many contexts
    GetContexts {
        /// Only this one
        name: Option<String>,
        /// name prints only names
        #[arg(long, short = 'o', default_value = "", hide_default_value = true)]
        output: String,
        /// No headings
        #[arg(long)]
        no_headers: bool,
    },
    /// Display the current context
    CurrentContext,
    /// Set the current context
    #[command(alias = "use")]
    UseContext { name: String },
    /// Set a context's entry; takes --cluster, --user and --namespace
    SetContext {
        /// The context
        name: Option<String>,
        /// The current one
        #[arg(long)]
        current: bool,
    },
    /// Set a cluster's entry; takes --server, --certificate-authority, --tls-server-name and
    /// --insecure-skip-tls-verify
    SetCluster {
        name: String,
        /// Keep the content of the certificate, not its file's name
        #[arg(long)]
        embed_certs: bool,
    },
    /// Set a user's entry; takes --token, --client-certificate and --client-key
    SetCredentials {
        name: String,
        /// Keep the content of certificate and key, not their files' names
        #[arg(long)]
        embed_certs: bool,
    },
    /// Delete a context
    DeleteContext { name: String },
    /// Delete a cluster
    DeleteCluster { name: String },
    /// Delete a user
    DeleteUser { name: String },
    /// Rename a context
    RenameContext { from: String, to: String },
    /// Display the clusters
    GetClusters,
    /// Display the users
    GetUsers,
}

pub async fn run(ctx: &Context, args: &ConfigArgs) -> Result<()> {
    match &args.sub {
        Sub::SetContext { .. } | Sub::SetCluster { .. } | Sub::SetCredentials { .. } => {
            return set(ctx, &args.sub);
        }
        _ => {}
    }
    let config = Kubeconfig::load(&ctx.flags)?;
    match &args.sub {
        Sub::View { raw, minify, flatten, output } => {
            view(ctx, &config, *raw, *minify, *flatten, output)
        }
        Sub::GetContexts { name, output, no_headers } => {
            contexts(ctx, &config, name.as_deref(), output, *no_headers)
        }
        Sub::CurrentContext => match config.context_name(&ctx.flags) {
            name if name.is_empty() => Err(Error::msg("current-context is not set")),
            name => {
                ctx.io.line(name);
                Ok(())
            }
        },
        Sub::UseContext { name } => use_context(ctx, &config, name),
        Sub::DeleteContext { name } => delete(ctx, &config, "contexts", name),
        Sub::DeleteCluster { name } => delete(ctx, &config, "clusters", name),
        Sub::DeleteUser { name } => delete(ctx, &config, "users", name),
        Sub::RenameContext { from, to } => rename(ctx, &config, from, to),
        Sub::GetClusters => names(ctx, &config, "clusters"),
        Sub::GetUsers => names(ctx, &config, "users"),
        Sub::SetContext { .. } | Sub::SetCluster { .. } | Sub::SetCredentials { .. } => Ok(()),
    }
}

fn view(
    ctx: &Context,
    config: &Kubeconfig,
    raw: bool,
    minify: bool,
    flatten: bool,
    output: &OutputFlags,
) -> Result<()> {
    let mut value = config.value.clone();
    if minify {
        self::minify(&mut value, &config.context_name(&ctx.flags))?;
    }
    if flatten {
        self::flatten(&mut value)?;
    }
    if !raw {
        redact(&mut value);
    }
    let format = output.format(true)?;
    match format.render(&value, "")? {
        Some(text) => ctx.io.print(text),
        None => ctx.io.print(yaml::to_string(&value)),
    }
    Ok(())
}

fn minify(value: &mut Value, context: &str) -> Result<()> {
    let found =
        value["contexts"].as_array().into_iter().flatten().find(|c| c["name"] == context).cloned();
    let Some(found) = found else {
        return Err(Error::msg(
            "cannot locate context: current-context must exist in order to minify",
        ));
    };
    let keep = [
        ("contexts", context.to_owned()),
        ("clusters", found["context"]["cluster"].as_str().unwrap_or("").to_owned()),
        ("users", found["context"]["user"].as_str().unwrap_or("").to_owned()),
    ];
    for (section, name) in keep {
        if let Some(list) = value[section].as_array_mut() {
            list.retain(|e| e["name"] == name.as_str());
        }
    }
    value["current-context"] = context.into();
    Ok(())
}

fn each_entry(
    value: &mut Value,
    mut f: impl FnMut(&mut serde_json::Map<String, Value>) -> Result<()>,
) -> Result<()> {
    for (section, key) in SECTIONS {
        for entry in value[section].as_array_mut().into_iter().flatten() {
            if let Some(map) = entry.get_mut(key).and_then(Value::as_object_mut) {
                f(map)?;
            }
        }
    }
    Ok(())
}

fn flatten(value: &mut Value) -> Result<()> {
    each_entry(value, |map| {
        for name in ["certificate-authority", "client-certificate", "client-key"] {
            if let Some(Value::String(file)) = map.remove(name) {
                map.insert(format!("{name}-data"), embedded(&file)?.into());
            }
        }
        Ok(())
    })
}

fn embedded(file: &str) -> Result<String> {
    let bytes =
        std::fs::read(file).map_err(|e| Error::msg(format!("could not read {file}: {e}")))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(bytes))
}

fn redact(value: &mut Value) {
    let _ = each_entry(value, |map| {
        for (key, value) in map.iter_mut() {
            match key.as_str() {
                "certificate-authority-data" | "client-certificate-data" | "client-key-data" => {
                    *value = "DATA+OMITTED".into();
                }
                "token" | "password" => *value = "REDACTED".into(),
                _ => {}
            }
        }
        Ok(())
    });
}

fn contexts(
    ctx: &Context,
    config: &Kubeconfig,
    name: Option<&str>,
    output: &str,
    no_headers: bool,
) -> Result<()> {
    let current = config.context_name(&ctx.flags);
    let all: Vec<&Value> = config.value["contexts"].as_array().into_iter().flatten().collect();
    let mut all: Vec<&Value> =
        all.into_iter().filter(|c| name.is_none_or(|n| c["name"] == n)).collect();
    all.sort_by_key(|c| c["name"].as_str().unwrap_or(""));
    if let (Some(name), true) = (name, all.is_empty()) {
        return Err(Error::msg(format!("context {name} not found")));
    }
    if output == "name" {
        all.iter().for_each(|c| ctx.io.line(c["name"].as_str().unwrap_or("")));
        return Ok(());
    }
    let mut table = String::new();
    if !no_headers {
        table.push_str("CURRENT\tNAME\tCLUSTER\tAUTHINFO\tNAMESPACE\n");
    }
    for c in all {
        let text = |key: &str| c["context"][key].as_str().unwrap_or("").to_owned();
        let name = c["name"].as_str().unwrap_or("");
        let mark = if name == current { "*" } else { "" };
        table.push_str(&format!(
            "{mark}\t{name}\t{}\t{}\t{}\n",
            text("cluster"),
            text("user"),
            text("namespace")
        ));
    }
    ctx.io.print(align(&table, TABLE));
    Ok(())
}

fn use_context(ctx: &Context, config: &Kubeconfig, name: &str) -> Result<()> {
    if config.entry("contexts", name).is_none() {
        return Err(Error::msg(format!("no context exists with the name: {name:?}")));
    }
    let file = config.file_of("current-context", "");
    update(&file, |value| {
        value["current-context"] = name.into();
        Ok(())
    })?;
    ctx.io.line(format!("Switched to context {name:?}."));
    Ok(())
}

fn set(ctx: &Context, sub: &Sub) -> Result<()> {
    let flags = &ctx.flags;
    // A file that is named but not there yet is made.
    let config = match (&flags.kubeconfig, Kubeconfig::load(flags)) {
        (Some(file), Err(_)) if !std::path::Path::new(file).exists() => {
            Kubeconfig { value: crate::kubeconfig::empty(), files: vec![file.into()] }
        }
        (_, loaded) => loaded?,
    };
    let (section, name, fields) = match sub {
        Sub::SetContext { name, current } => {
            let name = match (name, current) {
                (Some(name), false) => name.clone(),
                (None, true) => config.context_name(flags),
                _ => {
                    return Err(Error::msg(
                        "you must specify a non-empty context name or --current",
                    ));
                }
            };
            let fields = [
                ("cluster", &flags.cluster),
                ("user", &flags.user),
                ("namespace", &flags.namespace),
            ];
            ("contexts", name, given(&fields))
        }
        Sub::SetCluster { name, embed_certs } => {
            let fields = [("server", &flags.server), ("tls-server-name", &flags.tls_server_name)];
            let mut fields = given(&fields);
            fields.extend(file_field(
                "certificate-authority",
                &flags.certificate_authority,
                *embed_certs,
            )?);
            if flags.insecure_skip_tls_verify {
                fields.push(("insecure-skip-tls-verify".into(), true.into()));
            }
            ("clusters", name.clone(), fields)
        }
        Sub::SetCredentials { name, embed_certs } => {
            let mut fields = given(&[("token", &flags.token)]);
            fields.extend(file_field(
                "client-certificate",
                &flags.client_certificate,
                *embed_certs,
            )?);
            fields.extend(file_field("client-key", &flags.client_key, *embed_certs)?);
            ("users", name.clone(), fields)
        }
        _ => return Ok(()),
    };
    if name.is_empty() {
        return Err(Error::msg("you must specify a non-empty name"));
    }
    let mut created = false;
    update(&config.file_of(section, &name), |value| {
        let (entry, new) = named_entry(value, section, &name);
        created = new;
        for (key, value) in fields {
            entry[key] = value;
        }
        Ok(())
    })?;
    let done = match (section, created) {
        ("contexts", true) => format!("Context {name:?} created."),
        ("contexts", false) => format!("Context {name:?} modified."),
        ("clusters", _) => format!("Cluster {name:?} set."),
        _ => format!("User {name:?} set."),
    };
    ctx.io.line(done);
    Ok(())
}

fn given(fields: &[(&str, &Option<String>)]) -> Vec<(String, Value)> {
    fields.iter().filter_map(|(k, v)| Some(((*k).to_owned(), json!((*v).as_ref()?)))).collect()
}

fn file_field(name: &str, file: &Option<String>, embed: bool) -> Result<Option<(String, Value)>> {
    let Some(file) = file else { return Ok(None) };
    if embed {
        return Ok(Some((format!("{name}-data"), embedded(file)?.into())));
    }
    let path = std::path::absolute(file)?;
    Ok(Some((name.to_owned(), path.to_string_lossy().into_owned().into())))
}

fn delete(ctx: &Context, config: &Kubeconfig, section: &str, name: &str) -> Result<()> {
    let what = section.trim_end_matches('s');
    let file = config.file_of(section, name);
    if config.entry(section, name).is_none() {
        return Err(Error::msg(format!("cannot delete {what} {name}, not in {}", file.display())));
    }
    if section == "contexts" && config.context_name(&ctx.flags) == name {
        ctx.io.note("warning: this removed your active context, use \"rkubectl config use-context\" to select a different one");
    }
    update(&file, |value| {
        if let Some(list) = value[section].as_array_mut() {
            list.retain(|e| e["name"] != name);
        }
        Ok(())
    })?;
    ctx.io.line(format!("deleted {what} {name} from {}", file.display()));
    Ok(())
}

fn rename(ctx: &Context, config: &Kubeconfig, from: &str, to: &str) -> Result<()> {
    let file = config.file_of("contexts", from);
    if config.entry("contexts", from).is_none() {
        return Err(Error::msg(format!(
            "cannot rename the context {from:?}, it's not in {}",
            file.display()
        )));
    }
    if config.entry("contexts", to).is_some() {
        return Err(Error::msg(format!(
            "cannot rename the context {from:?}, the context {to:?} already exists in {}",
            file.display()
        )));
    }
    update(&file, |value| {
        for entry in value["contexts"].as_array_mut().into_iter().flatten() {
            if entry["name"] == from {
                entry["name"] = to.into();
            }
        }
        if value["current-context"] == from {
            value["current-context"] = to.into();
        }
        Ok(())
    })?;
    ctx.io.line(format!("Context {from:?} renamed to {to:?}."));
    Ok(())
}

fn names(ctx: &Context, config: &Kubeconfig, section: &str) -> Result<()> {
    ctx.io.line("NAME");
    for entry in config.value[section].as_array().into_iter().flatten() {
        ctx.io.line(entry["name"].as_str().unwrap_or(""));
    }
    Ok(())
}
