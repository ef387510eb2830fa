//! The compiler's messages for handlers under modes that cannot run them.

#[test]
fn a_handler_under_a_mode_that_cannot_run_it_does_not_compile_and_the_message_says_why() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
