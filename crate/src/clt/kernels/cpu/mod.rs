//! CPU bodies. Inner loops are written once over arrays of eight lanes and compiled twice, for
//! AVX2 with FMA and for whatever the target guarantees; the choice is made at run time.

pub(crate) mod select;
pub(crate) mod sparse;

/// Declares a function whose body is compiled for AVX2 + FMA and for the base target.
/// Inside, `F` is a `const bool` that says whether a fused multiply-add is one instruction.
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
