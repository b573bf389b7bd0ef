// SPDX-License-Identifier: GPL-2.0

//! Makes values for arguments and fields.

use super::{Context, Generator, HUGE_ARRAYS, PLACES};
use crate::{
    model::{Field, Type},
    program::Arg,
    regions::{self, Kind, Region},
};

/// Bytes that one command of the GPU reaches, where all of its values are as described.
const REACH: u64 = 1 << 20;

impl Generator<'_> {
    /// A value for a field. `direct`: an argument in a register.
    pub(super) fn value(&mut self, field: &Field, direct: bool, context: &mut Context) -> Arg {
        match &field.is {
            Type::Resource(kind) if field.out => {
                let slot = self.new_slot(*kind, context);
                Arg::Out { slot, size: self.model.resources[*kind].size }
            }
            is => self.value_of(is, direct, context),
        }
    }

    fn value_of(&mut self, is: &Type, direct: bool, context: &mut Context) -> Arg {
        let int = |value, size| Arg::Int { value, size, extent: 0 };
        match is {
            // Registers with a wrong constant make the call another one; that is what it is left at.
            Type::Const { size, value } => match !direct && self.goes_wrong() {
                true => int(self.odd_number(), *size),
                false => int(*value, *size),
            },
            Type::Int { size, range } => {
                if !direct && self.goes_wrong() {
                    return int(self.odd_number(), *size);
                }
                let value = match range {
                    Some((low, high)) => match (high - low).checked_add(1) {
                        Some(count) => low + self.rng.next_u64() % count,
                        None => self.rng.next_u64(),
                    },
                    None if self.rng.one_in(2) => self.odd_number(),
                    None => self.rng.next_u64(),
                };
                int(value, *size)
            }
            Type::Flags { size, values } => {
                if self.goes_wrong() {
                    let value = match self.rng.below(3) {
                        0 => values.iter().fold(0, |all, v| all | v),
                        1 => values[self.rng.below(values.len())] ^ (1 << self.rng.below(32)),
                        _ => self.odd_number(),
                    };
                    return int(value, *size);
                }
                int(values[self.rng.below(values.len())], *size)
            }
            // Filled in when its siblings are known.
            Type::Len { size, .. } => int(0, *size),
            Type::Resource(kind) => self.resource(*kind, direct, context),
            Type::Pointer { to, out, optional } => self.pointer(to, *out, *optional, context),
            Type::Array { of, low, high } => {
                let count = low + self.rng.below(high - low + 1);
                let items: Vec<_> = (0..count).map(|_| self.value_of(of, false, context)).collect();
                let mut end = 0;
                let items: Vec<_> = items
                    .into_iter()
                    .map(|arg| {
                        let at = end;
                        end += arg.size();
                        (at, arg)
                    })
                    .collect();
                Arg::Group { items, size: end, count: count as u64 }
            }
            Type::Vma { pool, low, high } => {
                let wrong = self.goes_wrong();
                let pool = if wrong { regions::any() } else { pool };
                let mut region = regions::choose(pool, &mut self.rng);
                // What all else relies on is seldom unmapped.
                if wrong && direct && region.stays() && !self.rng.one_in(4) {
                    region = regions::choose(regions::play(), &mut self.rng);
                }
                let mut count = low + self.rng.next_u64() % (high - low + 1);
                // Most are small.
                if self.rng.one_in(2) {
                    count = (*low).max(count / 16);
                }
                let (mut value, extent) = regions::pages(region, count.max(1), &mut self.rng);
                if wrong && self.rng.one_in(2) {
                    value += [1, 64, 2048][self.rng.below(3)];
                }
                Arg::Int { value, size: 8, extent }
            }
            Type::Addr { pool, align } => {
                if !direct && self.goes_wrong() {
                    let value = match self.rng.one_in(2) {
                        true => self.odd_number(),
                        false => {
                            let region = regions::choose(regions::any(), &mut self.rng);
                            region.start + self.rng.next_u64() % region.length
                        }
                    };
                    return int(value, 8);
                }
                let mut region = regions::choose(pool, &mut self.rng);
                let mut length = region.length;
                if regions::is_target(pool) {
                    match self.safe {
                        // What reaches furthest ends in the region.
                        true => (region, length) = (&regions::DATA, regions::DATA.length - REACH),
                        false => self.odd = true,
                    }
                }
                // A few places that many use.
                let places = (length / align).min(if self.rng.one_in(2) { 8 } else { 1 << 20 });
                let stride = match self.rng.one_in(2) {
                    true => *align,
                    false => (length / places / align).max(1) * align,
                };
                int(region.start + self.rng.next_u64() % places * stride, 8)
            }
            Type::Buffer { length } => {
                let mut bytes = vec![0; *length];
                if self.rng.one_in(2) {
                    for chunk in bytes.chunks_mut(8) {
                        let word = self.rng.next_u64().to_ne_bytes();
                        chunk.copy_from_slice(&word[..chunk.len()]);
                    }
                }
                Arg::Bytes(bytes)
            }
            Type::Text(choices) => {
                let mut bytes = choices[self.rng.below(choices.len())].clone().into_bytes();
                bytes.push(0);
                Arg::Bytes(bytes)
            }
            Type::Record(index) => self.record(*index, context),
        }
    }

    fn record(&mut self, index: usize, context: &mut Context) -> Arg {
        let model = self.model;
        let record = &model.records[index];
        if record.union {
            let wild = self.goes_wrong();
            let usable = |f: &&Field| wild || !f.wild;
            let total: u32 = record.fields.iter().filter(usable).map(|f| f.weight).sum();
            let mut at = self.rng.below(total.max(1) as usize) as u32;
            let mut chosen = &record.fields[0];
            for field in record.fields.iter().filter(usable) {
                chosen = field;
                if at < field.weight {
                    break;
                }
                at -= field.weight;
            }
            let arg = self.value(chosen, false, context);
            let size = match record.varlen {
                true => arg.size(),
                false => model.size(&Type::Record(index)).unwrap_or(arg.size()),
            };
            return Arg::Group { items: vec![(0, arg)], size, count: 1 };
        }
        let mut args: Vec<_> =
            record.fields.iter().map(|field| self.value(field, false, context)).collect();
        let names: Vec<_> = record.fields.iter().map(|f| f.name.as_str()).collect();
        self.fill_lengths(&record.fields, &names, &mut args);
        let mut items = Vec::new();
        let mut end = 0;
        for (field, arg) in record.fields.iter().zip(args) {
            let at = model.place(record, &field.is, end);
            end = at + arg.size();
            items.push((at, arg));
        }
        Arg::Group { items, size: model.round(record, end), count: 1 }
    }

    pub(super) fn fill_lengths(&mut self, fields: &[Field], names: &[&str], args: &mut [Arg]) {
        for (i, field) in fields.iter().enumerate() {
            let Type::Len { of, bytes, size } = &field.is else { continue };
            let Some(about) = names.iter().position(|name| name == of) else { continue };
            let mut value = length(&args[about], *bytes);
            if self.goes_wrong() {
                value = match self.rng.below(5) {
                    0 => 0,
                    1 => value.wrapping_sub(1),
                    2 => value + 1,
                    3 => value + self.rng.below(5000) as u64,
                    _ if self.without.has(HUGE_ARRAYS) => value * 2,
                    _ => [1 << 16, 20_000_000, 1 << 31, u64::MAX][self.rng.below(4)],
                };
            }
            args[i] = Arg::Int { value, size: *size, extent: 0 };
        }
    }

    fn pointer(&mut self, to: &Type, out: bool, optional: bool, context: &mut Context) -> Arg {
        if optional && self.rng.one_in(2) {
            return Arg::Pointer { address: 0, to: None };
        }
        let value = self.value_of(to, false, context);
        // Some calls are given memory that is not simple, also where all else is right.
        let odd = self.goes_wrong() || self.rng.one_in(60);
        if odd && !self.without.has(PLACES) {
            self.odd = true;
            if self.rng.one_in(8) {
                // What would have been made is not.
                value.visit(&mut |arg| {
                    if let Arg::Out { slot, .. } = arg {
                        context.made.retain(|made| made != slot);
                    }
                });
                return Arg::Pointer { address: self.odd_number(), to: None };
            }
            let region = regions::choose(regions::any(), &mut self.rng);
            // Reading is all that it can be used for, if at all.
            let region = match out && region.kind == Kind::ReadOnly && !self.rng.one_in(4) {
                true => &regions::FILE,
                false => region,
            };
            let address = match self.rng.one_in(4) {
                // Its end is not in the region any more.
                true => region.end() - (value.size() as u64).div_ceil(2).clamp(1, 1 << 12),
                false => self.take(region, value.size()),
            };
            return Arg::Pointer { address, to: Some(Box::new(value)) };
        }
        let address = self.take(&regions::ARGUMENTS, value.size());
        Arg::Pointer { address, to: Some(Box::new(value)) }
    }

    /// A place of its own in a region; when that is used up, from the start again.
    fn take(&mut self, region: &Region, size: usize) -> u64 {
        let size = (size as u64).next_multiple_of(64).min(region.length);
        let next = self.next.entry(region.start).or_insert(0);
        if *next + size > region.length {
            *next = 0;
        }
        let address = region.start + *next;
        *next += size;
        address
    }

    /// A number that is often forgotten.
    pub(super) fn odd_number(&mut self) -> u64 {
        match self.rng.below(6) {
            0 => self.rng.below(4) as u64,
            1 => 1u64.checked_shl(self.rng.below(64) as u32).unwrap_or(0),
            2 => (1u64 << self.rng.below(63)).wrapping_sub(1 + self.rng.below(2) as u64),
            3 => u64::MAX - self.rng.below(4096) as u64,
            // The kernel's.
            4 => 0xffff_8880_0000_0000 + self.rng.next_u64() % (1 << 32),
            _ => self.rng.next_u64(),
        }
    }
}

/// What `len` and `bytesize` say about a value.
pub(super) fn length(arg: &Arg, bytes: bool) -> u64 {
    match arg {
        Arg::Int { extent, .. } if *extent > 0 => *extent,
        Arg::Pointer { to: Some(to), .. } => match &**to {
            Arg::Group { count, .. } if !bytes => *count,
            other => other.size() as u64,
        },
        Arg::Pointer { to: None, .. } => 0,
        other => other.size() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_that_of_its_sibling() {
        let item = Arg::Int { value: 1, size: 4, extent: 0 };
        let group = Arg::Group { items: vec![(0, item.clone()), (4, item)], size: 8, count: 2 };
        let pointer = Arg::Pointer { address: 64, to: Some(Box::new(group)) };
        assert_eq!((length(&pointer, false), length(&pointer, true)), (2, 8));
        assert_eq!(length(&Arg::Int { value: 0, size: 8, extent: 8192 }, false), 8192);
        assert_eq!(length(&Arg::Pointer { address: 0, to: None }, false), 0);
    }
}
