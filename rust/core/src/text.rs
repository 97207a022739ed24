//! Reading text whose mistakes are reported by line and column.

use crate::error::{Error, Result};

/// A place in one line of a text.
#[derive(Clone)]
pub struct Cursor<'a> {
    line: &'a [u8],
    number: usize,
    at: usize,
}

/// Whether the kernel's `isspace()` holds: ASCII white space, and Latin-1's
/// no-break space.
pub const fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0)
}

/// As much of a text as an error quotes.
const QUOTED: usize = 40;

/// A text in quotes for an error, which would not be read with all of a long
/// one in it.
pub fn quoted(text: &[u8]) -> String {
    let shown = String::from_utf8_lossy(&text[..text.len().min(QUOTED)]);
    let more = if text.len() > QUOTED { "..." } else { "" };
    format!("{shown:?}{more}")
}

/// The lines of a text, without their ends.
pub fn lines(text: &[u8]) -> impl Iterator<Item = Cursor<'_>> {
    text.split(|&byte| byte == b'\n')
        .zip(1..)
        .map(|(line, number)| Cursor::new(line, number, 0))
}

impl<'a> Cursor<'a> {
    /// The whole of `line`, which stands in line `number` of its text and is
    /// looked at from byte `at` on.
    pub fn new(line: &'a [u8], number: usize, at: usize) -> Self {
        Cursor { line, number, at }
    }

    /// An error here: "line 3, column 7: expected `what`, found ...".
    pub fn expected(&self, what: &str) -> Error {
        let rest = self.rest();
        let found = match rest.iter().position(|&byte| is_space(byte)) {
            _ if rest.is_empty() => "the end of the line".to_owned(),
            Some(0) => "white space".to_owned(),
            end => quoted(&rest[..end.unwrap_or(rest.len())]),
        };
        let (line, column) = (self.number, self.at + 1);
        Error::invalid(format!(
            "line {line}, column {column}: expected {what}, found {found}"
        ))
    }

    /// What is left of the line.
    pub fn rest(&self) -> &'a [u8] {
        &self.line[self.at.min(self.line.len())..]
    }

    /// Number of the line, from 1.
    pub fn line_number(&self) -> usize {
        self.number
    }

    /// The next byte, not consumed.
    pub fn peek(&self) -> Option<u8> {
        self.rest().first().copied()
    }

    /// Consume the next byte.
    pub fn bump(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    /// Consume white space.
    pub fn skip_spaces(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.at += 1;
        }
    }

    /// Consume white space, then a word; `None` at the end of the line.
    pub fn word(&mut self) -> Option<&'a [u8]> {
        self.skip_spaces();
        let rest = self.rest();
        let len = rest.iter().position(|&b| is_space(b)).unwrap_or(rest.len());
        self.at += len;
        (len > 0).then(|| &rest[..len])
    }

    /// Consume white space, then decimal digits, as `sscanf()` does: a number
    /// too large wraps.
    ///
    /// # Errors
    /// `EINVAL` naming `what`, when no digit follows.
    pub fn wrapping_number(&mut self, what: &str) -> Result<u64> {
        self.skip_spaces();
        if !self.peek().is_some_and(|b| b.is_ascii_digit()) {
            return Err(self.expected(what));
        }
        let mut value = 0u64;
        while let Some(digit) = self.peek().filter(u8::is_ascii_digit) {
            value = value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'));
            self.at += 1;
        }
        Ok(value)
    }

    /// Consume white space, then a whole word that is a number: decimal, or
    /// hexadecimal after `0x`, at most `max`.
    ///
    /// # Errors
    /// `EINVAL` naming `what`.
    pub fn number(&mut self, what: &str, max: u64) -> Result<u64> {
        self.skip_spaces();
        let before = self.clone();
        let parsed = self.word().and_then(parse_number);
        match parsed {
            Some(value) if value <= max => Ok(value),
            Some(_) => Err(before.expected(&format!("{what} of at most {max}"))),
            None => Err(before.expected(what)),
        }
    }

    /// Consume white space to the end of the line.
    ///
    /// # Errors
    /// `EINVAL` when something else is left.
    pub fn end(&mut self) -> Result<()> {
        self.skip_spaces();
        if self.rest().is_empty() {
            Ok(())
        } else {
            Err(self.expected("the end of the line"))
        }
    }
}

fn parse_number(word: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(word).ok()?;
    if text.starts_with('+') {
        return None;
    }
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None => text.parse().ok(),
    }
}

/// `kstrtouint()` with base 0: optional `+`, decimal, `0x` hexadecimal or `0`
/// octal, and at most one newline after.
pub fn kstrtouint(text: &[u8]) -> Option<u32> {
    let text = text.split(|&byte| byte == 0).next()?;
    let text = std::str::from_utf8(text.strip_suffix(b"\n").unwrap_or(text)).ok()?;
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = if let Some(hex) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        (hex, 16)
    } else if text.len() > 1 && text.starts_with('0') {
        (&text[1..], 8)
    } else {
        (text, 10)
    };
    if !digits.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_the_kernel_reads_them() {
        assert_eq!(kstrtouint(b"15\n"), Some(15));
        assert_eq!(kstrtouint(b"0x000f"), Some(15));
        assert_eq!(kstrtouint(b"017"), Some(15));
        assert_eq!(kstrtouint(b"+7"), Some(7));
        assert_eq!(kstrtouint(b"0"), Some(0));
        for bad in [
            &b""[..],
            b"-1",
            b"7 ",
            b"0x",
            b"4294967296",
            b"++1",
            b"1\n\n",
            b"\xff",
        ] {
            assert_eq!(kstrtouint(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn errors_quote_the_beginning_of_a_long_text() {
        assert_eq!(quoted(b"15\n"), "\"15\\n\"");
        assert_eq!(quoted(&[b'x'; 40]), format!("\"{}\"", "x".repeat(40)));
        assert_eq!(
            quoted(&[b'x'; 1 << 20]),
            format!("\"{}\"...", "x".repeat(40))
        );
    }

    #[test]
    fn errors_name_line_and_column() {
        let mut cursor = lines(b"first\n  12 ab").nth(1).expect("second line");
        assert_eq!(cursor.number("a count", 20).expect("12"), 12);
        cursor.skip_spaces();
        let error = cursor.number("a count", 20).expect_err("not a number");
        assert!(
            error
                .to_string()
                .contains("line 2, column 6: expected a count, found \"ab\"")
        );
    }
}
