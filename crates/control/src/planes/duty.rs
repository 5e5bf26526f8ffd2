//! Which control plane looks after which instance. Pure: every plane that sees the same world answers the same.

use phalanx_model::InstanceId;

use crate::world::{Registered, World};

/// What one plane is responsible for in one world.
#[derive(Clone, Copy)]
pub struct Duty<'a> {
    world: &'a World,
    name: &'a str,
}

impl<'a> Duty<'a> {
    pub fn new(world: &'a World, name: &'a str) -> Self {
        Self { world, name }
    }

    /// Its own instances, and its share of those whose plane is gone.
    pub fn has(&self, registered: &Registered) -> bool {
        if registered.is_imported() {
            return false;
        }
        if self.is_alive(&registered.plane) {
            registered.plane == self.name
        } else {
            self.heir(&registered.instance.id) == Some(self.name)
        }
    }

    /// Which plane looks after something that is no instance, by a text that names it; none: nobody lives.
    pub fn keeper(&self, of: &str) -> Option<&'a str> {
        let planes = self.world.planes.keys().map(String::as_str);
        planes.max_by_key(|plane| (weight(&[plane, of]), *plane))
    }

    fn is_alive(&self, plane: &str) -> bool {
        self.world.planes.contains_key(plane)
    }

    /// Highest random weight (rendezvous hashing, Thaler and Ravishankar 1996): when a plane goes, only its instances move.
    fn heir(&self, id: &InstanceId) -> Option<&'a str> {
        let planes = self.world.planes.keys().map(String::as_str);
        let parts = [&*id.service.namespace, &id.service.name, &id.id];
        planes.max_by_key(|plane| (weight(&[plane, parts[0], parts[1], parts[2]]), *plane))
    }
}

/// FNV-1a over all parts, finished by splitmix64's mixer: the same in every build.
fn weight(parts: &[&str]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use phalanx_model::instance::State;

    use super::*;
    use crate::world::Plane;
    use crate::world::fixture::instance;

    fn world(planes: &[&str]) -> World {
        let plane = |name: &&str| {
            let plane = Plane {
                admin: String::new(),
                xds: String::new(),
                started_ms: 0,
                token: 1,
                revision: 1,
            };
            ((*name).to_owned(), plane)
        };
        World {
            planes: Arc::new(planes.iter().map(plane).collect()),
            ..World::empty()
        }
    }

    fn registered(id: &str, plane: &str) -> Registered {
        Registered {
            instance: instance("battle", id, "127.0.0.1:1", &[("", 1)]),
            epoch: 1,
            ttl_ms: 1,
            revision: 1,
            plane: plane.to_owned(),
            asserted: State::Accepting,
            state: State::Accepting,
        }
    }

    #[test]
    fn a_living_plane_keeps_what_it_has() {
        let world = world(&["a", "b", "c"]);
        let of = |name| Duty::new(&world, name).has(&registered("b1", "b"));
        assert_eq!(["a", "b", "c"].map(of), [false, true, false]);
    }

    #[test]
    fn exactly_one_of_the_living_inherits_and_shares_are_even() {
        let world = world(&["a", "b", "c"]);
        let mut shares = BTreeMap::<&str, u32>::new();
        for n in 0..3_000 {
            let orphan = registered(&format!("b{n}"), "dead");
            let heirs: Vec<_> = ["a", "b", "c"]
                .into_iter()
                .filter(|name| Duty::new(&world, name).has(&orphan))
                .collect();
            assert_eq!(heirs.len(), 1, "{n}");
            *shares.entry(heirs[0]).or_default() += 1;
        }
        assert!(
            shares.values().all(|n| (850..1_150).contains(n)),
            "{shares:?}"
        );
    }

    #[test]
    fn when_one_more_dies_the_others_keep_their_heritage() {
        let (before, after) = (world(&["a", "b", "c"]), world(&["a", "b"]));
        for n in 0..1_000 {
            let orphan = registered(&format!("b{n}"), "dead");
            if Duty::new(&before, "a").has(&orphan) {
                assert!(Duty::new(&after, "a").has(&orphan), "{n}");
            }
        }
    }
}
