//! Which instruction set the kernels run on and which unit multiplies bf16, found once at run time, and the macro that
//! instantiates one generic body for each instruction set. No kernel lives here.

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

/// A unit that multiplies pairs of bf16 and sums them in `f32`, beside [`Isa::Avx512`]: for products with bf16 weights,
/// whose left operand it rounds to bf16 too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bf16Unit {
    /// Tiles of AMX, on Linux. The default where they are found to work.
    Amx,
    /// `vdpbf16ps` of AVX-512-BF16. The default on CPUs of AMD; elsewhere only on request, for on Intel's it is slower than
    /// multiply-adds of `f32` (`docs/decisions/0005-bf16-products.md`).
    Avx512Bf16,
    /// The sums of AMX in plain numbers, for tests.
    #[cfg(test)]
    Emulated,
}

impl Bf16Unit {
    /// Every unit that can be used here, the fastest first. AMX is tried on a small product first.
    pub fn available() -> Vec<Bf16Unit> {
        let mut units = Vec::new();
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if crate::matrix::pairs::amx::available() {
            units.push(Bf16Unit::Amx);
        }
        if Bf16Unit::has_avx512() {
            units.push(Bf16Unit::Avx512Bf16);
        }
        units
    }

    /// Whether the CPU has AVX-512-BF16, beside what [`Isa::Avx512`] needs.
    pub(crate) fn has_avx512() -> bool {
        #[cfg(target_arch = "x86_64")]
        return Isa::available()[0] == Isa::Avx512 && is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether the unit is used where nobody asked for it: where it is faster than widening, measured. By the maker and not by
    /// a timing, so that results do not change from one start to the next.
    fn by_default(self, maker: &str) -> bool {
        match self {
            Bf16Unit::Amx => true,
            Bf16Unit::Avx512Bf16 => maker == "AuthenticAMD",
            #[cfg(test)]
            Bf16Unit::Emulated => false,
        }
    }

    /// The name that `FINEGATES_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Bf16Unit::Amx => "amx",
            Bf16Unit::Avx512Bf16 => "avx512bf16",
            #[cfg(test)]
            Bf16Unit::Emulated => "emulated",
        }
    }
}

impl fmt::Display for Bf16Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, PartialEq)]
struct Chosen {
    isa: Isa,
    bf16_unit: Option<Bf16Unit>,
    note: Option<String>,
}

static CHOSEN: OnceLock<Chosen> = OnceLock::new();
static ISA: OnceLock<Isa> = OnceLock::new();

fn wanted() -> Option<String> {
    std::env::var("FINEGATES_ISA").ok()
}

/// With the unit for bf16, for which the system is asked: only what needs one comes here.
fn chosen() -> &'static Chosen {
    CHOSEN.get_or_init(|| {
        let (wanted, sets) = (wanted(), Isa::available());
        // Who names a set gets no unit, and nobody is asked for one.
        let named = sets.iter().any(|isa| wanted.as_deref() == Some(isa.name()));
        let units = if named { Vec::new() } else { Bf16Unit::available() };
        choose(wanted.as_deref(), &sets, &units, &maker())
    })
}

/// What is used on a CPU of this maker where these instruction sets and units are available, each the best first. A unit goes
/// with the best set; who names a set gets no unit.
fn choose(wanted: Option<&str>, sets: &[Isa], units: &[Bf16Unit], maker: &str) -> Chosen {
    let bf16_unit = units.iter().copied().find(|unit| unit.by_default(maker));
    let Some(wanted) = wanted else { return Chosen { isa: sets[0], bf16_unit, note: None } };
    let note = Some(format!("FINEGATES_ISA={wanted}"));
    if let Some(&isa) = sets.iter().find(|isa| isa.name() == wanted) {
        return Chosen { isa, bf16_unit: None, note };
    }
    if let Some(&unit) = units.iter().find(|unit| unit.name() == wanted) {
        return Chosen { isa: sets[0], bf16_unit: Some(unit), note };
    }
    let note = Some(format!("FINEGATES_ISA={wanted} is not available here and was ignored"));
    Chosen { isa: sets[0], bf16_unit, note }
}

/// The maker of the CPU, as it names itself: `GenuineIntel`, `AuthenticAMD`; empty on other architectures.
fn maker() -> String {
    #[cfg(target_arch = "x86_64")]
    let name = {
        let leaf = std::arch::x86_64::__cpuid(0);
        [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat()
    };
    #[cfg(not(target_arch = "x86_64"))]
    let name = [];
    String::from_utf8_lossy(&name).into_owned()
}

#[cfg(test)]
thread_local! {
    static FORCED: std::cell::Cell<Option<(Isa, Option<Bf16Unit>)>> = const { std::cell::Cell::new(None) };
}

/// The instruction set the kernels use: the best of the CPU, or the one that the environment variable `FINEGATES_ISA`
/// (`amx`, `avx512bf16`, `avx512`, `avx2`, `portable`) names when the CPU has it. Fixed at the first call.
pub fn isa() -> Isa {
    #[cfg(test)]
    if let Some((isa, _)) = FORCED.get() {
        return isa;
    }
    *ISA.get_or_init(|| choose(wanted().as_deref(), &Isa::available(), &[], "").isa)
}

/// The unit that products of more than a few rows with bf16 weights run on: AMX where it works, `vdpbf16ps` on AMD's CPUs, or
/// what the environment variable `FINEGATES_ISA` (`amx`, `avx512bf16`) names. `None` where such weights are widened for the kernels of [`isa`].
pub fn bf16_unit() -> Option<Bf16Unit> {
    #[cfg(test)]
    if let Some((_, unit)) = FORCED.get() {
        return unit;
    }
    chosen().bf16_unit
}

/// [`isa`], and [`bf16_unit`] where there is one: `avx512`, or `avx512 with amx for bf16`.
pub fn instruction_set() -> String {
    match bf16_unit() {
        Some(unit) => format!("{} with {unit} for bf16", isa()),
        None => isa().to_string(),
    }
}

/// Runs `work` with every kernel called from this thread on `isa`, without a unit for bf16.
#[cfg(test)]
pub(crate) fn with_isa<R>(isa: Isa, work: impl FnOnce() -> R) -> R {
    assert!(Isa::available().contains(&isa));
    with_forced(isa, None, work)
}

/// Runs `work` with products of bf16 called from this thread on `unit`, all else on the best instruction set.
#[cfg(test)]
pub(crate) fn with_bf16_unit<R>(unit: Bf16Unit, work: impl FnOnce() -> R) -> R {
    with_forced(Isa::available()[0], Some(unit), work)
}

#[cfg(test)]
fn with_forced<R>(isa: Isa, unit: Option<Bf16Unit>, work: impl FnOnce() -> R) -> R {
    let before = FORCED.replace(Some((isa, unit)));
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
    let threads = rayon::current_num_threads();
    let note = chosen().note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
    format!("{}{note}, {threads} {}", instruction_set(), if threads == 1 { "thread" } else { "threads" })
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
        assert!(bf16_unit().is_none_or(|unit| Bf16Unit::available().contains(&unit)));
    }

    #[test]
    fn a_unit_for_bf16_is_chosen_where_it_is_named_or_known_to_be_fast() {
        const SETS: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Portable];
        const VECTOR: &[Bf16Unit] = &[Bf16Unit::Avx512Bf16];
        const BOTH: &[Bf16Unit] = &[Bf16Unit::Amx, Bf16Unit::Avx512Bf16];
        let on = |maker, wanted, units| {
            let Chosen { isa, bf16_unit, note } = choose(wanted, &SETS, units, maker);
            (isa, bf16_unit, note.is_some_and(|note| note.contains("not available")))
        };
        let of = |wanted, units| on("GenuineIntel", wanted, units);
        assert_eq!(of(None, &[]), (Isa::Avx512, None, false));
        assert_eq!(of(None, VECTOR), (Isa::Avx512, None, false));
        assert_eq!(of(None, BOTH), (Isa::Avx512, Some(Bf16Unit::Amx), false));
        assert_eq!(of(Some("avx512"), BOTH), (Isa::Avx512, None, false));
        assert_eq!(of(Some("avx2"), BOTH), (Isa::Avx2, None, false));
        assert_eq!(of(Some("amx"), BOTH), (Isa::Avx512, Some(Bf16Unit::Amx), false));
        assert_eq!(of(Some("avx512bf16"), BOTH), (Isa::Avx512, Some(Bf16Unit::Avx512Bf16), false));
        assert_eq!(of(Some("amx"), VECTOR), (Isa::Avx512, None, true));
        assert_eq!(of(Some("sse"), BOTH), (Isa::Avx512, Some(Bf16Unit::Amx), true));
        let of = |wanted, units| on("AuthenticAMD", wanted, units);
        assert_eq!(of(None, &[]), (Isa::Avx512, None, false));
        assert_eq!(of(None, VECTOR), (Isa::Avx512, Some(Bf16Unit::Avx512Bf16), false));
        assert_eq!(of(None, BOTH), (Isa::Avx512, Some(Bf16Unit::Amx), false));
        assert_eq!(of(Some("avx512"), VECTOR), (Isa::Avx512, None, false));
        assert_eq!(of(Some("amx"), VECTOR), (Isa::Avx512, Some(Bf16Unit::Avx512Bf16), true));
    }
}
