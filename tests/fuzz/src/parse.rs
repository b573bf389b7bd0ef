// SPDX-License-Identifier: GPL-2.0

//! Reads descriptions, which are in the form of syzkaller's: a definition begins on a line of its
//! own, and structs and unions have one field on each line.

use crate::ast::{
    is_constant, Argument, At, Attribute, Definition, Error, Field, Number, Result, Type,
};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Name(String),
    Number(u64),
    Text(String),
    Mark(char),
}

/// All definitions of a file.
pub fn parse(file: &'static str, text: &str) -> Result<Vec<Definition>> {
    let mut lines = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let at = At { file, line: i + 1 };
        let tokens = tokens(at, line)?;
        if !tokens.is_empty() {
            lines.push((at, tokens));
        }
    }
    let mut definitions = Vec::new();
    let mut lines = lines.into_iter();
    while let Some((at, line)) = lines.next() {
        definitions.push(definition(Line::new(at, line), &mut lines)?);
    }
    Ok(definitions)
}

fn tokens(at: At, line: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '#' => break,
            ' ' | '\t' => 1,
            '"' => {
                let end =
                    rest[1..].find('"').ok_or_else(|| error(at, "a string without an end"))?;
                tokens.push(Token::Text(rest[1..=end].to_owned()));
                end + 2
            }
            '-' | '0'..='9' => {
                let length = 1 + rest[1..].bytes().take_while(u8::is_ascii_alphanumeric).count();
                let number = number(&rest[..length])
                    .ok_or_else(|| error(at, format!("{:?} is no number", &rest[..length])))?;
                tokens.push(Token::Number(number));
                length
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                let length = rest
                    .bytes()
                    .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'-'))
                    .count();
                tokens.push(Token::Name(rest[..length].to_owned()));
                length
            }
            '[' | ']' | '{' | '}' | '(' | ')' | ',' | ':' | '=' | '|' => {
                tokens.push(Token::Mark(first));
                1
            }
            c => return Err(error(at, format!("{c:?} means nothing here"))),
        };
        rest = &rest[length..];
    }
    Ok(tokens)
}

fn number(text: &str) -> Option<u64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    Some(if negative { value.wrapping_neg() } else { value })
}

fn error(at: At, what: impl Into<String>) -> Error {
    Error { at, what: what.into() }
}

/// The tokens of a line that were not read yet.
struct Line {
    at: At,
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
}

impl Line {
    fn new(at: At, tokens: Vec<Token>) -> Self {
        Self { at, tokens: tokens.into_iter().peekable() }
    }

    fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(error(self.at, what))
    }

    fn is_next(&mut self, mark: char) -> bool {
        self.tokens.peek() == Some(&Token::Mark(mark))
    }

    /// Takes the mark if it is next.
    fn take(&mut self, mark: char) -> bool {
        self.tokens.next_if_eq(&Token::Mark(mark)).is_some()
    }

    fn expect(&mut self, mark: char) -> Result<()> {
        if self.take(mark) {
            return Ok(());
        }
        match self.tokens.peek() {
            Some(other) => {
                let what = format!("{mark:?} should be where {other:?} is");
                self.fail(what)
            }
            None => self.fail(format!("{mark:?} is missing")),
        }
    }

    fn name(&mut self) -> Result<String> {
        match self.tokens.next() {
            Some(Token::Name(name)) => Ok(name),
            Some(other) => self.fail(format!("a name should be where {other:?} is")),
            None => self.fail("a name is missing"),
        }
    }

    fn end(&mut self) -> Result<()> {
        match self.tokens.next() {
            None => Ok(()),
            Some(token) => self.fail(format!("{token:?} is too much")),
        }
    }

    fn single_number(&mut self) -> Result<Number> {
        match self.tokens.next() {
            Some(Token::Number(value)) => Ok(Number::Literal(value)),
            Some(Token::Name(name)) if is_constant(&name) => Ok(Number::Name(name)),
            Some(other) => self.fail(format!("a number should be where {other:?} is")),
            None => self.fail("a number is missing"),
        }
    }

    fn number(&mut self) -> Result<Number> {
        let first = self.single_number()?;
        if !self.is_next('|') {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.take('|') {
            parts.push(self.single_number()?);
        }
        Ok(Number::Or(parts))
    }

    fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        let mut items = vec![item(self)?];
        while self.take(',') {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn argument(&mut self) -> Result<Argument> {
        let number = match self.tokens.peek() {
            Some(Token::Text(_)) => {
                let Some(Token::Text(text)) = self.tokens.next() else { unreachable!("as seen") };
                return Ok(Argument::Text(text));
            }
            Some(Token::Number(_)) => self.number()?,
            Some(Token::Name(name)) if is_constant(name) => self.number()?,
            _ => return Ok(Argument::Type(self.field_type()?)),
        };
        if self.take(':') {
            return Ok(Argument::Range(number, self.number()?));
        }
        Ok(Argument::Number(number))
    }

    fn field_type(&mut self) -> Result<Type> {
        let at = self.at;
        let name = self.name()?;
        let mut arguments = Vec::new();
        if self.take('[') {
            arguments = self.list(Self::argument)?;
            self.expect(']')?;
        }
        Ok(Type { at, name, arguments })
    }

    fn attribute(&mut self) -> Result<Attribute> {
        let name = self.name()?;
        let mut argument = None;
        if self.take('[') {
            argument = Some(self.argument()?);
            self.expect(']')?;
        }
        Ok(Attribute { name, argument })
    }

    fn attributes(&mut self, open: char, close: char) -> Result<Vec<Attribute>> {
        if !self.take(open) {
            return Ok(Vec::new());
        }
        let attributes = self.list(Self::attribute)?;
        self.expect(close)?;
        Ok(attributes)
    }

    /// A field on a line of its own.
    fn field(mut self) -> Result<Field> {
        let (at, name) = (self.at, self.name()?);
        let is = self.field_type()?;
        let attributes = self.attributes('(', ')')?;
        self.end()?;
        Ok(Field { at, name, is, attributes })
    }
}

fn definition(
    mut line: Line,
    lines: &mut impl Iterator<Item = (At, Vec<Token>)>,
) -> Result<Definition> {
    let at = line.at;
    let mut name = line.name()?;
    if name == "resource" {
        name = line.name()?;
        line.expect('[')?;
        let base = line.field_type()?;
        line.expect(']')?;
        let special = if line.take(':') { line.list(Line::number)? } else { Vec::new() };
        line.end()?;
        return Ok(Definition::Resource { at, name, base, special });
    }
    if line.take('=') {
        if let Some(Token::Text(_)) = line.tokens.peek() {
            let values = line.list(|line| match line.tokens.next() {
                Some(Token::Text(text)) => Ok(text),
                _ => line.fail("all of them must be strings"),
            })?;
            line.end()?;
            return Ok(Definition::Texts { at, name, values });
        }
        let values = line.list(Line::number)?;
        line.end()?;
        return Ok(Definition::Flags { at, name, values });
    }
    if line.take('(') {
        let mut arguments = Vec::new();
        if !line.is_next(')') {
            arguments = line.list(|line| {
                let (at, name) = (line.at, line.name()?);
                let is = line.field_type()?;
                Ok(Field { at, name, is, attributes: Vec::new() })
            })?;
        }
        line.expect(')')?;
        let result = match line.tokens.peek() {
            Some(Token::Name(_)) => Some(line.field_type()?),
            _ => None,
        };
        let attributes = line.attributes('(', ')')?;
        line.end()?;
        return Ok(Definition::Call { at, name, arguments, result, attributes });
    }
    let (union, close) = if line.take('{') {
        (false, '}')
    } else if line.take('[') {
        (true, ']')
    } else {
        return line.fail(format!("what is {name}?"));
    };
    line.end()?;
    let mut fields = Vec::new();
    for (here, tokens) in lines {
        let mut line = Line::new(here, tokens);
        if line.take(close) {
            let attributes = line.attributes('[', ']')?;
            line.end()?;
            return Ok(Definition::Record { at, name, union, fields, attributes });
        }
        fields.push(line.field()?);
    }
    Err(error(at, format!("{name} has no end")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Definition {
        let mut all = parse("test", text).unwrap();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    fn fails(text: &str) -> String {
        parse("test", text).unwrap_err().to_string()
    }

    #[test]
    fn resources_have_a_base_and_special_values() {
        let Definition::Resource { name, base, special, .. } = one("resource xe_vm[int32]: 0, -1")
        else {
            panic!("not a resource")
        };
        assert_eq!((name.as_str(), base.name.as_str()), ("xe_vm", "int32"));
        assert_eq!(special, [Number::Literal(0), Number::Literal(u64::MAX)]);
    }

    #[test]
    fn flags_are_numbers_or_strings() {
        let Definition::Flags { values, .. } = one("f = 0x10, A, A|B # comment") else {
            panic!("not flags")
        };
        let name = |n: &str| Number::Name(n.into());
        assert_eq!(
            values,
            [Number::Literal(16), name("A"), Number::Or(vec![name("A"), name("B")])]
        );
        let Definition::Texts { values, .. } = one("t = \"/a b\", \"c#\"") else {
            panic!("not texts")
        };
        assert_eq!(values, ["/a b", "c#"]);
    }

    #[test]
    fn structs_and_unions_have_fields_with_attributes() {
        let text = "s {\n\n a int32[0:7] (out)\n # nothing\n b array[ptr[in, u], 2]\n} [packed]";
        let Definition::Record { name, union, fields, attributes, at } = one(text) else {
            panic!("not a struct")
        };
        assert_eq!((name.as_str(), union, at.line), ("s", false, 1));
        assert_eq!(attributes[0].name, "packed");
        assert_eq!(fields[0].attributes[0].name, "out");
        let zero_to_7 = Argument::Range(Number::Literal(0), Number::Literal(7));
        assert_eq!(fields[0].is.arguments, [zero_to_7]);
        let Argument::Type(pointer) = &fields[1].is.arguments[0] else { panic!("not a type") };
        assert_eq!((pointer.name.as_str(), pointer.arguments.len()), ("ptr", 2));
        assert!(matches!(one("u [\n a int8\n]"), Definition::Record { union: true, .. }));
    }

    #[test]
    fn calls_have_arguments_a_result_and_attributes() {
        let text = "ioctl$A_B(fd fd_x, cmd const[A_B]) fd (weight[3], then[\"c$d\"])";
        let Definition::Call { name, arguments, result, attributes, .. } = one(text) else {
            panic!("not a call")
        };
        assert_eq!((name.as_str(), arguments.len()), ("ioctl$A_B", 2));
        assert_eq!(result.unwrap().name, "fd");
        assert_eq!(attributes[0].argument, Some(Argument::Number(Number::Literal(3))));
        assert_eq!(attributes[1].argument, Some(Argument::Text("c$d".into())));
        assert!(matches!(one("pause()"), Definition::Call { result: None, .. }));
    }

    #[test]
    fn constants_are_found_wherever_they_are() {
        let text = "r = A|B, 7\ns {\n f const[C, int32]\n g array[int8[D:9], E]\n}\nc(x flags[F]) i (w[G])";
        let mut found = Vec::new();
        for definition in parse("test", text).unwrap() {
            crate::names::constants(&definition, &mut |name| found.push(name.to_owned()));
        }
        assert_eq!(found, ["A", "B", "C", "D", "E", "F"]);
    }

    #[test]
    fn errors_name_the_line() {
        assert_eq!(fails("\n\nf ="), "test:3: a number is missing");
        assert_eq!(fails("f = 1 2"), "test:1: Number(2) is too much");
        assert_eq!(fails("f = \"a"), "test:1: a string without an end");
        assert_eq!(fails("s {\n a int32"), "test:1: s has no end");
        assert_eq!(fails("s {\n a int32[1\n}"), "test:2: ']' is missing");
        assert_eq!(fails("x"), "test:1: what is x?");
        assert_eq!(fails("f = 0xg"), "test:1: \"0xg\" is no number");
        assert_eq!(fails("f = lower"), "test:1: a number should be where Name(\"lower\") is");
        assert_eq!(fails("f = %"), "test:1: '%' means nothing here");
    }
}
