//! A bundle's config.json: the runtime's reading and checks, the canonical form that is measured, the comparison of rights.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::Spec;
use serde_json::Value;
use trustme::bundle;
use trustme_trust::identity::canonical_configuration;
use trustme_trust::policy::excess;

/// A directory that is there on every machine.
const BUNDLE: &str = "/";

fuzz_target!(|bytes: &[u8]| {
    // The runtime does not look into unknown fields, so it also takes what is no JSON there; the hook does not.
    let spec = bundle::parse(bytes, Path::new(BUNDLE));
    if let Ok(config) = serde_json::from_slice::<Value>(bytes) {
        measure(&config);
        compare(&config, spec.is_ok());
    }
    if let Ok(spec) = spec {
        run(spec);
    }
});

fn run(mut spec: Spec) {
    if bundle::check(&spec).is_ok() && bundle::adapt(&mut spec, Path::new(BUNDLE), "id").is_ok() {
        // It is kept for `exec`, which has to read it again.
        let kept = serde_json::to_vec(&spec).expect("a configuration is JSON");
        let read = bundle::parse(&kept, Path::new(BUNDLE)).expect("it was written here");
        assert_eq!(read, spec);
    }
}

fn compare(config: &Value, well_formed: bool) {
    let mut found = excess(config, config);
    // Nothing asks for more than itself, but for namespaces: the host's are never granted. And serde also takes a list of
    // an object's values for the object; nothing of that kind is ever granted.
    found.retain(|reason| {
        !reason.starts_with("linux.namespaces") && !reason.ends_with("not an object")
    });
    assert!(found.is_empty() || !well_formed, "{found:?}");
}

fn measure(config: &Value) {
    let canonical = |config: &Value| canonical_configuration(config, "id", Path::new("/bundle"));
    let Ok(first) = canonical(config) else {
        return;
    };
    let again = serde_json::from_slice(&first).expect("canonical JSON is JSON");
    let second = canonical(&again).expect("it has a canonical form");
    assert_eq!(first, second, "the canonical form has another one");
}
