//! The text dialect: statements of one line each, `field: value`, `message {` and `}`.

/// Where a text is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: expected {expected}, found {found}")]
pub struct TextError {
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// A place in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    line: usize,
    column: usize,
}

impl Position {
    /// The place behind `text`.
    fn behind(text: &str) -> Self {
        let line = text.rsplit('\n').next().unwrap_or_default();
        Self {
            line: text.matches('\n').count() + 1,
            column: line.chars().count() + 1,
        }
    }

    pub(super) fn error(self, expected: impl Into<String>, found: impl Into<String>) -> TextError {
        TextError {
            line: self.line,
            column: self.column,
            expected: expected.into(),
            found: found.into(),
        }
    }
}

/// What a statement is.
#[derive(Debug)]
pub(super) enum Statement<'t> {
    /// `field: value` or `message {`.
    Field(Field<'t>),
    /// `}`.
    Close(Position),
    /// The end of the text.
    End(Position),
}

/// A statement that begins with a name.
#[derive(Debug)]
pub(super) struct Field<'t> {
    pub(super) name: &'t str,
    at: Position,
    value: Value<'t>,
    value_at: Position,
}

#[derive(Debug)]
enum Value<'t> {
    String(String),
    Number(&'t str),
    Word(&'t str),
    Open,
}

impl Value<'_> {
    fn describe(&self) -> String {
        match self {
            Self::String(text) => quoted(text),
            Self::Number(word) | Self::Word(word) => format!("`{}`", excerpt(word)),
            Self::Open => "`{`".to_owned(),
        }
    }
}

/// A string in quotes, shortened.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", excerpt(text))
}

fn excerpt(text: &str) -> String {
    const LENGTH: usize = 80;
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl Field<'_> {
    /// The string that is the value.
    pub(super) fn string(self) -> Result<String, TextError> {
        match self.value {
            Value::String(text) => Ok(text),
            other => Err(self.value_at.error("a string in quotes", other.describe())),
        }
    }

    /// The string that is the value and keeps to a rule.
    pub(super) fn string_that(
        self,
        is: fn(&str) -> Result<(), String>,
    ) -> Result<String, TextError> {
        let at = self.value_at;
        let text = self.string()?;
        is(&text).map_err(|expected| at.error(expected, quoted(&text)))?;
        Ok(text)
    }

    /// The number that is the value; `T` is the type of the field.
    pub(super) fn number<T: TryFrom<u64>>(self) -> Result<T, TextError> {
        let wrong = |expected: &str| Err(self.value_at.error(expected, self.value.describe()));
        let Value::Number(digits) = self.value else {
            return wrong("a decimal number");
        };
        if digits.len() > 1 && digits.starts_with('0') {
            return wrong("a decimal number without leading zeros");
        }
        match digits.parse::<u64>().map(T::try_from) {
            Ok(Ok(number)) => Ok(number),
            _ if size_of::<T>() == 4 => wrong("a number of at most 32 bits"),
            _ => wrong("a number of at most 64 bits"),
        }
    }

    /// The truth value.
    pub(super) fn boolean(self) -> Result<bool, TextError> {
        match self.value {
            Value::Word("true") => Ok(true),
            Value::Word("false") => Ok(false),
            other => Err(self.value_at.error("`true` or `false`", other.describe())),
        }
    }

    /// The one of `all` that is named.
    pub(super) fn one_of<T: Copy>(
        self,
        all: &[T],
        name: fn(T) -> &'static str,
    ) -> Result<T, TextError> {
        let named = |word: &str| all.iter().copied().find(|one| name(*one) == word);
        match self.value {
            Value::Word(word) if let Some(one) = named(word) => Ok(one),
            other => {
                let names: Vec<&str> = all.iter().copied().map(name).collect();
                let expected = format!("one of {}", names.join(", "));
                Err(self.value_at.error(expected, other.describe()))
            }
        }
    }

    /// Asserts that a message begins here.
    pub(super) fn open(&self) -> Result<(), TextError> {
        match &self.value {
            Value::Open => Ok(()),
            other => {
                let expected = format!("`{{`, as {} is a message", self.name);
                Err(self.value_at.error(expected, other.describe()))
            }
        }
    }

    /// An error about the field itself.
    pub(super) fn error(&self, expected: impl Into<String>) -> TextError {
        self.at.error(expected, format!("`{}`", excerpt(self.name)))
    }
}

/// Takes a text apart.
#[derive(Debug)]
pub(super) struct Scanner<'t> {
    rest: &'t str,
    at: Position,
}

impl<'t> Scanner<'t> {
    /// A scanner at the beginning of a text of at most `limit` bytes.
    pub(super) fn new(bytes: &'t [u8], limit: usize) -> Result<Self, TextError> {
        let begin = Position { line: 1, column: 1 };
        if bytes.len() > limit {
            let expected = format!("a text of at most {limit} bytes");
            return Err(begin.error(expected, format!("{} bytes", bytes.len())));
        }
        match str::from_utf8(bytes) {
            Ok(rest) => Ok(Self { rest, at: begin }),
            Err(error) => {
                let (valid, invalid) = bytes.split_at(error.valid_up_to());
                let valid = str::from_utf8(valid).unwrap_or_default();
                let found = format!("the byte 0x{:02x}", invalid[0]);
                Err(Position::behind(valid).error("UTF-8", found))
            }
        }
    }

    /// The next statement, and its line end.
    pub(super) fn statement(&mut self) -> Result<Statement<'t>, TextError> {
        self.skip_blanks();
        while self.take_if('\n') {
            self.skip_blanks();
        }
        let at = self.at;
        let statement = match self.rest.chars().next() {
            None => return Ok(Statement::End(at)),
            Some('}') => {
                self.take();
                Statement::Close(at)
            }
            Some(letter) if is_word(letter) => Statement::Field(self.field()?),
            Some(_) => return Err(self.unexpected("a field or `}`")),
        };
        self.skip_blanks();
        if !self.take_if('\n') {
            return Err(self.unexpected("the end of the line"));
        }
        Ok(statement)
    }

    fn field(&mut self) -> Result<Field<'t>, TextError> {
        let at = self.at;
        let name = self.word();
        self.skip_blanks();
        let mut value_at = self.at;
        let value = if self.take_if('{') {
            Value::Open
        } else if self.take_if(':') {
            self.skip_blanks();
            value_at = self.at;
            self.value()?
        } else {
            return Err(self.unexpected("`:` or `{`"));
        };
        Ok(Field {
            name,
            at,
            value,
            value_at,
        })
    }

    fn value(&mut self) -> Result<Value<'t>, TextError> {
        let at = self.at;
        match self.rest.chars().next() {
            Some('"') => self.string().map(Value::String),
            Some(digit) if digit.is_ascii_digit() => {
                let word = self.word();
                if word.bytes().all(|byte| byte.is_ascii_digit()) {
                    Ok(Value::Number(word))
                } else {
                    Err(at.error("a decimal number", format!("`{}`", excerpt(word))))
                }
            }
            Some(letter) if is_word(letter) => Ok(Value::Word(self.word())),
            _ => Err(self.unexpected("a value")),
        }
    }

    /// A string in double quotes.
    fn string(&mut self) -> Result<String, TextError> {
        self.take();
        let mut text = String::new();
        let mut last_backslash = None;
        loop {
            let at = self.at;
            match self.rest.chars().next() {
                Some('"') => break,
                Some('\\') => {
                    self.take();
                    let char = self.escaped(at)?;
                    last_backslash = (char == '\\').then_some(at);
                    text.push(char);
                    continue;
                }
                Some(char) if !char.is_ascii_control() => text.push(char),
                Some(char) if char != '\n' => {
                    return Err(self.unexpected("an escape instead of a control character"));
                }
                _ => return Err(self.unexpected("`\"`, which ends the string")),
            }
            last_backslash = None;
            self.take();
        }
        // GyroidOS takes the quote behind any backslash as escaped, and reads on.
        if let Some(at) = last_backslash {
            return Err(at.error("a string that does not end in a backslash", quoted(&text)));
        }
        self.take();
        Ok(text)
    }

    /// The character that an escape stands for, whose backslash, taken already, was at `at`.
    fn escaped(&mut self, at: Position) -> Result<char, TextError> {
        let octal = |digit: char| digit.to_digit(8);
        let mut chars = self.rest.chars();
        let (char, length) = match chars.next() {
            Some('n') => ('\n', 1),
            Some('t') => ('\t', 1),
            Some('r') => ('\r', 1),
            Some(same @ ('"' | '\'' | '\\')) => (same, 1),
            Some('0') => match (chars.next().and_then(octal), chars.next().and_then(octal)) {
                (Some(0), Some(0)) => {
                    return Err(at.error("a character that is not NUL", "`\\000`"));
                }
                (Some(eights), Some(ones)) => (char::from((eights * 8 + ones) as u8), 3),
                _ => {
                    let found: String = self.rest.chars().take(3).collect();
                    let expected = "three octal digits, of which the first is 0";
                    return Err(at.error(expected, quoted(&format!("\\{found}"))));
                }
            },
            other => {
                let found: String = other.into_iter().collect();
                let expected =
                    "one of the escapes \\n \\t \\r \\\" \\' \\\\ or \\0 with two octal digits";
                return Err(at.error(expected, quoted(&format!("\\{found}"))));
            }
        };
        for _ in 0..length {
            self.take();
        }
        Ok(char)
    }

    fn word(&mut self) -> &'t str {
        let end = self.rest.find(|char| !is_word(char));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        self.at.column += word.len();
        word
    }

    fn skip_blanks(&mut self) {
        while self.take_if(' ') || self.take_if('\t') {}
    }

    fn take_if(&mut self, expected: char) -> bool {
        let is_next = self.rest.starts_with(expected);
        if is_next {
            self.take();
        }
        is_next
    }

    fn take(&mut self) {
        let mut chars = self.rest.chars();
        match chars.next() {
            Some('\n') => {
                self.at.line += 1;
                self.at.column = 1;
            }
            Some(_) => self.at.column += 1,
            None => {}
        }
        self.rest = chars.as_str();
    }

    /// An error at the next character.
    fn unexpected(&self, expected: &str) -> TextError {
        let found = match self.rest.chars().next() {
            None => "the end of the text".to_owned(),
            Some('\n') => "the end of the line".to_owned(),
            Some('\r') => "a carriage return".to_owned(),
            Some('\0') => "NUL".to_owned(),
            Some(char) if char.is_ascii_graphic() => format!("`{char}`"),
            Some(char) => format!("{char:?}"),
        };
        self.at.error(expected, found)
    }
}

fn is_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}
