//! Shapes and settings of an attention: where heads live, which of them share keys and values, who sees whom, and how the
//! work is handed out.

use super::head::Packed;
use crate::dropout::Dropout;
use crate::parallel;

/// Where one head lives in the columns of queries, keys, values and output: start and length of each.
///
/// Queries and outputs of heads are disjoint. Keys of any two heads are the same columns or disjoint ones, and so are
/// values: grouped heads share both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// In the queries; as long as the keys.
    pub query: (usize, usize),
    /// In the keys.
    pub key: (usize, usize),
    /// In the values; as long as the output.
    pub value: (usize, usize),
    /// In the output.
    pub output: (usize, usize),
    /// Row of the position bias table.
    pub bias: usize,
}

/// Which keys of its sequence a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mask {
    /// All of them.
    #[default]
    Full,
    /// Those up to its own place.
    Causal {
        /// And of those only the last so many, its own included, as the sliding window of transformers.
        window: Option<usize>,
    },
}

/// Shapes and settings of an attention, the same for forward and backward.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    /// First token of each sequence, and `T` at the end; `[S + 1]`.
    pub offsets: &'a [usize],
    /// The heads.
    pub heads: &'a [Head],
    /// Width of queries.
    pub query_stride: usize,
    /// Width of keys.
    pub key_stride: usize,
    /// Width of values.
    pub value_stride: usize,
    /// Width of the output.
    pub output_stride: usize,
    /// Multiplies the products of queries and keys.
    pub scale: f32,
    /// Which keys a query sees.
    pub mask: Mask,
    /// A table `[rows, 2·max − 1]` added to the scores, its column `key − query + max − 1`, and `max`, the longest sequence.
    pub position_bias: Option<(&'a [f32], usize)>,
    /// Dropout of the probabilities.
    pub dropout: Option<Dropout>,
}

/// One head of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Member {
    pub(super) head: usize,
    /// Whether no head before it has the same keys.
    pub(super) first_of_keys: bool,
    /// Whether no head before it has the same values.
    pub(super) first_of_values: bool,
}

type Columns = (usize, usize);

/// Whether two heads have columns in common, given that these are the same or disjoint.
pub(super) fn shared(a: Columns, b: Columns) -> bool {
    a == b && a.1 > 0
}

/// The heads in groups that have no keys or values in common with each other, the heads of a group ascending.
pub(super) fn groups(heads: &[Head]) -> Vec<Vec<Member>> {
    let mut groups: Vec<Vec<Member>> = Vec::new();
    for (index, head) in heads.iter().enumerate() {
        let before = &heads[..index];
        let mut group = vec![Member {
            head: index,
            first_of_keys: !before.iter().any(|other| shared(other.key, head.key)),
            first_of_values: !before.iter().any(|other| shared(other.value, head.value)),
        }];
        let related = |member: &Member| {
            let other = &heads[member.head];
            shared(other.key, head.key) || shared(other.value, head.value)
        };
        groups.retain_mut(|other| {
            let joins = other.iter().any(related);
            if joins {
                group.append(other);
            }
            !joins
        });
        group.sort_unstable();
        groups.push(group);
    }
    groups
}

/// Whether columns are inside a width, and the same or disjoint; with `distinct` only disjoint.
fn fit(heads: &[Head], columns: fn(&Head) -> Columns, width: usize, distinct: bool) -> bool {
    let mut columns: Vec<Columns> = heads.iter().map(columns).filter(|columns| columns.1 > 0).collect();
    columns.sort_unstable();
    if !distinct {
        columns.dedup();
    }
    columns.iter().all(|&(start, length)| length <= width && start <= width - length)
        && columns.is_sorted_by(|a, b| a.0 + a.1 <= b.0)
}

/// Whether heads that [`fit`] leave none of `width` columns out.
pub(super) fn covers(heads: &[Head], columns: fn(&Head) -> Columns, width: usize) -> bool {
    let mut columns: Vec<Columns> = heads.iter().map(columns).collect();
    columns.sort_unstable();
    columns.dedup();
    columns.iter().map(|columns| columns.1).sum::<usize>() == width
}

/// Asserts that the columns of heads fit the widths of queries, keys, values and output.
pub(super) fn check_heads(what: &str, heads: &[Head], query: usize, key: usize, value: usize, output: usize) {
    for head in heads {
        assert_eq!(head.query.1, head.key.1, "{what}: queries as long as keys");
        assert_eq!(head.output.1, head.value.1, "{what}: output as long as values");
    }
    assert!(fit(heads, |head| head.query, query, true), "{what}: queries of heads disjoint and inside the columns");
    assert!(fit(heads, |head| head.key, key, false), "{what}: keys of heads inside the columns, the same or disjoint");
    assert!(
        fit(heads, |head| head.value, value, false),
        "{what}: values of heads inside the columns, the same or disjoint"
    );
    assert!(fit(heads, |head| head.output, output, true), "{what}: outputs of heads disjoint and inside the columns");
}

impl Layout<'_> {
    pub(super) fn tokens(&self) -> usize {
        self.offsets.last().copied().unwrap_or(0)
    }

    pub(super) fn sequences(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Runs `work(sequence, unit, packed)` for all sequences and `units` heads or groups; `packed` says what the work before
    /// left behind on the same thread.
    pub(super) fn for_each(&self, units: usize, work: impl Fn(usize, usize, &mut Packed) + Sync) {
        let pairs = self.sequences() * units;
        let scores: usize = self.offsets.windows(2).map(|pair| (pair[1] - pair[0]).pow(2)).sum();
        // Some runs a thread even out sequences of unequal length; a score costs some tens of multiply-adds.
        let runs = pairs.min(16 * rayon::current_num_threads());
        parallel::tasks(runs, scores * self.heads.len() > 4096, |run| {
            let mut packed = Packed::default();
            for pair in pairs * run / runs..pairs * (run + 1) / runs {
                work(pair / units, pair % units, &mut packed);
            }
        });
    }

    pub(super) fn check(&self, what: &str) {
        assert!(self.offsets.is_sorted(), "{what}: ascending offsets");
        assert!(self.offsets.first().is_none_or(|&first| first == 0), "{what}: offsets from 0");
        assert_ne!(self.mask, Mask::Causal { window: Some(0) }, "{what}: a window of at least one token");
        check_heads(what, self.heads, self.query_stride, self.key_stride, self.value_stride, self.output_stride);
        if let Some((table, max)) = self.position_bias {
            let longest = self.offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
            assert!(longest <= max, "{what}: a sequence of {longest} tokens with position biases for {max}");
            let rows = self.heads.iter().map(|head| head.bias + 1).max().unwrap_or(0);
            assert!(rows * (2 * max).saturating_sub(1) <= table.len(), "{what}: position bias table of {rows} rows");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_with_keys_or_values_in_common_are_a_group() {
        let head = |key, value| Head { query: (0, 2), key: (key, 2), value: (value, 2), output: (0, 2), bias: 0 };
        let found = groups(&[head(0, 0), head(2, 2), head(4, 4), head(4, 2), head(0, 0), head(6, 6)]);
        let members = |group: &Vec<Member>| {
            group.iter().map(|member| (member.head, member.first_of_keys, member.first_of_values)).collect::<Vec<_>>()
        };
        let expected = [
            vec![(1, true, true), (2, true, true), (3, false, false)],
            vec![(0, true, true), (4, false, false)],
            vec![(5, true, true)],
        ];
        assert_eq!(found.iter().map(members).collect::<Vec<_>>(), expected);
        let empty = Head { query: (0, 0), key: (3, 0), value: (3, 0), output: (0, 0), bias: 0 };
        assert_eq!(groups(&[empty, empty]).len(), 2, "without columns there is nothing to share");
    }

    #[test]
    fn columns_are_held_to_the_rules() {
        let head = |key| Head { query: (0, 0), key, value: (0, 0), output: (0, 0), bias: 0 };
        let keys = |heads: &[Head], distinct| fit(heads, |head| head.key, 8, distinct);
        assert!(keys(&[head((0, 4)), head((4, 4))], true));
        assert!(!keys(&[head((0, 4)), head((0, 4))], true) && keys(&[head((0, 4)), head((0, 4))], false));
        assert!(!keys(&[head((0, 4)), head((2, 4))], false) && !keys(&[head((0, 4)), head((0, 2))], false));
        assert!(!keys(&[head((6, 4))], false) && !keys(&[head((usize::MAX, 2))], false));
        assert!(covers(&[head((0, 4)), head((0, 4)), head((4, 4))], |head| head.key, 8));
        assert!(!covers(&[head((0, 4)), head((0, 4))], |head| head.key, 8));
    }
}
