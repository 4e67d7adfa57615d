//! One step of decoding: the attention of one new token a sequence over its cache of keys and values. It takes as long as
//! reading the cache, so heads that share keys and values go over them together.

#[cfg(test)]
mod tests;

use std::cell::Cell;

use super::Head;
use super::layout::{check_heads, covers};
use crate::cpu::{self, Isa, kernel};
use crate::math::{self, mul_add};
use crate::matrix::transpose::{GROUP, transpose_group};
use crate::parallel::{self, Shared, TASK_ELEMENTS};

/// Widths of rows in an attention step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strides {
    /// Of queries.
    pub query: usize,
    /// Of keys.
    pub key: usize,
    /// Of values.
    pub value: usize,
    /// Of the output.
    pub output: usize,
}

/// Keys and values of one sequence, those of its new token included.
#[derive(Debug, Clone, Copy)]
pub struct Cached<'a> {
    /// `[length, key stride]`, or longer: what lies behind is not read.
    pub keys: &'a [f32],
    /// `[length, value stride]`, or longer.
    pub values: &'a [f32],
    /// Tokens.
    pub length: usize,
}

/// Rows of a cache that all heads of a task go over before the next: whole stretches of memory are then read at a time, and
/// an output is loaded and stored once for so many rows.
const ROWS: usize = GROUP;
/// Lanes of a chunk.
const LANES: usize = 16;

/// One head's columns in rows of a cache.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
    start: usize,
    width: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn row(&self, row: usize) -> &'a [f32] {
        &self.data[row * self.stride + self.start..][..self.width]
    }

    /// Asks for a row that will be read soon; it need not exist.
    #[inline(always)]
    fn fetch(&self, row: usize) {
        #[cfg(target_arch = "x86_64")]
        for column in (0..self.width).step_by(16) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let place = self.data.as_ptr().wrapping_add(row * self.stride + self.start + column);
            // SAFETY: a prefetch may go anywhere.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(place.cast()) };
        }
    }
}

/// Columns that a head's chunks hold, whole chunks.
fn padded(width: usize) -> usize {
    width.next_multiple_of(LANES)
}

/// Whole chunks, and the last one if it is not whole.
type Chunks<'a> = (&'a [[f32; LANES]], Option<&'a [f32; LANES]>);

/// Chunks of a row. The last one ends where the row ends, so that it too is read in one go; a row that is shorter than a
/// chunk is copied to `short`, with zeros behind.
#[inline(always)]
fn chunks_of<'a>(row: &'a [f32], short: &'a mut [f32; LANES]) -> Chunks<'a> {
    match row.last_chunk::<LANES>() {
        Some(last) => {
            let (whole, tail) = row.as_chunks::<LANES>();
            (whole, (!tail.is_empty()).then_some(last))
        }
        None => {
            short[..row.len()].copy_from_slice(row);
            (&[], (!row.is_empty()).then_some(short))
        }
    }
}

/// First column of a chunk.
fn column(width: usize, chunk: usize) -> usize {
    (chunk * LANES).min(width.saturating_sub(LANES))
}

/// Products of one query and [`ROWS`] keys, summed up by lane.
type Partial = [[f32; LANES]; ROWS];

kernel! {
    /// Products of each of `queries` (chunks, one query after the other) with the rows from `first` on; those beyond the
    /// last of `rows` are left as they are.
    fn multiply_keys(keys: Rows<'_>, queries: &[f32], partials: &mut [Partial], rows: usize, first: usize) {
        let width = padded(keys.width) / LANES;
        let queries = queries.as_chunks::<LANES>().0;
        for r in 0..ROWS.min(rows - first) {
            keys.fetch(first + r + ROWS);
            let mut short = [0.0; LANES];
            let (whole, last) = chunks_of(keys.row(first + r), &mut short);
            for (query, partial) in queries.chunks_exact(width).zip(partials.iter_mut()) {
                let mut sums = [0.0; LANES];
                for (query, key) in query.iter().zip(whole) {
                    for ((sum, &query), &key) in sums.iter_mut().zip(query).zip(key) {
                        *sum = mul_add::<FMA>(query, key, *sum);
                    }
                }
                if let (Some(query), Some(key)) = (query.last(), last) {
                    for ((sum, &query), &key) in sums.iter_mut().zip(query).zip(key) {
                        *sum = mul_add::<FMA>(query, key, *sum);
                    }
                }
                partial[r] = sums;
            }
        }
    }

    /// `scale` times the sums over the lanes, from lanes as rows.
    fn scaled_sums(lanes: &[[f32; ROWS]; LANES], scale: f32, scores: &mut [f32]) {
        let mut sums = *lanes;
        let mut width = LANES / 2;
        while width > 0 {
            let (low, high) = sums.split_at_mut(width);
            for (low, high) in low.iter_mut().zip(high) {
                for (low, &mut high) in low.iter_mut().zip(high) {
                    *low += high;
                }
            }
            width /= 2;
        }
        for (score, &sum) in scores.iter_mut().zip(&sums[0]) {
            *score = scale * sum;
        }
    }

    /// `e^(score − largest)` in place; answers the sum.
    fn weights_of(scores: &mut [f32]) -> f64 {
        let maximum = math::largest(scores);
        math::exp_in_place::<FMA>(scores, maximum)
    }

    /// `outputs` (chunks, one head after the other) `+= Σ_j weights[j] value_j` over the rows `first .. first + ROWS` in
    /// order, as far as `weights` (`rows` a head) goes.
    fn add_values(values: Rows<'_>, weights: &[f32], outputs: &mut [f32], rows: usize, first: usize) {
        let count = ROWS.min(rows - first);
        let mut short = [[0.0; LANES]; ROWS];
        // Beyond the last row the last one again, times 0.
        let mut run: [Chunks<'_>; ROWS] = [(&[], None); ROWS];
        for (r, (run, short)) in run.iter_mut().zip(&mut short).enumerate() {
            values.fetch(first + ROWS + r);
            *run = chunks_of(values.row(first + r.min(count - 1)), short);
        }
        let whole = run[0].0.len();
        let lasts = run.map(|(_, last)| last);
        for (weights, output) in weights.chunks_exact(rows).zip(outputs.chunks_exact_mut(padded(values.width))) {
            let mut factors = [0.0; ROWS];
            factors[..count].copy_from_slice(&weights[first..first + count]);
            let (output, last) = output.as_chunks_mut::<LANES>().0.split_at_mut(whole);
            for (chunk, output) in output.iter_mut().enumerate() {
                let mut sums = *output;
                for r in 0..ROWS {
                    for (sum, &value) in sums.iter_mut().zip(&run[r].0[chunk]) {
                        *sum = mul_add::<FMA>(factors[r], value, *sum);
                    }
                }
                *output = sums;
            }
            for output in last {
                for (last, &factor) in lasts.iter().zip(&factors) {
                    if let Some(last) = last {
                        for (output, &value) in output.iter_mut().zip(*last) {
                            *output = mul_add::<FMA>(factor, value, *output);
                        }
                    }
                }
            }
        }
    }
}

/// Appends a query's chunks; what the last one has of the chunk before is 0 there.
fn push_query(query: &[f32], out: &mut Vec<f32>) {
    for chunk in 0..query.len().div_ceil(LANES) {
        let start = column(query.len(), chunk);
        let lane = |lane: usize| query.get(start + lane).filter(|_| start + lane >= chunk * LANES);
        out.extend((0..LANES).map(|index| lane(index).copied().unwrap_or(0.0)));
    }
}

#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    scores: Vec<f32>,
    outputs: Vec<f32>,
    partials: Vec<Partial>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// The heads that have an output, in groups with the same keys and values.
fn heads_by_cache(heads: &[Head]) -> Vec<Vec<&Head>> {
    let mut groups: Vec<Vec<&Head>> = Vec::new();
    for head in heads.iter().filter(|head| head.value.1 > 0) {
        match groups.iter_mut().find(|group| (group[0].key, group[0].value) == (head.key, head.value)) {
            Some(group) => group.push(head),
            None => groups.push(vec![head]),
        }
    }
    groups
}

/// One sequence and some groups of heads.
struct Task<'a> {
    isa: Isa,
    groups: &'a [Vec<&'a Head>],
    strides: Strides,
    scale: f32,
    /// The new token's row of queries.
    query: &'a [f32],
    /// What is seen of the cache.
    seen: Cached<'a>,
}

impl Task<'_> {
    /// Runs `work(group, run of heads)` for all groups, the heads counted over all of them.
    fn each_group(&self, mut work: impl FnMut(&[&Head], usize)) {
        let mut first = 0;
        for group in self.groups {
            work(group, first);
            first += group.len();
        }
    }

    fn width(&self, padded_width: fn(&Head) -> usize) -> usize {
        self.groups.iter().flatten().map(|head| padded_width(head)).max().unwrap_or(0)
    }

    /// Writes the heads' columns of row `row` of the output.
    ///
    /// # Safety
    /// These belong to this call alone.
    unsafe fn run(&self, output: &Shared<'_>, row: usize) {
        let (isa, strides, rows) = (self.isa, self.strides, self.seen.length);
        let heads: usize = self.groups.iter().map(Vec::len).sum();
        let (key_width, width) = (self.width(|head| padded(head.key.1)), self.width(|head| padded(head.value.1)));
        let mut scratch = SCRATCH.take();
        let Scratch { queries, scores, outputs, partials } = &mut scratch;
        scores.clear();
        scores.resize(heads * rows, 0.0);
        outputs.clear();
        outputs.resize(heads * width, 0.0);
        queries.clear();
        self.each_group(|group, first| {
            group.iter().for_each(|head| push_query(&self.query[head.query.0..][..head.query.1], queries));
            queries.resize((first + group.len()) * key_width, 0.0);
        });
        partials.resize(heads.max(partials.len()), [[0.0; LANES]; ROWS]);
        for first in (0..rows).step_by(ROWS) {
            self.each_group(|group, head| {
                let (start, width) = group[0].key;
                if width == 0 {
                    return;
                }
                let keys = Rows { data: self.seen.keys, stride: strides.key, start, width };
                let queries = &queries[head * key_width..][..group.len() * padded(width)];
                let partials = &mut partials[..group.len()];
                multiply_keys(isa, keys, queries, partials, rows, first);
                for (partial, scores) in partials.iter().zip(scores[head * rows..].chunks_exact_mut(rows)) {
                    let mut lanes = [[0.0; ROWS]; LANES];
                    transpose_group(isa, &partial.each_ref().map(|row| &row[..]), lanes.as_flattened_mut(), ROWS);
                    let end = rows.min(first + ROWS);
                    scaled_sums(isa, &lanes, self.scale, &mut scores[first..end]);
                }
            });
        }
        let sums = queries;
        sums.clear();
        sums.extend(scores.chunks_exact_mut(rows).map(|scores| weights_of(isa, scores) as f32));
        for first in (0..rows).step_by(ROWS) {
            self.each_group(|group, head| {
                let (start, head_width) = group[0].value;
                let values = Rows { data: self.seen.values, stride: strides.value, start, width: head_width };
                let outputs = &mut outputs[head * width..][..group.len() * padded(head_width)];
                add_values(isa, values, &scores[head * rows..], outputs, rows, first);
            });
        }
        self.each_group(|group, first| {
            for (index, head) in group.iter().enumerate() {
                let (start, head_width) = head.output;
                // SAFETY: the caller's promise.
                let out = unsafe { output.slice(row * strides.output + start, head_width) };
                let inverse = 1.0 / sums[first + index];
                let from = &outputs[first * width + index * padded(head_width)..][..padded(head_width)];
                for chunk in 0..head_width.div_ceil(LANES) {
                    let place = column(head_width, chunk);
                    let lanes = &from[chunk * LANES..][..LANES];
                    out[place..].iter_mut().zip(lanes).for_each(|(out, &sum)| *out = sum * inverse);
                }
            }
        });
        SCRATCH.set(scratch);
    }
}

/// `softmax(scale · q kᵀ) v` of one new token a sequence over all tokens of its cache, or the last `window` of them: the
/// last row of what [`attention_forward`](super::attention_forward) gives under a causal mask.
///
/// Heads without query and key columns have zero scores; output columns of no head, or of one without values, become 0.
///
/// # Shapes
/// `q` `[S, query stride]`, `output` `[S, output stride]`, `caches` `[S]`.
///
/// # Panics
/// If a shape does not fit, a cache is empty or the window is 0.
pub fn attention_step(
    q: &[f32],
    caches: &[Cached<'_>],
    heads: &[Head],
    strides: Strides,
    scale: f32,
    window: Option<usize>,
    output: &mut [f32],
) {
    let what = "attention_step";
    check_heads(what, heads, strides.query, strides.key, strides.value, strides.output);
    assert_eq!(q.len(), caches.len() * strides.query, "{what}: queries");
    assert_eq!(output.len(), caches.len() * strides.output, "{what}: output");
    assert_ne!(window, Some(0), "{what}: a window of at least one token");
    let holds = |data: &[f32], rows: usize, stride: usize| rows.checked_mul(stride).is_some_and(|n| n <= data.len());
    for cached in caches {
        assert!(cached.length > 0, "{what}: caches hold the new token");
        assert!(holds(cached.keys, cached.length, strides.key), "{what}: {} rows of keys", cached.length);
        assert!(holds(cached.values, cached.length, strides.value), "{what}: {} rows of values", cached.length);
    }
    if !covers(heads, |head| head.output, strides.output) {
        output.fill(0.0);
    }
    let groups = heads_by_cache(heads);
    if groups.is_empty() || caches.is_empty() {
        return;
    }
    let seen = |cached: &Cached<'_>| window.map_or(cached.length, |window| cached.length.min(window));
    let width: usize = groups.iter().map(|group| group[0].key.1 + group[0].value.1).sum();
    let elements = width * caches.iter().map(seen).sum::<usize>();
    // As few runs of groups as keep all threads busy: the more groups together, the longer the stretches that are read.
    let runs = (2 * rayon::current_num_threads()).div_ceil(caches.len()).min(groups.len());
    let output = Shared::new(output);
    let isa = cpu::isa();
    parallel::tasks(caches.len() * runs, elements > TASK_ELEMENTS, |task| {
        let (sequence, run) = (task / runs, task % runs);
        let cached = &caches[sequence];
        let (length, first) = (seen(cached), cached.length - seen(cached));
        let (keys, values) = (&cached.keys[first * strides.key..], &cached.values[first * strides.value..]);
        let groups = &groups[groups.len() * run / runs..groups.len() * (run + 1) / runs];
        let query = &q[sequence * strides.query..][..strides.query];
        let seen = Cached { keys, values, length };
        // SAFETY: sequences have rows and heads have columns of their own, inside the output, as checked.
        unsafe { Task { isa, groups, strides, scale, query, seen }.run(&output, sequence) };
    });
}
