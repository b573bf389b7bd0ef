// SPDX-License-Identifier: GPL-2.0

//! Changes a program in one way or another.

use super::{Generator, MAX_CALLS};
use crate::program::Arg;

impl Generator<'_> {
    /// Changes the program in one way or another.
    pub(super) fn mutate(&mut self) {
        match self.rng.below(4) {
            0 => {
                let count = 1 + self.rng.below(8);
                self.some_calls(count);
            }
            1 => {
                let kept = self.fewer_calls();
                self.program.keep(&kept);
                let made = self.program.made();
                for (slot, state) in self.slots.iter_mut().enumerate() {
                    state.ready &= made[slot];
                }
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

    /// Most calls; those that make what others use nearly always stay.
    fn fewer_calls(&mut self) -> Vec<usize> {
        let mut needed = vec![false; self.program.slots];
        let mut kept = Vec::new();
        for (number, call) in self.program.calls.iter().enumerate().rev() {
            let is_needed = call.slots_made().iter().any(|slot| needed[*slot]);
            if self.rng.one_in(6) && !(is_needed && self.rng.below(8) > 0) {
                continue;
            }
            kept.push(number);
            call.slots_used().iter().for_each(|slot| needed[*slot] = true);
        }
        kept.reverse();
        kept
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
}
