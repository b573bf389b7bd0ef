// SPDX-License-Identifier: GPL-2.0

//! The page attribute table, as debugfs shows it: that of a Battlemage.
//!
//! A binding names an entry of it ([`PatIndex`](crate::vm::attributes)). The device has no caches and
//! does not compress, so an entry only decides which memory may be bound with it.
//!
//! C file: `drivers/gpu/drm/xe/xe_pat.c`

use kernel::{
    bits::{
        bit_u32,
        genmask_u32, //
    },
    seq_file::{
        seq_print,
        SeqFile, //
    }, //
};

const NO_PROMOTE: u32 = bit_u32(10);
const COMPRESSED: u32 = bit_u32(9);
const L3_CLASS: u32 = genmask_u32(6..=7);
const L3_POLICY: u32 = genmask_u32(4..=5);
const L4_POLICY: u32 = genmask_u32(2..=3);
const COHERENCY: u32 = genmask_u32(0..=1);

/// The fields of an entry, in the order in which they are shown.
const FIELDS: [u32; 6] = [
    NO_PROMOTE, COMPRESSED, L3_CLASS, L3_POLICY, L4_POLICY, COHERENCY,
];

/// The entries; none is reserved.
const ENTRIES: [Option<u32>; 32] = [
    Some(0x00c),
    Some(0x00e),
    Some(0x00f),
    Some(0x03c),
    Some(0x032),
    Some(0x03e),
    Some(0x41c),
    Some(0x033),
    Some(0x030),
    Some(0x20c),
    Some(0x230),
    Some(0x61c),
    Some(0x23c),
    Some(0x000),
    Some(0x200),
    Some(0x614),
    None,
    None,
    None,
    None,
    Some(0x04c),
    Some(0x24c),
    Some(0x04e),
    Some(0x04f),
    Some(0x08c),
    Some(0x28c),
    Some(0x08e),
    Some(0x08f),
    Some(0x0cc),
    Some(0x2cc),
    Some(0x0ce),
    Some(0x0cf),
];

/// The entries for memory that is cached in no way, written through, written back, and compressed
/// without being cached.
const BY_CACHING: [(&str, usize); 4] =
    [("NONE", 3), ("WT", 15), ("WB", 2), ("NONE_COMPRESSION", 12)];

/// Prints the table in the form of xe: the fields of each entry, and their value.
pub(crate) fn show(m: &SeqFile) {
    seq_print!(m, "PAT table: (* = reserved entry)\n");
    for (index, entry) in ENTRIES.into_iter().enumerate() {
        let (value, mark) = match entry {
            Some(value) => (value, ""),
            None => (0, " *"),
        };
        let [a, b, c, d, e, f] = FIELDS.map(|field| (value & field) >> field.trailing_zeros());
        seq_print!(
            m,
            "PAT[{index:2}] = [ {a}, {b}, {c}, {d}, {e}, {f} ]  ({value:#8x}){mark}\n"
        );
    }
    seq_print!(m, "Cache Level:\n");
    for (caching, index) in BY_CACHING {
        seq_print!(m, "IDX[XE_CACHE_{caching}] = {index}\n");
    }
}
