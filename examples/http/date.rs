//! Dates as HTTP writes them (RFC 9110, section 5.6.7): `Sun, 06 Nov 1994 08:49:37 GMT`.

use std::cell::Cell;
use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: &[u8; 21] = b"ThuFriSatSunMonTueWed"; // 1 January 1970 was a Thursday
const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";

/// A date as HTTP writes it.
pub(crate) type Text = [u8; 29];

/// The seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The current date. Each thread makes the text once per second.
pub(crate) fn now() -> Text {
    thread_local!(static LAST: Cell<(u64, Text)> = const { Cell::new((0, [0; 29])) });
    let now = seconds(SystemTime::now());
    let (at, text) = LAST.get();
    if at == now {
        return text;
    }
    let text = format(now);
    LAST.set((now, text));
    text
}

/// The date of a time in seconds since 1970.
pub(crate) fn format(seconds: u64) -> Text {
    let (days, second) = (seconds / 86_400, (seconds % 86_400) as usize);
    let (year, month, day) = civil(days);
    let mut text = *b"Day, 00 Mon 0000 00:00:00 GMT";
    text[..3].copy_from_slice(&DAYS[(days % 7) as usize * 3..][..3]);
    text[8..11].copy_from_slice(&MONTHS[(month - 1) * 3..][..3]);
    let year = year.min(9999) as usize;
    let two_digits = [
        (5, day),
        (12, year / 100),
        (14, year % 100),
        (17, second / 3600),
        (20, second / 60 % 60),
        (23, second % 60),
    ];
    for (at, number) in two_digits {
        text[at] = b'0' + (number / 10) as u8;
        text[at + 1] = b'0' + (number % 10) as u8;
    }
    text
}

/// Reads a date. The two older forms, which no client of today sends, are not read.
pub(crate) fn parse(text: &[u8]) -> Option<u64> {
    let text: &Text = text.try_into().ok()?;
    let number = |from: usize, to: usize| super::request::digits(&text[from..to]);
    let month = MONTHS.chunks(3).position(|name| name == &text[8..11])? as u64 + 1;
    let days = days_from_civil(number(12, 16)?, month, number(5, 7)?)?;
    let second = number(17, 19)? * 3600 + number(20, 22)? * 60 + number(23, 25)?;
    let seconds = days * 86_400 + second;
    (format(seconds) == *text).then_some(seconds)
}

/// The year, month and day of a day since 1 January 1970 in the Gregorian calendar. Counted from
/// 1 March of year 0, because then the day that only some years have is the last of its year.
fn civil(days: u64) -> (u64, usize, usize) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (year, in_month) = (era * 400 + year, day - (153 * month + 2) / 5 + 1);
    match month {
        0..=9 => (year, month as usize + 3, in_month as usize),
        _ => (year + 1, month as usize - 9, in_month as usize),
    }
}

/// The inverse of [`civil`], from 1970 on.
fn days_from_civil(year: u64, month: u64, day: u64) -> Option<u64> {
    let (year, month) =
        if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let in_year = (153 * month + 2) / 5 + day.checked_sub(1)?;
    (365 * year + year / 4 - year / 100 + year / 400 + in_year).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_and_read_as_in_the_rfc() {
        let cases = [
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ];
        for (seconds, text) in cases {
            assert_eq!(format(seconds), text.as_bytes(), "{text}");
            assert_eq!(parse(text.as_bytes()), Some(seconds));
        }
    }

    #[test]
    fn every_day_is_read_as_it_is_written() {
        for day in 0..200_000 {
            assert_eq!(parse(&format(day * 86_400 + 1)), Some(day * 86_400 + 1), "{day}");
        }
    }

    #[test]
    fn what_is_not_a_date_is_not_read() {
        for text in [
            "",
            "Sun, 06 Nov 1994 08:49:37 CET",
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:49:37 GMT",
            "Thu, 00 Jan 1970 00:00:00 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
