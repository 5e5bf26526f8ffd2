use proptest::prelude::*;

use super::*;

/// Anything a server may say.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Nil),
        any::<i64>().prop_map(Value::Int),
        any::<f64>().prop_map(Value::Double),
        proptest::collection::vec(any::<u8>(), 0..12).prop_map(Value::BulkString),
        prop_oneof![
            Just("ok"),
            Just("at"),
            Just("epoch"),
            Just("1"),
            Just("77"),
            Just("18446744073709551615")
        ]
        .prop_map(|text| Value::BulkString(text.as_bytes().to_vec())),
    ];
    leaf.prop_recursive(3, 40, 8, |inner| {
        proptest::collection::vec(inner, 0..8).prop_map(Value::Array)
    })
}

proptest! {
    #[test]
    fn no_answer_makes_a_reader_panic(value in value()) {
        let _ = reading(&value);
        let _ = members(&value);
        let _ = applied(&value);
        let _ = turned(&value);
        let _ = stands(&value);
        let _ = run(&value);
        let _ = orders(&value);
    }
}

#[test]
fn numbers_that_no_board_has_are_refused() {
    let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
    let most = "18446744073709551615";
    assert!(stands(&Value::Array(vec![text("at"), text(most), text("1")])).is_err());
    assert!(applied(&Value::Array(vec![text("epoch"), text("16777216")])).is_err());
    assert!(turned(&Value::Array(vec![text("epoch"), text("16777215")])).is_ok());
}

#[test]
fn all_keys_of_a_board_have_one_hash_tag() {
    let keys = Keys::new("game:", "arena.3v3");
    for key in keys.all(7) {
        assert!(key.starts_with("game:{board:arena.3v3}:"), "{key}");
    }
}
