//! From a verified blob to a read-only subvolume. The subvolume gets its name only when its content was unpacked, its
//! digest verified, and everything is on the disk.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsFd;
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use rustix::fs::{Mode, RenameFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use vivarium_sys::btrfs;

use super::registry::{Layer, Packing, hex};
use super::unpack::{self, Limits, UnpackError};
use super::{PARTIAL, TemplateError};
use crate::pool::{Pool, destroy_tree, open_beneath};

/// That a layer holds more than it may.
const TOO_LONG: &str =
    "the stream is longer than its limits allow: make the image smaller, or raise node.layers in the chart's values";

/// What headers and padding of an entry may add to its content.
const OVERHEAD: u64 = 4096;

/// Hashes what passes, and ends what passes all bounds.
struct Metered<R> {
    reader: R,
    hash: Sha256,
    left: u64,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.left =
            self.left.checked_sub(read as u64).ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, TOO_LONG))?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

/// Unpacks a blob into the pool. Blocks.
pub(super) fn add(pool: &Pool, layer: &Layer, blob: File, limits: Limits) -> Result<(), TemplateError> {
    pool.require(layer.size).map_err(TemplateError::Pool)?;
    let name = format!("{PARTIAL}{}", layer.digest.directory());
    let c_name = CString::new(name.as_str()).map_err(|error| failed("name", layer)(error.into()))?;
    let destroy = || destroy_tree(pool.root(), pool.templates(), &c_name);
    // What an earlier attempt may have left.
    destroy().map_err(failed("remove the remains", layer))?;
    let result = fill(pool, layer, blob, limits, &name, &c_name);
    if result.is_err()
        && let Err(error) = destroy()
    {
        tracing::warn!(%error, layer = %layer.digest, "a half-unpacked layer could not be removed; it is tried again at the next start");
    }
    result
}

fn fill(
    pool: &Pool,
    layer: &Layer,
    blob: File,
    limits: Limits,
    name: &str,
    c_name: &std::ffi::CStr,
) -> Result<(), TemplateError> {
    btrfs::create_subvolume(pool.templates(), c_name).map_err(failed("make the subvolume", layer))?;
    let root = open_beneath(pool.templates(), Path::new(name)).map_err(failed("open the subvolume", layer))?;
    rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(|e| failed("prepare", layer)(e.into()))?;
    let blob = BufReader::with_capacity(1 << 18, blob);
    let unpacked: Box<dyn Read> = match layer.packing {
        Packing::None => Box::new(blob),
        Packing::Gzip => Box::new(MultiGzDecoder::new(blob)),
        Packing::Zstd => Box::new(zstd::Decoder::with_buffer(blob).map_err(failed("decompress", layer))?),
    };
    let left = limits.bytes.saturating_add(limits.entries.saturating_mul(OVERHEAD));
    let mut stream = Metered { reader: unpacked, hash: Sha256::new(), left };
    let unpack_error = |source| TemplateError::Layer { layer: layer.digest.clone(), source };
    // What was written lately is not on the device yet and does not show in the free room: count it against what there
    // was in the beginning.
    let budget = pool.space().map_err(TemplateError::Pool)?;
    let mut has_room = |written: u64| {
        if written <= budget.usable() {
            return pool.require(0);
        }
        Err(pool.full(budget, written))
    };
    let totals = unpack::unpack(root.as_fd(), &mut stream, limits, &mut has_room).map_err(unpack_error)?;
    // Behind the archive's end there may be padding, which belongs to what was hashed.
    io::copy(&mut stream, &mut io::sink())
        .map_err(|source| unpack_error(UnpackError::Corrupt { entry: "(end)".into(), source }))?;
    let found = format!("sha256:{}", hex(&stream.hash.finalize()));
    if found != layer.digest.to_string() {
        return Err(TemplateError::Digest {
            what: "content of a layer".into(),
            wanted: layer.digest.to_string(),
            found,
        });
    }
    // The name must not outlive a power cut that the content does not.
    pool.sync().map_err(TemplateError::Pool)?;
    btrfs::set_read_only(root.as_fd(), true).map_err(failed("make read-only", layer))?;
    match rustix::fs::renameat_with(
        pool.templates(),
        name,
        pool.templates(),
        layer.digest.directory(),
        RenameFlags::NOREPLACE,
    ) {
        Ok(()) => {}
        // Of two with one digest, one is enough.
        Err(Errno::EXIST) => {
            destroy_tree(pool.root(), pool.templates(), c_name).map_err(failed("remove the double", layer))?;
        }
        Err(error) => return Err(failed("name", layer)(error.into())),
    }
    tracing::info!(layer = %layer.digest, entries = totals.entries, bytes = totals.bytes, "unpacked a template layer");
    Ok(())
}

fn failed(attempt: &'static str, layer: &Layer) -> impl FnOnce(io::Error) -> TemplateError + use<> {
    let layer = layer.digest.clone();
    move |source| TemplateError::Io { attempt, layer, source }
}
