//! Runs the AMX code on CPUs without AMX: the instructions raise a signal, whose handler decodes them from the program's own
//! bytes and carries them out on tile registers in memory. What is tested so is the very machine code, operands included.

use std::cell::UnsafeCell;
use std::sync::Once;

use libc::{c_int, c_void, siginfo_t, ucontext_t};

use super::{amx, emulation};

/// The tile registers of a thread: configured rows, bytes of a row, and contents.
struct Tiles {
    configured: bool,
    rows: [usize; 8],
    row_bytes: [usize; 8],
    words: [[[u32; 16]; 16]; 8],
    executed: usize,
    fault: Option<Fault>,
}

/// What a unit could do wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    /// The halves of the right operand's pairs change places.
    SwappedPairs,
    /// A product forgets the sums before it.
    NoSums,
    /// Loads go on where they are, whatever the distance of rows.
    NoStride,
}

pub(super) const FAULTS: [Fault; 3] = [Fault::SwappedPairs, Fault::NoSums, Fault::NoStride];

thread_local! {
    static TILES: UnsafeCell<Tiles> = const {
        UnsafeCell::new(Tiles {
            configured: false,
            rows: [0; 8],
            row_bytes: [0; 8],
            words: [[[0; 16]; 16]; 8],
            executed: 0,
            fault: None,
        })
    };
}

/// Makes AMX usable in this process: as it is where the CPU has it, by the handler elsewhere. Answers whether by the handler.
pub(super) fn install() -> bool {
    static ONCE: Once = Once::new();
    if amx::available() {
        return false;
    }
    ONCE.call_once(|| {
        // SAFETY: the action is a handler with three arguments, as SA_SIGINFO says, and an empty mask.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
    true
}

/// Instructions that the handler carried out on this thread, and whether it left tiles configured.
pub(super) fn state() -> (usize, bool) {
    // SAFETY: the handler, which alone holds a reference, does not run now.
    TILES.with(|tiles| unsafe { ((*tiles.get()).executed, (*tiles.get()).configured) })
}

/// Runs `work` with a unit that computes something else on this thread.
pub(super) fn with_fault<R>(fault: Fault, work: impl FnOnce() -> R) -> R {
    // SAFETY: as in `state`.
    let set = |fault| TILES.with(|tiles| unsafe { (*tiles.get()).fault = fault });
    set(Some(fault));
    let result = work();
    set(None);
    result
}

extern "C" fn handler(_signal: c_int, _info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the system passes the context of the interrupted thread; its instruction pointer points to code.
    unsafe {
        let registers = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
        let code = registers[libc::REG_RIP as usize] as *const u8;
        let done = TILES.with(|tiles| execute(&mut *tiles.get(), code, registers));
        match done {
            Some(length) => registers[libc::REG_RIP as usize] += length,
            None => {
                // What is not an AMX instruction, or a wrong one, ends the program as it would have.
                libc::signal(libc::SIGILL, libc::SIG_DFL);
            }
        }
    }
}

/// The value of a general register by its number in instructions.
fn register(registers: &[i64; 23], number: u8) -> i64 {
    use libc::{REG_R8, REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP};
    let low = [REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI];
    let place = if number < 8 { low[usize::from(number)] } else { REG_R8 + i32::from(number) - 8 };
    registers[place as usize]
}

/// Carries out the instruction at `code` and answers its length; `None` if it is none of AMX or breaks its rules.
///
/// # Safety
/// `code` points to an instruction, whose memory operands are valid.
unsafe fn execute(tiles: &mut Tiles, code: *const u8, registers: &[i64; 23]) -> Option<i64> {
    // SAFETY: an instruction has up to 15 bytes, and code goes on behind it.
    let at = |i: usize| unsafe { *code.add(i) };
    // VEX with three bytes, the map 0F38, W0 and 128 bits.
    if at(0) != 0xc4 || at(1) & 0x1f != 2 || at(2) & 0x84 != 0 {
        return None;
    }
    let (extend_register, extend_index, extend_base) = (!at(1) >> 7 & 1, !at(1) >> 6 & 1, !at(1) >> 5 & 1);
    let (third, prefix, opcode, modrm) = (!at(2) >> 3 & 15, at(2) & 3, at(3), at(4));
    let (mode, tile, low) = (modrm >> 6, (modrm >> 3 & 7) as usize, modrm & 7);
    let mut length = 5;
    let mut operand = (0_i64, 0_i64);
    if mode != 3 {
        let (mut base, mut index) = (low, None);
        if low == 4 {
            let sib = at(5);
            length += 1;
            base = sib & 7;
            let number = sib >> 3 & 7 | extend_index << 3;
            index = (number != 4).then(|| register(registers, number) << (sib >> 6));
        }
        // Addresses without a base do not occur.
        if mode == 0 && base == 5 {
            return None;
        }
        let displacement = match mode {
            0 => 0,
            1 => i64::from(at(length) as i8),
            _ => i64::from(i32::from_le_bytes([at(length), at(length + 1), at(length + 2), at(length + 3)])),
        };
        length += [0, 1, 4][usize::from(mode)];
        let base = register(registers, base | extend_base << 3);
        operand = match (opcode, index) {
            // Tiles in memory are a base and a stride.
            (0x4b, Some(stride)) => (base + displacement, stride),
            (0x49, None) => (base + displacement, 0),
            _ => return None,
        };
    }
    // Only eight tiles; the third operand is unused but in products.
    if extend_register != 0 && opcode != 0x49 || opcode != 0x5c && third != 0 {
        return None;
    }
    tiles.executed += 1;
    if opcode == 0x4b && prefix != 2 && tiles.fault == Some(Fault::NoStride) {
        operand.1 = 64;
    }
    let row = |row: usize| (operand.0 + row as i64 * operand.1) as *mut u32;
    match (opcode, prefix, mode == 3) {
        // ldtilecfg
        (0x49, 0, false) if tile == 0 => {
            // SAFETY: the operand is 64 bytes.
            let bytes: [u8; 64] = unsafe { std::ptr::read_unaligned(operand.0 as *const [u8; 64]) };
            if bytes[0] != 1 || bytes[1..16] != [0; 15] || bytes[32..48] != [0; 16] || bytes[56..] != [0; 8] {
                return None;
            }
            for i in 0..8 {
                tiles.row_bytes[i] = usize::from(u16::from_le_bytes([bytes[16 + 2 * i], bytes[17 + 2 * i]]));
                tiles.rows[i] = usize::from(bytes[48 + i]);
                if tiles.row_bytes[i] > 64 || tiles.rows[i] > 16 {
                    return None;
                }
            }
            tiles.words = [[[0; 16]; 16]; 8];
            tiles.configured = true;
        }
        // tilerelease
        (0x49, 0, true) if modrm == 0xc0 => {
            tiles.words = [[[0; 16]; 16]; 8];
            tiles.configured = false;
        }
        _ if !tiles.configured => return None,
        // tilezero
        (0x49, 3, true) if low == 0 => tiles.words[tile] = [[0; 16]; 16],
        // tileloadd, tileloaddt1
        (0x4b, 3 | 1, false) => {
            let mut words = [[0; 16]; 16];
            for (i, words) in words.iter_mut().enumerate().take(tiles.rows[tile]) {
                for (j, word) in words.iter_mut().enumerate().take(tiles.row_bytes[tile] / 4) {
                    // SAFETY: the operand's rows are valid.
                    *word = unsafe { row(i).add(j).read_unaligned() };
                }
            }
            tiles.words[tile] = words;
        }
        // tilestored
        (0x4b, 2, false) => {
            for i in 0..tiles.rows[tile] {
                for j in 0..tiles.row_bytes[tile] / 4 {
                    // SAFETY: the operand's rows are valid.
                    unsafe { row(i).add(j).write_unaligned(tiles.words[tile][i][j]) };
                }
            }
        }
        // tdpbf16ps
        (0x5c, 2, true) => {
            let (left, right) = (usize::from(low), usize::from(third));
            let depth = tiles.row_bytes[left] / 4;
            let fits = tiles.rows[tile] == tiles.rows[left]
                && tiles.row_bytes[tile] == tiles.row_bytes[right]
                && depth == tiles.rows[right];
            if extend_base != 0 || right > 7 || tile == left || tile == right || left == right || !fits {
                return None;
            }
            let (a, mut b) = (tiles.words[left], tiles.words[right]);
            if tiles.fault == Some(Fault::SwappedPairs) {
                b.as_flattened_mut().iter_mut().for_each(|word| *word = word.rotate_left(16));
            }
            if tiles.fault == Some(Fault::NoSums) {
                tiles.words[tile] = [[0; 16]; 16];
            }
            for (sums, a) in tiles.words[tile].iter_mut().zip(&a).take(tiles.rows[left]) {
                let mut row = sums.map(f32::from_bits);
                emulation::tile_row(&mut row[..tiles.row_bytes[right] / 4], &a[..depth], b.as_flattened(), 16);
                *sums = row.map(f32::to_bits);
            }
        }
        _ => return None,
    }
    Some(length as i64)
}
