//! AMX: four tiles of 16 by 16 sums in tile registers, as inline assembly, since the compiler's own names for the
//! instructions are not stable. It also finds out whether they can be used, and whether they compute what they should.
//!
//! Tile registers live from the first to the last instruction of one assembly block only. What lasts between [`configure`]
//! and [`release`] is the tile configuration of the thread, which compiled code does not know of.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

use super::{Bf16Unit, Block, PANEL, PANEL_STEP, Ready, STEP, STEP_WORDS, TILE_ROWS, emulation};
use crate::matrix::aligned::Aligned;
use crate::random;

/// Bytes of a row of a panel, and of the results: two tiles side by side.
const ROW_BYTES: usize = 4 * PANEL;
/// Bytes that a step of a 2 by 2 block fetches of what comes next: four blocks see a whole panel.
const FETCHED: usize = 512;

/// What `ldtilecfg` loads.
#[repr(C, align(64))]
pub(super) struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All eight tiles whole: 16 rows of 64 bytes. Edges are filled up in memory, never configured.
static WHOLE: Configuration = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        row_bytes[tile] = 64;
        rows[tile] = TILE_ROWS as u8;
        tile += 1;
    }
    Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// Configures this thread's tiles for [`multiply`].
///
/// # Safety
/// AMX is available.
pub(super) unsafe fn configure() {
    // SAFETY: the operand is a valid configuration of 64 bytes; tile registers, which it clears, hold nothing here.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const WHOLE, options(nostack, preserves_flags, readonly)) };
}

/// Gives this thread's tiles back, so that switches between threads need not save them.
///
/// # Safety
/// AMX is available.
pub(super) unsafe fn release() {
    // SAFETY: tile registers hold nothing here.
    unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
}

/// Rows of a block as pointers: 16 rows of words at `a`, `a_bytes` apart, 16 more behind them for [`two_tiles`].
#[derive(Clone, Copy)]
struct Job {
    a: *const u32,
    a_bytes: usize,
    /// `steps` whole steps, 0 for none.
    b: *const u32,
    steps: usize,
    /// One more step, or null.
    tail: *const u32,
    /// What is fetched, and bytes from one step to the next of it; need not be valid.
    next: *const u32,
    next_bytes: usize,
    c: *mut f32,
    resume: bool,
}

/// # Safety
/// AMX is available and configured on this thread, and the block's shapes were checked.
pub(super) unsafe fn multiply(block: &mut Block<'_>) {
    let steps = block.b.len() / PANEL_STEP;
    for (index, first) in (0..block.rows).step_by(2 * TILE_ROWS).enumerate() {
        (block.before)(first..block.rows.min(first + 2 * TILE_ROWS));
        let fetched = index * steps * FETCHED;
        let fetches = fetched < steps * 4 * PANEL_STEP;
        // SAFETY: the rows are inside the blocks, which the caller checked.
        unsafe {
            let job = Job {
                a: block.a.as_ptr().add(first * block.a_stride),
                a_bytes: 4 * block.a_stride,
                b: block.b.as_ptr(),
                steps,
                tail: block.tail.map_or(std::ptr::null(), <[u32]>::as_ptr),
                next: if fetches { block.next.wrapping_byte_add(fetched) } else { block.b.as_ptr() },
                next_bytes: if fetches { FETCHED } else { 0 },
                c: block.c[first * PANEL..].as_mut_ptr(),
                resume: block.resume,
            };
            if block.rows - first > TILE_ROWS { two_tiles(job) } else { one_tile(job) }
        }
        let last = block.rows.min(first + 2 * TILE_ROWS);
        (block.after)(first, &mut block.c[first * PANEL..last * PANEL]);
    }
}

/// 32 rows times 32 outputs.
///
/// # Safety
/// As [`multiply`]; the job holds 32 rows.
unsafe fn two_tiles(job: Job) {
    // SAFETY: the loads and stores stay inside the blocks by the caller's promise; every tile register that is used is
    // named, and a prefetch may go anywhere. `tileloaddt1` keeps the left operand, which passes once a panel, from driving
    // the panel out of the first-level cache.
    unsafe {
        asm!(
            "test {resume:e}, {resume:e}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {row}]",
            "tileloadd tmm1, [{c} + {row} + 64]",
            "tileloadd tmm2, [{c} + {row} + 2048]",
            "tileloadd tmm3, [{c} + {row} + 2112]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "test {steps}, {steps}",
            "jz 5f",
            "4:",
            "tileloadd tmm6, [{b} + {row}]",
            "tileloaddt1 tmm4, [{a} + {a_bytes}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {row} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloaddt1 tmm5, [{lower} + {a_bytes}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "prefetcht1 [{next}]",
            "prefetcht1 [{next} + 64]",
            "prefetcht1 [{next} + 128]",
            "prefetcht1 [{next} + 192]",
            "prefetcht1 [{next} + 256]",
            "prefetcht1 [{next} + 320]",
            "prefetcht1 [{next} + 384]",
            "prefetcht1 [{next} + 448]",
            "add {a}, 64",
            "add {lower}, 64",
            "add {b}, 2048",
            "add {next}, {next_bytes}",
            "dec {steps}",
            "jnz 4b",
            "5:",
            "test {tail}, {tail}",
            "jz 6f",
            "mov {b}, {tail}",
            "xor {tail:e}, {tail:e}",
            "mov {steps:e}, 1",
            "jmp 4b",
            "6:",
            "tilestored [{c} + {row}], tmm0",
            "tilestored [{c} + {row} + 64], tmm1",
            "tilestored [{c} + {row} + 2048], tmm2",
            "tilestored [{c} + {row} + 2112], tmm3",
            a = inout(reg) job.a => _,
            lower = inout(reg) job.a.wrapping_byte_add(TILE_ROWS * job.a_bytes) => _,
            a_bytes = in(reg) job.a_bytes,
            b = inout(reg) job.b => _,
            steps = inout(reg) job.steps => _,
            tail = inout(reg) job.tail => _,
            next = inout(reg) job.next => _,
            next_bytes = in(reg) job.next_bytes,
            c = in(reg) job.c,
            row = in(reg) ROW_BYTES,
            resume = in(reg) u32::from(job.resume),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// 16 rows times 32 outputs.
///
/// # Safety
/// As [`multiply`]; the job holds 16 rows.
unsafe fn one_tile(job: Job) {
    // SAFETY: as in `two_tiles`.
    unsafe {
        asm!(
            "test {resume:e}, {resume:e}",
            "jz 2f",
            "tileloadd tmm0, [{c} + {row}]",
            "tileloadd tmm1, [{c} + {row} + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "3:",
            "test {steps}, {steps}",
            "jz 5f",
            "4:",
            "tileloadd tmm6, [{b} + {row}]",
            "tileloadd tmm4, [{a} + {a_bytes}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {row} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "prefetcht1 [{next}]",
            "prefetcht1 [{next} + 64]",
            "prefetcht1 [{next} + 128]",
            "prefetcht1 [{next} + 192]",
            "prefetcht1 [{next} + 256]",
            "prefetcht1 [{next} + 320]",
            "prefetcht1 [{next} + 384]",
            "prefetcht1 [{next} + 448]",
            "add {a}, 64",
            "add {b}, 2048",
            "add {next}, {next_bytes}",
            "dec {steps}",
            "jnz 4b",
            "5:",
            "test {tail}, {tail}",
            "jz 6f",
            "mov {b}, {tail}",
            "xor {tail:e}, {tail:e}",
            "mov {steps:e}, 1",
            "jmp 4b",
            "6:",
            "tilestored [{c} + {row}], tmm0",
            "tilestored [{c} + {row} + 64], tmm1",
            a = inout(reg) job.a => _,
            a_bytes = in(reg) job.a_bytes,
            b = inout(reg) job.b => _,
            steps = inout(reg) job.steps => _,
            tail = inout(reg) job.tail => _,
            next = inout(reg) job.next => _,
            next_bytes = in(reg) job.next_bytes,
            c = in(reg) job.c,
            row = in(reg) ROW_BYTES,
            resume = in(reg) u32::from(job.resume),
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Four products of tiles, `repeats` times, of zeros.
///
/// # Safety
/// AMX is available and configured on this thread.
pub(super) unsafe fn repeat(repeats: usize) {
    // SAFETY: no memory is touched (but by the handler of the tests, so that this is not promised), and every tile register that is
    // used is named.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tilezero tmm4",
            "tilezero tmm5",
            "tilezero tmm6",
            "tilezero tmm7",
            "test {repeats}, {repeats}",
            "jz 3f",
            "2:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {repeats}",
            "jnz 2b",
            "3:",
            repeats = inout(reg) repeats => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Whether AMX can be used: the CPU has it, the system saves its state and permits it to this process, and a product comes
/// out as it should. Found out once.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    // SAFETY: the self-check runs only where the rest said that the instructions are there.
    *AVAILABLE.get_or_init(|| has_tiles() && permitted() && unsafe { computes_as_documented() })
}

/// Whether the CPU has tiles of the size that the kernel takes and bf16 products, beside AVX-512-BF16, and the system has
/// switched their state on.
fn has_tiles() -> bool {
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    const SYSTEM_SAVES_STATE: u32 = 1 << 27;
    if !Bf16Unit::has_avx512() || __cpuid_count(0, 0).eax < 0x1d {
        return false;
    }
    let instructions = __cpuid_count(7, 0).edx;
    if instructions & (BF16 | TILES) != BF16 | TILES || __cpuid_count(1, 0).ecx & SYSTEM_SAVES_STATE == 0 {
        return false;
    }
    let (mut enabled, mut upper): (u32, u32);
    // SAFETY: the system switched the instruction on, as was just read.
    unsafe {
        asm!("xgetbv", in("ecx") 0, lateout("eax") enabled, lateout("edx") upper, options(nomem, nostack, preserves_flags))
    };
    _ = upper;
    let palette = __cpuid_count(0x1d, 1);
    let (row_bytes, tiles, rows) = (palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx & 0xffff);
    // Configuration and data of the tiles.
    enabled & 0x6_0000 == 0x6_0000 && tiles >= 8 && row_bytes >= 64 && rows >= TILE_ROWS as u32
}

/// Asks Linux to let this process use tile data, which it grants once and for all threads (`ARCH_REQ_XCOMP_PERM`).
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let mut answer = ARCH_PRCTL;
    // SAFETY: the call reads its two numbers and no memory; kernels that do not know it answer with an error.
    unsafe {
        asm!(
            "syscall", inout("rax") answer, in("rdi") REQUEST_PERMISSION, in("rsi") TILE_DATA,
            lateout("rcx") _, lateout("r11") _, options(nostack),
        );
    }
    answer == 0
}

/// Whether blocks of both sizes, with and without a last step and earlier sums, agree with the emulation to the rounding of
/// as many sums as there are depths.
///
/// # Safety
/// AMX is available.
pub(super) unsafe fn computes_as_documented() -> bool {
    const ROWS: usize = 3 * TILE_ROWS;
    const STEPS: usize = 4;
    let (a_stride, words) = (STEP_WORDS * (STEPS + 1), STEPS * PANEL_STEP);
    // Numbers of both signs around 1, two a word.
    let word = |key: u64, i: usize| (random::mix(key, i as u64) as u32 & 0x807f_807f) | 0x3f80_3f80;
    let fill = |key: u64, length: usize| {
        let mut words = Aligned::zeros(length);
        words.as_mut_slice().iter_mut().enumerate().for_each(|(i, out)| *out = word(key, i));
        words
    };
    let (a, b) = (fill(1, ROWS * a_stride), fill(2, words));
    let (a, b) = (a.as_slice(), b.as_slice());
    let ready = Ready::new(Bf16Unit::Amx);
    let agrees = [false, true].into_iter().all(|resume| {
        let mut found = Aligned::<f32>::zeros(ROWS * PANEL);
        let found = found.as_mut_slice();
        found.iter_mut().enumerate().for_each(|(i, c)| *c = (i % 61) as f32 - 30.0);
        let mut expected = found.to_vec();
        let (whole, tail) = b.split_at(if resume { words } else { words - PANEL_STEP });
        let tail = Some(tail).filter(|tail| !tail.is_empty());
        let rows = ROWS - 1;
        let mut block = Block {
            a,
            a_stride,
            rows,
            b: whole,
            tail,
            next: b.as_ptr(),
            before: &|_| (),
            after: &|_, _| (),
            c: found,
            resume,
        };
        // SAFETY: the caller's promise; the block's shapes are those of the buffers.
        unsafe { multiply(&mut block) };
        found.chunks(PANEL).zip(expected.chunks_mut(PANEL)).take(rows).enumerate().all(|(row, (found, expected))| {
            if !resume {
                expected.fill(0.0);
            }
            let a = &a[row * a_stride..][..STEPS * STEP_WORDS];
            for (half, expected) in expected.chunks_mut(16).enumerate() {
                for (a, b) in a.chunks(STEP_WORDS).zip(b.chunks(PANEL_STEP)) {
                    emulation::tile_row(expected, a, &b[16 * half..], PANEL);
                }
            }
            // Products are below 4; a half unit in the last place of their absolute sum, for each of them.
            let depth = (STEPS * STEP) as f32;
            let bound = 0.5 * f32::EPSILON * depth * (4.0 * depth + 30.0);
            found.iter().zip(expected).all(|(found, expected)| (found - *expected).abs() <= bound)
        })
    });
    drop(ready);
    agrees
}
