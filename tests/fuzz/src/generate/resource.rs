// SPDX-License-Identifier: GPL-2.0

//! Chooses what a call uses of what other calls made, or adds a call that makes it.

use super::{Context, Generator, Slot, MAX_CALLS, MAX_DEPTH};
use crate::{
    model::{Model, Type},
    program::Arg,
};

impl Generator<'_> {
    pub(super) fn resource(&mut self, kind: usize, direct: bool, context: &mut Context) -> Arg {
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
        let unsure = self.rng.one_in(20);
        // Another thread may make it later, or never.
        let far = self.rng.one_in(4);
        let fits = |i: &usize| {
            let slot = &self.slots[*i];
            slot.ready
                && self.model.is_kind(slot.kind, kind)
                && (context.owner.is_none() || slot.owner.is_none() || slot.owner == context.owner)
                && self.goes_with(*i, &context.used)
        };
        let first = context.use_first.iter().copied().find(fits);
        let all: Vec<_> = (0..self.slots.len())
            .filter(fits)
            .filter(|i| {
                let slot = &self.slots[*i];
                slot.unsure == unsure && (far || slot.thread.is_none_or(|t| t == self.thread))
            })
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
        if !context.used.contains(&slot) {
            context.used.push(slot);
        }
        Arg::In { slot, default: special, size }
    }

    /// Whether a thing can be used together with others: not if it was made with one thing of a kind, a VM
    /// for instance, and they are, or were made with, another of that kind.
    fn goes_with(&self, slot: usize, others: &[usize]) -> bool {
        let made_with_another = |slot: usize, other: usize| {
            let kind = self.slots[other].kind;
            !self.is_descriptor(kind)
                && self.slots[slot].with.iter().any(|w| *w != other && self.slots[*w].kind == kind)
        };
        !others.iter().any(|other| {
            made_with_another(slot, *other)
                || made_with_another(*other, slot)
                || self.slots[*other].with.iter().any(|w| made_with_another(slot, *w))
        })
    }

    /// A call may have ended what it used, other than the file that it was made on: what was made with it
    /// may not be there either.
    pub(super) fn end(&mut self, used: &[usize]) {
        let mut ended: Vec<_> = used.to_vec();
        ended.retain(|slot| !self.is_file(self.slots[*slot].kind));
        self.end_all(ended);
    }

    /// The same of files: of these, or of all.
    pub(super) fn end_files(&mut self, used: &[usize]) {
        let is_ended = |slot: &usize| {
            self.is_file(self.slots[*slot].kind) && (used.is_empty() || used.contains(slot))
        };
        let ended = (0..self.slots.len()).filter(is_ended).collect();
        self.end_all(ended);
    }

    fn end_all(&mut self, mut ended: Vec<usize>) {
        // A thing has a higher number than what it was made with.
        for slot in 0..self.slots.len() {
            let Slot { owner, with, .. } = &self.slots[slot];
            if owner.iter().chain(with).any(|of| ended.contains(of)) {
                ended.push(slot);
            }
        }
        for slot in ended {
            self.slots[slot].unsure = true;
        }
    }

    /// Whether other things belong to what is of this kind.
    fn is_file(&self, kind: usize) -> bool {
        self.model.resources[kind].name == "fd_xe"
    }

    pub(super) fn is_descriptor(&self, kind: usize) -> bool {
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
        let use_first = context.owner.iter().chain(&context.used).copied().collect();
        let made = self.call(maker, Context { use_first, ..Context::default() });
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
}
