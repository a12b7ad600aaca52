//! Dense products on one thread, over the `gemm` crate.

/// A view of a slice as a matrix: element (i, j) stands at `at + i * row + j * column`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    pub at: usize,
    pub row: usize,
    pub column: usize,
}

impl Matrix {
    /// Rows `stride` apart, from element `at` on.
    pub fn rows(at: usize, stride: usize) -> Self {
        Matrix { at, row: stride, column: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Matrix { row: self.column, column: self.row, ..self }
    }

    fn last(self, rows: usize, columns: usize) -> usize {
        self.at + (rows - 1) * self.row + (columns - 1) * self.column
    }
}

/// `out (+)= left · right`, `[m, k] · [k, n]`; adds to `out` when `add`.
///
/// # Safety
/// `out` with view `o` must be valid for writes and not be touched by others meanwhile.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn gemm(m: usize, k: usize, n: usize, out: *mut f32, o: Matrix, add: bool, left: &[f32], l: Matrix, right: &[f32], r: Matrix) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(k > 0 && l.last(m, k) < left.len() && r.last(k, n) < right.len(), "gemm: operand too short");
    let beta = 1.0;
    let alpha = if add { 1.0 } else { 0.0 };
    // SAFETY: the operands' last elements lie inside their slices, `out` is the caller's promise.
    unsafe {
        gemm::gemm(
            m, n, k,
            out.add(o.at), o.column as isize, o.row as isize, add,
            left.as_ptr().add(l.at), l.column as isize, l.row as isize,
            right.as_ptr().add(r.at), r.column as isize, r.row as isize,
            alpha, beta, false, false, false, gemm::Parallelism::None,
        );
    }
}
