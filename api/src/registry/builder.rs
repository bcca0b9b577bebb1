//! The compact form in which an entry is written.

use super::{Column, Conversion, Kind, Strategy, Subresource};

/// The verbs of nearly every resource.
const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// One column as it stands in an entry: heading, type, priority.
type ColumnSpec = (&'static str, &'static str, i32);

/// A [`Kind`] in the making.
pub(super) struct Builder {
    kind: Kind,
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// What a column shows.
fn describe(heading: &str) -> &'static str {
    match heading {
        "Name" => "The object's name, unique in its namespace and resource.",
        "Age" => "How long ago the object was created.",
        "Status" => "What state the object is in, in one word.",
        "Ready" => "How many are ready, of how many.",
        "Restarts" => "How often containers were started again, and when last.",
        "Containers" => "The names of the template's containers.",
        "Images" => "The images of the template's containers.",
        "Selector" => "The labels that choose the pods.",
        "IP" => "The pod's address.",
        "Node" => "The node the pod runs on.",
        "Nominated Node" => "The node on which room is being made for the pod.",
        "Readiness Gates" => "How many of the pod's own readiness conditions hold.",
        "Type" => "The sort of the object.",
        "Holder" => "Who holds the lease.",
        "Data" => "How many entries there are.",
        "Roles" => "What the node is for, by its labels.",
        "Version" => "The version of the node's kubelet.",
        "Internal-IP" => "The node's address inside the cluster.",
        "External-IP" => "The addresses that reach it from outside.",
        "OS-Image" => "The node's operating system.",
        "Kernel-Version" => "The node's kernel.",
        "Container-Runtime" => "What runs the node's containers, and its version.",
        "Cluster-IP" => "The service's address inside the cluster.",
        "Port(s)" => "The ports, with those on the nodes and their protocols.",
        "Up-to-date" => "How many pods have the current template.",
        "Available" => "How many pods have been ready for long enough.",
        "Desired" => "How many pods are wanted.",
        "Current" => "How many pods there are.",
        "AddressType" => "The family of the addresses.",
        "Ports" => "The ports of the endpoints.",
        "Endpoints" => "The addresses of the endpoints.",
        "Last Seen" => "How long ago it happened last.",
        "First Seen" => "How long ago it happened first.",
        "Reason" => "Why it was told, in one word.",
        "Object" => "What it is about.",
        "Subobject" => "The part of the object that it is about.",
        "Source" => "Who told it.",
        "Role" => "What the member is to the cluster: leader, voter or learner.",
        "Term" => "The Raft term that the member is in.",
        "Applied" => "The last log entry that the member has applied.",
        "Lag" => "How many log entries the member is behind the newest one known.",
        "Address" => "Where the member's API server is.",
        "Peer-Address" => "Where other members reach it.",
        "Health" => "Ok, or what is wrong, as the member that was asked sees it.",
        "Id" => "The member's Raft id, in hexadecimal.",
        "Message" => "What happened.",
        "Count" => "How often it happened.",
        _ => "",
    }
}

/// Starts an entry for a kind of the cluster's scope with all verbs and no columns but name and age.
pub(super) fn define(group: &str, version: &str, kind: &str, plural: &str) -> Builder {
    let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    Builder {
        kind: Kind {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: plural.into(),
            singular: kind.to_lowercase(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: false,
            verbs: owned(ALL_VERBS),
            type_name: format!("{package}.{version}.{kind}"),
            columns: Vec::new(),
            selectable_fields: Vec::new(),
            subresources: Vec::new(),
            has_status: false,
            has_generation: false,
            stored_as: None,
            computed: false,
            strategy: Box::new(super::Plain),
        },
    }
}

impl Builder {
    /// Lives in a namespace.
    pub fn namespaced(mut self) -> Self {
        self.kind.namespaced = true;
        self
    }

    pub fn short_names(mut self, names: &[&str]) -> Self {
        self.kind.short_names = owned(names);
        self
    }

    pub fn categories(mut self, names: &[&str]) -> Self {
        self.kind.categories = owned(names);
        self
    }

    /// Takes verbs away from the full set.
    pub fn without_verbs(mut self, verbs: &[&str]) -> Self {
        self.kind.verbs.retain(|v| !verbs.contains(&v.as_str()));
        self
    }

    /// Sets the columns, with `Name` as the one that identifies the row.
    pub fn columns(mut self, columns: &[ColumnSpec]) -> Self {
        self.kind.columns = columns
            .iter()
            .map(|(name, ty, priority)| Column {
                name: (*name).into(),
                ty: (*ty).into(),
                format: if *name == "Name" { "name".into() } else { String::new() },
                description: describe(name).into(),
                priority: *priority,
            })
            .collect();
        self
    }

    /// Names the selectable fields, in the order of `Strategy::selectable_values`.
    pub fn selectable(mut self, fields: &[&str]) -> Self {
        self.kind.selectable_fields = owned(fields);
        self
    }

    /// `spec` and `status` have different writers; adds `/status`.
    pub fn status(mut self) -> Self {
        self.kind.has_status = true;
        self.subresource("status", &["get", "patch", "update"])
    }

    /// `metadata.generation` counts changes of the spec.
    pub fn generation(mut self) -> Self {
        self.kind.has_generation = true;
        self
    }

    /// A subresource that takes and gives the kind itself.
    pub fn subresource(mut self, name: &str, verbs: &[&str]) -> Self {
        self.kind.subresources.push(Subresource {
            name: name.into(),
            verbs: owned(verbs),
            kind: None,
        });
        self
    }

    /// A subresource with a kind of its own (group, version, kind).
    pub fn subresource_of(mut self, name: &str, verbs: &[&str], kind: (&str, &str, &str)) -> Self {
        self.kind.subresources.push(Subresource {
            name: name.into(),
            verbs: owned(verbs),
            kind: Some((kind.0.into(), kind.1.into(), kind.2.into())),
        });
        self
    }

    /// `/scale`.
    pub fn scale(self) -> Self {
        self.subresource_of("scale", &["get", "patch", "update"], ("autoscaling", "v1", "Scale"))
    }

    /// The objects are made on request: there is nothing to create, change or watch.
    pub fn computed(mut self) -> Self {
        self.kind.computed = true;
        self.kind.verbs = owned(&["delete", "get", "list"]);
        self
    }

    /// The objects are kept in the form of another kind.
    pub fn stored_as(mut self, conversion: Conversion) -> Self {
        self.kind.stored_as = Some(conversion);
        self
    }

    /// Ends the entry with its rules.
    pub fn build(mut self, strategy: impl Strategy + 'static) -> Kind {
        self.kind.strategy = Box::new(strategy);
        self.kind
    }
}
