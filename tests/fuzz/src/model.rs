// SPDX-License-Identifier: GPL-2.0

//! What the descriptions mean: names are resolved, structs laid out, and compared with those of the
//! kernel's headers.

use crate::{
    ast::{Argument, At, Attribute, Definition, Error, Number, Result},
    header,
    parse::parse,
    regions::{self, Pool},
};
use std::collections::HashMap;

/// The descriptions.
const FILES: [(&str, &str); 5] = [
    ("xe.txt", include_str!("../descriptions/xe.txt")),
    ("gpu.txt", include_str!("../descriptions/gpu.txt")),
    ("drm.txt", include_str!("../descriptions/drm.txt")),
    ("mm.txt", include_str!("../descriptions/mm.txt")),
    ("process.txt", include_str!("../descriptions/process.txt")),
];

/// A type, of so many bytes.
#[derive(Clone, Debug)]
pub enum Type {
    /// Any integer, or one of a range, its end included.
    Int { size: usize, range: Option<(u64, u64)> },
    /// This one.
    Const { size: usize, value: u64 },
    /// One of these.
    Flags { size: usize, values: Vec<u64> },
    /// How many elements, or bytes, the memory has that another field or argument is about.
    Len { size: usize, of: String, bytes: bool },
    /// What another call made.
    Resource(usize),
    /// The address of a value, or 0 if that is allowed. `out`: the kernel fills it in.
    Pointer { to: Box<Type>, out: bool, optional: bool },
    /// From `low` to `high` of them.
    Array { of: Box<Type>, low: usize, high: usize },
    /// The first address of so many pages.
    Vma { pool: Pool, low: u64, high: u64 },
    /// An aligned address.
    Addr { pool: Pool, align: u64 },
    /// So many bytes.
    Buffer { length: usize },
    /// One of these strings, with a zero behind it.
    Text(Vec<String>),
    /// A struct or union.
    Record(usize),
}

/// A field, an option of a union, or an argument.
#[derive(Clone, Debug)]
pub struct Field {
    pub name: String,
    pub is: Type,
    /// The kernel writes a resource there.
    pub out: bool,
    pub weight: u32,
    /// Seldom right: only for programs that are to go wrong.
    pub wild: bool,
}

/// A struct or union.
#[derive(Clone, Debug)]
pub struct Record {
    pub name: String,
    pub union: bool,
    /// Nothing is aligned.
    pub packed: bool,
    /// A union whose size is that of the chosen option.
    pub varlen: bool,
    pub fields: Vec<Field>,
}

/// A kind of thing that calls make and use.
#[derive(Clone, Debug)]
pub struct Resource {
    pub name: String,
    pub base: Option<usize>,
    pub size: usize,
    /// Values that name nothing.
    pub special: Vec<u64>,
}

/// A call.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: String,
    pub arguments: Vec<Field>,
    pub result: Option<usize>,
    pub weight: u32,
    pub wild: bool,
    /// What it makes is often not there: others seldom use that, and make something else for themselves.
    pub unsure: bool,
    /// What it uses is not there after it.
    pub ends: bool,
    /// The files that it uses are not open after it; without any: all of the device's are dead.
    pub ends_files: bool,
    /// What it uses may not be there after it, if its arguments are odd: a queue whose job fails.
    pub breaks: bool,
    /// What `--without` leaves out.
    pub group: Option<String>,
    /// The call that usually follows, for what this one made.
    pub then: Option<usize>,
}

impl Call {
    /// The name of the system call.
    pub fn base(&self) -> &str {
        self.name.split('$').next().unwrap_or(&self.name)
    }
}

/// All that the descriptions say.
#[derive(Debug, Default)]
pub struct Model {
    pub resources: Vec<Resource>,
    pub records: Vec<Record>,
    pub calls: Vec<Call>,
}

impl Model {
    /// Reads the descriptions, and checks them against the headers.
    pub fn load() -> Result<Self> {
        let mut definitions = Vec::new();
        for (name, text) in FILES {
            definitions.extend(parse(name, text)?);
        }
        let model = Builder::new(&definitions)?.build(&definitions)?;
        model.check_layouts(&definitions, header::STRUCTS)?;
        Ok(model)
    }

    /// The call of a name.
    pub fn call(&self, name: &str) -> Option<usize> {
        self.calls.iter().position(|c| c.name == name)
    }

    /// Whether what is of kind `is` can be used as `wanted`.
    pub fn is_kind(&self, mut is: usize, wanted: usize) -> bool {
        loop {
            if is == wanted {
                return true;
            }
            match self.resources[is].base {
                Some(base) => is = base,
                None => return false,
            }
        }
    }

    /// The size in bytes; nothing if it is not always the same.
    pub fn size(&self, is: &Type) -> Option<usize> {
        Some(match is {
            Type::Int { size, .. }
            | Type::Const { size, .. }
            | Type::Flags { size, .. }
            | Type::Len { size, .. } => *size,
            Type::Resource(kind) => self.resources[*kind].size,
            Type::Pointer { .. } | Type::Vma { .. } | Type::Addr { .. } => 8,
            Type::Array { of, low, high } if low == high => self.size(of)? * low,
            Type::Array { .. } | Type::Text(_) => return None,
            Type::Buffer { length } => *length,
            Type::Record(index) => {
                let record = &self.records[*index];
                if record.varlen {
                    return None;
                }
                let mut end = 0;
                for field in &record.fields {
                    let size = self.size(&field.is)?;
                    end = match record.union {
                        true => end.max(size),
                        false => self.place(record, &field.is, end) + size,
                    };
                }
                self.round(record, end)
            }
        })
    }

    /// The alignment in bytes.
    pub fn align(&self, is: &Type) -> usize {
        match is {
            Type::Array { of, .. } => self.align(of),
            Type::Record(index) => self.record_align(&self.records[*index]),
            Type::Buffer { .. } | Type::Text(_) => 1,
            _ => self.size(is).unwrap_or(1),
        }
    }

    fn record_align(&self, record: &Record) -> usize {
        match record.packed {
            true => 1,
            false => record.fields.iter().map(|f| self.align(&f.is)).max().unwrap_or(1),
        }
    }

    /// Where a field begins in a struct if what is before it ends at `end`.
    pub fn place(&self, record: &Record, is: &Type, end: usize) -> usize {
        match record.packed {
            true => end,
            false => end.next_multiple_of(self.align(is)),
        }
    }

    /// The size of a struct whose last field ends at `end`.
    pub fn round(&self, record: &Record, end: usize) -> usize {
        end.next_multiple_of(self.record_align(record))
    }

    fn check_layouts(&self, definitions: &[Definition], structs: &[header::Struct]) -> Result<()> {
        for c in structs {
            let definition = definitions.iter().find(|d| d.name() == c.name);
            let record = self.records.iter().position(|r| r.name == c.name);
            let (Some(definition), Some(record)) = (definition, record) else { continue };
            let fail = |what| Err(Error { at: definition.at(), what });
            let size = self.size(&Type::Record(record)).map_or(0, |size| size as u64);
            if size != c.size {
                return fail(format!("{} has {size} bytes, in the header {}", c.name, c.size));
            }
            let record = &self.records[record];
            let mut end = 0;
            for field in &record.fields {
                let offset = if record.union { 0 } else { self.place(record, &field.is, end) };
                let size = self.size(&field.is).unwrap_or(0);
                end = offset + size;
                if let Some((_, at, bytes)) = c.fields.iter().find(|(name, ..)| *name == field.name)
                {
                    if (*at, *bytes) != (offset as u64, size as u64) {
                        return fail(format!(
                            "{}.{} has {size} bytes at {offset}, in the header {bytes} at {at}",
                            c.name, field.name
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Resolves names.
struct Builder {
    constants: HashMap<&'static str, u64>,
    names: HashMap<String, Named>,
    model: Model,
}

#[derive(Clone, Debug)]
enum Named {
    Resource(usize),
    Record(usize),
    Flags(Vec<u64>),
    Texts(Vec<String>),
    Call(usize),
}

fn fail<T>(at: At, what: impl Into<String>) -> Result<T> {
    Err(Error { at, what: what.into() })
}

impl Builder {
    /// Gives every name its place.
    fn new(definitions: &[Definition]) -> Result<Self> {
        let mut this = Self {
            constants: header::CONSTANTS.iter().copied().collect(),
            names: HashMap::new(),
            model: Model::default(),
        };
        let (mut resources, mut records, mut calls) = (0, 0, 0);
        let next = |count: &mut usize| {
            *count += 1;
            *count - 1
        };
        for definition in definitions {
            let at = definition.at();
            let named = match definition {
                Definition::Resource { .. } => Named::Resource(next(&mut resources)),
                Definition::Record { .. } => Named::Record(next(&mut records)),
                Definition::Call { .. } => Named::Call(next(&mut calls)),
                Definition::Texts { values, .. } => Named::Texts(values.clone()),
                Definition::Flags { values, .. } => {
                    Named::Flags(values.iter().map(|n| this.number(at, n)).collect::<Result<_>>()?)
                }
            };
            if this.names.insert(definition.name().to_owned(), named).is_some() {
                return fail(at, format!("{} is defined twice", definition.name()));
            }
        }
        Ok(this)
    }

    fn build(mut self, definitions: &[Definition]) -> Result<Model> {
        for definition in definitions {
            match definition {
                Definition::Resource { at, name, base, special } => {
                    let (base, size) = match self.names.get(&base.name) {
                        Some(Named::Resource(base)) if *base < self.model.resources.len() => {
                            (Some(*base), self.model.resources[*base].size)
                        }
                        _ => match int_size(&base.name) {
                            Some(size) => (None, size),
                            None => return fail(*at, format!("{} is no resource", base.name)),
                        },
                    };
                    let mut special =
                        special.iter().map(|n| self.number(*at, n)).collect::<Result<Vec<_>>>()?;
                    if let (true, Some(base)) = (special.is_empty(), base) {
                        special.clone_from(&self.model.resources[base].special);
                    }
                    if special.is_empty() {
                        special.push(0);
                    }
                    let name = name.clone();
                    self.model.resources.push(Resource { name, base, size, special });
                }
                Definition::Record { at, name, union, fields, attributes } => {
                    if fields.is_empty() {
                        return fail(*at, format!("{name} is empty"));
                    }
                    let fields =
                        fields.iter().map(|f| self.field(f)).collect::<Result<Vec<_>>>()?;
                    let has = |wanted| attributes.iter().any(|a: &Attribute| a.name == wanted);
                    self.model.records.push(Record {
                        name: name.clone(),
                        union: *union,
                        packed: has("packed"),
                        varlen: has("varlen"),
                        fields,
                    });
                }
                Definition::Call { at, name, arguments, result, attributes } => {
                    let mut call = Call {
                        name: name.clone(),
                        arguments: arguments
                            .iter()
                            .map(|f| self.field(f))
                            .collect::<Result<Vec<_>>>()?,
                        result: None,
                        weight: 1,
                        wild: false,
                        unsure: false,
                        ends: false,
                        ends_files: false,
                        breaks: false,
                        group: None,
                        then: None,
                    };
                    if let Some(result) = result {
                        match self.names.get(&result.name) {
                            Some(Named::Resource(kind)) => call.result = Some(*kind),
                            _ => return fail(*at, format!("{} is no resource", result.name)),
                        }
                    }
                    for attribute in attributes {
                        match (attribute.name.as_str(), &attribute.argument) {
                            ("weight", Some(Argument::Number(n))) => {
                                call.weight = self.number(*at, n)? as u32;
                            }
                            ("wild", None) => call.wild = true,
                            ("unsure", None) => call.unsure = true,
                            ("ends", None) => call.ends = true,
                            ("ends-files", None) => call.ends_files = true,
                            ("breaks", None) => call.breaks = true,
                            ("group", Some(Argument::Text(text))) => {
                                call.group = Some(text.clone())
                            }
                            ("then", Some(Argument::Text(text))) => match self.names.get(text) {
                                Some(Named::Call(index)) => call.then = Some(*index),
                                _ => return fail(*at, format!("{text} is no call")),
                            },
                            (other, _) => return fail(*at, format!("what is {other}?")),
                        }
                    }
                    self.model.calls.push(call);
                }
                Definition::Flags { .. } | Definition::Texts { .. } => {}
            }
        }
        self.check_recursion(definitions)?;
        Ok(self.model)
    }

    /// No struct may be inside of itself; behind a pointer neither, as a value would have no end.
    fn check_recursion(&self, definitions: &[Definition]) -> Result<()> {
        fn visit(model: &Model, is: &Type, depth: usize) -> bool {
            depth < 32
                && match is {
                    Type::Pointer { to, .. } => visit(model, to, depth + 1),
                    Type::Array { of, .. } => visit(model, of, depth + 1),
                    Type::Record(index) => {
                        model.records[*index].fields.iter().all(|f| visit(model, &f.is, depth + 1))
                    }
                    _ => true,
                }
        }
        for (index, record) in self.model.records.iter().enumerate() {
            if !visit(&self.model, &Type::Record(index), 0) {
                let at = definitions.iter().find(|d| d.name() == record.name).map(Definition::at);
                return fail(
                    at.unwrap_or(At { file: "", line: 0 }),
                    format!("{} is inside of itself", record.name),
                );
            }
        }
        Ok(())
    }

    fn number(&self, at: At, number: &Number) -> Result<u64> {
        match number {
            Number::Literal(value) => Ok(*value),
            Number::Name(name) => match self.constants.get(name.as_str()) {
                Some(value) => Ok(*value),
                None => fail(at, format!("no header has {name}")),
            },
            Number::Or(parts) => {
                parts.iter().try_fold(0, |sum, part| Ok(sum | self.number(at, part)?))
            }
        }
    }

    fn field(&self, field: &crate::ast::Field) -> Result<Field> {
        let mut result = Field {
            name: field.name.clone(),
            is: self.resolve(&field.is)?,
            out: false,
            weight: 1,
            wild: false,
        };
        for attribute in &field.attributes {
            match (attribute.name.as_str(), &attribute.argument) {
                ("out", None) if matches!(result.is, Type::Resource(_)) => result.out = true,
                ("wild", None) => result.wild = true,
                ("weight", Some(Argument::Number(n))) => {
                    result.weight = self.number(field.at, n)? as u32;
                }
                (other, _) => return fail(field.at, format!("what is {other}?")),
            }
        }
        Ok(result)
    }

    fn resolve(&self, is: &crate::ast::Type) -> Result<Type> {
        let at = is.at;
        let arguments = is.arguments.as_slice();
        if let Some(size) = int_size(&is.name) {
            return match arguments {
                [] => Ok(Type::Int { size, range: None }),
                [Argument::Range(low, high)] => {
                    let range = (self.number(at, low)?, self.number(at, high)?);
                    if range.0 > range.1 {
                        return fail(at, "the range is empty");
                    }
                    Ok(Type::Int { size, range: Some(range) })
                }
                _ => fail(at, "an integer has nothing but a range"),
            };
        }
        let size = |argument: Option<&Argument>| match argument {
            None => Ok(8),
            Some(Argument::Type(is)) if int_size(&is.name).is_some() => {
                Ok(int_size(&is.name).unwrap_or(8))
            }
            Some(_) => fail(at, "an integer's type should be last"),
        };
        let count = |argument: &Argument| match argument {
            Argument::Number(n) => self.number(at, n).map(|n| (n, n)),
            Argument::Range(low, high) => Ok((self.number(at, low)?, self.number(at, high)?)),
            _ => fail(at, "a number or a range should be here"),
        };
        match (is.name.as_str(), arguments) {
            ("const", [Argument::Number(n), rest @ ..]) => {
                Ok(Type::Const { value: self.number(at, n)?, size: size(rest.first())? })
            }
            ("flags", [Argument::Type(name), rest @ ..]) => match self.names.get(&name.name) {
                Some(Named::Flags(values)) => {
                    Ok(Type::Flags { values: values.clone(), size: size(rest.first())? })
                }
                _ => fail(at, format!("{} are no flags", name.name)),
            },
            ("len" | "bytesize", [Argument::Type(of), rest @ ..]) => Ok(Type::Len {
                of: of.name.clone(),
                size: size(rest.first())?,
                bytes: is.name == "bytesize",
            }),
            ("ptr", [Argument::Type(direction), Argument::Type(to), rest @ ..]) => {
                let optional = match rest {
                    [] => false,
                    [Argument::Type(opt)] if opt.name == "opt" => true,
                    _ => return fail(at, "what is after the type?"),
                };
                let out = match direction.name.as_str() {
                    "in" => false,
                    "out" | "inout" => true,
                    other => return fail(at, format!("{other} is no direction")),
                };
                Ok(Type::Pointer { to: Box::new(self.resolve(to)?), out, optional })
            }
            ("array", [Argument::Type(of), range]) => {
                let (low, high) = count(range)?;
                let of = Box::new(self.resolve(of)?);
                Ok(Type::Array { of, low: low as usize, high: high as usize })
            }
            ("vma", [Argument::Type(pool), range]) => match regions::pool(&pool.name) {
                Some(pool) => {
                    let (low, high) = count(range)?;
                    Ok(Type::Vma { pool, low, high })
                }
                None => fail(at, format!("{} is no region", pool.name)),
            },
            ("addr", [Argument::Type(pool), Argument::Number(align)]) => {
                match regions::pool(&pool.name) {
                    Some(pool) => Ok(Type::Addr { pool, align: self.number(at, align)?.max(1) }),
                    None => fail(at, format!("{} is no region", pool.name)),
                }
            }
            ("buffer", [Argument::Number(n)]) => {
                Ok(Type::Buffer { length: self.number(at, n)? as usize })
            }
            ("text", [Argument::Text(text)]) => Ok(Type::Text(vec![text.clone()])),
            ("text", [Argument::Type(name)]) => match self.names.get(&name.name) {
                Some(Named::Texts(values)) => Ok(Type::Text(values.clone())),
                _ => fail(at, format!("{} are no strings", name.name)),
            },
            (name, []) => match self.names.get(name) {
                Some(Named::Resource(kind)) => Ok(Type::Resource(*kind)),
                Some(Named::Record(index)) => Ok(Type::Record(*index)),
                _ => fail(at, format!("what is {name}?")),
            },
            (name, _) => fail(at, format!("{name} has other things in its brackets")),
        }
    }
}

fn int_size(name: &str) -> Option<usize> {
    match name {
        "int8" => Some(1),
        "int16" => Some(2),
        "int32" => Some(4),
        "int64" => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &'static str) -> Result<Model> {
        let definitions = parse("test", text)?;
        Builder::new(&definitions)?.build(&definitions)
    }

    fn size(text: &'static str, name: &str) -> Option<usize> {
        let model = model(text).unwrap();
        let index = model.records.iter().position(|r| r.name == name).unwrap();
        model.size(&Type::Record(index))
    }

    #[test]
    fn the_descriptions_are_those_of_the_kernel() {
        let model = Model::load().unwrap_or_else(|e| panic!("{e}"));
        // All ioctls of the driver.
        let mut numbers: Vec<_> = model
            .calls
            .iter()
            .filter(|c| c.name.starts_with("ioctl$XE_"))
            .filter_map(|c| match c.arguments[1].is {
                Type::Const { value, .. } => Some(value & 0xff),
                _ => None,
            })
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers, (0x40..0x50).collect::<Vec<_>>());
    }

    #[test]
    fn structs_are_laid_out_as_in_c() {
        assert_eq!(size("s {\n a int8\n b int32\n c int16\n d int64\n}", "s"), Some(24));
        assert_eq!(size("s {\n a int8\n b int32\n} [packed]", "s"), Some(5));
        assert_eq!(size("u [\n a int8\n b int32\n c array[int8, 6]\n]", "u"), Some(8));
        assert_eq!(size("u [\n a int8\n b int32\n] [varlen]", "u"), None);
        assert_eq!(size("s {\n a ptr[in, t]\n b t\n}\nt {\n a array[int16, 3]\n}", "s"), Some(16));
        assert_eq!(size("s {\n a array[int8, 1:2]\n}", "s"), None);
    }

    #[test]
    fn a_layout_that_lies_is_found() {
        let text = "s {\n a int32\n b int32\n}";
        let definitions = parse("test", text).unwrap();
        let model = Builder::new(&definitions).unwrap().build(&definitions).unwrap();
        let check = |size, offset, bytes| {
            let fields: &'static [_] = vec![("b", offset, bytes)].leak();
            model.check_layouts(&definitions, &[header::Struct { name: "s", size, fields }])
        };
        assert!(check(8, 4, 4).is_ok());
        assert_eq!(check(16, 4, 4).unwrap_err().what, "s has 8 bytes, in the header 16");
        let wrong = "s.b has 4 bytes at 4, in the header 4 at 8";
        assert_eq!(check(8, 8, 4).unwrap_err().what, wrong);
        assert!(check(8, 4, 8).is_err());
    }

    #[test]
    fn resources_have_bases() {
        let model = model("resource fd[int32]: -1\nresource xe[fd]\nresource vm[int32]").unwrap();
        assert!(model.is_kind(1, 0) && !model.is_kind(0, 1) && !model.is_kind(2, 0));
        assert_eq!(model.resources[1].special, [u64::MAX]);
        assert_eq!(model.resources[2].special, [0]);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let fails = |text| model(text).unwrap_err().to_string();
        assert_eq!(fails("s {\n a what\n}"), "test:2: what is what?");
        assert_eq!(fails("f = NOT_A_CONSTANT"), "test:1: no header has NOT_A_CONSTANT");
        assert_eq!(fails("c(a flags[f])"), "test:1: f are no flags");
        assert_eq!(fails("c(a vma[sky, 1])"), "test:1: sky is no region");
        assert_eq!(fails("c() r"), "test:1: r is no resource");
        assert_eq!(fails("c() (then[\"d\"])"), "test:1: d is no call");
        assert_eq!(fails("c()\nc()"), "test:2: c is defined twice");
        assert_eq!(fails("s {\n a ptr[in, s]\n}"), "test:1: s is inside of itself");
        assert_eq!(fails("c(a int32[2:1])"), "test:1: the range is empty");
    }
}
