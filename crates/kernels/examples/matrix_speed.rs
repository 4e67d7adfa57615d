//! Prints GFLOP/s of the matrix products for the shapes of small and base encoders, and their share of the multiply-add
//! peak measured in the same run; for a few rows against weights beyond the caches the share of the memory's bandwidth.
//! `cargo run --release -p finegates-kernels --example matrix_speed [products|stream|units]`
//! `units` compares, in alternation, the ways that products with bf16 weights can go here.

use std::hint::black_box;
use std::time::Instant;

use finegates_kernels::cpu;
use finegates_kernels::matrix::{self, Activation, Input, Output, PackedMatrix, Precision};
use finegates_kernels::random;

/// The time so far: with one thread what it spent computing, where the system tells, so that other programs do not count.
fn now() -> f64 {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    // The count is brought up to date when the thread yields.
    let busy = || {
        std::thread::yield_now();
        std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split(' ').next()?.parse::<f64>().ok()
    };
    let busy = if rayon::current_num_threads() == 1 { busy() } else { None };
    busy.map_or_else(|| START.elapsed().as_secs_f64(), |busy| busy / 1e9)
}

/// Speed in GFLOP/s of work that does `operations`, and its share of the peak, both medians over short runs that alternate
/// with runs of the peak loop: other programs and clock changes then hit both.
fn measure(operations: f64, mut work: impl FnMut()) -> (f64, f64) {
    let mut batch = 1;
    let mut time = |batch: usize| {
        let start = now();
        (0..batch).for_each(|_| work());
        (now() - start) / batch as f64
    };
    while time(batch) * (batch as f64) < 0.004 {
        batch *= 2;
    }
    let peak = || {
        let start = now();
        let operations: f64 = rayon::broadcast(|_| peak_loop()).iter().sum();
        operations / (now() - start)
    };
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let mut before = peak();
    let samples = (0..40).map(|_| {
        let speed = operations / time(batch);
        let after = peak();
        let share = speed / (0.5 * (before + after));
        before = after;
        (speed / 1e9, share)
    });
    let (speeds, shares): (Vec<f64>, Vec<f64>) = samples.unzip();
    (median(speeds), median(shares))
}

/// Multiply-adds that never leave the registers; answers the operations done.
#[cfg(target_arch = "x86_64")]
fn peak_loop() -> f64 {
    use std::arch::x86_64::*;
    const ROUNDS: usize = 200_000;
    #[target_feature(enable = "avx512f")]
    fn avx512() {
        let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(1e-3)));
        let mut sums = [b; 16];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
    #[target_feature(enable = "avx2,fma")]
    fn avx2() {
        let (a, b) = (_mm256_set1_ps(black_box(0.999)), _mm256_set1_ps(black_box(1e-3)));
        let mut sums = [b; 12];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, a, b);
            }
        }
        black_box(sums);
    }
    #[target_feature(enable = "sse2")]
    fn sse2() {
        let (a, b) = (_mm_set1_ps(black_box(0.999)), _mm_set1_ps(black_box(1e-3)));
        let mut sums = [b; 12];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm_add_ps(_mm_mul_ps(*sum, a), b);
            }
        }
        black_box(sums);
    }
    // SAFETY: the instruction set was detected; SSE2 is part of x86-64.
    unsafe {
        match cpu::isa() {
            cpu::Isa::Avx512 => (avx512(), 2.0 * 256.0 * ROUNDS as f64).1,
            cpu::Isa::Avx2 => (avx2(), 2.0 * 96.0 * ROUNDS as f64).1,
            cpu::Isa::Portable => (sse2(), 2.0 * 48.0 * ROUNDS as f64).1,
        }
    }
}

/// Multiply-adds that never leave the registers; answers the operations done.
#[cfg(not(target_arch = "x86_64"))]
fn peak_loop() -> f64 {
    const ROUNDS: usize = 200_000;
    let (a, b) = (black_box(0.999_f32), black_box(1e-3_f32));
    let mut sums = [[1.0_f32; 4]; 16];
    for _ in 0..ROUNDS {
        for sums in &mut sums {
            *sums = sums.map(|sum| sum.mul_add(a, b));
        }
    }
    black_box(sums);
    2.0 * 64.0 * ROUNDS as f64
}

/// `y = x Wᵀ + bias`.
fn product(x: &[f32], rows: usize, packed: &PackedMatrix, bias: Option<&[f32]>, y: &mut [f32]) {
    let input = Input { data: x, rows, stride: packed.depth(), columns: None, scale: None };
    let mut output = Output {
        data: y,
        stride: packed.outputs(),
        columns: None,
        bias,
        scale: None,
        activation: Activation::None,
        add: false,
    };
    matrix::multiply(&input, packed, None, &mut output);
}

fn products() {
    let shapes = [
        (1024, 384, 384),
        (1024, 384, 1536),
        (1024, 1536, 384),
        (1024, 768, 768),
        (1024, 768, 3072),
        (1024, 3072, 768),
        (1024, 230, 922),
        (256, 384, 384),
        (64, 384, 384),
        (64, 768, 3072),
        (32, 384, 1536),
        (16, 384, 384),
        (16, 768, 768),
        (16, 384, 1536),
        (1, 384, 1536),
        (4, 768, 768),
    ];
    println!(
        "{:>24} {:>9} {:>7} {:>9} {:>7} {:>9} {:>7} {:>9} {:>7}",
        "T x K -> N", "multiply", "", "bf16", "", "gathered", "", "transposed", ""
    );
    for (t, k, n) in shapes {
        let mut x = vec![0.0; t * k];
        let mut w = vec![0.0; n * k];
        let mut y = vec![0.0; t * n];
        random::fill_normal(1, 0.0, 1.0, &mut x);
        random::fill_normal(2, 0.0, 1.0, &mut w);
        let bias = vec![0.1; n];
        let operations = 2.0 * (t * k * n) as f64;
        let [plain, bf16] = [Precision::F32, Precision::Bf16].map(|precision| {
            let packed = PackedMatrix::rows_in(precision, &w, n, k, None);
            measure(operations, || product(&x, t, &packed, Some(&bias), &mut y))
        });
        let kept: Vec<u32> = (0..k as u32).filter(|k| k % 5 != 2).collect();
        let rows: Vec<u32> = (0..n as u32).filter(|n| n % 5 != 3).collect();
        let scale = vec![0.9; kept.len()];
        let packed_rows = PackedMatrix::rows(&w, n, k, Some(&rows));
        let gathered_operations = 2.0 * (t * kept.len() * rows.len()) as f64;
        let gathered = measure(gathered_operations, || {
            let input = Input { data: &x, rows: t, stride: k, columns: Some(&kept), scale: Some(&scale) };
            let mut output = Output {
                data: &mut y,
                stride: n,
                columns: Some(&rows),
                bias: None,
                scale: None,
                activation: Activation::None,
                add: false,
            };
            matrix::multiply(&input, &packed_rows, Some(&kept), &mut output);
        });
        let side = |data, width| matrix::Side { data, width, columns: None, scale: None };
        let transposed = measure(operations, || matrix::multiply_transposed(&side(&y, n), &side(&x, k), t, &mut w));
        print!("{:>24}", format!("{t} x {k} -> {n}"));
        for (speed, share) in [plain, bf16, gathered, transposed] {
            print!(" {speed:>9.1} {:>5.1} %", 100.0 * share);
        }
        println!();
    }
    for (rows, columns) in [(384, 384), (1536, 384), (3072, 768)] {
        let mut w = vec![0.0; rows * columns];
        random::fill_normal(2, 0.0, 1.0, &mut w);
        let bytes = 4.0 * w.len() as f64;
        for precision in [Precision::F32, Precision::Bf16] {
            let pack = |by| _ = black_box(PackedMatrix::rows_in(precision, by, rows, columns, None));
            let by_rows = measure(bytes, || pack(&w)).0;
            let pack = |by| _ = black_box(PackedMatrix::columns_in(precision, by, rows, columns, None));
            let by_columns = measure(bytes, || pack(&w)).0;
            println!("packing {rows} x {columns} as {precision}: rows {by_rows:.1} GB/s, columns {by_columns:.1} GB/s");
        }
    }
}

/// A sum over a part of `data` on each thread.
fn read(data: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    fn avx512(data: &[f32]) -> f32 {
        sum::<128>(data)
    }
    #[inline(always)]
    fn sum<const RUN: usize>(data: &[f32]) -> f32 {
        let mut sums = [0.0; RUN];
        for run in data.as_chunks::<RUN>().0 {
            sums.iter_mut().zip(run).for_each(|(sum, &value)| *sum += value);
        }
        sums.iter().sum()
    }
    rayon::broadcast(|context| {
        let length = data.len() / context.num_threads();
        let part = &data[context.index() * length..][..length];
        #[cfg(target_arch = "x86_64")]
        if cpu::Isa::available().contains(&cpu::Isa::Avx512) {
            // SAFETY: the instruction set was detected.
            black_box(unsafe { avx512(part) });
            return;
        }
        black_box(sum::<32>(part));
    });
}

/// Weights in all that a few rows go through, four bytes each: beyond any cache.
const STREAMED: usize = 1 << 27;

/// A few rows against many weights in turn, so that each comes from memory: GB/s of weights, and the share of a plain sum
/// over as much memory.
fn stream() {
    let memory = vec![1.0_f32; STREAMED];
    println!("{:>24} {:>9} {:>7} {:>9} {:>7}", "T x K -> N", "f32", "", "bf16", "");
    for (k, n) in [(2048, 2048), (2048, 8192), (8192, 2048), (576, 1536), (1536, 576), (384, 1536)] {
        let mut w = vec![0.0; n * k];
        random::fill_normal(2, 0.0, 1.0, &mut w);
        let packs = [Precision::F32, Precision::Bf16].map(|precision| {
            let first = PackedMatrix::rows_in(precision, &w, n, k, None);
            vec![first; STREAMED * 4 / precision.bytes() / (n * k)]
        });
        for t in [1, 2, 4, 8, 14, 16] {
            let x = vec![0.5; t * k];
            let mut y = vec![0.0; t * n];
            print!("{:>24}", format!("{t} x {k} -> {n}"));
            for packs in &packs {
                let bytes: usize = packs.iter().map(PackedMatrix::size_bytes).sum();
                let mut samples: Vec<(f64, f64)> = (0..7)
                    .map(|_| {
                        let start = now();
                        read(&memory);
                        let peak = size_of_val(memory.as_slice()) as f64 / (now() - start);
                        let start = now();
                        packs.iter().for_each(|packed| product(&x, t, packed, None, &mut y));
                        let speed = bytes as f64 / (now() - start);
                        (speed / peak, speed / 1e9)
                    })
                    .collect();
                samples.sort_by(|a, b| a.0.total_cmp(&b.0));
                let (share, speed) = samples[samples.len() / 2];
                print!(" {speed:>9.1} {:>5.1} %", 100.0 * share);
            }
            println!();
        }
    }
}

const UNIT_SHAPES: [(usize, usize, usize); 5] =
    [(1024, 768, 768), (1024, 768, 3072), (1024, 3072, 768), (1024, 2048, 8192), (32, 768, 3072)];

/// Prints GFLOP/s of each of [`UNIT_SHAPES`] with bf16 weights, one a line, on what `FINEGATES_ISA` says.
fn unit_speeds() {
    for (t, k, n) in UNIT_SHAPES {
        let (mut x, mut w, mut y) = (vec![0.0; t * k], vec![0.0; n * k], vec![0.0; t * n]);
        random::fill_normal(1, 0.0, 1.0, &mut x);
        random::fill_normal(2, 0.0, 1.0, &mut w);
        let bias = vec![0.1; n];
        let packed = PackedMatrix::rows_in(Precision::Bf16, &w, n, k, None);
        let mut run = || {
            let start = now();
            product(&x, t, &packed, Some(&bias), &mut y);
            now() - start
        };
        run();
        let mut times: Vec<f64> = (0..9).map(|_| run()).collect();
        times.sort_by(f64::total_cmp);
        println!("{}", 2e-9 * (t * k * n) as f64 / times[times.len() / 2]);
    }
}

/// Medians over rounds in which this program runs itself once for each way in turn: a way is chosen once a process.
fn units() {
    const ROUNDS: usize = 7;
    let program = std::env::current_exe().expect("the path of this program");
    let mut ways = vec!["avx512"];
    ways.extend(cpu::Bf16Unit::available().iter().map(|unit| unit.name()));
    let mut speeds = vec![vec![Vec::new(); UNIT_SHAPES.len()]; ways.len()];
    for _ in 0..ROUNDS {
        for (way, speeds) in ways.iter().zip(&mut speeds) {
            let mut command = std::process::Command::new(&program);
            let output = command.arg("unit").env("FINEGATES_ISA", way).output().expect("this program runs");
            let text = String::from_utf8(output.stdout).expect("numbers");
            let numbers = text.lines().filter_map(|line| line.parse::<f64>().ok());
            speeds.iter_mut().zip(numbers).for_each(|(speeds, speed)| speeds.push(speed));
        }
    }
    println!("{:>24} {}", "T x K -> N", ways.iter().map(|way| format!("{way:>20}")).collect::<String>());
    for (shape, (t, k, n)) in UNIT_SHAPES.into_iter().enumerate() {
        let medians = speeds.iter_mut().map(|speeds| {
            speeds[shape].sort_by(f64::total_cmp);
            speeds[shape][ROUNDS / 2]
        });
        let medians: Vec<f64> = medians.collect();
        let columns = medians.iter().map(|speed| format!("{speed:>12.1} {:>6.2}x", speed / medians[0]));
        println!("{:>24} {}", format!("{t} x {k} -> {n}"), columns.collect::<String>());
    }
}

fn main() {
    let wanted = std::env::args().nth(1);
    if wanted.as_deref() == Some("unit") {
        return unit_speeds();
    }
    println!("{}", cpu::describe());
    let wants = |name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
    rayon::scope(|_| {
        if wants("products") {
            products();
        }
        if wants("stream") {
            stream();
        }
        if wants("units") {
            units();
        }
    });
}
