//! POSIX access control lists: from the text that tar writes to the attribute that the kernel reads (`posix_acl_xattr.h`).

/// Version of the attribute.
const VERSION: u32 = 2;
/// Identity of entries that have none.
const NO_ID: u32 = u32::MAX;

/// Encodes a list such as `user::rwx,user:1000:r-x,group::r--,mask::rwx,other::---`. Users and groups must be numbers; a
/// fourth field, in which tar repeats the number beside a name, counts before the name.
pub(super) fn encode(text: &str) -> Result<Vec<u8>, String> {
    let mut entries = Vec::new();
    for line in text.split(['\n', ',']).map(str::trim).filter(|line| !line.is_empty()) {
        let bad = || format!("'{line}' is no entry of an access control list");
        let fields: Vec<&str> = line.split(':').collect();
        let [kind, who, access, ..] = fields[..] else { return Err(bad()) };
        let named = !who.is_empty();
        let tag: u16 = match (kind, named) {
            ("user" | "u", false) => 0x01,
            ("user" | "u", true) => 0x02,
            ("group" | "g", false) => 0x04,
            ("group" | "g", true) => 0x08,
            ("mask" | "m", false) => 0x10,
            ("other" | "o", false) => 0x20,
            _ => return Err(bad()),
        };
        let id = match fields.get(3).copied().or(named.then_some(who)) {
            Some(number) if named => number
                .parse()
                .map_err(|_| format!("'{line}' names its user or group: archives for templates must use numbers"))?,
            _ => NO_ID,
        };
        let mut permissions = 0u16;
        for letter in access.bytes() {
            permissions |= match letter {
                b'r' => 4,
                b'w' => 2,
                b'x' => 1,
                b'-' => 0,
                _ => return Err(bad()),
            };
        }
        entries.push((tag, id, permissions));
    }
    // The kernel wants them in this order.
    entries.sort_unstable();
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, id, permissions) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_encoded_in_the_kernels_order() {
        let bytes = encode("other::---\nuser::rwx,user:1000:r-x\ngroup::r--,group:staff:rw-:50,mask::rwx").unwrap();
        let entries: Vec<(u16, u16, u32)> = bytes[4..]
            .chunks(8)
            .map(|e| {
                (
                    u16::from_le_bytes([e[0], e[1]]),
                    u16::from_le_bytes([e[2], e[3]]),
                    u32::from_le_bytes([e[4], e[5], e[6], e[7]]),
                )
            })
            .collect();
        assert_eq!(bytes[..4], [2, 0, 0, 0]);
        assert_eq!(
            entries,
            [(1, 7, NO_ID), (2, 5, 1000), (4, 4, NO_ID), (8, 6, 50), (0x10, 7, NO_ID), (0x20, 0, NO_ID)]
        );
    }

    #[test]
    fn names_and_nonsense_are_refused() {
        for bad in ["user:alice:rwx", "user", "mask:5:rwx", "user::rwz", "nobody::r--"] {
            assert!(encode(bad).is_err(), "{bad}");
        }
    }
}
