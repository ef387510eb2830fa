//! Tests of the framing: any bytes, cut anywhere.

use proptest::prelude::*;

use super::*;

/// The commands in `input`, which arrives in pieces of `step` bytes.
fn commands(input: &[u8], step: usize) -> Result<Vec<Vec<Vec<u8>>>, Malformed> {
    let mut requests = Requests::default();
    let (mut start, mut end) = (0, 0);
    let mut commands = Vec::new();
    while end < input.len() {
        end = input.len().min(end + step);
        while start < end {
            match requests.parse(&input[start..end])? {
                Decoded::Frame { body, consumed } => {
                    let found = requests.take();
                    let arguments = found.arguments(&input[start..][body]);
                    commands.push(arguments.from(0).map(<[u8]>::to_vec).collect());
                    requests.reuse(found);
                    start += consumed;
                }
                Decoded::Skip(count) => start += count,
                Decoded::Incomplete | Decoded::Need(_) => break,
            }
        }
    }
    Ok(commands)
}

/// As [`commands`], the same however the input is cut; words are joined by `|`.
#[track_caller]
fn expect(input: &str, expected: &[&str]) {
    for step in [1, 2, 3, 7, input.len()] {
        let commands = commands(input.as_bytes(), step).unwrap();
        let joined: Vec<_> = commands
            .iter()
            .map(|words| String::from_utf8_lossy(&words.join(&b'|')).into_owned())
            .collect();
        assert_eq!(joined, expected, "in steps of {step}");
    }
}

#[test]
fn commands_are_found_however_the_input_is_cut() {
    expect("*2\r\n$3\r\nGET\r\n$1\r\na\r\n*1\r\n$4\r\nPING\r\n", &["GET|a", "PING"]);
    expect("*3\r\n$3\r\nSET\r\n$0\r\n\r\n$4\r\n\r\n\r\n\r\n", &["SET||\r\n\r\n"]);
    expect(
        "*6\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n$1\r\ne\r\n$1\r\nf\r\n",
        &["a|b|c|d|e|f"],
    );
    expect("PING\r\n  SET a\t\"b c\"\n", &["PING", "SET|a|b c"]);
    expect("*1\r\n$4\r\nPING\r\nPING\r\n*1\r\n$4\r\nPING\r\n", &["PING", "PING", "PING"]);
}

#[test]
fn empty_commands_are_skipped() {
    expect("*0\r\n*-1\r\n\r\n   \r\nPING\r\n", &["PING"]);
}

#[test]
fn what_can_become_no_command_is_refused_however_it_is_cut() {
    let many = format!("*{}\r\n", MAX_ARGUMENTS + 1);
    let cases = [
        ("*x\r\n", Malformed::Count),
        ("*\r\n", Malformed::Count),
        ("*03\r\n", Malformed::Count),
        ("*99999999999999999999\r\n", Malformed::Count),
        (&many, Malformed::Count),
        ("*1\r\n+PING\r\n", Malformed::NoLength(b'+')),
        ("*1\r\n*1\r\n", Malformed::NoLength(b'*')),
        ("*1\r\n$-1\r\n", Malformed::Length),
        ("*1\r\n$x\r\n", Malformed::Length),
        ("*1\r\n$536870913\r\n", Malformed::Length),
        ("*1\r\n$99999999999999999999\r\n", Malformed::Length),
    ];
    for (input, expected) in cases {
        for step in [1, 2, 100] {
            assert_eq!(commands(input.as_bytes(), step).as_ref(), Err(&expected), "{input:?}");
        }
    }
    let long = vec![b'1'; MAX_LINE + 10];
    let of = |start: &str| commands(&[start.as_bytes(), &long].concat(), 1000);
    assert_eq!(of("*"), Err(Malformed::CountTooLong));
    assert_eq!(of("*1\r\n$"), Err(Malformed::LengthTooLong));
    assert_eq!(of(""), Err(Malformed::LineTooLong));
    // Also if all of it is there.
    let of = |start: &str| {
        let input = [start.as_bytes(), &long, b"\r\n"].concat();
        commands(&input, input.len())
    };
    assert_eq!(of("*"), Err(Malformed::CountTooLong));
    assert_eq!(of("*1\r\n$"), Err(Malformed::LengthTooLong));
    assert_eq!(of(""), Err(Malformed::LineTooLong));
}

#[test]
fn a_length_alone_takes_no_memory() {
    let mut requests = Requests::default();
    let decoded = requests.parse(b"*1000000\r\n$536870912\r\n").unwrap();
    assert_eq!(decoded, Decoded::Need(22 + 536_870_912 + 2));
    assert_eq!(requests.found.many.capacity(), 0);
}

#[test]
fn integers_are_those_that_redis_accepts() {
    let valid = [("0", 0), ("-1", -1), ("42", 42), ("9223372036854775807", i64::MAX)];
    for (text, expected) in valid {
        assert_eq!(integer(text.as_bytes()), Some(expected));
    }
    assert_eq!(integer(b"-9223372036854775808"), Some(i64::MIN));
    for text in ["", "-", "-0", "01", "+1", " 1", "1 ", "1.0", "a", "9223372036854775808"] {
        assert_eq!(integer(text.as_bytes()), None, "{text:?}");
    }
}

/// Pieces of which requests are made, whole ones and broken ones.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(&b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n"[..]),
        Just(&b"*1\r\n$0\r\n\r\n"[..]),
        Just(&b"*6\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n$1\r\ne\r\n$12\r\n0123456789\r\n\r\n"[..]),
        Just(&b"SET a 'b c'\r\n"[..]),
        Just(&b"*"[..]),
        Just(&b"$"[..]),
        Just(&b"\r\n"[..]),
        Just(&b"\""[..]),
        Just(&b"3"[..]),
        Just(&b"-1"[..]),
        Just(&b"\0\xff"[..]),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_input_gives_the_same_commands_however_it_is_cut(input in pieces(), step in 1usize..20) {
        prop_assert_eq!(commands(&input, step), commands(&input, input.len().max(1)));
    }

    #[test]
    fn any_bytes_give_the_same_commands_however_they_are_cut(input: Vec<u8>, step in 1usize..20) {
        prop_assert_eq!(commands(&input, step), commands(&input, input.len().max(1)));
    }
}
