//! Old versions of objects in sled, for exact reads beyond the watch history.
//!
//! Written behind by a thread of its own, off every acknowledgement's path. Nothing current
//! depends on it: sled's flush is no durable sync, so whatever does not fit the log's revisions
//! is thrown away and begun anew. It is opened some seconds after the first change.
//!
//! `o` + key + revision holds the object put there (absent for a deletion); `r` + revision + key
//! holds the revision of the version before. `m` holds C and L, `k` tells the key from others:
//! objects are encrypted, each with its place as associated data. Invariant: for every change with
//! a revision in C+1..=L there is its `r`, and the version that it names is there.

use crate::cipher::Cipher;
use crate::codec::{Names, Reader, write_object};
use crate::config::StoreConfig;
use crate::error::StoreError;
use crate::event::Event;
use crate::files::Dirs;
use crate::metrics::{Metrics, add};
use crate::object::{Key, Object};
use crate::past::restore;
use crate::root::Root;
use crate::view::View;
use parking_lot::RwLock;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Most bytes of events that wait to be written; more are left out, and the archive begins anew
/// behind them.
const PENDING_BYTES: usize = 8 << 20;
/// Events are written together: after this many bytes or this time.
const WRITE_BYTES: usize = 2 << 20;
const WRITE_AFTER: Duration = Duration::from_secs(1);
/// After a write the thread rests this many times as long: history must not take the processor
/// from the present. (sled costs 24 us for a 1 KiB change, the rest of the store 16 us.)
const REST: u32 = 3;
/// Opening waits so that it does not slow down the start.
const OPEN_AFTER: Duration = Duration::from_secs(3);
/// How often things are tidied when nothing happens.
const IDLE: Duration = Duration::from_secs(30);
/// Where in `history/` the encrypted archive lies. What lies beside it was written in plain by
/// older programs and is removed.
const SEALED: &str = "sealed";
/// Bytes of an event beside its objects.
const EVENT_OVERHEAD: usize = 512;

enum Task {
    Events(Vec<Arc<Event>>),
    Flush(oneshot::Sender<()>),
    Close,
}

/// The writing end; dropping it ends the thread and waits for what is pending.
pub(crate) struct Archive {
    tasks: Sender<Task>,
    pending: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// The reading end.
#[derive(Clone)]
pub(crate) struct ArchiveReader {
    tasks: Sender<Task>,
    database: Database,
    cipher: Arc<Cipher>,
}

/// Opened by the thread, closed when the archive begins anew.
type Database = Arc<RwLock<Option<sled::Db>>>;

impl Archive {
    /// Starts the thread; `tidy` is called now and then.
    pub(crate) fn start(
        config: &StoreConfig,
        cipher: Arc<Cipher>,
        tidy: impl Fn() + Send + 'static,
    ) -> Result<(Self, ArchiveReader), StoreError> {
        let (tasks, received) = channel();
        let pending = Arc::new(AtomicUsize::new(0));
        let database = Database::default();
        let worker = Worker {
            dir: Dirs::of(&config.dir).history.join(SEALED),
            cache_bytes: config.archive_cache_bytes,
            keep_revisions: config.archive_revisions,
            database: database.clone(),
            cipher: cipher.clone(),
            pending: pending.clone(),
            events: Vec::new(),
            bytes: 0,
            span: Span::default(),
            rest_until: Instant::now() + OPEN_AFTER,
        };
        let thread = std::thread::Builder::new()
            .name("store-archive".into())
            .spawn(move || worker.run(&received, tidy))
            .map_err(|source| StoreError::io("start thread", "store-archive", source))?;
        let reader = ArchiveReader { tasks: tasks.clone(), database, cipher };
        Ok((Self { tasks, pending, thread: Some(thread) }, reader))
    }

    /// Takes the events of whole revisions, or leaves them out if too many wait.
    pub(crate) fn keep(&mut self, revisions: &[Vec<Arc<Event>>], metrics: &Metrics) {
        let events: Vec<_> = revisions.iter().flatten().cloned().collect();
        let bytes = events.iter().map(|event| event_bytes(event)).sum();
        if self.pending.fetch_add(bytes, Ordering::Relaxed) > PENDING_BYTES {
            self.pending.fetch_sub(bytes, Ordering::Relaxed);
            return add(&metrics.archive_skipped, events.len() as u64);
        }
        // Without the thread there is no archive, and that harms nobody.
        let _ = self.tasks.send(Task::Events(events));
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        let _ = self.tasks.send(Task::Close);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn event_bytes(event: &Event) -> usize {
    event.object.json.len() + EVENT_OVERHEAD
}

impl ArchiveReader {
    /// The state of one resource at a revision, from the view at a later one; None if some of it
    /// is not kept.
    pub(crate) async fn root_at(
        &self,
        view: &View,
        revision: u64,
        resource: &Arc<str>,
    ) -> Option<Root> {
        let (reply, flushed) = oneshot::channel();
        self.tasks.send(Task::Flush(reply)).ok()?;
        flushed.await.ok()?;
        let database = self.database.read().clone()?;
        let (view, resource, cipher) = (view.clone(), resource.clone(), self.cipher.clone());
        let read = move || match read_root((&database, &cipher), &view, revision, &resource) {
            Ok(root) => root,
            Err(error) => {
                tracing::warn!(%error, "read archive");
                None
            }
        };
        tokio::task::spawn_blocking(read).await.ok()?
    }
}

fn read_root(
    (database, cipher): (&sled::Db, &Cipher),
    view: &View,
    revision: u64,
    resource: &str,
) -> sled::Result<Option<Root>> {
    let span = read_span(database)?;
    if revision < span.complete_since || view.revision() > span.last {
        return Ok(None);
    }
    let mut root = (*view.0).clone();
    let mut names = Names::default();
    let mut seen = HashSet::new();
    let from = revision_key(revision + 1, &[]);
    let until = revision_key(view.revision() + 1, &[]);
    for change in database.range(from..until) {
        let (change, before) = change?;
        let Some(key) = read_key(&change[9..]).filter(|key| &*key.resource == resource) else {
            continue;
        };
        // The first change of a key after the revision knows what stood there at it.
        if !seen.insert(key.clone()) {
            continue;
        }
        match read_version((database, cipher), &key, &before, &mut names)? {
            Some(object) => restore(&mut root, &key, object),
            None => return Ok(None),
        }
    }
    root.revision = revision;
    Ok(Some(root))
}

/// The version with this revision, Some(None) for 0 (there was none), None if it is missing.
fn read_version(
    (database, cipher): (&sled::Db, &Cipher),
    key: &Key,
    revision: &[u8],
    names: &mut Names,
) -> sled::Result<Option<Option<Arc<Object>>>> {
    let revision = u64::from_be_bytes(revision.try_into().unwrap_or_default());
    if revision == 0 {
        return Ok(Some(None));
    }
    let place = object_key(&key_bytes(key), revision);
    let Some(sealed) = database.get(&place)? else { return Ok(None) };
    let Some(bytes) = cipher.open(&sealed, &place) else { return Ok(None) };
    Ok(Reader::new(&bytes).object(names).ok().map(|object| Some(Arc::new(object))))
}

/// What the archive covers: changes after `complete_since` up to `last`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    complete_since: u64,
    last: u64,
}

fn read_span(database: &sled::Db) -> sled::Result<Span> {
    let Some(bytes) = database.get(b"m")? else { return Ok(Span::default()) };
    let mut reader = Reader::new(&bytes);
    let mut next = || reader.u64().unwrap_or(0);
    Ok(Span { complete_since: next(), last: next() })
}

fn key_bytes(key: &Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    for part in [&key.resource, &key.namespace, &key.name] {
        bytes.extend_from_slice(part.as_bytes());
        bytes.push(0);
    }
    bytes
}

fn read_key(bytes: &[u8]) -> Option<Key> {
    let mut parts = bytes.split(|byte| *byte == 0).map(|part| std::str::from_utf8(part).ok());
    Some(Key::new(parts.next()??, parts.next()??, parts.next()??))
}

fn object_key(key: &[u8], revision: u64) -> Vec<u8> {
    [b"o", key, &revision.to_be_bytes()].concat()
}

fn revision_key(revision: u64, key: &[u8]) -> Vec<u8> {
    [b"r", &revision.to_be_bytes()[..], key].concat()
}

struct Worker {
    dir: PathBuf,
    cache_bytes: u64,
    keep_revisions: u64,
    database: Database,
    cipher: Arc<Cipher>,
    pending: Arc<AtomicUsize>,
    events: Vec<Arc<Event>>,
    bytes: usize,
    span: Span,
    rest_until: Instant,
}

impl Worker {
    fn run(mut self, tasks: &Receiver<Task>, tidy: impl Fn()) {
        self.remove_plain();
        loop {
            let rest = self.rest_until.saturating_duration_since(Instant::now());
            let wait = if self.events.is_empty() { IDLE } else { rest.max(WRITE_AFTER) };
            let written = match tasks.recv_timeout(wait) {
                Ok(Task::Events(events)) => {
                    self.bytes += events.iter().map(|event| event_bytes(event)).sum::<usize>();
                    self.events.extend(events);
                    if self.bytes >= WRITE_BYTES && rest.is_zero() { self.write() } else { Ok(()) }
                }
                Ok(Task::Flush(reply)) => {
                    let written = self.write();
                    let _ = reply.send(());
                    written
                }
                Ok(Task::Close) | Err(RecvTimeoutError::Disconnected) => return self.close(),
                Err(RecvTimeoutError::Timeout) => {
                    tidy();
                    self.write()
                }
            };
            if let Err(error) = written {
                tracing::warn!(%error, "write archive; it begins anew");
                self.begin_anew();
            }
        }
    }

    fn close(mut self) {
        let written = self.write();
        let database = self.database.write().take();
        if let (Ok(()), Some(database)) = (written, database) {
            // At worst the next start finds a gap and begins anew.
            let _ = database.flush();
        }
    }

    /// Writes what is pending, then rests.
    fn write(&mut self) -> sled::Result<()> {
        let begun = Instant::now();
        let written = self.write_pending();
        self.rest_until = Instant::now() + begun.elapsed() * REST;
        written
    }

    fn write_pending(&mut self) -> sled::Result<()> {
        let events = std::mem::take(&mut self.events);
        self.pending.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = 0;
        if events.is_empty() {
            return Ok(());
        }
        let mut database = self.open()?;
        // Later events first: what lies before a gap would be thrown away anyway.
        let gap = events.windows(2).rposition(|pair| pair[1].revision > pair[0].revision + 1);
        let events = &events[gap.map_or(0, |place| place + 1)..];
        let first = events[0].revision;
        if first > self.span.last + 1 {
            drop(database);
            self.begin_anew();
            database = self.open()?;
            self.span = Span { complete_since: first - 1, last: first - 1 };
        }
        let mut batch = sled::Batch::default();
        let new = events.iter().filter(|event| event.revision > self.span.last);
        new.for_each(|event| self.add(&mut batch, event));
        self.span.last = events.last().map_or(self.span.last, |last| last.revision);
        self.forget(&database, &mut batch)?;
        let mut span = Vec::with_capacity(16);
        span.extend_from_slice(&self.span.complete_since.to_le_bytes());
        span.extend_from_slice(&self.span.last.to_le_bytes());
        batch.insert(b"m", span);
        database.apply_batch(batch)
    }

    fn add(&self, batch: &mut sled::Batch, event: &Event) {
        let key = key_bytes(&event.object.key);
        let before = event.previous.as_ref().map_or(0, |previous| previous.revision);
        batch.insert(revision_key(event.revision, &key), &before.to_be_bytes());
        if let Some(previous) = &event.previous {
            // The newest version is in memory; it is written once it is no longer the newest.
            let place = object_key(&key, previous.revision);
            let mut sealed = Vec::with_capacity(previous.json.len() + 256);
            let write = |out: &mut Vec<u8>| write_object(out, previous);
            self.cipher.seal(&mut sealed, write, |_, _| place.clone());
            batch.insert(place, sealed);
        }
    }

    /// Drops the changes beyond the bound, and the versions that they ended.
    fn forget(&mut self, database: &sled::Db, batch: &mut sled::Batch) -> sled::Result<()> {
        let horizon = self.span.last.saturating_sub(self.keep_revisions);
        if horizon <= self.span.complete_since {
            return Ok(());
        }
        for change in database.range(revision_key(0, &[])..revision_key(horizon + 1, &[])) {
            let (change, before) = change?;
            let before = u64::from_be_bytes(before.as_ref().try_into().unwrap_or_default());
            batch.remove(object_key(&change[9..], before));
            batch.remove(change);
        }
        self.span.complete_since = horizon;
        Ok(())
    }

    fn open(&mut self) -> sled::Result<sled::Db> {
        if let Some(database) = &*self.database.read() {
            return Ok(database.clone());
        }
        let database = self.open_database().or_else(|error| {
            tracing::warn!(%error, "open archive; it begins anew");
            let _ = std::fs::remove_dir_all(&self.dir);
            self.open_database()
        })?;
        self.span = read_span(&database)?;
        *self.database.write() = Some(database.clone());
        Ok(database)
    }

    fn open_database(&self) -> sled::Result<sled::Db> {
        let config = sled::Config::new().path(&self.dir).cache_capacity(self.cache_bytes);
        let database = config.flush_every_ms(None).open()?;
        match database.get(b"k")? {
            Some(check) if self.cipher.knows(&check) => {}
            None if database.is_empty() => drop(database.insert(b"k", self.cipher.check())?),
            _ => return Err(sled::Error::Unsupported("it has another key".into())),
        }
        Ok(database)
    }

    fn remove_plain(&self) {
        let Some(Ok(found)) = self.dir.parent().map(std::fs::read_dir) else { return };
        for entry in found.flatten().filter(|entry| entry.path() != self.dir) {
            let path = entry.path();
            let removed = match path.is_dir() {
                true => std::fs::remove_dir_all(&path),
                false => std::fs::remove_file(&path),
            };
            if let Err(error) = removed {
                tracing::warn!(path = %path.display(), %error, "remove old archive");
            }
        }
    }

    fn begin_anew(&mut self) {
        drop(self.database.write().take());
        self.span = Span::default();
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(%error, "remove archive");
        }
    }
}
