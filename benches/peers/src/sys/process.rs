//! CPUs, CPU time, limits, signals and statistics of processes.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use super::check;

/// The CPUs that this process may use.
pub fn cpus() -> io::Result<Vec<usize>> {
    // SAFETY: an all-zero set is an empty set, which outlives the call; every CPU asked about is
    // within its size.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        let size = size_of::<libc::cpu_set_t>();
        check(libc::sched_getaffinity(0, size, &mut set))?;
        Ok((0..8 * size).filter(|cpu| libc::CPU_ISSET(*cpu, &set)).collect())
    }
}

/// Binds the calling thread, and the threads and processes that it starts, to one CPU.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    pin_to_any(&[cpu])
}

/// Binds the calling thread, and the threads and processes that it starts, to these CPUs.
pub fn pin_to_any(cpus: &[usize]) -> io::Result<()> {
    // SAFETY: an all-zero set is an empty set, and each CPU is checked by CPU_SET against the size
    // of the set.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cpus.iter().for_each(|cpu| libc::CPU_SET(*cpu, &mut set));
        check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set))?;
    }
    Ok(())
}

/// Makes the timers of this thread exact to the microsecond; the default slack of Linux is 50 µs.
pub fn precise_timers() {
    // SAFETY: takes plain numbers; a failure leaves the default slack, which is harmless.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64) };
}

/// Has the kernel end the calling process when its parent ends.
pub fn die_with_parent() -> io::Result<()> {
    // SAFETY: takes plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) })?;
    Ok(())
}

/// Lets the calling thread, and the threads and processes that it starts, run only when their CPU
/// is otherwise idle: any other thread that wakes up there runs at once.
pub fn run_when_idle() -> io::Result<()> {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: `none` outlives the call, which only reads it.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const none) })?;
    Ok(())
}

/// Runs `prepare` in the child of `command`, between fork and exec.
///
/// It must only make system calls: in a child of a process with several threads, any lock may stay
/// held.
pub fn before_exec(
    command: &mut Command,
    prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: all callers, which are in this package, fulfil the condition above.
    unsafe { command.pre_exec(prepare) };
}

/// Raises the soft limit of open files to the hard one.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives both calls.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))?;
    }
    Ok(())
}

/// Sets how many files this process may open, now and later. Makes only system calls.
pub fn limit_descriptors(count: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: count, rlim_max: count };
    // SAFETY: `limit` outlives the call, which only reads it.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(())
}

/// Lets other processes run first on a busy CPU. Makes only a system call.
pub fn lower_priority() -> io::Result<()> {
    const NICE: libc::c_int = 10;
    // SAFETY: takes plain numbers.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) })?;
    Ok(())
}

/// What a process takes from the system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Resident memory, in KiB.
    pub resident: u64,
    /// The most resident memory so far, in KiB.
    pub peak: u64,
    /// Open files.
    pub descriptors: usize,
    /// Threads.
    pub threads: u64,
}

/// What the process `pid` takes from the system now, without its children.
pub fn resources(pid: u32) -> io::Result<Resources> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    Ok(Resources {
        resident: field("VmRSS:"),
        peak: field("VmHWM:"),
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
        threads: field("Threads:"),
    })
}

/// Sends `signal` to the process `pid`, which the caller started.
pub fn signal(pid: u32, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: takes plain numbers.
    check(unsafe { libc::kill(pid as libc::pid_t, signal) })?;
    Ok(())
}

/// Waits until `fd` is readable or at its end; false if `limit` passes first.
pub fn wait_readable(fd: impl AsFd, limit: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, and `poll` outlives the call.
    let ready = check(unsafe { libc::poll(&mut poll, 1, limit.as_millis() as libc::c_int) })?;
    Ok(ready > 0)
}

/// The CPU time that this process has used.
pub fn own_cpu_time() -> io::Result<Duration> {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// The CPU time that the process `pid` and its children, including exited ones, have used.
///
/// The process's own share, with its exited threads, is read from its CPU clock and exact to the
/// nanosecond. Exited children count in ticks of 10 ms, the resolution of `/proc`.
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut id = 0;
    // SAFETY: `id` outlives the call.
    match unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut id) } {
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    let mut total = clock(id)? + ended_children(pid)?;
    for child in children(pid) {
        // A child may exit between the two reads; it is then missing once.
        total += cpu_time(child).unwrap_or_default();
    }
    Ok(total)
}

/// How long the threads of `pid` have been ready to run while their CPU ran something else. Only
/// the first few threads of a process are read: many threads compete with each other anyway.
pub fn waiting_time(pid: u32) -> io::Result<Duration> {
    const THREADS: usize = 8;
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))?.take(THREADS) {
        // A thread may have exited since it was listed.
        let stat = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        let waited = stat.split_whitespace().nth(1);
        total += waited.and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(total))
}

/// The number of context switches, voluntary and involuntary, of the running threads of the process
/// `pid` and of its children.
pub fn context_switches(pid: u32) -> io::Result<u64> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have exited since it was listed.
        let status = fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
        let counts = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
        total += counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum::<u64>();
    }
    let children = children(pid).into_iter();
    Ok(total + children.filter_map(|child| context_switches(child).ok()).sum::<u64>())
}

/// The anonymous memory of a process and its children in KiB; shared pages count once.
pub fn anonymous_kib(pid: u32) -> io::Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let own: u64 = rollup
        .lines()
        .filter_map(|line| {
            let value = line.strip_prefix("Pss_Anon:").or(line.strip_prefix("Pss_Shmem:"))?;
            value.trim().trim_end_matches(" kB").parse::<u64>().ok()
        })
        .sum();
    let children = children(pid).into_iter();
    // A child that has just exited has no memory.
    let children: u64 = children.filter_map(|child| anonymous_kib(child).ok()).sum();
    Ok(own + children)
}

/// The number of threads of the process `pid` and its children.
pub fn threads(pid: u32) -> io::Result<usize> {
    let own = fs::read_dir(format!("/proc/{pid}/task"))?.count();
    let children = children(pid).into_iter();
    Ok(own + children.filter_map(|child| threads(child).ok()).sum::<usize>())
}

/// The states of the threads of the process `pid`, as the letters of `/proc`.
pub fn thread_states(pid: u32) -> io::Result<Vec<char>> {
    let mut states = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may have exited since it was listed.
        let stat = fs::read_to_string(thread?.path().join("stat")).unwrap_or_default();
        states.extend(stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()));
    }
    Ok(states)
}

/// The busy time of all CPUs of this machine together, in ticks of 10 ms.
pub fn busy_time() -> io::Result<Duration> {
    const IDLE: [usize; 2] = [3, 4]; // idle, iowait
    const KINDS: usize = 8; // the fields after them are contained in others
    let stat = fs::read_to_string("/proc/stat")?;
    let all = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(KINDS);
    let busy = all.enumerate().filter(|(kind, _)| !IDLE.contains(kind));
    Ok(ticks(busy.filter_map(|(_, ticks)| ticks.parse::<u64>().ok()).sum()))
}

/// The children that the main thread of `pid` has started.
pub fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The CPU time of the children that `pid` has waited for.
fn ended_children(pid: u32) -> io::Result<Duration> {
    const CUTIME: usize = 13; // counted after the name, which may contain spaces
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks: u64 = fields
        .split_whitespace()
        .skip(CUTIME)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    Ok(self::ticks(ticks))
}

fn ticks(count: u64) -> Duration {
    // SAFETY: takes a plain number.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as u64;
    Duration::from_nanos(count * 1_000_000_000 / per_second)
}

fn clock(id: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` outlives the call.
    check(unsafe { libc::clock_gettime(id, &mut time) })?;
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}
