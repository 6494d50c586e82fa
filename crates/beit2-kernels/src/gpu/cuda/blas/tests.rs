//! Matmuls against plain sums in f64: their translation on the host, and cuBLASLt on a device. A device or library that
//! is missing is skipped with a printed line.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use cudarc::driver::sys as driver;

use super::gemm::{Batch, Element, Epilogue, Gemm, Operand, Ptr};
use super::problem::{Matrix, Problem};
use super::{Blas, Plan, Search};
use crate::testing::random;

/// A matmul without addresses.
#[derive(Debug, Clone, Copy)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    transposed: [bool; 2],
    /// Elements that rows are longer than they need to be.
    padding: usize,
    operands: Element,
    result: Element,
    /// Their results lie within each other's rows, and all use one B.
    batch: usize,
    epilogue: Kind,
    accumulate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Bias,
    BiasGradient,
}

impl Case {
    const PLAIN: Self = Self {
        m: 5,
        n: 7,
        k: 3,
        transposed: [false; 2],
        padding: 0,
        operands: Element::F32,
        result: Element::F32,
        batch: 1,
        epilogue: Kind::None,
        accumulate: false,
    };

    /// Rows in memory and their width, of A, B and D.
    fn dims(&self) -> [[usize; 2]; 3] {
        let flip = |rows, cols, transposed| if transposed { [cols, rows] } else { [rows, cols] };
        let [a, b] = self.transposed;
        [flip(self.m, self.k, a), flip(self.k, self.n, b), [self.m, self.n]]
    }

    fn pitches(&self) -> [usize; 3] {
        let [a, b, d] = self.dims().map(|[_, width]| width + self.padding);
        [a, b, d * self.batch]
    }

    fn strides(&self) -> Batch {
        let [[rows, _], ..] = self.dims();
        let [lda, _, _] = self.pitches();
        Batch { count: self.batch, a: rows * lda, b: 0, d: self.n + self.padding }
    }

    /// Elements of A, B, D and the vector in memory.
    fn sizes(&self) -> [usize; 4] {
        let [a, b, d] = self.dims();
        let [lda, ldb, ldd] = self.pitches();
        let vector = if self.epilogue == Kind::BiasGradient { self.m } else { self.n };
        [self.batch * a[0] * lda, b[0] * ldb, d[0] * ldd, vector]
    }

    fn gemm(&self, [a, b, d, vector]: [Ptr; 4]) -> Gemm {
        let [lda, ldb, ldd] = self.pitches();
        let [ta, tb] = self.transposed;
        Gemm {
            m: self.m,
            n: self.n,
            k: self.k,
            a: Operand { at: a, transposed: ta, ld: lda },
            b: Operand { at: b, transposed: tb, ld: ldb },
            d,
            ldd,
            operands: self.operands,
            result: self.result,
            batch: (self.batch > 1).then(|| self.strides()),
            epilogue: match self.epilogue {
                Kind::None => Epilogue::None,
                Kind::Bias => Epilogue::Bias(vector),
                Kind::BiasGradient => Epilogue::BiasGradient(vector),
            },
            accumulate: self.accumulate,
        }
    }

    /// D and the vector as they should be, in row-major words, and how large the numbers of D's sums are.
    #[allow(clippy::needless_range_loop)] // i and j index several matrices, as in the formula.
    fn expected(&self, [a, b, d, vector]: [&[f64]; 4]) -> (Vec<f64>, Vec<f64>, f64) {
        let [lda, ldb, ldd] = self.pitches();
        let strides = self.strides();
        let [ta, tb] = self.transposed;
        let a_at =
            |s: usize, i: usize, l: usize| a[s * strides.a + if ta { l * lda + i } else { i * lda + l }];
        let b_at = |l: usize, j: usize| b[if tb { j * ldb + l } else { l * ldb + j }];
        let (mut out, mut sums, mut size) = (d.to_vec(), vector.to_vec(), 0.0f64);
        for s in 0..self.batch {
            for i in 0..self.m {
                for j in 0..self.n {
                    let place = s * strides.d + i * ldd + j;
                    let products = (0..self.k).map(|l| a_at(s, i, l) * b_at(l, j));
                    size = size.max(products.clone().map(f64::abs).sum());
                    let before = if self.accumulate { d[place] } else { 0.0 };
                    let bias = if self.epilogue == Kind::Bias { vector[j] } else { 0.0 };
                    out[place] = before + products.sum::<f64>() + bias;
                }
                if self.epilogue == Kind::BiasGradient {
                    sums[i] = (0..self.k).map(|l| a_at(s, i, l)).sum();
                }
            }
        }
        (out, sums, size)
    }

    /// Values that both element types of the case hold exactly.
    fn values(&self) -> [Vec<f64>; 4] {
        let of = |count: usize, seed| -> Vec<f64> {
            random(count, seed, 1.0).into_iter().map(|x| rounded(x as f32, Element::Bf16).into()).collect()
        };
        let [a, b, d, vector] = self.sizes();
        [of(a, 1), of(b, 2), of(d, 3), of(vector, 4)]
    }
}

fn rounded(x: f32, element: Element) -> f32 {
    match element {
        Element::F32 => x,
        Element::Bf16 => f32::from_bits((x.to_bits() + 0x7fff + (x.to_bits() >> 16 & 1)) & 0xffff_0000),
    }
}

fn all(shapes: &[(usize, usize, usize)]) -> Vec<Case> {
    let types = [(Element::F32, Element::F32), (Element::Bf16, Element::F32), (Element::Bf16, Element::Bf16)];
    let mut cases = Vec::new();
    for &(m, n, k) in shapes {
        for transposed in [[false, false], [false, true], [true, false], [true, true]] {
            for (operands, result) in types {
                for (batch, padding) in [(1, 0), (1, 8), (3, 8)] {
                    for epilogue in [Kind::None, Kind::Bias, Kind::BiasGradient] {
                        for accumulate in [false, true] {
                            if epilogue == Kind::BiasGradient && (result == Element::Bf16 || batch > 1) {
                                continue;
                            }
                            cases.push(Case {
                                m,
                                n,
                                k,
                                transposed,
                                padding,
                                operands,
                                result,
                                batch,
                                epilogue,
                                accumulate,
                            });
                        }
                    }
                }
            }
        }
    }
    cases
}

/// What the library is asked for, computed by its own rules: column-major, its A from the left.
#[test]
#[allow(clippy::needless_range_loop)] // i and j index several matrices, as in the formula.
fn the_column_major_problem_gives_the_row_major_result() {
    for case in all(&[(5, 7, 3)]) {
        let values = case.values();
        let [a, b, d, vector] = &values;
        let gemm = case.gemm([256, 512, 1024, 2048].map(Ptr));
        let problem = Problem::of(&gemm).unwrap();
        let at = |x: &Matrix, transposed: bool, batch: usize, i: usize, j: usize| {
            let (i, j) = if transposed { (j, i) } else { (i, j) };
            assert!(i < x.rows && j < x.cols && x.rows <= x.ld, "{case:?}");
            batch * x.stride + i + j * x.ld
        };
        let (left, right, result) = (problem.left(), problem.right(), problem.result());
        let (mut out, mut sums) = (d.clone(), vector.clone());
        for s in 0..problem.count() {
            for i in 0..problem.rows {
                for j in 0..problem.cols {
                    let place = at(&result, false, s, i, j);
                    let b_side = |l| at(&right, problem.right.transposed, s, l, j);
                    let sum: f64 = (0..problem.depth)
                        .map(|l| b[at(&left, problem.left.transposed, s, i, l)] * a[b_side(l)])
                        .sum();
                    // The library's bias has one number for each row of its D, BGRADB one for each column.
                    let bias = if case.epilogue == Kind::Bias { vector[i] } else { 0.0 };
                    out[place] = sum + bias + if problem.accumulate { d[place] } else { 0.0 };
                    if case.epilogue == Kind::BiasGradient {
                        sums[j] = (0..problem.depth).map(|l| a[b_side(l)]).sum();
                    }
                }
            }
        }
        let (want, want_sums, _) = case.expected([a, b, d, vector]);
        let close = |got: &[f64], want: &[f64]| got.iter().zip(want).all(|(x, y)| (x - y).abs() < 1e-12);
        assert!(close(&out, &want) && close(&sums, &want_sums), "{case:?}");
    }
}

#[test]
fn senseless_matmuls_are_refused_in_a_sentence() {
    let gemm = Case::PLAIN.gemm([256, 512, 1024, 2048].map(Ptr));
    let refused = |gemm: Gemm| Problem::of(&gemm).unwrap_err();
    assert!(Problem::of(&gemm).is_ok());
    assert!(refused(Gemm { k: 0, ..gemm }).contains("at least 1"));
    assert_eq!(
        refused(Gemm { ldd: 6, ..gemm }),
        "matmul [5, 3]·[3, 7]: rows of D lie 6 elements apart, but have 7"
    );
    let narrow = Operand { ld: 6, ..gemm.b };
    assert!(refused(Gemm { b: narrow, ..gemm }).contains("rows of B"));
    assert!(refused(Gemm { result: Element::Bf16, ..gemm }).contains("f32 operands"));
    let gradient = Epilogue::BiasGradient(Ptr(2048));
    let half = Gemm { operands: Element::Bf16, result: Element::Bf16, epilogue: gradient, ..gemm };
    assert!(refused(half).contains("gradient of a bias"));
    assert!(refused(Gemm { d: Ptr(1026), ..gemm }).contains("0x402"));
    let batch = Some(Batch { count: 2, a: 15, b: 21, d: 0 });
    assert!(refused(Gemm { batch, ..gemm }).contains("2 results"));
}

/// Two problems that need different algorithms never have one name in the file.
#[test]
fn every_problem_has_a_name_of_its_own() {
    let mut names = std::collections::HashMap::new();
    for case in all(&[(5, 7, 3), (7, 5, 3), (57, 3, 1)]) {
        for aligned in [256, 16] {
            let gemm = case.gemm([256, 512, 1024, 2048].map(|at| Ptr(at + aligned)));
            let problem = Problem::of(&gemm).unwrap();
            if let Some(other) = names.insert(problem.to_string(), problem) {
                assert_eq!(other, problem);
            }
        }
    }
    let plain = Problem::of(&Case::PLAIN.gemm([256, 512, 1024, 2048].map(Ptr))).unwrap();
    assert_eq!(plain.to_string(), "7x5x3,n7@256,n3@256,7@256,f32-f32");
}

/// The first device, current in this thread.
struct Device {
    stream: driver::CUstream,
    memory: Vec<u64>,
}

impl Device {
    /// `None`, and a line, if it or cuBLASLt isn't there.
    fn new() -> Option<Self> {
        let skip = |why: &str| println!("skipped: {why}");
        // SAFETY: NVIDIA's driver may be opened in any process; all results are written to variables here.
        unsafe {
            if !driver::is_culib_present() {
                skip("no CUDA driver");
                return None;
            }
            let (mut device, mut context, mut stream) = (0, std::ptr::null_mut(), std::ptr::null_mut());
            let opened = [
                driver::cuInit(0),
                driver::cuDeviceGet(&mut device, 0),
                driver::cuDevicePrimaryCtxRetain(&mut context, device),
                driver::cuCtxSetCurrent(context),
            ];
            if opened.iter().any(|result| *result != driver::CUresult::CUDA_SUCCESS) {
                skip("no CUDA device");
                return None;
            }
            if let Err(why) = super::present() {
                skip(why);
                return None;
            }
            driver::cuStreamCreate(&mut stream, 1).result().unwrap();
            Some(Self { stream, memory: Vec::new() })
        }
    }

    fn blas(&self, folder: Option<&Path>, search: Search) -> Blas {
        Blas::open(folder, search).unwrap()
    }

    fn upload(&mut self, values: &[f64], element: Element) -> Ptr {
        let bytes: Vec<u8> = match element {
            Element::F32 => values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
            Element::Bf16 => values
                .iter()
                .flat_map(|&x| {
                    let bits = rounded(x as f32, Element::Bf16).to_bits();
                    ((bits >> 16) as u16).to_le_bytes()
                })
                .collect(),
        };
        let at = super::allocate(bytes.len()).unwrap();
        self.memory.push(at);
        // SAFETY: both sides have that many bytes.
        unsafe { driver::cuMemcpyHtoD_v2(at, bytes.as_ptr().cast(), bytes.len()).result().unwrap() };
        Ptr(at)
    }

    fn download(&self, at: Ptr, count: usize, element: Element) -> Vec<f64> {
        let mut bytes = vec![0u8; count * element.bytes()];
        // SAFETY: both sides have that many bytes; the copy is done when it returns.
        unsafe {
            driver::cuStreamSynchronize(self.stream).result().unwrap();
            driver::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), at.0, bytes.len()).result().unwrap();
        }
        match element {
            Element::F32 => {
                bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap()).into()).collect()
            }
            Element::Bf16 => {
                let wide =
                    |x: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes(x.try_into().unwrap())) << 16);
                bytes.chunks_exact(2).map(|x| wide(x).into()).collect()
            }
        }
    }

    /// Runs a case and compares it. `shift`: elements by which the vector misses its alignment.
    fn check(&mut self, blas: &mut Blas, case: Case, shift: usize) {
        let values = case.values();
        let [a, b, d, vector] = &values;
        let vector_type = if case.epilogue == Kind::BiasGradient { Element::F32 } else { case.result };
        let shifted: Vec<f64> = std::iter::repeat_n(0.0, shift).chain(vector.iter().copied()).collect();
        let types = [case.operands, case.operands, case.result];
        let [pa, pb, pd] = [(a, types[0]), (b, types[1]), (d, types[2])].map(|(x, t)| self.upload(x, t));
        let pv = self.upload(&shifted, vector_type).offset(shift, vector_type);
        let gemm = case.gemm([pa, pb, pd, pv]);
        blas.gemm(&gemm, self.stream).unwrap();
        let (want, want_sums, size) = case.expected([a, b, d, vector]);
        let got = self.download(pd, d.len(), case.result);
        // The rounding of sums in f32, and of the result; of the bias with D too, where it is a matmul of its own.
        let rounding = if case.result == Element::Bf16 { 2f64.powi(-8) } else { 0.0 };
        let parts = matches!(blas.plans[&Problem::of(&gemm).unwrap()], Plan::Two);
        for (place, (got, want)) in got.iter().zip(&want).enumerate() {
            let allowed = 1e-6 * size.max(1.0) + rounding * (want.abs() + if parts { 2.0 } else { 0.0 });
            // Not `>`: a NaN must fail.
            assert!((got - want).abs() <= allowed, "{case:?}: {got} instead of {want} at {place}");
        }
        if case.epilogue == Kind::BiasGradient {
            let sums = self.download(pv, case.m, Element::F32);
            for (got, want) in sums.iter().zip(&want_sums) {
                assert!((got - want).abs() <= 1e-6 * case.k as f64, "{case:?}: sum {got} instead of {want}");
            }
        }
        for at in self.memory.drain(..) {
            // SAFETY: nobody uses it any more: results were read.
            unsafe { driver::cuMemFree_v2(at).result().unwrap() };
        }
    }
}

#[test]
fn all_kinds_of_matmuls_on_cuda() {
    let Some(mut device) = Device::new() else { return };
    let mut blas = device.blas(None, Search::Proposed);
    for case in all(&[(5, 7, 3), (64, 96, 72), (200, 8, 197), (1, 130, 40)]) {
        device.check(&mut blas, case, 0);
    }
    let (one, two) = blas.plans.values().fold((0, 0), |(one, two), plan| match plan {
        Plan::One(..) => (one + 1, two),
        Plan::Two => (one, two + 1),
    });
    println!("{one} kinds are one call; for {two}, no algorithm has the epilogue");
}

/// A vector where kernels can't load it in one piece.
#[test]
fn epilogues_without_an_algorithm_on_cuda() {
    let Some(mut device) = Device::new() else { return };
    let mut blas = device.blas(None, Search::Proposed);
    for case in all(&[(64, 96, 72), (5, 7, 3)]).into_iter().filter(|case| case.epilogue != Kind::None) {
        device.check(&mut blas, case, 1);
    }
    assert!(blas.plans.values().any(|plan| matches!(plan, Plan::Two)));
}

#[test]
fn a_choice_is_made_once_and_kept_on_cuda() {
    let Some(mut device) = Device::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let text = || {
        let mut files = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path());
        files.next().map(|file| std::fs::read_to_string(file).unwrap()).unwrap_or_default()
    };
    let cases: Vec<Case> = all(&[(64, 96, 72)]);
    let mut kept = String::new();
    for start in 0..2 {
        let mut blas = device.blas(Some(folder.path()), Search::Timed);
        for &case in &cases {
            device.check(&mut blas, case, 0);
        }
        if start == 0 {
            kept = text();
            println!("{} of {} kinds have a choice", kept.lines().count(), blas.plans.len());
        }
    }
    // A second search would have appended.
    assert_eq!(text(), kept);
}

/// The same problem is planned once, whatever the addresses.
#[test]
fn a_warm_matmul_makes_no_plan_on_cuda() {
    let Some(mut device) = Device::new() else { return };
    let mut blas = device.blas(None, Search::Proposed);
    for _ in 0..3 {
        device.check(&mut blas, Case { operands: Element::Bf16, epilogue: Kind::Bias, ..Case::PLAIN }, 0);
    }
    assert_eq!(blas.plans.len(), 1);
}
