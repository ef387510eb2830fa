//! The guide: recipes for what a server has to do besides answering. Each page is one question, and
//! its programs are compiled and run as tests.
//!
//! | I want to … | page |
//! |---|---|
//! | choose between event loop, threads and processes, also when the program runs | [`choosing_a_mode`] |
//! | close silent clients, do something at a given time | [`timeouts`] |
//! | share data between handlers | [`shared_state`] |
//! | send to other clients, and from other threads | [`reaching_others`] |
//! | split the stream into messages of my protocol | [`framing`] |
//! | parse a message once, in the framing | [`parsing_once`] |
//! | send an answer that is longer than memory | [`streaming`] |
//! | send files | [`files`] |
//! | stop without cutting anybody off | [`stopping`] |
//! | see what happens: log lines and counters | [`logging_and_counters`] |
//! | bound what clients may take | [`limits`] |
//! | call a database, a file system, a lock | [`blocking_work`] |
//! | test my handler | [`testing`] |
//! | use more than one processor | [`several_cpus`] |
//! | know the client although a proxy stands between | [`behind_a_proxy`] |
//! | run the server inside an event loop of my own | [`embedding`] |
//!
//! The module contains documentation only. What each event and effect does in each mode is in
//! `docs/events.md` of the package, what the limits are in `docs/limits.md`, how to deploy a server
//! in `docs/deploying.md`, and what to do when something fails in `docs/troubleshooting.md`.

/// A module for each page: its file is in the folder `guide`, and its links are those of the crate.
macro_rules! pages {
    ($($name:ident: $text:literal;)*) => {$(
        pub mod $name {
            #![doc = include_str!($text)]
            #[cfg(doc)]
            #[allow(unused_imports)] // the links of the page
            use crate::*;
        }
    )*};
}

pages! {
    choosing_a_mode: "guide/choosing_a_mode.md";
    timeouts: "guide/timeouts.md";
    shared_state: "guide/shared_state.md";
    reaching_others: "guide/reaching_others.md";
    framing: "guide/framing.md";
    parsing_once: "guide/parsing_once.md";
    streaming: "guide/streaming.md";
    files: "guide/files.md";
    stopping: "guide/stopping.md";
    logging_and_counters: "guide/logging_and_counters.md";
    limits: "guide/limits.md";
    blocking_work: "guide/blocking_work.md";
    testing: "guide/testing.md";
    several_cpus: "guide/several_cpus.md";
    behind_a_proxy: "guide/behind_a_proxy.md";
    embedding: "guide/embedding.md";
}
