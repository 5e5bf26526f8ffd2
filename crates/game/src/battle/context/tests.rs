use super::*;

/// Spends its input in steps, then says what it spent.
struct Spender;

impl Battle for Spender {
    type Input = Vec<u32>;
    type Output = u64;
    type Rules = ();

    fn fight(&self, cx: &mut Context<'_, ()>, input: &Vec<u32>) -> Result<u64, Reject> {
        for &step in input {
            cx.spend(step)?;
        }
        Ok(cx.spent())
    }

    fn write_input(_: &Vec<u32>, _: &mut Vec<u8>) {}

    fn read_input(_: &[u8]) -> Option<Vec<u32>> {
        None
    }

    fn write_output(_: &u64, _: &mut Vec<u8>) {}
}

fn spend(fuel: u64, every: u32, steps: Vec<u32>) -> Result<u64, Reject> {
    let call = Call::new(1).fuel(fuel);
    let setup = Setup {
        rules: &(),
        version: 1,
        call: &call,
        every,
    };
    fight(&Spender, &setup, &Bump::new(), None, &steps).expect("it doesn't panic")
}

proptest::proptest! {
    #[test]
    fn fuel_ends_at_the_same_operation_however_often_is_looked(
        fuel in 0_u64..200, every in 1_u32..50, steps in proptest::collection::vec(0_u32..30, 0..40),
    ) {
        let total: u64 = steps.iter().map(|&step| u64::from(step)).sum();
        let expected = if total > fuel { Err(Reject::Exhausted { fuel }) } else { Ok(total) };
        proptest::prop_assert_eq!(spend(fuel, every, steps), expected);
    }
}

#[test]
fn a_battle_that_swallows_its_end_gets_no_result() {
    struct Stubborn;
    impl Battle for Stubborn {
        type Input = ();
        type Output = u64;
        type Rules = ();
        fn fight(&self, cx: &mut Context<'_, ()>, (): &()) -> Result<u64, Reject> {
            while cx.check().is_ok() {}
            assert!(cx.check().is_err(), "an end is for good");
            Ok(7)
        }
        fn write_input((): &(), _: &mut Vec<u8>) {}
        fn read_input(_: &[u8]) -> Option<()> {
            Some(())
        }
        fn write_output(_: &u64, _: &mut Vec<u8>) {}
    }
    let call = Call::new(1).fuel(10);
    let result = rerun(&Stubborn, 1, &(), &call, &());
    assert_eq!(result, Err(Reject::Exhausted { fuel: 10 }));
}
