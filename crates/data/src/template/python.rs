//! What chat templates expect of Python beyond Jinja: methods of strings, dictionaries and lists, `tojson` with the options of
//! `json.dumps`, and the functions that transformers defines.

use chrono::Local;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;
use std::fmt::Write;

/// Limit on instructions per rendering: a template from an untrusted model folder must not run forever.
const FUEL: u64 = 20_000_000;

/// An environment set up as transformers sets up Jinja.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", tojson);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_test("iterable", |value: &Value| has_items(value) || value.is_undefined());
    environment.add_test("sequence", |value: &Value| has_items(value) || value.is_undefined());
    environment.set_fuel(Some(FUEL));
    Ok(environment)
}

/// Whether Python iterates over a value and measures it: strings and dictionaries too, None not.
fn has_items(value: &Value) -> bool {
    use ValueKind::{Bytes, Iterable, Map, Seq, String};
    matches!(value.kind(), Bytes | Iterable | Map | Seq | String)
}

/// The number of characters, items or keys; of something undefined, 0.
fn length(value: &Value) -> Result<usize, Error> {
    match value.len() {
        Some(length) => Ok(length),
        None if value.is_undefined() => Ok(0),
        None => Err(invalid(format!("a value of type {} has no length", value.kind()))),
    }
}

fn invalid(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(invalid(message))
}

/// The local time, formatted as by Python's `strftime`.
fn strftime_now(format: &str) -> Result<String, Error> {
    let mut text = String::new();
    let written = write!(text, "{}", Local::now().format(format));
    written.map_err(|_| invalid(format!("strftime_now doesn't know the format {format:?}")))?;
    Ok(text)
}

/// Methods that `minijinja_contrib` lacks or that take keywords; all others are its own.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (Some(text), ValueKind::String) = (value.as_str(), value.kind())
        && let Some(found) = string_method(text, name, args)?
    {
        return Ok(found);
    }
    if let (ValueKind::Map, "copy", []) = (value.kind(), name, args) {
        return Ok(value.clone());
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

fn string_method(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let strings: Vec<Option<&str>> = args.iter().map(Value::as_str).collect();
    Ok(Some(match (name, &strings[..]) {
        ("removeprefix", [Some(prefix)]) => text.strip_prefix(prefix).unwrap_or(text).into(),
        ("removesuffix", [Some(suffix)]) => text.strip_suffix(suffix).unwrap_or(text).into(),
        ("partition", [Some(separator)]) => match text.split_once(separator) {
            Some((before, after)) => texts(&[before, separator, after]),
            None => texts(&[text, "", ""]),
        },
        ("rpartition", [Some(separator)]) => match text.rsplit_once(separator) {
            Some((before, after)) => texts(&[before, separator, after]),
            None => texts(&["", "", text]),
        },
        ("split" | "rsplit", _) => split(text, name == "rsplit", args)?,
        ("casefold", []) => text.to_lowercase().into(),
        ("isdecimal", []) => (!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into(),
        _ => return Ok(None),
    }))
}

fn texts(parts: &[&str]) -> Value {
    parts.iter().map(|&part| Value::from(part)).collect()
}

/// `str.split` and `str.rsplit`, with `sep` and `maxsplit` by place or by name.
fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, most, kwargs): (Option<Value>, Option<i64>, Kwargs) =
        minijinja::value::from_args(args)?;
    let separator = match separator {
        None => kwargs.get::<Option<Value>>("sep")?,
        given => given,
    };
    let most = match most {
        None => kwargs.get::<Option<i64>>("maxsplit")?,
        given => given,
    };
    kwargs.assert_all_used()?;
    let most = most.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let separator = separator.filter(|separator| !separator.is_none());
    let parts: Vec<&str> = match &separator {
        None => split_space(text, most, from_right),
        Some(separator) => match separator.as_str() {
            None | Some("") => return Err(invalid("split needs a separator that is a text")),
            Some(separator) if from_right => {
                let mut parts: Vec<_> = text.rsplitn(most.saturating_add(1), separator).collect();
                parts.reverse();
                parts
            }
            Some(separator) => text.splitn(most.saturating_add(1), separator).collect(),
        },
    };
    Ok(texts(&parts))
}

/// Splits at runs of white space, which the part after the last split keeps.
fn split_space(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = if from_right { text.trim_end() } else { text.trim_start() };
    while !rest.is_empty() {
        let at = match from_right {
            _ if parts.len() == most => None,
            true => rest.rfind(char::is_whitespace),
            false => rest.find(char::is_whitespace),
        };
        let (part, next) = match at {
            None => (rest, ""),
            Some(at) if from_right => {
                let space = rest[at..].chars().next().map_or(1, char::len_utf8);
                (&rest[at + space..], rest[..at].trim_end())
            }
            Some(at) => (&rest[..at], rest[at..].trim_start()),
        };
        parts.push(part);
        rest = next;
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// The options of `json.dumps`.
struct Dumps {
    ensure_ascii: bool,
    indent: Option<String>,
    between_items: String,
    after_key: String,
    sort_keys: bool,
}

/// The filter `tojson` as transformers defines it: `json.dumps(value, ensure_ascii=False, indent=None, separators=None,
/// sort_keys=False)`.
fn tojson(value: &Value, options: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(invalid("tojson of something undefined"));
    }
    let option = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        let named = kwargs.get::<Option<Value>>(name)?;
        Ok(options.get(index).cloned().or(named).filter(|value| !value.is_none()))
    };
    let ensure_ascii = option(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = match option(1, "indent")? {
        None => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(spaces)) if spaces <= 64 => " ".repeat(spaces),
            _ => return Err(invalid("tojson: indent must be a text or a number up to 64")),
        }),
    };
    let separators = match option(2, "separators")? {
        None => vec![if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
        Some(pair) => pair.try_iter()?.map(|text| text.to_string()).collect(),
    };
    let Ok([between_items, after_key]) = <[String; 2]>::try_from(separators) else {
        return Err(invalid("tojson: separators must be two texts"));
    };
    let sort_keys = option(3, "sort_keys")?.is_some_and(|value| value.is_true());
    kwargs.assert_all_used()?;
    let value = serde_json::to_value(value)
        .map_err(|error| invalid("tojson can't serialise its value").with_source(error))?;
    let mut text = String::new();
    let dumps = Dumps { ensure_ascii, indent, between_items, after_key, sort_keys };
    dumps.write(&value, 0, &mut text);
    Ok(text)
}

impl Dumps {
    fn write(&self, value: &serde_json::Value, depth: usize, text: &mut String) {
        use serde_json::Value::{Array, Null, Number, Object, String};
        match value {
            Null => *text += "null",
            serde_json::Value::Bool(value) => *text += if *value { "true" } else { "false" },
            Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
                Some(float) => *text += &python_float(float),
                None => *text += &number.to_string(),
            },
            String(string) => self.string(string, text),
            Array(items) => {
                self.block(['[', ']'], items.iter(), depth, text, |item, text| {
                    self.write(item, depth + 1, text);
                });
            }
            Object(object) => {
                let mut entries: Vec<_> = object.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.block(['{', '}'], entries.into_iter(), depth, text, |(key, value), text| {
                    self.string(key, text);
                    *text += &self.after_key;
                    self.write(value, depth + 1, text);
                });
            }
        }
    }

    fn block<T>(
        &self,
        [open, close]: [char; 2],
        items: impl ExactSizeIterator<Item = T>,
        depth: usize,
        text: &mut String,
        mut write: impl FnMut(T, &mut String),
    ) {
        let empty = items.len() == 0;
        let line = |depth: usize, text: &mut String| {
            if let (Some(indent), false) = (&self.indent, empty) {
                text.push('\n');
                text.extend(std::iter::repeat_n(indent.as_str(), depth));
            }
        };
        text.push(open);
        for (index, item) in items.enumerate() {
            if index > 0 {
                *text += &self.between_items;
            }
            line(depth + 1, text);
            write(item, text);
        }
        line(depth, text);
        text.push(close);
    }

    fn string(&self, string: &str, text: &mut String) {
        let quoted = serde_json::Value::from(string).to_string();
        if !self.ensure_ascii {
            *text += &quoted;
            return;
        }
        for char in quoted.chars() {
            if matches!(char, ' '..='~') {
                text.push(char);
                continue;
            }
            for unit in char.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
}

/// A number as Python's `repr` writes it: the shortest digits, with an exponent below 10⁻⁴ and from 10¹⁶.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let exponent: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{value:?}");
    }
    let (digits, _) = scientific.split_once('e').unwrap_or((&scientific, ""));
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}
