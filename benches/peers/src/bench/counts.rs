//! Parsers of the output of strace and callgrind.

use std::process::{Command, Stdio};

/// Whether a program is installed.
pub fn is_installed(tool: &str) -> bool {
    Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The sum of the first column of `strace -c`, without the line of the total and the lines about
/// detached threads.
pub fn sum_of_calls(summary: &str) -> u64 {
    summary
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            match fields[..] {
                [calls, name] if name != "total" => calls.parse::<u64>().ok(),
                _ => None,
            }
        })
        .sum()
}

/// The total of a callgrind profile.
pub fn total_of_profile(profile: &str) -> u64 {
    let totals = profile.lines().filter_map(|line| line.strip_prefix("totals: "));
    totals.filter_map(|total| total.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_strace_contains_every_call_once() {
        let summary = "\
20628 ???( <detached ...>
    calls syscall
--------- ----------------
     1021 recvfrom
     1020 sendto
--------- ----------------
     2041 total
";
        assert_eq!(sum_of_calls(summary), 2041);
    }

    #[test]
    fn the_total_of_a_callgrind_profile_is_read() {
        assert_eq!(total_of_profile("events: Ir\nfn=a\n12 3\ntotals: 4567\n"), 4567);
    }
}
