// SPDX-License-Identifier: GPL-2.0

//! Tests of task work, and of the worker that waits until the thread has finished it.

use crate::fixture::thread::sleep_ms;
use core::{
    ffi::c_void,
    mem::ManuallyDrop,
    ptr::{self, NonNull}, //
};
use kernel::{
    bindings,
    current,
    error::from_err_ptr,
    ffi::c_int,
    module::this_module,
    new_mutex,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::{Acquire, Atomic, Release},
        Arc,
        Mutex, //
    },
    task::Task,
    workqueue::WorkItem, //
};
use kernel_ext::{
    module::ModuleRef,
    task_work::{Notify, TaskWork, TaskWorkItem},
    workqueue::OwnedQueue, //
};

/// How long the test waits for a condition, in milliseconds.
const TIMEOUT_MS: u32 = 5000;

/// State shared by the test, the thread and the worker.
#[pin_data]
struct Shared {
    queue: OwnedQueue,
    #[pin]
    worker: Mutex<Option<ARef<Task>>>,
    /// Lets the thread return from the item.
    go: Atomic<bool>,
    /// Set when the worker has seen the thread return.
    over: Atomic<bool>,
}

impl Shared {
    fn wait(&self, until: &Atomic<bool>) {
        for _ in 0..TIMEOUT_MS {
            if until.load(Acquire) {
                break;
            }
            sleep_ms(1);
        }
    }
}

/// An item from which the thread returns when `go` is set.
struct Late(Arc<Shared>);

/// The shared state of the item that has run last.
static LAST: Atomic<*mut Shared> = Atomic::new(ptr::null_mut());

// SAFETY: `finish()` passes the work to a worker, which calls `TaskWork::run()`, and leaks it if that cannot be started.
// The queue is drained when the test drops it.
unsafe impl TaskWorkItem for Late {
    fn run(&self) {
        LAST.store(Arc::into_raw(self.0.clone()).cast_mut(), Release);
    }

    fn finish(work: Pin<KBox<TaskWork<Self>>>) {
        // SAFETY: `run()`, which was called before, left a reference there.
        let shared = unsafe { Arc::from_raw(LAST.load(Acquire)) };
        let waiter = shared.clone();
        let work = ManuallyDrop::new(work);
        let spawned = shared.queue.try_spawn(GFP_KERNEL, move || {
            let task: &Task = current!();
            *waiter.worker.lock() = Some(task.into());
            TaskWork::run(ManuallyDrop::into_inner(work));
            waiter.over.store(true, Release);
        });
        if spawned.is_ok() {
            shared.wait(&shared.go);
        }
    }
}

/// The function of a thread that exits at once, and runs its task work then.
///
/// # Safety
///
/// Only the kernel may call this, as the function of a new thread.
unsafe extern "C" fn end(_data: *mut c_void) -> c_int {
    0
}

fn state(task: &Task) -> u32 {
    // SAFETY: The task is valid; its state is one word.
    unsafe { (&raw const (*task.as_ptr()).__state).read_volatile() }
}

#[kunit_tests(gpusvm_task_work)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_a_thread_to_come_back_is_idle() -> Result {
        let shared = Arc::pin_init(
            try_pin_init!(Shared {
                queue: OwnedQueue::new_unbound(c"gpusvm_kunit")?,
                worker <- new_mutex!(None),
                go: Atomic::new(false),
                over: Atomic::new(false),
            }? Error),
            GFP_KERNEL,
        )?;
        let this = this_module::<crate::GpuSvmTests>();
        // SAFETY: This is code of the module, which is loaded.
        let module = unsafe { ModuleRef::try_get(this.as_ptr()) }?;
        let work = TaskWork::new(Late(shared.clone()), module)?;
        // SAFETY: The function takes no argument; the name contains no format specifiers.
        let thread = from_err_ptr(unsafe {
            bindings::kthread_create_on_node(
                Some(end),
                ptr::null_mut(),
                bindings::NUMA_NO_NODE,
                c"gpusvm_kunit".as_char_ptr(),
            )
        })?;
        let thread = NonNull::new(thread).ok_or(ENOMEM)?;
        // SAFETY: The thread does not run, and so exists, until it is woken.
        let sent = work.send(unsafe { thread.cast().as_ref() }, Notify::Resume);
        // SAFETY: As above.
        unsafe { bindings::wake_up_process(thread.as_ptr()) };
        sent?;
        let mut seen = 0;
        for _ in 0..TIMEOUT_MS {
            seen = shared.worker.lock().as_ref().map_or(0, |task| state(task));
            if seen != 0 {
                break;
            }
            sleep_ms(1);
        }
        // Check again: the worker may have slept before it began to wait.
        sleep_ms(10);
        seen = shared
            .worker
            .lock()
            .as_ref()
            .map_or(seen, |task| state(task));
        shared.go.store(true, Release);
        shared.wait(&shared.over);
        // Its own work must not drop the last reference to the queue.
        shared.queue.flush();
        ensure!(shared.over.load(Acquire));
        ensure_eq!(seen, bindings::TASK_IDLE);
        Ok(())
    }
}
