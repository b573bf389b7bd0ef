// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of fault queues: each fault is answered, with the result of its service.

use kernel::prelude::*;

#[kunit_tests(vxe_fault_queue)]
mod suite {
    use super::super::*;
    use kernel::sync::{
        new_spinlock,
        SpinLock, //
    };

    const PAGE: u64 = 4096;

    /// The answer to a fault, if there is one.
    type Answer = Arc<SpinLock<Option<Result>>>;

    struct Waiter {
        fault: Fault,
        answer: Answer,
    }

    impl Faulting for Waiter {
        fn fault(&self) -> Fault {
            self.fault
        }

        fn answer(node: KBox<FifoNode<Self>>, result: Result) {
            let before = node.value.answer.lock().replace(result);
            // A fault is answered once.
            assert_eq!(before, None);
        }
    }

    type Queue = Pin<KBox<FaultQueue<Waiter>>>;

    fn queue() -> Result<Queue> {
        KBox::pin_init(FaultQueue::new(), GFP_KERNEL)
    }

    fn submit(queue: &Queue, addr: u64, access: Access) -> Result<Answer> {
        let answer = Arc::pin_init(new_spinlock!(None), GFP_KERNEL)?;
        let waiter = Waiter {
            fault: Fault { addr, access },
            answer: answer.clone(),
        };
        queue.submit(FifoNode::new(waiter, GFP_KERNEL)?);
        Ok(answer)
    }

    fn answer(waiter: &Answer) -> Option<Result> {
        *waiter.lock()
    }

    /// The result of a service after which no fault is pending.
    const LAST: Option<ServeResult> = Some(ServeResult {
        teardown: TearDown::Other,
        more: false,
    });

    /// The result of a service after which more faults are pending.
    const MORE: Option<ServeResult> = Some(ServeResult {
        teardown: TearDown::Other,
        more: true,
    });

    /// Returns the result of a service that maps the page at `addr` for `access`.
    fn served(addr: u64, access: Access) -> Result<Serviced> {
        Ok(Serviced {
            span: addr..addr + PAGE,
            access,
        })
    }

    fn counts(queue: &Queue) -> (u64, u64, u64) {
        let counts = queue.counts();
        (counts.served, counts.coalesced, counts.failed)
    }

    #[test]
    fn a_failure_is_the_answer() -> Result {
        let queue = queue()?;
        for error in [EPERM, EACCES, EFAULT, EBUSY, ENOMEM] {
            let waiter = submit(&queue, 0, Access::Write)?;
            assert_eq!(answer(&waiter), None);
            assert_eq!(queue.serve(|_| Err(error)), LAST);
            assert_eq!(answer(&waiter), Some(Err(error)));
        }
        assert_eq!(queue.serve(|_| Err(EINVAL)), None);
        assert_eq!(counts(&queue), (0, 0, 5));
        Ok(())
    }

    #[test]
    fn a_failure_is_shared_by_the_same_faults_only() -> Result {
        let queue = queue()?;
        let first = submit(&queue, PAGE, Access::Write)?;
        let same = submit(&queue, PAGE, Access::Write)?;
        let weaker = submit(&queue, PAGE, Access::Read)?;
        let elsewhere = submit(&queue, 0, Access::Write)?;
        assert_eq!(queue.serve(|_| Err(EPERM)), MORE);
        assert_eq!(answer(&first), Some(Err(EPERM)));
        assert_eq!(answer(&same), Some(Err(EPERM)));
        assert_eq!(answer(&weaker), None);
        assert_eq!(answer(&elsewhere), None);
        assert_eq!(counts(&queue), (0, 1, 1));
        Ok(())
    }

    #[test]
    fn success_is_shared_by_all_that_it_settles() -> Result {
        let queue = queue()?;
        let first = submit(&queue, PAGE, Access::Write)?;
        let weaker = submit(&queue, 2 * PAGE - 1, Access::Read)?;
        let stronger = submit(&queue, PAGE, Access::Atomic)?;
        let below = submit(&queue, PAGE - 1, Access::Read)?;
        let behind = submit(&queue, 2 * PAGE, Access::Read)?;
        let done = queue.serve(|fault| {
            assert_eq!(fault.addr, PAGE);
            // The fault is not answered before its service is complete.
            assert_eq!(answer(&first), None);
            served(PAGE, fault.access)
        });
        assert_eq!(done, MORE);
        assert_eq!(answer(&first), Some(Ok(())));
        assert_eq!(answer(&weaker), Some(Ok(())));
        for other in [&stronger, &below, &behind] {
            assert_eq!(answer(other), None);
        }
        assert_eq!(counts(&queue), (1, 1, 0));
        Ok(())
    }

    #[test]
    fn a_fault_that_is_forgotten_has_failed() -> Result {
        let queue = queue()?;
        let waiter = submit(&queue, 0, Access::Read)?;
        drop(queue);
        assert_eq!(answer(&waiter), Some(Err(EIO)));
        Ok(())
    }

    #[test]
    fn closing_fails_all_that_wait() -> Result {
        let queue = queue()?;
        let waiting = [
            submit(&queue, 0, Access::Read)?,
            submit(&queue, PAGE, Access::Write)?,
        ];
        assert_eq!(queue.close(), TearDown::Caller);
        for waiter in &waiting {
            assert_eq!(answer(waiter), Some(Err(ENOENT)));
        }
        assert_eq!(queue.close(), TearDown::Other);
        assert_eq!(queue.serve(|_| served(0, Access::Atomic)), None);
        let late = submit(&queue, 0, Access::Read)?;
        assert_eq!(answer(&late), Some(Err(ENOENT)));
        Ok(())
    }

    #[test]
    fn closing_fails_what_is_being_serviced() -> Result {
        let queue = queue()?;
        let (first, second) = (
            submit(&queue, 0, Access::Read)?,
            submit(&queue, 0, Access::Read)?,
        );
        let done = queue.serve(|_| {
            assert_eq!(queue.close(), TearDown::Other);
            // The faults are answered at once, whatever the service returns.
            assert_eq!(answer(&first), Some(Err(ENOENT)));
            assert_eq!(answer(&second), Some(Err(ENOENT)));
            assert_eq!(queue.close(), TearDown::Other);
            served(0, Access::Atomic)
        });
        assert_eq!(done.map(|done| done.teardown), Some(TearDown::Caller));
        assert_eq!(answer(&first), Some(Err(ENOENT)));
        assert_eq!(queue.close(), TearDown::Other);
        Ok(())
    }
}
