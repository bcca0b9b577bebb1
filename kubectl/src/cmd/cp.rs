//! `cp`: tar on the other side, through exec. What comes back is unpacked only below the
//! destination, and links are left out, since they could lead out of it.

use crate::context::Context;
use crate::error::{Error, Result};
use crate::pods;
use crate::resource::Info;
use crate::spdy::Process;
use crate::stream::{self, Streams};
use crate::tar::{self, Entry, Kind};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// Copy files and folders to and from containers.
#[derive(clap::Args, Debug)]
pub struct CpArgs {
    /// SOURCE and DESTINATION; [NAMESPACE/]POD:PATH is in a container
    paths: Vec<String>,
    /// The container
    #[arg(long, short = 'c')]
    container: Option<String>,
    /// Accepted for kubectl's sake: owners and times are not kept
    #[arg(long, hide = true)]
    no_preserve: bool,
}

/// One side of a copy.
#[derive(Debug, PartialEq)]
enum Side {
    Local(PathBuf),
    Remote { namespace: Option<String>, pod: String, path: String },
}

impl Side {
    fn parse(text: &str) -> Result<Self> {
        let Some((pod, path)) =
            text.split_once(':').filter(|(pod, _)| !pod.starts_with(['.', '/']))
        else {
            return Ok(Side::Local(text.into()));
        };
        let (namespace, pod) = match pod.split_once('/') {
            Some((namespace, pod)) => (Some(namespace.to_owned()), pod),
            None => (None, pod),
        };
        if pod.is_empty() || pod.contains('/') || path.is_empty() {
            return Err(Error::msg(format!(
                "unexpected path {text:?}: [NAMESPACE/]POD:PATH is expected"
            )));
        }
        Ok(Side::Remote { namespace, pod: pod.into(), path: path.into() })
    }
}

pub async fn run(ctx: &Context, args: &CpArgs) -> Result<()> {
    let [from, to] = args.paths.as_slice() else {
        return Err(Error::msg("source and destination are required"));
    };
    match (Side::parse(from)?, Side::parse(to)?) {
        (Side::Local(from), Side::Remote { namespace, pod, path }) => {
            let pod = find(ctx, namespace, &pod).await?;
            upload(ctx, args, &from, &pod, &path).await
        }
        (Side::Remote { namespace, pod, path }, Side::Local(to)) => {
            let pod = find(ctx, namespace, &pod).await?;
            download(ctx, args, &pod, &path, &to).await
        }
        (Side::Local(_), Side::Local(_)) => {
            Err(Error::msg("one of src or dest must be a remote file specification"))
        }
        (Side::Remote { .. }, Side::Remote { .. }) => {
            Err(Error::msg("one of src or dest must be a local file specification"))
        }
    }
}

async fn find(ctx: &Context, namespace: Option<String>, name: &str) -> Result<Info> {
    let resource = ctx.resource("pods").await?;
    let mut info = crate::resource::bare(ctx, resource, name).await?;
    info.namespace = namespace.or(info.namespace);
    info.object = ctx.http().await?.get(&info.path()).await?;
    Ok(info)
}

async fn start(
    ctx: &Context,
    args: &CpArgs,
    pod: &Info,
    command: &[&str],
    stdin: bool,
) -> Result<Process> {
    super::exec::check_phase(pod, "exec into a container in")?;
    let container = pods::container(ctx, pod, args.container.as_deref(), false)?;
    let streams = Streams { container, stdin, ..Default::default() };
    let command: Vec<String> = command.iter().map(|c| (*c).to_owned()).collect();
    stream::start(ctx, pod, Some(&command), &streams).await
}

async fn upload(ctx: &Context, args: &CpArgs, from: &Path, pod: &Info, to: &str) -> Result<()> {
    if !from.exists() {
        return Err(Error::msg(format!("{} doesn't exist in local filesystem", from.display())));
    }
    let (folder, name) = target(ctx, args, from, pod, to).await?;
    let mut process = start(ctx, args, pod, &["tar", "-xmf", "-", "-C", &folder], true).await?;
    let Some(mut stdin) = process.stdin.take() else {
        return Err(Error::msg("the container takes no input"));
    };
    let send = async {
        let packed = tar::pack(from, &name, &mut stdin).await;
        let flushed = stdin.shutdown().await;
        packed.and(flushed)
    };
    let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
    let (sent, _, complaint) = tokio::join!(send, text_of(stdout), text_of(stderr));
    ended(process, &complaint).await?;
    sent.map_err(|e| Error::msg(format!("copying {}: {e}", from.display())))
}

/// The remote folder to unpack in, and the name there.
async fn target(
    ctx: &Context,
    args: &CpArgs,
    from: &Path,
    pod: &Info,
    to: &str,
) -> Result<(String, String)> {
    let own = from.canonicalize()?;
    let own =
        own.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_else(|| "root".into());
    let mut process = start(ctx, args, pod, &["test", "-d", to], false).await?;
    let status = process.status().await;
    let is_folder = to.ends_with('/') || status["status"] == "Success";
    if is_folder {
        return Ok((to.to_owned(), own));
    }
    let path = Path::new(to);
    let folder = match path.parent().map(|p| p.to_string_lossy().into_owned()) {
        Some(folder) if !folder.is_empty() => folder,
        _ => ".".into(),
    };
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or(own);
    Ok((folder, name))
}

async fn download(ctx: &Context, args: &CpArgs, pod: &Info, from: &str, to: &Path) -> Result<()> {
    let trimmed = from.trim_end_matches('/');
    let (folder, name) = trimmed.rsplit_once('/').unwrap_or((".", trimmed));
    let folder = if folder.is_empty() { "/" } else { folder };
    let to = if to.is_dir() { to.join(name) } else { to.to_owned() };
    let mut process = start(ctx, args, pod, &["tar", "cf", "-", "-C", folder, name], false).await?;
    let (stdout, stderr) = (process.stdout.take(), process.stderr.take());
    let unpack = async {
        match stdout {
            Some(mut archive) => unpack(ctx, &mut archive, name, &to).await,
            None => Err(Error::msg("the container gives no output")),
        }
    };
    let (unpacked, complaint) = tokio::join!(unpack, text_of(stderr));
    let count = unpacked?;
    ended(process, &complaint).await?;
    if count == 0 {
        return Err(Error::msg(format!(
            "{from} in pod {} holds nothing that can be copied",
            pod.name
        )));
    }
    Ok(())
}

async fn text_of(from: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        // A complaint that breaks off is still worth showing; longer than this it is none.
        let _ = from.take(64 << 10).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

async fn ended(mut process: Process, complaint: &str) -> Result<()> {
    let status = process.status().await;
    if status["status"] == "Success" {
        return Ok(());
    }
    Err(Error::msg(match (complaint, stream::exit_code(&status)) {
        ("", Some(code)) => format!("command terminated with exit code {code}"),
        ("", None) => stream::failure(&status),
        (text, _) => text.to_owned(),
    }))
}

/// Unpacks what is called `name` or lies below it to `to`; gives the number of entries.
async fn unpack(
    ctx: &Context,
    archive: &mut (impl AsyncRead + Unpin),
    name: &str,
    to: &Path,
) -> Result<usize> {
    let mut count = 0;
    while let Some(entry) = tar::next(archive).await? {
        let rest =
            entry.name.trim_end_matches('/').strip_prefix(name).map(|r| r.trim_start_matches('/'));
        let path = rest.and_then(|rest| tar::destination(to, rest));
        match (entry.kind, path) {
            (Kind::File | Kind::Folder, Some(path)) if !through_link(to, &path) => {
                write(archive, &entry, &path)
                    .await
                    .map_err(|e| Error::msg(format!("writing {}: {e}", path.display())))?;
                count += 1;
                continue;
            }
            (Kind::Other, _) => {
                ctx.io.note(format!("warning: skipping {:?}: it is a link or a device", entry.name))
            }
            _ => ctx.io.note(format!(
                "warning: skipping {:?}: it leads out of the destination",
                entry.name
            )),
        }
        skip(archive, entry.size).await?;
    }
    Ok(count)
}

/// Whether a link that lies in the destination already would lead out of it.
fn through_link(root: &Path, path: &Path) -> bool {
    path.ancestors().take_while(|p| p.starts_with(root) && *p != root).any(Path::is_symlink)
}

async fn write(
    archive: &mut (impl AsyncRead + Unpin),
    entry: &Entry,
    path: &Path,
) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    if entry.kind == Kind::Folder {
        return tokio::fs::create_dir_all(path).await;
    }
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        tokio::fs::create_dir_all(parent).await?;
    }
    let mut file = tokio::fs::File::create(path).await?;
    let copied = tokio::io::copy(&mut archive.take(entry.size), &mut file).await?;
    file.flush().await?;
    if copied < entry.size {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    file.set_permissions(std::fs::Permissions::from_mode(entry.mode & 0o777)).await?;
    skip_exact(archive, tar::padding(entry.size) as u64).await
}

async fn skip(archive: &mut (impl AsyncRead + Unpin), size: u64) -> Result<()> {
    Ok(skip_exact(archive, size + tar::padding(size) as u64).await?)
}

async fn skip_exact(archive: &mut (impl AsyncRead + Unpin), bytes: u64) -> std::io::Result<()> {
    tokio::io::copy(&mut archive.take(bytes), &mut tokio::io::sink()).await.map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides() {
        let remote = |ns: Option<&str>, pod: &str, path: &str| Side::Remote {
            namespace: ns.map(Into::into),
            pod: pod.into(),
            path: path.into(),
        };
        assert_eq!(Side::parse("a:/x").unwrap(), remote(None, "a", "/x"));
        assert_eq!(Side::parse("ns/a:x:y").unwrap(), remote(Some("ns"), "a", "x:y"));
        assert_eq!(Side::parse("./a:b").unwrap(), Side::Local("./a:b".into()));
        assert!(Side::parse("a:").is_err());
    }

    #[tokio::test]
    async fn hostile_archives_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        std::fs::create_dir(&out).unwrap();
        std::os::unix::fs::symlink(dir.path(), out.join("link")).unwrap();
        let mut archive = Vec::new();
        for name in ["f/good", "f/../../evil", "f/link/evil", "/evil"] {
            archive.extend(tar::header(name, Kind::File, 2, 0o644));
            archive.extend(b"hi");
            archive.extend(vec![0; tar::padding(2)]);
        }
        let (io, ..) = crate::io::Io::memory("");
        let ctx = Context::new(Default::default(), io);
        assert_eq!(unpack(&ctx, &mut archive.as_slice(), "f", &out).await.unwrap(), 1);
        assert_eq!(std::fs::read(out.join("good")).unwrap(), b"hi");
        assert!(!dir.path().join("evil").exists());
    }
}
