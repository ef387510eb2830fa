//! The words of a command that is a line, for people at a terminal.

/// Splits a line into words, which may be quoted; `None` if a quote does not end.
pub(crate) fn split(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut rest = line.trim_ascii_start();
    while let [first, ..] = rest {
        let mut word = Vec::new();
        match first {
            b'"' | b'\'' => rest = quoted(rest, &mut word)?,
            _ => {
                let end =
                    rest.iter().position(|b| b.is_ascii_whitespace() || matches!(b, b'"' | b'\''));
                let (plain, after) = rest.split_at(end.unwrap_or(rest.len()));
                word.extend_from_slice(plain);
                rest = match after {
                    [b'"' | b'\'', ..] => quoted(after, &mut word)?,
                    _ => after,
                };
            }
        }
        words.push(word);
        rest = rest.trim_ascii_start();
    }
    Some(words)
}

/// Reads the quoted text at the start of `text` into `word`, and returns what follows.
fn quoted<'a>(text: &'a [u8], word: &mut Vec<u8>) -> Option<&'a [u8]> {
    let (quote, mut rest) = text.split_first()?;
    loop {
        rest = match (quote, rest) {
            (b'"', [b'\\', b'x', high, low, after @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                let digit = |byte: &u8| char::from(*byte).to_digit(16).unwrap_or(0) as u8;
                word.push(digit(high) << 4 | digit(low));
                after
            }
            (b'"', [b'\\', escaped, after @ ..]) => {
                word.push(match escaped {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 8,
                    b'a' => 7,
                    other => *other,
                });
                after
            }
            (b'\'', [b'\\', b'\'', after @ ..]) => {
                word.push(b'\'');
                after
            }
            // The quote ends, and so must the word.
            (_, [byte, after @ ..]) if byte == quote => {
                let ends = after.first().is_none_or(u8::is_ascii_whitespace);
                return ends.then_some(after);
            }
            (_, [byte, after @ ..]) => {
                word.push(*byte);
                after
            }
            (_, []) => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_are_read_as_redis_reads_them() {
        let cases: [(&str, &[&str]); 6] = [
            ("", &[]),
            (" a  b\t", &["a", "b"]),
            (r#""\x41\n\t\"" b"#, &["A\n\t\"", "b"]),
            (r"'it\'s \n'", &[r"it's \n"]),
            (r#"b"c d" e'f'"#, &["bc d", "ef"]),
            (r#""" ''"#, &["", ""]),
        ];
        for (line, expected) in cases {
            let words = split(line.as_bytes()).unwrap();
            let expected: Vec<_> = expected.iter().map(|word| word.as_bytes()).collect();
            assert_eq!(words, expected, "{line}");
        }
    }

    #[test]
    fn a_quote_that_does_not_end_or_that_letters_follow_is_refused() {
        for line in ["a \"b", "a 'b", "a \"b\"c", "'a'b", "\"", "\"\\\""] {
            assert_eq!(split(line.as_bytes()), None, "{line}");
        }
    }
}
