use proptest::prelude::*;

use super::*;

fn list(fields: &[(&str, &str)]) -> HeaderList {
    let mut list = HeaderList::new();
    for (name, value) in fields {
        list.push(
            Name::new(name.as_bytes()).unwrap(),
            Value::new(value.as_bytes()).unwrap(),
        );
    }
    list
}

fn text(list: &HeaderList) -> Vec<String> {
    list.iter()
        .map(|(name, value)| format!("{}={}", name.as_str(), String::from_utf8_lossy(value)))
        .collect()
}

#[test]
fn well_known_names_are_their_own_index() {
    for (index, text) in names::WELL_KNOWN.iter().enumerate() {
        assert_eq!(
            Name::new(text.as_bytes()).unwrap().well_known(),
            Some(index),
            "{text}"
        );
    }
    assert_eq!(Name::new(b"x-unknown").unwrap().well_known(), None);
    assert_eq!(Name::new(b"content-type").unwrap(), names::CONTENT_TYPE);
}

#[test]
fn names_and_values_that_could_split_a_message_are_none() {
    for name in ["", "A", "a b", "a:", "a\r", "ä", "a\0"] {
        assert!(Name::new(name.as_bytes()).is_none(), "{name:?}");
    }
    for value in ["a\r\nb", "a\nb", "a\0b", "\x7f", "a\x01"] {
        assert!(Value::new(value.as_bytes()).is_none(), "{value:?}");
    }
    assert_eq!(Value::new(b" \ta\tb \t").unwrap().as_bytes(), b"a\tb");
    assert_eq!(Value::new(&[0xe4, 0xff]).unwrap().as_bytes(), [0xe4, 0xff]);
}

#[test]
fn set_takes_the_place_of_the_first_and_removes_the_rest() {
    let mut list = list(&[("a", "1"), ("host", "x"), ("a", "2"), ("b", "3")]);
    list.set(Name::new(b"a").unwrap(), Value::new(b"new").unwrap());
    assert_eq!(text(&list), ["a=new", "host=x", "b=3"]);
    assert_eq!(list.len(), 3);
}

#[test]
fn cleared_list_keeps_no_field() {
    let mut list = list(&[("a", "1"), ("host", "x")]);
    list.remove(names::HOST);
    list.clear();
    assert!(list.is_empty());
    assert_eq!(text(&list), Vec::<String>::new());
}

#[test]
fn layout_points_at_the_values() {
    let list = list(&[("a", "1"), ("host", "xyz")]);
    let (arena, fields) = list.layout();
    let values: Vec<_> = fields.map(|(_, range)| arena[range].to_vec()).collect();
    assert_eq!(values, [b"1".to_vec(), b"xyz".to_vec()]);
}

/// Names from a small set, so that operations meet.
fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "host",
        "content-type",
        "cookie",
        "x-a",
        "x-b",
        "x-request-id",
        "a",
        "b!",
    ])
}

#[derive(Clone, Debug)]
enum Step {
    Push(&'static str, String),
    Set(&'static str, String),
    Remove(&'static str),
    RemoveLong(usize),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (name(), "[a-z ]{0,12}").prop_map(|(n, v)| Step::Push(n, v)),
        2 => (name(), "[a-z]{0,12}").prop_map(|(n, v)| Step::Set(n, v)),
        2 => name().prop_map(Step::Remove),
        1 => (0usize..12).prop_map(Step::RemoveLong),
        1 => Just(Step::Clear),
    ]
}

/// The obvious list, to compare with.
#[derive(Default)]
struct Model(Vec<(String, String)>);

impl Model {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Push(name, value) => self.0.push(((*name).into(), value.trim().into())),
            Step::Set(name, value) => {
                let at = self.0.iter().position(|(n, _)| n == name);
                let mut first = true;
                self.0
                    .retain(|(n, _)| n != name || std::mem::take(&mut first));
                match at {
                    Some(at) => self.0[at].1 = value.clone(),
                    None => self.0.push(((*name).into(), value.clone())),
                }
            }
            Step::Remove(name) => self.0.retain(|(n, _)| n != name),
            Step::RemoveLong(len) => self.0.retain(|(_, v)| v.len() <= *len),
            Step::Clear => self.0.clear(),
        }
    }
}

proptest! {
    #[test]
    fn list_behaves_as_a_vector_of_pairs(steps in prop::collection::vec(step(), 0..40)) {
        let (mut list, mut model) = (HeaderList::new(), Model::default());
        for step in &steps {
            match step {
                Step::Push(n, v) => list.push(Name::new(n.as_bytes()).unwrap(), Value::new(v.as_bytes()).unwrap()),
                Step::Set(n, v) => list.set(Name::new(n.as_bytes()).unwrap(), Value::new(v.as_bytes()).unwrap()),
                Step::Remove(n) => { list.remove(Name::new(n.as_bytes()).unwrap()); }
                Step::RemoveLong(len) => { list.remove_where(|_, value| value.len() > *len); }
                Step::Clear => list.clear(),
            }
            model.apply(step);
            let expected: Vec<_> = model.0.iter().map(|(n, v)| format!("{n}={v}")).collect();
            prop_assert_eq!(text(&list), expected);
            prop_assert_eq!(list.len(), model.0.len());
            for n in ["host", "cookie", "x-a", "absent"] {
                let found = list.get(Name::new(n.as_bytes()).unwrap()).map(<[u8]>::to_vec);
                let wanted = model.0.iter().find(|(m, _)| m == n).map(|(_, v)| v.clone().into_bytes());
                prop_assert_eq!(found, wanted);
            }
        }
    }
}

#[test]
fn control_characters_are_found_wherever_they_stand() {
    for byte in 0..=u8::MAX {
        for len in 1..20 {
            for at in 0..len {
                let mut text = vec![b'a'; len];
                text[at] = byte;
                let refused = (byte < 0x20 && byte != b'\t') || byte == 0x7f;
                assert_eq!(
                    Value::new(&text).is_none(),
                    refused,
                    "{byte} at {at} of {len}"
                );
            }
        }
    }
    assert!(
        Value::new(b"\x80\x01aaaaaa").is_none()
            && Value::new("\u{ff}aaaaaa\t b".as_bytes()).is_some()
    );
}

#[test]
fn field_line_is_split_as_a_name_and_a_value_would_be_made() {
    for byte in 0..=u8::MAX {
        let mut line = [b'A', byte, b'-', b':', b' ', b'v'];
        let name = [b'a', byte.to_ascii_lowercase(), b'-'];
        let split = super::split_field(&mut line)
            .map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec()));
        let expected = match byte {
            b':' => Some((b"a".to_vec(), b"-: v".to_vec())),
            _ => Name::new(&name).map(|name| (name.as_bytes().to_vec(), b"v".to_vec())),
        };
        assert_eq!(split, expected, "{byte}");
    }
}
