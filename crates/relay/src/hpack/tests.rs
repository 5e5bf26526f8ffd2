use proptest::prelude::*;

use super::*;
use crate::header::{Name, names};

const MOST: Most = Most {
    bytes: 64 << 10,
    fields: 100,
};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|b| !b.is_ascii_whitespace())
        .map(|b| char::from(b).to_digit(16).unwrap() as u8)
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn told(fields: &Fields) -> Vec<(String, String)> {
    fields
        .iter()
        .map(|(name, value, _)| {
            let name = match name {
                FieldName::Pseudo(pseudo) => pseudo.as_str().to_owned(),
                FieldName::Name(name) => name.as_str().to_owned(),
                FieldName::Bad => "bad".to_owned(),
            };
            (name, String::from_utf8_lossy(value).into_owned())
        })
        .collect()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(String, String)>, BadBlock> {
    let mut fields = Fields::default();
    decoder.decode(block, &mut fields, MOST)?;
    Ok(told(&fields))
}

/// Decodes the blocks of one connection, each to lines of `name: value`.
fn check(blocks: &[(&str, &str)]) {
    let mut decoder = Decoder::default();
    for (block, expected) in blocks {
        let fields = decode(&mut decoder, &hex(block)).unwrap();
        let lines: Vec<String> = fields
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        let expected: Vec<&str> = expected.split('\n').map(str::trim).collect();
        assert_eq!(lines, expected);
    }
}

#[test]
fn integers_of_rfc_7541_c_1() {
    for (value, bits, bytes) in [(10, 5, "0a"), (1337, 5, "1f 9a 0a"), (42, 8, "2a")] {
        let mut out = Vec::new();
        integer::write(0, bits, value, &mut out);
        assert_eq!(out, hex(bytes));
        let (first, mut rest) = out.split_first().unwrap();
        assert_eq!(integer::read(*first, bits, &mut rest), Some(value));
        assert!(rest.is_empty());
    }
}

#[test]
fn integers_that_overflow_or_do_not_end_are_refused() {
    for bytes in ["ff ff ff ff ff 0f", "ff 80 80 80 80 80 00", "ff", "ff 80"] {
        let bytes = hex(bytes);
        let (first, mut rest) = bytes.split_first().unwrap();
        assert_eq!(integer::read(*first, 7, &mut rest), None);
    }
}

#[test]
fn fields_of_rfc_7541_c_2() {
    check(&[(
        "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
        "custom-key: custom-header",
    )]);
    check(&[("040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path")]);
    check(&[(
        "1008 7061 7373 776f 7264 0673 6563 7265 74",
        "password: secret",
    )]);
    check(&[("82", ":method: GET")]);
    let mut fields = Fields::default();
    let block = hex("1008 7061 7373 776f 7264 0673 6563 7265 74");
    Decoder::default()
        .decode(&block, &mut fields, MOST)
        .unwrap();
    assert!(fields.iter().all(|(_, _, never)| never));
}

#[test]
fn requests_of_rfc_7541_c_3() {
    check(&[
        (
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com",
        ),
        (
            "8286 84be 5808 6e6f 2d63 6163 6865",
            ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\ncache-control: no-cache",
        ),
        (
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
            ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value",
        ),
    ]);
}

#[test]
fn requests_with_huffman_of_rfc_7541_c_4() {
    check(&[
        (
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com",
        ),
        (
            "8286 84be 5886 a8eb 1064 9cbf",
            ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\ncache-control: no-cache",
        ),
        (
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
            ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value",
        ),
    ]);
}

/// The examples' table of 256 bytes is asked for at the start of the first block.
#[test]
fn answers_of_rfc_7541_c_5_and_c_6_evict() {
    let first = ":status: 302\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com";
    let second = ":status: 307\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com";
    let third = ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\nlocation: https://www.example.com\ncontent-encoding: gzip\nset-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1";
    check(&[
        (
            "3fe1 01 4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            first,
        ),
        ("4803 3330 37c1 c0bf", second),
        (
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b 2076 6572 7369 6f6e 3d31",
            third,
        ),
    ]);
    check(&[
        (
            "3fe1 01 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
            first,
        ),
        ("4883 640e ffc1 c0bf", second),
        (
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
            third,
        ),
    ]);
}

#[test]
fn broken_blocks_are_named() {
    for (block, error) in [
        ("80", BadBlock::Index),
        ("be", BadBlock::Index),
        ("7f 80 80 80 80 80", BadBlock::Integer),
        ("40 05 61", BadBlock::Truncated),
        ("00 81 ff 00", BadBlock::Huffman), // eight bits of padding
        ("00 81 1e 00", BadBlock::Huffman), // padding of zeros
        ("00 84 ff ff ff ff 00", BadBlock::Huffman), // the end of string
        ("82 3f e1 01", BadBlock::TableSize), // not at the start
        ("3f e2 1f", BadBlock::TableSize),  // 4097
        ("20 3f e1 01 20 82", BadBlock::TableSize), // three times
    ] {
        assert_eq!(
            decode(&mut Decoder::default(), &hex(block)),
            Err(error),
            "{block}"
        );
    }
}

#[test]
fn upper_case_and_unknown_pseudo_names_are_bad() {
    assert_eq!(
        decode(
            &mut Decoder::default(),
            &hex("00 01 41 01 61 00 02 3a 61 01 61 40 00 01 61")
        )
        .unwrap(),
        [
            ("bad".to_owned(), "a".to_owned()),
            ("bad".to_owned(), "a".to_owned()),
            ("bad".to_owned(), "a".to_owned())
        ]
    );
}

#[test]
fn bomb_is_read_without_being_kept_and_the_table_stays_in_step() {
    let mut decoder = Decoder::default();
    let mut block = hex("40 01 61 7f 81 1e"); // a: 4,000 bytes, into the table
    block.truncate(3);
    integer::write(0, 7, 3000, &mut block);
    block.extend(std::iter::repeat_n(b'x', 3000));
    block.extend(std::iter::repeat_n(0xbe, 30_000)); // and 30,000 times from there
    block.extend(hex("40 01 62 01 63")); // b: c
    let mut fields = Fields::default();
    decoder.decode(&block, &mut fields, MOST).unwrap();
    assert!(fields.is_too_large() && fields.is_empty());
    assert!(
        fields.bytes.capacity() < 4 * MOST.bytes,
        "{}",
        fields.bytes.capacity()
    );
    assert_eq!(
        decode(&mut decoder, &[0xbe]).unwrap(),
        [("b".to_owned(), "c".to_owned())]
    );
    assert!(decoder.held_bytes() < 4 * TABLE_BYTES);
}

#[test]
fn table_never_holds_much_more_than_its_size() {
    let mut table = table::Table::new(TABLE_BYTES);
    for number in 0..100_000u32 {
        let name = Name::new(b"x-a").unwrap();
        table.insert(
            fields::Kind::of(name.as_bytes()),
            b"x-a",
            &vec![b'v'; number as usize % 3000],
        );
        if number % 3000 <= TABLE_BYTES as u32 - 40 {
            assert_eq!(table.get(0).unwrap().value.len(), number as usize % 3000);
        }
        assert!(
            table.held_bytes() < 6 * TABLE_BYTES,
            "{}",
            table.held_bytes()
        );
    }
}

#[test]
fn second_sight_indexes_and_secrets_never_are() {
    let mut encoder = Encoder::new(false);
    let mut lens = Vec::new();
    for _ in 0..3 {
        let mut out = Vec::new();
        encoder.begin(&mut out);
        encoder.field(names::USER_AGENT, b"game/1", false, &mut out);
        lens.push(out.len());
    }
    assert_eq!(lens, [9, 8, 1]);
    for (name, never) in [
        (names::AUTHORIZATION, false),
        (names::COOKIE, false),
        (Name::new(b"x-api-key").unwrap(), false),
        (Name::new(b"x-plain").unwrap(), true),
        (names::BAGGAGE, false),
    ] {
        for _ in 0..3 {
            let mut out = Vec::new();
            encoder.field(name, b"secret", never, &mut out);
            assert!(out.len() > 6, "{name:?}");
            let mut fields = Fields::default();
            Decoder::default().decode(&out, &mut fields, MOST).unwrap();
            let marked = fields.iter().all(|(_, _, never)| never);
            assert_eq!(
                marked,
                never || name == names::AUTHORIZATION || name == names::COOKIE,
                "{name:?}"
            );
        }
    }
}

#[test]
fn names_of_values_that_never_repeat_are_indexed_once() {
    let (mut encoder, mut decoder) = (Encoder::new(false), Decoder::default());
    for (time, size) in [None, None, None, Some(0), None, Some(4096), None, None]
        .into_iter()
        .enumerate()
    {
        if let Some(size) = size {
            encoder.resize(size);
        }
        let mut out = Vec::new();
        encoder.begin(&mut out);
        let value = format!("00-{time}");
        encoder.field(names::TRACEPARENT, value.as_bytes(), false, &mut out);
        encoder.field(names::ACCEPT, b"*/*", false, &mut out);
        let expected = [
            ("traceparent".to_owned(), value),
            ("accept".to_owned(), "*/*".to_owned()),
        ];
        assert_eq!(decode(&mut decoder, &out).unwrap(), expected);
        if matches!(time, 1 | 2 | 6 | 7) {
            assert!(out.len() < 14, "{time} {}", out.len());
        }
    }
}

#[test]
fn peer_that_forbids_the_table_gets_none() {
    let mut encoder = Encoder::new(false);
    let mut decoder = Decoder::default();
    for (size, expected) in [(0, "20"), (0, ""), (5000, "3f e1 1f"), (4096, "")] {
        encoder.resize(size);
        let mut out = Vec::new();
        encoder.begin(&mut out);
        assert_eq!(out, hex(expected), "{size}");
        for _ in 0..3 {
            encoder.field(names::ACCEPT, b"*/*", false, &mut out);
        }
        let fields = decode(&mut decoder, &out).unwrap();
        assert_eq!(fields.len(), 3);
    }
    encoder.resize(0);
    encoder.resize(4096);
    let mut out = Vec::new();
    encoder.begin(&mut out);
    assert_eq!(out, hex("20 3f e1 1f"));
}

proptest! {
    #[test]
    fn huffman_comes_back(text in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut encoded = Vec::new();
        huffman::encode(&text, &mut encoded);
        prop_assert_eq!(encoded.len(), huffman::encoded_len(&text));
        let mut out = vec![1, 2];
        prop_assert!(huffman::decode(&encoded, &mut out));
        prop_assert_eq!(&out[2..], &text[..]);
    }

    #[test]
    fn huffman_of_anything_ends(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut out = Vec::new();
        if huffman::decode(&bytes, &mut out) {
            let mut again = Vec::new();
            huffman::encode(&out, &mut again);
            prop_assert_eq!(&again, &bytes);
        }
        prop_assert!(out.len() <= bytes.len() * 8 / 5);
    }

    #[test]
    fn blocks_of_anything_end_and_are_bounded(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6)) {
        let mut decoder = Decoder::default();
        let mut fields = Fields::default();
        for block in blocks {
            if decoder.decode(&block, &mut fields, Most { bytes: 2000, fields: 10 }).is_err() {
                break;
            }
            prop_assert!(fields.len() <= 10);
        }
        prop_assert!(decoder.held_bytes() < 6 * TABLE_BYTES);
    }

    #[test]
    fn lists_come_back_through_tables_of_any_size(
        lists in prop::collection::vec(
            (prop::collection::vec((0usize..12, "[ -~]{0,40}", any::<bool>()), 0..12), prop::option::of(0usize..5000)), 1..20),
        huffman in any::<bool>(),
    ) {
        const NAMES: [&[u8]; 12] = [b"a", b"x-plain", b"x-api-key", b"cookie", b"content-type", b"user-agent", b"te",
            b"x-request-id", b"traceparent", b"location", b"x-b", b"accept"];
        let (mut encoder, mut decoder) = (Encoder::new(huffman), Decoder::default());
        for (list, resize) in lists {
            if let Some(size) = resize {
                encoder.resize(size);
            }
            let mut block = Vec::new();
            encoder.begin(&mut block);
            encoder.status(201, &mut block);
            encoder.path("/a", None, &mut block);
            let mut expected = vec![(":status".to_owned(), "201".to_owned()), (":path".to_owned(), "/a".to_owned())];
            for (name, value, never) in &list {
                encoder.field(Name::new(NAMES[*name]).unwrap(), value.as_bytes(), *never, &mut block);
                expected.push((String::from_utf8_lossy(NAMES[*name]).into_owned(), value.clone()));
            }
            prop_assert_eq!(decode(&mut decoder, &block).unwrap(), expected);
        }
    }
}
