//! Texts as they come from the field: byte order marks, UTF-16, nulls, tables, every codec of parquet, folders of datasets;
//! and what is no text, or unpacks to more than any text.

use crate::support::{fixture, says, scratch, small_folder, small_model};
use cltlab::candle::Device;
use cltlab::clt::CltLoadConfig;
use cltlab::eval::{evaluate, EvalConfig};
use cltlab::model::LoadConfig;
use cltlab::text::{ChatConfig, TextConfig};
use cltlab::{Clt, Corpus, ErrorKind, Model, Tokenizer};
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
use std::io::Write;
use std::path::Path;

fn texts(path: &Path) -> Vec<String> {
    Corpus::load(path, &Default::default()).unwrap_or_else(|error| panic!("{error}")).texts().to_vec()
}

fn wide(text: &str, unit: usize, little: bool) -> Vec<u8> {
    let values: Vec<u32> = if unit == 2 { text.encode_utf16().map(u32::from).collect() } else { text.chars().map(u32::from).collect() };
    values.into_iter().flat_map(|value| if little { value.to_le_bytes()[..unit].to_vec() } else { value.to_be_bytes()[4 - unit..].to_vec() }).collect()
}

/// The same text in each encoding, with a mark and, where it can be told, without.
fn encodings(text: &str) -> Vec<(String, Vec<u8>)> {
    let mut all = vec![("utf8".to_string(), text.as_bytes().to_vec()), ("utf8 mark".to_string(), format!("\u{feff}{text}").into_bytes())];
    for (unit, little) in [(2, true), (2, false), (4, true), (4, false)] {
        all.push((format!("utf{} {little} mark", unit * 8), wide(&format!("\u{feff}{text}"), unit, little)));
        if unit == 2 {
            all.push((format!("utf16 {little}"), wide(text, unit, little)));
        }
    }
    all
}

#[test]
fn marks_and_wide_units_are_no_part_of_a_text() {
    let folder = scratch("encodings");
    let text = "One café, 🦀 and more.\r\nSecond line.\n\n\nAnother document.";
    let lines = "{\"text\": \"One café 🦀\"}\n{\"text\": null}\n\"Two\"\n";
    for (what, bytes) in encodings(text) {
        let path = folder.join("a.txt");
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(texts(&path), ["One café, 🦀 and more.\nSecond line.", "Another document."], "{what}");
    }
    for (what, bytes) in encodings(lines) {
        let path = folder.join("b.jsonl.gz");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gz.write_all(&bytes).unwrap();
        std::fs::write(&path, gz.finish().unwrap()).unwrap();
        assert_eq!(texts(&path), ["One café 🦀", "Two"], "{what}");
    }
    for (what, bytes) in encodings("[{\"text\": \"One\"}, null, \"Two\"]") {
        let path = folder.join("c.json");
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(texts(&path), ["One", "Two"], "{what}");
    }
    // Cut within a character, and half of a pair.
    for (bytes, word) in [(vec![0xFF, 0xFE, b'a', 0, b'b'], "ends within"), (vec![0xFF, 0xFE, 0x00, 0xD8, b'b', 0], "surrogate")] {
        let path = folder.join("d.txt");
        std::fs::write(&path, bytes).unwrap();
        says(&Corpus::load(&path, &Default::default()).unwrap_err(), ErrorKind::BadFile, &["d.txt", "UTF-16", word]);
    }
    std::fs::write(folder.join("e.txt"), b"caf\xe9 in Latin-1").unwrap();
    assert_eq!(texts(&folder.join("e.txt")), ["café in Latin-1"]);
    // Files that were joined each keep their mark.
    std::fs::write(folder.join("f.jsonl"), "\u{feff}\"One\"\n\u{feff}\"Two\"\n").unwrap();
    assert_eq!(texts(&folder.join("f.jsonl")), ["One", "Two"]);
}

/// A model's and a CLT's files in UTF-16 and with a mark.
#[test]
fn marks_in_configurations() {
    let folder = scratch("encodings-model");
    for name in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(small_folder().join(name), folder.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(small_folder().join("config.json")).unwrap();
    for (what, bytes) in encodings(&config) {
        std::fs::write(folder.join("config.json"), bytes).unwrap();
        assert_eq!(Model::load(&folder, &LoadConfig::on(&Device::Cpu)).unwrap_or_else(|error| panic!("{what}: {error}")).layers(), 3);
    }
    let clt = scratch("encodings-clt");
    for entry in std::fs::read_dir(fixture("attribution/llama/clt")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, clt.join(path.file_name().unwrap())).unwrap();
    }
    let yaml = std::fs::read_to_string(clt.join("config.yaml")).unwrap();
    for (what, bytes) in encodings(&yaml) {
        std::fs::write(clt.join("config.yaml"), bytes).unwrap();
        assert_eq!(Clt::load(&clt, &CltLoadConfig::on(&Device::Cpu)).unwrap_or_else(|error| panic!("{what}: {error}")).layers(), 3);
    }
    let tokenizer = scratch("encodings-tokenizer");
    std::fs::copy(small_folder().join("tokenizer.json"), tokenizer.join("tokenizer.json")).unwrap();
    for (what, bytes) in encodings("{{ messages[0].content }}!") {
        std::fs::write(tokenizer.join("chat_template.jinja"), bytes).unwrap();
        let read = Tokenizer::from_file(tokenizer.join("tokenizer.json")).unwrap();
        assert_eq!(read.chat(&[("user", "hi")], &ChatConfig { generation_prompt: false, ..ChatConfig::default() }).unwrap(), "hi!", "{what}");
    }
}

#[test]
fn tables_are_read_by_their_field() {
    let folder = scratch("tables");
    let path = folder.join("a.csv");
    let load = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Corpus::load(&path, &Default::default())
    };
    let table = "id,text,more\r\n1,\"One, \"\"quoted\"\"\nsecond line\",x\r\n2,Two,\r\n3,,y\r\n\r\n4,\"Four\",\"\"\r\n";
    let want = ["One, \"quoted\"\nsecond line", "Two", "Four"];
    assert_eq!(load(table).unwrap().texts(), want);
    assert_eq!(load(&format!("\u{feff}{}", table.trim_end())).unwrap().texts(), want);
    std::fs::write(folder.join("b.tsv"), "text\tid\nOne, two\t1\n").unwrap();
    assert_eq!(texts(&folder.join("b.tsv")), ["One, two"]);
    let few = TextConfig { max_bytes: Some(1), ..TextConfig::default() };
    load("text\nOne\nTwo\n").unwrap();
    assert_eq!(Corpus::load(&path, &few).unwrap().texts(), ["One"]);
    says(&load("id,content\n1,One\n").unwrap_err(), ErrorKind::BadFile, &["a.csv line 1", "id, content", "'text'", "TextConfig::field"]);
    says(&load("id,text\n1,One\n2,Two,three\n").unwrap_err(), ErrorKind::BadFile, &["a.csv line 3", "3 fields", "2"]);
    says(&load("text\n\"One\n").unwrap_err(), ErrorKind::BadFile, &["line 2", "not closed"]);
    says(&load("text\n\"One\" two\n").unwrap_err(), ErrorKind::BadFile, &["line 2", "closing quote"]);
    says(&load("text,text\nOne,Two\n").unwrap_err(), ErrorKind::BadFile, &["several fields 'text'"]);
    says(&load("text\n").unwrap_err(), ErrorKind::BadInput, &["no text"]);
}

/// A parquet file of one column: its declaration, its values (`None` is null), its codec.
pub fn parquet(path: &Path, column: &str, values: &[Option<&[u8]>], compression: Compression) {
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(&format!("message doc {{ {column}; }}")).unwrap());
    let properties = WriterProperties::builder().set_compression(compression).build();
    let mut writer = SerializedFileWriter::new(std::fs::File::create(path).unwrap(), schema, properties.into()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut writing = group.next_column().unwrap().unwrap();
    let bytes: Vec<ByteArray> = values.iter().flatten().map(|value| ByteArray::from(value.to_vec())).collect();
    let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
    writing.typed::<ByteArrayType>().write_batch(&bytes, Some(&levels), None).unwrap();
    writing.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_in_every_codec_and_with_nulls() {
    let path = scratch("parquet-codecs").join("a.parquet");
    let codecs = [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::GZIP(GzipLevel::default()), Compression::BROTLI(BrotliLevel::default()), Compression::LZ4, Compression::LZ4_RAW, Compression::ZSTD(ZstdLevel::default())];
    for codec in codecs {
        parquet(&path, "optional binary text (UTF8)", &[Some(b"One."), None, Some("Zwei 🦀".as_bytes())], codec);
        assert_eq!(texts(&path), ["One.", "Zwei 🦀"], "{codec:?}");
    }
    let long = vec![7u8; 5000];
    parquet(&path, "optional binary text", &[Some(&long)], Compression::SNAPPY);
    let error = Corpus::load(&path, &Default::default()).unwrap_err();
    says(&error, ErrorKind::BadFile, &["a.parquet", "'text'", "BYTE_ARRAY", "not declared as text"]);
    assert!(error.to_string().len() < 400, "{error}");
}

#[test]
fn folders_are_read_as_datasets_are() {
    let folder = scratch("dataset");
    std::fs::create_dir_all(folder.join("sub/deeper")).unwrap();
    std::fs::create_dir_all(folder.join(".cache")).unwrap();
    for (name, text) in [("README.md", "About."), ("b.txt", "B."), ("sub/a.txt", "A."), ("sub/deeper/c.jsonl", "\"C.\"\n"), (".cache/x.txt", "X."), ("dataset_info.json", "{}"), ("code.py", "import"), ("z.csv", "text\nZ.\n")] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    // Links that lead back end nothing and double nothing.
    for n in 0..60 {
        std::os::unix::fs::symlink(&folder, folder.join(format!("loop{n}"))).unwrap();
        std::os::unix::fs::symlink("..", folder.join(format!("sub/up{n}"))).unwrap();
    }
    assert_eq!(texts(&folder), ["B.", "A.", "C.", "Z."]);
    assert_eq!(texts(&folder.join("README.md")), ["About."]);
    let empty = scratch("dataset-empty");
    std::fs::write(empty.join("README.md"), "About.").unwrap();
    says(&Corpus::load(&empty, &Default::default()).unwrap_err(), ErrorKind::BadInput, &["README.md", ".jsonl"]);
}

#[test]
fn what_is_no_text_is_refused_shortly() {
    let folder = scratch("no-text");
    let mut numbers = vec![0xFFu8, 0xFF, 0xFF, 0xFF];
    numbers.extend((0..4000u32).flat_map(u32::to_le_bytes));
    let zip = [&b"PK\x03\x04"[..], &[0; 60]].concat();
    let cases: [(&str, &[u8], &str); 8] = [
        ("a.arrow", b"ARROW1\0\0\xff\xff\xff\xff", "an Arrow file"),
        ("data-00000-of-00001.arrow", &numbers, "an Arrow stream"),
        ("b.txt", &zip, "a zip file"),
        ("c.txt", b"\x1f\x8b\x08\0\0\0\0\0", "a gzip file under another name"),
        ("d.bin", &[1; 3000], "not"),
        ("e.jsonl", b"PAR1\0\0\0\0", "a parquet file under another name"),
        ("f.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
        ("g.txt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    ];
    for (name, bytes, word) in cases {
        std::fs::write(folder.join(name), bytes).unwrap();
        let error = match Corpus::load(folder.join(name), &Default::default()) {
            Err(error) => error,
            // Control characters alone are text in UTF-8.
            Ok(_) if name == "d.bin" => continue,
            Ok(_) => panic!("{name}: taken for text"),
        };
        says(&error, ErrorKind::BadFile, &[name, word]);
        assert!(error.to_string().len() < 400, "{error}");
    }
    std::fs::write(folder.join("h.txt"), [&[0xE9, 1, 2][..], b"text"].concat()).unwrap();
    says(&Corpus::load(folder.join("h.txt"), &Default::default()).unwrap_err(), ErrorKind::BadFile, &["h.txt", "0x01"]);
}

/// Megabytes that unpack to gigabytes, as files, as one line, and as one text of a dictionary over and over.
#[test]
fn what_unpacks_without_end_is_refused() {
    let folder = scratch("bombs");
    let few = TextConfig { max_bytes: Some(100), ..TextConfig::default() };
    let block = vec![b'a'; 1 << 20];
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..300 {
        gz.write_all(&block).unwrap();
    }
    std::fs::write(folder.join("a.txt.gz"), gz.finish().unwrap()).unwrap();
    let line = [b"{\"text\": \"", &block.repeat(100)[..]].concat();
    std::fs::write(folder.join("b.jsonl.zst"), zstd::bulk::compress(&line, 1).unwrap()).unwrap();
    drop(line);
    for name in ["a.txt.gz", "b.jsonl.zst"] {
        says(&Corpus::load(folder.join(name), &Default::default()).unwrap_err(), ErrorKind::BadFile, &[name, "100 times"]);
    }
    says(&Corpus::load(folder.join("b.jsonl.zst"), &few).unwrap_err(), ErrorKind::BadFile, &["b.jsonl.zst"]);
    let cut = Corpus::load(folder.join("a.txt.gz"), &few);
    assert!(cut.is_err() || cut.is_ok_and(|corpus| corpus.bytes() <= (64 << 20) + 100));
    let text = vec![b'x'; 100_000];
    let values: Vec<Option<&[u8]>> = vec![Some(&text); 5000];
    let path = folder.join("c.parquet");
    parquet(&path, "optional binary text (UTF8)", &values, Compression::SNAPPY);
    assert!(std::fs::metadata(&path).unwrap().len() < 200_000);
    says(&Corpus::load(&path, &Default::default()).unwrap_err(), ErrorKind::BadFile, &["c.parquet", "100 times", "max_bytes"]);
    assert_eq!(Corpus::load(&path, &few).unwrap().documents(), 1);
    // A page of one byte over and over, by each codec that packs it so far.
    let long = vec![b'y'; 90 << 20];
    for codec in [Compression::GZIP(GzipLevel::default()), Compression::BROTLI(BrotliLevel::try_new(2).unwrap()), Compression::ZSTD(ZstdLevel::default())] {
        parquet(&path, "optional binary text (UTF8)", &[Some(&long)], codec);
        says(&Corpus::load(&path, &Default::default()).unwrap_err(), ErrorKind::BadFile, &["c.parquet", "unpacks to"]);
    }
    // Many small values of an array are not kept.
    std::fs::write(folder.join("d.json"), format!("[{}null]", "null,".repeat(2_000_000))).unwrap();
    says(&Corpus::load(folder.join("d.json"), &Default::default()).unwrap_err(), ErrorKind::BadInput, &["no text"]);
}

#[test]
fn values_of_other_types_are_named() {
    let path = scratch("json-types").join("a.jsonl");
    for (line, words) in [("{\"text\": 3}", ["a number", "'text'"]), ("{\"text\": [1]}", ["a list", "'text'"]), ("{\"text\": {\"text\": \"a\"}}", ["an object", "'text'"]), ("true", ["true or false", "'text'"]), ("{\"a\": \"b\", \"c\": 1}", ["a, c", "'text'"])] {
        std::fs::write(&path, format!("\"One\"\n{line}\n")).unwrap();
        says(&Corpus::load(&path, &Default::default()).unwrap_err(), ErrorKind::BadFile, &["a.jsonl line 2", words[0], words[1]]);
    }
    let many: Vec<String> = (0..1000).map(|n| format!("\"field{n}\": 0")).collect();
    std::fs::write(&path, format!("{{{}}}\n", many.join(", "))).unwrap();
    let error = Corpus::load(&path, &Default::default()).unwrap_err();
    assert!(error.to_string().len() < 400 && error.to_string().contains("990 more"), "{error}");
    std::fs::write(&path, "{\"text\": \"One\"} {\"text\": \"Two\"}\n").unwrap();
    says(&Corpus::load(&path, &Default::default()).unwrap_err(), ErrorKind::BadFile, &["a.jsonl line 1"]);
}

/// Inputs made after reports from the field: all give the figures of the plain file.
#[test]
fn inputs_of_the_field_give_the_figures_of_the_plain_file() {
    let (folder, model) = (fixture("field/texts"), small_model());
    let clt = Clt::load(fixture("attribution/llama/clt"), &CltLoadConfig::on(&Device::Cpu)).unwrap();
    let config = EvalConfig { tokens: 4096, fidelity_tokens: 256, context: 32, ..EvalConfig::default() };
    for name in ["plain.jsonl", "plain.txt", "bom.jsonl", "bom.txt", "utf16le.txt", "null.jsonl", "gzip.parquet", "data.csv"] {
        let report = evaluate(&model, &clt, &Corpus::load(folder.join(name), &Default::default()).unwrap_or_else(|error| panic!("{error}")), &config).unwrap();
        println!("{name}: {} tokens, cross-entropy {:.3}", report.tokens, report.cross_entropy);
        assert_eq!((report.tokens, (report.cross_entropy * 1000.0).round()), (702, 7127.0), "{name}");
    }
    assert_eq!(texts(&folder.join("mixed_dir")), [texts(&folder.join("mixed_dir/a.txt")), texts(&folder.join("mixed_dir/sub/b.txt"))].concat());
    let error = Corpus::load(folder.join("binary.parquet"), &Default::default()).unwrap_err();
    says(&error, ErrorKind::BadFile, &["binary.parquet", "text"]);
    assert!(error.to_string().len() < 400, "{error}");
}
