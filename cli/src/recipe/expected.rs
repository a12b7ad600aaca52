//! What each key of a table takes, as the table's type says through serde: names of fields, and what
//! kind of value a field is read from, in words.

use serde::de::value::Error;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, Visitor};

/// The names of a table's keys.
pub fn keys<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut found: &'static [&'static str] = &[];
    // It ends in an error when the names are found: there is no value to read.
    let _ = T::deserialize(Table { found: &mut found, key: None });
    found
}

/// What the key `key` of a table takes: "a whole number of 0 or more", "a number or \"none\"".
pub fn value_of<T: DeserializeOwned>(key: &'static str) -> String {
    let (mut found, mut words): (&'static [&'static str], String) = (&[], String::new());
    let _ = T::deserialize(Table { found: &mut found, key: Some((key, &mut words)) });
    words
}

/// Reads the names of a struct's fields; with a key, what that field is read from.
struct Table<'a> {
    found: &'a mut &'static [&'static str],
    key: Option<(&'static str, &'a mut String)>,
}

impl<'de> Deserializer<'de> for Table<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("not a table"))
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _name: &'static str, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        *self.found = fields;
        match self.key {
            Some(key) => visitor.visit_map(OneField(Some(key))),
            None => Err(de::Error::custom("names found")),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// A map with one key, whose value is asked for and never there.
struct OneField<'a>(Option<(&'static str, &'a mut String)>);

impl<'de> MapAccess<'de> for OneField<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        match &self.0 {
            Some((key, _)) => seed.deserialize(de::value::StrDeserializer::new(key)).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        match self.0.take() {
            Some((_, words)) => seed.deserialize(Words(words)),
            None => Err(de::Error::custom("no value")),
        }
    }
}

/// Writes down what it is asked for.
struct Words<'a>(&'a mut String);

impl Words<'_> {
    fn says<T>(self, words: &str) -> Result<T, Error> {
        self.0.push_str(words);
        Err(de::Error::custom("kind found"))
    }
}

/// `a, b or c`.
pub fn listed(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => (*one).to_string(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

macro_rules! words {
    ($($method:ident: $words:literal,)*) => {
        $(fn $method<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> { self.says($words) })*
    };
}

impl<'de> Deserializer<'de> for Words<'_> {
    type Error = Error;

    words! {
        deserialize_any: "a value",
        deserialize_bool: "true or false",
        deserialize_i8: "a whole number",
        deserialize_i16: "a whole number",
        deserialize_i32: "a whole number",
        deserialize_i64: "a whole number",
        deserialize_u8: "a whole number of 0 or more",
        deserialize_u16: "a whole number of 0 or more",
        deserialize_u32: "a whole number from 0 to 4,294,967,295",
        deserialize_u64: "a whole number of 0 or more",
        deserialize_f32: "a number",
        deserialize_f64: "a number",
        deserialize_char: "a letter",
        deserialize_str: "a text in quotes",
        deserialize_string: "a text in quotes",
        deserialize_map: "a table",
        deserialize_unit: "nothing",
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        // The value within writes first.
        let Words(words) = self;
        let inner = visitor.visit_some(Words(words));
        words.push_str(", or \"none\"");
        inner
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.0.push_str("a list in [ ], each ");
        visitor.visit_seq(Items(self.0))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Error> {
        self.0.push_str(&format!("a list of {length} in [ ], each "));
        visitor.visit_seq(Items(self.0))
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _name: &'static str, fields: &'static [&'static str], _visitor: V) -> Result<V::Value, Error> {
        let words = format!("a table {{ {} = ... }}", fields.join(" = ..., "));
        self.says(&words)
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _name: &'static str, variants: &'static [&'static str], _visitor: V) -> Result<V::Value, Error> {
        let quoted: Vec<String> = variants.iter().map(|variant| format!("{variant:?}")).collect();
        let words = listed(&quoted.iter().map(String::as_str).collect::<Vec<_>>());
        self.says(&words)
    }

    serde::forward_to_deserialize_any! { i128 u128 bytes byte_buf unit_struct tuple_struct identifier ignored_any }
}

/// A list whose first item is asked for.
struct Items<'a>(&'a mut String);

impl<'de> de::SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        seed.deserialize(Words(self.0)).map(Some)
    }
}
