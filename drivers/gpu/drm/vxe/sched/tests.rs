// SPDX-License-Identifier: GPL-2.0

//! KUnit suite of the scheduler: which queue runs, when, for how long.

use kernel::prelude::*;

#[kunit_tests(vxe_sched)]
mod suite {
    use super::super::*;

    /// A queue with a name.
    struct Queue {
        name: u32,
        sched: SchedState<Self>,
    }

    fn queue(name: u32) -> Result<KBox<FifoNode<Queue>>> {
        queue_for(name, TIMESLICE_NS)
    }

    /// Creates a queue with a timeslice.
    fn queue_for(name: u32, timeslice: u64) -> Result<KBox<FifoNode<Queue>>> {
        let sched = SchedState::new(timeslice);
        FifoNode::new(Queue { name, sched }, GFP_KERNEL)
    }

    impl Entity for Queue {
        fn sched_state(&mut self) -> &mut SchedState<Self> {
            &mut self.sched
        }
    }

    type List = Pin<KBox<RunList<Queue>>>;

    /// Creates a list for `engines` engines, none of which is idle.
    fn list(engines: usize) -> Result<List> {
        let list = KBox::pin_init(RunList::new(engines), GFP_KERNEL)?;
        for engine in 0..engines {
            assert!(list.next(engine).is_none());
        }
        Ok(list)
    }

    /// Creates a client with `queues` runnable queues, named from `first` on.
    fn client(list: &List, first: u32, queues: u32) -> Result<Arc<RunQueue<Queue>>> {
        let run_queue = RunQueue::new()?;
        for name in first..first + queues {
            list.put_back(&run_queue, queue(name)?);
        }
        Ok(run_queue)
    }

    /// Takes the next turn on engine 0. Returns the queue's name and the turn.
    fn next(list: &List) -> Result<(u32, Turn<Queue>)> {
        let turn = list.next(0).ok_or(EIO)?;
        Ok((turn.node.value.name, turn))
    }

    /// Runs the next queue for all of its granted time; it stays runnable. Returns its name.
    fn run(list: &List) -> Result<u32> {
        let (name, turn) = next(list)?;
        end(list, turn);
        Ok(name)
    }

    /// Ends a turn that used all of its granted time.
    fn end(list: &List, turn: Turn<Queue>) {
        let (run_queue, grant) = (turn.run_queue.clone(), turn.grant);
        let node = list.account(turn, grant);
        list.put_back(&run_queue, node);
    }

    /// Makes a queue runnable again.
    fn wake(list: &List, run_queue: &Arc<RunQueue<Queue>>, node: KBox<FifoNode<Queue>>) {
        // The test plays all engines, so it needs to wake none.
        let _ = list.wake(run_queue, node);
    }

    /// Runs the next queue for `used` nanoseconds, after which it waits.
    fn run_and_wait(list: &List, used: u64) -> Result<(u32, KBox<FifoNode<Queue>>)> {
        let (name, turn) = next(list)?;
        Ok((name, list.account(turn, used)))
    }

    fn sequence<const N: usize>(list: &List) -> Result<[u32; N]> {
        let mut names = [0; N];
        for name in &mut names {
            *name = run(list)?;
        }
        Ok(names)
    }

    #[test]
    fn queues_of_one_client_take_turns() -> Result {
        let list = list(1)?;
        let _client = client(&list, 1, 3)?;
        assert_eq!(sequence(&list)?, [1, 2, 3, 1, 2, 3, 1]);
        Ok(())
    }

    #[test]
    fn clients_take_turns_however_many_queues_they_have() -> Result {
        let list = list(1)?;
        let _many = client(&list, 1, 3)?;
        let _one = client(&list, 10, 1)?;
        let _two = client(&list, 20, 2)?;
        assert_eq!(
            sequence(&list)?,
            [1, 10, 20, 2, 10, 21, 3, 10, 20, 1, 10, 21]
        );
        Ok(())
    }

    #[test]
    fn a_client_that_is_alone_has_all_engines() -> Result {
        let list = list(2)?;
        let _client = client(&list, 1, 3)?;
        let (a, first) = next(&list)?;
        let (b, second) = next(&list)?;
        assert_eq!((a, b), (1, 2));
        // An additional client competes for the next turn.
        let _other = client(&list, 10, 1)?;
        let (c, third) = next(&list)?;
        assert!(c == 3 || c == 10);
        for turn in [first, second, third] {
            end(&list, turn);
        }
        Ok(())
    }

    #[test]
    fn who_has_time_left_goes_first() -> Result {
        let list = list(1)?;
        let (a, _b) = (client(&list, 1, 2)?, client(&list, 10, 1)?);
        // A fault.
        let (name, node) = run_and_wait(&list, TIMESLICE_NS / 4)?;
        assert_eq!(name, 1);
        // The fault is serviced while another queue of the client, and another client, could run.
        wake(&list, &a, node);
        let (name, turn) = next(&list)?;
        assert_eq!((name, turn.grant), (1, TIMESLICE_NS - TIMESLICE_NS / 4));
        end(&list, turn);
        // The queue's time is over. The client has some left for its next turn.
        assert_eq!(run(&list)?, 10);
        let (name, turn) = next(&list)?;
        assert_eq!((name, turn.grant), (2, TIMESLICE_NS / 4));
        end(&list, turn);
        // A queue gets the rest of its timeslice in the client's next turn, the other queue the
        // remaining time.
        assert_eq!(sequence(&list)?, [10, 2, 1, 10, 1, 2, 10]);
        Ok(())
    }

    #[test]
    fn who_is_prompt_spends_the_time_of_its_client() -> Result {
        let list = list(1)?;
        let (a, _b) = (client(&list, 1, 9)?, client(&list, 10, 1)?);
        // Four queues of the client wait after a quarter of a timeslice each, less than their own,
        // and become runnable again; together they would exceed the client's timeslice.
        let mut waiting = KVec::new();
        while waiting.len() < 4 {
            let (name, turn) = next(&list)?;
            if name == 10 {
                end(&list, turn);
            } else {
                waiting.push(list.account(turn, TIMESLICE_NS / 4), GFP_KERNEL)?;
            }
        }
        for node in waiting {
            wake(&list, &a, node);
        }
        let names: [u32; 6] = sequence(&list)?;
        assert_eq!(names.iter().position(|name| *name == 10), Some(2));
        assert_eq!(names.iter().filter(|name| **name == 10).count(), 2);
        Ok(())
    }

    #[test]
    fn short_jobs_go_before_long_ones() -> Result {
        let list = list(1)?;
        let _long = client(&list, 10, 3)?;
        let short = client(&list, 1, 1)?;
        assert_eq!(sequence(&list)?, [10]);
        let (name, mut node) = run_and_wait(&list, TIMESLICE_NS / 8)?;
        assert_eq!(name, 1);
        // For this many jobs the queue has time left.
        for _ in 1..8 {
            assert_eq!(run(&list)? / 10, 1);
            wake(&list, &short, node);
            let name;
            (name, node) = run_and_wait(&list, TIMESLICE_NS / 8)?;
            assert_eq!(name, 1);
        }
        Ok(())
    }

    #[test]
    fn coming_and_going_makes_no_time() -> Result {
        let list = list(1)?;
        let (a, b) = (client(&list, 1, 1)?, client(&list, 10, 1)?);
        let mut used = [0, 0];
        let mut now = None;
        for _ in 0..1000 {
            // One of them waits after three quarters of its granted time, each time, and is
            // runnable again at once.
            let (name, turn) = next(&list)?;
            let (run_queue, time) = if name == 1 {
                (&a, (turn.grant * 3 / 4).max(TIMESLICE_NS / 8))
            } else {
                (&b, turn.grant)
            };
            used[usize::from(name == 10)] += time;
            if now.replace(name) == Some(10) {
                assert_eq!(name, 1);
            }
            let node = list.account(turn, time);
            if name == 1 {
                wake(&list, run_queue, node);
            } else {
                list.put_back(run_queue, node);
            }
        }
        assert!(used[0] < used[1] + used[1] / 4 && used[1] < used[0] + used[0] / 4);
        Ok(())
    }

    #[test]
    fn a_new_client_waits_for_its_turn() -> Result {
        let list = list(1)?;
        let _old = [client(&list, 10, 1)?, client(&list, 20, 1)?];
        let mut new = KVec::new();
        // Any number of new clients.
        for name in 100..110 {
            new.push(client(&list, name, 1)?, GFP_KERNEL)?;
        }
        assert_eq!(sequence(&list)?, [10, 20, 100, 101]);
        Ok(())
    }

    #[test]
    fn queues_have_timeslices_of_their_own() -> Result {
        let list = list(1)?;
        // Time for two turns of the client, for half of one, and for one.
        let client = RunQueue::new()?;
        for (name, timeslice) in [
            (1, 2 * TIMESLICE_NS),
            (2, TIMESLICE_NS / 2),
            (3, TIMESLICE_NS),
        ] {
            list.put_back(&client, queue_for(name, timeslice)?);
        }
        assert_eq!(sequence(&list)?, [1, 1, 2, 3, 3, 1, 1, 1, 2]);
        // Each turn of another client is as long as before.
        let _other = self::client(&list, 10, 1)?;
        let mut times = [0, 0];
        for _ in 0..100 {
            let (name, turn) = next(&list)?;
            times[usize::from(name == 10)] += turn.grant;
            end(&list, turn);
        }
        assert!(times[0].abs_diff(times[1]) <= 2 * TIMESLICE_NS);
        Ok(())
    }

    /// A turn of an engine lasts for so long at least, in nanoseconds.
    const STEP: u64 = 20_000;

    #[test]
    fn a_short_timeslice_makes_no_time() -> Result {
        let list = list(1)?;
        let _other = client(&list, 10, 1)?;
        let client = RunQueue::new()?;
        list.put_back(&client, queue_for(1, 1000)?);
        let mut used = [0, 0];
        for _ in 0..4000 {
            let (name, turn) = next(&list)?;
            let time = turn.grant.max(STEP);
            used[usize::from(name == 10)] += time;
            let run_queue = turn.run_queue.clone();
            list.put_back(&run_queue, list.account(turn, time));
        }
        assert!(used[0].abs_diff(used[1]) <= 2 * TIMESLICE_NS);
        Ok(())
    }

    #[test]
    fn processes_that_share_a_run_queue_share_its_time() -> Result {
        let list = list(1)?;
        let shared = RunQueue::new_shared()?;
        list.put_back(&shared, queue_for(1, 100 * TIMESLICE_NS)?);
        list.put_back(&shared, queue(2)?);
        assert_eq!(sequence(&list)?, [1, 2, 1, 2]);
        // A queue whose process has exited: it has time left that it had there.
        let client = RunQueue::new()?;
        list.put_back(&client, queue_for(3, 100 * TIMESLICE_NS)?);
        let node = loop {
            let (name, turn) = next(&list)?;
            match name {
                3 => break list.account(turn, TIMESLICE_NS),
                _ => end(&list, turn),
            }
        };
        list.put_back(&shared, node);
        let names: [u32; 12] = sequence(&list)?;
        for name in 1..=3 {
            assert_eq!(names.iter().filter(|other| **other == name).count(), 4);
        }
        Ok(())
    }

    #[test]
    fn the_next_turn_has_the_new_timeslice() -> Result {
        let list = list(1)?;
        let _clients = [client(&list, 1, 1)?, client(&list, 2, 1)?];
        assert_eq!(sequence(&list)?, [1, 2]);
        // Shorter: the clients have more time left than that.
        let short = TIMESLICE_NS / 8;
        list.set_timeslice(short);
        for name in [1, 2, 1, 2] {
            let (now, turn) = next(&list)?;
            assert_eq!((now, turn.grant), (name, short));
            end(&list, turn);
        }
        // Longer, and so are the turns of queues with as long a timeslice.
        list.set_timeslice(4 * TIMESLICE_NS);
        let long = RunQueue::new()?;
        list.put_back(&long, queue_for(3, 4 * TIMESLICE_NS)?);
        let grant = loop {
            let (name, turn) = next(&list)?;
            let grant = turn.grant;
            end(&list, turn);
            if name == 3 {
                break grant;
            }
        };
        assert_eq!(grant, 4 * TIMESLICE_NS);
        Ok(())
    }

    #[test]
    fn engines_without_work_are_called() -> Result {
        let list = KBox::pin_init(RunList::new(2), GFP_KERNEL)?;
        let run_queue = RunQueue::new()?;
        assert_eq!(list.wake(&run_queue, queue(1)?), Some(0));
        assert_eq!(list.wake(&run_queue, queue(2)?), Some(1));
        // All engines are busy, as far as the list knows.
        assert_eq!(list.wake(&run_queue, queue(3)?), None);
        for name in 1..=3 {
            assert!(list
                .next(1)
                .is_some_and(|turn| turn.node.value.name == name));
        }
        assert!(list.next(1).is_none());
        assert_eq!(list.wake(&run_queue, queue(4)?), Some(1));

        // The most engines of a device.
        let list = KBox::pin_init(RunList::new(MAX_ENGINES), GFP_KERNEL)?;
        let run_queue = RunQueue::new()?;
        for engine in 0..MAX_ENGINES {
            assert_eq!(list.wake(&run_queue, queue(0)?), Some(engine));
        }
        assert_eq!(list.wake(&run_queue, queue(0)?), None);
        Ok(())
    }
}
