// SPDX-License-Identifier: GPL-2.0

//! Groups of devices that reach each other's memory over a fast interconnect.
//!
//! HMM does not migrate device-private pages to RAM for a device that names their owner as its own.
//! So the devices of a group have one owner. Who has pages, or maps them, joins a list of peers,
//! and gets the owner of the first group all of whose members it is connected with, or a new one.
//!
//! # Locking
//!
//! A mutex protects the list; connections are asked for under it. Owners are only compared.
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

/// What a group is told by; `struct drm_pagemap_owner`. Its address is what counts.
pub struct Owner(#[expect(dead_code, reason = "so that owners have addresses of their own")] u8);

/// Whose device-private pages are: those of a group of devices, or of one device by itself. It is only compared.
///
/// It is got from who has the owner, a [`Member`] or a [`Pagemap`](super::Pagemap), and means something while that is
/// there: it keeps nothing, and another group may get the same when all members of this one have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerId(NonNull<c_void>);

// SAFETY: It is not dereferenced.
unsafe impl Send for OwnerId {}
// SAFETY: As above.
unsafe impl Sync for OwnerId {}

impl OwnerId {
    /// # Safety
    ///
    /// `owner` must be what device-private pages of this core have as their owner, or the address of something
    /// that nobody else makes an owner of.
    pub const unsafe fn from_raw(owner: NonNull<c_void>) -> Self {
        Self(owner)
    }

    /// What is compared.
    pub(crate) fn as_ptr(self) -> *mut c_void {
        self.0.as_ptr()
    }

    /// The same, for who makes pages.
    pub(crate) fn as_non_null(self) -> NonNull<c_void> {
        self.0
    }
}

/// A list of peers; it has the layout of `struct drm_pagemap_owner_list`.
///
/// # Invariants
///
/// The list in the mutex is of peers that are valid, and whose `list` is this one. Peers of the same
/// owner follow one another.
#[repr(C)]
#[pin_data]
pub struct OwnerList {
    #[pin]
    peers: Mutex<CListHead>,
}

/// A place in a list of peers; it has the layout of `struct drm_pagemap_peer`.
///
/// # Invariants
///
/// `list` and `owner` are there, and `link` is in the list, from joining to leaving. They are changed
/// under the lock of the list.
#[repr(C)]
#[pin_data]
pub struct Peer {
    pub(crate) list: UnsafeCell<Option<NonNull<OwnerList>>>,
    #[pin]
    pub(crate) link: CListHead,
    pub(crate) owner: UnsafeCell<Option<Arc<Owner>>>,
    pub(crate) private: *mut c_void,
}

// SAFETY: A peer is changed under the lock of its list; `private` is for its user.
unsafe impl Send for Peer {}
// SAFETY: As above.
unsafe impl Sync for Peer {}

impl Peer {
    /// A peer in no list.
    pub fn new(private: *mut c_void) -> impl PinInit<Self> {
        pin_init!(Self {
            list: UnsafeCell::new(None),
            link <- CListHead::new(),
            owner: UnsafeCell::new(None),
            private,
        })
    }

    /// What was given to [`new`](Self::new).
    pub fn private(&self) -> *mut c_void {
        self.private
    }

    /// The owner of the group that was joined; null before and after.
    ///
    /// # Safety
    ///
    /// The peer must not join or leave meanwhile.
    pub unsafe fn owner(&self) -> *mut c_void {
        // SAFETY: Nobody changes it, by this function's requirements.
        unsafe { &*self.owner.get() }
            .as_ref()
            .map_or(ptr::null_mut(), |owner| {
                Arc::as_ptr(owner).cast_mut().cast()
            })
    }

    /// The peer that `link` is part of.
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
    /// An empty list. Not generic, so that all lists have one lock class.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            peers <- Mutex::new(CListHead::new(), lock_name!(c"gpusvm.peers"), static_lock_class!()),
        })
    }

    /// Has a peer join: it gets the owner of the first group all of whose members it is `connected`
    /// with, or a new one. C: `drm_pagemap_acquire_owner()`.
    ///
    /// Fails with `ENOMEM`. May sleep.
    ///
    /// # Safety
    ///
    /// `peer` must be in no list. It and this list must stay where they are until it
    /// [leaves](Self::leave). `connected` is given peers that are in the list.
    pub unsafe fn join(&self, peer: &Peer, connected: &mut dyn FnMut(&Peer) -> bool) -> Result {
        let peers = self.peers.lock();
        let head: *const CListHead = &*peers;
        // SAFETY: The lock is held, so that all peers are valid and the list does not change.
        let (place, owner) = unsafe {
            let mut link = peers.next();
            let mut group: Option<&Arc<Owner>> = None;
            let mut all = false;
            while !ptr::eq(link, head) {
                let other = Peer::of(link);
                let Some(owner) = &*other.owner.get() else {
                    // Not by the type invariants.
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
        // INVARIANT: `place` is after the last peer of its group, or the end.
        // SAFETY: The lock is held, and the peer is in no list. `place` is in this list.
        unsafe {
            list::add_before(place, &peer.link);
            *peer.owner.get() = Some(owner);
            *peer.list.get() = Some(NonNull::from(self));
        }
        Ok(())
    }

    /// Has a peer leave; its group lasts as long as it has members.
    /// C: `drm_pagemap_release_owner()`. May sleep.
    ///
    /// # Safety
    ///
    /// `peer` must be in this list.
    pub unsafe fn leave(&self, peer: &Peer) {
        let _peers = self.peers.lock();
        // SAFETY: The lock is held.
        unsafe {
            list::del(&peer.link);
            *peer.owner.get() = None;
            *peer.list.get() = None;
        }
    }
}

/// A list of peers of which a driver keeps a `T` each.
#[pin_data]
pub struct Owners<T> {
    #[pin]
    list: OwnerList,
    connected: fn(&T, &T) -> bool,
}

impl<T: Send + Sync> Owners<T> {
    /// An empty list. `connected` says whether two peers have a fast interconnect; it is symmetric.
    /// It is called with the lock of the list held, and may sleep. Fails with `ENOMEM`.
    pub fn new(connected: fn(&T, &T) -> bool) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                list <- OwnerList::new(),
                connected,
            }),
            GFP_KERNEL,
        )
    }

    /// Joins, until the member is dropped. Fails with `ENOMEM`. May sleep.
    pub fn join(self: &Arc<Self>, data: T) -> Result<Member<T>> {
        let data = KBox::new(data, GFP_KERNEL)?;
        let private: *const T = &*data;
        let peer = KBox::pin_init(Peer::new(private.cast_mut().cast()), GFP_KERNEL)?;
        // SAFETY: The new peer is in no list. The member keeps both it and this list, and leaves
        // when it is dropped. All peers of the list are members', whose data is a `T` that lives
        // until it has left.
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

/// A peer that joined a list of [`Owners`]; it leaves when this is dropped, which may sleep.
///
/// # Invariants
///
/// `peer` is in the list of `owners`, and its `private` points to `data`.
pub struct Member<T> {
    owners: Arc<Owners<T>>,
    peer: Pin<KBox<Peer>>,
    data: KBox<T>,
    _data: PhantomData<*const T>,
}

// SAFETY: What is shared with other threads through the list is `&T`; the rest is for any thread.
unsafe impl<T: Send + Sync> Send for Member<T> {}
// SAFETY: As above.
unsafe impl<T: Send + Sync> Sync for Member<T> {}

impl<T> Member<T> {
    /// The owner of the group: what pages of its members name as their owner. No other group has it while this one
    /// has members.
    pub fn owner(&self) -> OwnerId {
        // SAFETY: The peer joined, and does not leave before this is dropped: it has an owner, which lives as long.
        unsafe { OwnerId::from_raw(NonNull::new_unchecked(self.peer.owner())) }
    }

    /// What the member joined with.
    pub fn data(&self) -> &T {
        &self.data
    }
}

impl<T> Drop for Member<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { self.owners.list.leave(&self.peer) };
    }
}
