//! The two kinds of fields that criu's messages are made of, in protobuf's encoding.
//!
//! Written by hand because rung speaks a dozen messages of one program, and starts in less time than a library for all
//! messages of all programs would take to load; see `docs/decisions`.

/// A message being made.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Message(Vec<u8>);

/// A field of a message that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// A number, a flag or a word of an enumeration.
    Number(u64),
    /// A text or a message.
    Bytes(&'a [u8]),
}

impl Message {
    /// Adds a number.
    #[must_use]
    pub fn number(mut self, field: u32, value: u64) -> Self {
        self.varint(u64::from(field) << 3);
        self.varint(value);
        self
    }

    /// Adds a signed number.
    #[must_use]
    pub fn signed(self, field: u32, value: i32) -> Self {
        // Negative ones are extended to 64 bits, as protobuf wants them.
        self.number(field, i64::from(value).cast_unsigned())
    }

    /// Adds a flag, when it is set.
    #[must_use]
    pub fn flag(self, field: u32, value: bool) -> Self {
        if value { self.number(field, 1) } else { self }
    }

    /// Adds a text.
    #[must_use]
    pub fn text(self, field: u32, value: &str) -> Self {
        self.bytes(field, value.as_bytes())
    }

    /// Adds a message.
    #[must_use]
    pub fn message(self, field: u32, value: &Self) -> Self {
        self.bytes(field, &value.0)
    }

    /// The encoded message.
    pub fn encoded(&self) -> &[u8] {
        &self.0
    }

    fn bytes(mut self, field: u32, value: &[u8]) -> Self {
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(0x80 | u8::try_from(value & 0x7f).unwrap_or_default());
            value >>= 7;
        }
        self.0.push(u8::try_from(value).unwrap_or_default());
    }
}

/// Reads a message; `None` when it is damaged. Of a field that comes twice the last counts, as protobuf says.
pub fn fields(mut rest: &[u8]) -> Option<Vec<(u32, Value<'_>)>> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut rest)?),
            1 => Value::Number(u64::from_le_bytes(*take(&mut rest, 8)?.first_chunk()?)),
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                Value::Bytes(take(&mut rest, length)?)
            }
            5 => Value::Number(u32::from_le_bytes(*take(&mut rest, 4)?.first_chunk()?).into()),
            _ => return None,
        };
        found.push((u32::try_from(key >> 3).ok()?, value));
    }
    Some(found)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, left) = rest.split_first()?;
        *rest = left;
        value |= u64::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let inner = Message::default().text(1, "key").signed(2, -1);
        let message = Message::default().number(9, 300).flag(7, true).flag(8, false).message(23, &inner);
        // As the specification of the encoding shows it: field 9, and 300 as ac 02.
        assert_eq!(message.encoded()[..3], [0x48, 0xac, 0x02]);
        let read = fields(message.encoded()).unwrap();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0], (9, Value::Number(300)));
        assert_eq!(read[1], (7, Value::Number(1)));
        let (23, Value::Bytes(bytes)) = read[2] else { panic!("{read:?}") };
        assert_eq!(fields(bytes).unwrap(), [(1, Value::Bytes(b"key")), (2, Value::Number(u64::MAX))]);
    }

    #[test]
    fn damage_is_found() {
        for bytes in [&[0x48][..], &[0x48, 0x80], &[0x0a, 5, 1], &[0x0b, 1], &[0x09, 1, 2], &[0xff; 20]] {
            assert_eq!(fields(bytes), None, "{bytes:?}");
        }
    }
}
