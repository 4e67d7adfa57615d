//! `config.json`, the `finegates` object in it, and `adapter_config.json`.

#![no_main]

use std::path::Path;

use finegates_checkpoint::{AdapterConfig, Config};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(config) = Config::from_json(text) {
        assert!(config.hidden.is_multiple_of(config.heads));
        assert!(config.max_tokens() >= 1);
        if let Some(compact) = &config.compact {
            let again = finegates_checkpoint::CompactInfo::from_json(Path::new("config.json"), &compact.to_json());
            assert_eq!(again.as_ref().ok(), Some(compact));
        }
    }
    if let Ok(config) = AdapterConfig::parse(Path::new("adapter_config.json"), text) {
        let again = AdapterConfig::parse(Path::new("adapter_config.json"), &config.to_json());
        assert_eq!(again.ok(), Some(config));
    }
});
