//! The two primitive encodings that everything in a transaction file is made of: variable-length integers and byte
//! strings. Both have one canonical form; anything else is refused, so that equal content means equal bytes.

/// Bytes that are not what they should be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// They end too early.
    #[error("the data end inside {0}")]
    Short(&'static str),
    /// A number is longer than needed, or than 64 bits.
    #[error("{0} is not a canonical number")]
    Number(&'static str),
    /// A number is outside its range.
    #[error("{what} is {value}, and can be at most {most}")]
    Range {
        /// Which.
        what: &'static str,
        /// As read.
        value: u64,
        /// The limit.
        most: u64,
    },
}

/// Appends an unsigned integer: seven bits a byte, lowest first, the top bit set in all bytes but the last (LEB128).
pub fn put_number(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// Appends a signed integer, folded to unsigned so that small ones of either sign are short (zigzag).
pub fn put_signed(to: &mut Vec<u8>, value: i64) {
    put_number(to, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends a byte string: its length as a number, then its bytes.
pub fn put_bytes(to: &mut Vec<u8>, bytes: &[u8]) {
    put_number(to, bytes.len() as u64);
    to.extend_from_slice(bytes);
}

/// Reads what was put, from the front.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Whether everything was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(WireError::Short(what))?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next bytes, as many as the array has.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(WireError::Short(what))?;
        self.0 = rest;
        Ok(*taken)
    }

    /// One byte.
    pub fn byte(&mut self, what: &'static str) -> Result<u8, WireError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    /// An unsigned integer of at most `most`.
    pub fn number(&mut self, most: u64, what: &'static str) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(WireError::Number(what));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(WireError::Number(what));
                }
                return if value <= most { Ok(value) } else { Err(WireError::Range { what, value, most }) };
            }
        }
        Err(WireError::Number(what))
    }

    /// A signed integer.
    pub fn signed(&mut self, what: &'static str) -> Result<i64, WireError> {
        let folded = self.number(u64::MAX, what)?;
        Ok((folded >> 1) as i64 ^ -((folded & 1) as i64))
    }

    /// A byte string of at most `most` bytes.
    pub fn bytes(&mut self, most: usize, what: &'static str) -> Result<&'a [u8], WireError> {
        let length = self.number(most as u64, what)?;
        self.take(length as usize, what)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(value: u64, signed: i64) {
            let mut bytes = Vec::new();
            put_number(&mut bytes, value);
            put_signed(&mut bytes, signed);
            let mut input = Input(&bytes);
            prop_assert_eq!(input.number(u64::MAX, "n"), Ok(value));
            prop_assert_eq!(input.signed("s"), Ok(signed));
            prop_assert!(input.is_empty());
        }
    }

    #[test]
    fn a_number_has_one_form_only() {
        for (bytes, expected) in [
            (&[0x00][..], Ok(0)),
            (&[0x80, 0x01], Ok(128)),
            (&[0x80, 0x00], Err(WireError::Number("n"))),
            (&[0x80], Err(WireError::Short("n"))),
            (&[0xff; 10], Err(WireError::Number("n"))),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], Ok(u64::MAX)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], Err(WireError::Number("n"))),
        ] {
            assert_eq!(Input(bytes).number(u64::MAX, "n"), expected, "{bytes:?}");
        }
        assert_eq!(Input(&[5]).number(4, "n"), Err(WireError::Range { what: "n", value: 5, most: 4 }));
        assert_eq!(Input(&[9, 1]).bytes(100, "b"), Err(WireError::Short("b")));
    }
}
