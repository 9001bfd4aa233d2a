//! Names of tenants on a terminal: what could move the cursor, hide a part of a line or pass for another line is shown by
//! number. Everything else, letters of any script included, stays.

use std::fmt::Write;

/// A name that is safe to print, and that tells different names apart.
#[must_use]
pub fn name(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                c if c.is_control() || is_format(c) => out.extend(c.escape_unicode()),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

/// Characters that show nothing, or change how their neighbours are shown (Unicode: bidirectional controls, joiners, line
/// and paragraph separators, tags).
fn is_format(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// A number of bytes for people.
#[must_use]
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_play_tricks_on_a_terminal() {
        for (bytes, shown) in [
            (&b"plain name.txt"[..], "plain name.txt"),
            ("Grüße 名前".as_bytes(), "Grüße 名前"),
            (b"a\x1b[2Jb", "a\\u{1b}[2Jb"),
            (b"a\nb\tc\\", "a\\nb\\tc\\\\"),
            (b"a\xff\xfeb", "a\\xff\\xfeb"),
            ("a\u{202e}gnp.exe".as_bytes(), "a\\u{202e}gnp.exe"),
            ("a\u{9b}31m".as_bytes(), "a\\u{9b}31m"),
            (b"\r", "\\u{d}"),
        ] {
            assert_eq!(name(bytes), shown);
        }
    }

    #[test]
    fn sizes_have_units() {
        for (count, shown) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (1 << 50, "1024.0 TiB")]
        {
            assert_eq!(bytes(count), shown);
        }
    }
}
