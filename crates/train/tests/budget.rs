//! Budgets are met, at every stop, by whole units, the least important first.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use finegates_checkpoint::{Adapter, Checkpoint};
use finegates_kernels::random;
use finegates_model::wiring::{Space, Units};
use finegates_model::{GateSettings, LoadOptions, Method, Model, Purpose, Wiring};
use finegates_train::budget::{Cost, Live};
use finegates_train::by_name::ByName;
use finegates_train::closing::Closing;
use finegates_train::latency::{Curve, LatencyTable};
use finegates_train::phases::Stop;
use finegates_train::recipe::{Importance, Objective};
use finegates_train::{Error, Event, Mode, PartialRecipe};
use support::Workshop;

fn with_budget(workshop: &Workshop, budget: &str) -> PartialRecipe {
    PartialRecipe { budget: Some(ByName(budget.parse().unwrap())), epochs: Some(4.0), ..workshop.recipe() }
}

/// A model with direct gates.
fn gated(workshop: &Workshop) -> Model {
    let purpose = Purpose::Training { method: Method::Gates, gates: GateSettings::Direct };
    let options = LoadOptions { purpose, labels: Some(2), ..LoadOptions::default() };
    Model::load(&Checkpoint::open(&workshop.path("model")).unwrap(), &options).unwrap().0
}

/// `Σ length² / Σ length` of the training rows: the tokenizer has every word of theirs, and puts one token before and one behind.
fn attended(workshop: &Workshop) -> f64 {
    let text = std::fs::read_to_string(workshop.path("train.tsv")).unwrap();
    let mut lines = text.lines();
    let column = lines.next().unwrap().split('\t').position(|name| name != "label").unwrap();
    let lengths: Vec<f64> =
        lines.map(|line| line.split('\t').nth(column).unwrap().split(' ').count() as f64 + 2.0).collect();
    lengths.iter().map(|length| length * length).sum::<f64>() / lengths.iter().sum::<f64>()
}

/// Rows and columns that live by the gates of an adapter.
fn live(wiring: &Wiring, adapter: &Adapter) -> Live {
    let open = |values: &[f32]| values.iter().filter(|&&value| value != 0.0).count();
    let gates = |path: &str| adapter.gates(path).unwrap();
    Live {
        rows: wiring.projections.iter().map(|projection| open(gates(&projection.path).rows)).collect(),
        columns: wiring.projections.iter().map(|projection| open(gates(&projection.path).columns)).collect(),
    }
}

#[test]
fn every_stop_meets_its_budget_within_a_unit() {
    let workshop = Workshop::new("bert", 100, true);
    let model = gated(&workshop);
    let wiring = model.wiring();
    let whole = Live::whole(wiring);
    for (budget, cost) in
        [("params=0.8,0.5,0.2", Cost::Parameters), ("macs=0.6", Cost::MultiplyAdds { attended: attended(&workshop) })]
    {
        let mut kept = Vec::new();
        let mut observer = |event: &Event<'_>| {
            if let Event::Kept { stop, folder, .. } = event {
                kept.push(((*stop).clone(), folder.to_path_buf()));
            }
        };
        let stop = std::sync::atomic::AtomicBool::new(false);
        let options = workshop.options(budget, Mode::New);
        let summary = finegates_train::run(with_budget(&workshop, budget), &options, &mut observer, &stop).unwrap();
        assert_eq!(summary.stops, kept.iter().map(|(stop, _)| stop.clone()).collect::<Vec<_>>());
        // A unit of this model is a fortieth of a projection's rows and two of those projections are a sixth of all.
        let unit = 0.03;
        for (stop, folder) in &kept {
            assert!(stop.left <= stop.asked && stop.left > stop.asked - unit, "{stop:?}");
            let live = live(wiring, &Adapter::read(folder).unwrap());
            let left = cost.of(wiring, &live) / cost.of(wiring, &whole);
            assert!((left - stop.left).abs() < 1e-12, "{stop:?}, counted {left}");
            let weights = Cost::Parameters.of(wiring, &live) / Cost::Parameters.of(wiring, &whole);
            assert!((1.0 - weights - stop.removed).abs() < 1e-12, "{stop:?}");
        }
        let best = summary.best.unwrap();
        assert!(best.eligible && best.step > kept.iter().rev().nth(1).map_or(0, |(stop, _)| stop.step), "{best:?}");
    }
}

#[test]
fn units_close_whole() {
    let workshop = Workshop::new("bert", 60, true);
    workshop.run(with_budget(&workshop, "params=0.4"), "run", Mode::New).unwrap();
    let adapter = Adapter::read(&workshop.path("run/adapter")).unwrap();
    let model = gated(&workshop);
    let units = Units::of(model.wiring());
    let open = |slot: &finegates_model::wiring::units::Slot| {
        let gates = adapter.gates(&model.wiring().projections[slot.projection].path).unwrap();
        let side = match slot.side {
            finegates_model::wiring::Side::Row => gates.rows,
            finegates_model::wiring::Side::Column => gates.columns,
        };
        side[slot.index] != 0.0
    };
    let states: Vec<bool> = units.units.iter().map(|unit| open(&unit.slots[0])).collect();
    assert!(states.contains(&true) && states.contains(&false));
    for (unit, &state) in units.units.iter().zip(&states) {
        assert!(unit.slots.iter().all(|slot| open(slot) == state), "{unit:?}");
    }
    for dependence in &units.dependences {
        if dependence.when.iter().all(|&unit| !states[unit]) {
            assert!(dependence.then.iter().all(|&unit| !states[unit]), "{dependence:?}");
        }
    }
    // Open gates have moved, also above 1: they scale freely.
    let values: Vec<f32> =
        adapter.gated_modules().flat_map(|path| adapter.gates(path).unwrap().rows.to_vec()).collect();
    assert!(values.iter().any(|&value| value > 1.0) && values.iter().any(|&value| value < 1.0 && value != 0.0));
}

/// What all kinds take together where their savings just add up: `(milliseconds, units)` each, at every eighth.
fn together(kinds: &[(f64, usize)]) -> Curve {
    let left = |step: usize, size: usize| (size * step).div_ceil(8) as f64 / size as f64;
    let at = |step| kinds.iter().map(|&(milliseconds, size)| milliseconds * left(step, size)).sum();
    Curve { sizes: (0..=8).collect(), milliseconds: (0..=8).map(at).collect() }
}

#[test]
fn the_least_important_units_close_first_and_stay_closed() {
    let workshop = Workshop::new("bert", 10, false);
    let mut model = gated(&workshop);
    let wiring = model.wiring().clone();
    let units = Units::of(&wiring);
    let stop = Stop { name: "half".to_owned(), begin: 0, met: 10, end: 20, from: 1.0, to: 0.5 };
    // Query and key dimensions save much less time than the others, so they are worth more for the same importance.
    let straight = |milliseconds: f64, size: usize| Curve {
        sizes: (0..=size).collect(),
        milliseconds: (0..=size).map(|at| milliseconds * at as f64 / size as f64).collect(),
    };
    let config = model.config();
    let cost = Cost::Latency(LatencyTable {
        feed_forward: straight(10.0, config.feed_forward),
        value: straight(10.0, config.hidden),
        query_key: straight(1.0, config.hidden),
        together: together(&[(10.0, config.feed_forward), (10.0, config.hidden), (1.0, config.hidden)]),
        granularity: 1,
        ..LatencyTable::default()
    });
    let mut closing = Closing::new(&wiring, cost.clone(), vec![stop.clone()], 0.9);
    let saving = |unit: usize| match units.units[unit].space {
        Space::QueryKey { .. } => 1.0 / config.hidden as f64,
        Space::Value { .. } => 10.0 / config.hidden as f64,
        _ => 10.0 / config.feed_forward as f64,
    };
    let saving: Vec<f64> = (0..units.units.len()).map(saving).collect();
    let importance = |step: u64, unit: usize| {
        let mut drawn = [0.0];
        random::fill_normal(random::mix(step, unit as u64), 0.0, 1.0, &mut drawn);
        drawn[0] + unit as f32 * 0.1
    };
    let mut means: BTreeMap<usize, f64> = BTreeMap::new();
    let mut before = vec![true; units.units.len()];
    for step in 1..=20 {
        let gradients: BTreeMap<(String, usize), f32> = units
            .units
            .iter()
            .enumerate()
            .flat_map(|(number, unit)| unit.slots.iter().map(move |slot| (number, slot)))
            .map(|(number, slot)| {
                let gates = model.projections().nth(slot.projection).unwrap().gates().unwrap();
                ((gates.side(slot.side).parameter.name.clone(), slot.index), importance(step, number))
            })
            .collect();
        model.parameters(&mut |parameter| {
            for (index, gradient) in parameter.gradient.iter_mut().enumerate() {
                *gradient = gradients.get(&(parameter.name.to_owned(), index)).copied().unwrap_or(0.0);
            }
        });
        closing.observe(&model);
        for unit in (0..before.len()).filter(|&unit| before[unit]) {
            let mean = means.entry(unit).or_default();
            *mean = 0.9 * *mean + 0.1 * f64::from(importance(step, unit)).powi(2);
        }
        let closed = closing.close(&mut model, step);
        let mut again = Closing::new(&wiring, cost.clone(), vec![stop.clone()], 0.9);
        again.take_up(closing.importance(), &model);
        assert_eq!(again.left(), closing.left(), "what a resumed run finds is what there was");
        let open: Vec<bool> = units
            .units
            .iter()
            .map(|unit| {
                let slot = unit.slots[0];
                let gates = model.projections().nth(slot.projection).unwrap().gates().unwrap();
                gates.side(slot.side).parameter.value[slot.index] != 0.0
            })
            .collect();
        assert_eq!(closed, open != before);
        assert!(open.iter().zip(&before).all(|(open, before)| *before || !open), "nothing opens again");
        let asked = stop.share(step);
        assert!(closing.left() <= asked && closing.left() > asked - 0.03, "{} at step {step}", closing.left());
        // Units that fell with a whole head may have been more important.
        let fell_with_others = |unit: usize| {
            units
                .dependences
                .iter()
                .any(|dependence| dependence.then.contains(&unit) && dependence.when.iter().all(|&unit| !open[unit]))
        };
        let dearest = (0..open.len()).filter(|&unit| before[unit] && !open[unit] && !fell_with_others(unit));
        let dearest = dearest.map(|unit| means[&unit] / saving[unit]).fold(0.0, f64::max);
        let cheapest = (0..open.len())
            .filter(|&unit| open[unit])
            .map(|unit| means[&unit] / saving[unit])
            .fold(f64::INFINITY, f64::min);
        assert!(dearest <= cheapest * (1.0 + 1e-4), "step {step}: closed {dearest}, kept {cheapest}");
        before = open;
    }
    assert!(closing.met(20));
}

#[test]
fn magnitude_and_chance_rank_without_learning() {
    let workshop = Workshop::new("bert", 10, false);
    let stop = Stop { name: "half".to_owned(), begin: 0, met: 1, end: 2, from: 1.0, to: 0.5 };
    let closed = |importance: Importance, seed: u64, gradient: f32| -> (Vec<f64>, Vec<bool>) {
        let mut model = gated(&workshop);
        let units = Units::of(model.wiring()).units;
        let mut closing = Closing::new(model.wiring(), Cost::Parameters, vec![stop.clone()], 0.9);
        closing.rank_by(importance, &model, seed);
        model.parameters(&mut |parameter| {
            for (index, value) in parameter.gradient.iter_mut().enumerate() {
                *value = gradient * (1.0 + (index % 7) as f32);
            }
        });
        closing.observe(&model);
        closing.close(&mut model, 2);
        let projections: Vec<_> = model.projections().collect();
        let checkpoint = Checkpoint::open(&workshop.path("model")).unwrap();
        let weight = |slot: &finegates_model::wiring::units::Slot| -> f64 {
            let projection = projections[slot.projection];
            let weight = checkpoint.tensors.read_tensor(&format!("{}.weight", projection.path())).unwrap();
            let width = weight.shape[1];
            let chosen = weight.data.iter().enumerate().filter(|(at, _)| match slot.side {
                finegates_model::wiring::Side::Row => at / width == slot.index,
                finegates_model::wiring::Side::Column => at % width == slot.index,
            });
            chosen.map(|(_, value)| f64::from(*value).powi(2)).sum()
        };
        let open = |slot: &finegates_model::wiring::units::Slot| {
            projections[slot.projection].gates().unwrap().side(slot.side).parameter.value[slot.index] != 0.0
        };
        let weights = units.iter().map(|unit| unit.slots.iter().map(weight).sum()).collect();
        (weights, units.iter().map(|unit| open(&unit.slots[0])).collect())
    };
    let (weights, open) = closed(Importance::Magnitude, 1, 1.0);
    let heaviest = weights.iter().zip(&open).filter(|(_, open)| !**open).map(|(weight, _)| *weight).fold(0.0, f64::max);
    let lightest = weights.iter().zip(&open).filter(|(_, open)| **open).map(|(weight, _)| *weight);
    let lightest = lightest.fold(f64::INFINITY, f64::min);
    assert!(open.contains(&false) && heaviest <= lightest * (1.0 + 1e-6), "closed {heaviest}, kept {lightest}");
    for importance in [Importance::Magnitude, Importance::Random] {
        assert_eq!(closed(importance, 1, 1.0).1, closed(importance, 1, -3.0).1, "{importance}: gradients say nothing");
    }
    assert_ne!(closed(Importance::Random, 1, 1.0).1, closed(Importance::Random, 2, 1.0).1);
    assert_eq!(closed(Importance::Magnitude, 1, 1.0).1, closed(Importance::Magnitude, 2, 1.0).1);
}

#[test]
fn closed_gates_stay_at_zero_while_the_others_train() {
    let workshop = Workshop::new("bert", 60, true);
    workshop.run(with_budget(&workshop, "params=0.9,0.5"), "run", Mode::New).unwrap();
    let first = Adapter::read(&workshop.path("run/stops/params-0.9")).unwrap();
    let last = Adapter::read(&workshop.path("run/stops/params-0.5")).unwrap();
    let mut closed = 0;
    for path in first.gated_modules() {
        let (early, late) = (first.gates(path).unwrap(), last.gates(path).unwrap());
        let both = |early: &[f32], late: &[f32]| -> Vec<(f32, f32)> {
            early.iter().copied().zip(late.iter().copied()).filter(|(early, _)| *early == 0.0).collect()
        };
        for (_, late) in [both(early.rows, late.rows), both(early.columns, late.columns)].concat() {
            closed += 1;
            assert_eq!(late, 0.0, "{path}");
        }
    }
    assert!(closed > 0);
    let bits = |name: &str| std::fs::read(workshop.path("run").join(name)).unwrap();
    assert_eq!(bits("stops/params-0.5/adapter_model.safetensors"), bits("adapter/adapter_model.safetensors"));
}

#[test]
fn a_time_is_met_by_the_table_that_was_measured() {
    let workshop = Workshop::new("bert", 40, true);
    let summary = workshop.run(with_budget(&workshop, "latency=0.9@2x12"), "run", Mode::New).unwrap();
    assert!(summary.stops[0].left <= 0.9, "{summary:?}");
    let kept = LatencyTable::read(&workshop.path("run/latency.json"), gated(&workshop).config());
    assert!(kept.is_some_and(|table| table.feed_forward.milliseconds.last().is_some_and(|&time| time > 0.0)));
    let refused = workshop.run(with_budget(&workshop, "latency=0.000001ms"), "late", Mode::New);
    assert!(matches!(refused, Err(Error::OutOfReach { .. })), "{refused:?}");
    assert!(!workshop.path("late/recipe.toml").exists());
    let refused = workshop.run(with_budget(&workshop, "latency=0.5@1x5000"), "long", Mode::New);
    assert!(matches!(refused, Err(Error::Latency { tokens: 5000, .. })), "{refused:?}");
}

#[test]
fn a_run_of_the_paper_is_what_it_was() {
    let workshop = Workshop::new("bert", 20, true);
    let recipe = PartialRecipe { objective: Some(ByName(Objective::Paper)), epochs: Some(1.0), ..workshop.recipe() };
    let summary = workshop.run(recipe, "run", Mode::New).unwrap();
    assert!(summary.stops.is_empty() && !workshop.path("run/stops").exists());
    let adapter = Adapter::read(&workshop.path("run/adapter")).unwrap();
    assert!(adapter.tensors.keys().any(|name| name.ends_with(".finegates_rows")));
    assert_eq!(adapter.config.sparsity_loss_weight, 50.0);
}

#[test]
fn sizes_are_rounded_to_what_runs_well_and_no_group_vanishes_by_it() {
    let workshop = Workshop::new("bert", 10, false);
    let mut model = gated(&workshop);
    let wiring = model.wiring().clone();
    let config = model.config().clone();
    let curve = |size: usize| Curve {
        sizes: (0..=size).collect(),
        milliseconds: (0..=size).map(|at| 10.0 * at as f64 / size as f64).collect(),
    };
    let table = LatencyTable {
        feed_forward: curve(config.feed_forward),
        value: curve(config.hidden),
        query_key: curve(config.hidden),
        together: together(&[(10.0, config.feed_forward), (10.0, config.hidden), (10.0, config.hidden)]),
        granularity: 4,
        ..LatencyTable::default()
    };
    let stop = Stop { name: "deep".to_owned(), begin: 0, met: 30, end: 30, from: 1.0, to: 0.3 };
    let mut closing = Closing::new(&wiring, Cost::Latency(table), vec![stop.clone()], 0.5);
    for step in 1..=30 {
        model.parameters(&mut |parameter| random::fill_normal(step, 0.0, 1.0, parameter.gradient));
        closing.observe(&model);
        closing.close(&mut model, step);
        assert!(closing.left() <= stop.share(step), "step {step}");
        for (projection, wired) in model.projections().zip(&wiring.projections) {
            let gates = projection.gates().unwrap();
            let open = |values: &[f32]| values.iter().filter(|&&value| value != 0.0).count();
            let (rows, columns) = (open(&gates.rows.parameter.value), open(&gates.columns.parameter.value));
            // Heads that fell take their queries and keys along, whatever their number is.
            if !matches!(wired.row_space, Space::QueryKey { .. }) {
                assert!(rows.is_multiple_of(4) && columns.is_multiple_of(4), "{}: {rows} x {columns}", wired.path);
            }
        }
    }
    assert!(closing.met(30));
}

#[test]
fn patience_ends_a_run_only_after_its_budget_and_keeps_the_last_stop() {
    let workshop = Workshop::new("bert", 40, true);
    let recipe = PartialRecipe {
        epochs: Some(20.0),
        early_stopping: Some(1),
        ..Workshop::without_learning(with_budget(&workshop, "params=0.8,0.5"))
    };
    let summary = workshop.run(recipe, "run", Mode::New).unwrap();
    assert_eq!(summary.ending, finegates_train::Ending::EarlyStopped);
    assert!(summary.step < summary.total_steps && summary.best.unwrap().eligible);
    let names: Vec<_> = summary.stops.iter().map(|stop| stop.name.as_str()).collect();
    assert_eq!(names, ["params-0.8", "params-0.5"]);
    assert!(summary.stops[1].left <= 0.5 && workshop.path("run/stops/params-0.5/adapter_model.safetensors").exists());
    let again = workshop.run(PartialRecipe::default(), "run", Mode::Resume).unwrap();
    assert_eq!(again.stops, summary.stops);
    // Amounts so near that the first stop meets the second: patience waits for the last stop all the same.
    for patience in [1, 3, 5] {
        let near = PartialRecipe {
            epochs: Some(20.0),
            early_stopping: Some(patience),
            ..Workshop::without_learning(with_budget(&workshop, "params=0.51,0.509"))
        };
        let name = format!("near-{patience}");
        let summary = workshop.run(near, &name, Mode::New).unwrap();
        assert_eq!(summary.stops.len(), 2, "{summary:?}");
        assert_eq!(workshop.run(PartialRecipe::default(), &name, Mode::Resume).unwrap().stops, summary.stops);
    }
}

#[test]
fn overwriting_removes_the_stops_of_the_run_and_nothing_else() {
    let workshop = Workshop::new("bert", 40, true);
    workshop.run(with_budget(&workshop, "params=0.8,0.5"), "run", Mode::New).unwrap();
    let (made, mine) = (workshop.path("run/compact/params-0.8"), workshop.path("run/compact/params-0.5"));
    for (folder, file) in [(&made, "compression.json"), (&mine, "thesis.txt")] {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(file), "{}").unwrap();
    }
    workshop.run(with_budget(&workshop, "params=0.6"), "run", Mode::Overwrite).unwrap();
    assert!(!made.exists() && mine.join("thesis.txt").exists());
    let kept = std::fs::read_dir(workshop.path("run/stops")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(kept.collect::<Vec<_>>(), ["params-0.6"]);
}

#[test]
fn stops_without_steps_are_refused() {
    let workshop = Workshop::new("bert", 10, true);
    let few = PartialRecipe { max_steps: Some(3), ..with_budget(&workshop, "params=0.8,0.6,0.4,0.25,0.1") };
    let refused = workshop.run(few, "run", Mode::New);
    assert!(matches!(refused, Err(Error::FewSteps { stops: 5, steps: 3, .. })), "{refused:?}");
    assert!(!workshop.path("run/recipe.toml").exists());
}

#[test]
fn a_gate_that_training_makes_zero_is_not_closed_by_it() {
    let workshop = Workshop::new("bert", 40, true);
    // AdamW's first step is the learning rate: from 1 to 0 exactly, wherever there is a gradient.
    let recipe = PartialRecipe {
        gate_learning_rate: Some(1.0),
        warmup_ratio: Some(0.0),
        epsilon: Some(1e-30),
        adapt_ratio: Some(0.5),
        ..with_budget(&workshop, "params=0.9,0.8")
    };
    let summary = workshop.run(recipe, "run", Mode::New).unwrap();
    for stop in summary.stops {
        assert!((stop.left - (1.0 - stop.removed)).abs() < 1e-12, "{stop:?}");
    }
    let adapter = Adapter::read(&workshop.path("run/adapter")).unwrap();
    let mut values = adapter.gated_modules().flat_map(|path| adapter.gates(path).unwrap().rows.to_vec());
    assert!(values.any(|value| value != 0.0 && value.abs() < 0.5), "gates have moved far");
}
