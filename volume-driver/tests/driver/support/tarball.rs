//! Making layers, honest ones and others: headers are written byte by byte where a library would refuse to.

use std::io::Write;

/// An archive in the making.
#[derive(Default)]
pub struct Tarball {
    bytes: Vec<u8>,
}

/// One header.
#[derive(Clone)]
pub struct Item<'a> {
    pub path: &'a str,
    pub kind: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub link: &'a str,
    pub device: (u32, u32),
    pub data: &'a [u8],
}

impl Default for Item<'_> {
    fn default() -> Self {
        Self {
            path: "",
            kind: b'0',
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_000_000_000,
            link: "",
            device: (0, 0),
            data: b"",
        }
    }
}

impl Tarball {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn item(mut self, item: Item<'_>) -> Self {
        self.push(&item);
        self
    }

    pub fn file(self, path: &str, data: &[u8]) -> Self {
        self.item(Item { path, data, ..Item::default() })
    }

    pub fn program(self, path: &str, data: &[u8]) -> Self {
        self.item(Item { path, data, mode: 0o755, ..Item::default() })
    }

    pub fn dir(self, path: &str) -> Self {
        self.item(Item { path, kind: b'5', mode: 0o755, ..Item::default() })
    }

    pub fn symlink(self, path: &str, link: &str) -> Self {
        self.item(Item { path, kind: b'2', link, mode: 0o777, ..Item::default() })
    }

    pub fn hardlink(self, path: &str, link: &str) -> Self {
        self.item(Item { path, kind: b'1', link, ..Item::default() })
    }

    /// A PAX header for the next entry.
    pub fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.push(&Item { path: "PaxHeaders", kind: b'x', data: &data, ..Item::default() });
        self
    }

    /// An old GNU sparse file: parts of the data at offsets.
    pub fn gnu_sparse(mut self, path: &str, size: u64, parts: &[(u64, &[u8])]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(tar::EntryType::GNUSparse);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(parts.iter().map(|(_, data)| data.len() as u64).sum());
        let gnu = header.as_gnu_mut().unwrap();
        assert!(parts.len() <= 4);
        for (slot, (offset, data)) in gnu.sparse.iter_mut().zip(parts) {
            slot.offset.copy_from_slice(format!("{offset:011o}\0").as_bytes());
            slot.numbytes.copy_from_slice(format!("{:011o}\0", data.len()).as_bytes());
        }
        gnu.realsize.copy_from_slice(format!("{size:011o}\0").as_bytes());
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        for (_, data) in parts {
            self.bytes.extend_from_slice(data);
        }
        self.pad();
        self
    }

    /// Bytes as they are.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }

    fn push(&mut self, item: &Item<'_>) {
        if item.path.len() > 100 {
            let name = [item.path.as_bytes(), b"\0"].concat();
            self.push(&Item { path: "././@LongLink", kind: b'L', data: &name, ..Item::default() });
        }
        let mut header = tar::Header::new_gnu();
        // Past the library's own checks of names.
        let name = &item.path.as_bytes()[..item.path.len().min(100)];
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.as_old_mut().linkname[..item.link.len()].copy_from_slice(item.link.as_bytes());
        header.set_entry_type(tar::EntryType::new(item.kind));
        header.set_mode(item.mode);
        header.set_uid(item.uid);
        header.set_gid(item.gid);
        header.set_mtime(item.mtime);
        header.set_size(item.data.len() as u64);
        if matches!(item.kind, b'3' | b'4') {
            header.set_device_major(item.device.0).unwrap();
            header.set_device_minor(item.device.1).unwrap();
        }
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(item.data);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }
}
