//! From what a user typed (`pods`, `deploy/web`, `pods a b`, `-f x.yaml`, `-l app=web`) to objects.

use crate::client::query;
use crate::context::Context;
use crate::discovery::ApiResource;
use crate::error::{Error, Result};
use crate::manifest::{self, FileFlags, Manifest};
use serde_json::Value;

/// One object that a verb works on.
#[derive(Clone, Debug)]
pub struct Info {
    /// Its resource.
    pub resource: ApiResource,
    /// Its namespace; None if it has none by nature.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// The object: as the server has it, or as the manifest says.
    pub object: Value,
    /// Where it was read from, if from a manifest.
    pub manifest: Option<Manifest>,
}

impl Info {
    /// Its path on the server.
    pub fn path(&self) -> String {
        self.resource.path(self.namespace.as_deref(), &self.name)
    }

    /// The path of its collection.
    pub fn collection(&self) -> String {
        self.resource.collection(self.namespace.as_deref())
    }

    /// Where its changes after one version are watched.
    pub fn watch_path(&self, version: &Value) -> String {
        format!(
            "{}?watch=true&fieldSelector=metadata.name%3D{}&resourceVersion={}",
            self.collection(),
            crate::client::escape(&self.name),
            version["metadata"]["resourceVersion"].as_str().unwrap_or("")
        )
    }

    /// `deployment.apps/web`
    pub fn shown(&self) -> String {
        self.resource.named(&self.name)
    }

    /// The manifest's file; empty for what was typed.
    pub fn source(&self) -> &str {
        self.manifest.as_ref().map_or("", |m| &m.source)
    }
}

/// What the arguments mean.
#[derive(Clone, Debug, PartialEq)]
pub enum Selection {
    /// Objects by name.
    Named(Vec<(ApiResource, String)>),
    /// All objects of some types.
    Types(Vec<ApiResource>),
}

/// The flags that select among many.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct SelectFlags {
    /// Label selector: key=value, key!=value, key in (a,b), key, !key
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// Field selector: metadata.name=x, status.phase!=Running
    #[arg(long, value_name = "SELECTOR")]
    pub field_selector: Option<String>,
}

/// What `TYPE[,TYPE] [NAME…]`, `TYPE/NAME…` mean.
pub async fn parse_args(ctx: &Context, args: &[String]) -> Result<Option<Selection>> {
    let Some(first) = args.first() else { return Ok(None) };
    if args.iter().any(|a| a.contains('/')) {
        let mut named = Vec::new();
        for arg in args {
            let (kind, name) = arg.split_once('/').ok_or_else(|| {
                Error::msg("there is no need to specify a resource type as a separate argument when passing arguments in resource/name form (e.g. 'rkubectl get resource/<resource_name>' instead of 'rkubectl get resource resource/<resource_name>'")
            })?;
            if kind.is_empty() || name.is_empty() {
                return Err(Error::msg(
                    "arguments in resource/name form must have a single resource and name",
                ));
            }
            if name.contains('/') {
                return Err(Error::msg(
                    "arguments in resource/name form may not have more than one slash",
                ));
            }
            named.push((ctx.resource(kind).await?, name.to_owned()));
        }
        return Ok(Some(Selection::Named(named)));
    }
    let mut types = Vec::new();
    for typed in first.split(',').filter(|t| !t.is_empty()) {
        let members = if typed == "all" { ctx.category(typed).await? } else { Vec::new() };
        if members.is_empty() {
            types.push(ctx.resource(typed).await?);
        }
        for member in members {
            if !types.contains(&member) {
                types.push(member);
            }
        }
    }
    if args.len() == 1 {
        return Ok(Some(Selection::Types(types)));
    }
    // An unset variable in a script, say: its path would be its collection's.
    if args[1..].iter().any(String::is_empty) {
        return Err(Error::msg("resource name may not be empty"));
    }
    let named = types.iter().flat_map(|t| args[1..].iter().map(move |n| (t.clone(), n.clone())));
    Ok(Some(Selection::Named(named.collect())))
}

/// The objects of manifests, each with a name: without one its path would be its collection's.
pub async fn from_files(ctx: &Context, flags: &FileFlags) -> Result<Vec<Info>> {
    let infos = from_files_unnamed(ctx, flags).await?;
    let nameless = infos.iter().filter(|i| i.name.is_empty());
    let errors = nameless.map(|i| {
        let kind = &i.resource.kind;
        Error::msg(format!("{}: {kind}: resource name may not be empty", i.source()))
    });
    Error::collect(errors.collect())?;
    Ok(infos)
}

/// The objects of manifests, with resource and namespace worked out; they may leave their name to
/// the server.
pub async fn from_files_unnamed(ctx: &Context, flags: &FileFlags) -> Result<Vec<Info>> {
    let manifests = manifest::read(flags, &ctx.io).await?;
    let mut infos = Vec::new();
    let mut errors = Vec::new();
    for manifest in manifests {
        match from_manifest(ctx, manifest).await {
            Ok(info) => infos.push(info),
            Err(e) => errors.push(e),
        }
    }
    Error::collect(errors)?;
    Ok(infos)
}

/// One object of a manifest.
pub async fn from_manifest(ctx: &Context, manifest: Manifest) -> Result<Info> {
    let mut object = manifest.object.clone();
    let text = |field: &str| object[field].as_str().unwrap_or("").to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    names_are_text(&manifest)?;
    let name = rkube_api::meta::metadata_str(&object, "name").to_owned();
    let own = rkube_api::meta::metadata_str(&object, "namespace").to_owned();
    let resource = ctx
        .resource_of_kind(&api_version, &kind, &manifest.source)
        .await
        .map_err(|e| fill_names(e, &name, &own))?;
    let namespace = if resource.namespaced {
        let wanted = ctx.namespace().await?;
        if !own.is_empty() && ctx.flags.namespace.is_some() && own != wanted {
            return Err(Error::msg(format!(
                "the namespace from the provided object {own:?} does not match the namespace {wanted:?}. You must pass '--namespace={own}' to perform this operation."
            )));
        }
        let namespace = if own.is_empty() { wanted } else { own };
        if !object["metadata"].is_null() && !object["metadata"].is_object() {
            return Err(Error::msg(format!(
                "error parsing {}: metadata must be an object",
                manifest.source
            )));
        }
        object["metadata"]["namespace"] = namespace.clone().into();
        Some(namespace)
    } else {
        None
    };
    Ok(Info { resource, namespace, name, object, manifest: Some(manifest) })
}

/// `name: y` is a truth value in YAML 1.1, and no path could be made of it.
fn names_are_text(manifest: &Manifest) -> Result<()> {
    for field in ["name", "namespace"] {
        let kind = match &manifest.object["metadata"][field] {
            Value::Null | Value::String(_) => continue,
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let path = format!("metadata.{field}");
        let place = manifest.place(&path).map(|p| {
            format!("\n{p}: {path}: a {kind} is not what belongs here; if it is text, quote it")
        });
        return Err(Error::msg(format!(
            "unable to decode {:?}: json: cannot unmarshal {kind} into Go struct field ObjectMeta.{path} of type string{}",
            manifest.source,
            place.unwrap_or_default()
        )));
    }
    Ok(())
}

fn fill_names(e: Error, name: &str, namespace: &str) -> Error {
    match e {
        Error::Message(m) => {
            Error::Message(m.replacen("{name}", name, 1).replacen("{namespace}", namespace, 1))
        }
        other => other,
    }
}

/// What a verb is asked to work on.
#[derive(Clone, Debug, Default)]
pub struct Wanted<'a> {
    /// `TYPE NAME`, `TYPE/NAME`
    pub args: &'a [String],
    /// `-f`
    pub files: Option<&'a FileFlags>,
    /// `-l`, `--field-selector`
    pub select: Option<&'a SelectFlags>,
    /// `--all`
    pub all: bool,
    /// `-A`
    pub all_namespaces: bool,
}

/// kubectl's complaint when nothing was named.
pub const NOTHING_NAMED: &str = "You must provide one or more resources by argument or filename.\nExample resource specifications include:\n   '-f rsrc.yaml'\n   '--filename=rsrc.json'\n   '<resource> <name>'\n   '<resource>'";

/// Fetches the objects that are wanted, as the server has them now. Objects that are missing are
/// reported with the rest's result.
pub async fn fetch(ctx: &Context, wanted: &Wanted<'_>) -> Result<(Vec<Info>, Vec<Error>)> {
    let http = ctx.http().await?;
    let mut infos = Vec::new();
    let mut errors = Vec::new();
    for (mut info, is_list) in targets(ctx, wanted).await? {
        if is_list {
            infos
                .extend(list(ctx, &info.resource, info.namespace.as_deref(), wanted.select).await?);
            continue;
        }
        match http.get(&info.path()).await {
            Ok(object) => {
                info.object = object;
                infos.push(info);
            }
            Err(e @ Error::Status(_)) => errors.push(no_such_type(e, &info.resource)),
            Err(other) => return Err(other),
        }
    }
    Ok((infos, errors))
}

/// A server without the resource answers 404 for its path: say which type it lacks.
pub fn no_such_type(e: Error, resource: &ApiResource) -> Error {
    if e.is_no_route() && e.bare() == "the server could not find the requested resource" {
        return Error::msg(format!(
            "the server doesn't have a resource type {:?}",
            resource.plural
        ));
    }
    e
}

/// Names without a look at the server: objects by name, and types to list (with `true`).
pub async fn targets(ctx: &Context, wanted: &Wanted<'_>) -> Result<Vec<(Info, bool)>> {
    if let Some(files) = wanted.files.filter(|f| !f.filename.is_empty()) {
        if !wanted.args.is_empty() {
            return Err(Error::msg(
                "when paths, URLs, or stdin is provided as input, you may not specify resource arguments as well",
            ));
        }
        return Ok(from_files(ctx, files).await?.into_iter().map(|i| (i, false)).collect());
    }
    let selects = wanted.select.is_some_and(|s| s.selector.is_some() || s.field_selector.is_some());
    match parse_args(ctx, wanted.args).await? {
        None => Err(Error::msg(NOTHING_NAMED)),
        Some(Selection::Named(_)) if selects || wanted.all => {
            Err(Error::msg("name cannot be provided when a selector is specified"))
        }
        Some(Selection::Named(_)) if wanted.all_namespaces => {
            Err(Error::msg("a resource cannot be retrieved by name across all namespaces"))
        }
        Some(Selection::Named(named)) => {
            let mut infos = Vec::new();
            for (resource, name) in named {
                infos.push((bare(ctx, resource, &name).await?, false));
            }
            Ok(infos)
        }
        Some(Selection::Types(types)) => {
            if !selects && !wanted.all && !wanted.all_namespaces {
                return Err(Error::msg("resource(s) were provided, but no name was specified"));
            }
            let mut infos = Vec::new();
            for resource in types {
                let mut info = bare(ctx, resource, "").await?;
                if wanted.all_namespaces {
                    info.namespace = None;
                }
                infos.push((info, true));
            }
            Ok(infos)
        }
    }
}

/// A name without an object.
pub async fn bare(ctx: &Context, resource: ApiResource, name: &str) -> Result<Info> {
    let namespace = if resource.namespaced { Some(ctx.namespace().await?) } else { None };
    Ok(Info { resource, namespace, name: name.into(), object: Value::Null, manifest: None })
}

/// The query that selects, page by page.
pub fn list_query(select: Option<&SelectFlags>, limit: u32, token: &str) -> String {
    let mut pairs = Vec::new();
    if let Some(select) = select {
        let flags =
            [("labelSelector", &select.selector), ("fieldSelector", &select.field_selector)];
        for (key, value) in flags {
            if let Some(v) = value.as_ref().filter(|v| !v.is_empty()) {
                pairs.push((key, v.clone()));
            }
        }
    }
    if limit > 0 {
        pairs.push(("limit", limit.to_string()));
    }
    if !token.is_empty() {
        pairs.push(("continue", token.to_owned()));
    }
    query(&pairs)
}

/// All objects of a type that are selected.
pub async fn list(
    ctx: &Context,
    resource: &ApiResource,
    namespace: Option<&str>,
    select: Option<&SelectFlags>,
) -> Result<Vec<Info>> {
    let http = ctx.http().await?;
    let mut infos = Vec::new();
    let mut token = String::new();
    loop {
        let path = format!("{}{}", resource.collection(namespace), list_query(select, 500, &token));
        let mut page = http.get(&path).await.map_err(|e| no_such_type(e, resource))?;
        if let Value::Array(items) = page["items"].take() {
            infos.extend(items.into_iter().map(|item| from_item(resource, item)));
        }
        token = page["metadata"]["continue"].as_str().unwrap_or("").to_owned();
        if token.is_empty() {
            return Ok(infos);
        }
    }
}

/// An item of a list, with the type that lists leave out.
pub fn from_item(resource: &ApiResource, mut item: Value) -> Info {
    item["apiVersion"] = resource.api_version().into();
    item["kind"] = resource.kind.clone().into();
    let text = |field: &str| rkube_api::meta::metadata_str(&item, field).to_owned();
    let namespace = resource.namespaced.then(|| text("namespace"));
    Info { resource: resource.clone(), namespace, name: text("name"), object: item, manifest: None }
}
