//! containerd's runtime shim `io.containerd.vivarium.v1`. The hidden argument `helper` makes it a helper process, before
//! anything else (a runtime, a thread) exists.

use vivarium_shim::{helper, service::Service};

fn main() {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == helper::ARGUMENT) {
        std::process::exit(helper::main());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // For undoing a container and for freezing, which wait in the kernel.
        .max_blocking_threads(4)
        .thread_stack_size(256 << 10)
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(containerd_shim::asynchronous::run::<Service>(
            vivarium_api::names::RUNTIME_TYPE,
            Some(containerd_shim::Config {
                no_setup_logger: true,
                no_reaper: true,
                no_sub_reaper: false,
                default_log_level: "info".into(),
            }),
        )),
        Err(error) => {
            eprintln!("cannot start: {error}");
            std::process::exit(1);
        }
    }
}
