// SPDX-License-Identifier: GPL-2.0

//! What a description says, before names have a meaning. The build script reads it as well.

use std::fmt;

/// Where something is: the file and the line in it, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub file: &'static str,
    pub line: usize,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What is wrong with a description, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub at: At,
    pub what: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// A number: a literal, the names of the headers, or several with `|` between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Number {
    Literal(u64),
    Name(String),
    Or(Vec<Number>),
}

/// What stands in the brackets of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// A type, or a lone name, which may be that of a number.
    Type(Type),
    /// A number that cannot be a type.
    Number(Number),
    /// `lo:hi`.
    Range(Number, Number),
    /// A string.
    Text(String),
}

/// `name` or `name[argument, …]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    pub at: At,
    pub name: String,
    pub arguments: Vec<Argument>,
}

/// `name` or `name[argument]`, in the parentheses after a field or a call, or in the brackets after
/// a struct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    pub name: String,
    pub argument: Option<Argument>,
}

/// A field of a struct, an option of a union, or an argument of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub at: At,
    pub name: String,
    pub is: Type,
    pub attributes: Vec<Attribute>,
}

/// One definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Definition {
    /// `resource name[base]: special, …`
    Resource { at: At, name: String, base: Type, special: Vec<Number> },
    /// `name = number, …`
    Flags { at: At, name: String, values: Vec<Number> },
    /// `name = "text", …`
    Texts { at: At, name: String, values: Vec<String> },
    /// `name { fields }`, or `name [ options ]`.
    Record { at: At, name: String, union: bool, fields: Vec<Field>, attributes: Vec<Attribute> },
    /// `name$variant(arguments) result (attributes)`
    Call {
        at: At,
        name: String,
        arguments: Vec<Field>,
        result: Option<Type>,
        attributes: Vec<Attribute>,
    },
}

impl Definition {
    /// Where it is.
    pub fn at(&self) -> At {
        match self {
            Self::Resource { at, .. }
            | Self::Flags { at, .. }
            | Self::Texts { at, .. }
            | Self::Record { at, .. }
            | Self::Call { at, .. } => *at,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Resource { name, .. }
            | Self::Flags { name, .. }
            | Self::Texts { name, .. }
            | Self::Record { name, .. }
            | Self::Call { name, .. } => name,
        }
    }
}

/// Whether a name is one of the C headers' constants: those are in capitals.
pub fn is_constant(name: &str) -> bool {
    name.bytes().next().is_some_and(|c| c.is_ascii_uppercase())
}
