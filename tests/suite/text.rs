//! Corpora and blocks: nothing of the text is lost or doubled, and every format reads the same.

use crate::support;
use cltlab::{Corpus, Model};

fn tiny() -> Option<Model> {
    let path = support::shared("data/stories260k/model.bin")?;
    Some(Model::load(&path.to_string_lossy(), &cltlab::candle::Device::Cpu).unwrap())
}

#[test]
fn formats_hold_the_same_documents() {
    let folder = support::scratch("corpus");
    std::fs::write(folder.join("a.txt"), "One.\r\n\n\nTwo.").unwrap();
    std::fs::write(folder.join("b.jsonl"), "{\"text\": \"One.\"}\n\n\"Two.\"\n").unwrap();
    for name in ["a.txt", "b.jsonl"] {
        let corpus = Corpus::load(folder.join(name)).unwrap();
        let texts: Vec<_> = corpus.texts().iter().map(|text| text.trim()).collect();
        assert_eq!(texts, ["One.", "Two."], "{name}");
    }
    assert_eq!(Corpus::load(&folder).unwrap().documents(), 4);
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
    assert_eq!(Corpus::load(&path).unwrap().texts(), ["One.", "Zwei 🦀"]);
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
    let Some(model) = tiny() else { return };
    let tokenizer = model.tokenizer().unwrap();
    let text = "Once upon a time there was a big red ball. ".repeat(40);
    let corpus = Corpus::from_texts(vec![text.clone()]).unwrap();
    let ids = tokenizer.encode(&text).unwrap();
    let blocks = corpus.blocks(tokenizer, Some(1), 16, None).unwrap();
    assert_eq!(blocks.len(), ids.len() / 15);
    let joined: Vec<u32> = (0..blocks.len()).flat_map(|index| blocks.block(index).unwrap()[1..].to_vec()).collect();
    assert_eq!(joined, ids[..joined.len()]);
    assert!((0..blocks.len()).all(|index| blocks.block(index).unwrap()[0] == 1));
    assert_eq!(corpus.blocks(tokenizer, Some(1), 16, Some(40)).unwrap().len(), 3);
}
