//! Eight f32 side by side: one AVX2 register, or an array where there is none.

/// Values in a [`Lanes`].
pub(crate) const N: usize = 8;

/// Eight lanes. Bodies are generic over it and compiled once for each implementation.
pub(crate) trait Lanes: Copy {
    fn load(from: &[f32; N]) -> Self;
    fn store(self, to: &mut [f32; N]);
    fn splat(value: f32) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn sqrt(self) -> Self;
    /// `self * b + c`.
    fn fma(self, b: Self, c: Self) -> Self;

    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    #[inline(always)]
    fn array(self) -> [f32; N] {
        let mut out = [0.0; N];
        self.store(&mut out);
        out
    }

    /// The sum of all lanes, in a fixed order.
    #[inline(always)]
    fn sum(self) -> f32 {
        let a = self.array();
        ((a[0] + a[4]) + (a[1] + a[5])) + ((a[2] + a[6]) + (a[3] + a[7]))
    }
}

/// The portable implementation.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; N]);

impl Portable {
    #[inline(always)]
    fn with(self, other: Self, op: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|lane| op(self.0[lane], other.0[lane])))
    }
}

impl Lanes for Portable {
    #[inline(always)]
    fn load(from: &[f32; N]) -> Self {
        Portable(*from)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; N]) {
        *to = self.0;
    }
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Portable([value; N])
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.with(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.with(other, |a, b| a / b)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Portable(self.0.map(f32::sqrt))
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        self.mul(b).add(c)
    }
}

/// One AVX2 register. Made only inside functions compiled for AVX2 and FMA, see `simd!`.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2(std::arch::x86_64::__m256);

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    #[inline(always)]
    pub(crate) fn of(register: std::arch::x86_64::__m256) -> Self {
        Avx2(register)
    }
    #[inline(always)]
    pub(crate) fn register(self) -> std::arch::x86_64::__m256 {
        self.0
    }
}

// SAFETY, for every block below: `simd!` names this type only after it found AVX2 and FMA, and
// arrays of eight f32 are as long as a register; unaligned loads and stores are used.
#[cfg(target_arch = "x86_64")]
impl Lanes for Avx2 {
    #[inline(always)]
    fn load(from: &[f32; N]) -> Self {
        Avx2(unsafe { std::arch::x86_64::_mm256_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; N]) {
        unsafe { std::arch::x86_64::_mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn splat(value: f32) -> Self {
        Avx2(unsafe { std::arch::x86_64::_mm256_set1_ps(value) })
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Avx2(unsafe { std::arch::x86_64::_mm256_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Avx2(unsafe { std::arch::x86_64::_mm256_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Avx2(unsafe { std::arch::x86_64::_mm256_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Avx2(unsafe { std::arch::x86_64::_mm256_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        Avx2(unsafe { std::arch::x86_64::_mm256_sqrt_ps(self.0) })
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Avx2(unsafe { std::arch::x86_64::_mm256_fmadd_ps(self.0, b.0, c.0) })
    }
}

/// Asks for `values[at..at + n]` to be in cache soon; nothing beyond the slice is touched.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T], at: usize, n: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in values.get(at..at + n).unwrap_or_default().chunks(64 / size_of::<T>()) {
        // SAFETY: a hint, on an address inside the slice.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast()) }
    }
}

/// The whole groups of eight and the rest.
#[inline(always)]
pub(crate) fn groups(values: &[f32]) -> (&[[f32; N]], &[f32]) {
    values.as_chunks::<N>()
}

/// As [`groups`], to be written.
#[inline(always)]
pub(crate) fn groups_mut(values: &mut [f32]) -> (&mut [[f32; N]], &mut [f32]) {
    values.as_chunks_mut::<N>()
}

/// `out += value * row`.
#[inline(always)]
pub(crate) fn axpy<V: Lanes>(value: f32, row: &[f32], out: &mut [f32]) {
    let (row, row_rest) = groups(row);
    let (out, out_rest) = groups_mut(out);
    let factor = V::splat(value);
    for (sum, group) in out.iter_mut().zip(row) {
        factor.fma(V::load(group), V::load(sum)).store(sum);
    }
    for (sum, &x) in out_rest.iter_mut().zip(row_rest) {
        *sum += value * x;
    }
}

/// `out += Σ values · rows`, two rows at a time.
#[inline(always)]
pub(crate) fn axpy2<V: Lanes>(values: [f32; 2], rows: [&[f32]; 2], out: &mut [f32]) {
    let [a, b] = rows.map(groups);
    let (out, out_rest) = groups_mut(out);
    let [va, vb] = values.map(V::splat);
    for ((sum, ga), gb) in out.iter_mut().zip(a.0).zip(b.0) {
        va.fma(V::load(ga), vb.fma(V::load(gb), V::load(sum))).store(sum);
    }
    for (i, sum) in out_rest.iter_mut().enumerate() {
        *sum += values[0] * a.1[i] + values[1] * b.1[i];
    }
}

/// `out += Σ values · rows`, four rows at a time.
#[inline(always)]
pub(crate) fn axpy4<V: Lanes>(values: [f32; 4], rows: [&[f32]; 4], out: &mut [f32]) {
    let [a, b, c, d] = rows.map(groups);
    let (out, out_rest) = groups_mut(out);
    let [va, vb, vc, vd] = values.map(V::splat);
    for ((((sum, ga), gb), gc), gd) in out.iter_mut().zip(a.0).zip(b.0).zip(c.0).zip(d.0) {
        let first = va.fma(V::load(ga), vb.fma(V::load(gb), V::load(sum)));
        vc.fma(V::load(gc), vd.fma(V::load(gd), first)).store(sum);
    }
    for (i, sum) in out_rest.iter_mut().enumerate() {
        *sum += values[0] * a.1[i] + values[1] * b.1[i] + values[2] * c.1[i] + values[3] * d.1[i];
    }
}

/// `out += Σ values · rows` and, in the same pass, each row's product with `other`.
#[inline(always)]
pub(crate) fn meet4<V: Lanes>(values: [f32; 4], rows: [&[f32]; 4], other: &[f32], out: &mut [f32]) -> [f32; 4] {
    let [a, b, c, d] = rows.map(groups);
    let (other, other_rest) = groups(other);
    let (out, out_rest) = groups_mut(out);
    let [va, vb, vc, vd] = values.map(V::splat);
    let mut sums = [V::zero(); 4];
    for (((((sum, w), ga), gb), gc), gd) in out.iter_mut().zip(other).zip(a.0).zip(b.0).zip(c.0).zip(d.0) {
        let w = V::load(w);
        let (xa, xb, xc, xd) = (V::load(ga), V::load(gb), V::load(gc), V::load(gd));
        sums = [w.fma(xa, sums[0]), w.fma(xb, sums[1]), w.fma(xc, sums[2]), w.fma(xd, sums[3])];
        vc.fma(xc, vd.fma(xd, va.fma(xa, vb.fma(xb, V::load(sum))))).store(sum);
    }
    let mut dots = [sums[0].sum(), sums[1].sum(), sums[2].sum(), sums[3].sum()];
    for (i, (sum, w)) in out_rest.iter_mut().zip(other_rest).enumerate() {
        *sum += values[0] * a.1[i] + values[1] * b.1[i] + values[2] * c.1[i] + values[3] * d.1[i];
        dots.iter_mut().zip([a.1[i], b.1[i], c.1[i], d.1[i]]).for_each(|(dot, x)| *dot += w * x);
    }
    dots
}

/// `Σ a b`, in four running sums of eight lanes.
#[inline(always)]
pub(crate) fn dot<V: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = groups(a);
    let (b, b_rest) = groups(b);
    let (a4, a_tail) = a.as_chunks::<4>();
    let (b4, b_tail) = b.as_chunks::<4>();
    let (mut s0, mut s1, mut s2, mut s3) = (V::zero(), V::zero(), V::zero(), V::zero());
    for (x, y) in a4.iter().zip(b4) {
        s0 = V::load(&x[0]).fma(V::load(&y[0]), s0);
        s1 = V::load(&x[1]).fma(V::load(&y[1]), s1);
        s2 = V::load(&x[2]).fma(V::load(&y[2]), s2);
        s3 = V::load(&x[3]).fma(V::load(&y[3]), s3);
    }
    for (x, y) in a_tail.iter().zip(b_tail) {
        s0 = V::load(x).fma(V::load(y), s0);
    }
    let whole = s0.add(s1).add(s2.add(s3)).sum();
    a_rest.iter().zip(b_rest).fold(whole, |sum, (x, y)| sum + x * y)
}
