//! `/healthz`, `/livez`, `/readyz`.

use crate::body::Body;
use crate::query::Query;
use crate::response;
use crate::storage::Storage;
use http::{Response, StatusCode};
use parking_lot::Mutex;
use std::time::Duration;

/// The check that tells why it fails: whoever starts a member must see what it waits for.
pub const CATCH_UP: &str = "bootstrap";

/// Between two attempts to hear of a leader; each waits for one by itself.
const RETRY: Duration = Duration::from_millis(200);

/// Whether this member has once applied what the leader had committed.
pub struct CaughtUp(Mutex<Option<String>>);

impl Default for CaughtUp {
    fn default() -> Self {
        CaughtUp(Mutex::new(Some("this member has not heard of a leader yet".into())))
    }
}

impl CaughtUp {
    /// Whether it has.
    pub fn is_done(&self) -> bool {
        self.0.lock().is_none()
    }

    /// Why it has not.
    pub fn fault(&self) -> Option<String> {
        self.0.lock().clone()
    }

    /// Waits until it has: a read that the leader confirms shows everything committed before.
    pub async fn catch_up(&self, storage: &Storage) {
        while let Err(error) = storage.fresh_view().await {
            *self.0.lock() = Some(error.message);
            tokio::time::sleep(RETRY).await;
        }
        *self.0.lock() = None;
    }
}

/// One check and what is wrong, if anything.
pub struct Check {
    /// `ping`, `store`, `bootstrap`
    pub name: &'static str,
    /// What is wrong.
    pub fault: Option<String>,
}

/// Answers for `root` (`healthz`, `livez`, `readyz`) or one check below it.
pub fn answer(root: &str, only: Option<&str>, query: &Query, checks: &[Check]) -> Response<Body> {
    if let Some(only) = only {
        return match checks.iter().find(|c| c.name == only) {
            None => response::text(StatusCode::NOT_FOUND, "404 page not found\n"),
            Some(Check { fault: None, .. }) => response::text(StatusCode::OK, "ok"),
            Some(Check { fault: Some(_), .. }) => response::text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal server error: check failed\n",
            ),
        };
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let counted = |c: &&Check| !excluded.contains(&c.name);
    let failed = checks.iter().filter(counted).any(|c| c.fault.is_some());
    let verbose = query.get("verbose").is_some();
    let code = if failed { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    if !failed && !verbose {
        return response::text(code, "ok");
    }
    let lines: String = checks.iter().map(|c| line(c, counted(&c))).collect();
    let verdict = if failed { "failed" } else { "passed" };
    response::text(code, format!("{lines}{root} check {verdict}\n"))
}

fn line(check: &Check, counted: bool) -> String {
    match (&check.fault, counted) {
        (_, false) => format!("[+]{} excluded: ok\n", check.name),
        (None, true) => format!("[+]{} ok\n", check.name),
        (Some(why), true) if check.name == CATCH_UP => {
            format!("[-]{} failed: {why}\n", check.name)
        }
        // As upstream: the reason is in the log, not in an answer that everybody may read.
        (Some(_), true) => format!("[-]{} failed: reason withheld\n", check.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(query: &str, only: Option<&str>) -> u16 {
        let checks = [
            Check { name: "ping", fault: None },
            Check { name: "store", fault: Some("gone".into()) },
        ];
        answer("readyz", only, &Query::parse(query), &checks).status().as_u16()
    }

    #[test]
    fn one_fault_fails_unless_excluded() {
        assert_eq!(code("", None), 500);
        assert_eq!(code("exclude=store", None), 200);
        assert_eq!(code("", Some("ping")), 200);
        assert_eq!(code("", Some("store")), 500);
        assert_eq!(code("", Some("none")), 404);
    }
}
