// SPDX-License-Identifier: GPL-2.0

//! Makes programs of a seed: calls, each with what it needs made before it.

use crate::{
    id::Id,
    model::{Field, Model, Type},
    program::{Arg, Call, Program},
    regions::{self, Kind, Region},
};
use std::collections::{HashMap, HashSet};
use vxe_igt::Rng;

/// Groups of calls and combinations that are left out: the names that `--without` takes.
#[derive(Clone, Debug, Default)]
pub struct Without(pub HashSet<String>);

/// A fork of a process that has huge pages.
pub const FORK_THP: &str = "fork-thp";
/// Numbers of elements in the millions.
pub const HUGE_ARRAYS: &str = "huge-arrays";
/// Places for arguments that are not simple memory.
pub const PLACES: &str = "places";

impl Without {
    fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// The program of an id.
pub fn program(model: &Model, id: &Id, without: &Without) -> Program {
    let mut generator = Generator::new(model, Rng::new(id.first()), without);
    generator.whole();
    for mutation in &id.mutations {
        generator.rng = Rng::new(u64::from(*mutation));
        generator.mutate();
    }
    generator.program
}

/// How deep calls are made for others that need them.
const MAX_DEPTH: usize = 5;
/// Calls that a program has no more of.
const MAX_CALLS: usize = 80;
const MAX_THREADS: usize = 4;

/// What a call made.
#[derive(Clone, Debug)]
struct Slot {
    kind: usize,
    /// The slot of the file that it belongs to.
    owner: Option<usize>,
    /// The call is there: what it needs itself must be made of other things.
    ready: bool,
    /// The call often fails.
    unsure: bool,
}

struct Generator<'a> {
    model: &'a Model,
    without: &'a Without,
    rng: Rng,
    program: Program,
    slots: Vec<Slot>,
    /// Where the next argument of a region goes.
    next: HashMap<u64, u64>,
    /// How many values in a thousand are wrong.
    wild: usize,
    /// Groups that are left out of this program.
    left_out: HashSet<String>,
    thread: usize,
    depth: usize,
}

/// What the arguments of one call have in common.
#[derive(Default)]
struct Context {
    /// The file that it is made on.
    owner: Option<usize>,
    /// What it must use if it fits.
    use_first: Vec<usize>,
    /// The numbers of slots that it fills.
    made: Vec<usize>,
}

impl<'a> Generator<'a> {
    fn new(model: &'a Model, mut rng: Rng, without: &'a Without) -> Self {
        let wild = [2, 2, 5, 20, 60][rng.below(5)];
        let mut left_out = without.0.clone();
        if without.has(FORK_THP) {
            left_out.insert(if rng.one_in(2) { "fork" } else { "thp" }.to_owned());
        }
        Self {
            model,
            without,
            rng,
            program: Program { threads: 1, ..Program::default() },
            slots: Vec::new(),
            next: HashMap::new(),
            wild,
            left_out,
            thread: 0,
            depth: 0,
        }
    }

    fn whole(&mut self) {
        let setup = 2 + self.rng.below(6);
        // What nearly every program needs.
        if let Some(exec) = self.model.call("ioctl$XE_EXEC") {
            self.call(exec, Context::default());
        }
        self.some_calls(setup);
        self.program.setup = self.program.calls.len();
        self.program.threads = 1 + self.rng.below(MAX_THREADS);
        let more = 8 + self.rng.below(24);
        self.some_calls(more);
        if self.rng.one_in(5) {
            self.program.kill_after = Some(1 + self.rng.below(400) as u32);
        }
    }

    fn some_calls(&mut self, count: usize) {
        for _ in 0..count {
            if self.program.calls.len() >= MAX_CALLS {
                return;
            }
            self.thread = self.rng.below(self.program.threads);
            let index = self.any_call();
            self.call(index, Context::default());
        }
    }

    /// Changes the program in one way or another.
    fn mutate(&mut self) {
        match self.rng.below(4) {
            0 => {
                let count = 1 + self.rng.below(8);
                self.some_calls(count);
            }
            1 => {
                let kept: Vec<_> =
                    (0..self.program.calls.len()).filter(|_| !self.rng.one_in(6)).collect();
                self.program.keep(&kept);
            }
            2 => {
                // Again, at the same time as others.
                for _ in 0..1 + self.rng.below(4) {
                    let count = self.program.calls.len();
                    if count == 0 || count >= MAX_CALLS {
                        break;
                    }
                    let mut call = self.program.calls[self.rng.below(count)].clone();
                    call.child_of = None;
                    call.thread = self.rng.below(self.program.threads);
                    self.program.calls.push(call);
                }
            }
            _ => {
                for _ in 0..1 + self.rng.below(3) {
                    self.change_a_number();
                }
            }
        }
    }

    fn change_a_number(&mut self) {
        let count = self.program.calls.len();
        if count == 0 {
            return;
        }
        let call = self.rng.below(count);
        // The direct arguments of system calls say which memory they change.
        let is_number = |arg: &Arg| matches!(arg, Arg::Int { extent: 0, .. });
        let mut numbers = 0;
        for arg in &self.program.calls[call].args {
            if let Arg::Pointer { to: Some(to), .. } = arg {
                to.visit(&mut |arg| numbers += usize::from(is_number(arg)));
            }
        }
        if numbers == 0 {
            return;
        }
        let mut wanted = self.rng.below(numbers) as isize;
        let other = self.odd_number();
        let flip = self.rng.one_in(2).then(|| self.rng.below(32));
        for arg in &mut self.program.calls[call].args {
            let Arg::Pointer { to: Some(to), .. } = arg else { continue };
            to.visit_mut(&mut |arg| {
                if let Arg::Int { value, extent: 0, .. } = arg {
                    if wanted == 0 {
                        *value = flip.map_or(other, |bit| *value ^ (1 << bit));
                    }
                    wanted -= 1;
                }
            });
        }
    }

    /// Whether this value is to be wrong.
    fn goes_wrong(&mut self) -> bool {
        self.rng.below(1000) < self.wild
    }

    fn allows(&self, index: usize) -> bool {
        let call = &self.model.calls[index];
        call.group.as_ref().is_none_or(|group| !self.left_out.contains(group))
    }

    fn any_call(&mut self) -> usize {
        let wild = self.rng.below(100) < self.wild;
        let weight = |this: &Self, index: usize| {
            let call = &this.model.calls[index];
            match this.allows(index) && (wild || !call.wild) {
                true => call.weight as usize,
                false => 0,
            }
        };
        let total: usize = (0..self.model.calls.len()).map(|i| weight(self, i)).sum();
        let mut at = self.rng.below(total);
        for index in 0..self.model.calls.len() {
            let weight = weight(self, index);
            if at < weight {
                return index;
            }
            at -= weight;
        }
        unreachable!("the weights add up to more than any number below their sum")
    }

    /// Adds a call, after those that make what it needs; gives the slots that it fills.
    fn call(&mut self, index: usize, mut context: Context) -> Vec<usize> {
        self.depth += 1;
        let call = &self.model.calls[index];
        let mut args = Vec::new();
        for field in &call.arguments {
            args.push(self.value(field, true, &mut context));
        }
        let named: Vec<_> = call.arguments.iter().map(|f| f.name.as_str()).collect();
        self.fill_lengths(&call.arguments, &named, &mut args);
        let result = call.result.map(|kind| self.new_slot(kind, &mut context));
        let number = self.program.calls.len();
        self.program.calls.push(Call { index, args, result, thread: self.thread, child_of: None });
        let made = std::mem::take(&mut context.made);
        for slot in &made {
            self.slots[*slot].ready = true;
            self.slots[*slot].unsure = call.unsure || call.wild;
        }
        if let Some(then) = call.then {
            if self.depth < MAX_DEPTH && !self.goes_wrong() {
                let mut use_first = made.clone();
                use_first.extend(context.use_first.iter().copied());
                self.call(then, Context { owner: context.owner, use_first, made: Vec::new() });
            }
        }
        if call.base() == "fuzz_fork" && self.depth == 1 {
            self.children(number);
        }
        self.depth -= 1;
        made
    }

    /// The calls that the child of a fork makes.
    fn children(&mut self, fork: usize) {
        let count = match self.program.calls[fork].args.first() {
            Some(Arg::Int { value, .. }) => (*value).min(6) as usize,
            _ => 1,
        };
        let first = self.program.calls.len();
        for _ in 0..count {
            let index = self.any_call();
            // A child that forks would leave its own children behind.
            if self.model.calls[index].base() != "fuzz_fork" {
                self.call(index, Context::default());
            }
        }
        for call in &mut self.program.calls[first..] {
            call.child_of = Some(fork);
        }
    }

    fn new_slot(&mut self, kind: usize, context: &mut Context) -> usize {
        let slot = self.program.slots;
        self.program.slots += 1;
        // Descriptors belong to the process, all else to a file of the device.
        let owner = context.owner.filter(|_| !self.is_descriptor(kind));
        self.slots.push(Slot { kind, owner, ready: false, unsure: false });
        context.made.push(slot);
        slot
    }

    /// A value for a field. `direct`: an argument in a register.
    fn value(&mut self, field: &Field, direct: bool, context: &mut Context) -> Arg {
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
                let region = regions::choose(pool, &mut self.rng);
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
                let region = regions::choose(pool, &mut self.rng);
                // A few places that many use.
                let places =
                    (region.length / align).min(if self.rng.one_in(2) { 8 } else { 1 << 20 });
                let stride = match self.rng.one_in(2) {
                    true => *align,
                    false => (region.length / places / align).max(1) * align,
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

    fn fill_lengths(&mut self, fields: &[Field], names: &[&str], args: &mut [Arg]) {
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

    fn resource(&mut self, kind: usize, direct: bool, context: &mut Context) -> Arg {
        let resource = &self.model.resources[kind];
        let (size, special) =
            (resource.size, resource.special[self.rng.below(resource.special.len())]);
        let wrong = self.goes_wrong();
        if wrong {
            // A small number may be the name of something.
            if self.rng.one_in(2) {
                return Arg::Int { value: special, size, extent: 0 };
            }
            if self.rng.one_in(2) {
                return Arg::Int { value: self.rng.below(12) as u64, size, extent: 0 };
            }
            let ready: Vec<_> = (0..self.slots.len()).filter(|i| self.slots[*i].ready).collect();
            if ready.is_empty() {
                return Arg::Int { value: special, size, extent: 0 };
            }
            let slot = ready[self.rng.below(ready.len())];
            return Arg::In { slot, default: special, size };
        }
        // The file that the call is made on; others in its arguments may be any.
        if let (true, true, Some(owner)) = (direct, self.is_file(kind), context.owner) {
            return Arg::In { slot: owner, default: special, size };
        }
        let fits = |i: &usize| {
            let slot = &self.slots[*i];
            slot.ready
                && self.model.is_kind(slot.kind, kind)
                && (context.owner.is_none() || slot.owner.is_none() || slot.owner == context.owner)
        };
        let first = context.use_first.iter().copied().find(fits);
        let unsure = self.rng.one_in(20);
        let all: Vec<_> = (0..self.slots.len())
            .filter(fits)
            .filter(|i| self.slots[*i].unsure == unsure)
            .collect();
        let slot = match first {
            Some(slot) => Some(slot),
            None if all.is_empty() || self.rng.one_in(12) => self.make(kind, context),
            // The latest ones are most likely alive.
            None if self.rng.below(3) > 0 => all.last().copied(),
            None => Some(all[self.rng.below(all.len())]),
        };
        let slot = slot.or_else(|| all.last().copied());
        let Some(slot) = slot else { return Arg::Int { value: special, size, extent: 0 } };
        if direct && context.owner.is_none() && self.is_file(kind) {
            context.owner = Some(slot);
        }
        Arg::In { slot, default: special, size }
    }

    /// Whether other things belong to what is of this kind.
    fn is_file(&self, kind: usize) -> bool {
        self.model.resources[kind].name == "fd_xe"
    }

    fn is_descriptor(&self, kind: usize) -> bool {
        let fd = self.model.resources.iter().position(|r| r.name == "fd");
        fd.is_some_and(|fd| self.model.is_kind(kind, fd))
    }

    /// Adds a call that makes a thing of this kind; gives its slot.
    fn make(&mut self, kind: usize, context: &Context) -> Option<usize> {
        if self.depth >= MAX_DEPTH || self.program.calls.len() >= MAX_CALLS {
            return None;
        }
        let makers: Vec<_> = (0..self.model.calls.len())
            .filter(|index| {
                let call = &self.model.calls[*index];
                self.allows(*index) && !call.wild && self.makes(*index, kind)
            })
            .collect();
        let sure: Vec<_> =
            makers.iter().copied().filter(|index| !self.model.calls[*index].unsure).collect();
        let makers = if sure.is_empty() { makers } else { sure };
        if makers.is_empty() {
            return None;
        }
        let total: u32 = makers.iter().map(|i| self.model.calls[*i].weight).sum();
        let mut at = self.rng.below(total as usize) as u32;
        let mut maker = makers[0];
        for index in makers {
            maker = index;
            let weight = self.model.calls[index].weight;
            if at < weight {
                break;
            }
            at -= weight;
        }
        let use_first = context.owner.into_iter().collect();
        let made = self.call(maker, Context { owner: None, use_first, made: Vec::new() });
        made.into_iter().find(|slot| self.model.is_kind(self.slots[*slot].kind, kind))
    }

    fn makes(&self, index: usize, kind: usize) -> bool {
        fn visit(model: &Model, is: &Type, kind: usize) -> bool {
            match is {
                Type::Pointer { to, .. } => visit(model, to, kind),
                Type::Array { of, .. } => visit(model, of, kind),
                Type::Record(index) => model.records[*index].fields.iter().any(|f| match f.is {
                    Type::Resource(made) if f.out => model.is_kind(made, kind),
                    _ => visit(model, &f.is, kind),
                }),
                _ => false,
            }
        }
        let call = &self.model.calls[index];
        call.result.is_some_and(|made| self.model.is_kind(made, kind))
            || call.arguments.iter().any(|f| visit(self.model, &f.is, kind))
    }

    /// A number that is often forgotten.
    fn odd_number(&mut self) -> u64 {
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
fn length(arg: &Arg, bytes: bool) -> u64 {
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

    fn programs(count: u64, without: &Without, mut each: impl FnMut(&Model, Program)) {
        let model = Model::load().unwrap();
        for index in 0..count {
            each(&model, program(&model, &Id::new(7, index), without));
        }
    }

    #[test]
    fn an_id_repeats_the_program() {
        let model = Model::load().unwrap();
        let without = Without::default();
        let mut id = Id::new(7, 3);
        for mutation in 0..6 {
            let text = program(&model, &id, &without).show(&model);
            assert_eq!(text, program(&model, &id, &without).show(&model));
            id.mutations.push(mutation);
        }
        assert_ne!(
            program(&model, &Id::new(7, 3), &without),
            program(&model, &Id::new(7, 4), &without)
        );
    }

    #[test]
    fn what_a_call_uses_is_made_before() {
        programs(100, &Without::default(), |model, program| {
            let mut made = HashSet::new();
            for call in &program.calls {
                let mut makes = Vec::new();
                for arg in &call.args {
                    arg.visit(&mut |arg| match arg {
                        Arg::In { slot, .. } => {
                            assert!(made.contains(slot), "{}", program.show(model))
                        }
                        Arg::Out { slot, .. } => makes.push(*slot),
                        _ => {}
                    });
                }
                made.extend(makes);
                made.extend(call.result);
            }
            assert!(!program.calls.is_empty() && program.threads <= MAX_THREADS);
        });
    }

    #[test]
    fn each_call_comes_up() {
        let mut seen = HashSet::new();
        let mut all = 0;
        programs(3000, &Without::default(), |model, program| {
            all = model.calls.len();
            seen.extend(program.calls.iter().map(|c| c.index));
        });
        assert_eq!(seen.len(), all);
    }

    #[test]
    fn what_is_left_out_does_not_come_up() {
        let without = Without(["unbind".into(), FORK_THP.into()].into());
        programs(200, &without, |model, program| {
            let has = |group| {
                let calls = &program.calls;
                calls.iter().any(|c| model.calls[c.index].group.as_deref() == Some(group))
            };
            assert!(!has("unbind"));
            assert!(!has("fork") || !has("thp"));
        });
    }

    #[test]
    fn arguments_lie_in_their_region() {
        programs(100, &Without::default(), |model, program| {
            for call in &program.calls {
                for arg in &call.args {
                    arg.visit(&mut |arg| {
                        if let Arg::Pointer { address, to: Some(_) } = arg {
                            assert!(regions::of(*address).is_some(), "{}", program.show(model));
                        }
                    });
                }
            }
        });
    }

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
