//! What containerd tells a starting shim on standard input and in the environment, and what it expects as the answer.
//!
//! | containerd | it tells | it expects |
//! |---|---|---|
//! | 1.6 | flags, `TTRPC_ADDRESS`; options on standard input | the address; `address` in the bundle |
//! | 1.7, 2.0 to 2.2 | the same, and `MAX_SHIM_VERSION=2` | JSON; 1.7 refuses versions above 2 |
//! | 2.3 and later | `BootstrapParams` on standard input as well | `BootstrapResult`, version 3 |

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde_json::json;

use crate::arguments::Arguments;

/// containerd's limit as well.
const MAX_INPUT: u64 = 10 << 20;

/// Where containerd takes events.
pub const EVENTS_VARIABLE: &str = "TTRPC_ADDRESS";
const VERSION_VARIABLE: &str = "MAX_SHIM_VERSION";

const PROTOCOL: &str = "ttrpc";

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Address,
    Json,
    Message,
}

/// What containerd tells.
#[derive(Debug)]
pub struct Bootstrap {
    /// Where containerd takes events.
    pub events: String,
    /// Directory for the socket.
    pub socket_dir: Option<String>,
    /// The runtime's options.
    pub options: Option<Any>,
    reply: Reply,
}

impl Bootstrap {
    /// Reads standard input and the environment.
    ///
    /// # Errors
    /// They are not for this container, or not readable.
    pub fn read(arguments: &Arguments) -> Result<Self> {
        let input = read_input()?;
        let variable = |name| std::env::var(name).unwrap_or_default();
        let json = !variable(VERSION_VARIABLE).is_empty();
        Self::parse(&input, arguments, variable(EVENTS_VARIABLE), json)
    }

    fn parse(input: &[u8], arguments: &Arguments, events: String, json: bool) -> Result<Self> {
        let bootstrap = match parameters(input, arguments)? {
            Some(parameters) => Self {
                events: parameters.containerd_ttrpc_address,
                socket_dir: parameters.socket_dir.filter(|dir| !dir.is_empty()),
                options: parameters
                    .extensions
                    .into_iter()
                    .filter_map(|extension| extension.value.into_option())
                    .next(),
                reply: Reply::Message,
            },
            None => Self {
                events,
                socket_dir: None,
                options: options(input)?,
                reply: if json { Reply::Json } else { Reply::Address },
            },
        };
        ensure!(
            !bootstrap.events.is_empty(),
            "containerd has named no address for events ({EVENTS_VARIABLE})"
        );
        Ok(bootstrap)
    }

    /// The answer that names the shim's address.
    ///
    /// # Errors
    /// Never in fact: the message has no required fields.
    pub fn answer(&self, address: &str) -> Result<Vec<u8>> {
        Ok(match self.reply {
            Reply::Address => address.as_bytes().to_vec(),
            Reply::Json => serde_json::to_vec(
                &json!({"version": 2, "address": address, "protocol": PROTOCOL}),
            )?,
            Reply::Message => BootstrapResult {
                version: 3,
                address: address.to_owned(),
                protocol: PROTOCOL.to_owned(),
                ..Default::default()
            }
            .write_to_bytes()?,
        })
    }
}

/// Standard input, up to containerd's limit; nothing from a terminal.
///
/// # Errors
/// It cannot be read.
pub fn read_input() -> Result<Vec<u8>> {
    let stdin = std::io::stdin();
    let mut input = Vec::new();
    if !rustix::termios::isatty(&stdin) {
        let mut limited = stdin.lock().take(MAX_INPUT);
        limited
            .read_to_end(&mut input)
            .context("cannot read standard input")?;
    }
    Ok(input)
}

/// Options as a bare `Any`, as containerd before 2.3 sends them, if there are some.
///
/// # Errors
/// The bytes are none.
pub fn options(input: &[u8]) -> Result<Option<Any>> {
    let any = Any::parse_from_bytes(input).context("standard input holds no runtime options")?;
    Ok(Some(any).filter(|any| !any.type_url.is_empty()))
}

/// The parameters, if that is what the input holds.
fn parameters(input: &[u8], arguments: &Arguments) -> Result<Option<BootstrapParams>> {
    let Ok(parameters) = BootstrapParams::parse_from_bytes(input) else {
        return Ok(None);
    };
    let BootstrapParams {
        instance_id,
        namespace,
        ..
    } = &parameters;
    if (instance_id, namespace) == (&arguments.id, &arguments.namespace) {
        return Ok(Some(parameters));
    }
    // Options (`Any`) can be read as parameters too: type and value become id and namespace, and nothing else is set.
    let as_any = BootstrapParams {
        instance_id: instance_id.clone(),
        namespace: namespace.clone(),
        ..Default::default()
    };
    if parameters == as_any {
        return Ok(None);
    }
    bail!(
        "the parameters on standard input are for {namespace}/{instance_id}, the command line is for {}/{}",
        arguments.namespace,
        arguments.id
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments() -> Arguments {
        let line = "-namespace n -id a start".split(' ').map(str::to_owned);
        Arguments::parse(line).unwrap()
    }

    fn options_any() -> Any {
        Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: b"\x32\x04runc".to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn older_containerds_get_an_address_or_json() {
        let parse =
            |input: &[u8], json| Bootstrap::parse(input, &arguments(), "/t".into(), json).unwrap();
        let old = parse(b"", false);
        assert_eq!(old.answer("unix:///s").unwrap(), b"unix:///s");
        assert!(old.options.is_none());
        let newer = parse(&options_any().write_to_bytes().unwrap(), true);
        assert_eq!(newer.options, Some(options_any()));
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&newer.answer("unix:///s").unwrap())
                .unwrap(),
            json!({"version": 2, "address": "unix:///s", "protocol": "ttrpc"})
        );
        assert!(Bootstrap::parse(b"", &arguments(), String::new(), false).is_err());
    }

    #[test]
    fn newer_containerds_get_a_message() {
        let mut sent = BootstrapParams {
            instance_id: "a".into(),
            namespace: "n".into(),
            containerd_ttrpc_address: "/new".into(),
            socket_dir: Some("/dir".into()),
            extensions: vec![containerd_shim_protos::bootstrap_api::Extension {
                value: Some(options_any()).into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let parse = |sent: &BootstrapParams| {
            Bootstrap::parse(
                &sent.write_to_bytes().unwrap(),
                &arguments(),
                "/t".into(),
                true,
            )
        };
        let bootstrap = parse(&sent).unwrap();
        assert_eq!(bootstrap.events, "/new");
        assert_eq!(bootstrap.socket_dir.as_deref(), Some("/dir"));
        assert_eq!(bootstrap.options, Some(options_any()));
        let answer = BootstrapResult::parse_from_bytes(&bootstrap.answer("x").unwrap()).unwrap();
        assert_eq!((answer.version, answer.address.as_str()), (3, "x"));
        sent.instance_id = "b".into();
        assert!(parse(&sent).unwrap_err().to_string().contains("n/b"));
    }
}
