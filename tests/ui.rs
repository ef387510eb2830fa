//! What the compiler says to who puts together what does not belong together.

#[test]
fn a_wrong_pairing_does_not_compile_and_the_message_says_why() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
