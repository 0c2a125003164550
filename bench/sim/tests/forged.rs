//! Arbitrary octets drive two engines, with a stranger's segments between them: the streams arrive
//! whole, the connection goes on, and in the end nothing is left.

use culvert_sim::forged::run;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_stranger_changes_nothing(input in prop::collection::vec(any::<u8>(), 0..2400)) {
        if let Err(error) = run(&input) {
            return Err(TestCaseError::fail(format!("{error:#}")));
        }
    }
}

/// What the fuzzer has found before.
#[test]
fn inputs_that_were_found_once() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/tcp_segment");
    for file in std::fs::read_dir(corpus).expect("the corpus") {
        let file = file.expect("a file of the corpus").path();
        let input = std::fs::read(&file).expect("an input");
        if let Err(error) = run(&input) {
            panic!("{}: {error:#}", file.display());
        }
    }
}
