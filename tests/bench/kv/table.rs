//! The table: the floor, etcd and ours side by side.

use crate::Target;

/// One line of it.
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    /// What the disk alone does, if it says something about this.
    pub floor: Option<f64>,
    pub etcd: Option<f64>,
    pub rkube: Option<f64>,
    /// What ours aims at.
    pub goal: Option<Target>,
    pub note: String,
}

/// Prints the heads of the columns.
pub fn heading() {
    println!(
        "{:<44} {:<5} {:>9} {:>9} {:>9} {:>6}  {:<12} verdict",
        "", "", "floor", "etcd", "rkube", "ratio", "goal"
    );
}

impl Row {
    pub fn print(&self) {
        let ratio = self.etcd.zip(self.rkube).map(|(etcd, rkube)| rkube / etcd);
        let ratio = ratio.map_or("-".into(), |r| format!("{r:.2}"));
        let goal = match &self.goal {
            Some(Target::Below(limit)) => format!("<= {}", number(Some(*limit))),
            Some(Target::Above(limit)) => format!(">= {}", number(Some(*limit))),
            None => String::new(),
        };
        println!(
            "{:<44} {:<5} {:>9} {:>9} {:>9} {ratio:>6}  {goal:<12} {:<7} {}",
            self.name,
            self.unit,
            number(self.floor),
            number(self.etcd),
            number(self.rkube),
            self.verdict(),
            self.note,
        );
    }

    fn verdict(&self) -> &'static str {
        match (self.rkube, &self.goal) {
            (Some(value), Some(target)) if target.holds(value) => "met",
            (Some(_), Some(_)) => "MISSED",
            _ => "",
        }
    }
}

/// With as many digits as can be trusted.
fn number(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value < 10.0 => format!("{value:.2}"),
        Some(value) if value < 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}
