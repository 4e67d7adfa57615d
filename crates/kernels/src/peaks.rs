//! What this machine can do at most, measured: multiply-adds of `f32` and of bf16 in registers, and reading from memory. Products
//! and decoding are compared with it; nothing computes with what is here.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::cpu::{self, Bf16Unit, Isa};
use crate::matrix::pairs;

/// Which threads work in a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling one.
    One,
    /// All of rayon's current pool at once.
    All,
}

/// The least that a timing lasts, so that handing work to the threads is nothing beside it.
const LEAST: Duration = Duration::from_millis(4);
/// Timings of which the best counts: what disturbs one makes it slower, never faster.
const TIMINGS: usize = 9;
/// Sums that a thread keeps at the same time: more than the latency of a multiply-add takes to fill every unit.
const CHAINS: usize = 12;

/// Floating-point operations a second, two for each multiply-add of `f32`, of a loop that does nothing else: independent
/// chains in registers, of the widest vectors that the chosen instruction set ([`cpu::isa`]) has. Nothing is read or written, so
/// no product can be faster on these units. It takes about a tenth of a second.
pub fn multiply_add_flops(threads: Threads) -> f64 {
    let isa = cpu::isa();
    let lanes = match isa {
        Isa::Avx512 => 16,
        Isa::Avx2 => 8,
        Isa::Portable => PORTABLE_LANES,
    };
    let (repeats, best) = best(1 << 10, |repeats| {
        on(threads, |_, _| {
            black_box(chains(isa, repeats));
        })
    });
    (2 * lanes * CHAINS * repeats * count(threads)) as f64 / best.as_secs_f64()
}

/// As [`multiply_add_flops`], of the unit that multiplies pairs of bf16 ([`cpu::bf16_unit`]), sums being `f32`; `None` where there
/// is no such unit.
pub fn bf16_multiply_add_flops(threads: Threads) -> Option<f64> {
    let unit = cpu::bf16_unit()?;
    let (repeats, best) = best(1 << 10, |repeats| {
        on(threads, |_, _| {
            black_box(bf16_chains(unit, repeats));
        })
    });
    Some((2 * bf16_multiply_adds(unit) * repeats * count(threads)) as f64 / best.as_secs_f64())
}

/// Bytes a second at which a block of `size_bytes` is read from its beginning to its end, again and again, each thread reading
/// a part of its own. A block that fits into a cache is read from there: give the size of what is to be compared. Where there
/// is no memory for the block, a smaller one is taken.
///
/// # Panics
/// If `size_bytes` is 0.
pub fn read_bandwidth(size_bytes: usize, threads: Threads) -> f64 {
    assert!(size_bytes > 0, "read_bandwidth: nothing to read");
    let isa = cpu::isa();
    let block = block(size_bytes.div_ceil(8));
    let part = |index: usize, count: usize| &block[block.len() * index / count..block.len() * (index + 1) / count];
    let (repeats, best) = best(1, |repeats| {
        on(threads, |index, count| {
            for _ in 0..repeats {
                black_box(sum(isa, black_box(part(index, count))));
            }
        })
    });
    (8 * block.len() * repeats) as f64 / best.as_secs_f64()
}

/// Repeats the work ever more often until the best of several timings is long enough: how often, and how long that took. A single
/// timing would not do, for one that was disturbed looks long with few repeats too.
fn best(mut repeats: usize, once: impl Fn(usize) -> Duration) -> (usize, Duration) {
    loop {
        let mut best = once(repeats);
        for _ in 1..TIMINGS {
            best = best.min(once(repeats));
            if best < LEAST {
                break;
            }
        }
        if best >= LEAST || repeats >= 1 << 40 {
            return (repeats, best);
        }
        repeats *= 2;
    }
}

/// Words of memory that have been written, so that pages of their own lie behind them.
fn block(mut words: usize) -> Vec<u64> {
    let mut block = Vec::new();
    while words > 1 && block.try_reserve_exact(words).is_err() {
        words /= 2;
    }
    block.resize(words, 1);
    block
}

fn count(threads: Threads) -> usize {
    match threads {
        Threads::One => 1,
        Threads::All => rayon::current_num_threads(),
    }
}

/// How long the threads need until the last has done `work(index, count)`.
fn on(threads: Threads, work: impl Fn(usize, usize) + Sync) -> Duration {
    let started = Instant::now();
    match threads {
        Threads::One => work(0, 1),
        Threads::All => {
            rayon::broadcast(|context| work(context.index(), context.num_threads()));
        }
    }
    started.elapsed()
}

cpu::kernel! {
    /// The sum of all words, which has to read every one.
    fn sum(words: &[u64]) -> u64 {
        words.iter().fold(0, |sum, &word| sum.wrapping_add(word))
    }
}

/// Where every chain begins, and what `x ← x · FACTOR + SUMMAND` leads it to: 1.
const START: f32 = 0.5;
const FACTOR: f32 = 0.75;
const SUMMAND: f32 = 0.25;

/// The sum of all lanes of all chains after `repeats` multiply-adds each.
fn chains(isa: Isa, repeats: usize) -> f32 {
    match isa {
        // SAFETY: an `Isa` other than `Portable` is only made where the CPU was found to have it.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { chains_avx512(repeats) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { chains_avx2(repeats) },
        _ => chains_portable(repeats),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn chains_avx512(repeats: usize) -> f32 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_set1_ps(black_box(START)); CHAINS];
    let (factor, summand) = (_mm512_set1_ps(black_box(FACTOR)), _mm512_set1_ps(black_box(SUMMAND)));
    for _ in 0..repeats {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, factor, summand);
        }
    }
    sums.iter().map(|&sum| _mm512_reduce_add_ps(sum)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn chains_avx2(repeats: usize) -> f32 {
    use std::arch::x86_64::*;
    let mut sums = [_mm256_set1_ps(black_box(START)); CHAINS];
    let (factor, summand) = (_mm256_set1_ps(black_box(FACTOR)), _mm256_set1_ps(black_box(SUMMAND)));
    for _ in 0..repeats {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, factor, summand);
        }
    }
    let mut lanes = [0.0_f32; 8];
    sums.iter()
        .map(|&sum| {
            // SAFETY: there is room for the eight lanes.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
            lanes.iter().sum::<f32>()
        })
        .sum()
}

/// Multiply-adds of one repeat of [`bf16_chains`].
fn bf16_multiply_adds(unit: Bf16Unit) -> usize {
    match unit {
        Bf16Unit::Avx512Bf16 => CHAINS * 32,
        _ => pairs::TILES_MULTIPLY_ADDS,
    }
}

/// The sum of all lanes of all chains after `repeats` products of pairs each; 0 where they cannot be read.
fn bf16_chains(unit: Bf16Unit, repeats: usize) -> f32 {
    match unit {
        // SAFETY: the unit is there, or there would be no such `Bf16Unit`.
        #[cfg(target_arch = "x86_64")]
        Bf16Unit::Avx512Bf16 => unsafe { chains_avx512_bf16(repeats) },
        _ => {
            pairs::multiply_tiles(unit, repeats);
            0.0
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn chains_avx512_bf16(repeats: usize) -> f32 {
    use std::arch::x86_64::*;
    let pair = |value: f32| {
        let vector = _mm512_set1_ps(black_box(value));
        _mm512_cvtne2ps_pbh(vector, vector)
    };
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    let (a, b) = (pair(FACTOR), pair(SUMMAND));
    for _ in 0..repeats {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, a, b);
        }
    }
    sums.iter().map(|&sum| _mm512_reduce_add_ps(sum)).sum()
}

/// Lanes of a chain where the compiler chooses the vectors: one of NEON's, or of SSE's.
const PORTABLE_LANES: usize = 4;

fn chains_portable(repeats: usize) -> f32 {
    let mut sums = [[black_box(START); PORTABLE_LANES]; CHAINS];
    let (factor, summand) = (black_box(FACTOR), black_box(SUMMAND));
    for _ in 0..repeats {
        for lane in sums.as_flattened_mut() {
            *lane = crate::math::mul_add::<{ cpu::NATIVE_FMA }>(*lane, factor, summand);
        }
    }
    sums.as_flattened().iter().sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::matrix::{self, Activation, Input, Output, PackedMatrix};

    #[test]
    fn every_chain_makes_every_step() {
        for isa in Isa::available() {
            let lanes = match isa {
                Isa::Avx512 => 16,
                Isa::Avx2 => 8,
                Isa::Portable => PORTABLE_LANES,
            };
            // After n steps a lane is 1 - ½ · 0.75ⁿ; that is exact for the first few.
            for (repeats, lane) in [(0, 0.5), (1, 0.625), (2, 0.71875)] {
                assert_eq!(chains(isa, repeats), lane * (lanes * CHAINS) as f32, "{isa}, {repeats}");
            }
        }
    }

    #[test]
    fn every_chain_of_bf16_makes_every_step() {
        if Bf16Unit::has_avx512() {
            // Two products of 3/16 a step and lane; both are exact.
            for repeats in [0, 1, 5] {
                let lanes = bf16_multiply_adds(Bf16Unit::Avx512Bf16) / 2;
                let found = bf16_chains(Bf16Unit::Avx512Bf16, repeats);
                assert_eq!(found, (lanes * repeats) as f32 * 0.375, "{repeats}");
            }
        }
        assert_eq!(bf16_multiply_add_flops(Threads::One).is_some(), cpu::bf16_unit().is_some());
        assert!(bf16_multiply_add_flops(Threads::All).is_none_or(|rate| rate > 1e6));
    }

    #[test]
    fn reading_reads_every_word() {
        let words: Vec<u64> = (0..1003).map(|index| index * index).collect();
        for isa in Isa::available() {
            assert_eq!(sum(isa, &words), words.iter().sum::<u64>(), "{isa}");
            assert_eq!(sum(isa, &[]), 0);
        }
    }

    #[test]
    fn no_product_goes_beyond_the_peak() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| {
            let (rows, depth, outputs) = (128, 256, 256);
            let packed = PackedMatrix::rows(&vec![0.5; outputs * depth], outputs, depth, None);
            let (x, mut y) = (vec![0.5; rows * depth], vec![0.0; rows * outputs]);
            let input = Input { data: &x, rows, stride: depth, columns: None, scale: None };
            let mut product = || {
                let (columns, bias, scale, activation) = (None, None, None, Activation::None);
                let started = Instant::now();
                let mut output = Output { data: &mut y, stride: outputs, columns, bias, scale, activation, add: false };
                matrix::multiply(&input, &packed, None, &mut output);
                started.elapsed()
            };
            let best = (0..50).map(|_| product()).min().unwrap();
            let reached = (2 * rows * depth * outputs) as f64 / best.as_secs_f64();
            // Other work on this core may take part of a timing, so that it is given several.
            let peak = (0..20).map(|_| multiply_add_flops(Threads::One)).find(|peak| *peak > 0.95 * reached);
            assert!(peak.is_some(), "a product made {reached:.3e} operations a second, which the peak does not reach");
        });
    }

    #[test]
    fn a_block_is_read_at_some_rate() {
        for threads in [Threads::One, Threads::All] {
            let rate = read_bandwidth(1 << 20, threads);
            assert!(rate.is_finite() && rate > 1e6, "{rate}");
            assert!(multiply_add_flops(threads) > 1e6);
        }
    }
}
