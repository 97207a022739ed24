//! Readers of recorded programs that come as text: CSV, and what valgrind's
//! lackey tool prints with `--trace-mem=yes`.
//!
//! Both give the columns of a page trace: when, which page, written or not.
//! They stream, so that a recording of hundreds of millions of lines can be
//! read from a pipe as valgrind writes it. An error names the line, what was
//! found there and what belongs there.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead};

/// Guest pages are 4 KiB; addresses in a lackey recording are split there.
const PAGE_SHIFT: u32 = 12;
/// Addresses of more bits than this are not of a process.
const ADDRESS_BITS: u32 = 57;
/// One line may not be longer; what has no line ends is not text.
const MAX_LINE: usize = 4096;
/// How many lines are read between two calls of the caller's hook.
const LINES_PER_POLL: u64 = 1 << 14;

/// The columns of a page trace, one entry an event, in time order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageTrace {
    /// Instructions executed, or whatever the recording counts, before the event.
    pub time: Vec<u64>,
    /// Address divided by 4096.
    pub page: Vec<u64>,
    /// Whether the page was written in this event.
    pub write: Vec<bool>,
    /// Within this many units of time a page appears once; 0: no such promise.
    pub window: u64,
    /// Units of time that the recording spans.
    pub duration: u64,
}

/// Why a trace could not be read.
pub enum ReadError<E> {
    /// The bytes could not be had.
    Io(io::Error),
    /// The text is not what it should be.
    Text {
        /// Counted from 1.
        line: u64,
        /// What was found.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// The caller's hook asked to stop.
    Stopped(E),
}

impl<E> From<io::Error> for ReadError<E> {
    fn from(error: io::Error) -> Self {
        ReadError::Io(error)
    }
}

impl<E: fmt::Display> fmt::Display for ReadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReadError::Io(error) => error.fmt(f),
            ReadError::Text {
                line,
                found,
                expected,
            } => write!(f, "line {line}: found {found}, expected {expected}"),
            ReadError::Stopped(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Display> fmt::Debug for ReadError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `Result` of a reader whose hook fails with `E`.
pub type ReadResult<E> = Result<PageTrace, ReadError<E>>;

/// How a line looks in an error: shortened, and never with control characters.
fn quote(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(&line[..line.len().min(40)]);
    format!("`{}`", text.escape_debug())
}

/// The lines of a text, counted, each with its end taken off.
struct Lines<R> {
    input: R,
    buffer: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    fn new(input: R) -> Self {
        Lines {
            input,
            buffer: Vec::with_capacity(MAX_LINE),
            number: 0,
        }
    }

    fn error<E>(&self, expected: &'static str) -> ReadError<E> {
        ReadError::Text {
            line: self.number,
            found: quote(&self.buffer),
            expected,
        }
    }

    /// The next line, or `None` at the end. A last line without its end means
    /// that the text was cut, and the number in it may be half a number.
    fn next<E>(&mut self, poll: &mut dyn FnMut() -> Result<(), E>) -> Result<bool, ReadError<E>> {
        self.buffer.clear();
        let mut limited = io::Read::take(&mut self.input, MAX_LINE as u64 + 1);
        if limited.read_until(b'\n', &mut self.buffer)? == 0 {
            return Ok(false);
        }
        self.number += 1;
        if self.number.is_multiple_of(LINES_PER_POLL) {
            poll().map_err(ReadError::Stopped)?;
        }
        if self.buffer.pop_if(|last| *last == b'\n').is_none() {
            let expected = if self.buffer.len() > MAX_LINE {
                "a text whose lines are at most 4096 bytes long"
            } else {
                "a line end: the file is truncated"
            };
            return Err(self.error(expected));
        }
        self.buffer.pop_if(|last| *last == b'\r');
        Ok(true)
    }
}

/// A number of digits only, or `None`; `+1` and `1_000` are not numbers here.
fn number(text: &[u8], radix: u32) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, &byte| {
        let digit = char::from(byte).to_digit(radix)?;
        value.checked_mul(radix.into())?.checked_add(digit.into())
    })
}

/// Read a CSV with the header `time,page,write`: two decimal numbers and 0 or
/// 1, in time order.
///
/// # Errors
/// [`ReadError`], with the line.
pub fn read_csv<E>(input: impl BufRead, poll: &mut dyn FnMut() -> Result<(), E>) -> ReadResult<E> {
    const ROW: &str = "two numbers and 0 or 1, separated by commas, as `1200,5120,1`";
    let mut lines = Lines::new(input);
    if !lines.next(poll)? || lines.buffer != b"time,page,write" {
        lines.number = 1;
        return Err(lines.error("the header `time,page,write`"));
    }
    let mut trace = PageTrace::default();
    while lines.next(poll)? {
        let mut fields = lines.buffer.split(|&byte| byte == b',');
        let mut field = || fields.next().unwrap_or_default();
        let (time, page, write) = (number(field(), 10), number(field(), 10), field());
        let (Some(time), Some(page), b"0" | b"1") = (time, page, write) else {
            return Err(lines.error(ROW));
        };
        let write = write == b"1";
        if fields.next().is_some() {
            return Err(lines.error(ROW));
        }
        if page >> (ADDRESS_BITS - PAGE_SHIFT) != 0 {
            return Err(lines.error("a page number below 2^45"));
        }
        if trace.time.last().is_some_and(|&last| time < last) {
            return Err(lines.error("a time not below that of the line before"));
        }
        trace.time.push(time);
        trace.page.push(page);
        trace.write.push(write);
    }
    trace.duration = trace.time.last().map_or(0, |last| last + 1);
    Ok(trace)
}

/// What to keep of a lackey recording.
#[derive(Clone, Copy, Debug)]
pub struct LackeyOptions {
    /// Within this many instructions a page is recorded once, at its first
    /// access; 0 records every access.
    pub window: u64,
    /// Stop after this many instructions; 0: read to the end.
    pub max_instructions: u64,
}

/// Read what `valgrind --tool=lackey --trace-mem=yes` printed: lines `I`
/// (instruction), ` L` (load), ` S` (store) and ` M` (modify), each with a
/// hexadecimal address and a decimal size, among valgrind's own `==pid==`
/// lines. An access that crosses a page boundary is an access to each page.
///
/// # Errors
/// [`ReadError`], with the line.
pub fn read_lackey<E>(
    input: impl BufRead,
    options: LackeyOptions,
    poll: &mut dyn FnMut() -> Result<(), E>,
) -> ReadResult<E> {
    const LINE: &str = "a line of lackey's, as `I  04016c0,3` or ` S 1fff000738,8`";
    let mut lines = Lines::new(input);
    let mut trace = PageTrace {
        window: options.window,
        ..PageTrace::default()
    };
    // The event of each page in the window that is being read.
    let mut seen: HashMap<u64, usize> = HashMap::new();
    let mut window = 0;
    let mut instructions: u64 = 0;
    while lines.next(poll)? {
        let line = &lines.buffer[..];
        if line.starts_with(b"==") || line.starts_with(b"--") || line.is_empty() {
            continue;
        }
        let (instruction, write) = match line.get(..3) {
            Some(b"I  ") => (true, false),
            Some(b" L ") => (false, false),
            Some(b" S " | b" M ") => (false, true),
            _ => return Err(lines.error(LINE)),
        };
        let mut fields = line[3..].splitn(2, |&byte| byte == b',');
        let address = number(fields.next().unwrap_or_default(), 16);
        let size = number(fields.next().unwrap_or_default(), 10);
        let (Some(address), Some(size @ 1..=4096)) = (address, size) else {
            return Err(lines.error(LINE));
        };
        if address >> ADDRESS_BITS != 0 {
            return Err(lines.error("an address below 2^57"));
        }
        if instruction {
            if options.max_instructions != 0 && instructions == options.max_instructions {
                break;
            }
            instructions += 1;
        }
        // Data accesses belong to the instruction printed before them.
        let time = instructions.saturating_sub(1);
        if let Some(this) = time.checked_div(options.window)
            && this != window
        {
            window = this;
            seen.clear();
        }
        for page in address >> PAGE_SHIFT..=(address + size - 1) >> PAGE_SHIFT {
            if options.window != 0 {
                if let Some(&event) = seen.get(&page) {
                    trace.write[event] |= write;
                    continue;
                }
                seen.insert(page, trace.time.len());
            }
            trace.time.push(time);
            trace.page.push(page);
            trace.write.push(write);
        }
    }
    trace.duration = instructions;
    Ok(trace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn csv(text: &str) -> ReadResult<Infallible> {
        read_csv(text.as_bytes(), &mut || Ok(()))
    }

    fn lackey(text: &str, window: u64, max_instructions: u64) -> ReadResult<Infallible> {
        let options = LackeyOptions {
            window,
            max_instructions,
        };
        read_lackey(text.as_bytes(), options, &mut || Ok(()))
    }

    #[test]
    fn csv_rows() {
        let trace = csv("time,page,write\r\n1,2,0\n1,3,1\n").unwrap();
        assert_eq!(trace.time, [1, 1]);
        assert_eq!(trace.page, [2, 3]);
        assert_eq!(trace.write, [false, true]);
        assert_eq!(csv("time,page,write\n").unwrap().time.len(), 0);
    }

    #[test]
    fn csv_errors_name_the_line() {
        for (text, line, expected) in [
            ("", 1, "header"),
            ("page,time,write\n", 1, "header"),
            ("time,page,write\n1,2\n", 2, "two numbers"),
            ("time,page,write\n1,2,0,9\n", 2, "two numbers"),
            ("time,page,write\n1,2,2\n", 2, "two numbers"),
            ("time,page,write\n-1,2,0\n", 2, "two numbers"),
            (
                "time,page,write\n99999999999999999999,2,0\n",
                2,
                "two numbers",
            ),
            ("time,page,write\n1,35184372088832,0\n", 2, "2^45"),
            ("time,page,write\n5,2,0\n4,2,0\n", 3, "not below"),
            ("time,page,write\n5,2,0\n6,2", 3, "truncated"),
        ] {
            match csv(text) {
                Err(ReadError::Text {
                    line: at,
                    expected: what,
                    ..
                }) => {
                    assert_eq!(at, line, "{text:?}");
                    assert!(what.contains(expected), "{text:?}: {what}");
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn lackey_windows_and_splits() {
        let text =
            "==1== Lackey\nI  1000,4\n L 2ffc,8\nI  1004,4\n S 2000,1\nI  1008,1\n M 3000,4\n";
        let trace = lackey(text, 2, 0).unwrap();
        assert_eq!(trace.time, [0, 0, 0, 2, 2]);
        assert_eq!(trace.page, [1, 2, 3, 1, 3]);
        assert_eq!(trace.write, [false, true, false, false, true]);
        assert_eq!(trace.duration, 3);
        assert_eq!(lackey(text, 0, 0).unwrap().page, [1, 2, 3, 1, 2, 1, 3]);
        assert_eq!(lackey(text, 0, 1).unwrap().page, [1, 2, 3]);
    }

    #[test]
    fn lackey_errors_name_the_line() {
        for (text, line) in [
            ("I  1000,4\nX  1000,4\n", 2),
            ("I  1000\n", 1),
            ("I  zz,4\n", 1),
            ("I  1000,0\n", 1),
            ("I  1000,5000\n", 1),
            ("I  ffffffffffffffff,4\n", 1),
            ("I  1000,4\n L 20", 2),
        ] {
            match lackey(text, 10, 0) {
                Err(ReadError::Text { line: at, .. }) => assert_eq!(at, line, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn hook_stops_the_reader() {
        let text = "I  1000,4\n".repeat(LINES_PER_POLL as usize + 10);
        let options = LackeyOptions {
            window: 1,
            max_instructions: 0,
        };
        let result = read_lackey(text.as_bytes(), options, &mut || Err("stop"));
        assert!(matches!(result, Err(ReadError::Stopped("stop"))));
    }

    #[test]
    fn binary_input_is_refused_without_reading_it_whole() {
        let noise = vec![0xffu8; 1 << 20];
        let result: ReadResult<Infallible> = read_csv(&noise[..], &mut || Ok(()));
        assert!(matches!(result, Err(ReadError::Text { line: 1, .. })));
    }
}
