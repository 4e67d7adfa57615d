//! Coupled units: the rows and columns of several projections that live and die together, so that closing one of them alone
//! would waste the others. Read off the wiring's rules; no family is known here.

use std::collections::BTreeMap;

use super::{ProjectionWiring, Rule, Side, Slots, Space, Wiring};

/// One row or one column of a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Index into [`Wiring::projections`].
    pub projection: usize,
    /// Row or column.
    pub side: Side,
    /// Which one.
    pub index: usize,
}

/// Slots that die together: an inner unit of a feed-forward block, a value dimension with the output's column, a query
/// dimension with the key's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its rows and columns, ascending.
    pub slots: Vec<Slot>,
    /// Where it lives.
    pub space: Space,
}

/// If all units of `when` are closed, those of `then` say nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dependence {
    /// The premise, ascending.
    pub when: Vec<usize>,
    /// The conclusion, ascending.
    pub then: Vec<usize>,
}

/// All units of a model, ordered by their first slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Units {
    /// The units.
    pub units: Vec<Unit>,
    /// What dies with whole groups of them: a head's queries and keys with its values.
    pub dependences: Vec<Dependence>,
}

impl Units {
    /// The units of a wiring: slots that rules over single slots tie to each other. Slots in no such rule, those of the
    /// residual stream, belong to none.
    pub fn of(wiring: &Wiring) -> Units {
        let single = |rule: &&Rule| rule.when.iter().chain(&rule.then).all(|run| run.len == 1);
        let mut forest = Forest::default();
        for rule in wiring.rules.iter().filter(single) {
            let mut slots = rule.when.iter().chain(&rule.then).flat_map(slots);
            if let Some(first) = slots.next() {
                slots.for_each(|slot| forest.join(first, slot));
            }
        }
        let mut members: BTreeMap<Slot, Vec<Slot>> = BTreeMap::new();
        let known: Vec<Slot> = forest.parents.keys().copied().collect();
        for slot in known {
            members.entry(forest.root(slot)).or_default().push(slot);
        }
        let mut units: Vec<Unit> = members
            .into_values()
            .map(|slots| Unit { space: space(&wiring.projections[slots[0].projection], slots[0].side), slots })
            .collect();
        units.sort_unstable_by_key(|unit| unit.slots[0]);
        let of_slot: BTreeMap<Slot, usize> = units
            .iter()
            .enumerate()
            .flat_map(|(number, unit)| unit.slots.iter().map(move |&slot| (slot, number)))
            .collect();
        let dependences = wiring.rules.iter().filter(|rule| !single(rule)).filter_map(|rule| {
            let numbers = |runs: &[Slots]| {
                let mut numbers: Vec<Option<usize>> =
                    runs.iter().flat_map(slots).map(|slot| of_slot.get(&slot).copied()).collect();
                numbers.sort_unstable();
                numbers.dedup();
                numbers
            };
            // A premise with a slot of the residual stream never comes true.
            let when: Vec<usize> = numbers(&rule.when).into_iter().collect::<Option<_>>()?;
            let then: Vec<usize> =
                numbers(&rule.then).into_iter().flatten().filter(|unit| !when.contains(unit)).collect();
            (!when.is_empty() && !then.is_empty()).then_some(Dependence { when, then })
        });
        Units { dependences: dependences.collect(), units }
    }
}

fn slots(run: &Slots) -> impl Iterator<Item = Slot> + use<> {
    let Slots { projection, side, start, len } = *run;
    (start..start + len).map(move |index| Slot { projection, side, index })
}

fn space(projection: &ProjectionWiring, side: Side) -> Space {
    match side {
        Side::Row => projection.row_space,
        Side::Column => projection.column_space,
    }
}

/// Disjoint sets of slots, the smallest of each its root.
#[derive(Default)]
struct Forest {
    parents: BTreeMap<Slot, Slot>,
}

impl Forest {
    fn root(&mut self, slot: Slot) -> Slot {
        let parent = *self.parents.entry(slot).or_insert(slot);
        if parent == slot {
            return slot;
        }
        let root = self.root(parent);
        self.parents.insert(slot, root);
        root
    }

    fn join(&mut self, one: Slot, other: Slot) {
        let (one, other) = (self.root(one), self.root(other));
        self.parents.insert(one.max(other), one.min(other));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use finegates_checkpoint::config::Family;

    use super::super::StackShape;

    fn encoder() -> Wiring {
        let shape = StackShape::encoder(2, 8, 2, 6);
        Wiring::stack(Family::Bert, &shape).expect("a wiring")
    }

    #[test]
    fn an_encoder_layer_has_a_unit_for_each_query_value_and_inner_dimension() {
        let units = Units::of(&encoder());
        assert_eq!(units.units.len(), 2 * (8 + 8 + 6));
        let count = |space: fn(Space) -> bool| units.units.iter().filter(|unit| space(unit.space)).count();
        assert_eq!(count(|space| matches!(space, Space::QueryKey { .. })), 16);
        assert_eq!(count(|space| matches!(space, Space::Value { .. })), 16);
        assert_eq!(count(|space| matches!(space, Space::FeedForward { .. })), 12);
        for unit in &units.units {
            assert_eq!(unit.slots.len(), 2, "{unit:?}");
            assert_eq!(unit.slots[0].index, unit.slots[1].index);
            assert_ne!(unit.slots[0].projection, unit.slots[1].projection);
            let sides = (unit.slots[0].side, unit.slots[1].side);
            match unit.space {
                Space::QueryKey { .. } => assert_eq!(sides, (Side::Row, Side::Row)),
                _ => assert_eq!(sides, (Side::Row, Side::Column)),
            }
        }
    }

    #[test]
    fn queries_and_keys_of_a_head_depend_on_all_its_values() {
        let units = Units::of(&encoder());
        let heads: Vec<_> = units.dependences.iter().filter(|dependence| dependence.when.len() == 4).collect();
        assert_eq!(heads.len(), 4, "two layers of two heads");
        for dependence in heads {
            assert_eq!(dependence.then.len(), 4);
            let space = |unit: &usize| units.units[*unit].space;
            assert!(dependence.when.iter().all(|unit| matches!(space(unit), Space::Value { .. })));
            assert!(dependence.then.iter().all(|unit| matches!(space(unit), Space::QueryKey { .. })));
            let indices = |units_: &[usize]| -> Vec<usize> {
                units_.iter().map(|&unit| units.units[unit].slots[0].index).collect()
            };
            assert_eq!(indices(&dependence.when), indices(&dependence.then));
        }
    }

    /// Rotary dimensions pair up, and a key or value head is shared by two query heads (METHOD.md §6).
    #[test]
    fn slots_tied_by_several_rules_are_one_unit() {
        let projection = |rows: usize, columns: usize, row_space, column_space| ProjectionWiring {
            path: format!("p{rows}{columns}"),
            layer: 0,
            role: super::super::Role::Query,
            rows,
            columns,
            row_space,
            column_space,
            bias: false,
        };
        let inner = Space::QueryKey { layer: 0 };
        let pair = |projection| vec![Slots::rows(projection, 0, 1), Slots::rows(projection, 1, 1)];
        let both = |one: usize, other: usize| [pair(one), pair(other)].concat();
        let wiring = Wiring {
            projections: vec![projection(4, 3, inner, Space::Residual), projection(2, 3, inner, Space::Residual)],
            rules: vec![
                Rule { when: pair(0), then: both(1, 1) },
                Rule { when: vec![Slots::rows(0, 2, 1), Slots::rows(0, 3, 1)], then: pair(1) },
                Rule { when: pair(1), then: vec![Slots::rows(0, 0, 1), Slots::rows(0, 2, 1)] },
            ],
        };
        let units = Units::of(&wiring);
        assert_eq!(units.units.len(), 1);
        assert_eq!(units.units[0].slots.len(), 6);
        assert!(units.dependences.is_empty());
    }
}
