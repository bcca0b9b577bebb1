//! Protocol definitions and the code generated from them: the container runtime interface,
//! containerd's events, and how members of a control plane talk. Nothing is written by hand here; who uses a protocol wraps it at its edge.

/// The container runtime interface, `runtime.v1`.
pub mod cri {
    #![allow(clippy::all, clippy::pedantic)]
    tonic::include_proto!("runtime.v1");
}

/// containerd's event service and the task events that it carries.
pub mod containerd {
    #![allow(clippy::all, clippy::pedantic)]
    tonic::include_proto!("containerd.services.events.v1");

    /// Bodies of the task events; their type URLs are `containerd.events.TaskExit` and the like.
    pub mod task {
        tonic::include_proto!("containerd.events");
    }
}

/// How the members of a control plane talk to each other.
pub mod peer {
    #![allow(clippy::all, clippy::pedantic)]
    tonic::include_proto!("rkube.peer.v1");
}
