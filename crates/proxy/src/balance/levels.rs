//! How much goes to the own zone, how much elsewhere, and where health no longer counts: Envoy's arithmetic of priorities,
//! for two of them.

/// How many of a level's endpoints work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub healthy: u32,
    pub total: u32,
}

/// What follows for both levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Of 100 requests, those that go to the first level; the rest goes to the second.
    pub first: u8,
    /// So few work there that its requests are spread over all.
    pub panic: [bool; 2],
}

/// `overprovision`: percent; a level works wholly while its share of healthy endpoints times this is 100 % or more.
/// `panic_below`: percent of healthy endpoints.
pub fn shares(levels: [Census; 2], overprovision: u32, panic_below: u32) -> Shares {
    let health = levels.map(|level| match level.total {
        0 => 0,
        total => (u64::from(overprovision) * u64::from(level.healthy) / u64::from(total)).min(100),
    });
    let [near, far] = health;
    let available = near + far;
    let in_panic = |level: Census| {
        level.total == 0
            || u64::from(level.healthy) * 100 < u64::from(panic_below) * u64::from(level.total)
    };
    // While both together can take everything, none panics.
    let panic = match available >= 100 {
        true => [false; 2],
        false => levels.map(in_panic),
    };
    let first = if panic == [true; 2] {
        let [near, far] = levels.map(|level| u64::from(level.total));
        (near * 100).checked_div(near + far).unwrap_or(100)
    } else {
        // Of what there is: 60 and 20 become 75 and 25. What is lost in rounding goes to the first that works.
        match available.min(100) {
            0 => 100,
            available => match far * 100 / available {
                far if near > 0 => (near * 100 / available).max(100 - far.min(100)).min(100),
                _ => 0,
            },
        }
    };
    Shares {
        first: first as u8,
        panic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(near: (u32, u32), far: (u32, u32)) -> Shares {
        let level = |(healthy, total)| Census { healthy, total };
        shares([level(near), level(far)], 140, 50)
    }

    #[test]
    fn own_zone_takes_all_while_enough_of_it_works() {
        for healthy in [8, 9, 10] {
            assert_eq!(of((healthy, 10), (10, 10)).first, 100, "{healthy}");
        }
        assert_eq!(of((7, 10), (10, 10)).first, 98);
        assert_eq!(of((5, 10), (10, 10)).first, 70);
        assert_eq!(of((1, 10), (10, 10)).first, 14);
        assert_eq!(of((0, 10), (10, 10)).first, 0);
        assert_eq!(of((0, 0), (10, 10)).first, 0);
        assert_eq!(of((10, 10), (0, 0)).first, 100);
    }

    #[test]
    fn nobody_panics_while_another_zone_can_take_it() {
        assert_eq!(of((1, 10), (10, 10)).panic, [false; 2]);
        assert_eq!(of((0, 10), (8, 10)).panic, [false; 2]);
    }

    #[test]
    fn what_is_left_is_shared_in_proportion_when_both_are_short() {
        // Envoy's documentation: 25 % of each works: 35 % and 35 % become 50 and 50.
        let both = of((25, 100), (25, 100));
        assert_eq!((both.first, both.panic), (50, [true; 2]));
        let near = of((5, 100), (65, 100));
        assert_eq!((near.first, near.panic), (8, [true, false]));
    }

    #[test]
    fn in_total_panic_all_endpoints_get_their_share() {
        let total = of((1, 10), (3, 30));
        assert_eq!((total.first, total.panic), (25, [true; 2]));
        let nothing = of((0, 0), (0, 0));
        assert_eq!((nothing.first, nothing.panic), (100, [true; 2]));
    }

    #[test]
    fn shares_fall_with_the_health_of_the_own_zone() {
        for total in 1..=40 {
            let firsts = (0..=total).map(|healthy| of((healthy, total), (10, 10)).first);
            let firsts: Vec<u8> = firsts.collect();
            assert!(firsts.is_sorted(), "{total}: {firsts:?}");
            assert_eq!((firsts[0], firsts.last()), (0, Some(&100)));
        }
    }
}
