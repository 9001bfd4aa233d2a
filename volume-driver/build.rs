//! Generates the gRPC types from `proto/`. `protox` compiles them in Rust, so the machine needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in ["csi", "pluginregistration", "cri"] {
        let path = format!("proto/{file}.proto");
        println!("cargo:rerun-if-changed={path}");
        tonic_prost_build::configure().compile_fds(protox::compile([&path], ["proto"])?)?;
    }
    Ok(())
}
