//! Corpora and blocks: nothing of the text is lost or doubled, and every format reads the same.

use crate::support;
use cltlab::Corpus;

#[test]
fn formats_hold_the_same_documents() {
    let folder = support::scratch("corpus");
    std::fs::write(folder.join("a.txt"), "One.\r\n\n\nTwo.").unwrap();
    std::fs::write(folder.join("b.jsonl"), "{\"text\": \"One.\"}\n\n\"Two.\"\n").unwrap();
    for name in ["a.txt", "b.jsonl"] {
        let corpus = Corpus::load(folder.join(name), &Default::default()).unwrap();
        let texts: Vec<_> = corpus.texts().iter().map(|text| text.trim()).collect();
        assert_eq!(texts, ["One.", "Two."], "{name}");
    }
    assert_eq!(Corpus::load(&folder, &Default::default()).unwrap().documents(), 4);
}

#[test]
fn parquet_reads_the_text_column() {
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::writer::SerializedFileWriter;
    let path = support::scratch("parquet").join("c.parquet");
    let schema = "message doc { required int64 id; required binary text (UTF8); }";
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(std::fs::File::create(&path).unwrap(), schema, Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[1, 2], None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&[ByteArray::from("One."), ByteArray::from("Zwei 🦀")], None, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    assert_eq!(Corpus::load(&path, &Default::default()).unwrap().texts(), ["One.", "Zwei 🦀"]);
}

#[test]
fn split_keeps_every_byte() {
    let text: String = (0..200).map(|line| format!("line {line} é\n")).collect();
    let corpus = Corpus::from_texts(vec![text.clone()]).unwrap();
    for fraction in [0.1, 0.5, 0.93] {
        let (head, tail) = corpus.split(fraction).unwrap();
        assert_eq!(format!("{}{}", head.texts().concat(), tail.texts().concat()), text);
    }
}

#[test]
fn blocks_hold_the_ids_in_order() {
    let model = support::small_model();
    let tokenizer = model.tokenizer().unwrap();
    let text = support::words(500, 1);
    let corpus = Corpus::from_texts(vec![text.clone()]).unwrap();
    let ids = tokenizer.encode(&text).unwrap();
    let blocks = corpus.blocks(tokenizer, Some(1), 16, None).unwrap();
    assert_eq!(blocks.len(), ids.len() / 15);
    let joined: Vec<u32> = (0..blocks.len()).flat_map(|index| blocks.block(index).unwrap()[1..].to_vec()).collect();
    assert_eq!(joined, ids[..joined.len()]);
    assert!((0..blocks.len()).all(|index| blocks.block(index).unwrap()[0] == 1));
    assert_eq!(corpus.blocks(tokenizer, Some(1), 16, Some(40)).unwrap().len(), 3);
}

/// Compressed files, another field, and reading that stops.
#[test]
fn fields_compression_and_limits() {
    use cltlab::text::TextConfig;
    use std::io::Write;
    let folder = support::scratch("corpus-fields");
    let lines: String = (0..100).map(|n| format!("{{\"id\": {n}, \"content\": \"Document {n:03}.\"}}\n")).collect();
    std::fs::write(folder.join("a.jsonl"), &lines).unwrap();
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(lines.as_bytes()).unwrap();
    let gz = gz.finish().unwrap();
    std::fs::write(folder.join("b.jsonl.gz"), &gz).unwrap();
    let zst = zstd::bulk::compress(lines.as_bytes(), 3).unwrap();
    std::fs::write(folder.join("c.jsonl.zst"), &zst).unwrap();
    let content = TextConfig { field: "content".into(), ..TextConfig::default() };
    for name in ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst"] {
        let corpus = Corpus::load(folder.join(name), &content).unwrap();
        assert_eq!((corpus.documents(), corpus.texts()[41].as_str()), (100, "Document 041."), "{name}");
        let few = Corpus::load(folder.join(name), &TextConfig { max_bytes: Some(50), ..content.clone() }).unwrap();
        assert_eq!(few.documents(), 4, "{name}: thirteen bytes each, until there are fifty");
        let error = Corpus::load(folder.join(name), &Default::default()).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("id") && error.contains("content") && error.contains("TextConfig::field"), "{error}");
    }
    assert_eq!(Corpus::load(&folder, &content).unwrap().documents(), 300);
    let array = folder.join("array.json");
    std::fs::write(&array, "\n[\n  {\"content\": \"One.\"},\n  \"Two.\"\n]\n").unwrap();
    assert_eq!(Corpus::load(&array, &content).unwrap().texts(), ["One.", "Two."]);
    for (text, words) in [("[{\"content\": 1}]", "array.json [0]"), ("[\"One.\"", "line 1")] {
        std::fs::write(&array, text).unwrap();
        let error = Corpus::load(&array, &content).unwrap_err();
        assert!(error.kind() == cltlab::ErrorKind::BadFile && error.to_string().contains(words), "{error}");
    }
    std::fs::remove_file(&array).unwrap();
    std::fs::write(folder.join("d.txt.zst"), zstd::bulk::compress(b"One.\n\n\nTwo.", 3).unwrap()).unwrap();
    assert_eq!(Corpus::load(folder.join("d.txt.zst"), &Default::default()).unwrap().texts(), ["One.", "Two."]);
    // Cut off or not compressed at all.
    for (name, bytes) in [("e.jsonl.gz", &gz[..gz.len() / 2]), ("f.jsonl.zst", &zst[..zst.len() / 2]), ("g.jsonl.zst", lines.as_bytes())] {
        std::fs::write(folder.join(name), bytes).unwrap();
        let error = Corpus::load(folder.join(name), &content).unwrap_err();
        assert_eq!(error.kind(), cltlab::ErrorKind::BadFile, "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

/// Parquet as datasets have it: compressed columns, rows without text, columns of other types.
#[test]
fn parquet_columns() {
    use cltlab::text::TextConfig;
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    for compression in [Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())] {
        let path = support::scratch("parquet-columns").join("c.parquet");
        let schema = "message doc { required int64 id; optional binary story (UTF8); }";
        let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
        let properties = WriterProperties::builder().set_compression(compression).build();
        let mut writer = SerializedFileWriter::new(std::fs::File::create(&path).unwrap(), schema, properties.into()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[1, 2, 3], None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&[ByteArray::from("One."), ByteArray::from("Three.")], Some(&[1, 0, 1]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        let config = |field: &str| TextConfig { field: field.into(), ..TextConfig::default() };
        assert_eq!(Corpus::load(&path, &config("story")).unwrap().texts(), ["One.", "Three."], "{compression:?}");
        let error = Corpus::load(&path, &Default::default()).unwrap_err().to_string();
        assert!(error.contains("id, story") && error.contains("'text'"), "{error}");
        let error = Corpus::load(&path, &config("id")).unwrap_err();
        assert!(error.kind() == cltlab::ErrorKind::BadFile && error.to_string().contains("'id'"), "{error}");
    }
}
