//! A real process is killed in the middle of its writes, again and again: what it said is there.

mod common;

use common::{config, object, pod};
use rkube_store::{Command, Outcome, Scope, Store, Write};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};

const ROUNDS: usize = 12;
const CHILD: &str = "RKUBE_STORE_KILL_TEST_DIR";
const WRITERS: usize = 8;

/// Says `key value revision` for each write once it is acknowledged.
async fn write_until_killed(dir: &Path) {
    let store = Store::open(config(dir)).unwrap();
    let begin = store.status().revision;
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writers.push(tokio::spawn(async move {
            for round in 0.. {
                let name = format!("{writer}-{}", round % 5);
                let value = format!("{begin}-{round}");
                let key = pod("x", &name);
                let write = Write::Put(key.clone(), object(&key, &value));
                let outcome = store.propose(Command::unconditional(0, vec![write])).await;
                let Ok(Outcome::Applied { revision, .. }) = outcome else {
                    panic!("{outcome:?}");
                };
                let mut out = std::io::stdout().lock();
                writeln!(out, "{name} {value} {revision}").unwrap();
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
}

fn spawn(dir: &Path) -> Child {
    let mut child = Process::new(std::env::current_exe().unwrap());
    child.args(["--exact", "killed_writers_lose_nothing", "--nocapture"]);
    child.env(CHILD, dir).stdout(Stdio::piped());
    child.spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_writers_lose_nothing() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return write_until_killed(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    // Key -> (revision, value) as acknowledged last.
    let mut acknowledged = BTreeMap::<String, (u64, String)>::new();
    let mut highest = 0;
    for round in 0..ROUNDS {
        let mut child = spawn(dir.path());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        for line in lines.map_while(Result::ok) {
            let words: Vec<_> = line.split(' ').collect();
            if let [name, value, revision] = words[..]
                && let Ok(revision) = revision.parse::<u64>()
            {
                seen += 1;
                highest = highest.max(revision);
                let newest = acknowledged.entry(name.to_owned()).or_default();
                if newest.0 < revision {
                    *newest = (revision, value.to_owned());
                }
            }
            if seen == 20 + round * 17 {
                // SIGKILL; what the pipe still holds was acknowledged too and is read on.
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(seen > 0, "the writer said nothing");
    }
    let store = Store::open(config(dir.path())).unwrap();
    assert!(store.status().revision >= highest, "the revision went back");
    let view = store.view();
    assert_eq!(view.count(&Scope::all("pods")), WRITERS * 5);
    for (name, (revision, value)) in acknowledged {
        let found = view.get(&pod("x", &name)).unwrap();
        assert!(found.revision >= revision, "{name}: {} < {revision}", found.revision);
        if found.revision == revision {
            assert_eq!(common::value_of(&found), value, "{name}");
        }
    }
}
