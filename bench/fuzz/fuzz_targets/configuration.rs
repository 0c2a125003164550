//! The configuration file: any text gives settings or a list of problems.
#![no_main]

use std::path::Path;

use culvert_control::config::Config;
use culvert_dataplane_config::Source;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let source = Source::new(Path::new("culvert.toml"), text.to_owned());
    if let Err(error) = Config::from_source(&source) {
        assert!(!error.to_string().is_empty(), "an error says what is wrong");
    }
});
