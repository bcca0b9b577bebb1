//! The network: a bridge, and a namespace with a cable to it for each machine.

use crate::run::{ip, run};
use std::sync::atomic::{AtomicU8, Ordering};

/// Each network takes the next /24.
static NEXT: AtomicU8 = AtomicU8::new(1);

/// Makes this program's own network namespace fit for use, and its own place for names of others.
pub fn prepare() {
    ip("link set lo up");
    std::fs::create_dir_all("/run/netns").expect("/run/netns");
    run("mount", &["-t", "tmpfs", "tmpfs", "/run/netns"]).ok();
}

/// A bridge with machines on it; this program sits on the bridge too. Gone when it is dropped.
pub struct Net {
    number: u8,
    machines: usize,
}

impl Net {
    pub fn new(machines: usize) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let net = Net { number, machines };
        let bridge = net.bridge();
        ip(&format!("link add {bridge} type bridge"));
        ip(&format!("addr add 10.89.{number}.254/24 dev {bridge}"));
        ip(&format!("link set {bridge} up"));
        (0..machines).for_each(|machine| net.plug_in(machine));
        net
    }

    fn bridge(&self) -> String {
        format!("br{}", self.number)
    }

    /// The name of a machine's namespace.
    pub fn namespace(&self, machine: usize) -> String {
        format!("net{}-{machine}", self.number)
    }

    /// The bridge's end of a machine's cable.
    fn cable(&self, machine: usize) -> String {
        format!("v{}-{machine}", self.number)
    }

    pub fn address(&self, machine: usize) -> String {
        format!("10.89.{}.{}", self.number, machine + 1)
    }

    fn plug_in(&self, machine: usize) {
        let (name, cable) = (self.namespace(machine), self.cable(machine));
        ip(&format!("netns add {name}"));
        ip(&format!("link add {cable} type veth peer name eth0 netns {name}"));
        ip(&format!("link set {cable} master {} up", self.bridge()));
        ip(&format!("-n {name} addr add {}/24 dev eth0", self.address(machine)));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} link set lo up"));
    }

    /// Nothing goes in or out of a machine from now on.
    pub fn cut(&self, machine: usize) {
        ip(&format!("link set {} down", self.cable(machine)));
    }

    pub fn mend(&self, machine: usize) {
        ip(&format!("link set {} up", self.cable(machine)));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for machine in 0..self.machines {
            run("ip", &["netns", "delete", &self.namespace(machine)]);
        }
        run("ip", &["link", "delete", &self.bridge()]);
    }
}
