//! btrfs: subvolumes and simple quotas, by the ioctls of linux/btrfs.h. Every function takes an open directory (not
//! `O_PATH`) on the file system that it works on.

use std::ffi::{CStr, c_char, c_ulong};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

const MAGIC: c_ulong = 0x94;
const WRITE: c_ulong = 1;
const READ: c_ulong = 2;

/// `_IOC(direction, BTRFS_IOCTL_MAGIC, number, sizeof(T))`.
const fn request<T>(direction: c_ulong, number: c_ulong) -> c_ulong {
    direction << 30 | (size_of::<T>() as c_ulong) << 16 | MAGIC << 8 | number
}

const RESIZE: c_ulong = request::<VolArgs>(WRITE, 3);
const TREE_SEARCH: c_ulong = request::<Search>(READ | WRITE, 17);
const SNAP_CREATE_V2: c_ulong = request::<VolArgsV2>(WRITE, 23);
const SUBVOL_CREATE_V2: c_ulong = request::<VolArgsV2>(WRITE, 24);
const SUBVOL_GETFLAGS: c_ulong = request::<u64>(READ, 25);
const SUBVOL_SETFLAGS: c_ulong = request::<u64>(WRITE, 26);
const FS_INFO: c_ulong = request::<FsInfo>(READ, 31);
const SEND: c_ulong = request::<SendArgs>(WRITE, 38);
const QUOTA_CTL: c_ulong = request::<QuotaCtl>(READ | WRITE, 40);
const QGROUP_ASSIGN: c_ulong = request::<[u64; 3]>(WRITE, 41);
const QGROUP_CREATE: c_ulong = request::<[u64; 2]>(WRITE, 42);
const QGROUP_LIMIT: c_ulong = request::<QgroupLimit>(READ, 43);
const GET_SUBVOL_INFO: c_ulong = request::<RawSubvolumeInfo>(READ, 60);
const SNAP_DESTROY_V2: c_ulong = request::<VolArgsV2>(WRITE, 63);

const SUBVOL_RDONLY: u64 = 1 << 1;
const SUBVOL_SPEC_BY_ID: u64 = 1 << 4;
/// `BTRFS_SEND_FLAG_VERSION`: the version of the stream is asked for.
const SEND_VERSION: u64 = 1 << 3;
const QUOTA_CTL_ENABLE_SIMPLE: u64 = 4;
const QGROUP_LIMIT_MAX_RFER: u64 = 1;
/// Inode number of a subvolume's root directory (`BTRFS_FIRST_FREE_OBJECTID`).
const ROOT_INODE: u64 = 256;
/// Number of the tree of roots.
const ROOT_TREE: u64 = 1;
/// Number of the tree of quota groups (`BTRFS_QUOTA_TREE_OBJECTID`).
const QUOTA_TREE: u64 = 8;
/// Key type of the relation of two quota groups, which is there both ways round (`BTRFS_QGROUP_RELATION_KEY`).
const QGROUP_RELATION: u32 = 246;
/// Key type of the reference from a subvolume to the one that it is in (`BTRFS_ROOT_BACKREF_KEY`).
const ROOT_BACKREF: u32 = 144;
/// Key type of the reference from a subvolume to one inside it (`BTRFS_ROOT_REF_KEY`).
const ROOT_REF: u32 = 156;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [c_char; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`; the last union is `name` or, at its start, a subvolume id.
#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [c_char; 4040],
}

/// `struct btrfs_ioctl_fs_info_args`.
#[repr(C)]
struct FsInfo {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u8; 1024 - 32],
}

/// `struct btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
struct QuotaCtl {
    cmd: u64,
    status: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct QgroupLimit {
    qgroup: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

/// `struct btrfs_ioctl_get_subvol_info_args`. A time stamp is 64 + 32 bits, padded to 16 bytes.
#[repr(C)]
struct RawSubvolumeInfo {
    id: u64,
    name: [u8; 256],
    parent_id: u64,
    directory: u64,
    generation: u64,
    flags: u64,
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    received_uuid: [u8; 16],
    /// Of the newest change, when it was made, sent and received.
    transactions: [u64; 4],
    times: [[u64; 2]; 4],
    reserved: [u64; 8],
}

/// `struct btrfs_ioctl_search_args`: a range of keys, and room for the items that are found.
#[repr(C)]
struct Search {
    tree: u64,
    min_object: u64,
    max_object: u64,
    min_offset: u64,
    max_offset: u64,
    min_transaction: u64,
    max_transaction: u64,
    min_type: u32,
    max_type: u32,
    count: u32,
    unused: u32,
    more_unused: [u64; 4],
    found: [u8; 4096 - 104],
}

/// `struct btrfs_ioctl_send_args`.
#[repr(C)]
struct SendArgs {
    to: i64,
    clone_sources_count: u64,
    clone_sources: *const u64,
    parent: u64,
    flags: u64,
    version: u32,
    reserved: [u8; 28],
}

/// A UUID as its 16 bytes; written lower-case with dashes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the kernel tells of a subvolume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubvolumeInfo {
    /// Number of its tree, unique on the file system and never reused.
    pub id: u64,
    /// UUID, unique in the world.
    pub uuid: Uuid,
    /// Newest transaction that changed it, or in which a snapshot of it was taken, also of one that is read-only; moves
    /// when a transaction commits (`syncfs`), not at a write.
    pub generation: u64,
    /// The transaction in which it was made (`otransid`): of a snapshot, the last that can have changed what it shows.
    pub made: u64,
    /// Whether it is read-only.
    pub read_only: bool,
}

/// A quota group. Level 0 holds one subvolume each, higher levels hold groups below them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qgroup(u64);

impl Qgroup {
    /// The group `level/id`.
    #[must_use]
    pub const fn new(level: u16, id: u64) -> Self {
        Self((level as u64) << 48 | id)
    }

    /// Its level.
    #[must_use]
    pub const fn level(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Its number; on level 0 that of the subvolume.
    #[must_use]
    pub const fn id(self) -> u64 {
        self.0 & ((1 << 48) - 1)
    }

    /// Its directory in `/sys/fs/btrfs/<uuid>/qgroups`.
    #[must_use]
    pub fn sysfs_name(self) -> String {
        format!("{}_{}", self.level(), self.id())
    }
}

/// Issues a request whose argument the kernel reads or fills. Only negative results are failures: `GET_SUBVOL_INFO`
/// answers 1 where its search of the tree of roots ends between two keys, with everything filled in.
fn ioctl<T>(directory: BorrowedFd<'_>, request: c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: each request constant of this module carries the size of the structure that its only callers pass, each of
    // which has the kernel's layout and no pointers; the reference outlives the call.
    if unsafe { libc::ioctl(directory.as_raw_fd(), request, std::ptr::from_mut(argument)) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn zeroed<T: Plain>() -> T {
    // SAFETY: `Plain` is implemented only for structures of integers, for which all-zero bytes are a valid value.
    unsafe { std::mem::zeroed() }
}

/// Structures of integers alone.
trait Plain {}
impl Plain for VolArgs {}
impl Plain for VolArgsV2 {}
impl Plain for FsInfo {}
impl Plain for RawSubvolumeInfo {}
impl Plain for Search {}

/// Copies a file name, which must leave room for its final NUL.
fn put_name(name: &CStr, room: &mut [c_char]) -> io::Result<()> {
    let bytes = name.to_bytes();
    if bytes.len() >= room.len() || bytes.len() > 255 {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in room.iter_mut().zip(bytes) {
        *to = *from as c_char;
    }
    Ok(())
}

/// Makes a subvolume `name` in `parent`.
pub fn create_subvolume(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let mut args: VolArgsV2 = zeroed();
    put_name(name, &mut args.name)?;
    ioctl(parent, SUBVOL_CREATE_V2, &mut args)
}

/// Makes a snapshot `name` in `parent` of the subvolume whose root is `source`.
pub fn snapshot(source: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &CStr, read_only: bool) -> io::Result<()> {
    let mut args: VolArgsV2 = zeroed();
    put_name(name, &mut args.name)?;
    args.fd = i64::from(source.as_raw_fd());
    args.flags = if read_only { SUBVOL_RDONLY } else { 0 };
    ioctl(parent, SNAP_CREATE_V2, &mut args)
}

/// Destroys the subvolume `name` in `parent`. Its name is gone at once, its room later. Fails with `ENOTEMPTY` while it
/// holds subvolumes ([`children`]).
pub fn destroy_subvolume(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let mut args: VolArgsV2 = zeroed();
    put_name(name, &mut args.name)?;
    ioctl(parent, SNAP_DESTROY_V2, &mut args)
}

/// Destroys a subvolume by its number, wherever it is. `root` must be on a mount that shows all of the file system.
pub fn destroy_subvolume_by_id(root: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    let mut args: VolArgsV2 = zeroed();
    args.flags = SUBVOL_SPEC_BY_ID;
    for (to, from) in args.name.iter_mut().zip(id.to_ne_bytes()) {
        *to = from as c_char;
    }
    ioctl(root, SNAP_DESTROY_V2, &mut args)
}

/// Numbers of the subvolumes that lie directly in the subvolume number `id`, from the tree of roots.
pub fn children(file_system: BorrowedFd<'_>, id: u64) -> io::Result<Vec<u64>> {
    let mut ids = Vec::new();
    items(file_system, ROOT_TREE, id, ROOT_REF, &mut |child, _| ids.push(child))?;
    Ok(ids)
}

/// Whether there is a subvolume number `id`. One that was destroyed is not there from that moment on, though what it holds
/// is freed later.
pub fn exists(file_system: BorrowedFd<'_>, id: u64) -> io::Result<bool> {
    let mut found = false;
    items(file_system, ROOT_TREE, id, ROOT_BACKREF, &mut |_, _| found = true)?;
    Ok(found)
}

/// Gives the offset of each item of an object and kind in a tree to `visit`, in order, with its data.
pub(crate) fn items(
    file_system: BorrowedFd<'_>,
    tree: u64,
    object: u64,
    kind: u32,
    visit: &mut dyn FnMut(u64, &[u8]),
) -> io::Result<()> {
    let mut next = 0;
    loop {
        let mut args: Search = zeroed();
        args.tree = tree;
        (args.min_object, args.max_object) = (object, object);
        (args.min_offset, args.max_offset) = (next, u64::MAX);
        args.max_transaction = u64::MAX;
        (args.min_type, args.max_type) = (kind, kind);
        args.count = u32::MAX;
        ioctl(file_system, TREE_SEARCH, &mut args)?;
        let mut rest: &[u8] = &args.found;
        for _ in 0..args.count {
            // Each item: transaction, object, offset (u64 each), type, length (u32), data.
            let Some((header, behind)) = rest.split_at_checked(32) else { break };
            let number =
                |at: usize| header[at..at + 8].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
            let length = (number(24) >> 32) as usize;
            let Some((data, behind)) = behind.split_at_checked(length) else { break };
            if number(24) as u32 == kind {
                visit(number(16), data);
            }
            let Some(after) = number(16).checked_add(1) else { return Ok(()) };
            (next, rest) = (after, behind);
        }
        if args.count == 0 {
            return Ok(());
        }
    }
}

/// What the kernel tells of the subvolume that `directory` is in.
pub fn subvolume_info(directory: BorrowedFd<'_>) -> io::Result<SubvolumeInfo> {
    let mut raw: RawSubvolumeInfo = zeroed();
    ioctl(directory, GET_SUBVOL_INFO, &mut raw)?;
    let mut flags = 0u64;
    ioctl(directory, SUBVOL_GETFLAGS, &mut flags)?;
    Ok(SubvolumeInfo {
        id: raw.id,
        uuid: Uuid(raw.uuid),
        generation: raw.generation,
        made: raw.transactions[1],
        read_only: flags & SUBVOL_RDONLY != 0,
    })
}

/// Like [`subvolume_info`], but `None` unless `directory` is the root directory of a subvolume: anything may be asked
/// about, also on another file system.
pub fn subvolume_at(directory: BorrowedFd<'_>) -> io::Result<Option<SubvolumeInfo>> {
    // First of all, so that no other driver interprets the numbers of the requests.
    let is_btrfs = rustix::fs::fstatfs(directory)?.f_type == libc::BTRFS_SUPER_MAGIC;
    if !is_btrfs || rustix::fs::fstat(directory)?.st_ino != ROOT_INODE {
        return Ok(None);
    }
    subvolume_info(directory).map(Some)
}

/// Makes the subvolume whose root is `directory` read-only, or writable again.
pub fn set_read_only(directory: BorrowedFd<'_>, read_only: bool) -> io::Result<()> {
    let mut flags = 0u64;
    ioctl(directory, SUBVOL_GETFLAGS, &mut flags)?;
    flags = if read_only { flags | SUBVOL_RDONLY } else { flags & !SUBVOL_RDONLY };
    ioctl(directory, SUBVOL_SETFLAGS, &mut flags)
}

/// Writes what has changed in the read-only subvolume `snapshot` since the read-only subvolume number `parent` (or all of
/// it) into the pipe `to`, in the given version of the stream format. Data that are shared with one of the read-only
/// subvolumes numbered `sources` are sent as clones. Returns when all is written, so somebody else must read the pipe;
/// `EPIPE` when nobody does.
pub fn send(
    snapshot: BorrowedFd<'_>,
    parent: Option<u64>,
    sources: &[u64],
    version: u32,
    to: BorrowedFd<'_>,
) -> io::Result<()> {
    let args = SendArgs {
        to: i64::from(to.as_raw_fd()),
        clone_sources_count: sources.len() as u64,
        clone_sources: sources.as_ptr(),
        parent: parent.unwrap_or(0),
        flags: SEND_VERSION,
        version,
        reserved: [0; 28],
    };
    // SAFETY: the kernel reads `args`, and `clone_sources_count` numbers behind its only pointer; both outlive the call.
    if unsafe { libc::ioctl(snapshot.as_raw_fd(), SEND, std::ptr::from_ref(&args)) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// UUID of the file system; its directory in `/sys/fs/btrfs`.
pub fn file_system_uuid(directory: BorrowedFd<'_>) -> io::Result<Uuid> {
    let mut info: FsInfo = zeroed();
    ioctl(directory, FS_INFO, &mut info)?;
    Ok(Uuid(info.fsid))
}

/// Lets the file system fill its (first) device after that has grown.
pub fn grow_to_device(directory: BorrowedFd<'_>) -> io::Result<()> {
    let mut args: VolArgs = zeroed();
    put_name(c"max", &mut args.name)?;
    ioctl(directory, RESIZE, &mut args)
}

/// Turns simple quotas on. `ENOTTY` or `EINVAL`: the kernel is older than 6.7.
pub fn enable_simple_quota(directory: BorrowedFd<'_>) -> io::Result<()> {
    ioctl(directory, QUOTA_CTL, &mut QuotaCtl { cmd: QUOTA_CTL_ENABLE_SIMPLE, status: 0 })
}

/// Makes a quota group of level 1 or higher.
pub fn create_qgroup(directory: BorrowedFd<'_>, group: Qgroup) -> io::Result<()> {
    ioctl(directory, QGROUP_CREATE, &mut [1, group.0])
}

/// Removes a quota group; `EBUSY` while it holds anything.
pub fn remove_qgroup(directory: BorrowedFd<'_>, group: Qgroup) -> io::Result<()> {
    ioctl(directory, QGROUP_CREATE, &mut [0, group.0])
}

/// Puts `member` into `group`. With simple quotas, subvolumes that are made in the subvolume of `member` later join by
/// themselves.
pub fn assign_qgroup(directory: BorrowedFd<'_>, member: Qgroup, group: Qgroup) -> io::Result<()> {
    ioctl(directory, QGROUP_ASSIGN, &mut [1, member.0, group.0])
}

/// Takes `member` out of `group`, which does not count it any more.
pub fn unassign_qgroup(directory: BorrowedFd<'_>, member: Qgroup, group: Qgroup) -> io::Result<()> {
    ioctl(directory, QGROUP_ASSIGN, &mut [0, member.0, group.0])
}

/// The groups that a group is in, and those that are in it. Needs `CAP_SYS_ADMIN`.
pub fn related_qgroups(file_system: BorrowedFd<'_>, group: Qgroup) -> io::Result<Vec<Qgroup>> {
    let mut related = Vec::new();
    items(file_system, QUOTA_TREE, group.0, QGROUP_RELATION, &mut |other, _| related.push(Qgroup(other)))?;
    Ok(related)
}

/// Limits what a quota group may hold, in bytes; `u64::MAX` takes the limit off.
pub fn limit_qgroup(directory: BorrowedFd<'_>, group: Qgroup, bytes: u64) -> io::Result<()> {
    let mut args = QgroupLimit {
        qgroup: group.0,
        flags: QGROUP_LIMIT_MAX_RFER,
        max_referenced: bytes,
        max_exclusive: 0,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    ioctl(directory, QGROUP_LIMIT, &mut args)
}

/// What a quota group holds now, in bytes (as of the newest transaction), and its limit. `file_system` is
/// [`file_system_uuid`].
pub fn qgroup_usage(file_system: Uuid, group: Qgroup) -> io::Result<(u64, u64)> {
    let directory = PathBuf::from(format!("/sys/fs/btrfs/{file_system}/qgroups/{}", group.sysfs_name()));
    let number = |name: &str| {
        let text = std::fs::read_to_string(directory.join(name))?;
        text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("'{text}' is no number")))
    };
    Ok((number("referenced")?, number("max_referenced")?))
}

/// Numbers of the quota groups of a level. `file_system` is [`file_system_uuid`].
pub fn qgroups(file_system: Uuid, level: u16) -> io::Result<Vec<u64>> {
    let prefix = format!("{level}_");
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(format!("/sys/fs/btrfs/{file_system}/qgroups"))? {
        let name = entry?.file_name();
        ids.extend(name.to_str().and_then(|n| n.strip_prefix(&prefix)).and_then(|n| n.parse::<u64>().ok()));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_those_of_the_kernel_header() {
        for (found, expected) in [
            (RESIZE, 0x5000_9403),
            (SNAP_CREATE_V2, 0x5000_9417),
            (SUBVOL_CREATE_V2, 0x5000_9418),
            (SUBVOL_GETFLAGS, 0x8008_9419),
            (SUBVOL_SETFLAGS, 0x4008_941a),
            (FS_INFO, 0x8400_941f),
            (SEND, 0x4048_9426),
            (QUOTA_CTL, 0xc010_9428),
            (QGROUP_ASSIGN, 0x4018_9429),
            (QGROUP_CREATE, 0x4010_942a),
            (QGROUP_LIMIT, 0x8030_942b),
            (GET_SUBVOL_INFO, 0x81f8_943c),
            (TREE_SEARCH, 0xd000_9411),
            (SNAP_DESTROY_V2, 0x5000_943f),
        ] {
            assert_eq!(found, expected, "{found:#x} is not {expected:#x}");
        }
    }

    #[test]
    fn quota_groups_are_called_as_in_sysfs() {
        assert_eq!(Qgroup::new(0, 256).sysfs_name(), "0_256");
        assert_eq!(Qgroup::new(1, 257).sysfs_name(), "1_257");
    }

    #[test]
    fn uuids_are_written_lower_case_with_dashes() {
        let uuid = Uuid([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(uuid.to_string(), "12345678-9abc-def0-0001-020304050607");
    }
}
