//! Member: one member of the control plane. It is computed from Raft's state whenever it is asked
//! for, never stored, and served without a quorum too.

use super::access::{name_cell, text};
use super::builder::define;
use super::{Kind, Strategy};
use jiff::Timestamp;
use serde_json::Value;

/// The entries of this module.
pub(super) fn entries() -> Vec<Kind> {
    vec![
        define("rkube.dev", "v1", "Member", "members")
            .short_names(&["mem"])
            .computed()
            .columns(&[
                ("Name", "string", 0),
                ("Role", "string", 0),
                ("Term", "string", 0),
                ("Applied", "string", 0),
                ("Lag", "string", 0),
                ("Version", "string", 0),
                ("Address", "string", 0),
                ("Health", "string", 0),
                ("Id", "string", 1),
                ("Peer-Address", "string", 1),
            ])
            .build(MemberRules),
    ]
}

struct MemberRules;

impl Strategy for MemberRules {
    fn cells(&self, object: &Value, _now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        // As in other columns, what is not known has a word of its own.
        let known = |text: &str| if text.is_empty() { "<unknown>".into() } else { text.into() };
        let number = |field: &str| match status[field].as_i64() {
            Some(number) => number.to_string().into(),
            None => known(""),
        };
        vec![
            name_cell(object),
            known(text(status, "role")),
            number("term"),
            number("appliedIndex"),
            number("lag"),
            known(text(status, "version")),
            known(text(spec, "apiURL")),
            known(text(status, "health")),
            known(text(spec, "id")),
            known(text(spec, "peerAddress")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::builtin;
    use serde_json::json;

    #[test]
    fn an_unreachable_member_has_a_row() {
        let kind = builtin().by_short_name("mem").unwrap();
        let row = |object: Value| kind.strategy.cells(&object, Timestamp::UNIX_EPOCH);
        let reached = row(json!({
            "metadata": {"name": "m1"},
            "spec": {"id": "1f", "voter": true, "apiURL": "https://192.0.2.1:6443"},
            "status": {"role": "leader", "term": 4, "appliedIndex": 9, "lag": 0, "version": "v1",
                "health": "Ok"},
        }));
        assert_eq!(reached[..6], ["m1", "leader", "4", "9", "0", "v1"].map(Value::from));
        let gone = row(json!({"metadata": {"name": "m2"}, "spec": {"id": "2"},
            "status": {"role": "voter", "health": "Unreachable"}}));
        assert_eq!(gone[1..4], ["voter", "<unknown>", "<unknown>"].map(Value::from));
        assert_eq!(gone[7], "Unreachable");
    }

    #[test]
    fn it_can_only_be_read_and_removed() {
        let kind = builtin().resource("rkube.dev", "v1", "members").unwrap();
        assert_eq!(kind.verbs, ["delete", "get", "list"]);
        assert!(kind.computed && !kind.namespaced && kind.subresources.is_empty());
    }
}
