//! `config.json` of a compact folder: every key of the original, the labels in force, and the `finegates` object.

use std::path::Path;

use finegates_checkpoint::compact::CompactInfo;
use finegates_checkpoint::write::write_atomic;
use finegates_model::{Layerwise, Task};
use serde_json::{Map, Value, json};

use crate::Error;
use crate::compress::Request;

/// Writes the file into `folder`.
pub(crate) fn write(request: &Request<'_>, gated: &Layerwise, folder: &Path) -> Result<(), Error> {
    let config = &request.base.config;
    let mut object = config.raw.clone();
    let language = request.task == Task::Language;
    let class = config.family.language_class().filter(|_| language).unwrap_or(config.family.classifier_class());
    object.insert("architectures".to_owned(), json!([class]));
    for key in ["dtype", "torch_dtype"] {
        // Whatever the original was stored in, the compact tensors are f32.
        object.entry(key).and_modify(|value| *value = json!("float32"));
    }
    if !language {
        let labels = if request.labels.is_empty() { &config.labels } else { request.labels };
        if labels.len() != gated.classes && !labels.is_empty() {
            return Err(Error::Labels { expected: gated.classes, found: labels.len() });
        }
        write_labels(&mut object, labels, gated.classes);
        // As a model sees it: one class is a number.
        let problem = if gated.classes == 1 { "regression" } else { "single_label_classification" };
        object.insert("problem_type".to_owned(), json!(problem));
    }
    let places = gated.wiring.projections.iter();
    let projections = places.map(|place| (place.path.clone(), (place.rows, place.columns))).collect();
    object.insert("finegates".to_owned(), CompactInfo { projections }.to_json());
    let mut text = serde_json::to_vec_pretty(&object).expect("an object is always JSON");
    text.push(b'\n');
    write_atomic(&folder.join("config.json"), &text)?;
    Ok(())
}

/// `id2label` and `label2id`; names as transformers gives them where there are none.
fn write_labels(object: &mut Map<String, Value>, labels: &[String], classes: usize) {
    let name = |id: usize| labels.get(id).cloned().unwrap_or_else(|| format!("LABEL_{id}"));
    let id2label: Map<String, Value> = (0..classes).map(|id| (id.to_string(), json!(name(id)))).collect();
    let label2id: Map<String, Value> = (0..classes).map(|id| (name(id), json!(id))).collect();
    object.insert("id2label".to_owned(), Value::Object(id2label));
    object.insert("label2id".to_owned(), Value::Object(label2id));
    object.remove("num_labels");
}
