//! Kernels compiled for several instruction sets, the widest of which is picked at run time.
//!
//! A function's vector instructions are fixed when it is compiled. [`kernel!`] compiles the same body for the plain
//! target, for AVX2 and for AVX-512. The bodies name each multiply-add and each lane, so the results do not depend on
//! the choice.

/// The vector instructions of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// What the machine offers; a few loads after the first call.
#[inline]
pub(crate) fn level() -> Level {
    #[cfg(test)]
    return detected().min(limit::get());
    #[cfg(not(test))]
    detected()
}

#[inline]
fn detected() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("fma")
        {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Level::Avx2;
        }
    }
    Level::Plain
}

/// Whether vectors of 16 values fill the registers of this machine.
#[inline]
pub(crate) fn wide() -> bool {
    #[cfg(target_arch = "x86_64")]
    return level() == Level::Avx512;
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Defines a function whose body is compiled once for each [`Level`]. What the body calls must be
/// `#[inline(always)]`, or it is compiled for the plain target only.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::ops::simd::level() {
                    // SAFETY: the machine has the features.
                    $crate::ops::simd::Level::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: the machine has the features.
                    $crate::ops::simd::Level::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::ops::simd::Level::Plain => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use kernel;

/// Tests may narrow what the kernels use.
#[cfg(test)]
pub(crate) mod limit {
    use super::Level;
    use std::sync::Mutex;

    /// Every level of the processor's kind, the widest last.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const LEVELS: &[Level] = &[Level::Plain, Level::Avx2, Level::Avx512];
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) const LEVELS: &[Level] = &[Level::Plain];

    static LIMIT: Mutex<Level> = Mutex::new(LEVELS[LEVELS.len() - 1]);

    pub(super) fn get() -> Level {
        *LIMIT.lock().expect("no test panics with it")
    }

    /// For all threads, until it is set again: tests beside this one get the same bits more slowly.
    pub(crate) fn set(level: Level) {
        *LIMIT.lock().expect("no test panics with it") = level;
    }
}
