//! Which instruction set the kernels run on, found once at run time, and the macro that instantiates one generic
//! body for each of them. No kernel lives here.

use std::fmt;
use std::sync::OnceLock;

/// An instruction set that the kernels have code for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// AVX-512 F, BW, DQ and VL with FMA: 16 lanes.
    Avx512,
    /// AVX2 with FMA: 8 lanes.
    Avx2,
    /// Whatever the compiler's target guarantees.
    Portable,
}

impl Isa {
    /// Every instruction set this CPU can run, the fastest first.
    pub fn available() -> Vec<Isa> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                sets.push(Isa::Avx512);
            }
            if avx2 {
                sets.push(Isa::Avx2);
            }
        }
        sets.push(Isa::Portable);
        sets
    }

    /// The name that `FINEGATES_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

static CHOSEN: OnceLock<(Isa, Option<String>)> = OnceLock::new();

fn choose() -> (Isa, Option<String>) {
    let available = Isa::available();
    let best = available[0];
    let Ok(wanted) = std::env::var("FINEGATES_ISA") else { return (best, None) };
    match available.iter().find(|isa| isa.name() == wanted) {
        Some(&isa) => (isa, Some(format!("FINEGATES_ISA={wanted}"))),
        None => (best, Some(format!("FINEGATES_ISA={wanted} is not available here and was ignored"))),
    }
}

#[cfg(test)]
thread_local! {
    static FORCED: std::cell::Cell<Option<Isa>> = const { std::cell::Cell::new(None) };
}

/// The instruction set the kernels use: the best of the CPU, or the one that the environment variable `FINEGATES_ISA`
/// (`avx512`, `avx2`, `portable`) names when the CPU has it. Fixed at the first call.
pub fn isa() -> Isa {
    #[cfg(test)]
    if let Some(isa) = FORCED.get() {
        return isa;
    }
    CHOSEN.get_or_init(choose).0
}

/// Runs `work` with every kernel called from this thread on `isa`.
#[cfg(test)]
pub(crate) fn with_isa<R>(isa: Isa, work: impl FnOnce() -> R) -> R {
    assert!(Isa::available().contains(&isa));
    let before = FORCED.replace(Some(isa));
    let result = work();
    FORCED.set(before);
    result
}

/// One line for people and for benchmark records: the instruction set, how it came about, and the threads in use.
///
/// ```
/// println!("{}", finegates_kernels::cpu::describe());
/// ```
pub fn describe() -> String {
    let (isa, note) = CHOSEN.get_or_init(choose);
    let threads = rayon::current_num_threads();
    let note = note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
    format!("{isa}{note}, {threads} {}", if threads == 1 { "thread" } else { "threads" })
}

/// What the system calls its CPU, or its architecture.
pub fn name() -> String {
    let named = if cfg!(windows) { std::env::var("PROCESSOR_IDENTIFIER").ok() } else { from_proc() };
    named.filter(|name| !name.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

fn from_proc() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Whether the compiler's target has a fused multiply-add of its own, so that `mul_add` is one instruction in portable code.
pub(crate) const NATIVE_FMA: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

/// Defines functions whose one generic body is compiled for every instruction set and dispatched on their first argument.
///
/// Inside a body the constant `FMA` says whether `mul_add` is one instruction there ([`crate::math::mul_add`] takes it).
macro_rules! kernel {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name(isa: $crate::cpu::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, clippy::extra_unused_type_parameters)]
            fn body<const FMA: bool>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $ty),*) $(-> $ret)? { body::<true>($($arg),*) }
            match isa {
                // SAFETY: an `Isa` other than `Portable` is only made where the CPU was found to have it.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => body::<{ $crate::cpu::NATIVE_FMA }>($($arg),*),
            }
        }
    )*};
}
pub(crate) use kernel;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_instruction_set_is_available() {
        assert!(Isa::available().contains(&isa()));
        assert!(describe().contains("thread"));
        assert_eq!(Isa::available().last(), Some(&Isa::Portable));
    }
}
