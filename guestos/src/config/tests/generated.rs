//! Many configurations and texts, the same in each run.

use super::*;

/// A generator of numbers that is the same in each run (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// A string of all that the dialect can say.
    fn string(&mut self) -> String {
        const CHARS: [char; 24] = [
            'a', 'Z', '0', '7', ' ', '"', '\'', '\\', '\n', '\t', '\r', '\x01', '\x1f', '{', '}',
            ':', '#', ';', '<', 'ä', '✓', '🦀', '\u{85}', '\u{feff}',
        ];
        let length = self.below(12);
        let mut text: String = (0..length)
            .map(|_| CHARS[self.below(24) as usize])
            .collect();
        if text.ends_with('\\') {
            text.push('n');
        }
        text
    }

    fn name(&mut self, number: usize) -> String {
        let letters = self
            .string()
            .replace(|char: char| char == '/' || char.is_control(), "");
        format!("{letters}{number}")
    }

    fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(2) == 0).then(|| make(self))
    }

    fn size(&mut self) -> u32 {
        self.below(1 << 32) as u32
    }

    fn hex(&mut self, digits: usize) -> String {
        (0..digits)
            .map(|_| char::from(b"0123456789abcdefABCDEF"[self.below(22) as usize]))
            .collect()
    }

    fn i18n(&mut self) -> I18nString {
        I18nString {
            en: self.string(),
            de: self.maybe(Self::string),
            fr: self.maybe(Self::string),
        }
    }

    fn mounts(&mut self) -> Vec<Mount> {
        let count = self.below(5) as usize;
        let mount = |number| Mount {
            image_file: self.name(number),
            mount_point: format!("/{}", self.name(number)),
            fs_type: self.name(number),
            mount_type: MountType::ALL[self.below(12) as usize],
            min_size: self.maybe(Self::size),
            max_size: self.maybe(Self::size),
            def_size: self.maybe(Self::size),
            image_size: self.maybe(|numbers| numbers.below(u64::MAX)),
            image_sha1: self.maybe(|numbers| numbers.hex(40)),
            image_sha2_256: self.maybe(|numbers| numbers.hex(64)),
            mount_data: self.maybe(Self::string),
            image_verity_sha256: self.maybe(|numbers| numbers.hex(64)),
        };
        (0..count).map(mount).collect()
    }

    fn config(&mut self) -> GuestOsConfig {
        let count = self.below(4);
        GuestOsConfig {
            name: self.name(0),
            hardware: ["x86", "arm", "riscv"][self.below(3) as usize].to_owned(),
            version: self.below(u64::MAX),
            mounts: self.mounts(),
            init_path: self.maybe(|numbers| format!("/{}", numbers.name(1))),
            init_param: (0..count).map(|_| self.string()).collect(),
            init_env: (0..count)
                .map(|_| format!("A={}n", self.string()))
                .collect(),
            mounts_setup: self.mounts(),
            description: self.i18n(),
            description_long: self.maybe(Self::i18n),
            upstream_version: self.maybe(Self::string),
            icon: self.maybe(Self::string),
            build_date: self.maybe(Self::string),
            update_base_url: self.maybe(Self::string),
            feature_bg_booting: self.maybe(|numbers| numbers.below(2) == 0),
            min_ram_limit: self.maybe(Self::size),
            def_ram_limit: self.maybe(Self::size),
            feature_install_guest: self.maybe(|numbers| numbers.below(2) == 0),
        }
    }
}

#[test]
fn what_is_written_is_read_again() {
    let mut numbers = Numbers(1);
    for _ in 0..2000 {
        let config = numbers.config();
        let text = config
            .to_text()
            .unwrap_or_else(|error| panic!("{error}: {config:?}"));
        assert_eq!(
            GuestOsConfig::parse(text.as_bytes()).as_ref(),
            Ok(&config),
            "{text}"
        );
        // The dialect of GYROIDOS.md: line feeds only at line ends, no other control character.
        assert!(text.ends_with('\n'));
        assert!(
            text.chars()
                .all(|char| char == '\n' || !char.is_ascii_control())
        );
    }
}

/// One byte replaced anywhere: an error or another configuration, which is written and read again; never a panic.
#[test]
fn any_byte_may_be_wrong() {
    let mut numbers = Numbers(2);
    for place in 0..TEXT.len() {
        for byte in [
            0,
            b'\n',
            b'"',
            b'\\',
            b'}',
            b'0',
            0xc3,
            numbers.below(256) as u8,
        ] {
            let mut bytes = TEXT.as_bytes().to_vec();
            bytes[place] = byte;
            if let Ok(config) = GuestOsConfig::parse(&bytes) {
                let text = config.to_text().unwrap();
                assert_eq!(GuestOsConfig::parse(text.as_bytes()), Ok(config));
            }
        }
    }
}
