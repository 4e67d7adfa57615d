//! The names tensors have in PEFT's files, and the base model's own names for them.

use super::GateForm;

/// What every name begins with in the file: PEFT's model, and the base model in it.
pub(super) const PREFIX: &str = "base_model.model.";

/// The base model's own name for a tensor of an adapter file, or `None` for the untouched copies that PEFT keeps
/// beside trained modules. Versions of PEFT differ in whether the wrappers' names and the adapter's name
/// (`…modules_to_save.default.weight`, `….base_layer.bias`, `….finegates_rows.default`) are left in.
pub(super) fn normalise(written: &str) -> Option<String> {
    let name = written.strip_prefix(PREFIX).unwrap_or(written);
    if name.contains(".original_module.") {
        return None;
    }
    for suffix in GateForm::ALL.iter().flat_map(|form| [form.rows_suffix(), form.columns_suffix()]) {
        if let Some((module, adapter)) = name.rsplit_once(&format!("{suffix}."))
            && !adapter.is_empty()
            && !adapter.contains('.')
        {
            return Some(format!("{module}{suffix}"));
        }
    }
    Some(name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".").replace(".base_layer.", "."))
}

#[cfg(test)]
mod tests {
    use super::normalise;

    #[test]
    fn names_of_every_peft_version_become_the_models_own() {
        for (written, expected) in [
            ("base_model.model.classifier.dense.weight", "classifier.dense.weight"),
            ("base_model.model.classifier.modules_to_save.default.dense.weight", "classifier.dense.weight"),
            ("base_model.model.classifier.modules_to_save.dense.weight", "classifier.dense.weight"),
            (
                "base_model.model.bert.encoder.layer.0.output.dense.finegates_rows",
                "bert.encoder.layer.0.output.dense.finegates_rows",
            ),
            ("base_model.model.a.query.finegates_columns.default", "a.query.finegates_columns"),
            ("base_model.model.a.query.finegates_rows.mine", "a.query.finegates_rows"),
            ("base_model.model.a.query.base_layer.bias", "a.query.bias"),
            ("a.query.bias", "a.query.bias"),
        ] {
            assert_eq!(normalise(written).as_deref(), Some(expected), "{written}");
        }
        assert_eq!(normalise("base_model.model.classifier.original_module.weight"), None);
    }
}
