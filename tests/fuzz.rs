//! The checks of the fuzz targets in `fuzz/`, with random input.

#[path = "fuzz/checks.rs"]
mod checks;

use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use socketserver::{Decoded, Delimited, Framing, LengthPrefixed, Lines};

/// Options, a cutting, and a stream of few different bytes, so that delimiters are frequent.
fn input(bytes: &'static [u8], longest: usize) -> impl Strategy<Value = Vec<u8>> {
    let cutting = vec(0..20u8, 0..8);
    let stream = vec(proptest::sample::select(bytes), 0..longest);
    (any::<[u8; 2]>(), 0..40u8, any::<[u8; 2]>(), cutting, stream).prop_map(
        |([overlong, _], max_len, [third, fourth], cutting, stream)| {
            let max_len = if overlong > 240 { 255 } else { max_len };
            let mut data = vec![overlong, max_len, third, fourth, cutting.len() as u8];
            data.extend(cutting);
            data.extend(stream);
            data
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cutting_of_lines_gives_the_same_lines(data in input(b"\r\n\nxy", 200)) {
        checks::lines(&data);
    }

    #[test]
    fn any_cutting_of_delimited_messages_gives_the_same_messages(data in input(b"aab", 200)) {
        checks::delimited(&data);
    }

    #[test]
    fn any_cutting_of_prefixed_messages_gives_the_same_messages(
        data in input(&[0, 0, 0, 1, 2, 3, 20, 255], 300)
    ) {
        checks::prefixed(&data);
    }

    #[test]
    fn any_cutting_of_messages_of_one_size_gives_the_same_messages(data in input(b"abc", 200)) {
        checks::fixed(&data);
    }

    #[test]
    fn any_cutting_of_raw_bytes_gives_the_same_bytes(data in input(b"abc", 200)) {
        checks::raw(&data);
    }

    #[test]
    fn an_address_is_shown_as_a_url_that_is_the_same_address(
        text in "[\\[\\]:a1/.+%@ ]{0,8}(:[0-9]{1,5})?"
    ) {
        checks::endpoint(text.as_bytes());
    }
}

/// If a framing scanned all that is there for each byte, this would take minutes.
#[test]
fn the_work_for_bytes_that_drip_is_in_proportion_to_their_number() {
    const SIZE: usize = 2 << 20;
    let framings: [Box<dyn Framing>; 3] = [
        Box::new(Lines::default().max_len(SIZE)),
        Box::new(Delimited::new("aab").max_len(SIZE)),
        Box::new(LengthPrefixed::default()),
    ];
    let stream = vec![b'a'; SIZE];
    let mut prefixed = (SIZE as u32).to_be_bytes().to_vec();
    prefixed.extend(&stream);
    for (mut framing, stream) in framings.into_iter().zip([&stream, &stream, &prefixed]) {
        let begun = Instant::now();
        for end in 1..SIZE {
            let decoded = framing.decode(&stream[..end]).unwrap();
            assert!(matches!(decoded, Decoded::Incomplete | Decoded::Need(_)));
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
}
