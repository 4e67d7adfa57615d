//! `finegates predict`: texts in, labels and scores out, in their order, as a stream of constant memory.

use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use finegates_data::{Format, TextRow, TextRows};
use finegates_infer::{Answer, Engine, Error, Outcome, Text};
use serde_json::{Map, Value, json};

use self::ahead::Ahead;
use super::model::{ModelArguments, TextColumns};
use crate::arguments::Common;
use crate::output::{note, stdout_error};

mod ahead;

const EXAMPLES: &str = "\
Examples:
  echo \"a gripping film\" | finegates predict models/sst2
  finegates predict models/sst2 reviews.txt > answers.jsonl
  finegates predict models/mrpc pairs.csv --text first --text-pair second --output-format tsv
  zcat texts.jsonl.gz | finegates predict models/mine --format jsonl --with-text

Each answer is a JSON object on a line, with the line its text began on, in the input's order:
  {\"line\":1,\"label\":\"positive\",\"score\":0.998,\"scores\":{\"negative\":0.002,\"positive\":0.998}}
A regression gives {\"line\":1,\"value\":3.42}.";

/// Answer texts from a file or standard input: a label and scores for each, or a number
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct PredictArguments {
    /// A model with a task head: a run, a compact model, a fine-tuned checkpoint
    model: String,
    /// The texts: a file, or - for standard input
    #[arg(default_value = "-")]
    input: PathBuf,
    /// How the texts are laid out [default: as the file's name tells; a text a line on standard input]
    #[arg(long, value_name = "FORMAT", help = FORMAT_HELP)]
    format: Option<Format>,
    #[command(flatten)]
    columns: TextColumns,
    /// Pass over rows that cannot be read, and say which on standard error
    #[arg(long)]
    skip_bad_rows: bool,
    /// How answers are laid out
    #[arg(long, value_name = "FORMAT", default_value = "jsonl")]
    output_format: AnswerFormat,
    /// Repeat the text in its answer
    #[arg(long)]
    with_text: bool,
    #[command(flatten)]
    model_options: ModelArguments,
}

const FORMAT_HELP: &str = "How the texts are laid out: csv, tsv, jsonl, parquet or lines [default: as the file's name tells; \
                           lines on standard input]";

/// How answers are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AnswerFormat {
    /// A JSON object a line
    Jsonl,
    /// Tabs between columns, with a header
    Tsv,
}

/// Counts for the closing note.
#[derive(Default)]
struct Counts {
    answered: u64,
    truncated: u64,
    skipped: u64,
}

/// Runs the command.
pub fn run(arguments: &PredictArguments, common: &Common) -> anyhow::Result<()> {
    let mut rows = open(arguments)?;
    let engine = arguments.model_options.load(&arguments.model, false, common)?;
    let format = if common.json { AnswerFormat::Jsonl } else { arguments.output_format };
    let mut writer = Writer { format, with_text: arguments.with_text, out: BufWriter::new(std::io::stdout().lock()) };
    writer.header(&engine).map_err(stdout_error)?;
    let mut rows = Ahead::new(move || rows.read().transpose());
    let mut counts = Counts::default();
    let answered = answer_all(&engine, &mut rows, arguments, &mut writer, &mut counts);
    writer.out.flush().map_err(stdout_error)?;
    answered?;
    if counts.truncated > 0 {
        let (longest, texts) = (engine.maximum_length(), counts.answered);
        note(&format!("note: {} of {texts} texts were longer than {longest} tokens and were cut", counts.truncated));
    }
    if counts.skipped > 0 {
        note(&format!("note: {} rows were passed over", counts.skipped));
    }
    Ok(())
}

fn open(arguments: &PredictArguments) -> anyhow::Result<TextRows> {
    let columns = arguments.columns.choice(None);
    let stdin = arguments.input.as_os_str() == "-";
    let format = match arguments.format {
        Some(format) => format,
        None if stdin => Format::Lines,
        None => format_of(&arguments.input)?,
    };
    let named = [("--text", &columns.text), ("--text-pair", &columns.pair)];
    if let (Format::Lines, Some((flag, _))) = (format, named.iter().find(|(_, column)| column.is_some())) {
        let (input, formats) =
            (name(arguments), if stdin { "csv, tsv or jsonl" } else { "csv, tsv, jsonl or parquet" });
        anyhow::bail!("{flag} names a column, but {input} is read as a text a line; add --format {formats}");
    }
    if !stdin {
        return Ok(TextRows::open(&arguments.input, Some(format), &columns)?);
    }
    let source = Box::new(BufReader::with_capacity(1 << 16, std::io::stdin()));
    Ok(TextRows::from_reader(source, Path::new(&name(arguments)), format, &columns)?)
}

/// The format that a file's name tells.
fn format_of(path: &Path) -> anyhow::Result<Format> {
    if let Err(source) = std::fs::metadata(path) {
        return Err(finegates_data::Error::Io { path: path.to_owned(), source }.into());
    }
    Format::from_path(path)
        .map_err(|error| anyhow::anyhow!("{error}; or say what it is with --format csv, tsv, jsonl, parquet or lines"))
}

/// The input as messages call it.
fn name(arguments: &PredictArguments) -> String {
    match arguments.input.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => arguments.input.display().to_string(),
    }
}

fn answer_all(
    engine: &Engine,
    rows: &mut Ahead,
    arguments: &PredictArguments,
    writer: &mut Writer<impl Write>,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    let input = name(arguments);
    while let Some(group) = rows.group() {
        let mut together = Vec::with_capacity(group.len());
        let mut problem = None;
        for row in group {
            match row {
                Ok(Ok(row)) => together.push(row),
                Ok(Err(broken)) if arguments.skip_bad_rows => {
                    note(&format!("passed over: {broken}"));
                    counts.skipped += 1;
                }
                Ok(Err(broken)) => {
                    problem =
                        Some(anyhow::anyhow!("{broken}\nmend the row, or pass over such rows with --skip-bad-rows"));
                    break;
                }
                Err(error) => {
                    problem = Some(error.into());
                    break;
                }
            }
        }
        answer(engine, &together, &input, writer, counts)?;
        if let Some(problem) = problem {
            return Err(problem);
        }
    }
    Ok(())
}

fn answer(
    engine: &Engine,
    rows: &[TextRow],
    input: &str,
    writer: &mut Writer<impl Write>,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    let texts: Vec<Text<'_>> = rows.iter().map(|row| Text { text: &row.text, pair: row.pair.as_deref() }).collect();
    let answers = engine.predict(&texts).map_err(|error| at(error, |text| format!("{input}:{}", rows[text].line)))?;
    for (row, answer) in rows.iter().zip(answers) {
        writer.answer(engine, row, &answer).map_err(stdout_error)?;
        counts.answered += 1;
        counts.truncated += u64::from(answer.truncated);
    }
    writer.out.flush().map_err(stdout_error)
}

/// An error of one of the texts given together, with the place that text has for the user.
pub fn at(error: Error, place: impl Fn(usize) -> String) -> anyhow::Error {
    match error {
        Error::Text { text, source } => anyhow::anyhow!("{}: {source}", place(text)),
        Error::NotFinite { path, text } => {
            let (place, model) = (place(text), path.display());
            anyhow::anyhow!("{place}: the output of {model} is not finite for this text; did its training diverge?")
        }
        other => other.into(),
    }
}

/// Writes answers in either form.
struct Writer<W: Write> {
    format: AnswerFormat,
    with_text: bool,
    out: W,
}

impl<W: Write> Writer<W> {
    fn header(&mut self, engine: &Engine) -> std::io::Result<()> {
        if self.format == AnswerFormat::Jsonl {
            return Ok(());
        }
        let mut names = vec!["line".to_owned()];
        match engine.regression() {
            true => names.push("value".to_owned()),
            false => {
                names.extend(["label".to_owned(), "score".to_owned()]);
                names.extend(engine.labels().map(plain));
            }
        }
        if self.with_text {
            names.extend(["text".to_owned(), "text_pair".to_owned()]);
        }
        writeln!(self.out, "{}", names.join("\t"))
    }

    fn answer(&mut self, engine: &Engine, row: &TextRow, answer: &Answer) -> std::io::Result<()> {
        match self.format {
            AnswerFormat::Jsonl => {
                let object = self.object(engine, row, answer);
                serde_json::to_writer(&mut self.out, &object)?;
                self.out.write_all(b"\n")
            }
            AnswerFormat::Tsv => writeln!(self.out, "{}", self.cells(row, answer).join("\t")),
        }
    }

    fn object(&self, engine: &Engine, row: &TextRow, answer: &Answer) -> Value {
        let mut object = Map::new();
        object.insert("line".to_owned(), json!(row.line));
        if self.with_text {
            object.insert("text".to_owned(), json!(row.text));
            if let Some(pair) = &row.pair {
                object.insert("text_pair".to_owned(), json!(pair));
            }
        }
        match &answer.outcome {
            Outcome::Value(value) => {
                object.insert("value".to_owned(), number(*value));
            }
            Outcome::Class { label, scores, .. } => {
                let named = engine.labels().zip(scores).map(|(name, score)| (name.to_owned(), number(*score)));
                object.insert("label".to_owned(), json!(**label));
                object.insert("score".to_owned(), number(answer.score()));
                object.insert("scores".to_owned(), Value::Object(named.collect()));
            }
        }
        Value::Object(object)
    }

    fn cells(&self, row: &TextRow, answer: &Answer) -> Vec<String> {
        let mut cells = vec![row.line.to_string()];
        match &answer.outcome {
            Outcome::Value(value) => cells.push(value.to_string()),
            Outcome::Class { label, scores, .. } => {
                cells.extend([plain(label), answer.score().to_string()]);
                cells.extend(scores.iter().map(f32::to_string));
            }
        }
        if self.with_text {
            cells.extend([plain(&row.text), row.pair.as_deref().map(plain).unwrap_or_default()]);
        }
        cells
    }
}

/// A number with the digits it needs as f32, not those of its f64.
fn number(value: f32) -> Value {
    json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
}

/// A text without the characters that end a cell or a row.
fn plain(text: &str) -> String {
    text.replace(['\t', '\n', '\r'], " ")
}
