//! `get`: tables from the server, or the objects themselves; and what happens to them from now on.

use crate::client::{JSON, TABLE};
use crate::context::Context;
use crate::discovery::ApiResource;
use crate::error::{Error, Result};
use crate::manifest::FileFlags;
use crate::printers::output::list_of;
use crate::printers::table::{self, TableOptions, TablePrinter};
use crate::printers::{Format, OutputFlags};
use crate::resource::{self, Info, SelectFlags, Selection};
use futures::StreamExt;
use rkube_api::jsonpath::{Template, relaxed};
use rkube_api::quantity::Quantity;
use serde_json::Value;
use std::cmp::Ordering;

/// Display one or many resources.
#[derive(clap::Args, Debug)]
pub struct GetArgs {
    /// TYPE[,TYPE…] [NAME…] or TYPE/NAME…
    resources: Vec<String>,
    #[command(flatten)]
    files: FileFlags,
    #[command(flatten)]
    select: SelectFlags,
    #[command(flatten)]
    output: OutputFlags,
    /// Objects of all namespaces
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// After listing, show each change
    #[arg(long, short = 'w')]
    watch: bool,
    /// Show each change, without listing first
    #[arg(long)]
    watch_only: bool,
    /// Show the kind of each change too
    #[arg(long)]
    output_watch_events: bool,
    /// Show all labels in a last column
    #[arg(long)]
    show_labels: bool,
    /// A column for each of these labels
    #[arg(long, short = 'L', value_delimiter = ',', value_name = "LABEL")]
    label_columns: Vec<String>,
    /// Sort by a field, given as a JSONPath
    #[arg(long, value_name = "PATH")]
    sort_by: Option<String>,
    /// No headings
    #[arg(long)]
    no_headers: bool,
    /// Missing objects are no failure
    #[arg(long)]
    ignore_not_found: bool,
    /// How many objects to ask for at once; 0 for all
    #[arg(long, default_value_t = 500, value_name = "N")]
    chunk_size: u32,
    /// Show the kind in front of each name
    #[arg(long)]
    show_kind: bool,
    /// A path on the server to fetch as it is
    #[arg(long, value_name = "PATH")]
    raw: Option<String>,
    /// A subresource to fetch instead
    #[arg(long, value_name = "NAME")]
    subresource: Option<String>,
    /// Accepted for kubectl's sake: tables always come from the server
    #[arg(long, hide = true, default_value = "true", num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    server_print: bool,
}

/// One question to the server: an object or a list.
struct Target {
    resource: ApiResource,
    namespace: Option<String>,
    /// Empty for a list.
    name: String,
}

pub async fn run(ctx: &Context, args: &GetArgs) -> Result<()> {
    if let Some(path) = &args.raw {
        return raw(ctx, path).await;
    }
    let format = args.output.format(!args.no_headers)?;
    let (targets, several) = targets(ctx, args).await?;
    if args.watch || args.watch_only {
        return watch(ctx, args, &targets, &format).await;
    }
    match &format {
        Format::Human { wide } => tables(ctx, args, &targets, several, *wide).await,
        _ => objects(ctx, args, &targets, &format).await,
    }
}

async fn raw(ctx: &Context, path: &str) -> Result<()> {
    if !path.starts_with('/') {
        return Err(Error::msg(format!(
            "--raw must be a valid URL path: {path:?} does not begin with /"
        )));
    }
    let bytes = ctx.http().await?.bytes(http::Method::GET, path, "*/*", JSON, Vec::new()).await?;
    ctx.io.print(bytes);
    Ok(())
}

/// What to ask for, and whether rows need their kind to tell them apart.
async fn targets(ctx: &Context, args: &GetArgs) -> Result<(Vec<Target>, bool)> {
    let mut targets = Vec::new();
    if !args.files.filename.is_empty() {
        if !args.resources.is_empty() {
            return Err(Error::msg(
                "when paths, URLs, or stdin is provided as input, you may not specify resource arguments as well",
            ));
        }
        for info in resource::from_files(ctx, &args.files).await? {
            targets.push(Target {
                resource: info.resource,
                namespace: info.namespace,
                name: info.name,
            });
        }
        let several = differ(&targets);
        return Ok((targets, several));
    }
    let Some(selection) = resource::parse_args(ctx, &args.resources).await? else {
        ctx.io.note("You must specify the type of resource to get. Use \"rkubectl api-resources\" for a complete list of supported resources.\n");
        return Err(Error::Plain("error: Required resource not specified.\nUse \"rkubectl explain <resource>\" for a detailed description of that resource (e.g. rkubectl explain pods).\nSee 'rkubectl get -h' for help and examples".into()));
    };
    let selects = args.select.selector.is_some() || args.select.field_selector.is_some();
    let namespace =
        |r: &ApiResource, ns: &str| (r.namespaced && !args.all_namespaces).then(|| ns.to_owned());
    let here = ctx.namespace().await?;
    let mut several = args.show_kind;
    match selection {
        Selection::Named(named) => {
            if selects {
                return Err(Error::msg("name cannot be provided when a selector is specified"));
            }
            if args.all_namespaces {
                return Err(Error::msg(
                    "a resource cannot be retrieved by name across all namespaces",
                ));
            }
            for (resource, name) in named {
                targets.push(Target { namespace: namespace(&resource, &here), resource, name });
            }
            several |= differ(&targets);
        }
        Selection::Types(types) => {
            several |= types.len() > 1 || args.resources[0] == "all";
            for resource in types {
                let namespace = namespace(&resource, &here);
                targets.push(Target { resource, namespace, name: String::new() });
            }
        }
    }
    Ok((targets, several))
}

fn differ(targets: &[Target]) -> bool {
    targets.windows(2).any(|pair| pair[0].resource != pair[1].resource)
}

impl Target {
    fn path(&self, args: &GetArgs, token: &str, include: &str) -> String {
        let mut path = if self.name.is_empty() {
            let list = self.resource.collection(self.namespace.as_deref());
            format!("{list}{}", resource::list_query(Some(&args.select), args.chunk_size, token))
        } else {
            self.resource.path(self.namespace.as_deref(), &self.name)
        };
        if let Some(sub) = &args.subresource {
            path = format!("{path}/{sub}");
        }
        if !include.is_empty() {
            let joint = if path.contains('?') { '&' } else { '?' };
            path = format!("{path}{joint}includeObject={include}");
        }
        path
    }
}

fn table_options(args: &GetArgs, target: &Target, several: bool, wide: bool) -> TableOptions {
    TableOptions {
        wide,
        no_headers: args.no_headers,
        with_namespace: args.all_namespaces && target.resource.namespaced,
        with_kind: several.then(|| target.resource.clone()),
        show_labels: args.show_labels,
        label_columns: args.label_columns.clone(),
        with_event: args.output_watch_events,
    }
}

/// A table of one type, ready but for its printing.
struct Found<'a> {
    target: &'a Target,
    table: Value,
}

async fn tables(
    ctx: &Context,
    args: &GetArgs,
    targets: &[Target],
    several: bool,
    wide: bool,
) -> Result<()> {
    let mut errors = Vec::new();
    let mut found = Vec::new();
    for group in by_type(targets) {
        let mut rows = Vec::new();
        let mut whole: Option<Value> = None;
        for target in group {
            match fetch_table(ctx, args, target, &mut rows).await {
                Ok(table) => whole = whole.or(Some(table)),
                Err(e) if args.ignore_not_found && e.is_not_found() => {}
                Err(e @ (Error::Status(_) | Error::Message(_))) => errors.push(e),
                Err(other) => return Err(other),
            }
        }
        let Some(mut table) = whole.filter(|_| !rows.is_empty()) else { continue };
        if let Some(path) = &args.sort_by {
            rows = sorted(rows, path, |row| &row["object"])?;
        }
        table["rows"] = rows.into();
        found.push(Found { target: &group[0], table });
    }
    // Of several names only those that exist can be mixed up.
    let named = targets.iter().any(|t| !t.name.is_empty());
    let with_kind = args.show_kind || (several && !(named && found.len() == 1));
    for (i, Found { target, table }) in found.iter().enumerate() {
        if i > 0 {
            ctx.io.print("\n");
        }
        let mut printer = TablePrinter::new(table_options(args, target, with_kind, wide));
        ctx.io.print(printer.render(table, "ADDED"));
    }
    if found.is_empty() && errors.is_empty() && !args.ignore_not_found {
        let namespaced = targets.iter().all(|t| t.namespace.is_some());
        ctx.io.note(match namespaced.then(|| targets[0].namespace.as_deref()).flatten() {
            Some(ns) => format!("No resources found in {ns} namespace."),
            None => "No resources found".into(),
        });
    }
    Error::collect(errors)
}

/// Neighbours of the same type share a table.
fn by_type(targets: &[Target]) -> impl Iterator<Item = &[Target]> {
    targets.chunk_by(|a, b| a.resource == b.resource)
}

/// Fetches all pages; the rows go to `rows`.
async fn fetch_table(
    ctx: &Context,
    args: &GetArgs,
    target: &Target,
    rows: &mut Vec<Value>,
) -> Result<Value> {
    let http = ctx.http().await?;
    let include = if args.sort_by.is_some() { "Object" } else { "" };
    let mut first = None;
    let mut token = String::new();
    loop {
        let answer = http
            .get_as(&target.path(args, &token, include), TABLE)
            .await
            .map_err(|e| resource::no_such_type(e, &target.resource))?;
        let mut table = as_table(answer, ctx.now());
        if let Value::Array(more) = table["rows"].take() {
            rows.extend(more);
        }
        token = table["metadata"]["continue"].as_str().unwrap_or("").to_owned();
        let kept = first.get_or_insert(table);
        if token.is_empty() {
            return Ok(kept.take());
        }
    }
}

/// The answer itself, or a plain table of what it holds.
fn as_table(answer: Value, now: jiff::Timestamp) -> Value {
    if answer["kind"] == "Table" {
        return answer;
    }
    let mut table = match answer["items"].as_array() {
        Some(items) => table::plain(items, now),
        None => table::plain(std::slice::from_ref(&answer), now),
    };
    table["metadata"] = answer["metadata"].clone();
    table
}

async fn objects(ctx: &Context, args: &GetArgs, targets: &[Target], format: &Format) -> Result<()> {
    let http = ctx.http().await?;
    let mut found: Vec<Info> = Vec::new();
    let mut errors = Vec::new();
    let mut lists = 0;
    for target in targets {
        let result = if target.name.is_empty() {
            lists += 1;
            resource::list(ctx, &target.resource, target.namespace.as_deref(), Some(&args.select))
                .await
        } else {
            let got = http.get(&target.path(args, "", "")).await;
            got.map(|object| {
                vec![Info {
                    resource: target.resource.clone(),
                    namespace: target.namespace.clone(),
                    name: target.name.clone(),
                    object,
                    manifest: None,
                }]
            })
            .map_err(|e| resource::no_such_type(e, &target.resource))
        };
        match result {
            Ok(infos) => found.extend(infos),
            Err(e) if args.ignore_not_found && e.is_not_found() => {}
            Err(e @ (Error::Status(_) | Error::Message(_))) => errors.push(e),
            Err(other) => return Err(other),
        }
    }
    if let Some(path) = &args.sort_by {
        found = sorted(found, path, |info| &info.object)?;
    }
    let single = lists == 0 && targets.len() == 1;
    if found.is_empty() && (single || !errors.is_empty()) {
        return Error::collect(errors);
    }
    print_objects(ctx, args, found, format, single)?;
    Error::collect(errors)
}

fn print_objects(
    ctx: &Context,
    args: &GetArgs,
    mut found: Vec<Info>,
    format: &Format,
    single: bool,
) -> Result<()> {
    match format {
        Format::Name => {
            for info in &found {
                ctx.io.line(info.shown());
            }
        }
        Format::CustomColumns(columns) => {
            let objects: Vec<Value> = found.into_iter().map(|i| i.object).collect();
            ctx.io.print(columns.render(&objects)?);
        }
        _ => {
            let object = if single {
                found.remove(0).object
            } else {
                list_of(found.into_iter().map(|i| i.object).collect())
            };
            let text = format.render(&args.output.shown(object), "")?;
            ctx.io.print(text.unwrap_or_default());
        }
    }
    Ok(())
}

async fn watch(ctx: &Context, args: &GetArgs, targets: &[Target], format: &Format) -> Result<()> {
    let [target] = targets else {
        return Err(Error::msg("you may only specify a single resource type"));
    };
    let http = ctx.http().await?;
    let human = matches!(format, Format::Human { .. });
    let wide = matches!(format, Format::Human { wide: true });
    let mut shown = Shown {
        printer: TablePrinter::new(table_options(args, target, args.show_kind, wide)),
        printed: 0,
    };
    let mut revision = String::new();
    let accept = if human { TABLE } else { JSON };
    if !(args.watch_only && target.name.is_empty()) {
        let answer = http
            .get_as(&target.path(args, "", ""), accept)
            .await
            .map_err(|e| resource::no_such_type(e, &target.resource))?;
        revision = answer["metadata"]["resourceVersion"].as_str().unwrap_or("").to_owned();
        if !args.watch_only {
            shown.first(ctx, args, target, format, answer)?;
        }
    }
    let path = watch_path(args, target);
    let mut events = std::pin::pin!(http.follow(&path, accept, revision).await?);
    while let Some(event) = events.next().await {
        let event = event?;
        if event["type"] != "BOOKMARK" {
            shown.event(ctx, args, target, format, &event)?;
        }
    }
    Ok(())
}

fn watch_path(args: &GetArgs, target: &Target) -> String {
    let mut select = args.select.clone();
    if !target.name.is_empty() {
        select.field_selector = Some(format!("metadata.name={}", target.name));
    }
    let list = target.resource.collection(target.namespace.as_deref());
    let query = resource::list_query(Some(&select), 0, "");
    let joint = if query.is_empty() { '?' } else { '&' };
    format!("{list}{query}{joint}watch=true")
}

/// What a watch has printed so far.
struct Shown {
    printer: TablePrinter,
    printed: usize,
}

impl Shown {
    fn first(
        &mut self,
        ctx: &Context,
        args: &GetArgs,
        target: &Target,
        format: &Format,
        answer: Value,
    ) -> Result<()> {
        if matches!(format, Format::Human { .. }) {
            let table = as_table(answer, ctx.now());
            ctx.io.print(self.printer.render(&table, "ADDED"));
            return Ok(());
        }
        match answer["items"].as_array() {
            Some(items) => {
                for item in items {
                    let info = resource::from_item(&target.resource, item.clone());
                    self.object(ctx, args, target, format, info.object)?;
                }
                Ok(())
            }
            None => self.object(ctx, args, target, format, answer),
        }
    }

    fn event(
        &mut self,
        ctx: &Context,
        args: &GetArgs,
        target: &Target,
        format: &Format,
        event: &Value,
    ) -> Result<()> {
        let object = event["object"].clone();
        if matches!(format, Format::Human { .. }) {
            let table = as_table(object, ctx.now());
            let kind = event["type"].as_str().unwrap_or("");
            ctx.io.print(self.printer.render(&table, kind));
            return Ok(());
        }
        self.object(ctx, args, target, format, object)
    }

    fn object(
        &mut self,
        ctx: &Context,
        args: &GetArgs,
        target: &Target,
        format: &Format,
        object: Value,
    ) -> Result<()> {
        if self.printed > 0 && matches!(format, Format::Yaml) {
            ctx.io.print("---\n");
        }
        self.printed += 1;
        let name = target.resource.named(rkube_api::meta::metadata_str(&object, "name"));
        let text = format.render(&args.output.shown(object), &name)?;
        ctx.io.print(text.unwrap_or_default());
        Ok(())
    }
}

/// Sorts by a field; what lacks it comes first.
fn sorted<T>(items: Vec<T>, path: &str, object: impl Fn(&T) -> &Value) -> Result<Vec<T>> {
    let template =
        relaxed(path).and_then(|p| Template::parse(&p)).map_err(|e| Error::msg(e.to_string()))?;
    let key =
        |item: &T| template.find(object(item)).ok().and_then(|f| f.first().map(|v| (*v).clone()));
    let mut keyed: Vec<(Option<Value>, T)> = items.into_iter().map(|i| (key(&i), i)).collect();
    if !keyed.is_empty() && keyed.iter().all(|(k, _)| k.is_none()) {
        return Err(Error::msg(format!(
            "couldn't find any field with path {:?} in the list of objects",
            template.text()
        )));
    }
    keyed.sort_by(|a, b| compare(a.0.as_ref(), b.0.as_ref()));
    Ok(keyed.into_iter().map(|(_, item)| item).collect())
}

fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => {
            a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal)
        }
        (Some(Value::String(a)), Some(Value::String(b))) => {
            match (Quantity::parse(a), Quantity::parse(b)) {
                (Ok(x), Ok(y)) => x.cmp(&y),
                _ => a.cmp(b),
            }
        }
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(a), Some(b)) => a.to_string().cmp(&b.to_string()),
        (None, None) => Ordering::Equal,
    }
}
