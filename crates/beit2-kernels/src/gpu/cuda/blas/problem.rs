//! A matmul in the library's words: column-major.
//!
//! A row-major matrix is the column-major transpose in the same memory. So the library is asked for
//! `Dᵀ = op(B)ᵀ·op(A)ᵀ`: its left operand is our B, its right one our A, and none of the matrices moves.

use super::gemm::{Batch, Element, Epilogue, Gemm, Operand, Ptr};

/// Everything that decides how a matmul is done; what remains are the addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Problem {
    /// Rows of the library's D: our `n`.
    pub rows: usize,
    /// Columns of the library's D: our `m`.
    pub cols: usize,
    pub depth: usize,
    /// The library's A, which is our B.
    pub left: Side,
    /// The library's B, which is our A.
    pub right: Side,
    pub ldd: usize,
    pub operands: Element,
    pub result: Element,
    /// `a`, `b` and `d` still mean ours.
    pub batch: Option<Batch>,
    pub extra: Extra,
    pub accumulate: bool,
    /// Bytes to which D and the vector are aligned; 0: no vector.
    pub aligned_d: u16,
    pub aligned_vector: u16,
}

/// An operand of the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Side {
    pub transposed: bool,
    pub ld: usize,
    /// Bytes to which its address is aligned.
    pub aligned: u16,
}

/// [`Epilogue`] without its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Extra {
    None,
    Bias,
    BiasGradient,
}

/// A matrix in memory, column-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Matrix {
    pub element: Element,
    pub rows: usize,
    pub cols: usize,
    pub ld: usize,
    /// Elements to the next of a batch.
    pub stride: usize,
}

/// The widest alignment that kernels distinguish.
const ALIGNED: u64 = 256;

fn alignment(at: Ptr) -> u16 {
    (1 << u64::from(at.0.trailing_zeros()).min(ALIGNED.trailing_zeros().into())) as u16
}

impl Problem {
    /// # Errors
    /// A matmul that makes no sense: one sentence.
    pub(super) fn of(gemm: &Gemm) -> Result<Self, String> {
        let &Gemm { m, n, k, a, b, d, ldd, operands, result, batch, epilogue, accumulate } = gemm;
        let refuse = |what: String| Err(format!("matmul [{m}, {k}]·[{k}, {n}]: {what}"));
        if m == 0 || n == 0 || k == 0 {
            return refuse("every size must be at least 1".into());
        }
        let widths =
            [("A", a.ld, if a.transposed { m } else { k }), ("B", b.ld, if b.transposed { k } else { n })];
        for (name, ld, width) in widths.into_iter().chain([("D", ldd, n)]) {
            if ld < width {
                return refuse(format!("rows of {name} lie {ld} elements apart, but have {width}"));
            }
        }
        if operands == Element::F32 && result == Element::Bf16 {
            return refuse("f32 operands give an f32 result".into());
        }
        let (extra, vector) = match epilogue {
            Epilogue::None => (Extra::None, None),
            Epilogue::Bias(at) => (Extra::Bias, Some((at, result))),
            Epilogue::BiasGradient(at) => (Extra::BiasGradient, Some((at, Element::F32))),
        };
        if extra == Extra::BiasGradient && (result != Element::F32 || batch.is_some()) {
            return refuse("the gradient of a bias needs one f32 result".into());
        }
        // The results of a batch may lie within each other's rows, as heads of attention do.
        if let Some(Batch { count, d, .. }) = batch
            && (count == 0 || (count > 1 && d == 0))
        {
            return refuse(format!("{count} results lie {d} elements apart"));
        }
        let addresses = [("A", a.at, operands), ("B", b.at, operands), ("D", d, result)];
        for (name, at, element) in addresses.into_iter().chain(vector.map(|(at, e)| ("the vector", at, e))) {
            if at.0 == 0 || !at.0.is_multiple_of(element.bytes() as u64) {
                return refuse(format!("{name} has the address {:#x}", at.0));
            }
        }
        let side = |operand: Operand| Side {
            transposed: operand.transposed,
            ld: operand.ld,
            aligned: alignment(operand.at),
        };
        Ok(Self {
            rows: n,
            cols: m,
            depth: k,
            left: side(b),
            right: side(a),
            ldd,
            operands,
            result,
            batch,
            extra,
            accumulate,
            aligned_d: alignment(d),
            aligned_vector: vector.map_or(0, |(at, _)| alignment(at)),
        })
    }

    /// The library's A in memory.
    pub(super) fn left(&self) -> Matrix {
        let Side { transposed, ld, .. } = self.left;
        let (rows, cols) = if transposed { (self.depth, self.rows) } else { (self.rows, self.depth) };
        Matrix { element: self.operands, rows, cols, ld, stride: self.batch.map_or(0, |batch| batch.b) }
    }

    /// The library's B in memory.
    pub(super) fn right(&self) -> Matrix {
        let Side { transposed, ld, .. } = self.right;
        let (rows, cols) = if transposed { (self.cols, self.depth) } else { (self.depth, self.cols) };
        Matrix { element: self.operands, rows, cols, ld, stride: self.batch.map_or(0, |batch| batch.a) }
    }

    /// D, which is also what is added to.
    pub(super) fn result(&self) -> Matrix {
        let stride = self.batch.map_or(0, |batch| batch.d);
        Matrix { element: self.result, rows: self.rows, cols: self.cols, ld: self.ldd, stride }
    }

    /// Matmuls of the batch.
    pub(super) fn count(&self) -> usize {
        self.batch.map_or(1, |batch| batch.count)
    }
}

/// One word for a file: all that decides, in a fixed order.
impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let element = |element| if element == Element::F32 { "f32" } else { "bf16" };
        let side = |Side { transposed, ld, aligned }: Side| {
            format!("{}{ld}@{aligned}", if transposed { "t" } else { "n" })
        };
        write!(
            f,
            "{}x{}x{},{},{},{}@{},{}-{}",
            self.rows,
            self.cols,
            self.depth,
            side(self.left),
            side(self.right),
            self.ldd,
            self.aligned_d,
            element(self.operands),
            element(self.result),
        )?;
        if let Some(Batch { count, a, b, d }) = self.batch {
            write!(f, ",batch{count}:{a}:{b}:{d}")?;
        }
        match self.extra {
            Extra::None => {}
            Extra::Bias => write!(f, ",bias@{}", self.aligned_vector)?,
            Extra::BiasGradient => write!(f, ",bias_gradient@{}", self.aligned_vector)?,
        }
        if self.accumulate { f.write_str(",add") } else { Ok(()) }
    }
}
