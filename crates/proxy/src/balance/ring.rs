//! A hash ring: each member has points on it by its weight, and a key belongs to the first point at or after its hash.
//! What leaves takes only its own keys along, what comes takes only those that are its own from now on.

use xxhash_rust::xxh64::xxh64;

/// Points of a member of weight 1, while there is room: shares differ by about 1/√160.
const POINTS: u32 = 160;
/// Of all members together: 1 MiB of points.
const RING_MAX: u64 = 1 << 16;

pub struct Ring {
    /// By hash; equal ones by member.
    points: Box<[(u64, u32)]>,
}

impl Ring {
    /// Of members with the text that each is known by everywhere, and its weight.
    pub fn new(members: &[(u32, String, u32)]) -> Self {
        let total: u64 = members.iter().map(|(.., weight)| u64::from(*weight)).sum();
        // By halves, so that the points that stay are the same.
        let mut each = POINTS;
        while each > 1 && total * u64::from(each) > RING_MAX {
            each /= 2;
        }
        let mut points = Vec::new();
        let mut text = String::new();
        for (member, key, weight) in members {
            // Where even one for each unit of weight is too much, weights count no more.
            let count = match total > RING_MAX {
                true => 1,
                false => weight.saturating_mul(each),
            };
            for index in 0..count {
                text.clear();
                text.push_str(key);
                text.push('_');
                text.push_str(&index.to_string());
                points.push((xxh64(text.as_bytes(), 0), *member));
            }
        }
        points.sort_unstable();
        Self {
            points: points.into(),
        }
    }

    /// The first eligible member at or after `hash`.
    #[inline]
    pub fn find(&self, hash: u64, eligible: impl Fn(u32) -> bool) -> Option<u32> {
        let place = self.points.partition_point(|(point, _)| *point < hash);
        let (before, after) = self.points.split_at_checked(place)?;
        let round = after.iter().chain(before).map(|(_, member)| *member);
        round.into_iter().find(|member| eligible(*member))
    }
}
