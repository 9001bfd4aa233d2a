//! Requests that look at a container or change something about it while it runs.

use containerd_shim_protos::api::{
    ConnectResponse, PidsResponse, ProcessInfo, StateResponse, StatsResponse, Status, UpdateTaskRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::{EnumOrUnknown, MessageField};
use oci_spec::runtime::LinuxResources;

use super::container::Container;
use crate::cgroup::{stats, update};
use crate::error::{Error, Result};
use crate::publisher::timestamp;
use crate::supervisor::{Phase, Who};

pub(super) fn state(container: &Container, who: &Who) -> Result<StateResponse> {
    let inner = container.lock();
    let (phase, pid, exit) = inner.life.look(who)?;
    let names = &inner.member(who)?.names;
    let status = match phase {
        Phase::Created | Phase::Starting => Status::CREATED,
        Phase::Running if inner.paused => Status::PAUSED,
        Phase::Running => Status::RUNNING,
        Phase::Stopped => Status::STOPPED,
    };
    Ok(StateResponse {
        id: container.id.clone(),
        bundle: container.bundle.clone(),
        pid: pid as u32,
        status: EnumOrUnknown::new(status),
        stdin: names.stdin.clone(),
        stdout: names.stdout.clone(),
        stderr: names.stderr.clone(),
        terminal: names.terminal,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map_or_else(MessageField::none, |exit| MessageField::some(timestamp(exit.at))),
        exec_id: match who {
            Who::Init => String::new(),
            Who::Exec(id) => id.clone(),
        },
        ..StateResponse::default()
    })
}

pub(super) async fn wait(container: &Container, who: &Who) -> Result<WaitResponse> {
    let mut ended = container.lock().member(who)?.ended.subscribe();
    let exit = match ended.wait_for(Option::is_some).await {
        Ok(exit) => *exit,
        Err(_) => None,
    };
    let exit = exit.ok_or_else(|| Error::NotFound("the process was deleted before it ended".into()))?;
    Ok(WaitResponse {
        exit_status: exit.status,
        exited_at: MessageField::some(timestamp(exit.at)),
        ..WaitResponse::default()
    })
}

pub(super) fn pids(container: &Container) -> Result<PidsResponse> {
    let processes = container.group.pids()?.into_iter().map(|pid| ProcessInfo { pid, ..ProcessInfo::default() });
    Ok(PidsResponse { processes: processes.collect(), ..PidsResponse::default() })
}

pub(super) fn stats(container: &Container) -> Result<StatsResponse> {
    Ok(StatsResponse { stats: MessageField::some(stats::collect(&container.group)?), ..StatsResponse::default() })
}

pub(super) fn update(container: &Container, request: &UpdateTaskRequest) -> Result<()> {
    let value = request.resources.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
    let resources: LinuxResources =
        serde_json::from_slice(value).map_err(|e| Error::Refused(format!("the resources cannot be decoded: {e}")))?;
    update::apply(&container.group, &resources)
}

pub(super) fn connect(container: &Container) -> ConnectResponse {
    let (pid, _) = container.init_pid();
    ConnectResponse {
        shim_pid: std::process::id(),
        task_pid: pid as u32,
        version: env!("CARGO_PKG_VERSION").into(),
        ..ConnectResponse::default()
    }
}

pub(super) fn resize(container: &Container, who: &Who, width: u32, height: u32) -> Result<()> {
    match &mut container.lock().member_mut(who)?.io {
        Some(io) => io.resize(width, height),
        None => Err(Error::WrongState("the process was not started, so it has no terminal".into())),
    }
}

pub(super) fn close_io(container: &Container, who: &Who) -> Result<()> {
    if let Some(io) = &container.lock().member(who)?.io {
        io.close_input();
    }
    Ok(())
}
