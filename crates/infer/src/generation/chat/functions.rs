//! What transformers adds to Jinja for chat templates: `raise_exception`, `strftime_now`, `tojson` as Python writes it,
//! methods of strings, and the tag `generation`.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// Most spaces of a level of indented JSON.
const INDENT_LIMIT: usize = 16;
/// Most bytes of a format for dates.
const DATE_FORMAT_LIMIT_BYTES: usize = 1 << 10;

/// Adds functions, filters and methods.
pub(super) fn add(environment: &mut Environment<'static>, now: SystemTime) {
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| strftime(&format, now));
    environment.add_filter("tojson", to_json);
    environment.set_unknown_method_callback(methods);
}

/// Methods of Python's types: those of the library, and a few that it lacks.
fn methods(state: &mut State, value: &Value, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    if let (Some(text), "title", []) = (value.as_str(), method, arguments) {
        return Ok(Value::from(title(text)));
    }
    if let (Some(text), ValueKind::String, [argument]) = (value.as_str(), value.kind(), arguments) {
        match (method, argument.as_str()) {
            ("removeprefix", Some(prefix)) => return Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text))),
            ("removesuffix", Some(suffix)) => return Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text))),
            _ => {}
        }
    }
    unknown_method_callback(state, value, method, arguments)
}

/// Letters that follow no letter in upper case, the others in lower case.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut titled = String::with_capacity(text.len());
    for letter in text.chars() {
        match inside {
            true => titled.extend(letter.to_lowercase()),
            false => titled.extend(letter.to_uppercase()),
        }
        inside = letter.is_alphabetic();
    }
    titled
}

/// JSON as Python's `json.dumps` writes it: a space after commas and colons, letters as they are.
fn to_json(state: &State, value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    options.assert_all_used()?;
    let wrong = |expected: String| Error::new(ErrorKind::InvalidOperation, format!("tojson: expected {expected}"));
    let mut writer = Fueled { state, bytes: Vec::new() };
    let done = match (indent, separators.as_deref()) {
        (None, None) => value.serialize(&mut Serializer::with_formatter(&mut writer, Spaced { item: ", ", key: ": " })),
        (None, Some([item, key])) => {
            value.serialize(&mut Serializer::with_formatter(&mut writer, Spaced { item, key }))
        }
        (Some(indent), None) if indent <= INDENT_LIMIT => {
            let spaces = [b' '; INDENT_LIMIT];
            let formatter = PrettyFormatter::with_indent(&spaces[..indent]);
            value.serialize(&mut Serializer::with_formatter(&mut writer, formatter))
        }
        (Some(_), None) => return Err(wrong(format!("an indent of at most {INDENT_LIMIT}"))),
        (_, Some(_)) => return Err(wrong("two separators, and no indent with them".to_owned())),
    };
    let bytes = writer.bytes;
    if let Err(error) = done {
        // Exhausted fuel stays exhausted and is the better message.
        state.consume_fuel(0)?;
        return Err(Error::new(ErrorKind::BadSerialization, format!("tojson: {error}")));
    }
    let text = String::from_utf8_lossy(&bytes);
    Ok(Value::from(if ascii == Some(true) { escaped(&text) } else { text.into_owned() }))
}

/// Letters beyond ASCII, which JSON has in strings only, as Python escapes them.
fn escaped(text: &str) -> String {
    let mut units = [0; 2];
    let escape = |letter: char| match letter.is_ascii() {
        true => letter.to_string(),
        false => letter.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
    };
    text.chars().map(escape).collect()
}

/// Collects bytes and pays for them as they come.
struct Fueled<'s, 't, 'e> {
    state: &'s State<'t, 'e>,
    bytes: Vec<u8>,
}

impl Write for Fueled<'_, '_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let before = self.bytes.len() / 64;
        self.bytes.extend_from_slice(bytes);
        let fuel = (self.bytes.len() / 64 - before) as u64;
        self.state.consume_fuel(fuel).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// JSON on one line.
struct Spaced<'a> {
    item: &'a str,
    key: &'a str,
}

impl Formatter for Spaced<'_> {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A point in time, in UTC, under Python's format codes without a locale.
fn strftime(format: &str, now: SystemTime) -> Result<String, Error> {
    let wrong = |detail: String| Error::new(ErrorKind::InvalidOperation, detail);
    if format.len() > DATE_FORMAT_LIMIT_BYTES {
        return Err(wrong(format!("strftime_now: expected a format of at most {DATE_FORMAT_LIMIT_BYTES} bytes")));
    }
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let weekday = ((days + 4) % 7) as usize;
    let month_name = MONTHS[month as usize - 1];
    let twelve = match hour % 12 {
        0 => 12,
        hour => hour,
    };
    let of_year = days - days_before_year(year) + 1;
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        let mut code = letters.next();
        let unpadded = code == Some('-');
        if unpadded {
            code = letters.next();
        }
        let number = |number: u64, width: usize| match unpadded {
            true => number.to_string(),
            false => format!("{number:0width$}"),
        };
        text += &match code {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('H') => number(hour, 2),
            Some('I') => number(twelve, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(of_year, 3),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => DAYS[weekday].to_owned(),
            Some('a') => DAYS[weekday][..3].to_owned(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_owned(),
            other => {
                let found = other.map_or_else(|| "an end".to_owned(), |code| format!("%{code}"));
                return Err(wrong(format!("strftime_now: expected a code such as %d, %b or %Y, found {found}")));
            }
        };
    }
    Ok(text)
}

/// Year, month and day of a day since 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    // Years that begin in March, so that the leap day is their last; 400 of them repeat (H. Hinnant, days_from_civil).
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// Days from 1970 to the first of January of a year.
fn days_before_year(year: u64) -> u64 {
    let before = year - 1;
    before * 365 + before / 4 - before / 100 + before / 400 - 719_162
}

/// The template with `{% generation %}` and `{% endgeneration %}` as a condition that always holds, white space control
/// kept.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        text.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let inner = &tag[2..end];
        let name = inner.trim_matches(['-', '+']).trim();
        match name {
            "generation" => text += &format!("{{%{}%}}", inner.replacen("generation", "if true", 1)),
            "endgeneration" => text += &format!("{{%{}%}}", inner.replacen("endgeneration", "endif", 1)),
            _ => text.push_str(&tag[..end + 2]),
        }
        rest = &tag[end + 2..];
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds: u64, format: &str| strftime(format, UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        assert_eq!(at(0, "%Y-%m-%d %H:%M:%S %a %j"), "1970-01-01 00:00:00 Thu 001");
        assert_eq!(
            at(1_709_210_096, "%d %B %Y, %A, %I:%M %p, day %j"),
            "29 February 2024, Thursday, 12:34 PM, day 060"
        );
        assert_eq!(at(1_735_689_599, "%d %b %Y %-d %y %T %j %F %%"), "31 Dec 2024 31 24 23:59:59 366 2024-12-31 %");
        assert_eq!(at(4_102_444_800, "%-d %-m %e %j %A"), "1 1  1 001 Friday");
        for format in ["%", "%-", "%Q"] {
            assert!(strftime(format, UNIX_EPOCH).is_err(), "{format}");
        }
        // Every day of 400 years follows the one before.
        let mut before = civil(0);
        for day in 1..146_097 {
            let (year, month, today) = civil(day);
            let next = today == before.2 + 1 && (year, month) == (before.0, before.1)
                || today == 1 && (month == before.1 + 1 && year == before.0 || month == 1 && year == before.0 + 1);
            assert!(next && today <= 31, "{day}");
            assert!(month > 1 || today > 1 || day == days_before_year(year), "{day}");
            before = (year, month, today);
        }
    }

    #[test]
    fn the_generation_tag_does_nothing() {
        let source = "a{%- generation -%} b {%+ endgeneration %}c{% if generation %}{{ '{%' }}";
        let expected = "a{%- if true -%} b {%+ endif %}c{% if generation %}{{ '{%' }}";
        assert_eq!(without_generation_tags(source), expected);
    }
}
