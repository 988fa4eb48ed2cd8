//! Bytes in JSON: hex for digests, base64 for blobs.

/// `#[serde(with)]` for lower-case hex.
pub(crate) mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes bytes in hex.
    pub(crate) fn serialize<S: Serializer>(
        bytes: impl AsRef<[u8]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    /// Reads bytes in hex: a vector, or an array, whose length the text has to have.
    pub(crate) fn deserialize<'de, D, T>(deserializer: D) -> Result<T, D::Error>
    where
        D: Deserializer<'de>,
        T: hex::FromHex<Error = hex::FromHexError>,
    {
        let text = String::deserialize(deserializer)?;
        T::from_hex(&text)
            .map_err(|error| de::Error::custom(format_args!("{text:?} is not hex: {error}")))
    }
}

/// `#[serde(with)]` for standard base64 with padding.
pub(crate) mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de};

    /// Writes bytes in base64.
    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    /// Reads bytes in base64.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD
            .decode(&text)
            .map_err(|error| de::Error::custom(format_args!("not base64: {error}")))
    }
}
