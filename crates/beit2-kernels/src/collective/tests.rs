//! Groups of threads, and the same of processes.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use beit2_ranks::{Limits, Place, join};
use burn::backend::Flex;
use burn::tensor::TensorData;
use burn::tensor::backend::Device;

use super::*;
use crate::testing::random;

type B = Autodiff<Flex>;

/// What `work` gives on each rank of a group of `world` threads.
fn on_ranks<T: Send>(world: usize, work: impl Fn(Rank) -> T + Sync) -> Vec<T> {
    let id = burn::backend::flex::FlexDevice.to_id();
    std::thread::scope(|scope| {
        let work = &work;
        let start = |rank: Rank| {
            scope.spawn(move || {
                let _stay = rank.stay();
                work(rank)
            })
        };
        let threads: Vec<_> = Rank::group(&vec![id; world]).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The same in a group of processes, for each of which a thread stands: they reach each other by TCP only.
fn on_processes<T: Send>(world: usize, work: impl Fn(Rank) -> T + Sync) -> Vec<T> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let all = Barrier::new(world);
    std::thread::scope(|scope| {
        let (work, all) = (&work, &all);
        let start = |index: usize| {
            scope.spawn(move || {
                let (rank, rendezvous) = (format!("{index}/{world}"), format!("127.0.0.1:{port}"));
                let place = Place::find(Some(&rank), Some(&rendezvous), |_| None).unwrap().unwrap();
                let group = join(&place, &[], Limits::default(), &|_| (), &|| false).unwrap();
                let rank = Rank::of_process(group).on(burn::backend::flex::FlexDevice.to_id());
                // Nobody leaves while others are still on their way in.
                all.wait();
                let _stay = rank.stay();
                work(rank)
            })
        };
        let threads: Vec<_> = (0..world).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Small tensors and those that are summed in parts, also in parts of different lengths, and buckets of them.
#[test]
fn processes_get_the_bits_of_threads() {
    for world in [2, 3] {
        let work = |rank: Rank| {
            let own = |count: usize| {
                let values = random(count, 10 * count as u64 + rank.index() as u64, 1.0);
                let values: Vec<f32> = values.into_iter().map(|x| x as f32).collect();
                Tensor::<Flex, 1>::from_data(TensorData::new(values, [count]), &Default::default())
            };
            let bits = |x: Tensor<Flex, 1>| {
                let values = x.into_data().into_vec::<f32>().unwrap();
                values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let mut all: Vec<_> =
                [1, 7, 16_384, 16_385, 100_003].map(|count| bits(rank.sum(own(count)))).into();
            all.extend(rank.means([3, 50_000, 1].map(own).into()).into_iter().map(bits));
            let wide = own(40_000).cast(DType::F64);
            all.push(bits(rank.sum(wide).cast(DType::F32)));
            assert_eq!(rank.gather(f64::NAN).unwrap().len(), world);
            assert_eq!(rank.broadcast(rank.leads().then_some(None::<u8>)), Ok(None));
            all
        };
        let (threads, processes) = (on_ranks(world, work), on_processes(world, work));
        assert!(threads == processes && threads[0] == threads[1], "{world}");
    }
}

#[test]
fn a_process_that_left_says_why() {
    let found = on_processes(3, |rank| {
        if rank.index() == 1 {
            rank.leave(Some("no space"));
            return Ok(());
        }
        // Its own part, and the reason when it asks.
        let x = Tensor::<Flex, 1>::ones([40_000], &Default::default());
        assert!(rank.sum(x).into_data().into_vec::<f32>().unwrap().iter().all(|&x| x == 1.0));
        rank.gather(0).map(drop).map_err(|left| left.to_string())
    });
    let why = Err("rank 1 stopped: no space".to_owned());
    assert_eq!(found, [why.clone(), Ok(()), why]);
}

#[test]
fn processes_that_do_different_things_end() {
    let found = on_processes(2, |rank| {
        let x = Tensor::<Flex, 1>::ones([3 + rank.index()], &Default::default());
        let _ = rank.sum(x);
        rank.gather(0).map(drop).map_err(|left| left.to_string())
    });
    assert!(found.iter().all(|found| found.as_ref().unwrap_err().contains("different things")), "{found:?}");
}

#[test]
fn all_ranks_get_all_values_in_order_round_after_round() {
    let found = on_ranks(3, |rank| {
        (0..200).map(|round| rank.gather(10 * round + rank.index()).unwrap().to_vec()).collect::<Vec<_>>()
    });
    let expected: Vec<_> = (0..200).map(|round| (0..3).map(|r| 10 * round + r).collect::<Vec<_>>()).collect();
    assert_eq!(found, vec![expected; 3]);
    let received = on_ranks(2, |rank| rank.broadcast(rank.leads().then(|| "value".to_owned())).unwrap());
    assert_eq!(received, ["value", "value"]);
}

/// Of Σ_r mean_r'(x_r')²·weight_r: the gradient is averaged as the values are, and a second group member's loss
/// reaches this one's input.
#[test]
fn means_and_their_gradients() {
    for dtype in [DType::F32, DType::F64, DType::BF16] {
        let found = on_ranks(2, |rank| {
            let device = Default::default();
            let own = [[1.0, 2.0, 3.0], [5.0, -2.0, 1.0]][rank.index()];
            let weight = [1.0, 10.0][rank.index()];
            let x = Tensor::<B, 1>::from_data(own, (&device, dtype)).require_grad();
            let mean = rank.mean(x.clone());
            let loss = (mean.clone() * mean.clone()).sum().mul_scalar(weight);
            let grads = loss.backward();
            let values = |t: TensorData| t.convert::<f64>().into_vec::<f64>().unwrap();
            assert_eq!(mean.dtype(), dtype);
            let sum = rank.sum(x.clone().inner());
            (values(mean.into_data()), values(x.grad(&grads).unwrap().into_data()), values(sum.into_data()))
        });
        // mean (3, 0, 2); gradients 2·mean·(1 + 10)/2.
        let expected = (vec![3.0, 0.0, 2.0], vec![33.0, 0.0, 22.0], vec![6.0, 0.0, 4.0]);
        assert_eq!(found, vec![expected; 2], "{dtype:?}");
    }
}

#[test]
fn large_tensors_and_shapes() {
    let dims = [3, 70_001];
    let found = on_ranks(3, |rank| {
        let x = Tensor::<Flex, 2>::full(dims, 1.5 * rank.index() as f64, &Default::default());
        let mean = rank.mean(x);
        (mean.dims(), mean.into_data().into_vec::<f32>().unwrap())
    });
    for (shape, values) in found {
        assert!(shape == dims && values.iter().all(|&x| x == 1.5));
    }
}

#[test]
fn no_rank_waits_for_one_that_left() {
    let met = AtomicUsize::new(0);
    let found = on_ranks(3, |rank| {
        if rank.index() == 1 {
            return Ok(());
        }
        let x = Tensor::<Flex, 1>::ones([2], &Default::default());
        assert_eq!(rank.sum(x).into_data().into_vec::<f32>().unwrap(), [1.0, 1.0]);
        met.fetch_add(1, Ordering::SeqCst);
        rank.gather(0).map(drop)
    });
    assert_eq!(found, [Err(PeerLeft::default()), Ok(()), Err(PeerLeft::default())]);
    assert_eq!(met.into_inner(), 2);
}

#[test]
fn alone_nothing_changes() {
    let rank = Rank::alone();
    let x = Tensor::<Flex, 1>::ones([2], &Default::default());
    assert_eq!(rank.sum(x.clone()).into_data(), rank.mean(x).into_data());
    assert!(rank.leads() && rank.world() == 1);
    assert_eq!(*rank.gather(5).unwrap(), [5]);
    assert_eq!(rank.broadcast(Some(6)), Ok(6));
}
