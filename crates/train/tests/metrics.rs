//! Metrics equal scikit-learn's and SciPy's on the cases of `fixtures/metrics.json`, random and degenerate.
#![allow(clippy::unwrap_used)]

use finegates_train::metrics::{Metric, accuracy, f1, matthews};
use serde_json::Value;

/// Sums in another order differ in the last bits.
const TOLERANCE: f64 = 1e-12;

fn cases(kind: &str) -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/metrics.json");
    let goldens: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    goldens[kind].as_array().unwrap().clone()
}

fn numbers(case: &Value, key: &str) -> Vec<f64> {
    case[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

fn check(case: &Value, key: &str, found: f64) {
    let name = &case["name"];
    match case.get(key) {
        None => {}
        Some(Value::Null) => assert!(found.is_nan(), "{name}: {key}: expected NaN, found {found}"),
        Some(expected) => {
            let expected = expected.as_f64().unwrap();
            assert!((found - expected).abs() < TOLERANCE, "{name}: {key}: expected {expected}, found {found}");
        }
    }
}

#[test]
fn classification_metrics_equal_scikit_learn() {
    let cases = cases("classification");
    assert!(cases.len() > 10);
    for case in cases {
        let classes = |key| numbers(&case, key).iter().map(|&class| class as u32).collect::<Vec<_>>();
        let (predictions, labels) = (classes("predictions"), classes("labels"));
        check(&case, "accuracy", accuracy(&predictions, &labels));
        check(&case, "f1", f1(&predictions, &labels, 1));
        check(&case, "matthews", matthews(&predictions, &labels));
    }
}

#[test]
fn regression_metrics_equal_scipy() {
    let cases = cases("regression");
    assert!(cases.len() > 10);
    for case in cases {
        // The file has the shortest decimals of f32, as a model's outputs are.
        let values = |key| numbers(&case, key).iter().map(|&value| value as f32).collect::<Vec<_>>();
        let (predictions, targets) = (values("predictions"), values("targets"));
        for metric in [Metric::Pearson, Metric::Spearman] {
            check(&case, metric.name(), metric.of_values(&predictions, &targets).unwrap());
        }
    }
}
