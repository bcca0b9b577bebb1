//! `events`

use crate::client::JSON;
use crate::context::Context;
use crate::describe::{Page, last_seen, text};
use crate::error::{Error, Result};
use crate::printers::output::list_of;
use crate::printers::tabwriter::{TABLE, align_remembering};
use crate::printers::{Format, OutputFlags};
use futures::StreamExt;
use serde_json::Value;

/// List events.
#[derive(clap::Args, Debug)]
pub struct EventsArgs {
    /// Of all namespaces
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Only about this object, as TYPE/NAME
    #[arg(long = "for", value_name = "TYPE/NAME")]
    about: Option<String>,
    /// Only of these types
    #[arg(long, value_delimiter = ',')]
    types: Vec<String>,
    /// Go on with new events
    #[arg(long, short = 'w')]
    watch: bool,
    /// No headings
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    output: OutputFlags,
}

pub async fn run(ctx: &Context, args: &EventsArgs) -> Result<()> {
    let format = args.output.format(!args.no_headers)?;
    if args.types.iter().any(|t| !["normal", "warning"].contains(&t.to_lowercase().as_str())) {
        return Err(Error::msg("valid --types are Normal or Warning"));
    }
    let namespace = ctx.namespace().await?;
    let scope = match args.all_namespaces {
        true => "/api/v1/events".to_owned(),
        false => format!("/api/v1/namespaces/{}/events", crate::client::escape(&namespace)),
    };
    let fields = fields(ctx, args).await?;
    let http = ctx.http().await?;
    let mut answer = http.get(&format!("{scope}{fields}")).await?;
    let revision = text(&answer["metadata"]["resourceVersion"]).to_owned();
    let mut events: Vec<Value> = match answer["items"].take() {
        Value::Array(items) => items.into_iter().filter(|e| wanted(args, e)).collect(),
        _ => Vec::new(),
    };
    events.sort_by_key(last_seen);
    let mut rows = Rows { widths: Vec::new(), headed: args.no_headers };
    show(ctx, args, &format, events, &mut rows, &namespace)?;
    if !args.watch {
        return Ok(());
    }
    let joint = if fields.is_empty() { '?' } else { '&' };
    let path = format!("{scope}{fields}{joint}watch=true");
    let mut news = std::pin::pin!(http.follow(&path, JSON, revision).await?);
    while let Some(event) = news.next().await {
        let event = event?;
        if event["type"] != "DELETED" && wanted(args, &event["object"]) {
            show(ctx, args, &format, vec![event["object"].clone()], &mut rows, &namespace)?;
        }
    }
    Ok(())
}

struct Rows {
    widths: Vec<usize>,
    headed: bool,
}

async fn fields(ctx: &Context, args: &EventsArgs) -> Result<String> {
    let Some(about) = &args.about else { return Ok(String::new()) };
    let Some((kind, name)) = about.split_once('/') else {
        return Err(Error::msg(format!("--for must be in resource/name form, not {about:?}")));
    };
    let kind = ctx.resource(kind).await?.kind;
    let selector = format!("involvedObject.kind={kind},involvedObject.name={name}");
    Ok(format!("?fieldSelector={}", crate::client::escape(&selector)))
}

fn wanted(args: &EventsArgs, event: &Value) -> bool {
    args.types.is_empty() || args.types.iter().any(|t| t.eq_ignore_ascii_case(text(&event["type"])))
}

fn show(
    ctx: &Context,
    args: &EventsArgs,
    format: &Format,
    events: Vec<Value>,
    rows: &mut Rows,
    namespace: &str,
) -> Result<()> {
    if !matches!(format, Format::Human { .. }) {
        let text = format.render(&args.output.shown(list_of(events)), "")?;
        ctx.io.print(text.unwrap_or_default());
        return Ok(());
    }
    if events.is_empty() && !args.watch {
        ctx.io.note(match args.all_namespaces {
            true => "No events found.".to_owned(),
            false => format!("No events found in {namespace} namespace."),
        });
        return Ok(());
    }
    let page = Page::new(ctx.now());
    let mut table = String::new();
    if !std::mem::replace(&mut rows.headed, true) {
        table.push_str(if args.all_namespaces { "NAMESPACE\t" } else { "" });
        table.push_str("LAST SEEN\tTYPE\tREASON\tOBJECT\tMESSAGE\n");
    }
    for e in &events {
        if args.all_namespaces {
            table.push_str(&format!("{}\t", text(&e["metadata"]["namespace"])));
        }
        let about = &e["involvedObject"];
        table.push_str(&format!(
            "{}\t{}\t{}\t{}/{}\t{}\n",
            page.seen(e),
            text(&e["type"]),
            text(&e["reason"]),
            text(&about["kind"]),
            text(&about["name"]),
            text(&e["message"]).trim()
        ));
    }
    ctx.io.print(align_remembering(&table, TABLE, &mut rows.widths));
    Ok(())
}
