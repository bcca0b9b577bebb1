//! What to do about an object that has owners or waits for its dependents.

use crate::common::uid;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use rkube_runtime::{Plan, Reconcile};

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// An object with its owners and dependents.
#[derive(Clone, Debug)]
pub struct View {
    /// The object.
    pub meta: ObjectMeta,
    /// One for each of its owner references.
    pub owners: Vec<Owner>,
    /// The objects that name it as an owner.
    pub dependents: Vec<Dependent>,
}

/// An owner reference and what is known about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Owner {
    /// As the object has it.
    pub reference: OwnerReference,
    /// What the caches, or the API server, know.
    pub state: OwnerState,
}

/// What is known about an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// It is there.
    Solid,
    /// It is being deleted and waits until this object is gone.
    Waiting,
    /// The caches don't have it.
    Missing,
    /// The API server doesn't have it.
    Absent,
    /// It lives in another namespace, so it can't own this object.
    Foreign,
}

/// An object that names another as its owner.
#[derive(Clone, Debug, PartialEq)]
pub struct Dependent {
    /// The index of its kind.
    pub kind: usize,
    /// Its metadata.
    pub meta: ObjectMeta,
    /// Whether its owner may not go before it.
    pub blocks: bool,
}

/// How dependents fare when an object is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// They are deleted afterwards.
    Background,
    /// They are deleted before.
    Foreground,
    /// They stay.
    Orphan,
}

/// What can be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Ask the API server for these owners, then decide with [`collect`].
    Verify(Vec<OwnerReference>),
    /// Delete the object.
    Delete(Policy),
    /// Take these owners off the object.
    DropOwners(Vec<String>),
    /// Take this object off a dependent.
    Orphan(Box<Dependent>),
    /// Have a dependent looked at.
    Examine(Box<Dependent>),
    /// Remove a finalizer of the object.
    RemoveFinalizer(&'static str),
    /// Tell users of an owner in another namespace.
    WarnForeign(OwnerReference),
}

/// The rule.
#[derive(Debug)]
pub struct Rule;

impl Reconcile for Rule {
    type View = View;
    type Action = Action;

    fn reconcile(&self, view: &View, _now: Timestamp) -> Plan<Action> {
        if view.meta.deletion_timestamp.is_some() {
            return Plan::of(deleting(view));
        }
        let foreign = view.owners.iter().filter(|o| o.state == OwnerState::Foreign);
        let mut plan = Plan::none();
        foreign.for_each(|o| plan.push(Action::WarnForeign(o.reference.clone())));
        let unsure = |o: &&Owner| matches!(o.state, OwnerState::Missing | OwnerState::Foreign);
        let missing: Vec<_> =
            view.owners.iter().filter(unsure).map(|o| o.reference.clone()).collect();
        match missing.is_empty() {
            false => plan.push(Action::Verify(missing)),
            true => plan.actions.extend(collect(view)),
        }
        plan
    }
}

fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == finalizer)
}

/// An object that goes away waits for its dependents in the manner that its finalizers say.
fn deleting(view: &View) -> Vec<Action> {
    if has_finalizer(&view.meta, ORPHAN) {
        let orphan = |d: &Dependent| Action::Orphan(Box::new(d.clone()));
        let mut actions: Vec<_> = view.dependents.iter().map(orphan).collect();
        actions.push(Action::RemoveFinalizer(ORPHAN));
        return actions;
    }
    if !has_finalizer(&view.meta, FOREGROUND) {
        return Vec::new();
    }
    if !view.dependents.iter().any(|d| d.blocks) {
        return vec![Action::RemoveFinalizer(FOREGROUND)];
    }
    let staying = view.dependents.iter().filter(|d| d.meta.deletion_timestamp.is_none());
    staying.map(|d| Action::Examine(Box::new(d.clone()))).collect()
}

/// What follows once every owner's state is certain: an object stays as long as one owner does;
/// owners that are gone, or that wait for it, are then taken off it.
pub fn collect(view: &View) -> Vec<Action> {
    let of = |state: OwnerState| view.owners.iter().filter(move |o| o.state == state);
    let gone: Vec<String> = of(OwnerState::Absent)
        .chain(of(OwnerState::Waiting))
        .map(|o| o.reference.uid.clone())
        .collect();
    if gone.is_empty() {
        return Vec::new();
    }
    if of(OwnerState::Solid).next().is_some() {
        return vec![Action::DropOwners(gone)];
    }
    if of(OwnerState::Waiting).next().is_some() && !view.dependents.is_empty() {
        return foreground(view);
    }
    let policy = match () {
        () if has_finalizer(&view.meta, ORPHAN) => Policy::Orphan,
        () if has_finalizer(&view.meta, FOREGROUND) => Policy::Foreground,
        () => Policy::Background,
    };
    vec![Action::Delete(policy)]
}

/// An owner waits for this object, which has dependents of its own: they go first. A dependent that
/// waits in its turn (a circle) would block for ever, so the object lets go of its owners' wait.
fn foreground(view: &View) -> Vec<Action> {
    let circle = view.dependents.iter().any(|d| {
        d.blocks && d.meta.deletion_timestamp.is_some() && has_finalizer(&d.meta, FOREGROUND)
    });
    let delete = Action::Delete(Policy::Foreground);
    if !circle {
        return vec![delete];
    }
    let blocking = view.owners.iter().filter(|o| o.reference.block_owner_deletion == Some(true));
    let unblock: Vec<_> = blocking.map(|o| o.reference.uid.clone()).collect();
    match unblock.is_empty() {
        true => vec![delete],
        false => vec![Action::DropOwners(unblock), delete],
    }
}

/// Whether a reference to the owner keeps it from going before the object.
pub(super) fn blocks(meta: &ObjectMeta, owner: &ObjectMeta) -> bool {
    let references = meta.owner_references.iter().flatten();
    references.into_iter().any(|r| r.uid == uid(owner) && r.block_owner_deletion == Some(true))
}

/// How an owner that is there counts for its dependents.
pub(super) fn state_of(owner: &ObjectMeta, blocks: bool) -> OwnerState {
    let waits = owner.deletion_timestamp.is_some() && has_finalizer(owner, FOREGROUND);
    if waits && blocks { OwnerState::Waiting } else { OwnerState::Solid }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{common::seconds, testing::at};

    fn meta(name: &str, finalizers: &[&str], deleting: bool) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.into()),
            uid: Some(name.into()),
            finalizers: Some(finalizers.iter().map(|f| (*f).to_owned()).collect()),
            deletion_timestamp: deleting.then(|| seconds(at(1))),
            ..Default::default()
        }
    }

    fn owner(uid: &str, state: OwnerState) -> Owner {
        let reference = OwnerReference {
            uid: uid.into(),
            block_owner_deletion: Some(true),
            ..Default::default()
        };
        Owner { reference, state }
    }

    fn dependent(name: &str, blocks: bool) -> Dependent {
        Dependent { kind: 0, meta: meta(name, &[], false), blocks }
    }

    fn actions(view: &View) -> Vec<Action> {
        Rule.reconcile(view, at(9)).actions
    }

    #[test]
    fn owners_decide() {
        use OwnerState::{Absent, Foreign, Missing, Solid, Waiting};
        let reference = |uid: &str| owner(uid, Solid).reference;
        let cases: Vec<(Vec<OwnerState>, Vec<Dependent>, Vec<Action>)> = vec![
            (vec![], vec![], vec![]),
            (vec![Solid], vec![], vec![]),
            (vec![Missing], vec![], vec![Action::Verify(vec![reference("0")])]),
            (vec![Absent], vec![], vec![Action::Delete(Policy::Background)]),
            (vec![Absent, Solid], vec![], vec![Action::DropOwners(vec!["0".into()])]),
            (vec![Waiting], vec![], vec![Action::Delete(Policy::Background)]),
            (vec![Waiting], vec![dependent("d", true)], vec![Action::Delete(Policy::Foreground)]),
            (
                vec![Foreign],
                vec![],
                vec![Action::WarnForeign(reference("0")), Action::Verify(vec![reference("0")])],
            ),
        ];
        for (states, dependents, expected) in cases {
            let owners: Vec<_> =
                states.iter().enumerate().map(|(n, s)| owner(&n.to_string(), *s)).collect();
            let view = View { meta: meta("x", &[], false), owners, dependents };
            assert_eq!(actions(&view), expected, "{states:?}");
        }
    }

    #[test]
    fn an_object_that_goes_waits_as_its_finalizers_say() {
        let dependents = vec![dependent("a", true), dependent("b", false)];
        let view = |finalizer: &str, dependents: &[Dependent]| View {
            meta: meta("x", &[finalizer], true),
            owners: vec![],
            dependents: dependents.to_vec(),
        };
        let examine = |d: &Dependent| Action::Examine(Box::new(d.clone()));
        let orphan = |d: &Dependent| Action::Orphan(Box::new(d.clone()));
        let both: Vec<_> = dependents.iter().map(examine).collect();
        assert_eq!(actions(&view(FOREGROUND, &dependents)), both);
        let unblocked = vec![Action::RemoveFinalizer(FOREGROUND)];
        assert_eq!(actions(&view(FOREGROUND, &dependents[1..])), unblocked);
        let mut orphans: Vec<_> = dependents.iter().map(orphan).collect();
        orphans.push(Action::RemoveFinalizer(ORPHAN));
        assert_eq!(actions(&view(ORPHAN, &dependents)), orphans);
        assert_eq!(actions(&view("other", &dependents)), []);
    }
}
