//! Container logs: found, parsed, filtered and followed.
//!
//! The runtime writes lines `<time> <stream> <P|F> <text>`, where `P` is a piece of a line that
//! goes on. Files are rotated by renaming; a follower reads the old file to its end and goes on
//! with the new one. It sleeps until the kernel tells of a change in the folder.

use super::{Body, Query, Shared, streamed, text, with_type};
use crate::gc::rotated_files;
use crate::pod::state::{CONTAINER_NAME, POD_UID};
use bytes::Bytes;
use futures::StreamExt;
use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use nix::fcntl::OFlag;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rkube_cri::ContainerState;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncSeekExt, BufReader};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Pieces of log on their way to a client that reads slowly.
const PIECES: usize = 16;
/// Pieces are sent when they are this large or nothing more is there.
const PIECE_BYTES: usize = 32 << 10;
/// Read at once when a log is read from its end: more than any line has.
const BACKWARD_BYTES: u64 = 64 << 10;
/// How often a follower looks whether the container still runs: only the end of the stream waits.
const STILL_RUNNING: Duration = Duration::from_millis(500);

/// What of a log is wanted.
#[derive(Debug, Clone, Default, PartialEq)]
struct Options {
    follow: bool,
    previous: bool,
    timestamps: bool,
    since: Option<Timestamp>,
    tail: Option<usize>,
    limit_bytes: Option<usize>,
}

impl Options {
    fn parse(query: &Query, now: Timestamp) -> Result<Self, String> {
        fn number(query: &Query, name: &str) -> Result<Option<i64>, String> {
            let parse =
                |text: &str| text.parse().map_err(|_| format!("{name}: invalid number {text:?}"));
            query.get(name).filter(|text| !text.is_empty()).map(parse).transpose()
        }
        let since_time = query.get("sinceTime").filter(|text| !text.is_empty());
        let since = match (number(query, "sinceSeconds")?, since_time) {
            (Some(seconds), _) => now.checked_sub(SignedDuration::from_secs(seconds)).ok(),
            (None, Some(time)) => {
                Some(time.parse().map_err(|_| format!("sinceTime: invalid time {time:?}"))?)
            }
            (None, None) => None,
        };
        let positive = |value: Option<i64>| value.and_then(|value| usize::try_from(value).ok());
        Ok(Self {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            since,
            tail: positive(number(query, "tailLines")?),
            limit_bytes: positive(number(query, "limitBytes")?),
        })
    }
}

pub async fn answer(
    shared: &Shared,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let options = match Options::parse(query, Timestamp::now()) {
        Ok(options) => options,
        Err(message) => return text(StatusCode::BAD_REQUEST, message),
    };
    let Some(found) = shared.known.find(namespace, pod) else {
        return text(StatusCode::NOT_FOUND, format!("pod \"{pod}\" not found\n"));
    };
    if crate::pod::state::find(&found, container).is_none() {
        let message = format!("container {container} is not valid for pod {pod}");
        return text(StatusCode::BAD_REQUEST, message);
    }
    let uid = found.uid().unwrap_or_default();
    let dir = shared.context.config.log_dir(namespace, pod, &uid).join(container);
    let Some((attempt, log)) = choose(&dir, options.previous) else {
        let message = match options.previous {
            true => {
                format!("previous terminated container \"{container}\" in pod \"{pod}\" not found")
            }
            false => format!(
                "container \"{container}\" in pod \"{pod}\" is waiting to start: ContainerCreating"
            ),
        };
        return text(StatusCode::BAD_REQUEST, message);
    };
    let (sender, receiver) = mpsc::channel(PIECES);
    let shared = shared.clone();
    let container = container.to_owned();
    tokio::spawn(async move {
        let still_runs = || runs(&shared, &uid, &container, attempt);
        if let Err(error) = send(&log, &options, sender.clone(), still_runs).await {
            let _ = sender.send(Err(error)).await;
        }
    });
    with_type(StatusCode::OK, "text/plain", streamed(ReceiverStream::new(receiver).boxed()))
}

async fn runs(shared: &Shared, uid: &str, container: &str, attempt: u32) -> bool {
    let Ok(containers) = shared.context.runtime.list_containers().await else { return true };
    containers.iter().any(|c| {
        c.state == ContainerState::Running
            && c.attempt == attempt
            && c.labels.get(POD_UID).is_some_and(|label| label == uid)
            && c.labels.get(CONTAINER_NAME).is_some_and(|label| label == container)
    })
}

/// The newest log in a container's folder, or the one before it.
fn choose(dir: &Path, previous: bool) -> Option<(u32, PathBuf)> {
    // A link in its place leads somewhere else.
    if !fs::symlink_metadata(dir).ok()?.is_dir() {
        return None;
    }
    let entries = fs::read_dir(dir).ok()?.flatten();
    let mut attempts: Vec<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
        .collect();
    attempts.sort_unstable();
    let attempt = *attempts.iter().rev().nth(usize::from(previous))?;
    Some((attempt, dir.join(format!("{attempt}.log"))))
}

fn open(path: &Path) -> io::Result<tokio::fs::File> {
    open_std(path).map(tokio::fs::File::from_std)
}

fn open_std(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.read(true).custom_flags(OFlag::O_NOFOLLOW.bits());
    options.open(path)
}

/// One line of the file, or a piece of one.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    time: &'a str,
    is_whole: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let _stream = fields.next()?;
    let tag = fields.next()?;
    Some(Line { time, is_whole: !tag.starts_with(b"P"), text: fields.next().unwrap_or_default() })
}

/// Turns lines of the file into bytes for the client.
struct Filter {
    options: Options,
    in_line: bool,
    left: usize,
    out: Vec<u8>,
}

impl Filter {
    fn new(options: &Options) -> Self {
        let left = options.limit_bytes.unwrap_or(usize::MAX);
        Self { options: options.clone(), in_line: false, left, out: Vec::new() }
    }

    fn is_after_since(&self, line: &Line<'_>) -> bool {
        let Some(since) = self.options.since else { return true };
        line.time.parse::<Timestamp>().map_or(true, |time| time >= since)
    }

    fn add(&mut self, raw: &[u8]) {
        let Some(line) = parse(raw) else { return };
        if !self.is_after_since(&line) {
            return;
        }
        let start = self.out.len();
        if self.options.timestamps && !self.in_line {
            self.out.extend(line.time.as_bytes());
            self.out.push(b' ');
        }
        self.out.extend(line.text);
        if line.is_whole {
            self.out.push(b'\n');
        }
        self.in_line = !line.is_whole;
        let added = (self.out.len() - start).min(self.left);
        self.out.truncate(start + added);
        self.left -= added;
    }

    fn is_full(&self) -> bool {
        self.left == 0
    }
}

type Sender = mpsc::Sender<io::Result<Bytes>>;

/// False if nobody reads any more.
async fn flush(filter: &mut Filter, to: &Sender) -> bool {
    if filter.out.is_empty() {
        return !to.is_closed();
    }
    to.send(Ok(std::mem::take(&mut filter.out).into())).await.is_ok()
}

async fn send<F, R>(log: &Path, options: &Options, to: Sender, still_runs: F) -> io::Result<()>
where
    F: Fn() -> R,
    R: Future<Output = bool>,
{
    // Before the first read, so that nothing falls between reading and waiting.
    let notices = if options.follow { Some(notices(log)?) } else { None };
    let mut files = rotated_files(log);
    let mut from = 0;
    if let Some(tail) = options.tail {
        let log = log.to_owned();
        let found = tokio::task::spawn_blocking(move || tail_of(files, &log, tail)).await;
        (files, from) = found.map_err(io::Error::other)??;
        // The newest is read below.
        files.pop();
    }
    let mut filter = Filter::new(options);
    for file in files {
        let mut file = open(&file)?;
        file.seek(io::SeekFrom::Start(std::mem::take(&mut from))).await?;
        let mut reader = BufReader::new(file);
        if !copy(&mut reader, &mut Vec::new(), &mut filter, &to).await? {
            return Ok(());
        }
    }
    let mut file = open(log)?;
    file.seek(io::SeekFrom::Start(from)).await?;
    let mut inode = file.metadata().await?.ino();
    let mut reader = BufReader::new(file);
    let (mut partial, mut ended) = (Vec::new(), false);
    loop {
        if !copy(&mut reader, &mut partial, &mut filter, &to).await? {
            return Ok(());
        }
        if let Some(new) =
            fs::symlink_metadata(log).ok().map(|m| m.ino()).filter(|new| *new != inode)
        {
            // What was written between our last read and the renaming.
            if !copy(&mut reader, &mut partial, &mut filter, &to).await? {
                return Ok(());
            }
            file = open(log)?;
            (inode, reader) = (new, BufReader::new(file));
            partial.clear();
            continue;
        }
        let Some(notices) = notices.as_ref().filter(|_| !ended) else { return Ok(()) };
        tokio::select! {
            () = wait(notices) => {}
            () = to.closed() => return Ok(()),
            () = tokio::time::sleep(STILL_RUNNING) => ended = !still_runs().await,
        }
    }
}

/// Reads whole lines to the end of the file; `partial` keeps the beginning of one that is still
/// being written. False if the client has enough.
async fn copy(
    reader: &mut BufReader<tokio::fs::File>,
    partial: &mut Vec<u8>,
    filter: &mut Filter,
    to: &Sender,
) -> io::Result<bool> {
    while reader.read_until(b'\n', partial).await? > 0 {
        if !partial.ends_with(b"\n") {
            break;
        }
        filter.add(partial);
        partial.clear();
        if filter.is_full() || (filter.out.len() >= PIECE_BYTES && !flush(filter, to).await) {
            flush(filter, to).await;
            return Ok(false);
        }
    }
    Ok(flush(filter, to).await)
}

/// Where the last lines of a file begin.
#[derive(Debug, PartialEq, Eq)]
struct LastLines {
    from: u64,
    /// Whole lines from there to the end; fewer than wanted if the file has no more.
    lines: usize,
}

/// Finds the last `wanted` whole lines of a file, from its end: a log may be large.
fn last_lines(file: &fs::File, wanted: usize) -> io::Result<LastLines> {
    let mut unread = file.metadata()?.len();
    // What is read and not judged yet; the file's bytes from `unread` on.
    let mut window: Vec<u8> = Vec::new();
    let (mut lines, mut in_whole_line) = (0, false);
    loop {
        while let Some(end) = window.iter().rposition(|byte| *byte == b'\n') {
            // After the last newline stands what is still being written.
            let is_whole = in_whole_line && parse(&window[end + 1..]).is_some_and(|l| l.is_whole);
            if is_whole && lines == wanted {
                return Ok(LastLines { from: unread + window.len() as u64 + 1, lines });
            }
            lines += usize::from(is_whole);
            in_whole_line = true;
            window.truncate(end);
        }
        if unread == 0 {
            break;
        }
        let step = unread.min(BACKWARD_BYTES);
        unread -= step;
        // At most BACKWARD_BYTES.
        let mut block = vec![0; usize::try_from(step).unwrap_or(0)];
        file.read_exact_at(&mut block, unread)?;
        block.append(&mut window);
        window = block;
    }
    let is_whole = in_whole_line && parse(&window).is_some_and(|line| line.is_whole);
    match is_whole && lines == wanted {
        true => Ok(LastLines { from: window.len() as u64 + 1, lines }),
        false => Ok(LastLines { from: 0, lines: lines + usize::from(is_whole) }),
    }
}

/// The files to read for the last `wanted` lines, the oldest first, and where to begin in the first.
fn tail_of(earlier: Vec<PathBuf>, log: &Path, wanted: usize) -> io::Result<(Vec<PathBuf>, u64)> {
    let mut missing = wanted;
    let mut from_here: Vec<PathBuf> = Vec::new();
    let newest_first = std::iter::once(log.to_owned()).chain(earlier.into_iter().rev());
    for file in newest_first {
        let found = last_lines(&open_std(&file)?, missing)?;
        from_here.insert(0, file);
        missing -= found.lines.min(missing);
        if found.from > 0 || missing == 0 {
            return Ok((from_here, found.from));
        }
    }
    Ok((from_here, 0))
}

/// A file descriptor for the reactor.
struct Notices(Inotify);

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn notices(log: &Path) -> io::Result<AsyncFd<Notices>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let what = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_FROM;
    inotify.add_watch(log.parent().unwrap_or(log), what)?;
    // Its successor is unsafe; `Notices` owns its descriptor and always gives the same one.
    #[expect(deprecated)]
    AsyncFd::new(Notices(inotify))
}

/// Until something has changed in the folder.
async fn wait(notices: &AsyncFd<Notices>) {
    let Ok(mut ready) = notices.readable().await else { return };
    while notices.get_ref().0.read_events().is_ok_and(|events| !events.is_empty()) {}
    ready.clear_ready();
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01Z stdout F one\n\
                       2026-01-01T00:00:02Z stderr P tw\n\
                       2026-01-01T00:00:02Z stderr F o\n\
                       2026-01-01T00:00:03Z stdout F three\n";

    async fn read(log: &Path, options: Options) -> String {
        let (sender, mut receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES);
        let collect = async {
            let mut all = Vec::new();
            while let Some(piece) = receiver.recv().await {
                all.extend(piece.unwrap());
            }
            String::from_utf8(all).unwrap()
        };
        let (sent, all) = tokio::join!(send(log, &options, sender, || async { false }), collect);
        sent.unwrap();
        all
    }

    #[tokio::test]
    async fn options_choose_lines() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        fs::write(&log, LOG).unwrap();
        let since = "2026-01-01T00:00:02Z".parse().ok();
        let none = Options::default;
        let cases = [
            (none(), "one\ntwo\nthree\n"),
            (Options { tail: Some(2), ..none() }, "two\nthree\n"),
            (Options { tail: Some(0), ..none() }, ""),
            (Options { since, ..none() }, "two\nthree\n"),
            (Options { limit_bytes: Some(5), ..none() }, "one\nt"),
            (
                Options { timestamps: true, tail: Some(2), ..none() },
                "2026-01-01T00:00:02Z two\n2026-01-01T00:00:03Z three\n",
            ),
        ];
        for (options, expected) in cases {
            assert_eq!(read(&log, options.clone()).await, expected, "{options:?}");
        }
    }

    #[tokio::test]
    async fn the_last_lines_of_many_over_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        let line = |n: usize| format!("t stdout P {n}\nt stdout F {}\n", "x".repeat(n % 700));
        let shown = |n: usize| format!("{n}{}\n", "x".repeat(n % 700));
        let first: String = (0..900).map(line).collect();
        let second: String = (900..1800).map(line).collect();
        assert!(first.len() as u64 > 3 * BACKWARD_BYTES);
        fs::write(dir.path().join("0.log.20260101-000000.000"), first).unwrap();
        fs::write(&log, second + "t stdout F begun").unwrap();
        for tail in [0, 1, 2, 100, 899, 900, 901, 1500, 1799, 1800, 5000] {
            let expected: String = (1800 - tail.min(1800)..1800).map(shown).collect();
            let read = read(&log, Options { tail: Some(tail), ..Options::default() }).await;
            assert!(read == expected, "{tail}: {} lines", read.lines().count());
        }
    }

    #[tokio::test]
    async fn a_follower_goes_on_after_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        fs::write(&log, "t stdout F a\n").unwrap();
        let (sender, mut receiver) = mpsc::channel(PIECES);
        let options = Options { follow: true, ..Options::default() };
        let (path, follow) = (log.clone(), options);
        tokio::spawn(async move { send(&path, &follow, sender, || async { true }).await });
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "a\n");
        fs::rename(&log, dir.path().join("0.log.1")).unwrap();
        fs::write(&log, "t stdout F b\n").unwrap();
        assert_eq!(receiver.recv().await.unwrap().unwrap(), "b\n");
    }

    #[test]
    fn the_newest_log_and_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["0.log", "9.log", "10.log", "10.log.20260101-000000.000"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(choose(dir.path(), false).unwrap().0, 10);
        assert_eq!(choose(dir.path(), true).unwrap().0, 9);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        assert_eq!(choose(&dir.path().join("link"), false), None);
    }
}
