//! CPU bodies. Inner loops are written once over plain slices and compiled twice, for AVX2 with
//! FMA and for whatever the target guarantees; the choice is made at run time, once a call. None
//! of them starts threads: the caller splits the work, so that a result never depends on it.

pub(crate) mod adam;
#[cfg(target_arch = "x86_64")]
mod adam512;
pub(crate) mod gemm;
pub(crate) mod lanes;
pub(crate) mod moments;
pub(crate) mod select;
pub(crate) mod sparse;
pub(crate) mod terms;

/// Declares a function whose body is compiled for AVX2 + FMA and for the base target.
/// The body is generic over its [`lanes::Lanes`].
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
                    $body::<$crate::clt::kernels::cpu::lanes::Avx2>($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    // SAFETY: the features that `fast` needs were just found.
                    return unsafe { fast($($arg),*) };
                }
            }
            $body::<$crate::clt::kernels::cpu::lanes::Portable>($($arg),*)
        }
    };
}
pub(crate) use simd;
