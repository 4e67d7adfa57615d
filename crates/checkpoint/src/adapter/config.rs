//! `adapter_config.json`: the settings an adapter was trained with, keys unknown to us included.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::GateForm;
use crate::Error;
use crate::config::parse_json;
use crate::error::shorten;
use crate::read::{CONFIG_LIMIT_BYTES, read_text};

/// The value of `peft_type` of adapters that PEFT's proposal describes.
const PEFT_TYPE: &str = "FINEGATES";
/// The same of adapters that hold gate values: PEFT does not know it and so refuses them instead of misreading them.
const VALUES_TYPE: &str = "FINEGATES_VALUES";

/// Which modules are gated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// The ends of module paths.
    Names(Vec<String>),
    /// A regular expression over whole module paths, or `all-linear`; as PEFT understands it.
    Pattern(String),
}

/// The settings of an adapter, under PEFT's names.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// What the gates are: `peft_type` is `FINEGATES` or `FINEGATES_VALUES`.
    pub form: GateForm,
    /// `s`, the share that was to be closed, 0 to 1. This and the next four are settings of [`GateForm::Theta`] alone.
    pub target_sparsity: f64,
    /// `λ`, at least 0.
    pub sparsity_loss_weight: f64,
    /// The mean of θ at the start.
    pub gate_init_mean: f64,
    /// The standard deviation of θ at the start.
    pub gate_init_std: f64,
    /// `σ`, the standard deviation of the noise in training.
    pub gate_noise_std: f64,
    /// Which biases were trained: `none`, `all` or `finegates_only`.
    pub bias: String,
    /// The gated modules; `None` leaves the choice to PEFT's table for the model type.
    pub target_modules: Option<TargetModules>,
    /// The modules trained and saved whole: the head.
    pub modules_to_save: Vec<String>,
    /// `SEQ_CLS` for sequence classification and regression.
    pub task_type: Option<String>,
    /// The base model, as its user named it.
    pub base_model_name_or_path: Option<String>,
    /// All other keys.
    pub extra: Map<String, Value>,
}

impl Default for AdapterConfig {
    /// The paper's settings for GLUE.
    fn default() -> Self {
        AdapterConfig {
            form: GateForm::Theta,
            target_sparsity: 0.4,
            sparsity_loss_weight: 50.0,
            gate_init_mean: 1.0,
            gate_init_std: 0.1,
            gate_noise_std: 0.1,
            bias: "finegates_only".to_owned(),
            target_modules: None,
            modules_to_save: Vec::new(),
            task_type: Some("SEQ_CLS".to_owned()),
            base_model_name_or_path: None,
            extra: Map::new(),
        }
    }
}

impl AdapterConfig {
    /// Reads an `adapter_config.json`.
    ///
    /// # Errors
    /// When it is missing or no JSON, of another `peft_type`, or has a value that cannot be.
    pub fn read(path: &Path) -> Result<AdapterConfig, Error> {
        AdapterConfig::parse(path, &read_text(path, CONFIG_LIMIT_BYTES)?)
    }

    /// Reads the text of an `adapter_config.json`; `path` is for messages.
    ///
    /// # Errors
    /// As [`AdapterConfig::read`].
    pub fn parse(path: &Path, text: &str) -> Result<AdapterConfig, Error> {
        let mut fields = Fields { path, object: parse_json(path, text)? };
        let form = match fields.take("peft_type") {
            Some(Value::String(found)) if found == PEFT_TYPE => GateForm::Theta,
            Some(Value::String(found)) if found == VALUES_TYPE => GateForm::Values,
            found => {
                let found = found.map_or("nothing".to_owned(), |value| shorten(&value.to_string()));
                return Err(fields.wrong(
                    "peft_type",
                    &format!("{PEFT_TYPE} or {VALUES_TYPE}, for adapters of other methods are not read"),
                    found,
                ));
            }
        };
        let default = AdapterConfig::default();
        Ok(AdapterConfig {
            form,
            target_sparsity: fields.number("target_sparsity", default.target_sparsity, "a share from 0 to 1", |s| {
                (0.0..=1.0).contains(&s)
            })?,
            sparsity_loss_weight: fields.number(
                "sparsity_loss_weight",
                default.sparsity_loss_weight,
                "a number of at least 0",
                |w| w >= 0.0,
            )?,
            gate_init_mean: fields.number("gate_init_mean", default.gate_init_mean, "a finite number", |_| true)?,
            gate_init_std: fields
                .number("gate_init_std", default.gate_init_std, "a number of at least 0", |std| std >= 0.0)?,
            gate_noise_std: fields.number(
                "gate_noise_std",
                default.gate_noise_std,
                "a number of at least 0",
                |std| std >= 0.0,
            )?,
            bias: fields.text("bias")?.unwrap_or(default.bias),
            target_modules: fields.target_modules()?,
            modules_to_save: fields.names("modules_to_save")?.unwrap_or_default(),
            task_type: fields.text("task_type")?,
            base_model_name_or_path: fields.text("base_model_name_or_path")?,
            extra: fields.object,
        })
    }

    /// The text of the `adapter_config.json`, its keys sorted as PEFT sorts them.
    pub fn to_json(&self) -> String {
        let mut object = self.extra.clone();
        let target_modules = match &self.target_modules {
            None => Value::Null,
            Some(TargetModules::Names(names)) => json!(names),
            Some(TargetModules::Pattern(pattern)) => json!(pattern),
        };
        let modules_to_save = if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) };
        if self.form == GateForm::Theta {
            for (key, value) in [
                ("target_sparsity", self.target_sparsity),
                ("sparsity_loss_weight", self.sparsity_loss_weight),
                ("gate_init_mean", self.gate_init_mean),
                ("gate_init_std", self.gate_init_std),
                ("gate_noise_std", self.gate_noise_std),
            ] {
                object.insert(key.to_owned(), json!(value));
            }
        }
        let peft_type = match self.form {
            GateForm::Theta => PEFT_TYPE,
            GateForm::Values => VALUES_TYPE,
        };
        for (key, value) in [
            ("peft_type", json!(peft_type)),
            ("bias", json!(self.bias)),
            ("target_modules", target_modules),
            ("modules_to_save", modules_to_save),
            ("task_type", json!(self.task_type)),
            ("base_model_name_or_path", json!(self.base_model_name_or_path)),
        ] {
            object.insert(key.to_owned(), value);
        }
        object.sort_keys();
        format!("{:#}\n", Value::Object(object))
    }
}

/// The object from which known keys are taken one by one; what remains is `extra`.
struct Fields<'p> {
    path: &'p Path,
    object: Map<String, Value>,
}

impl Fields<'_> {
    fn wrong(&self, field: &str, expected: &str, found: String) -> Error {
        Error::field(self.path, field, expected, found)
    }

    fn take(&mut self, field: &str) -> Option<Value> {
        self.object.shift_remove(field).filter(|value| !value.is_null())
    }

    fn number(&mut self, field: &str, default: f64, expected: &str, fits: fn(f64) -> bool) -> Result<f64, Error> {
        let Some(value) = self.take(field) else { return Ok(default) };
        let number = value.as_f64().filter(|number| number.is_finite() && fits(*number));
        number.ok_or_else(|| self.wrong(field, expected, shorten(&value.to_string())))
    }

    fn text(&mut self, field: &str) -> Result<Option<String>, Error> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(field, "a string", shorten(&other.to_string()))),
        }
    }

    fn names(&mut self, field: &str) -> Result<Option<Vec<String>>, Error> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let names = value
            .as_array()
            .map(|items| items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>());
        match names.flatten() {
            Some(names) => Ok(Some(names)),
            None => Err(self.wrong(field, "a list of names", shorten(&value.to_string()))),
        }
    }

    fn target_modules(&mut self) -> Result<Option<TargetModules>, Error> {
        if let Some(Value::String(_)) = self.object.get("target_modules") {
            return Ok(self.text("target_modules")?.map(TargetModules::Pattern));
        }
        Ok(self.names("target_modules")?.map(TargetModules::Names))
    }
}
