// SPDX-License-Identifier: GPL-2.0

//! A program: calls with all of their arguments.

use crate::{model::Model, regions};
use std::fmt;

/// A value that a call is given, in a register or in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arg {
    /// An integer. `extent`: the bytes of the memory that it is the address of.
    Int { value: u64, size: usize, extent: u64 },
    /// What an earlier call left in a slot; `default` if that call failed.
    In { slot: usize, default: u64, size: usize },
    /// Where the kernel writes what goes into a slot.
    Out { slot: usize, size: usize },
    /// The address of a value, which is put there first.
    Pointer { address: u64, to: Option<Box<Arg>> },
    /// Values at their offsets; `count` is how many elements an array has.
    Group { items: Vec<(usize, Arg)>, size: usize, count: u64 },
    /// Bytes.
    Bytes(Vec<u8>),
}

impl Arg {
    /// Its size in memory, in bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Int { size, .. } | Self::In { size, .. } | Self::Out { size, .. } => *size,
            Self::Pointer { .. } => 8,
            Self::Group { size, .. } => *size,
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    /// Calls `each` with this value and all in it.
    pub fn visit(&self, each: &mut impl FnMut(&Self)) {
        each(self);
        match self {
            Self::Group { items, .. } => items.iter().for_each(|(_, arg)| arg.visit(each)),
            Self::Pointer { to: Some(to), .. } => to.visit(each),
            _ => {}
        }
    }

    /// The same, to change them.
    pub fn visit_mut(&mut self, each: &mut impl FnMut(&mut Self)) {
        each(self);
        match self {
            Self::Group { items, .. } => items.iter_mut().for_each(|(_, arg)| arg.visit_mut(each)),
            Self::Pointer { to: Some(to), .. } => to.visit_mut(each),
            _ => {}
        }
    }
}

/// A number that may be an address in a region.
struct Address(u64);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match regions::of(self.0) {
            Some(region) => write!(f, "{}+{:#x}", region.name, self.0 - region.start),
            None => write!(f, "{:#x}", self.0),
        }
    }
}

impl fmt::Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int { value, size: 8, .. } => write!(f, "{}", Address(*value)),
            Self::Int { value, .. } => write!(f, "{value:#x}"),
            Self::In { slot, .. } => write!(f, "r{slot}"),
            Self::Out { slot, .. } => write!(f, "<r{slot}>"),
            Self::Pointer { to: None, address } => write!(f, "{}", Address(*address)),
            Self::Pointer { to: Some(to), address } => write!(f, "&({})={to}", Address(*address)),
            Self::Group { items, .. } => {
                f.write_str("{")?;
                // Zeroes at the end say nothing.
                let zero = |arg: &Self| matches!(arg, Self::Int { value: 0, .. });
                let shown = items.iter().rposition(|(_, arg)| !zero(arg)).map_or(0, |i| i + 1);
                for (i, (_, arg)) in items[..shown].iter().enumerate() {
                    write!(f, "{}{arg}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("}")
            }
            Self::Bytes(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) if bytes.iter().all(|c| *c == 0 || (32..127).contains(c)) => {
                    write!(f, "{:?}", text.trim_end_matches('\0'))
                }
                _ => write!(f, "<{} bytes>", bytes.len()),
            },
        }
    }
}

/// One call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Which, in the model.
    pub index: usize,
    pub args: Vec<Arg>,
    /// Where its result goes.
    pub result: Option<usize>,
    pub thread: usize,
    /// The call of `fuzz_fork` whose child makes this one.
    pub child_of: Option<usize>,
}

impl Call {
    /// The slots that must be filled before.
    pub fn slots_used(&self) -> Vec<usize> {
        let mut slots = Vec::new();
        for arg in &self.args {
            arg.visit(&mut |arg| {
                if let Arg::In { slot, .. } = arg {
                    slots.push(*slot);
                }
            });
        }
        slots
    }

    /// The slots that it fills.
    pub fn slots_made(&self) -> Vec<usize> {
        let mut slots: Vec<_> = self.result.into_iter().collect();
        for arg in &self.args {
            arg.visit(&mut |arg| {
                if let Arg::Out { slot, .. } = arg {
                    slots.push(*slot);
                }
            });
        }
        slots
    }
}

/// A program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    pub calls: Vec<Call>,
    /// How many slots there are.
    pub slots: usize,
    pub threads: usize,
    /// So many calls are made one after the other, before there are threads.
    pub setup: usize,
    /// It is killed after so many milliseconds.
    pub kill_after: Option<u32>,
}

impl Program {
    /// For each slot, whether a call of the program's own process fills it.
    pub fn made(&self) -> Vec<bool> {
        let mut made = vec![false; self.slots];
        for call in self.calls.iter().filter(|call| call.child_of.is_none()) {
            call.slots_made().iter().for_each(|slot| made[*slot] = true);
        }
        made
    }

    /// Leaves out all calls but those whose numbers are in `kept`. The others keep their numbers, and
    /// what they would have made is not there.
    pub fn keep(&mut self, kept: &[usize]) {
        let mut map = Vec::new();
        let mut number = 0;
        let old = std::mem::take(&mut self.calls);
        self.setup = kept.iter().filter(|i| **i < self.setup).count();
        for (i, call) in old.into_iter().enumerate() {
            let stays = kept.contains(&i);
            map.push(stays.then_some(number));
            if stays {
                number += 1;
                let child_of = call.child_of.and_then(|fork| map.get(fork).copied().flatten());
                self.calls.push(Call { child_of, ..call });
            }
        }
    }

    /// As text, one call a line.
    pub fn show(&self, model: &Model) -> String {
        use fmt::Write;
        let mut text = String::new();
        for (i, call) in self.calls.iter().enumerate() {
            let place = if i < self.setup { "-".to_owned() } else { call.thread.to_string() };
            let child = call.child_of.map_or(String::new(), |fork| format!(" (child of {fork})"));
            let _ = write!(text, "{i:3} [{place}]{child} ");
            if let Some(slot) = call.result {
                let _ = write!(text, "r{slot} = ");
            }
            let args: Vec<_> = call.args.iter().map(Arg::to_string).collect();
            let _ = writeln!(text, "{}({})", model.calls[call.index].name, args.join(", "));
        }
        if let Some(ms) = self.kill_after {
            let _ = writeln!(text, "    killed after {ms} ms");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_nobodys_child() {
        let call =
            |child_of| Call { index: 0, args: Vec::new(), result: None, thread: 0, child_of };
        let calls = vec![call(None), call(None), call(Some(1)), call(Some(0))];
        let mut program = Program { calls, slots: 0, threads: 1, setup: 2, kill_after: None };
        program.keep(&[1, 2, 3]);
        let children: Vec<_> = program.calls.iter().map(|c| c.child_of).collect();
        assert_eq!((children, program.setup), (vec![None, Some(0), None], 1));
    }
}
