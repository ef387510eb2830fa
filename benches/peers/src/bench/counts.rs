//! What the tools that count have to say.

use std::process::{Command, Stdio};

/// Whether there is such a program.
pub fn is_installed(tool: &str) -> bool {
    Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The sum of the first column of `strace -c`, without its own total, and without the threads that
/// it tells it has let go.
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

/// The total in a profile of callgrind.
pub fn total_of_profile(profile: &str) -> u64 {
    let totals = profile.lines().filter_map(|line| line.strip_prefix("totals: "));
    totals.filter_map(|total| total.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_are_counted_and_only_once() {
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
    fn the_total_of_a_profile_is_found() {
        assert_eq!(total_of_profile("events: Ir\nfn=a\n12 3\ntotals: 4567\n"), 4567);
    }
}
