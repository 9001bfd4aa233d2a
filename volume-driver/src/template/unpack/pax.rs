//! PAX extension headers (pax(1)): records `<length> <key>=<value>\n`, of which values may hold any byte.

use std::io;

use super::acl;
use super::archive::{Attribute, corrupt};

/// Prefix of extended attributes.
const XATTR: &str = "SCHILY.xattr.";
/// Access control lists as text, and the attributes that the kernel keeps them in.
const ACLS: [(&str, &[u8]); 2] =
    [("SCHILY.acl.access", b"system.posix_acl_access"), ("SCHILY.acl.default", b"system.posix_acl_default")];

/// The records of one header, in order.
#[derive(Default)]
pub(super) struct Records(Vec<(String, Vec<u8>)>);

/// A sparse file as PAX tells it.
pub(super) struct Sparse {
    pub name: Option<Vec<u8>>,
    pub size: u64,
    /// `None`: the map is at the beginning of the data.
    pub segments: Option<Vec<(u64, u64)>>,
}

/// Splits a header into its records.
pub(super) fn parse(mut rest: &[u8]) -> io::Result<Records> {
    let bad = || corrupt("an extension header is broken");
    let mut records = Vec::new();
    while !rest.is_empty() {
        let space = rest.iter().take(8).position(|b| *b == b' ').ok_or_else(bad)?;
        let length: usize = std::str::from_utf8(&rest[..space]).ok().and_then(|t| t.parse().ok()).ok_or_else(bad)?;
        let record = rest.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(bad)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        let key = std::str::from_utf8(&record[..equals]).map_err(|_| bad())?;
        records.push((key.to_owned(), record[equals + 1..].to_vec()));
        rest = &rest[length..];
    }
    Ok(Records(records))
}

impl Records {
    /// The last record of a key; an empty value takes the key back.
    pub fn take(&mut self, key: &str) -> Option<Vec<u8>> {
        let at = self.0.iter().rposition(|(k, _)| k == key)?;
        Some(self.0.swap_remove(at).1).filter(|value| !value.is_empty())
    }

    fn text(&self, key: &str) -> io::Result<Option<&str>> {
        match self.0.iter().rfind(|(k, _)| k == key) {
            Some((_, value)) => {
                std::str::from_utf8(value).map(Some).map_err(|_| corrupt(format!("'{key}' of an entry is no text")))
            }
            None => Ok(None),
        }
    }

    pub fn number(&self, key: &str) -> io::Result<Option<u64>> {
        self.text(key)?
            .map(|text| text.parse().map_err(|_| corrupt(format!("'{key}' of an entry is no number"))))
            .transpose()
    }

    /// Seconds with an optional fraction, as seconds and nanoseconds.
    pub fn time(&self, key: &str) -> io::Result<Option<(i64, u32)>> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let bad = || corrupt(format!("'{key}' of an entry is no time"));
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let seconds: i64 = whole.parse().map_err(|_| bad())?;
        if !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
        let nanoseconds: u32 = digits.parse().map_err(|_| bad())?;
        // The fraction of a time before 1970 counts backwards.
        Ok(Some(if text.starts_with('-') && nanoseconds > 0 {
            (seconds.checked_sub(1).ok_or_else(bad)?, 1_000_000_000 - nanoseconds)
        } else {
            (seconds, nanoseconds)
        }))
    }

    /// Extended attributes, those among them that are written as access control lists included.
    pub fn xattrs(&self) -> io::Result<Vec<Attribute>> {
        let mut list = Vec::new();
        for (key, value) in &self.0 {
            if let Some(name) = key.strip_prefix(XATTR) {
                list.push((name.as_bytes().to_vec(), value.clone()));
            } else if let Some((_, name)) = ACLS.iter().find(|(acl, _)| acl == key) {
                let text =
                    std::str::from_utf8(value).map_err(|_| corrupt(format!("'{key}' of an entry is no text")))?;
                list.push((name.to_vec(), acl::encode(text).map_err(corrupt)?));
            }
        }
        Ok(list)
    }

    /// The sparse file that the entry stands for, in any of the three versions of the format.
    pub fn sparse(&mut self) -> io::Result<Option<Sparse>> {
        let name = self.take("GNU.sparse.name");
        if self.text("GNU.sparse.major")?.is_some() {
            let size = self.number("GNU.sparse.realsize")?.ok_or_else(|| corrupt("a sparse file without its size"))?;
            return Ok(Some(Sparse { name, size, segments: None }));
        }
        let Some(size) = self.number("GNU.sparse.size")? else { return Ok(None) };
        let number = |text: &str| text.parse::<u64>().map_err(|_| corrupt("the map of a sparse file is broken"));
        let numbers: Vec<u64> = if let Some(map) = self.text("GNU.sparse.map")? {
            map.split(',').map(number).collect::<Result<_, _>>()?
        } else {
            let parts =
                self.0.iter().filter(|(key, _)| matches!(key.as_str(), "GNU.sparse.offset" | "GNU.sparse.numbytes"));
            parts.map(|(_, value)| number(&String::from_utf8_lossy(value))).collect::<Result<_, _>>()?
        };
        if !numbers.len().is_multiple_of(2) {
            return Err(corrupt("the map of a sparse file is broken"));
        }
        Ok(Some(Sparse { name, size, segments: Some(numbers.chunks(2).map(|pair| (pair[0], pair[1])).collect()) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_any_byte() {
        let mut records = parse(b"12 path=a=b\n23 SCHILY.xattr.u=\0\n\xff=\n").unwrap();
        assert_eq!(records.xattrs().unwrap(), [(b"u".to_vec(), b"\0\n\xff=".to_vec())]);
        assert_eq!(records.take("path").unwrap(), b"a=b");
    }

    #[test]
    fn broken_headers_are_refused() {
        for bad in [&b"12 path=a"[..], b"x path=a\n", b"3 \n", b"99999999999 a=b\n", b"6 abc\n", b"0 a=b\n"] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn times_have_fractions_on_both_sides_of_1970() {
        for (text, time) in [
            ("1", (1, 0)),
            ("1.5", (1, 500_000_000)),
            ("1.123456789123", (1, 123_456_789)),
            ("-1", (-1, 0)),
            ("-1.25", (-2, 750_000_000)),
        ] {
            let records = Records(vec![("mtime".into(), text.into())]);
            assert_eq!(records.time("mtime").unwrap(), Some(time), "{text}");
        }
    }
}
