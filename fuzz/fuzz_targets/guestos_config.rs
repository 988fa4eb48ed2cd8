//! The configuration text of a GuestOS: what the parser accepts is in the dialect, and means the same when written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trustme_guestos::config::GuestOsConfig;

fuzz_target!(|bytes: &[u8]| {
    let config = match GuestOsConfig::parse(bytes) {
        Ok(config) => config,
        Err(error) => {
            let lines = bytes.split(|byte| *byte == b'\n').count();
            assert!((1..=lines).contains(&error.line), "{error}");
            return;
        }
    };
    in_dialect(bytes);
    let text = config.to_text().expect("it was read, so it can be said");
    let again = GuestOsConfig::parse(text.as_bytes()).expect("it was written here");
    assert_eq!(again, config);
    assert_eq!(again.to_text().expect("it was written before"), text);
});

/// GyroidOS's parser ends at a byte outside of quotes that it does not expect, and takes some for comments or
/// separators: none may be left.
fn in_dialect(bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).expect("what is accepted is UTF-8");
    let mut quoted = false;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => quoted = !quoted,
            '\\' if quoted => {
                characters.next();
            }
            '\0' | '\r' => panic!("{character:?} in {text:?}"),
            _ if quoted => assert_ne!(character, '\n', "a string over two lines: {text:?}"),
            _ => assert!(
                character.is_ascii_alphanumeric() || "_:{} \t\n".contains(character),
                "{character:?} outside of quotes in {text:?}"
            ),
        }
    }
    assert!(!quoted);
}
