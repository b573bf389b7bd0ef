// SPDX-License-Identifier: GPL-2.0

//! The names in descriptions that the kernel's headers answer for; the build script asks them.

use crate::ast::{is_constant, Argument, Definition, Number, Type};

/// Calls `found` for each constant that a definition names.
pub fn constants(definition: &Definition, found: &mut impl FnMut(&str)) {
    match definition {
        Definition::Resource { base, special, .. } => {
            in_type(base, found);
            special.iter().for_each(|n| in_number(n, found));
        }
        Definition::Flags { values, .. } => values.iter().for_each(|n| in_number(n, found)),
        Definition::Texts { .. } => {}
        Definition::Record { fields, .. } => fields.iter().for_each(|f| in_type(&f.is, found)),
        Definition::Call { arguments, .. } => arguments.iter().for_each(|f| in_type(&f.is, found)),
    }
}

fn in_number(number: &Number, found: &mut impl FnMut(&str)) {
    match number {
        Number::Literal(_) => {}
        Number::Name(name) => found(name),
        Number::Or(parts) => parts.iter().for_each(|n| in_number(n, found)),
    }
}

fn in_type(is: &Type, found: &mut impl FnMut(&str)) {
    if is_constant(&is.name) {
        found(&is.name);
    }
    for argument in &is.arguments {
        match argument {
            Argument::Type(is) => in_type(is, found),
            Argument::Number(number) => in_number(number, found),
            Argument::Range(low, high) => {
                in_number(low, found);
                in_number(high, found);
            }
            Argument::Text(_) => {}
        }
    }
}
