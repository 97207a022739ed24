//! Readers of recorded programs that come as text: CSV, what valgrind's lackey
//! tool prints with `--trace-mem=yes`, and the memory samples of `perf script`.
//!
//! All give the columns of a page trace: when, which page, written or not.
//! They stream, so that a recording of hundreds of millions of lines can be
//! read from a pipe as valgrind writes it. An error names the line, what was
//! found there and what belongs there.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, BufRead, Write};

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
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, &byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value.checked_mul(10)?.checked_add(digit.into())
    })
}

/// The same in hexadecimal, without `0x`.
fn hexadecimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 16 {
        return None;
    }
    text.iter().try_fold(0u64, |value, &byte| {
        let digit = char::from(byte).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    })
}

/// What kind of text it is.
#[derive(Clone, Copy, Debug)]
pub enum TextFormat {
    /// The header `time,page,write`, then two decimal numbers and 0 or 1 a line.
    Csv,
    /// What `valgrind --tool=lackey --trace-mem=yes` prints.
    Lackey(LackeyOptions),
    /// What `perf script -F comm,tid,time,event,addr,data_src` prints.
    Perf,
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

/// How many pages of the window being read are found without the map. A power
/// of two.
const RECENT: usize = 1024;

/// A page's last event: window, page, and number of the event.
type Last = (u64, u64, u64);

/// The window of a lackey recording that is being read.
struct Window {
    number: u64,
    /// Number of the first event in it.
    first: u64,
    /// The last event of each page, in whatever window that was.
    seen: HashMap<u64, (u64, u64)>,
    /// The same for pages met lately, so that most lines need no hashing.
    recent: Box<[Last]>,
}

/// A recording that is read a block at a time, so that one larger than memory
/// can be.
pub struct TextTrace<R> {
    lines: Lines<R>,
    format: TextFormat,
    /// Events read and not handed out yet.
    ready: PageTrace,
    /// Number of the first of them, counted from the start of the recording.
    first: u64,
    /// Time of the last event.
    last: Option<u64>,
    instructions: u64,
    window: Window,
    skipped: u64,
    started: bool,
    ended: bool,
}

impl<R: BufRead> TextTrace<R> {
    /// A reader at the start of a text.
    pub fn new(input: R, format: TextFormat) -> Self {
        TextTrace {
            lines: Lines::new(input),
            format,
            ready: PageTrace {
                window: match format {
                    TextFormat::Lackey(options) => options.window,
                    TextFormat::Csv | TextFormat::Perf => 0,
                },
                ..PageTrace::default()
            },
            first: 0,
            last: None,
            instructions: 0,
            window: Window {
                number: 0,
                first: 0,
                seen: HashMap::new(),
                recent: vec![(u64::MAX, 0, 0); RECENT].into(),
            },
            skipped: 0,
            started: false,
            ended: false,
        }
    }

    /// Samples of a perf recording left out so far: those without an address of
    /// the program's.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The next events: about `at_least` of them and those that belong to the
    /// same window, fewer at the end, `None` after it. `poll` is called now and
    /// then, and stops the reader by failing.
    ///
    /// # Errors
    /// [`ReadError`], with the line. Nothing is to be had after one.
    pub fn read<E>(
        &mut self,
        at_least: usize,
        poll: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<Option<PageTrace>, ReadError<E>> {
        if self.ended {
            return Ok(None);
        }
        // Whatever happens below, short of success, is the end.
        self.ended = true;
        if !self.started {
            self.started = true;
            let csv = matches!(self.format, TextFormat::Csv);
            if csv && !(self.lines.next(poll)? && self.lines.buffer == b"time,page,write") {
                self.lines.number = 1;
                return Err(self.lines.error("the header `time,page,write`"));
            }
        }
        let mut more = true;
        while more && self.complete() < at_least.max(1) {
            more = self.lines.next(poll)?
                && match self.format {
                    TextFormat::Csv => self.csv_line()?,
                    TextFormat::Lackey(options) => self.lackey_line(options)?,
                    TextFormat::Perf => self.perf_line()?,
                };
        }
        self.ended = !more;
        let count = if more {
            self.complete()
        } else {
            self.ready.time.len()
        };
        if count == 0 {
            return Ok(None);
        }
        let mut block = PageTrace {
            time: self.ready.time.split_off(count),
            page: self.ready.page.split_off(count),
            write: self.ready.write.split_off(count),
            window: self.ready.window,
            duration: 0,
        };
        std::mem::swap(&mut block, &mut self.ready);
        self.first += count as u64;
        block.duration = match self.format {
            TextFormat::Lackey(_) => self.instructions,
            TextFormat::Csv | TextFormat::Perf => self.last.map_or(0, |last| last + 1),
        };
        Ok(Some(block))
    }

    /// How many of the events that are ready will not change any more.
    fn complete(&self) -> usize {
        match self.format {
            TextFormat::Lackey(options) if options.window != 0 => {
                (self.window.first - self.first) as usize
            }
            _ => self.ready.time.len(),
        }
    }

    fn push(&mut self, time: u64, page: u64, write: bool) {
        self.last = Some(time);
        self.ready.time.push(time);
        self.ready.page.push(page);
        self.ready.write.push(write);
    }

    /// Take a line; false at the end of what is wanted.
    fn csv_line<E>(&mut self) -> Result<bool, ReadError<E>> {
        const ROW: &str = "two numbers and 0 or 1, separated by commas, as `1200,5120,1`";
        let mut fields = self.lines.buffer.split(|&byte| byte == b',');
        let mut field = || fields.next().unwrap_or_default();
        let (time, page, write) = (decimal(field()), decimal(field()), field());
        let (Some(time), Some(page), b"0" | b"1") = (time, page, write) else {
            return Err(self.lines.error(ROW));
        };
        let write = write == b"1";
        if fields.next().is_some() {
            return Err(self.lines.error(ROW));
        }
        if page >> (ADDRESS_BITS - PAGE_SHIFT) != 0 {
            return Err(self.lines.error("a page number below 2^45"));
        }
        if time == u64::MAX {
            return Err(self.lines.error("a time below 2^64 - 1"));
        }
        if self.last.is_some_and(|last| time < last) {
            return Err(self.lines.error("a time not below that of the line before"));
        }
        self.push(time, page, write);
        Ok(true)
    }

    fn lackey_line<E>(&mut self, options: LackeyOptions) -> Result<bool, ReadError<E>> {
        const LINE: &str = "a line of lackey's, as `I  04016c0,3` or ` S 1fff000738,8`";
        let line = &self.lines.buffer[..];
        if line.starts_with(b"==") || line.starts_with(b"--") || line.is_empty() {
            return Ok(true);
        }
        let (instruction, write) = match line.get(..3) {
            Some(b"I  ") => (true, false),
            Some(b" L ") => (false, false),
            Some(b" S " | b" M ") => (false, true),
            _ => return Err(self.lines.error(LINE)),
        };
        let mut fields = line[3..].splitn(2, |&byte| byte == b',');
        let address = hexadecimal(fields.next().unwrap_or_default());
        let size = decimal(fields.next().unwrap_or_default());
        let (Some(address), Some(size @ 1..=4096)) = (address, size) else {
            return Err(self.lines.error(LINE));
        };
        if address.saturating_add(size - 1) >> ADDRESS_BITS != 0 {
            return Err(self.lines.error("an address below 2^57"));
        }
        if instruction {
            if options.max_instructions != 0 && self.instructions == options.max_instructions {
                return Ok(false);
            }
            self.instructions += 1;
        }
        // Data accesses belong to the instruction printed before them.
        let time = self.instructions.saturating_sub(1);
        if let Some(number) = time.checked_div(options.window)
            && number != self.window.number
        {
            self.window.number = number;
            self.window.first = self.first + self.ready.time.len() as u64;
        }
        for page in address >> PAGE_SHIFT..=(address + size - 1) >> PAGE_SHIFT {
            if options.window != 0
                && let Some(event) = self
                    .window
                    .before(page, || self.first + self.ready.time.len() as u64)
            {
                self.ready.write[(event - self.first) as usize] |= write;
                continue;
            }
            self.push(time, page, write);
        }
        Ok(true)
    }

    fn perf_line<E>(&mut self) -> Result<bool, ReadError<E>> {
        const LINE: &str = "a sample, as `cat 71 8.250013: cpu/mem-loads/P: 7ffd5e0012a8`";
        const ADDRESS: &str = "an address after the event: print it with `perf script -F \
                               comm,tid,time,event,addr,data_src`";
        let line = &self.lines.buffer[..];
        if line.first().is_none_or(|&byte| byte == b'#') {
            return Ok(true);
        }
        let mut words = line
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        // The command's name may have spaces, so the time is what is looked for.
        let Some(time) = words.by_ref().find_map(perf_time) else {
            return Err(self.lines.error(LINE));
        };
        // A number before the event's name is the sample's period.
        let named = |word: &&[u8]| word.len() > 1 && word.ends_with(b":");
        let event = match words.next() {
            Some(word) if decimal(word).is_some() => words.next(),
            word => word,
        };
        let Some(event) = event.filter(named) else {
            return Err(self.lines.error(LINE));
        };
        let Some(address) = words.next().and_then(hexadecimal) else {
            return Err(self.lines.error(ADDRESS));
        };
        let mut rest = words.peekable();
        // `ip sym` alone looks like an address, but is where the program was;
        // so does a `data_src` alone, but what it means comes right after it.
        let symbol = |word: &&[u8]| {
            word.windows(3).any(|three| three == b"+0x")
                || word.starts_with(b"[")
                || word.starts_with(b"(")
                || word.starts_with(b"|")
        };
        if rest.peek().is_some_and(symbol) {
            return Err(self.lines.error(ADDRESS));
        }
        let contains = |text: &[u8], what: &[u8]| {
            text.windows(what.len())
                .any(|part| part.eq_ignore_ascii_case(what))
        };
        let mut write = contains(event, b"store");
        while let Some(word) = rest.next() {
            write |= word == b"|OP" && rest.peek().is_some_and(|next| next.starts_with(b"STORE"));
        }
        if address == 0 || address >> 63 != 0 {
            self.skipped += 1;
            return Ok(true);
        }
        if address >> ADDRESS_BITS != 0 {
            return Err(self
                .lines
                .error("an address below 2^57, or one of the kernel's"));
        }
        if self.last.is_some_and(|last| time < last) {
            return Err(self
                .lines
                .error("a time not below that of the sample before"));
        }
        self.push(time, address >> PAGE_SHIFT, write);
        Ok(true)
    }
}

impl Window {
    /// The event of a page in this window; without one, `event` is noted.
    fn before(&mut self, page: u64, event: impl FnOnce() -> u64) -> Option<u64> {
        let slot = page as usize % RECENT;
        let (window, known, before) = self.recent[slot];
        if known == page && window == self.number {
            return Some(before);
        }
        let number = self.number;
        let (window, last) = self.seen.entry(page).or_insert((u64::MAX, 0));
        let found = if *window == number {
            Some(*last)
        } else {
            (*window, *last) = (number, event());
            None
        };
        self.recent[slot] = (number, page, *last);
        found
    }
}

/// Seconds with a fraction and a colon, as perf prints them, in nanoseconds.
fn perf_time(word: &[u8]) -> Option<u64> {
    let word = word.strip_suffix(b":")?;
    let point = word.iter().position(|&byte| byte == b'.')?;
    let (seconds, fraction) = (decimal(&word[..point])?, &word[point + 1..]);
    if fraction.len() > 9 {
        return None;
    }
    let scale = 10u64.pow(9 - fraction.len() as u32);
    seconds
        .checked_mul(1_000_000_000)?
        .checked_add(decimal(fraction)? * scale)
        .filter(|&time| time != u64::MAX)
}

/// Read a whole text.
///
/// # Errors
/// [`ReadError`], with the line.
pub fn read_all<E>(
    input: impl BufRead,
    format: TextFormat,
    poll: &mut dyn FnMut() -> Result<(), E>,
) -> ReadResult<E> {
    let mut reader = TextTrace::new(input, format);
    let block = reader.read(usize::MAX, poll)?;
    let mut all = block.unwrap_or_else(|| std::mem::take(&mut reader.ready));
    // Without an event the clock may still have run.
    all.duration = all.duration.max(reader.instructions);
    Ok(all)
}

/// The rows of a CSV trace, without its header. Columns of different length are
/// cut to the shortest.
pub fn format_csv(time: &[u64], page: &[u64], write: &[bool]) -> Vec<u8> {
    let mut text = Vec::with_capacity(time.len() * 24);
    for ((&time, &page), &write) in time.iter().zip(page).zip(write) {
        push_decimal(&mut text, time);
        text.push(b',');
        push_decimal(&mut text, page);
        text.extend(if write { b",1\n" } else { b",0\n" });
    }
    text
}

/// The same as samples of `perf script -F comm,tid,time,event,addr`. An address
/// of 0 would be none, so what page 0 has is its second byte.
pub fn format_perf(time: &[u64], page: &[u64], write: &[bool]) -> Vec<u8> {
    const SECOND: u64 = 1_000_000_000;
    let mut text = Vec::with_capacity(time.len() * 48);
    for ((&time, &page), &write) in time.iter().zip(page).zip(write) {
        text.extend_from_slice(b"youngbit 1 ");
        push_decimal(&mut text, time / SECOND);
        // Nine digits, zeros in front too: those behind the first of ten.
        let point = text.len();
        push_decimal(&mut text, SECOND + time % SECOND);
        text[point] = b'.';
        let event: &[u8] = if write { b"stores" } else { b"loads" };
        text.extend_from_slice(b": mem-");
        text.extend_from_slice(event);
        let address = (page << PAGE_SHIFT).max(1);
        // Writing to memory does not fail.
        let _ = writeln!(text, ": {address:x}");
    }
    text
}

fn push_decimal(text: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn csv(text: &str) -> ReadResult<Infallible> {
        read_all(text.as_bytes(), TextFormat::Csv, &mut || Ok(()))
    }

    fn lackey(text: &str, window: u64, max_instructions: u64) -> ReadResult<Infallible> {
        let options = LackeyOptions {
            window,
            max_instructions,
        };
        read_all(text.as_bytes(), TextFormat::Lackey(options), &mut || Ok(()))
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
    fn csv_written_is_csv_read() {
        let (time, page) = ([0, 9, 10, u64::MAX - 1], [0, 99, (1 << 45) - 1, 7]);
        let write = [true, false, false, true];
        let mut text = String::from("time,page,write\n");
        text += std::str::from_utf8(&format_csv(&time, &page, &write)).unwrap();
        let trace = csv(&text).unwrap();
        assert_eq!((&trace.time[..], &trace.page[..]), (&time[..], &page[..]));
        assert_eq!(trace.write, write);
    }

    #[test]
    fn samples_written_are_samples_read() {
        let (time, page) = (
            [0, 1_000_000_001, u64::MAX - 1],
            [0, (1 << 45) - 1, 0x7_ffd5],
        );
        let write = [true, false, true];
        let text = format_perf(&time, &page, &write);
        let lines = std::str::from_utf8(&text).unwrap();
        assert_eq!(
            lines.lines().nth(1).unwrap(),
            "youngbit 1 1.000000001: mem-loads: 1fffffffffff000"
        );
        let trace = read_all::<Infallible>(&text[..], TextFormat::Perf, &mut || Ok(())).unwrap();
        assert_eq!((&trace.time[..], &trace.page[..]), (&time[..], &page[..]));
        assert_eq!(trace.write, write);
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
            assert_fails_at(csv(text), text, line, expected);
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
        let result = read_all(text.as_bytes(), TextFormat::Lackey(options), &mut || {
            Err("stop")
        });
        assert!(matches!(result, Err(ReadError::Stopped("stop"))));
    }

    #[test]
    fn binary_input_is_refused_without_reading_it_whole() {
        let noise = vec![0xffu8; 1 << 20];
        let result: ReadResult<Infallible> = read_all(&noise[..], TextFormat::Csv, &mut || Ok(()));
        assert!(matches!(result, Err(ReadError::Text { line: 1, .. })));
    }

    #[test]
    fn blocks_are_the_whole() {
        let mut text = String::new();
        let mut state = 7u64;
        for _ in 0..5000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            text += &format!("I  {:x},4\n", 0x40_0000 + (state >> 40 & 0xffff));
            text += &format!(
                " {} {:x},8\n",
                if state >> 33 & 1 == 0 { 'L' } else { 'S' },
                0x7000_0000 + (state >> 44) * 64
            );
        }
        for window in [0, 1, 7, 1000, 1 << 40] {
            let options = LackeyOptions {
                window,
                max_instructions: 0,
            };
            let whole = lackey(&text, window, 0).unwrap();
            for size in [1, 64, 100_000] {
                let mut reader = TextTrace::new(text.as_bytes(), TextFormat::Lackey(options));
                let mut joined = PageTrace {
                    window,
                    ..PageTrace::default()
                };
                let mut poll = || Ok::<(), Infallible>(());
                while let Some(block) = reader.read(size, &mut poll).unwrap() {
                    joined.time.extend(block.time);
                    joined.page.extend(block.page);
                    joined.write.extend(block.write);
                    joined.duration = block.duration;
                }
                assert_eq!(joined, whole, "window {window}, blocks of {size}");
            }
        }
    }

    fn assert_fails_at<T: std::fmt::Debug>(
        result: std::result::Result<T, ReadError<Infallible>>,
        text: &str,
        line: u64,
        expected: &str,
    ) {
        match result {
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

    fn perf(text: &str) -> ReadResult<Infallible> {
        read_all(text.as_bytes(), TextFormat::Perf, &mut || Ok(()))
    }

    #[test]
    fn perf_samples() {
        let text = "# comment\n\
            a b  71 [001]  8.250013:  1 cpu/mem-loads,ldlat=30/P:  7ffd5e0012a8 68100142 |OP LOAD|LVL L1 hit|SNP None 7 401136 main+0x16 (/a)\n\
            cat 71 8.250013500: page-faults: 5000\n\
            \n\
            cat 71 9.0: cpu/mem-stores/P: 6000\n\
            cat 71 9.5: mem: 7000 1 |OP STORE|LVL L1 hit\n\
            cat 71 9.5: mem: ffffffff81755abc\n\
            cat 71 9.5: mem: 0\n";
        let trace = perf(text).unwrap();
        assert_eq!(trace.page, [0x7ffd5e001, 5, 6, 7]);
        assert_eq!(trace.write, [false, false, true, true]);
        assert_eq!(
            trace.time,
            [8_250_013_000, 8_250_013_500, 9_000_000_000, 9_500_000_000]
        );
        let mut reader = TextTrace::new(text.as_bytes(), TextFormat::Perf);
        reader.read(100, &mut || Ok::<(), Infallible>(())).unwrap();
        assert_eq!(reader.skipped(), 2);
    }

    #[test]
    fn perf_errors_name_the_line() {
        for (text, line, expected) in [
            ("cat 71 page-faults: 5000\n", 1, "a sample"),
            ("cat 71 8.2: 5000\n", 1, "a sample"),
            ("cat 71 8.2: mem:\n", 1, "an address"),
            ("cat 71 8.2: mem: zz\n", 1, "an address"),
            ("cat 71 8.2: mem: 401136 main+0x16 (/a)\n", 1, "an address"),
            ("cat 71 8.2: mem: 401136 [unknown] (/a)\n", 1, "an address"),
            (
                "cat 71 8.2: mem: 4000\ncat 71 8.1: mem: 4000\n",
                2,
                "a time",
            ),
            ("cat 71 8.2: mem: 4ffffffffffff000\n", 1, "below 2^57"),
            ("cat 71 99999999999.2: mem: 4000\n", 1, "a sample"),
            ("cat 71 8.2: mem: 40", 1, "truncated"),
        ] {
            assert_fails_at(perf(text), text, line, expected);
        }
    }
}
