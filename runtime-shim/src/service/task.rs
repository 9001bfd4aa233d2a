//! The task service's interface: takes messages apart, calls whoever does the work, puts answers together.

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
    DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest,
    ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::shim_async::Task;
use ttrpc::r#async::TtrpcContext;

use super::{Tasks, create, exec, query, remove, signal};
use crate::publisher::timestamp;
use crate::supervisor::Who;

type Answer<T> = ttrpc::Result<T>;

#[async_trait]
impl Task for Tasks {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> Answer<CreateTaskResponse> {
        let pid = create::create(&self.pod, request).await? as u32;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Answer<StartResponse> {
        let container = self.pod.container(&request.id)?;
        let pid = match Who::from_request(&request.exec_id) {
            Who::Init => create::start(&self.pod, &container).await?,
            Who::Exec(id) => exec::start(&self.pod, &container, &id).await?,
        };
        Ok(StartResponse { pid: pid as u32, ..StartResponse::default() })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Answer<Empty> {
        let container = self.pod.container(&request.id)?;
        exec::add(&self.pod, &container, request)?;
        Ok(Empty::new())
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Answer<StateResponse> {
        let container = self.pod.container(&request.id)?;
        Ok(query::state(&container, &Who::from_request(&request.exec_id))?)
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Answer<WaitResponse> {
        let container = self.pod.container(&request.id)?;
        Ok(query::wait(&container, &Who::from_request(&request.exec_id)).await?)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Answer<Empty> {
        let container = self.pod.container(&request.id)?;
        signal::kill(&container, Who::from_request(&request.exec_id), request.signal, request.all).await?;
        Ok(Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Answer<Empty> {
        let container = self.pod.container(&request.id)?;
        signal::freeze(&self.pod, &container, true).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Answer<Empty> {
        let container = self.pod.container(&request.id)?;
        signal::freeze(&self.pod, &container, false).await?;
        Ok(Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Answer<DeleteResponse> {
        let (pid, exit) = remove::delete(&self.pod, &request.id, Who::from_request(&request.exec_id)).await?;
        Ok(DeleteResponse {
            pid: pid as u32,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map_or_else(MessageField::none, |exit| MessageField::some(timestamp(exit.at))),
            ..DeleteResponse::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Answer<PidsResponse> {
        Ok(query::pids(&*self.pod.container(&request.id)?)?)
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Answer<StatsResponse> {
        Ok(query::stats(&*self.pod.container(&request.id)?)?)
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Answer<Empty> {
        query::update(&*self.pod.container(&request.id)?, &request)?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Answer<Empty> {
        let container = self.pod.container(&request.id)?;
        query::resize(&container, &Who::from_request(&request.exec_id), request.width, request.height)?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Answer<Empty> {
        let container = self.pod.container(&request.id)?;
        query::close_io(&container, &Who::from_request(&request.exec_id))?;
        Ok(Empty::new())
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> Answer<ConnectResponse> {
        Ok(query::connect(&*self.pod.container(&request.id)?))
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Answer<Empty> {
        remove::shutdown(&self.pod).await;
        Ok(Empty::new())
    }
}
