//! Forward chaining with counters against the naive fixpoint, on random wirings and on encoders' own.

#![allow(clippy::unwrap_used)]

use finegates_checkpoint::config::Family;
use finegates_compress::{OpenSets, liveness};
use finegates_model::wiring::{ProjectionWiring, Role, Rule, Side, Slots, Space, StackShape, Wiring};
use proptest::prelude::*;

/// Applies every rule again and again until nothing changes.
fn naive(wiring: &Wiring, open: &[OpenSets]) -> Vec<OpenSets> {
    let mut live = open.to_vec();
    loop {
        let before = live.clone();
        for rule in &wiring.rules {
            let closed = |run: &Slots| (run.start..run.start + run.len).all(|at| !is_set(&live, run, at));
            if rule.when.iter().all(closed) {
                for run in &rule.then {
                    (run.start..run.start + run.len).for_each(|at| *flag(&mut live, run, at) = false);
                }
            }
        }
        if live == before {
            return live;
        }
    }
}

fn is_set(sets: &[OpenSets], run: &Slots, at: usize) -> bool {
    match run.side {
        Side::Row => sets[run.projection].rows[at],
        Side::Column => sets[run.projection].columns[at],
    }
}

fn flag<'a>(sets: &'a mut [OpenSets], run: &Slots, at: usize) -> &'a mut bool {
    match run.side {
        Side::Row => &mut sets[run.projection].rows[at],
        Side::Column => &mut sets[run.projection].columns[at],
    }
}

fn projection(rows: usize, columns: usize) -> ProjectionWiring {
    let space = Space::Unknown;
    let path = String::new();
    ProjectionWiring {
        path,
        layer: 0,
        role: Role::Unknown,
        rows,
        columns,
        row_space: space,
        column_space: space,
        bias: true,
    }
}

/// A run that fits one of the given projections, from three numbers that fit nothing.
fn run(shapes: &[(usize, usize)], seed: (usize, usize, usize)) -> Slots {
    let projection = seed.0 / 2 % shapes.len();
    let (side, size) = match seed.0 % 2 {
        0 => (Side::Row, shapes[projection].0),
        _ => (Side::Column, shapes[projection].1),
    };
    let start = seed.1 % (size + 1);
    Slots { projection, side, start, len: seed.2 % (size - start + 1) }
}

type Seeds = Vec<(usize, usize, usize)>;

fn wirings() -> impl Strategy<Value = (Wiring, Vec<OpenSets>)> {
    let shapes = prop::collection::vec((0..4usize, 0..4usize), 1..6);
    let seeds = || prop::collection::vec((0..64usize, 0..64usize, 0..3usize), 0..3);
    let rules = prop::collection::vec((seeds(), seeds()), 0..24);
    (shapes, rules, prop::collection::vec(prop::bool::weighted(0.75), 64)).prop_map(|(shapes, rules, flags)| {
        let runs = |seeds: &Seeds| seeds.iter().map(|&seed| run(&shapes, seed)).collect();
        let rules = rules.iter().map(|(when, then)| Rule { when: runs(when), then: runs(then) }).collect();
        let mut flags = flags.into_iter().cycle();
        let mut take = |count: usize| flags.by_ref().take(count).collect();
        let open = shapes.iter().map(|&(rows, columns)| OpenSets { rows: take(rows), columns: take(columns) });
        let open = open.collect();
        let projections = shapes.iter().map(|&(rows, columns)| projection(rows, columns)).collect();
        (Wiring { projections, rules }, open)
    })
}

fn encoder() -> Wiring {
    let shape = StackShape::encoder(2, 4, 2, 3);
    Wiring::stack(Family::Bert, &shape).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn forward_chaining_finds_the_naive_fixpoint_of_any_rules((wiring, open) in wirings()) {
        prop_assert_eq!(liveness(&wiring, &open), naive(&wiring, &open));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn forward_chaining_finds_the_naive_fixpoint_of_an_encoder(
        closed in 0.0..1.0f64, draws in prop::collection::vec(0.0..1.0f64, 92),
    ) {
        let wiring = encoder();
        let mut draws = draws.into_iter();
        let mut take = |count: usize| draws.by_ref().take(count).map(|draw| draw >= closed).collect();
        let open: Vec<OpenSets> = wiring
            .projections
            .iter()
            .map(|place| OpenSets { rows: take(place.rows), columns: take(place.columns) })
            .collect();
        let live = liveness(&wiring, &open);
        prop_assert_eq!(&live, &naive(&wiring, &open));
        prop_assert_eq!(&liveness(&wiring, &live), &live, "a second pass finds nothing");
        // What a compact model relies on: both sides of a shared space keep the same dimensions.
        for layer in live.chunks(6) {
            prop_assert_eq!(&layer[0].rows, &layer[1].rows);
            prop_assert_eq!(&layer[2].rows, &layer[3].columns);
            prop_assert_eq!(&layer[4].rows, &layer[5].columns);
        }
    }
}

#[test]
fn nothing_closed_leaves_everything_live() {
    let wiring = encoder();
    let open: Vec<_> = wiring.projections.iter().map(|place| OpenSets::all(place.rows, place.columns)).collect();
    assert_eq!(liveness(&wiring, &open), open);
}

#[test]
fn premise_without_slots_always_holds() {
    let wiring = Wiring {
        projections: vec![projection(1, 2)],
        rules: vec![Rule { when: vec![], then: vec![Slots::columns(0, 1, 1)] }],
    };
    let live = liveness(&wiring, &[OpenSets::all(1, 2)]);
    assert_eq!(live, [OpenSets { rows: vec![true], columns: vec![true, false] }]);
}

#[test]
fn slot_named_twice_in_a_premise_counts_as_one() {
    let twice = vec![Slots::rows(0, 0, 1), Slots::rows(0, 0, 2)];
    let rules = vec![Rule { when: twice, then: vec![Slots::columns(0, 0, 2)] }];
    let wiring = Wiring { projections: vec![projection(2, 2)], rules };
    let open = [OpenSets { rows: vec![false, true], columns: vec![true; 2] }];
    assert_eq!(liveness(&wiring, &open), open);
    let open = [OpenSets { rows: vec![false; 2], columns: vec![true; 2] }];
    assert_eq!(liveness(&wiring, &open)[0].columns, [false; 2]);
}

#[test]
fn chain_of_a_million_rules_takes_linear_time() {
    let length = 1_000_000;
    let rules = (1..length).map(|at| Rule { when: vec![Slots::rows(0, at - 1, 1)], then: vec![Slots::rows(0, at, 1)] });
    // The last rule first: naive repetition would need a million rounds.
    let mut rules: Vec<_> = rules.collect();
    rules.reverse();
    let wiring = Wiring { projections: vec![projection(length, 0)], rules };
    let mut open = OpenSets::all(length, 0);
    open.rows[0] = false;
    assert_eq!(liveness(&wiring, &[open])[0].open_rows(), 0);
}
