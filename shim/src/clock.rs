//! Times in the forms of protobuf and of logs.

use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;

/// A time as a message's field.
pub fn timestamp(time: SystemTime) -> MessageField<Timestamp> {
    // A clock before 1970 is wrong anyway.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    MessageField::some(Timestamp {
        seconds: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    })
}

/// Now, in UTC with milliseconds, as `2026-11-24T01:02:03.004Z`.
pub fn now_rfc3339() -> String {
    DateTime::<Utc>::from(SystemTime::now()).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// Now.
pub fn now() -> SystemTime {
    SystemTime::now()
}
