"""Writes fixtures/metrics.json: GLUE's metrics on random and degenerate cases, from scikit-learn and SciPy.

    python tools/make_metric_goldens.py [--output fixtures/metrics.json]

A `null` is a metric that is not defined there (SciPy gives NaN for a constant input); what a trainer reports then is its own
choice. scikit-learn defines Matthews and F1 as 0 in their degenerate cases.
"""

import argparse
import json
import math
import warnings
from pathlib import Path

import numpy
from scipy import stats
from sklearn import metrics


def classification_case(name, labels, predictions):
    labels, predictions = numpy.asarray(labels), numpy.asarray(predictions)
    case = {"name": name, "labels": labels.tolist(), "predictions": predictions.tolist()}
    case["accuracy"] = float(metrics.accuracy_score(labels, predictions))
    case["matthews"] = float(metrics.matthews_corrcoef(labels, predictions))
    if max(labels.max(), predictions.max()) <= 1:
        case["f1"] = float(metrics.f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0.0))
    return case


def regression_case(name, targets, predictions):
    """Both sides are rounded to f32 first: a model's outputs are f32."""
    targets, predictions = (numpy.asarray(side, dtype=numpy.float32) for side in (targets, predictions))
    case = {"name": name, "targets": shortest(targets), "predictions": shortest(predictions)}
    left, right = targets.astype(numpy.float64), predictions.astype(numpy.float64)
    case["pearson"] = defined(stats.pearsonr(left, right).statistic)
    case["spearman"] = defined(stats.spearmanr(left, right).statistic)
    return case


def shortest(values):
    return [float(str(value)) for value in values]


def defined(value):
    return None if math.isnan(value) else float(value)


def classification_cases(random):
    yield classification_case("all right", [0, 1, 1, 0], [0, 1, 1, 0])
    yield classification_case("all wrong", [0, 1, 1, 0], [1, 0, 0, 1])
    yield classification_case("one example", [1], [1])
    yield classification_case("one example, wrong", [1], [0])
    yield classification_case("only negatives, predicted so", [0] * 5, [0] * 5)
    yield classification_case("only negatives, one predicted positive", [0] * 5, [0, 0, 1, 0, 0])
    yield classification_case("only positives, predicted so", [1] * 5, [1] * 5)
    yield classification_case("only positives, none found", [1] * 5, [0] * 5)
    yield classification_case("constant prediction 1", [0, 1, 1, 0, 1], [1] * 5)
    yield classification_case("constant prediction 0", [0, 1, 1, 0, 1], [0] * 5)
    yield classification_case("three classes, constant prediction", [0, 1, 2, 2, 1], [2] * 5)
    yield classification_case("a class that is never predicted", [0, 1, 2, 2, 1, 0], [0, 1, 1, 1, 1, 0])
    yield classification_case("a class that never occurs", [0, 1, 1, 1, 1, 0], [0, 1, 2, 2, 1, 0])
    for classes, count, skill in ((2, 37, 0.5), (2, 150, 0.8), (2, 150, 0.05), (3, 90, 0.6), (5, 120, 0.3)):
        labels = random.choice(classes, size=count, p=random.dirichlet(numpy.full(classes, 3.0)))
        guesses = random.integers(0, classes, size=count)
        yield classification_case(
            f"random, {classes} classes, {count} examples",
            labels,
            numpy.where(random.random(count) < skill, labels, guesses),
        )


def regression_cases(random):
    yield regression_case("two examples, same order", [1.0, 2.0], [0.5, 0.75])
    yield regression_case("two examples, opposite order", [1.0, 2.0], [0.75, 0.5])
    yield regression_case("constant predictions", [0.0, 1.0, 2.5, 5.0], [2.0] * 4)
    yield regression_case("constant targets", [3.0] * 4, [0.0, 1.0, 2.5, 5.0])
    yield regression_case("exactly linear", [0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 7.0])
    yield regression_case("monotone, not linear", [0.0, 1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 8.0, 27.0, 64.0])
    yield regression_case("ties on both sides", [1, 1, 2, 2, 2, 3, 5, 5], [0.5, 0.5, 0.5, 2, 2, 1, 3, 3])
    yield regression_case("all tied but one", [1, 1, 1, 1, 2], [3, 3, 4, 3, 3])
    yield regression_case("small spread far from zero", 5000 + 0.01 * random.random(20), 5000 + 0.01 * random.random(20))
    for count, noise in ((30, 0.3), (120, 1.0), (120, 5.0)):
        targets = numpy.round(random.random(count) * 5.0, 1)  # many ties, as in STS-B
        yield regression_case(f"random, {count} examples", targets, targets + noise * random.standard_normal(count))
    targets = numpy.round(random.random(80) * 5.0)
    yield regression_case("random with rounded predictions", targets, numpy.round(targets + random.standard_normal(80)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--output", type=Path, default=root / "fixtures" / "metrics.json")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    random = numpy.random.default_rng(7)
    cases = {"classification": classification_cases(random), "regression": regression_cases(random)}
    blocks = []
    for kind, rows in cases.items():
        blocks.append(f'  "{kind}": [\n' + ",\n".join("    " + json.dumps(case) for case in rows) + "\n  ]")
    arguments.output.write_text('{\n  "format": 1,\n' + ",\n".join(blocks) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
