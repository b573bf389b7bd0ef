// SPDX-License-Identifier: GPL-2.0

//! Tests of groups of devices that can access each other's memory.

use crate::fixture::failure;
use gpusvm::pagemap::{Member, Owners};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, //
    },
};

/// The number of existing peers.
static PEERS: Atomic<i64> = Atomic::new(0);

/// A peer of a test: it is connected with the peers that have a link in common with it.
struct Peer {
    links: u32,
}

impl Peer {
    fn new(links: u32) -> Self {
        PEERS.fetch_add(1, Relaxed);
        Self { links }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        PEERS.fetch_add(-1, Relaxed);
    }
}

fn owners() -> Result<Arc<Owners<Peer>>> {
    PEERS.store(0, Relaxed);
    Owners::new(|one, other| one.links & other.links != 0)
}

fn same(one: &Member<Peer>, other: &Member<Peer>) -> bool {
    one.owner() == other.owner()
}

#[kunit_tests(gpusvm_pagemap_owner)]
mod tests {
    use super::*;

    #[test]
    fn connected_peers_have_one_owner() -> Result {
        let owners = owners()?;
        let one = owners.join(Peer::new(0b01))?;
        let other = owners.join(Peer::new(0b10))?;
        let like_one = owners.join(Peer::new(0b01))?;
        let like_other = owners.join(Peer::new(0b10))?;
        ensure!(!same(&one, &other));
        ensure!(same(&one, &like_one) && same(&other, &like_other));
        ensure_eq!(like_other.data().links, 0b10);
        // A peer that could be in both groups joins the first.
        let both = owners.join(Peer::new(0b11))?;
        ensure!(same(&one, &both));
        Ok(())
    }

    #[test]
    fn a_group_is_connected_throughout() -> Result {
        let owners = owners()?;
        let one = owners.join(Peer::new(0b001))?;
        let both = owners.join(Peer::new(0b011))?;
        ensure!(same(&one, &both));
        // A peer must be connected with each member of the group.
        let some = owners.join(Peer::new(0b010))?;
        ensure!(!same(&one, &some));
        let start = owners.join(Peer::new(0b101))?;
        ensure!(same(&one, &start));
        let few = owners.join(Peer::new(0b100))?;
        ensure!(!same(&one, &few) && !same(&some, &few));
        Ok(())
    }

    #[test]
    fn groups_stay_together_in_the_list() -> Result {
        let owners = owners()?;
        let one = owners.join(Peer::new(0b1001))?;
        let other = owners.join(Peer::new(0b0100))?;
        // The peer joins the first group, though the second one is newer.
        let both = owners.join(Peer::new(0b0011))?;
        ensure!(same(&one, &both));
        // The peer is connected with the first member of the first group, but not with the second.
        let next = owners.join(Peer::new(0b1100))?;
        ensure!(same(&other, &next));
        let none = owners.join(Peer::new(0b0010))?;
        ensure!(!same(&one, &none) && !same(&other, &none));
        Ok(())
    }

    #[test]
    fn who_left_counts_no_more() -> Result {
        let owners = owners()?;
        let one = owners.join(Peer::new(0b01))?;
        let bridge = owners.join(Peer::new(0b11))?;
        ensure!(same(&one, &bridge));
        drop(one);
        // The group still exists, and all of its members are connected with the new peer.
        let other = owners.join(Peer::new(0b10))?;
        ensure!(same(&bridge, &other));
        drop((bridge, other));
        let last = owners.join(Peer::new(0b01))?;
        // Members hold references to the list.
        drop(owners);
        ensure_eq!(PEERS.load(Relaxed), 1);
        drop(last);
        ensure_eq!(PEERS.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn each_allocation_may_fail() -> Result {
        failure::with_failures(1, |_| {
            let owners = owners()?;
            let one = owners.join(Peer::new(0b01))?;
            for links in [0b01, 0b10] {
                let failed = failure::each_allocation(
                    || owners.join(Peer::new(links)),
                    |joined| {
                        let error = joined.err();
                        ensure!(error.is_none() || error == Some(ENOMEM));
                        ensure_eq!(PEERS.load(Relaxed), 1);
                        Ok(())
                    },
                )?;
                ensure!(failed >= 2);
            }
            let like_one = owners.join(Peer::new(0b01))?;
            ensure!(same(&one, &like_one));
            Ok(())
        })
    }
}
