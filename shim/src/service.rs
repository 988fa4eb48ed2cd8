//! The Task service, of which containerd 1.x calls version 2 and containerd 2.x version 3: the same messages under two names.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::ttrpc::{self, MethodHandler, TtrpcContext};
use containerd_shim_protos::{Task, create_task};

use crate::container::Container;
use crate::events::Events;
use crate::exits::Exits;
use crate::oom::Oom;
use crate::relay::Relay;
use crate::{any, clock, failure, log, socket};

/// How long containerd may take to accept the last events.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// The version that the crate generates, and the one that containerd 1.x calls.
const GENERATED: &str = "/containerd.task.v3.Task/";
const OLDER: &str = "/containerd.task.v2.Task/";

/// All that this process does.
#[derive(Debug)]
pub struct Shim {
    /// containerd's namespace of the containers.
    pub namespace: String,
    /// Collects processes.
    pub exits: Exits,
    /// Copies input and output.
    pub relay: Relay,
    /// Tells containerd.
    pub events: Events,
    /// Watches memory.
    pub oom: Oom,
    /// Where containerd connects to.
    pub socket: PathBuf,
    containers: Mutex<HashMap<String, Arc<Container>>>,
}

impl Shim {
    /// Without containers.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(namespace: &str, events: &str, socket: PathBuf) -> Result<Self> {
        Ok(Self {
            namespace: namespace.to_owned(),
            exits: Exits::default(),
            relay: Relay::new()?,
            events: Events::new(namespace, events),
            oom: Oom::new()?,
            socket,
            containers: Mutex::default(),
        })
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        let found = self.containers().get(id).cloned();
        found.ok_or_else(|| failure::not_found(format!("container not created: {id}")))
    }

    /// The service's methods, under both names.
    pub fn methods(&'static self) -> HashMap<String, Box<dyn MethodHandler + Send + Sync>> {
        let service: Arc<dyn Task + Send + Sync> = Arc::new(Service(self));
        let mut methods = create_task(Arc::clone(&service));
        for (name, method) in create_task(service) {
            methods.insert(name.replacen(GENERATED, OLDER, 1), method);
        }
        methods
    }
}

struct Service(&'static Shim);

/// Turns an error into what the client gets.
fn answer<T>(method: &str, result: Result<T>) -> ttrpc::Result<T> {
    result.map_err(|error| {
        log::debug(|| format!("{method}: {error:#}"));
        failure::status(&error)
    })
}

impl Task for Service {
    fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        answer("state", self.state_of(&request))
    }

    fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        answer("create", self.create_container(&request))
    }

    fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let started = || {
            let pid = self
                .0
                .container(&request.id)?
                .start(self.0, &request.exec_id)?;
            Ok(StartResponse {
                pid: pid.cast_unsigned(),
                ..Default::default()
            })
        };
        answer("start", started())
    }

    fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let deleted = || {
            let (pid, exit) = self
                .0
                .container(&request.id)?
                .delete(self.0, &request.exec_id)?;
            if request.exec_id.is_empty() {
                self.0.containers().remove(&request.id);
            }
            Ok(DeleteResponse {
                pid: pid.cast_unsigned(),
                exit_status: exit.status,
                exited_at: clock::timestamp(exit.at),
                ..Default::default()
            })
        };
        answer("delete", deleted())
    }

    fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        answer("pids", self.pids_of(&request.id))
    }

    fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let paused = || self.0.container(&request.id)?.pause(self.0, true);
        answer("pause", paused().map(|()| Empty::new()))
    }

    fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let resumed = || self.0.container(&request.id)?.pause(self.0, false);
        answer("resume", resumed().map(|()| Empty::new()))
    }

    fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let refused = || {
            self.0.container(&request.id)?;
            Err(failure::unimplemented(
                "trustme cannot checkpoint containers",
            ))
        };
        answer("checkpoint", refused())
    }

    fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let KillRequest {
            exec_id,
            signal,
            all,
            ..
        } = &request;
        let killed = || {
            self.0
                .container(&request.id)?
                .kill(self.0, exec_id, *signal, *all)
        };
        answer("kill", killed().map(|()| Empty::new()))
    }

    fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let announced = || self.0.container(&request.id)?.exec(self.0, &request);
        answer("exec", announced().map(|()| Empty::new()))
    }

    fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let resized = || {
            let process = self.0.container(&request.id)?.process(&request.exec_id)?;
            process.resize(request.width, request.height)
        };
        answer("resize pty", resized().map(|()| Empty::new()))
    }

    fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let closed = || {
            let process = self.0.container(&request.id)?.process(&request.exec_id)?;
            if request.stdin {
                process.close_input();
            }
            Ok(Empty::new())
        };
        answer("close io", closed())
    }

    fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let updated = || {
            let container = self.0.container(&request.id)?;
            container.update(self.0, &request.resources.value)
        };
        answer("update", updated().map(|()| Empty::new()))
    }

    fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let waited = || {
            let process = self.0.container(&request.id)?.process(&request.exec_id)?;
            let exit = process.wait();
            Ok(WaitResponse {
                exit_status: exit.status,
                exited_at: clock::timestamp(exit.at),
                ..Default::default()
            })
        };
        answer("wait", waited())
    }

    fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let measured = || {
            Ok(StatsResponse {
                stats: Some(self.0.container(&request.id)?.stats()?).into(),
                ..Default::default()
            })
        };
        answer("stats", measured())
    }

    fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        // Before the container is created there is no pid, which is no error.
        let container = self.0.container(&request.id);
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: container.map_or(0, |container| container.init.pid().cast_unsigned()),
            ..Default::default()
        })
    }

    fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        // The containers of a pod come and go one by one.
        if self.0.containers().is_empty() {
            self.0.events.flush(LAST_EVENTS);
            socket::remove(&self.0.socket);
            std::process::exit(0);
        }
        Ok(Empty::new())
    }
}

impl Service {
    fn create_container(&self, request: &CreateTaskRequest) -> Result<CreateTaskResponse> {
        if self.0.containers().contains_key(&request.id) {
            return Err(failure::already_exists(format!("container {}", request.id)));
        }
        let container = Container::create(self.0, request)?;
        let pid = container.init.pid();
        self.0.containers().insert(request.id.clone(), container);
        Ok(CreateTaskResponse {
            pid: pid.cast_unsigned(),
            ..Default::default()
        })
    }

    fn state_of(&self, request: &StateRequest) -> Result<StateResponse> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let mut response = StateResponse {
            // An exec is named by its own id.
            id: match request.exec_id.as_str() {
                "" => request.id.clone(),
                exec => exec.to_owned(),
            },
            bundle: container.bundle.display().to_string(),
            pid: process.pid().cast_unsigned(),
            status: container.status(&process).into(),
            stdin: process.paths.stdin.clone(),
            stdout: process.paths.stdout.clone(),
            stderr: process.paths.stderr.clone(),
            terminal: process.paths.terminal,
            ..Default::default()
        };
        if let Some(exit) = process.exit() {
            response.exit_status = exit.status;
            response.exited_at = clock::timestamp(exit.at);
        }
        Ok(response)
    }

    fn pids_of(&self, id: &str) -> Result<PidsResponse> {
        let pids = self.0.container(id)?.pids(self.0)?.into_iter();
        let processes = pids.map(|(pid, exec)| {
            let mut process = ProcessInfo {
                pid,
                ..Default::default()
            };
            if let Some(exec_id) = exec {
                let details = ProcessDetails {
                    exec_id,
                    ..Default::default()
                };
                process.info = Some(any::pack("containerd.runc.v1", &details)?).into();
            }
            Ok(process)
        });
        Ok(PidsResponse {
            processes: processes.collect::<Result<_>>()?,
            ..Default::default()
        })
    }
}
