//! Components that live in the same process and show through this server: their metrics stand
//! under its `/metrics`, their faults in its `/readyz`.

use crate::health::Check;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;

/// What a component says is wrong with it; None if nothing.
pub type Fault = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// The components that announced themselves.
#[derive(Default)]
pub struct Companions {
    registries: Mutex<Vec<Registry>>,
    checks: Mutex<Vec<(&'static str, Fault)>>,
}

impl Companions {
    /// Shows these metrics with the server's own.
    pub fn add_metrics(&self, registry: Registry) {
        self.registries.lock().push(registry);
    }

    /// Makes readiness depend on this check.
    pub fn add_check(&self, name: &'static str, fault: Fault) {
        self.checks.lock().push((name, fault));
    }

    /// Their metrics as text, without an end mark.
    pub(crate) fn metrics(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        for registry in self.registries.lock().iter() {
            prometheus_client::encoding::text::encode_registry(&mut text, registry)?;
        }
        Ok(text)
    }

    /// Their checks, made now.
    pub(crate) fn checks(&self) -> Vec<Check> {
        let checks = self.checks.lock();
        checks.iter().map(|(name, fault)| Check { name, fault: fault() }).collect()
    }
}
