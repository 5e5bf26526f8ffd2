//! Claims about battles, against the public interface: they replay, they end, they are refused by name, and none is lost.

#[path = "battle/act.rs"]
mod act;
#[path = "battle/determinism.rs"]
mod determinism;
#[path = "../examples/battle/duel.rs"]
mod duel;
#[path = "battle/ends.rs"]
mod ends;
#[path = "battle/load.rs"]
mod load;
#[path = "battle/versions.rs"]
mod versions;
