//! What a matmul is, in the row-major words of the rest of this crate.

/// An address in the memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Ptr(pub u64);

impl Ptr {
    /// The address `elements` further on.
    pub(crate) fn offset(self, elements: usize, element: Element) -> Self {
        Self(self.0 + (elements * element.bytes()) as u64)
    }
}

/// The type of the numbers of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Element {
    /// IEEE single precision.
    F32,
    /// The upper half of one.
    Bf16,
}

impl Element {
    /// Bytes of one number.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// `D = op(A)·op(B)` with sums in f32, everything row-major: D is `[m, n]`, op(A) `[m, k]`, op(B) `[k, n]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gemm {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// `[m, k]` in memory, `[k, m]` where transposed.
    pub a: Operand,
    /// `[k, n]` in memory, `[n, k]` where transposed.
    pub b: Operand,
    pub d: Ptr,
    /// Elements from one row of D to the next, at least `n`.
    pub ldd: usize,
    /// The type of A and B.
    pub operands: Element,
    /// The type of D: f32, or bf16 if the operands are.
    pub result: Element,
    /// `None`: one matmul.
    pub batch: Option<Batch>,
    pub epilogue: Epilogue,
    /// Adds to D instead of replacing it.
    pub accumulate: bool,
}

impl std::fmt::Display for Gemm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |transposed| if transposed { "t" } else { "n" };
        let (a, b) = (word(self.a.transposed), word(self.b.transposed));
        write!(f, "matmul {}x{}x{} {a}{b} {:?} to {:?}", self.m, self.n, self.k, self.operands, self.result)?;
        self.batch.map_or(Ok(()), |batch| write!(f, ", {} of them", batch.count))
    }
}

/// A matrix that is multiplied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand {
    pub at: Ptr,
    /// The matrix in memory is the transpose of the one that is multiplied.
    pub transposed: bool,
    /// Elements from one row in memory to the next, at least the width of a row.
    pub ld: usize,
}

/// Several matmuls of one shape, whose matrices lie at even distances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Batch {
    pub count: usize,
    /// Elements from one A to the next; 0: all use the same.
    pub a: usize,
    /// As `a`, of B.
    pub b: usize,
    /// As `a`, of D, where 0 is not allowed.
    pub d: usize,
}

/// What a matmul does beside multiplying.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Epilogue {
    /// Nothing.
    None,
    /// Adds `[n]` numbers of the result's type to each row of D.
    Bias(Ptr),
    /// Writes the sums of op(A) over k, `[m]` numbers in f32. A weight's gradient is `gradᵀ·x`: with A the transposed
    /// `grad`, this is the gradient of the bias. D must be f32; no batch.
    BiasGradient(Ptr),
}
