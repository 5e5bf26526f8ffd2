//! The arena: a demo game whose services know one another by name only. Each service is a function that the one
//! executable runs as a process of its own, beside a sidecar of its own; bots play it from outside.
//! Nothing here knows the mesh: a service speaks HTTP and gRPC to the outbound listener it was given.

pub mod bots;
pub mod process;

pub mod gateway;
pub mod matchmaker;

pub mod battle;
pub mod leaderboard;
pub mod physics;
pub mod room;

pub mod call;
pub mod carry;
pub mod serve;

pub use process::{ProcessSpec, ServiceKind, processes, run_service};
pub use serve::ServiceConfig;

/// Who calls whom, caller first; battle is called by the names of its versions, since that is what its route leads to.
pub const EDGES: &[(&str, &str)] = &[
    ("gateway", "match"),
    ("gateway", "battle-v1"),
    ("gateway", "leaderboard"),
    ("match", "battle-v1"),
    ("match", "battle-v2"),
    ("match", "leaderboard"),
    ("battle", "physics"),
    ("edge", "gateway"),
];

/// The documents of `mesh/`, as name and text, so that the demo needs no folder.
pub const MANIFESTS: &[(&str, &str)] = &[
    ("battle.yaml", include_str!("../mesh/battle.yaml")),
    ("edge.yaml", include_str!("../mesh/edge.yaml")),
    ("gateway.yaml", include_str!("../mesh/gateway.yaml")),
    ("leaderboard.yaml", include_str!("../mesh/leaderboard.yaml")),
    ("match.yaml", include_str!("../mesh/match.yaml")),
    ("physics.yaml", include_str!("../mesh/physics.yaml")),
    ("room.yaml", include_str!("../mesh/room.yaml")),
];

/// Generated from `proto/` by `cargo run -p phalanx-codegen`.
#[rustfmt::skip]
#[allow(clippy::all, missing_docs, rust_2018_idioms, rustdoc::all)]
pub mod proto {
    pub mod arena {
        pub mod v1 {
            include!("generated/arena.v1.rs");
        }
    }
    pub mod grpc {
        pub mod health {
            pub mod v1 {
                include!("generated/grpc.health.v1.rs");
            }
        }
    }
}
