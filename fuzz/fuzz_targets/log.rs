//! The measurement log: what a torn or hostile file can do to its parser.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trustme_trust::log::parse;

fuzz_target!(|bytes: &[u8]| {
    let Ok(log) = parse(bytes) else {
        return;
    };
    assert!(log.complete <= bytes.len());
    assert_eq!(log.start().is_some(), !log.records.is_empty());
    // What is complete stays what it is without the torn end.
    let whole = parse(&bytes[..log.complete]).expect("it was read before");
    assert_eq!(whole, log);
    // And whatever was understood can be written and understood again.
    let mut written = Vec::new();
    for record in &log.records {
        written.push(0x1E);
        serde_json::to_writer(&mut written, record).expect("a record is JSON");
        written.push(b'\n');
    }
    assert_eq!(
        parse(&written).expect("it was written here").records,
        log.records
    );
});
