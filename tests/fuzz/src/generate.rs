// SPDX-License-Identifier: GPL-2.0

//! Makes programs of a seed: calls, each with what it needs made before it.

use crate::{
    id::Id,
    model::Model,
    program::{Arg, Call, Program},
};
use std::collections::{HashMap, HashSet};
use vxe_uapi::Rng;

mod mutate;
mod resource;
mod value;

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
    /// It may not be there: the call that makes it often fails, or another call ends it.
    unsure: bool,
    /// The slots that were used to make it.
    with: Vec<usize>,
    /// The thread that makes it; none: it is made before there are threads.
    thread: Option<usize>,
}

struct Generator<'a> {
    model: &'a Model,
    without: &'a Without,
    rng: Rng,
    program: Program,
    slots: Vec<Slot>,
    /// Where the next argument of a region goes.
    next: HashMap<u64, u64>,
    /// How many calls in a hundred go wrong.
    wild: usize,
    /// How many values in a thousand are wrong, in the present call.
    rate: usize,
    /// The present call is likely to fail, or what it is made on may not be there after it.
    odd: bool,
    /// The GPU is to work only where memory stays.
    safe: bool,
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
    /// The slots that it uses.
    used: Vec<usize>,
    /// The numbers of slots that it fills.
    made: Vec<usize>,
}

impl<'a> Generator<'a> {
    fn new(model: &'a Model, mut rng: Rng, without: &'a Without) -> Self {
        let wild = [1, 5, 10, 20, 60][rng.below(5)];
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
            rate: 0,
            odd: false,
            safe: false,
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

    /// Whether this value is to be wrong.
    fn goes_wrong(&mut self) -> bool {
        let wrong = self.rng.below(1000) < self.rate;
        self.odd |= wrong;
        wrong
    }

    /// How many values in a thousand are wrong in a call that now begins. Wrong values meet in few calls:
    /// most of a call's values are checked before it does anything, and one is enough.
    fn any_rate(&mut self) -> usize {
        // What others need goes wrong less often than what is only there for itself.
        let rarely = if self.depth > 1 { 4 } else { 1 };
        match self.rng.below(100 * rarely) < self.wild {
            true => [15, 60, 250][self.rng.below(3)],
            false => 0,
        }
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
        let safe = self.rng.below(10) < 7;
        let rate = self.any_rate();
        let outer = (self.rate, self.odd, self.safe);
        (self.rate, self.odd, self.safe) = (rate, call.unsure || call.wild, safe);
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
            let slot = &mut self.slots[*slot];
            (slot.ready, slot.unsure, slot.with) = (true, self.odd, context.used.clone());
        }
        if call.ends || call.breaks && self.odd {
            self.end(&context.used);
        }
        if call.ends_files {
            self.end_files(&context.used);
        }
        let then = call.then.filter(|_| self.depth < MAX_DEPTH && !self.goes_wrong());
        (self.rate, self.odd, self.safe) = outer;
        if let Some(then) = then {
            let mut use_first = made.clone();
            use_first.extend(context.use_first.iter().copied());
            self.call(then, Context { owner: context.owner, use_first, ..Context::default() });
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
        let first_slot = self.slots.len();
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
        // What the child makes, only the child has.
        self.slots[first_slot..].iter_mut().for_each(|slot| slot.ready = false);
    }

    fn new_slot(&mut self, kind: usize, context: &mut Context) -> usize {
        let slot = self.program.slots;
        self.program.slots += 1;
        // Descriptors belong to the process, all else to a file of the device.
        let owner = context.owner.filter(|_| !self.is_descriptor(kind));
        // Setup is over when its length is known.
        let thread = (self.program.setup > 0).then_some(self.thread);
        let with = Vec::new();
        self.slots.push(Slot { kind, owner, ready: false, unsure: false, with, thread });
        context.made.push(slot);
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regions;

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
        programs(1500, &Without::default(), |model, program| {
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
    fn what_a_child_makes_only_the_child_uses() {
        programs(100, &Without::default(), |model, program| {
            let made = program.made();
            for call in program.calls.iter().filter(|call| call.child_of.is_none()) {
                let here = |slot: &usize| made[*slot];
                assert!(call.slots_used().iter().all(here), "{}", program.show(model));
            }
        });
    }

    #[test]
    fn a_bind_queue_is_used_with_its_vm() {
        let (mut well, mut all) = (0, 0);
        programs(200, &Without::default(), |model, program| {
            let kind = |name: &str| model.resources.iter().position(|r| r.name == name);
            assert!(kind("xe_vm").is_some());
            // The VM that each slot was made with.
            let mut with = HashMap::new();
            for call in &program.calls {
                let used = call.slots_used();
                match model.calls[call.index].name.as_str() {
                    "ioctl$XE_EXEC_QUEUE_CREATE_bind" => {
                        with.extend(call.slots_made().into_iter().zip(used.get(1).copied()));
                    }
                    "ioctl$XE_VM_BIND_array" => {
                        if let Some(vm) = used.get(2).and_then(|queue| with.get(queue)) {
                            all += 1;
                            well += usize::from(*vm == used[1]);
                        }
                    }
                    _ => {}
                }
            }
        });
        assert!(all > 20 && well * 10 > all * 9, "{well} of {all}");
    }

    #[test]
    fn most_calls_have_nothing_wrong() {
        let model = Model::load().unwrap();
        let without = Without::default();
        let mut generator = Generator::new(&model, Rng::new(7), &without);
        let rates: Vec<_> = (0..1000)
            .map(|seed| {
                generator = Generator::new(&model, Rng::new(seed), &without);
                generator.any_rate()
            })
            .collect();
        let right = rates.iter().filter(|rate| **rate == 0).count();
        assert!((600..950).contains(&right), "{right}");
    }
}
