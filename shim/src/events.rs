//! Events that containerd and its clients act on, sent in their order by a thread of its own.
//!
//! While containerd is away, events wait here and are sent when it is back.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::ttrpc::{self, context};
use containerd_shim_protos::{Client, EventsClient, topics};

use crate::exits::Exit;
use crate::{any, clock, log};

/// Of the events' messages.
const PACKAGE: &str = "containerd.events";

/// How long containerd may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How long after a failure the next attempt is made.
const PAUSE: Duration = Duration::from_millis(500);
/// How many events wait for a containerd that is away; then the oldest are dropped.
const WAITING: usize = 4096;

/// What has happened.
#[derive(Debug)]
pub struct Event {
    topic: &'static str,
    at: SystemTime,
    event: Any,
}

impl Event {
    fn new<M: Message>(topic: &'static str, message: &M) -> Self {
        // It fails only for required fields, which proto3 does not have.
        let event = any::pack(PACKAGE, message).unwrap_or_default();
        Self {
            topic,
            at: clock::now(),
            event,
        }
    }
}

/// The fields that are common to all.
macro_rules! event {
    ($topic:ident, $message:ident { $($field:ident: $value:expr),* $(,)? }) => {
        Event::new(topics::$topic, &$message { $($field: $value,)* ..Default::default() })
    };
}

impl Event {
    /// A container was created.
    pub fn create(request: &containerd_shim_protos::api::CreateTaskRequest, pid: i32) -> Self {
        let io = TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..Default::default()
        };
        let rootfs = request.rootfs.iter().filter_map(|mount| {
            // The same message, generated twice.
            Message::parse_from_bytes(&mount.write_to_bytes().ok()?).ok()
        });
        event!(
            TASK_CREATE_EVENT_TOPIC,
            TaskCreate {
                container_id: request.id.clone(),
                bundle: request.bundle.clone(),
                rootfs: rootfs.collect(),
                io: Some(io).into(),
                checkpoint: request.checkpoint.clone(),
                pid: pid.cast_unsigned(),
            }
        )
    }

    /// Its first process was started.
    pub fn start(id: &str, pid: i32) -> Self {
        event!(
            TASK_START_EVENT_TOPIC,
            TaskStart {
                container_id: id.to_owned(),
                pid: pid.cast_unsigned(),
            }
        )
    }

    /// An exec was announced.
    pub fn exec_added(id: &str, exec: &str) -> Self {
        event!(
            TASK_EXEC_ADDED_EVENT_TOPIC,
            TaskExecAdded {
                container_id: id.to_owned(),
                exec_id: exec.to_owned(),
            }
        )
    }

    /// An exec was started.
    pub fn exec_started(id: &str, exec: &str, pid: i32) -> Self {
        event!(
            TASK_EXEC_STARTED_EVENT_TOPIC,
            TaskExecStarted {
                container_id: id.to_owned(),
                exec_id: exec.to_owned(),
                pid: pid.cast_unsigned(),
            }
        )
    }

    /// A process has ended; the first one's id is the container's.
    pub fn exit(container: &str, exec: &str, pid: i32, exit: Exit) -> Self {
        let id = if exec.is_empty() { container } else { exec };
        event!(
            TASK_EXIT_EVENT_TOPIC,
            TaskExit {
                container_id: container.to_owned(),
                id: id.to_owned(),
                pid: pid.cast_unsigned(),
                exit_status: exit.status,
                exited_at: clock::timestamp(exit.at),
            }
        )
    }

    /// A process was deleted.
    pub fn delete(container: &str, exec: &str, pid: i32, exit: Exit) -> Self {
        event!(
            TASK_DELETE_EVENT_TOPIC,
            TaskDelete {
                container_id: container.to_owned(),
                id: exec.to_owned(),
                pid: pid.cast_unsigned(),
                exit_status: exit.status,
                exited_at: clock::timestamp(exit.at),
            }
        )
    }

    /// The container's processes were stopped.
    pub fn paused(id: &str) -> Self {
        event!(
            TASK_PAUSED_EVENT_TOPIC,
            TaskPaused {
                container_id: id.to_owned()
            }
        )
    }

    /// They go on.
    pub fn resumed(id: &str) -> Self {
        event!(
            TASK_RESUMED_EVENT_TOPIC,
            TaskResumed {
                container_id: id.to_owned()
            }
        )
    }

    /// The container has reached its limit of memory.
    pub fn oom(id: &str) -> Self {
        event!(
            TASK_OOM_EVENT_TOPIC,
            TaskOOM {
                container_id: id.to_owned()
            }
        )
    }
}

/// Events that are to be sent.
#[derive(Debug)]
pub struct Events {
    namespace: String,
    address: String,
    waiting: Mutex<VecDeque<Event>>,
    changed: Condvar,
}

impl Events {
    /// To containerd at this address.
    pub fn new(namespace: &str, address: &str) -> Self {
        let address = match address.contains("://") {
            true => address.to_owned(),
            false => format!("unix://{address}"),
        };
        Self {
            namespace: namespace.to_owned(),
            address,
            waiting: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends an event after all others.
    pub fn publish(&self, event: Event) {
        let mut waiting = self.waiting();
        if waiting.len() == WAITING {
            waiting.pop_front();
        }
        waiting.push_back(event);
        drop(waiting);
        self.changed.notify_all();
    }

    /// Waits until everything is sent, for a while.
    pub fn flush(&self, limit: Duration) {
        let unsent = |waiting: &mut VecDeque<Event>| !waiting.is_empty();
        drop(
            self.changed
                .wait_timeout_while(self.waiting(), limit, unsent),
        );
    }

    /// Sends for ever.
    pub fn send(&self) {
        let mut client = None;
        loop {
            let none = |waiting: &mut VecDeque<Event>| waiting.is_empty();
            let waiting = self
                .changed
                .wait_while(self.waiting(), none)
                .unwrap_or_else(PoisonError::into_inner);
            // It stays in its place until it is sent.
            let Some((request, at)) = waiting.front().map(|event| (self.request(event), event.at))
            else {
                continue;
            };
            drop(waiting);
            match self.forward(&mut client, &request) {
                Ok(()) => (),
                Err(ttrpc::Error::RpcStatus(status)) => {
                    log::warning(&format!(
                        "containerd refuses an event: {}",
                        status.message()
                    ));
                }
                Err(error) => {
                    log::debug(|| format!("containerd takes no events: {error}"));
                    client = None;
                    std::thread::sleep(PAUSE);
                    continue;
                }
            }
            let mut waiting = self.waiting();
            // It may have been dropped meanwhile.
            if waiting.front().is_some_and(|event| event.at == at) {
                waiting.pop_front();
            }
            drop(waiting);
            self.changed.notify_all();
        }
    }

    fn request(&self, event: &Event) -> ForwardRequest {
        let envelope = Envelope {
            timestamp: clock::timestamp(event.at),
            namespace: self.namespace.clone(),
            topic: event.topic.to_owned(),
            event: Some(event.event.clone()).into(),
            ..Default::default()
        };
        ForwardRequest {
            envelope: Some(envelope).into(),
            ..Default::default()
        }
    }

    fn forward(
        &self,
        client: &mut Option<EventsClient>,
        request: &ForwardRequest,
    ) -> ttrpc::Result<()> {
        let connected = match client.take() {
            Some(connected) => connected,
            None => EventsClient::new(Client::connect(&self.address)?),
        };
        let begin = Instant::now();
        let sent = connected.forward(context::with_duration(ANSWER_LIMIT), request);
        if sent.is_ok() || begin.elapsed() < ANSWER_LIMIT {
            *client = Some(connected);
        }
        sent.map(drop)
    }
}
