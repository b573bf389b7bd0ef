// SPDX-License-Identifier: GPL-2.0

//! Groups of devices that reach each other's memory over a fast interconnect.
//!
//! HMM does not migrate device-private pages to system memory for a device that names their owner as its own. So the
//! devices of a group have one owner. A device that has pages, or maps them, joins a list of peers. It gets the owner
//! of the first group with all of whose members it is connected, or a new owner.
//!
//! # Locking
//!
//! A mutex protects the list; the driver's `connected` is called under it. Owners are only compared.
//!
//! C: `struct drm_pagemap_owner_list`, `struct drm_pagemap_peer`.

use core::{
    cell::UnsafeCell,
    ffi::c_void,
    marker::PhantomData,
    ptr::{self, NonNull}, //
};
use kernel::{
    interop::list::CListHead,
    prelude::*,
    sync::{static_lock_class, Arc, Mutex}, //
};
use kernel_ext::{
    list,
    lock_name, //
};

/// Identifies a group by its address; `struct drm_pagemap_owner`.
pub struct Owner(#[expect(dead_code, reason = "so that owners have addresses of their own")] u8);

/// Identifies the owner of device-private pages: a group of devices, or one device. It is only compared.
///
/// A [`Member`] or a [`Pagemap`](super::Pagemap) returns it, and it is valid as long as that exists. It keeps nothing:
/// when all members of a group have left, another group may get the same owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerId(NonNull<c_void>);

// SAFETY: The pointer is never dereferenced.
unsafe impl Send for OwnerId {}
// SAFETY: As above.
unsafe impl Sync for OwnerId {}

impl OwnerId {
    /// Creates an owner from a pointer.
    ///
    /// # Safety
    ///
    /// `owner` must be the owner of device-private pages of this core, or the address of an object which no other code
    /// uses as an owner.
    pub const unsafe fn from_raw(owner: NonNull<c_void>) -> Self {
        Self(owner)
    }

    /// Returns the pointer, for comparisons.
    pub(crate) fn as_ptr(self) -> *mut c_void {
        self.0.as_ptr()
    }

    /// Returns the pointer, for the creation of pages.
    pub(crate) fn as_non_null(self) -> NonNull<c_void> {
        self.0
    }
}

/// A list of peers; it has the layout of `struct drm_pagemap_owner_list`.
///
/// # Invariants
///
/// All peers in the list are valid, and their `list` is this one. Peers with the same owner are consecutive.
#[repr(C)]
#[pin_data]
pub struct OwnerList {
    #[pin]
    peers: Mutex<CListHead>,
}

/// An entry in a list of peers; it has the layout of `struct drm_pagemap_peer`.
///
/// # Invariants
///
/// From joining to leaving, `list` and `owner` are set, and `link` is in the list. They change under the lock of the
/// list.
#[repr(C)]
#[pin_data]
pub struct Peer {
    pub(crate) list: UnsafeCell<Option<NonNull<OwnerList>>>,
    #[pin]
    pub(crate) link: CListHead,
    pub(crate) owner: UnsafeCell<Option<Arc<Owner>>>,
    pub(crate) private: *mut c_void,
}

// SAFETY: The fields change under the lock of the list only; `private` is used by the driver only.
unsafe impl Send for Peer {}
// SAFETY: As above.
unsafe impl Sync for Peer {}

impl Peer {
    /// Creates a peer in no list.
    pub fn new(private: *mut c_void) -> impl PinInit<Self> {
        pin_init!(Self {
            list: UnsafeCell::new(None),
            link <- CListHead::new(),
            owner: UnsafeCell::new(None),
            private,
        })
    }

    /// Returns the argument of [`new`](Self::new).
    pub fn private(&self) -> *mut c_void {
        self.private
    }

    /// Returns the owner of the joined group; null if the peer is in no list.
    ///
    /// # Safety
    ///
    /// The peer must not join or leave during the call.
    pub unsafe fn owner(&self) -> *mut c_void {
        // SAFETY: The caller guarantees that `owner` does not change.
        unsafe { &*self.owner.get() }
            .as_ref()
            .map_or(ptr::null_mut(), |owner| {
                Arc::as_ptr(owner).cast_mut().cast()
            })
    }

    /// Returns the peer with the given link.
    ///
    /// # Safety
    ///
    /// `link` must be that of a peer that is valid during `'a`.
    unsafe fn of<'a>(link: &CListHead) -> &'a Peer {
        let link: *const CListHead = link;
        // SAFETY: By this function's requirements.
        unsafe { &*link.byte_sub(core::mem::offset_of!(Peer, link)).cast() }
    }
}

impl OwnerList {
    /// Creates an empty list. Not generic, so that all lists have one lock class.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            peers <- Mutex::new(CListHead::new(), lock_name!(c"gpusvm.peers"), static_lock_class!()),
        })
    }

    /// Adds a peer to the list. It gets the owner of the first group all of whose members are `connected` with it, or a
    /// new one. C: `drm_pagemap_acquire_owner()`.
    ///
    /// Fails with `ENOMEM`. May sleep.
    ///
    /// # Safety
    ///
    /// `peer` must be in no list. Neither the peer nor this list may move until the peer [leaves](Self::leave).
    /// `connected` is called with peers of the list.
    pub unsafe fn join(&self, peer: &Peer, connected: &mut dyn FnMut(&Peer) -> bool) -> Result {
        let peers = self.peers.lock();
        let head: *const CListHead = &*peers;
        // SAFETY: The lock is held, so all peers are valid and the list does not change.
        let (position, owner) = unsafe {
            let mut link = peers.next();
            let mut group: Option<&Arc<Owner>> = None;
            let mut all = false;
            while !ptr::eq(link, head) {
                let other = Peer::of(link);
                let Some(owner) = &*other.owner.get() else {
                    // The type invariants exclude this.
                    return Err(EINVAL);
                };
                if !group.is_some_and(|group| Arc::ptr_eq(group, owner)) {
                    if all {
                        break;
                    }
                    group = Some(owner);
                    all = true;
                }
                all = all && connected(other);
                link = other.link.next();
            }
            match group.filter(|_| all) {
                Some(group) => (link, group.clone()),
                None => (&*peers, Arc::new(Owner(0), GFP_KERNEL)?),
            }
        };
        // INVARIANT: `position` is after the last peer of the group, or the end of the list.
        // SAFETY: The lock is held, the peer is in no list, and `position` is in this list.
        unsafe {
            list::add_before(position, &peer.link);
            *peer.owner.get() = Some(owner);
            *peer.list.get() = Some(NonNull::from(self));
        }
        Ok(())
    }

    /// Removes a peer from the list. A group lasts as long as it has members. C: `drm_pagemap_release_owner()`. May
    /// sleep.
    ///
    /// # Safety
    ///
    /// `peer` must be in this list.
    pub unsafe fn leave(&self, peer: &Peer) {
        let _peers = self.peers.lock();
        // SAFETY: The lock is held, and the peer is in this list.
        unsafe {
            list::del(&peer.link);
            *peer.owner.get() = None;
            *peer.list.get() = None;
        }
    }
}

/// A list of peers with a `T` of the driver's for each.
///
/// The list reads the data of a [`Member`] that was leaked, so `T` borrows nothing.
#[pin_data]
pub struct Owners<T: 'static> {
    #[pin]
    list: OwnerList,
    connected: fn(&T, &T) -> bool,
}

impl<T: Send + Sync + 'static> Owners<T> {
    /// Creates an empty list. `connected` returns whether two peers have a fast interconnect; it must be symmetric. It
    /// is called with the lock of the list held, and may sleep. Fails with `ENOMEM`.
    pub fn new(connected: fn(&T, &T) -> bool) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                list <- OwnerList::new(),
                connected,
            }),
            GFP_KERNEL,
        )
    }

    /// Adds a member, until the result is dropped. Fails with `ENOMEM`. May sleep.
    pub fn join(self: &Arc<Self>, data: T) -> Result<Member<T>> {
        let data = KBox::new(data, GFP_KERNEL)?;
        let private: *const T = &*data;
        let peer = KBox::pin_init(Peer::new(private.cast_mut().cast()), GFP_KERNEL)?;
        // SAFETY: The new peer is in no list. The member keeps the peer and this list, and leaves when it is dropped.
        // All peers of the list belong to members, whose data is a `T` that lives until the member has left.
        unsafe {
            self.list.join(&peer, &mut |other| {
                (self.connected)(&*private, &*other.private().cast::<T>())
            })
        }?;
        Ok(Member {
            owners: self.clone(),
            peer,
            data,
            _data: PhantomData,
        })
    }
}

/// A member of a list of [`Owners`]. It leaves when this is dropped, which may sleep.
///
/// # Invariants
///
/// `peer` is in the list of `owners`, and its `private` points to `data`.
pub struct Member<T: 'static> {
    owners: Arc<Owners<T>>,
    peer: Pin<KBox<Peer>>,
    data: KBox<T>,
    _data: PhantomData<*const T>,
}

// SAFETY: Other threads get a `&T` through the list; any thread may use the other fields.
unsafe impl<T: Send + Sync + 'static> Send for Member<T> {}
// SAFETY: As above.
unsafe impl<T: Send + Sync + 'static> Sync for Member<T> {}

impl<T: 'static> Member<T> {
    /// Returns the owner of the group, which the pages of its members have as their owner. No other group has it while
    /// this one has members.
    pub fn owner(&self) -> OwnerId {
        // SAFETY: The peer has joined, and so has an owner, and leaves only when this is dropped.
        unsafe { OwnerId::from_raw(NonNull::new_unchecked(self.peer.owner())) }
    }

    /// Returns the argument of [`Owners::join`].
    pub fn data(&self) -> &T {
        &self.data
    }
}

impl<T: 'static> Drop for Member<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { self.owners.list.leave(&self.peer) };
    }
}
