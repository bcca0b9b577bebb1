//! Watchers: each follows a scope at some member, goes on at another one, and must get exactly
//! the history from where it began.

use super::check::{Change, number};
use super::plan::MS;
use super::{Happening, World};
use crate::error::WatchError;
use crate::event::{Event, EventKind};
use crate::object::{Key, Scope};
use crate::watch::Watch;
use std::sync::Arc;

/// One watcher.
pub(super) struct Watcher {
    scope: Scope,
    /// Everything in scope up to there was delivered.
    at: u64,
    /// What a bookmark said last.
    bookmark: u64,
    /// Where it is: member and boot.
    on: Option<(u64, u64)>,
    watch: Option<Watch>,
    /// Mean time between two looks.
    every: u64,
    began: bool,
}

impl World {
    pub(super) fn add_watcher(&mut self) {
        let scope = match self.watchers.len() {
            0 => Scope::all("pods"),
            1 => Scope::namespace("pods", "x"),
            _ => Scope::object(&Key::new("pods", "x", "k0")),
        };
        let every = self.random.between(5, 200) * MS;
        let watcher =
            Watcher { scope, at: 0, bookmark: 0, on: None, watch: None, every, began: false };
        self.watchers.push(watcher);
        self.at(0, Happening::Watch(self.watchers.len() - 1));
    }

    pub(super) fn look(&mut self, place: usize) {
        let wait = self.random.around(self.watchers[place].every);
        self.at(wait, Happening::Watch(place));
        let working = self.working();
        let on = self.watchers[place].on;
        let there = on.filter(|(id, boot)| {
            let boots = self.machines.get(id).and_then(|m| m.process.as_ref()).map(|p| p.boot);
            boots == Some(*boot)
        });
        let hops = self.random.permille(20);
        let Some((id, _)) = there.filter(|_| !hops) else {
            if let Some(id) = self.random.pick(&working) {
                self.watch_at(place, id);
            }
            return;
        };
        if working.contains(&id) {
            self.deliver(place, id);
            self.look_at_edge(place, id);
        }
    }

    /// Goes on at a member, from where the watcher stands.
    fn watch_at(&mut self, place: usize, id: u64) {
        let Some(p) = self.machines.get(&id).and_then(|m| m.process.as_ref()) else { return };
        let watcher = &mut self.watchers[place];
        (watcher.watch, watcher.on) = (None, None);
        let boot = p.boot;
        match p.history.watch(watcher.scope.clone(), watcher.at, p.revision) {
            Ok(watch) => {
                (watcher.watch, watcher.on) = (Some(watch), Some((id, boot)));
                let resumed = std::mem::replace(&mut watcher.began, true);
                self.count(if resumed { "resumed watch" } else { "watch" });
            }
            // This member is behind: another one, or later.
            Err(WatchError::Future { .. }) => self.count("watch of the future"),
            Err(WatchError::Compacted { .. }) => {
                // Lists anew, which it does not where it would go back.
                if p.revision >= watcher.at {
                    (watcher.at, watcher.bookmark) = (p.revision, p.revision);
                }
                self.count("watch compacted");
            }
        }
    }

    fn deliver(&mut self, place: usize, id: u64) {
        let watcher = &mut self.watchers[place];
        let Some(watch) = &mut watcher.watch else { return };
        // Asked for while events wait, a bookmark says nothing of them and keeps none back.
        let early = watch.progress();
        let Ok(events) = watch.try_batch() else {
            (watcher.watch, watcher.on) = (None, None);
            return self.count("lagged watch");
        };
        let bookmark = watch.progress();
        let (after, until) = (watcher.at, events.last().map_or(watcher.at, |e| e.revision));
        let got = got(&events);
        let expected = self.check.events(&watcher.scope, after, until);
        let same = got == expected;
        let early_ahead = !self.check.events(&watcher.scope, after, early).is_empty();
        let ahead = !self.check.events(&watcher.scope, until, bookmark).is_empty();
        let back = bookmark < watcher.bookmark || bookmark < until;
        watcher.at = until.max(bookmark);
        watcher.bookmark = bookmark;
        let boundary = self.check.head();
        if early_ahead {
            self.fail(id, &format!("a bookmark says {early} before {got:?}"));
        }
        if !same {
            self.fail(id, &format!("a watch from {after} got {got:?}, not {expected:?}"));
        }
        // Behind the batch there may be more that was not asked for yet: then it stands still.
        if (ahead && bookmark > until) || back || bookmark > boundary {
            self.fail(id, &format!("a bookmark says {bookmark} after {until}, head {boundary}"));
        }
        if !got.is_empty() {
            self.note(id, "watched", until, got.len() as u64);
        }
    }

    /// A watch that begins where the member's history does gets all behind it, or is refused: right
    /// before what was dropped last, and at it.
    fn look_at_edge(&self, place: usize, id: u64) {
        let Some(p) = self.machines.get(&id).and_then(|m| m.process.as_ref()) else { return };
        let scope = &self.watchers[place].scope;
        let oldest = p.history.complete_since();
        for from in [oldest.saturating_sub(1), oldest] {
            let Ok(mut watch) = p.history.watch(scope.clone(), from, p.revision) else { continue };
            let Ok(events) = watch.try_batch() else { continue };
            let (got, until) = (got(&events), watch.progress());
            let expected = self.check.events(scope, from, until);
            if got != expected {
                self.fail(id, &format!("a watch opened at {from} got {got:?}, not {expected:?}"));
            }
        }
    }
}

/// What happened, as the history has it.
fn got(events: &[Arc<Event>]) -> Vec<(u64, Change)> {
    let got = events.iter().map(|event| {
        let value = (event.kind == EventKind::Put).then(|| number(&event.object));
        (event.revision, Change { key: event.object.key.clone(), value })
    });
    got.collect()
}
