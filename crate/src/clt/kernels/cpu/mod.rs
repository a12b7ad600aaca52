//! CPU bodies. Inner loops are written once over plain slices and compiled twice, for AVX2 with
//! FMA and for whatever the target guarantees; the choice is made at run time, once a call. None
//! of them starts threads: the caller splits the work, so that a result never depends on it.

pub(crate) mod adam;
pub(crate) mod gemm;
pub(crate) mod select;
pub(crate) mod sparse;
pub(crate) mod terms;

/// Declares a function whose body is compiled for AVX2 + FMA and for the base target.
/// The body's `const bool` says whether a fused multiply-add is one instruction.
macro_rules! simd {
    ($(#[$doc:meta])* $vis:vis fn $name:ident ( $($arg:ident : $type:ty),* $(,)? ) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $type),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn fast($($arg: $type),*) $(-> $ret)? {
                    $body::<true>($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    // SAFETY: the features that `fast` needs were just found.
                    return unsafe { fast($($arg),*) };
                }
            }
            $body::<false>($($arg),*)
        }
    };
}
pub(crate) use simd;

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub(crate) fn fma<const F: bool>(a: f32, b: f32, c: f32) -> f32 {
    if F { a.mul_add(b, c) } else { a * b + c }
}

/// `Σ a b` in 32 partial sums, so that the compiler may use vectors.
#[inline(always)]
pub(crate) fn dot<const F: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 32];
    let (a_groups, a_rest) = a.as_chunks::<32>();
    let (b_groups, b_rest) = b.as_chunks::<32>();
    for (x, y) in a_groups.iter().zip(b_groups) {
        for lane in 0..32 {
            sums[lane] = fma::<F>(x[lane], y[lane], sums[lane]);
        }
    }
    let mut half = 16;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    a_rest.iter().zip(b_rest).fold(sums[0], |sum, (&x, &y)| fma::<F>(x, y, sum))
}
