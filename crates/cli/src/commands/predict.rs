//! `finegates predict`: texts in, labels and scores out, in their order, as a stream of constant memory.

use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};

use clap::{Args, ValueEnum};
use finegates_data::{BrokenRow, Format, TextRow, TextRows};
use finegates_infer::{Answer, Engine, Outcome, Text};
use serde_json::{Map, Value, json};

use super::model::{ModelArguments, TextColumns};
use crate::arguments::Common;
use crate::output::{note, stdout_error};

/// Most rows that are answered together. Fewer are when no more are there yet, so that a slow source is answered at once.
const ROWS_TOGETHER: usize = 256;

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

type Row = Result<Result<TextRow, BrokenRow>, finegates_data::Error>;

/// Runs the command.
pub fn run(arguments: &PredictArguments, common: &Common) -> anyhow::Result<()> {
    let rows = open(arguments)?;
    let engine = arguments.model_options.load(&arguments.model, false, common)?;
    let format = if common.json { AnswerFormat::Jsonl } else { arguments.output_format };
    let mut writer = Writer { format, with_text: arguments.with_text, out: BufWriter::new(std::io::stdout().lock()) };
    writer.header(&engine).map_err(stdout_error)?;
    let rows = read_ahead(rows);
    let mut counts = Counts::default();
    let answered = answer_all(&engine, &rows, arguments.skip_bad_rows, &mut writer, &mut counts);
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
    if arguments.input.as_os_str() != "-" {
        return Ok(TextRows::open(&arguments.input, arguments.format, &columns)?);
    }
    let format = match (&arguments.format, &columns.text) {
        (Some(format), _) => *format,
        (None, None) => Format::Lines,
        (None, Some(_)) => anyhow::bail!(
            "--text names a column, but standard input is read as a text a line; add --format csv, tsv or jsonl"
        ),
    };
    let source = Box::new(BufReader::with_capacity(1 << 16, std::io::stdin()));
    Ok(TextRows::from_reader(source, Path::new("standard input"), format, &columns)?)
}

/// Reads rows on a thread of their own, a bounded number ahead.
fn read_ahead(mut rows: TextRows) -> Receiver<Row> {
    let (sender, receiver) = sync_channel(2 * ROWS_TOGETHER);
    std::thread::spawn(move || {
        loop {
            let row = match rows.read() {
                Ok(None) => return,
                Ok(Some(row)) => Ok(row),
                Err(error) => Err(error),
            };
            let ended = row.is_err();
            if sender.send(row).is_err() || ended {
                return;
            }
        }
    });
    receiver
}

fn answer_all(
    engine: &Engine,
    rows: &Receiver<Row>,
    skip_bad_rows: bool,
    writer: &mut Writer<impl Write>,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    let mut together = Vec::with_capacity(ROWS_TOGETHER);
    while let Ok(first) = rows.recv() {
        let mut problem = None;
        for row in std::iter::once(first).chain(rows.try_iter().take(ROWS_TOGETHER - 1)) {
            match row {
                Ok(Ok(row)) => together.push(row),
                Ok(Err(broken)) if skip_bad_rows => {
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
        answer(engine, &together, writer, counts)?;
        together.clear();
        if let Some(problem) = problem {
            return Err(problem);
        }
    }
    Ok(())
}

fn answer(
    engine: &Engine,
    rows: &[TextRow],
    writer: &mut Writer<impl Write>,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    let texts: Vec<Text<'_>> = rows.iter().map(|row| Text { text: &row.text, pair: row.pair.as_deref() }).collect();
    for (row, answer) in rows.iter().zip(engine.predict(&texts)?) {
        writer.answer(engine, row, &answer).map_err(stdout_error)?;
        counts.answered += 1;
        counts.truncated += u64::from(answer.truncated);
    }
    writer.out.flush().map_err(stdout_error)
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
