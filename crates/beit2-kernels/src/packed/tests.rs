use burn::tensor::bf16;

use super::{Element, Form, PackedRhs};
use crate::matrix::{Accumulate, Matrix};
use crate::precision::Precision;
use crate::simd::{Level, level};
use crate::testing::random;

/// The forms that this CPU has instructions for.
fn forms() -> Vec<Form> {
    let wanted = [
        (Form::F32Avx2, Level::Avx2),
        (Form::F32Avx512, Level::Avx512),
        (Form::Bf16Avx512, Level::Avx512Bf16),
    ];
    let (here, missing): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|(_, least)| level() >= *least);
    for (form, _) in missing {
        println!("skipped {form:?}: this CPU has no instructions for it");
    }
    here.into_iter().map(|(form, _)| form).collect()
}

/// What an operand is in memory.
trait Stored: Element {
    fn store(x: f64) -> Self;
}

impl Stored for f32 {
    fn store(x: f64) -> Self {
        x as f32
    }
}

impl Stored for bf16 {
    fn store(x: f64) -> Self {
        bf16::from_f64(x)
    }
}

/// What a matmul sees of an operand.
fn seen(x: f32, precision: Precision) -> f64 {
    match precision {
        Precision::F32 => x.into(),
        Precision::Bf16 => bf16::from_f32(x).into(),
    }
}

/// Distances between neighbours of a column and of a row.
#[derive(Debug, Clone, Copy)]
enum Order {
    Rows,
    Columns,
    Scattered,
}

/// A matrix with gaps between its rows (or columns), and the reach of its slice.
fn matrix<E: Stored>(rows: usize, cols: usize, order: Order, seed: u64) -> (Vec<E>, [usize; 2]) {
    let [row, col] = match order {
        Order::Rows => [cols + 3, 1],
        Order::Columns => [1, rows + 5],
        Order::Scattered => [2 * cols + 1, 2],
    };
    let len = (rows - 1) * row + (cols - 1) * col + 1;
    (random(len, seed, 2.0).into_iter().map(E::store).collect(), [row, col])
}

fn view<E>(data: &[E], rows: usize, cols: usize, [row, col]: [usize; 2]) -> Matrix<'_, E> {
    if col == 1 {
        Matrix::new(data, rows, cols, row)
    } else if row == 1 {
        Matrix::new(data, cols, rows, col).transposed()
    } else {
        Matrix::strided(data, rows, cols, row, col)
    }
}

/// Values, gaps and threads of one matmul; `pools` of several sizes must give the same bits.
fn check<A: Stored, B: Stored>(
    form: Form,
    [m, k, n]: [usize; 3],
    orders: [Order; 2],
    pools: &[rayon::ThreadPool],
) {
    let (a_data, a_steps) = matrix::<A>(m, k, orders[0], 1);
    let (b_data, b_steps) = matrix::<B>(k, n, orders[1], 2);
    let (a, b) = (view(&a_data, m, k, a_steps), view(&b_data, k, n, b_steps));
    let start: Vec<f32> = random(n, 3, 4.0).into_iter().map(|x| x as f32).collect();
    let gap = 2;
    let before: Vec<f32> = random(m * (n + gap), 4, 4.0).into_iter().map(|x| x as f32).collect();
    let run = |start: Accumulate<'_>, parallel: bool| {
        let mut y = before.clone();
        // SAFETY: `y` holds the destination; `forms` found the instructions.
        unsafe {
            let packed = PackedRhs::in_form(b, form, parallel);
            packed.matmul(y.as_mut_ptr(), n + gap, start, 0.75, a, parallel);
        }
        y
    };
    let precision = form.precision();
    let at = |i: usize, l: usize| seen(a_data[i * a_steps[0] + l * a_steps[1]].value(), precision);
    let bt = |l: usize, j: usize| seen(b_data[l * b_steps[0] + j * b_steps[1]].value(), precision);
    let kinds = [Accumulate::Zero, Accumulate::Row(&start), Accumulate::There];
    let results = kinds.map(|start| run(start, false));
    for i in 0..m {
        for (j, &first) in start.iter().enumerate() {
            let terms = (0..k).map(|l| at(i, l) * bt(l, j));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + f64::abs(t)));
            let here = i * (n + gap) + j;
            for (y, base) in results.iter().zip([0.0, first, before[here]]) {
                let want = f64::from(base) + 0.75 * sum;
                let error = (f64::from(y[here]) - want).abs();
                let allowed = 4e-7 * (size + f64::from(base.abs()));
                assert!(
                    error <= allowed,
                    "{form:?} {m}×{k}×{n} {orders:?} [{i}, {j}]: {error:e} > {allowed:e}"
                );
            }
        }
        let after = i * (n + gap) + n..(i + 1) * (n + gap);
        assert!(results.iter().all(|y| y[after.clone()] == before[after.clone()]), "wrote between rows");
    }
    for pool in pools {
        let threads = pool.current_num_threads();
        for (start, y) in kinds.into_iter().zip(&results) {
            assert!(pool.install(|| run(start, true)) == *y, "{threads} threads give other bits");
        }
    }
}

const SHAPES: [[usize; 3]; 17] = [
    // Rows a page apart.
    [14, 1021, 3],
    [26, 2045, 5],
    [1, 1, 1],
    [12, 2, 32],
    [13, 3, 33],
    [1, 700, 17],
    [5, 31, 16],
    [6, 9, 8],
    [7, 40, 23],
    [13, 8, 25],
    [16, 33, 48],
    [197, 64, 197],
    [25, 1030, 7],
    [64, 197, 64],
    [11, 15, 65],
    [100, 1, 40],
    [103, 530, 97],
];

#[test]
fn matmuls_of_any_shape_and_order() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let pools = [1, 2, 3, 7].map(pool);
    let forms = forms();
    for shape in SHAPES {
        for orders in [
            [Order::Rows, Order::Columns],
            [Order::Rows, Order::Rows],
            [Order::Columns, Order::Rows],
            [Order::Columns, Order::Columns],
            [Order::Scattered, Order::Scattered],
        ] {
            for &form in &forms {
                check::<f32, f32>(form, shape, orders, &pools);
                check::<bf16, f32>(form, shape, orders, &[]);
                check::<f32, bf16>(form, shape, orders, &[]);
            }
        }
    }
}

#[test]
fn rounding_is_to_nearest_even_and_keeps_what_is_not_finite() {
    if !forms().contains(&Form::Bf16Avx512) {
        return;
    }
    // Halfway between two neighbours, and between the next two.
    let tie = |steps: f32| 1.0 + steps * 2f32.powi(-8);
    let x = [tie(1.0), tie(3.0), -tie(1.0), 3e38, f32::INFINITY, f32::NAN, 0.0, -0.0];
    let want = [1.0, tie(4.0), -1.0, bf16::from_f32(3e38).to_f32(), f32::INFINITY, f32::NAN, 0.0, 0.0];
    for copies in [1, 40] {
        let column: Vec<f32> = x.iter().flat_map(|&x| vec![x; copies]).collect();
        let mut y = vec![9.0; column.len()];
        let (a, one) = (Matrix::new(&column, column.len(), 1, 1), Matrix::new(&[1.0f32], 1, 1, 1));
        // SAFETY: `y` holds the destination, and the instructions are there.
        unsafe {
            let packed = PackedRhs::in_form(one, Form::Bf16Avx512, false);
            packed.matmul(y.as_mut_ptr(), 1, Accumulate::Zero, 1.0, a, false);
        }
        for (i, y) in y.iter().enumerate() {
            let want = want[i / copies];
            assert!(*y == want || (y.is_nan() && want.is_nan()), "{}: {y}, not {want}", x[i / copies]);
        }
    }
}

#[test]
fn parts_of_the_inner_axis_give_the_bits_of_the_whole() {
    let (rows, inner, cols) = (31, 1400, 70);
    let values =
        |n: usize, seed| -> Vec<f32> { random(n, seed, 1.0).into_iter().map(|x| x as f32).collect() };
    let (a, b, row) = (values(rows * inner, 1), values(inner * cols, 2), values(cols, 3));
    for form in forms() {
        // SAFETY: `forms` gives what this CPU has.
        let packed = unsafe { PackedRhs::in_form(Matrix::new(&b, inner, cols, cols), form, false) };
        let (mut whole, mut parts) = (vec![0f32; rows * cols], vec![0f32; rows * cols]);
        let start = Accumulate::Row(&row);
        // SAFETY: both results are whole and nobody else's.
        unsafe {
            packed.matmul(whole.as_mut_ptr(), cols, start, 1.0, Matrix::new(&a, rows, inner, inner), false);
            let size = 2 * packed.summed();
            for from in (0..inner).step_by(size) {
                let some = from..(from + size).min(inner);
                let a = Matrix::new(&a[from..], rows, some.len(), inner);
                let start = if from == 0 { start } else { Accumulate::There };
                for (first, last) in [(0, 64), (64, cols)] {
                    let dst = parts.as_mut_ptr().add(first);
                    packed.part(dst, cols, start, a, first..last, some.clone());
                }
            }
        }
        assert!(whole == parts, "{form:?}");
    }
}
