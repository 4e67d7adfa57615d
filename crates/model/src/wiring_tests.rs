//! Claims about wiring, checked with a naive fixpoint: rules are applied again and again until nothing changes.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use super::*;

type Slot = (usize, Side, usize);

fn slots(runs: &[Slots]) -> impl Iterator<Item = Slot> + '_ {
    runs.iter().flat_map(|run| (run.start..run.start + run.len).map(|at| (run.projection, run.side, at)))
}

/// Everything that is dead once `closed` is.
fn closure(wiring: &Wiring, closed: &[Slots]) -> BTreeSet<Slot> {
    let mut dead: BTreeSet<Slot> = slots(closed).collect();
    loop {
        let before = dead.len();
        for rule in &wiring.rules {
            if slots(&rule.when).all(|slot| dead.contains(&slot)) {
                dead.extend(slots(&rule.then));
            }
        }
        if dead.len() == before {
            return dead;
        }
    }
}

fn set(runs: &[Slots]) -> BTreeSet<Slot> {
    slots(runs).collect()
}

/// Two layers, two heads of two dimensions, five inner units.
fn tiny(family: Family) -> Wiring {
    let shape = StackShape::encoder(2, 4, 2, 5);
    Wiring::stack(family, &shape).unwrap()
}

const QUERY: usize = 0;
const KEY: usize = 1;
const VALUE: usize = 2;
const OUTPUT: usize = 3;
const UP: usize = 4;
const DOWN: usize = 5;

#[test]
fn paths_are_those_of_the_state_dict_for_every_family() {
    let expected = [
        (Family::Bert, "bert.encoder.layer.1.", BERT_MODULES),
        (Family::Roberta, "roberta.encoder.layer.1.", BERT_MODULES),
        (Family::XlmRoberta, "roberta.encoder.layer.1.", BERT_MODULES),
        (
            Family::DistilBert,
            "distilbert.transformer.layer.1.",
            ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2"],
        ),
        (
            Family::MpNet,
            "mpnet.encoder.layer.1.",
            [
                "attention.attn.q",
                "attention.attn.k",
                "attention.attn.v",
                "attention.attn.o",
                "intermediate.dense",
                "output.dense",
            ],
        ),
    ];
    for (family, layer, modules) in expected {
        let wiring = tiny(family);
        assert_eq!(wiring.projections.len(), 12);
        for (projection, module) in wiring.projections[6..].iter().zip(modules) {
            assert_eq!(projection.path, format!("{layer}{module}"));
            assert_eq!(projection.layer, 1);
        }
    }
}

const BERT_MODULES: [&str; 6] = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
];

#[test]
fn roles_shapes_and_spaces_belong_together() {
    let wiring = tiny(Family::Bert);
    let up = &wiring.projections[6 + UP];
    assert_eq!((up.role, up.rows, up.columns), (Role::Up, 5, 4));
    assert_eq!((up.row_space, up.column_space), (Space::FeedForward { layer: 1 }, Space::Residual));
    let output = &wiring.projections[6 + OUTPUT];
    assert_eq!((output.role, output.rows, output.columns), (Role::AttentionOutput, 4, 4));
    assert_eq!((output.row_space, output.column_space), (Space::Residual, Space::Value { layer: 1 }));
}

#[test]
fn closed_up_row_kills_its_down_column_and_back() {
    let wiring = tiny(Family::Bert);
    let both = set(&[Slots::rows(UP, 3, 1), Slots::columns(DOWN, 3, 1)]);
    assert_eq!(closure(&wiring, &[Slots::rows(UP, 3, 1)]), both);
    assert_eq!(closure(&wiring, &[Slots::columns(DOWN, 3, 1)]), both);
}

#[test]
fn up_row_speaks_on_when_the_activation_moves_zero() {
    let shape = StackShape { zero_to_zero: false, ..StackShape::encoder(1, 4, 2, 5) };
    let wiring = Wiring::stack(Family::Bert, &shape).unwrap();
    let row = [Slots::rows(UP, 3, 1)];
    assert_eq!(closure(&wiring, &row), set(&row));
    let column = [Slots::columns(DOWN, 3, 1)];
    assert_eq!(closure(&wiring, &column), set(&[row[0], column[0]]));
}

#[test]
fn value_dimension_dies_with_its_output_column_and_back() {
    let wiring = tiny(Family::MpNet);
    let both = set(&[Slots::rows(VALUE, 2, 1), Slots::columns(OUTPUT, 2, 1)]);
    assert_eq!(closure(&wiring, &[Slots::rows(VALUE, 2, 1)]), both);
    assert_eq!(closure(&wiring, &[Slots::columns(OUTPUT, 2, 1)]), both);
}

#[test]
fn query_dimension_dies_with_its_key_row_and_leaves_the_values() {
    let wiring = tiny(Family::DistilBert);
    let head = set(&[Slots::rows(QUERY, 0, 2), Slots::rows(KEY, 0, 2)]);
    assert_eq!(closure(&wiring, &[Slots::rows(QUERY, 0, 2)]), head);
    let mixed = closure(&wiring, &[Slots::rows(QUERY, 0, 1), Slots::rows(KEY, 1, 1)]);
    assert_eq!(mixed, head, "a head without live query and key dimensions attends uniformly");
}

#[test]
fn head_without_values_takes_its_queries_and_keys_along() {
    let wiring = tiny(Family::Roberta);
    let dead = closure(&wiring, &[Slots::rows(VALUE, 2, 1), Slots::columns(OUTPUT, 3, 1)]);
    let head = set(&[
        Slots::rows(VALUE, 2, 2),
        Slots::columns(OUTPUT, 2, 2),
        Slots::rows(QUERY, 2, 2),
        Slots::rows(KEY, 2, 2),
    ]);
    assert_eq!(dead, head);
}

#[test]
fn attention_without_values_reads_nothing_but_its_output_rows_keep_their_bias() {
    let wiring = tiny(Family::Bert);
    let dead = closure(&wiring, &[Slots::rows(VALUE, 0, 4)]);
    for projection in [QUERY, KEY, VALUE] {
        assert!(set(&[Slots::rows(projection, 0, 4), Slots::columns(projection, 0, 4)]).is_subset(&dead));
    }
    assert!(set(&[Slots::columns(OUTPUT, 0, 4)]).is_subset(&dead));
    assert!(!dead.contains(&(OUTPUT, Side::Row, 0)));
}

#[test]
fn projection_without_columns_dies_only_without_a_bias() {
    let mut wiring = Wiring::default();
    wiring.push("with".to_owned(), 0, Role::Unknown, 2, 3);
    wiring.push("without".to_owned(), 0, Role::Unknown, 2, 3);
    wiring.projections[1].bias = false;
    wiring.add_whole_projection_rules();
    let columns = [Slots::columns(0, 0, 3), Slots::columns(1, 0, 3)];
    assert_eq!(closure(&wiring, &columns), set(&[columns[0], columns[1], Slots::rows(1, 0, 2)]));
}

#[test]
fn residual_slots_never_die_by_another_layer() {
    let wiring = tiny(Family::Bert);
    let dead = closure(&wiring, &[Slots::rows(DOWN, 1, 1), Slots::columns(6 + UP, 2, 1)]);
    assert_eq!(dead, set(&[Slots::rows(DOWN, 1, 1), Slots::columns(6 + UP, 2, 1)]));
}

#[test]
fn names_give_the_same_rules_as_the_configuration() {
    for family in [Family::Bert, Family::Roberta, Family::XlmRoberta, Family::DistilBert, Family::MpNet] {
        let wiring = tiny(family);
        let modules: Vec<_> = wiring.projections.iter().map(|p| (p.path.as_str(), p.rows, p.columns)).collect();
        assert_eq!(Wiring::from_paths(&modules, Some(2)).unwrap(), wiring);
    }
}

#[test]
fn partner_that_is_not_gated_closes_nothing() {
    let modules = [("encoder.layer.0.attention.self.key", 4, 4), ("encoder.layer.0.intermediate.dense", 5, 4)];
    let wiring = Wiring::from_paths(&modules, Some(2)).unwrap();
    let closed = [Slots::rows(0, 0, 2), Slots::rows(1, 1, 1)];
    assert_eq!(closure(&wiring, &closed), set(&closed));
}

#[test]
fn output_columns_speak_for_a_head_whose_values_are_not_gated() {
    let modules = [("l.layer.7.attention.self.query", 4, 4), ("l.layer.7.attention.output.dense", 4, 4)];
    let wiring = Wiring::from_paths(&modules, Some(2)).unwrap();
    let head = [Slots::columns(1, 2, 2), Slots::rows(0, 2, 2)];
    assert_eq!(closure(&wiring, &head[..1]), set(&head));
}

#[test]
fn without_a_head_dimension_only_the_whole_attention_takes_its_queries_along() {
    let modules = [("l.layer.0.attention.self.query", 4, 4), ("l.layer.0.attention.self.value", 4, 4)];
    let wiring = Wiring::from_paths(&modules, None).unwrap();
    let half = [Slots::rows(1, 0, 2)];
    assert_eq!(closure(&wiring, &half), set(&half));
    assert!(closure(&wiring, &[Slots::rows(1, 0, 4)]).contains(&(0, Side::Row, 0)));
}

#[test]
fn unknown_modules_are_counted_but_know_no_partner() {
    let modules = [("bert.pooler.dense", 4, 4), ("bert.encoder.layer.1.output.dense", 4, 5)];
    let wiring = Wiring::from_paths(&modules, None).unwrap();
    assert_eq!(wiring.projections[0].role, Role::Unknown);
    assert_eq!((wiring.projections[0].layer, wiring.projections[1].layer), (2, 1));
    assert_eq!(wiring.projections[1].role, Role::Down);
}

#[test]
fn modules_that_do_not_meet_are_refused_by_name() {
    let modules = [("e.layer.0.intermediate.dense", 5, 4), ("e.layer.0.output.dense", 4, 6)];
    let error = Wiring::from_paths(&modules, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "e.layer.0.intermediate.dense: expected 6 rows to meet e.layer.0.output.dense, found 5; \
         were both gated in the same model?"
    );
    let twice = [("e.layer.0.output.dense", 4, 6), ("e.layer.0.output.dense", 4, 6)];
    assert!(matches!(Wiring::from_paths(&twice, None), Err(WiringError::Duplicate { .. })));
    let heads = [("e.layer.0.attention.self.value", 4, 6)];
    assert!(matches!(Wiring::from_paths(&heads, Some(3)), Err(WiringError::Heads { .. })));
    let shape = StackShape::encoder(1, 4, 3, 5);
    assert!(matches!(Wiring::stack(Family::Bert, &shape), Err(WiringError::Heads { .. })));
}

/// One Llama layer: SwiGLU of three units, and two query heads that share one key/value head of two rotary pairs.
fn llama() -> Wiring {
    let shape = StackShape {
        key_value_heads: 1,
        head_dim: 4,
        rotary: true,
        swiglu: true,
        biases: Biases { query_key_value: false, attention_output: false, feed_forward: false },
        ..StackShape::encoder(1, 6, 2, 3)
    };
    Wiring::stack(Family::Llama, &shape).unwrap()
}

#[test]
fn a_decoder_layer_knows_swiglu_rotary_pairs_and_grouped_heads() {
    let wiring = llama();
    let (q, k, v, o, gate, up, down) = (0, 1, 2, 3, 4, 5, 6);
    let paths: Vec<&str> = wiring.projections.iter().map(|projection| projection.path.as_str()).collect();
    assert_eq!((paths[q], paths[down]), ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"));
    let sizes = |index: usize| (wiring.projections[index].rows, wiring.projections[index].columns);
    assert_eq!((sizes(q), sizes(k), sizes(o), sizes(gate)), ((8, 6), (4, 6), (6, 8), (3, 6)));

    let dead = closure(&wiring, &[Slots::rows(gate, 1, 1)]);
    assert_eq!(dead, set(&[Slots::rows(gate, 1, 1), Slots::rows(up, 1, 1), Slots::columns(down, 1, 1)]));
    assert_eq!(closure(&wiring, &[Slots::rows(up, 1, 1)]), dead);
    assert_eq!(closure(&wiring, &[Slots::columns(down, 1, 1)]), dead);

    let one_of_a_pair = [Slots::rows(k, 0, 1)];
    assert_eq!(closure(&wiring, &one_of_a_pair), set(&one_of_a_pair));
    let pair = [Slots::rows(k, 0, 1), Slots::rows(k, 2, 1)];
    assert_eq!(closure(&wiring, &pair).len(), 2 + 4);

    let one_sharer = [Slots::columns(o, 1, 1)];
    assert_eq!(closure(&wiring, &one_sharer), set(&one_sharer));
    let both = closure(&wiring, &[Slots::columns(o, 1, 1), Slots::columns(o, 5, 1)]);
    assert!(both.contains(&(v, Side::Row, 1)));

    let first_head = closure(&wiring, &[Slots::columns(o, 0, 4)]);
    assert!(first_head.contains(&(q, Side::Row, 3)) && !first_head.contains(&(k, Side::Row, 0)));
    let all_heads = closure(&wiring, &[Slots::columns(o, 0, 8)]);
    for projection in [q, k, v, o] {
        let whole = &wiring.projections[projection];
        let everything = [Slots::rows(projection, 0, whole.rows), Slots::columns(projection, 0, whole.columns)];
        assert!(set(&everything).is_subset(&all_heads), "{}", whole.path);
    }
}

#[test]
fn a_decoder_without_biases_falls_silent_where_nothing_is_read() {
    let wiring = llama();
    let dead = closure(&wiring, &[Slots::columns(3, 0, 8)]);
    assert!(dead.contains(&(3, Side::Row, 0)), "the output has no bias, so its rows say nothing");
    let mut with = llama();
    with.give_biases(&[3]);
    assert!(!closure(&with, &[Slots::columns(3, 0, 8)]).contains(&(3, Side::Row, 0)));
}

#[test]
fn names_of_a_decoder_give_its_rules_where_the_head_dimension_is_known() {
    let (names, mut wiring) = (llama(), llama());
    let modules: Vec<_> = names.projections.iter().map(|p| (p.path.as_str(), p.rows, p.columns)).collect();
    let mut named = Wiring::from_paths(&modules, Some(4)).unwrap();
    // From names alone every projection is taken to have a bias.
    wiring.give_biases(&[0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(named.projections, wiring.projections);
    assert_eq!(named.rules, wiring.rules);
    named = Wiring::from_paths(&modules, None).unwrap();
    let pair = [Slots::rows(1, 0, 1), Slots::rows(1, 2, 1)];
    assert_eq!(closure(&named, &pair), set(&pair), "without it attention's slots die by themselves alone");
    assert_eq!(closure(&named, &[Slots::rows(4, 0, 1)]).len(), 3);
}

#[test]
fn a_decoder_has_a_unit_for_each_pair_value_and_inner_dimension() {
    let wiring = llama();
    let units = Units::of(&wiring);
    let sizes: Vec<usize> = units.units.iter().map(|unit| unit.slots.len()).collect();
    // Two pairs of two rows of three heads, four values with two columns each, three inner units of three slots.
    assert_eq!(sizes.iter().filter(|&&size| size == 6).count(), 2);
    assert_eq!(sizes.iter().filter(|&&size| size == 3).count(), 4 + 3);
    assert_eq!(units.units.len(), 9);
}
