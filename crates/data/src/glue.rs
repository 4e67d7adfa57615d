//! The tasks of GLUE: what their columns and labels are called in GLUE's own files and on the Hugging Face hub.
//!
//! Wang et al., *GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding* (2019).

use serde::{Deserialize, Serialize};

/// A task of GLUE with a training set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GlueTask {
    /// Linguistic acceptability; one sentence, two classes, Matthews correlation.
    Cola,
    /// Sentiment; one sentence, two classes, accuracy.
    Sst2,
    /// Paraphrases in news; two sentences, two classes, accuracy and F1.
    Mrpc,
    /// Similarity; two sentences, a score from 0 to 5, Pearson and Spearman correlation.
    Stsb,
    /// Duplicate questions; two questions, two classes, accuracy and F1.
    Qqp,
    /// Inference; two sentences, three classes, accuracy on matched and mismatched genres apart.
    Mnli,
    /// Does the sentence answer the question; two classes, accuracy.
    Qnli,
    /// Inference; two sentences, two classes, accuracy.
    Rte,
    /// Winograd sentences as inference; two classes, accuracy.
    Wnli,
}

impl GlueTask {
    /// All tasks, in GLUE's order.
    pub const ALL: [GlueTask; 9] = [
        GlueTask::Cola,
        GlueTask::Sst2,
        GlueTask::Mrpc,
        GlueTask::Stsb,
        GlueTask::Qqp,
        GlueTask::Mnli,
        GlueTask::Qnli,
        GlueTask::Rte,
        GlueTask::Wnli,
    ];

    /// The name used on the command line and in recipes.
    pub fn name(self) -> &'static str {
        match self {
            GlueTask::Cola => "cola",
            GlueTask::Sst2 => "sst2",
            GlueTask::Mrpc => "mrpc",
            GlueTask::Stsb => "stsb",
            GlueTask::Qqp => "qqp",
            GlueTask::Mnli => "mnli",
            GlueTask::Qnli => "qnli",
            GlueTask::Rte => "rte",
            GlueTask::Wnli => "wnli",
        }
    }

    /// The folder GLUE's archives unpack to.
    pub fn folder(self) -> &'static str {
        match self {
            GlueTask::Cola => "CoLA",
            GlueTask::Sst2 => "SST-2",
            GlueTask::Mrpc => "MRPC",
            GlueTask::Stsb => "STS-B",
            GlueTask::Qqp => "QQP",
            GlueTask::Mnli => "MNLI",
            GlueTask::Qnli => "QNLI",
            GlueTask::Rte => "RTE",
            GlueTask::Wnli => "WNLI",
        }
    }

    /// The classes in the order of their numbers; none for the one regression task.
    pub fn labels(self) -> Option<&'static [&'static str]> {
        match self {
            GlueTask::Cola => Some(&["unacceptable", "acceptable"]),
            GlueTask::Sst2 => Some(&["negative", "positive"]),
            GlueTask::Mrpc => Some(&["not_equivalent", "equivalent"]),
            GlueTask::Stsb => None,
            GlueTask::Qqp => Some(&["not_duplicate", "duplicate"]),
            GlueTask::Mnli => Some(&["entailment", "neutral", "contradiction"]),
            GlueTask::Qnli | GlueTask::Rte => Some(&["entailment", "not_entailment"]),
            GlueTask::Wnli => Some(&["not_entailment", "entailment"]),
        }
    }

    /// Names of the text column and of the second text's column, GLUE's own first.
    pub(crate) fn text_columns(self) -> &'static [(&'static str, Option<&'static str>)] {
        match self {
            GlueTask::Cola | GlueTask::Sst2 => &[("sentence", None), ("text", None)],
            GlueTask::Mrpc => &[("#1 String", Some("#2 String")), ("sentence1", Some("sentence2"))],
            GlueTask::Qqp => &[("question1", Some("question2")), ("sentence1", Some("sentence2"))],
            GlueTask::Mnli => &[("sentence1", Some("sentence2")), ("premise", Some("hypothesis"))],
            GlueTask::Qnli => &[("question", Some("sentence")), ("sentence1", Some("sentence2"))],
            GlueTask::Stsb | GlueTask::Rte | GlueTask::Wnli => &[("sentence1", Some("sentence2"))],
        }
    }

    /// Names of the label column, GLUE's own first.
    pub(crate) fn label_columns(self) -> &'static [&'static str] {
        match self {
            GlueTask::Cola | GlueTask::Sst2 | GlueTask::Qnli | GlueTask::Rte | GlueTask::Wnli => &["label"],
            GlueTask::Mrpc => &["Quality", "label"],
            GlueTask::Stsb => &["score", "label"],
            GlueTask::Qqp => &["is_duplicate", "label"],
            GlueTask::Mnli => &["gold_label", "label"],
        }
    }

    /// The columns of a file without a header: GLUE ships CoLA so.
    pub(crate) fn columns_without_header(self, first_row: &[String]) -> Option<&'static [&'static str]> {
        let headerless = self == GlueTask::Cola && first_row.len() == 4 && matches!(first_row[1].as_str(), "0" | "1");
        headerless.then_some(&["source", "label", "annotation", "sentence"])
    }
}

impl std::fmt::Display for GlueTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for GlueTask {
    type Err = String;

    fn from_str(name: &str) -> Result<GlueTask, String> {
        let plain = name.to_ascii_lowercase().replace(['-', '_'], "");
        GlueTask::ALL.into_iter().find(|task| task.name() == plain).ok_or_else(|| {
            let known = GlueTask::ALL.map(GlueTask::name).join(", ");
            format!("unknown task {name:?}; the tasks are {known}; for other data leave it out and name the columns")
        })
    }
}
