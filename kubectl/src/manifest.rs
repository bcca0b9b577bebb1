//! Manifests: from `-f` (files, folders, URLs, stdin) to objects with their places.

use crate::client::chain;
use crate::error::{Error, Result};
use crate::io::Io;
use http_body_util::{BodyExt, Empty, Limited};
use rkube_api::yaml::{self, Document};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Larger manifests are refused: an API server takes 3 MiB an object.
const MAX_BYTES: usize = 64 << 20;

/// The flags that name manifests.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct FileFlags {
    /// Files, folders, URLs or - for stdin
    #[arg(long, short = 'f', value_name = "FILE", value_delimiter = ',')]
    pub filename: Vec<String>,
    /// Look into folders within folders
    #[arg(long, short = 'R')]
    pub recursive: bool,
}

/// An object of a manifest.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The object.
    pub object: Value,
    /// `deploy.yaml`, `STDIN` or a URL.
    pub source: String,
    document: Option<std::sync::Arc<Document>>,
    /// The object's path in the document: empty, or `items[3]`.
    at: String,
}

impl Manifest {
    /// `deploy.yaml:12:5`, where a field (or what holds it) stands.
    pub fn place(&self, field: &str) -> Option<String> {
        let path = match (self.at.is_empty(), field.is_empty()) {
            (true, _) => field.to_owned(),
            (false, true) => self.at.clone(),
            (false, false) => format!("{}.{field}", self.at),
        };
        let p = self.document.as_ref()?.position(&path)?;
        Some(format!("{}:{}:{}", self.source, p.line, p.column))
    }

    /// Where the first field stands that has this path (without indexes) and this kind of value
    /// (`string`, `number`, `bool`, `array`, `object`), and its path with indexes.
    pub fn place_of_mistyped(&self, field: &str, kind: &str) -> Option<(String, String)> {
        let mut paths = Vec::new();
        indexed_paths(
            &self.object,
            String::new(),
            &field.split('.').collect::<Vec<_>>(),
            &mut paths,
        );
        let (path, _) = paths.into_iter().find(|(_, value)| {
            let own = match value {
                Value::Null => "null",
                Value::Bool(_) => "bool",
                Value::Number(_) => "number",
                Value::String(_) => "string",
                Value::Array(_) => "array",
                Value::Object(_) => "object",
            };
            own == kind || kind.starts_with(&format!("{own} "))
        })?;
        Some((self.place(&path)?, path))
    }

    /// An object that was made here, not read.
    pub fn made(object: Value) -> Self {
        Manifest { object, source: String::new(), document: None, at: String::new() }
    }
}

/// All values at a path that leaves out lists' indexes.
fn indexed_paths<'a>(
    value: &'a Value,
    path: String,
    keys: &[&str],
    out: &mut Vec<(String, &'a Value)>,
) {
    if let (Value::Array(items), false) = (value, keys.is_empty()) {
        for (i, item) in items.iter().enumerate() {
            indexed_paths(item, format!("{path}[{i}]"), keys, out);
        }
        return;
    }
    match keys {
        [] => out.push((path, value)),
        [key, rest @ ..] => {
            if let Some(inner) = value.get(key) {
                let joint = if path.is_empty() { "" } else { "." };
                indexed_paths(inner, format!("{path}{joint}{key}"), rest, out);
            }
        }
    }
}

/// Reads all that the flags name, in order; lists are taken apart.
pub async fn read(flags: &FileFlags, io: &Io) -> Result<Vec<Manifest>> {
    let mut all = Vec::new();
    for name in &flags.filename {
        for (source, text) in texts(name, flags.recursive, io).await? {
            all.extend(parse(&source, &text)?);
        }
    }
    Ok(all)
}

async fn texts(name: &str, recursive: bool, io: &Io) -> Result<Vec<(String, String)>> {
    if name == "-" {
        return Ok(vec![("STDIN".into(), io.read_stdin()?)]);
    }
    if name.starts_with("http://") || name.starts_with("https://") {
        return Ok(vec![(name.into(), fetch(name).await?)]);
    }
    let path = Path::new(name);
    if !path.exists() {
        return Err(Error::msg(format!("the path {name:?} does not exist")));
    }
    let files = if path.is_dir() { files_in(path, recursive)? } else { vec![path.to_owned()] };
    if files.is_empty() {
        return Err(Error::msg(format!(
            "error reading [{name}]: recognized file extensions are [.json .yaml .yml]"
        )));
    }
    files.iter().map(|file| read_file(file)).collect()
}

fn read_file(path: &Path) -> Result<(String, String)> {
    let name = path.display().to_string();
    let cannot = |e: &dyn std::fmt::Display| Error::msg(format!("error reading {name}: {e}"));
    let bytes = std::fs::read(path).map_err(|e| cannot(&e))?;
    if bytes.len() > MAX_BYTES {
        return Err(cannot(&"larger than 64 MiB"));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let before = String::from_utf8_lossy(&e.as_bytes()[..e.utf8_error().valid_up_to()]);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        cannot(&format!("not UTF-8 text\n{name}:{line}:{column}: no UTF-8"))
    })?;
    Ok((name, text))
}

/// The manifests of a folder, in the order of their names.
fn files_in(folder: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(|e| Error::msg(format!("error reading {}: {e}", folder.display())))?
        .filter_map(|e| Some(e.ok()?.path()))
        .collect();
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        if entry.is_dir() {
            if recursive {
                files.extend(files_in(&entry, true)?);
            }
        } else if entry.extension().is_some_and(|e| ["json", "yaml", "yml"].iter().any(|x| e == *x))
        {
            files.push(entry);
        }
    }
    Ok(files)
}

async fn fetch(url: &str) -> Result<String> {
    let failed = |why: String| Error::msg(format!("unable to read URL {url:?}, {why}"));
    if url.starts_with("https://") {
        return fetch_https(url).await;
    }
    let connector = hyper_util::client::legacy::connect::HttpConnector::new();
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .build::<_, Empty<bytes::Bytes>>(connector);
    let uri = url.parse().map_err(|e| failed(format!("{e}")))?;
    let answer = client.get(uri).await.map_err(|e| failed(chain(&e)))?;
    if !answer.status().is_success() {
        return Err(failed(format!(
            "server reported {}, status code={}",
            answer.status(),
            answer.status().as_u16()
        )));
    }
    let body = Limited::new(answer.into_body(), MAX_BYTES)
        .collect()
        .await
        .map_err(|e| failed(e.to_string()))?;
    String::from_utf8(body.to_bytes().to_vec()).map_err(|_| failed("not UTF-8 text".into()))
}

/// kube's client brings the TLS that plain hyper lacks.
async fn fetch_https(url: &str) -> Result<String> {
    let failed = |why: String| Error::msg(format!("unable to read URL {url:?}, {why}"));
    let uri: http::Uri = url.parse().map_err(|e| failed(format!("{e}")))?;
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let root = format!("https://{}", uri.authority().map_or("", |a| a.as_str()));
    let root = root.parse().map_err(|e| failed(format!("{e}")))?;
    let client = kube::Client::try_from(kube::Config::new(root)).map_err(|e| failed(chain(&e)))?;
    let request = http::Request::get(path).body(Vec::new()).map_err(|e| failed(format!("{e}")))?;
    client.request_text(request).await.map_err(|e| failed(chain(&e)))
}

/// The objects of a text.
pub fn parse(source: &str, text: &str) -> Result<Vec<Manifest>> {
    let documents = yaml::parse_documents(text).map_err(|e| {
        Error::Plain(format!(
            "error: error parsing {source}: error converting YAML to JSON: yaml: {e}\n{source}:{}:{}: {}",
            e.line, e.column, e.message
        ))
    })?;
    let mut all = Vec::new();
    for document in documents {
        let document = std::sync::Arc::new(document);
        for (at, object) in taken_apart(&document.value, "") {
            check_type(source, &document, &at, object)?;
            all.push(Manifest {
                object: object.clone(),
                source: source.into(),
                document: Some(document.clone()),
                at,
            });
        }
    }
    Ok(all)
}

/// The object itself, or a list's items.
fn taken_apart<'a>(value: &'a Value, at: &str) -> Vec<(String, &'a Value)> {
    let is_list = value["kind"].as_str().is_some_and(|k| k.ends_with("List"));
    match value["items"].as_array() {
        Some(items) if is_list => items
            .iter()
            .enumerate()
            .flat_map(|(i, item)| {
                let here =
                    if at.is_empty() { format!("items[{i}]") } else { format!("{at}.items[{i}]") };
                taken_apart(item, &here)
            })
            .collect(),
        _ => vec![(at.to_owned(), value)],
    }
}

fn check_type(source: &str, document: &Document, at: &str, object: &Value) -> Result<()> {
    let missing = |field: &str| object[field].as_str().is_none_or(str::is_empty);
    let what = match (object.is_object(), missing("apiVersion"), missing("kind")) {
        (true, false, false) => return Ok(()),
        (false, ..) => {
            "couldn't get version/kind; json parse error: an object is expected".to_owned()
        }
        (_, true, true) => "[apiVersion not set, kind not set]".to_owned(),
        (_, true, false) => "apiVersion not set".to_owned(),
        (_, false, true) => "kind not set".to_owned(),
    };
    let line = document.position(at).map_or(document.line, |p| p.line);
    Err(Error::Plain(format!(
        "error: error validating {source:?}: error validating data: {what}; if you choose to ignore these errors, turn validation off with --validate=false\n{source}:{line}:1: {what}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_taken_apart_and_places_kept() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  spec:\n    x: 1\n---\napiVersion: v1\nkind: Pod\n";
        let all = parse("a.yaml", text).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].place("spec.x").as_deref(), Some("a.yaml:7:5"));
        assert_eq!(all[1].place("kind").as_deref(), Some("a.yaml:10:1"));
    }

    #[test]
    fn faults_name_file_line_and_column() {
        let e =
            parse("broken.yaml", "apiVersion: v1\nkind: Pod\n  metadata: {name: x\n").unwrap_err();
        let text = e.to_string();
        let (first, second) = text.split_once('\n').unwrap();
        assert_eq!(
            first,
            "error: error parsing broken.yaml: error converting YAML to JSON: yaml: line 3: mapping values are not allowed in this context"
        );
        assert!(second.starts_with("broken.yaml:3:"), "{second}");
        let e = parse("x.yaml", "a: 1\n").unwrap_err().to_string();
        assert!(e.contains("[apiVersion not set, kind not set]"), "{e}");
    }

    #[tokio::test]
    async fn folders_give_their_manifests_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["b.yml", "a.json", "c.txt", "sub/d.yaml"] {
            std::fs::write(dir.path().join(name), "{\"apiVersion\":\"v1\",\"kind\":\"Pod\"}")
                .unwrap();
        }
        let (io, ..) = Io::memory("");
        let mut flags =
            FileFlags { filename: vec![dir.path().display().to_string()], recursive: false };
        let names = |all: Vec<Manifest>| -> Vec<String> {
            all.iter().map(|m| m.source.rsplit('/').next().unwrap().to_owned()).collect()
        };
        assert_eq!(names(read(&flags, &io).await.unwrap()), ["a.json", "b.yml"]);
        flags.recursive = true;
        assert_eq!(names(read(&flags, &io).await.unwrap()), ["a.json", "b.yml", "d.yaml"]);
        flags.filename = vec!["none.yaml".into()];
        let e = read(&flags, &io).await.unwrap_err();
        assert_eq!(e.to_string(), "error: the path \"none.yaml\" does not exist");
    }
}
