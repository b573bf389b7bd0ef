// SPDX-License-Identifier: GPL-2.0

//! Tests of the flag words of ranges and pages.

use gpusvm::flags::{PagesFlag, PagesFlags, RangeFlag, RangeFlags};
use kernel::prelude::*;

const RANGE: [RangeFlag; 3] = [
    RangeFlag::MigrateDevmem,
    RangeFlag::Unmapped,
    RangeFlag::PartialUnmap,
];

const PAGES: [PagesFlag; 3] = [
    PagesFlag::Unmapped,
    PagesFlag::HasDevmemPages,
    PagesFlag::HasDmaMapping,
];

/// Copies the flags whose bits are set in `mask` to `space`, and returns them.
fn chosen<'a, T: Copy>(flags: &[T], mask: usize, space: &'a mut [T]) -> &'a [T] {
    let mut length = 0;
    for (bit, flag) in flags.iter().enumerate() {
        if mask & 1 << bit != 0 {
            space[length] = *flag;
            length += 1;
        }
    }
    &space[..length]
}

/// Checks all flags after each update from each state to each other state of a word.
macro_rules! check_all_updates {
    ($word:ty, $flags:expr) => {{
        let flags = $flags;
        for before in 0..8usize {
            for set in 0..8usize {
                for clear in 0..8usize {
                    let word = <$word>::new();
                    word.update(chosen(&flags, before, &mut flags.clone()), &[]);
                    word.update(
                        chosen(&flags, set, &mut flags.clone()),
                        chosen(&flags, clear, &mut flags.clone()),
                    );
                    // A flag that is both set and cleared is set.
                    let after = before & !clear | set;
                    for (bit, flag) in flags.iter().enumerate() {
                        ensure_eq!(word.has(*flag), after & 1 << bit != 0);
                    }
                }
            }
        }
    }};
}

#[kunit_tests(gpusvm_flags)]
mod tests {
    use super::*;

    #[test]
    fn a_new_word_is_empty() -> Result {
        ensure!(RANGE.iter().all(|flag| !RangeFlags::new().has(*flag)));
        ensure!(PAGES.iter().all(|flag| !PagesFlags::new().has(*flag)));
        ensure!(RANGE.iter().all(|flag| !RangeFlags::default().has(*flag)));
        ensure!(PAGES.iter().all(|flag| !PagesFlags::default().has(*flag)));
        Ok(())
    }

    #[test]
    fn all_updates_of_a_range() -> Result {
        check_all_updates!(RangeFlags, RANGE);
        Ok(())
    }

    #[test]
    fn all_updates_of_pages() -> Result {
        check_all_updates!(PagesFlags, PAGES);
        Ok(())
    }
}
