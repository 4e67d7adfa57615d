//! A corpus gives back its documents from every format, goes on from every place in it, and says where it is broken.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use finegates_data::{Corpus, CorpusOptions, CorpusReader, Cursor, Error, PIECE_BYTES, Piece, TextDocuments};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use proptest::prelude::*;
use tempfile::TempDir;

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    folder
}

fn options(folder: &Path, documents: TextDocuments) -> CorpusOptions {
    CorpusOptions { documents, ..CorpusOptions::new(vec![folder.to_owned()]) }
}

fn open(folder: &TempDir) -> Corpus {
    Corpus::open(&options(folder.path(), TextDocuments::File)).unwrap()
}

fn rest(mut reader: CorpusReader) -> Result<Vec<Piece>, Error> {
    let mut pieces = Vec::new();
    while let Some(piece) = reader.read()? {
        assert!(piece.text.len() <= PIECE_BYTES);
        pieces.push(piece);
    }
    Ok(pieces)
}

/// The documents, each put together from its pieces.
fn documents(pieces: &[Piece]) -> Vec<String> {
    let mut documents: Vec<String> = Vec::new();
    let mut ended = true;
    for piece in pieces {
        assert_eq!(piece.starts_document, ended);
        if ended {
            documents.push(String::new());
        }
        documents.last_mut().unwrap().push_str(&piece.text);
        ended = piece.ends_document;
    }
    assert!(ended);
    documents
}

fn read(folder: &TempDir) -> Vec<String> {
    documents(&rest(open(folder).read()).unwrap())
}

fn error(files: &[(&str, &[u8])]) -> String {
    let folder = folder(files);
    let corpus = Corpus::open(&options(folder.path(), TextDocuments::File));
    let error = corpus.and_then(|corpus| rest(corpus.read())).unwrap_err().to_string();
    error.replace(&format!("{}{}", folder.path().display(), std::path::MAIN_SEPARATOR), "")
}

/// Every cursor on the way leads to the rest, also by way of its JSON.
fn resumes_everywhere(corpus: &Corpus) -> Vec<Piece> {
    let all = rest(corpus.read()).unwrap();
    let mut reader = corpus.read();
    for given in 0..=all.len() {
        let saved = serde_json::to_string(&reader.cursor()).unwrap();
        let cursor: Cursor = serde_json::from_str(&saved).unwrap();
        let resumed = corpus.read_from(&cursor).unwrap();
        assert_eq!(resumed.cursor(), cursor);
        assert_eq!(rest(resumed).unwrap(), all[given..], "after {given} pieces: {cursor:?}");
        assert_eq!(reader.read().unwrap().as_ref(), all.get(given));
    }
    all
}

fn json_lines(texts: &[impl AsRef<str>]) -> Vec<u8> {
    let line = |text: &str| format!("{}\n", serde_json::json!({"id": 1, "text": text}));
    texts.iter().map(|text| line(text.as_ref())).collect::<String>().into_bytes()
}

/// Row groups of `group` rows; no text is a null.
fn parquet(texts: &[Option<&str>], group: usize) -> Vec<u8> {
    let schema = Arc::new(parse_message_type("message rows { optional binary text (UTF8); }").unwrap());
    let mut bytes = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(WriterProperties::default())).unwrap();
    for rows in texts.chunks(group) {
        let mut groups = writer.next_row_group().unwrap();
        let mut column = groups.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = rows.iter().filter_map(|text| text.map(ByteArray::from)).collect();
        let levels: Vec<i16> = rows.iter().map(|text| i16::from(text.is_some())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
        column.close().unwrap();
        groups.close().unwrap();
    }
    writer.close().unwrap();
    bytes
}

fn long(words: usize) -> String {
    (0..words).map(|word| format!("word{word} ")).collect()
}

#[test]
fn folders_are_walked_by_name_and_every_format_is_read() {
    let folder = folder(&[
        ("b.txt", b"\xef\xbb\xbffirst\r\n\r\nline\n"),
        ("a/2.jsonl", &json_lines(&["four", " ", "five"])),
        ("a/10.parquet", &parquet(&[Some("one"), Some(""), Some("two"), Some("three")], 3)),
        ("a/README.md", b"no document"),
        (".hidden.txt", b"no document"),
        ("B.text", b"zero"),
    ]);
    assert_eq!(read(&folder), ["zero", "one", "two", "three", "four", "five", "first\r\n\r\nline\n"]);
    let corpus = open(&folder);
    let names: Vec<&str> = corpus.files().iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["B.text", "a/10.parquet", "a/2.jsonl", "b.txt"]);
    resumes_everywhere(&corpus);
    let lines = Corpus::open(&options(folder.path(), TextDocuments::Line)).unwrap();
    assert_eq!(documents(&resumes_everywhere(&lines))[6..], ["first", "line"]);
}

#[test]
fn long_documents_come_in_pieces_that_end_at_words() {
    let (one, other) = (long(30_000), long(12_000));
    let both = format!("{one}\r\n\n{other}\n");
    let folder = folder(&[
        ("1.txt", both.as_bytes()),
        ("2.jsonl", &json_lines(&[&one, "short", &other])),
        ("3.parquet", &parquet(&[Some("short"), Some(&one), Some(&other)], 2)),
    ]);
    let corpus = open(&folder);
    let pieces = resumes_everywhere(&corpus);
    assert_eq!(documents(&pieces), [&both, &one, "short", &other, "short", &one, &other]);
    assert!(pieces.iter().all(|piece| piece.ends_document || !piece.text.ends_with(char::is_whitespace)));
    assert!(pieces.len() < 7 + corpus.size_bytes() as usize / (PIECE_BYTES - 16), "pieces are as long as they may be");
    let lines = Corpus::open(&options(&folder.path().join("1.txt"), TextDocuments::Line)).unwrap();
    assert_eq!(documents(&resumes_everywhere(&lines)), [one, other]);
}

#[test]
fn lines_of_about_a_piece_lose_nothing() {
    for length in PIECE_BYTES - 3..PIECE_BYTES + 6 {
        for end in ["\n", "\r\n", ""] {
            let line = "é".repeat(length / 2);
            let folder = folder(&[("a.txt", format!("{line}{end}{line}{end}next").as_bytes())]);
            let corpus = Corpus::open(&options(folder.path(), TextDocuments::Line)).unwrap();
            let found = documents(&rest(corpus.read()).unwrap());
            // A line end that is cut in two leaves its carriage return in the text.
            let found: Vec<&str> = found.iter().map(|line| line.trim_end_matches('\r')).collect();
            let expected = if end.is_empty() {
                vec![format!("{line}{line}next")]
            } else {
                vec![line.clone(), line, "next".to_owned()]
            };
            assert!(found == expected, "{length} {end:?}");
            let whole = rest(open(&folder).read()).unwrap();
            assert_eq!(documents(&whole)[0].len() as u64, corpus.size_bytes());
        }
    }
}

#[test]
fn what_is_broken_is_named_with_its_line() {
    let broken = error(&[("a.txt", b"one\ntwo\nth\xffree\n")]);
    assert_eq!(broken, "a.txt:3: the line is not UTF-8; mend it, or leave the file out of the corpus");
    let mut late = long(40_000).replace("word9 ", "word9\n").into_bytes();
    late.extend(b"\n\xc3");
    assert!(error(&[("a.txt", &late)]).starts_with("a.txt:3: the line is not UTF-8"));
    let broken = error(&[("a.jsonl", b"{\"text\": \"one\"}\n\n{\"content\": \"two\", \"id\": 1}\n")]);
    assert!(
        broken.starts_with("a.jsonl:3: no field \"text\"; the fields are \"content\", \"id\"; name the"),
        "{broken}"
    );
    assert!(error(&[("a.jsonl", b"{\"text\": null}")]).starts_with("a.jsonl:1: column \"text\": no value"));
    assert!(error(&[("a.jsonl", b"{\"text\": [1]}")]).contains("expected text or a number, found an array"));
    assert!(error(&[("a.jsonl", b"\n{\"text\": \"on")]).starts_with("a.jsonl:2: not a JSON object"));
    assert!(
        error(&[("a.parquet", &parquet(&[Some("one"), None], 2))])
            .starts_with("a.parquet:2: column \"text\": no value")
    );
    assert!(error(&[("a.parquet", b"PAR1 it is not")]).starts_with("a.parquet: "));
    assert!(error(&[("a.txt", b"")]).starts_with("a.txt: no rows; expected text; leave"));
    for (name, bytes) in [("a.txt", &b"\xef\xbb\xbf \n\n"[..]), ("a.jsonl", b"\n\n"), ("a.parquet", &parquet(&[], 1))] {
        let empty = error(&[(name, bytes), ("b.txt", b"text")]);
        assert!(empty.contains("no rows; expected at least one document"), "{empty}");
    }
    assert!(
        error(&[("a.csv", b"text\n"), ("b.md", b"")])
            .contains("expected .txt, .jsonl, .json or .parquet files, found \"a.csv\", \"b.md\"")
    );
    assert!(Corpus::open(&CorpusOptions::new(vec![])).is_err());
    let folder = folder(&[("a.csv", b"text\none\n"), ("a.parquet", &parquet(&[Some("one")], 1))]);
    let named = Corpus::open(&CorpusOptions::new(vec![folder.path().join("a.csv")])).unwrap_err();
    assert!(matches!(named, Error::NotACorpus { .. }), "{named}");
    let other = CorpusOptions { field: "content".to_owned(), ..options(folder.path(), TextDocuments::File) };
    let column = rest(Corpus::open(&other).unwrap().read()).unwrap_err().to_string();
    assert!(column.ends_with("no column \"content\"; the columns are \"text\""), "{column}");
}

#[test]
fn a_place_is_refused_in_another_corpus_and_where_there_is_none() {
    let files: [(&str, &[u8]); 3] =
        [("a.txt", b"one two"), ("b.jsonl", b"{\"text\": \"one\"}\n"), ("c.parquet", &parquet(&[Some("\u{e9}")], 1))];
    let here = folder(&files);
    let corpus = open(&here);
    let cursor = corpus.read().cursor();
    assert_eq!(open(&folder(&files)).fingerprint(), cursor.corpus, "the place on the disk does not matter");
    for other in [[("a.txt", &b"one twos"[..]), files[1], files[2]], [("d.txt", files[0].1), files[1], files[2]]] {
        let refused = open(&folder(&other)).read_from(&cursor).err().unwrap();
        assert!(refused.to_string().contains("expected 3 files of "), "{refused}");
    }
    let lines = Corpus::open(&options(here.path(), TextDocuments::Line)).unwrap();
    assert!(matches!(lines.read_from(&cursor), Err(Error::OtherCorpus { .. })));
    let refused = |change: &dyn Fn(&mut Cursor)| {
        let mut cursor = cursor.clone();
        change(&mut cursor);
        corpus.read_from(&cursor).err().map(|error| error.to_string()).unwrap()
    };
    assert!(refused(&|cursor| cursor.file = 3).contains("file: expected less than 3, found 3"));
    assert!(refused(&|cursor| cursor.position = 8).contains("position: expected at most 7 bytes, found 8"));
    assert!(refused(&|cursor| (cursor.file, cursor.position) = (1, u64::MAX)).contains("position"));
    assert!(refused(&|cursor| (cursor.file, cursor.within) = (1, 3)).contains("within"));
    assert!(refused(&|cursor| (cursor.file, cursor.position) = (2, 2)).contains("expected at least 2 rows, found 1"));
    assert!(refused(&|cursor| (cursor.file, cursor.within) = (2, 1)).contains("within"));
    std::fs::write(here.path().join("a.txt"), "shorter").unwrap();
    std::fs::write(here.path().join("b.jsonl"), "longer than it was").unwrap();
    let mut reader = corpus.read();
    assert!(reader.read().is_ok());
    assert!(matches!(reader.read(), Err(Error::ChangedFile { .. })));
}

#[test]
fn the_corpus_at_hand_is_read_to_the_byte() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/corpus");
    if !folder.is_dir() {
        let required = std::env::var_os("FINEGATES_REQUIRE_SHARED").is_some_and(|value| value == "1");
        assert!(!required, "FINEGATES_REQUIRE_SHARED is set and {} is missing", folder.display());
        eprintln!("skipped: {} is missing", folder.display());
        return;
    }
    let corpus = Corpus::open(&options(&folder, TextDocuments::File)).unwrap();
    let mut reader = corpus.read();
    let (mut bytes, mut documents, mut pieces) = (0, 0, 0);
    let mut middle = None;
    while let Some(piece) = reader.read().unwrap() {
        bytes += piece.text.len() as u64;
        documents += usize::from(piece.ends_document);
        pieces += 1;
        assert!(piece.ends_document || piece.text.len() > PIECE_BYTES - 1000, "cut far from the end");
        if bytes > corpus.size_bytes() / 2 && middle.is_none() {
            middle = Some((bytes, reader.cursor()));
        }
    }
    assert_eq!((bytes, documents), (corpus.size_bytes(), corpus.files().len()));
    let (half, cursor) = middle.unwrap();
    let left: u64 = rest(corpus.read_from(&cursor).unwrap()).unwrap().iter().map(|piece| piece.text.len() as u64).sum();
    assert_eq!(half + left, bytes);
    assert!(pieces < 1000, "{pieces} pieces");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_texts_come_back_and_resume(texts in prop::collection::vec(any::<String>(), 1..8), group in 1_usize..4) {
        let kept: Vec<String> = texts.iter().filter(|text| !text.trim().is_empty()).cloned().collect();
        prop_assume!(!kept.is_empty());
        let rows: Vec<Option<&str>> = texts.iter().map(|text| Some(text.as_str())).collect();
        let text = texts.concat();
        let folder = folder(&[
            ("1.jsonl", &json_lines(&texts)),
            ("2.parquet", &parquet(&rows, group)),
            ("3.txt", text.as_bytes()),
        ]);
        let mut expected = kept.clone();
        expected.extend(kept);
        expected.push(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned());
        prop_assert_eq!(documents(&resumes_everywhere(&open(&folder))), expected);
    }

    #[test]
    fn any_bytes_are_text_or_an_error(bytes in prop::collection::vec(any::<u8>(), 1..200), lines: bool) {
        let folder = folder(&[("a.txt", &bytes)]);
        let documents = if lines { TextDocuments::Line } else { TextDocuments::File };
        let corpus = Corpus::open(&options(folder.path(), documents)).unwrap();
        prop_assert_eq!(rest(corpus.read()).is_ok(), std::str::from_utf8(&bytes).is_ok_and(|text| {
            !text.trim_start_matches('\u{feff}').trim().is_empty()
        }));
    }
}
