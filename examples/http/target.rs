//! The target of a request (RFC 9112, section 3.2) as a path below the root, without input and
//! output. A target that leads above the root, or to a hidden file, leads nowhere.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use super::request::Refused;

/// A path below the root, as a client names it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Relative to the root; empty for the root itself. Its components are plain names.
    pub(crate) path: PathBuf,
    /// It ends in a slash, which stands for a directory.
    pub(crate) is_directory: bool,
}

/// Reads a target: a path, or a URL with a path, with a query or without.
///
/// # Errors
///
/// 400 for what is not a path below the root, and 404 for a path to hidden files.
pub(crate) fn parse(target: &[u8]) -> Result<Target, Refused> {
    let path = without_authority(target).ok_or(BAD)?;
    let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
    let mut names = Vec::with_capacity(path.len());
    for segment in path.split(|byte| *byte == b'/').filter(|segment| !segment.is_empty()) {
        if !names.is_empty() {
            names.push(b'/');
        }
        let begin = names.len();
        decode(segment, &mut names).ok_or(BAD)?;
        match &names[begin..] {
            b".." => return Err(BAD),
            name if name.contains(&b'/') || name.contains(&0) => return Err(BAD),
            [b'.', ..] => return Err(Refused(404)),
            _ => {}
        }
    }
    let is_directory = path.ends_with(b"/");
    Ok(Target { path: PathBuf::from(OsString::from_vec(names)), is_directory })
}

const BAD: Refused = Refused(400);

/// The path of a target in origin form or absolute form.
fn without_authority(target: &[u8]) -> Option<&[u8]> {
    if target.starts_with(b"/") {
        return Some(target);
    }
    let scheme = target.get(..7)?;
    let rest = scheme.eq_ignore_ascii_case(b"http://").then(|| &target[7..])?;
    match rest.iter().position(|byte| *byte == b'/' || *byte == b'?') {
        Some(0) => None,
        Some(slash) if rest[slash] == b'/' => Some(&rest[slash..]),
        _ => Some(b"/"),
    }
}

/// Appends a segment, with each `%41` replaced by the byte that it stands for. `None` where that is
/// not complete, or a byte is not allowed in a path.
fn decode(segment: &[u8], names: &mut Vec<u8>) -> Option<()> {
    let mut bytes = segment.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let mut digit = || char::from(*bytes.next()?).to_digit(16);
                names.push((digit()? << 4 | digit()?) as u8);
            }
            b'#' | b'\\' | b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' => return None,
            byte if byte.is_ascii_control() => return None,
            byte => names.push(*byte),
        }
    }
    Some(())
}

/// A name as a part of a path in a URL.
pub(crate) fn encode(name: &[u8]) -> String {
    let mut encoded = String::new();
    for byte in name {
        match byte {
            byte if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) => {
                encoded.push(char::from(*byte));
            }
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_path_below_the_root() {
        let cases = [
            ("/", "", true),
            ("/a", "a", false),
            ("/a/b/?q=/../x", "a/b", true),
            ("//a///b", "a/b", false),
            ("/%E5%A4%A7%20b", "大 b", false),
            ("http://host:80/a", "a", false),
            ("HTTP://host", "", true),
            ("http://host?q", "", true),
        ];
        for (target, path, is_directory) in cases {
            let expected = Target { path: path.into(), is_directory };
            assert_eq!(parse(target.as_bytes()), Ok(expected), "{target}");
        }
    }

    #[test]
    fn a_target_that_leads_elsewhere_is_refused() {
        let cases = [
            ("/..", 400),
            ("/a/../b", 400),
            ("/%2e%2E/etc/passwd", 400),
            ("/a%2f..%2fb", 400),
            ("/..%5c..", 404),
            ("/a%00b", 400),
            ("/a%2", 400),
            ("/a%zz", 400),
            ("/a#b", 400),
            ("/a\\b", 400),
            ("a", 400),
            ("*", 400),
            ("http:///etc", 400),
            ("ftp://host/", 400),
            ("/.git/config", 404),
            ("/%2egit", 404),
            ("/./a", 404),
        ];
        for (target, status) in cases {
            assert_eq!(parse(target.as_bytes()), Err(Refused(status)), "{target}");
        }
    }

    #[test]
    fn an_encoded_name_is_decoded_to_the_same() {
        let name: Vec<u8> = (0..=255).collect();
        let mut decoded = Vec::new();
        assert_eq!(decode(encode(&name).as_bytes(), &mut decoded), Some(()));
        assert_eq!(decoded, name);
    }
}
