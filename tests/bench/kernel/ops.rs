// SPDX-License-Identifier: GPL-2.0

//! The operations that are measured.

use crate::{
    abi::{fault, op, Request, FIGURES},
    callees,
    clock::{self, Clock},
    driver::{Bench, Gpu, Vm},
    memory::Vram,
};
use core::{hint::black_box, ops::Range};
use gpusvm::{pagemap::provider::DeviceMemory, Access, Config, Ctx, Guard, Retry, Svm};
use kernel::{
    bindings,
    current,
    ffi::c_ulong,
    page::PAGE_SIZE,
    prelude::*,
    sizes::{SZ_2M, SZ_512M, SZ_64K}, //
};
use kernel_ext::mm::hmm;

/// The span of a notifier, as xe has it.
const NOTIFIER: usize = SZ_512M;

/// The sizes of ranges, as xe has them.
const CHUNKS: &[usize] = if PAGE_SIZE < SZ_64K {
    &[SZ_2M, SZ_64K, PAGE_SIZE]
} else {
    &[SZ_2M, PAGE_SIZE]
};

/// The state of an open file.
pub(crate) struct State {
    // Goes before the device that it maps for.
    svm: Option<Pin<KBox<Svm<Bench>>>>,
    memory: Option<DeviceMemory<Vram>>,
    gpu: Gpu,
}

impl State {
    /// Fails with `ENODEV` if another file is open.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            svm: None,
            memory: None,
            gpu: Gpu::new()?,
        })
    }

    /// Does what `request` asks for, and writes what it cost into it.
    pub(crate) fn run(&mut self, request: &mut Request) -> Result {
        let clock = Clock::begin();
        let mut figures = [0; FIGURES];
        match request.op {
            op::OPEN => put(&mut figures, &self.open(request)?),
            op::CLOSE => {
                let svm = self.svm.take().ok_or(ENXIO)?;
                let (cost, ()) = clock::cost(|| drop(svm));
                put(&mut figures, &[clock.net(cost, 0)]);
            }
            op::MEMORY => {
                self.memory = match request.size as usize {
                    0 => None,
                    size => Some(Vram::new(self.gpu.drm(), self.gpu.parent(), size)?),
                };
            }
            _ => {
                let operation = Operation {
                    dev: self.gpu.drm().dma_device(),
                    svm: self.svm.as_deref().ok_or(ENXIO)?,
                    memory: self.memory.as_ref(),
                    clock: &clock,
                    addr: request.addr as usize,
                    size: request.size as usize,
                    count: request.count,
                    access: match request.write {
                        0 => Access::Read,
                        _ => Access::Write,
                    },
                };
                operation.run(request.op, &mut figures)?;
            }
        }
        request.figures = figures;
        request.disturbed = clock.disturbed();
        Ok(())
    }

    fn open(&mut self, request: &Request) -> Result<[u64; 3]> {
        let largest = request.size as usize;
        let at = CHUNKS
            .iter()
            .position(|&size| size == largest)
            .ok_or(EINVAL)?;
        let config = Config {
            start: 0,
            size: 1 << 48,
            notifier_size: NOTIFIER,
            chunk_sizes: CHUNKS.get(at..).ok_or(EINVAL)?,
        };
        self.svm = None;
        let current = current!();
        let mm = current.mm().ok_or(EINVAL)?;
        let svm = Svm::new(mm, config, core::slice::from_ref(self.gpu.dma()), Vm::new());
        self.svm = Some(KBox::try_pin_init(svm, GFP_KERNEL)?);
        Ok([
            size_of::<gpusvm::Range<Bench>>() as u64,
            size_of::<gpusvm::notifier::Notifier>() as u64,
            size_of::<gpusvm::segment::Segment>() as u64,
        ])
    }
}

/// Writes `values` to the first of `figures`.
fn put(figures: &mut [u64; FIGURES], values: &[u64]) {
    for (figure, value) in figures.iter_mut().zip(values) {
        *figure = *value;
    }
}

/// One operation, and what it works on.
pub(crate) struct Operation<'a> {
    /// The device that memory is mapped for, which is bound.
    pub(crate) dev: *mut bindings::device,
    /// The SVM.
    pub(crate) svm: &'a Svm<Bench>,
    memory: Option<&'a DeviceMemory<Vram>>,
    /// Began with the operation.
    pub(crate) clock: &'a Clock,
    /// First address, in bytes.
    pub(crate) addr: usize,
    /// Size in bytes.
    pub(crate) size: usize,
    count: u64,
    /// What the device wants to do.
    pub(crate) access: Access,
}

impl Operation<'_> {
    fn run(&self, op: u32, figures: &mut [u64; FIGURES]) -> Result {
        self.svm.vm().take_told();
        match op {
            op::FAULT => put(figures, &self.fault()?),
            op::CALLEES => put(figures, &callees::measure(self)?),
            op::FIND => put(figures, &self.find()?),
            op::INSERT_REMOVE => put(figures, &self.insert_remove()?),
            op::REMOVE => put(figures, &self.remove()?),
            op::INVALIDATE => put(figures, &self.invalidate()?),
            op::FILL => put(figures, &self.fill()?),
            op::COLLECT => put(figures, &self.collect()),
            op::SERVICES => put(figures, &callees::services(self)?),
            op::POPULATE => put(figures, &self.moving(|memory| self.populate(memory))?),
            op::EVICT => put(figures, &self.moving(Self::evict)?),
            op::COPIED => put(figures, &self.moving(|_| Ok(()))?),
            _ => return Err(EINVAL),
        }
        Ok(())
    }

    /// The addresses of the operation.
    pub(crate) fn span(&self) -> Result<Range<usize>> {
        Ok(self.addr..self.addr.checked_add(self.size).ok_or(EINVAL)?)
    }

    /// The shape of a driver's fault handler. It is not tried again: nothing else changes the
    /// process's mappings.
    fn fault(&self) -> Result<[u64; FIGURES]> {
        let window = self.span()?;
        let mut ctx = Ctx::new(self.access);
        let target = match self.count {
            0 => None,
            _ => Some(self.memory.ok_or(ENODEV)?),
        };
        if let Some(memory) = target {
            ctx = ctx.with_owner(memory.pagemap().owner());
            memory.provider().take_copied();
        }
        let walks = hmm::walks();
        let mut retry = Retry::bounded();
        let attempt = retry.next().ok_or(EBUSY)?;

        let begin = clock::now();
        let mut guard = self.svm.lock();
        guard.collect_garbage();
        let begun = clock::now();
        let mut found = guard.find_or_insert(self.addr, window, &ctx, &attempt)?;
        let there = clock::now();
        if let Some(memory) = target {
            self.populate(memory)?;
        }
        let populated = clock::now();
        found.get(&ctx, &attempt)?;
        let mapped = clock::now();
        let segments = found.commit(|view, _| {
            view.segments()
                .inspect(|segment| {
                    black_box((segment.va, segment.addr, segment.writable));
                })
                .count()
        });
        let committed = clock::now();
        let size = found.size();
        drop(found);
        drop(guard);
        let end = clock::now();

        let segments = segments.map_err(|_| EAGAIN)?;
        let net = |from: u64, to: u64| self.clock.net(to.wrapping_sub(from), 0);
        let mut figures = [0; FIGURES];
        figures[fault::TOTAL] = self.clock.net(end.wrapping_sub(begin), 5);
        figures[fault::BEGIN] = net(begin, begun);
        figures[fault::FIND_OR_INSERT] = net(begun, there);
        figures[fault::GET] = net(populated, mapped);
        figures[fault::COMMIT] = net(mapped, committed);
        figures[fault::END] = net(committed, end);
        figures[fault::SEGMENTS] = segments as u64;
        figures[fault::SIZE] = size as u64;
        figures[fault::WALKS] = hmm::walks().wrapping_sub(walks);
        if let Some(memory) = target {
            let copied = memory.provider().take_copied();
            figures[fault::COPY] = copied.cost;
            figures[fault::COPIED] = copied.bytes;
        }
        Ok(figures)
    }

    /// Moves what is there to the device's memory. What does not move is not an error.
    fn populate(&self, memory: &DeviceMemory<Vram>) -> Result {
        let mm = self.svm.mm().ok_or(EINVAL)?;
        memory.populate(mm, self.span()?, 0).map(|_| ())
    }

    /// Brings all that is in the device's memory back.
    fn evict(memory: &DeviceMemory<Vram>) -> Result {
        while let Some(handle) = memory.provider().handle() {
            handle.evict()?;
        }
        Ok(())
    }

    /// What moving memory costs.
    fn moving(&self, what: impl FnOnce(&DeviceMemory<Vram>) -> Result) -> Result<[u64; 3]> {
        let memory = self.memory.ok_or(ENODEV)?;
        let (cost, moved) = clock::cost(|| what(memory));
        moved?;
        let copied = memory.provider().take_copied();
        Ok([self.clock.net(cost, 0), copied.cost, copied.bytes])
    }

    fn find(&self) -> Result<[u64; 2]> {
        let begin = clock::now();
        let mut guard = self.svm.lock();
        let locked = clock::now();
        let found = guard.find(self.addr);
        let hit = found.is_some();
        drop(black_box(found));
        let seen = clock::now();
        drop(guard);
        let end = clock::now();
        if !hit {
            return Err(ENOENT);
        }
        Ok([
            self.clock.net(seen.wrapping_sub(locked), 0),
            self.clock.net(end.wrapping_sub(begin), 2),
        ])
    }

    /// Makes the range at `addr`.
    fn insert(&self, guard: &mut Guard<'_, Bench>, addr: usize) -> Result<u64> {
        let window = addr..addr.checked_add(PAGE_SIZE).ok_or(EINVAL)?;
        let ctx = Ctx::new(self.access);
        let mut retry = Retry::bounded();
        let attempt = retry.next().ok_or(EBUSY)?;
        let (cost, found) =
            clock::cost(|| guard.find_or_insert(addr, window, &ctx, &attempt).map(drop));
        found?;
        Ok(self.clock.net(cost, 0))
    }

    fn insert_remove(&self) -> Result<[u64; 2]> {
        let mut guard = self.svm.lock();
        if guard.find(self.addr).is_some() {
            return Err(EEXIST);
        }
        let inserted = self.insert(&mut guard, self.addr)?;
        let found = guard.find(self.addr).ok_or(ENOENT)?;
        let (removed, ()) = clock::cost(|| found.remove());
        Ok([inserted, self.clock.net(removed, 0)])
    }

    fn remove(&self) -> Result<[u64; 1]> {
        let mut guard = self.svm.lock();
        let found = guard.find(self.addr).ok_or(ENOENT)?;
        let (cost, ()) = clock::cost(|| found.remove());
        Ok([self.clock.net(cost, 0)])
    }

    fn invalidate(&self) -> Result<[u64; 2]> {
        let span = self.span()?;
        let event = match self.count {
            0 => bindings::mmu_notifier_event_MMU_NOTIFY_CLEAR,
            _ => bindings::mmu_notifier_event_MMU_NOTIFY_UNMAP,
        };
        // Keeps the notifier where it is.
        let _guard = self.svm.lock();
        // SAFETY: The SVM lock is held.
        let notifier = unsafe { self.svm.core().notifier_find(span.clone()) }.ok_or(ENOENT)?;
        // SAFETY: As above.
        let mni = unsafe { notifier.as_ref() }.mmu().as_raw();
        let range = bindings::mmu_notifier_range {
            mm: self.svm.mm().ok_or(EINVAL)?.as_raw(),
            start: span.start as c_ulong,
            end: span.end as c_ulong,
            flags: bindings::MMU_NOTIFIER_RANGE_BLOCKABLE,
            event,
            owner: core::ptr::null_mut(),
        };
        // SAFETY: The notifier is inserted, so that its operations and its sequence are set. To
        // set it to what it is changes nothing for readers, who are let go of pages all the same.
        let (invalidate, seq) = unsafe { ((*(*mni).ops).invalidate, (*mni).invalidate_seq) };
        let invalidate = invalidate.ok_or(EINVAL)?;
        // SAFETY: This is how the MM calls it: the notifier is inserted, the range valid, and the
        // lock that the callback takes not held.
        let (cost, _) = clock::cost(|| unsafe { invalidate(mni, &raw const range, seq) });
        Ok([self.clock.net(cost, 0), self.svm.vm().take_told()])
    }

    fn fill(&self) -> Result<[u64; 1]> {
        let mut guard = self.svm.lock();
        let begin = clock::now();
        for i in 0..self.count as usize {
            let offset = i.checked_mul(self.size).ok_or(EINVAL)?;
            self.insert(&mut guard, self.addr.checked_add(offset).ok_or(EINVAL)?)?;
        }
        Ok([clock::now().wrapping_sub(begin)])
    }

    fn collect(&self) -> [u64; 2] {
        let mut guard = self.svm.lock();
        let (cost, removed) = clock::cost(|| guard.collect_garbage());
        [self.clock.net(cost, 0), removed as u64]
    }
}
