//! Which keys of a settings type may be absent, and what kind of value each takes.
//!
//! TOML has no null: a serialised default does not show the keys that are `None`. The type's own
//! `Deserialize` knows them, so it is run once over the default, and this deserializer notes what it asks for.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer, StringDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde::forward_to_deserialize_any;
use toml::de::Error;
use toml::{Table, Value};

use crate::tree;

/// The dotted names of all `Option` settings of `T`, each with a value of the kind that it takes.
///
/// # Errors
/// A type that cannot be read back from its own serialised default.
pub(super) fn optional_keys<T: DeserializeOwned>(defaults: &Table) -> Result<BTreeMap<String, Value>, Error> {
    let found = RefCell::new(BTreeMap::new());
    let whole = Value::Table(defaults.clone());
    T::deserialize(Probe { path: String::new(), value: Some(&whole), found: &found, optional: false })?;
    Ok(found.into_inner())
}

/// Stands for the setting at `path`: hands out its default, or something of the right kind where it has none.
struct Probe<'a> {
    path: String,
    value: Option<&'a Value>,
    found: &'a RefCell<BTreeMap<String, Value>>,
    /// An `Option` has just been met here; the next request tells its kind.
    optional: bool,
}

impl Probe<'_> {
    fn note(&self, example: Value) {
        if self.optional {
            self.found.borrow_mut().insert(self.path.clone(), example);
        }
    }
}

/// Methods for plain values: note the kind, then give the default or `example`.
macro_rules! plain {
    ($($method:ident, $visit:ident, $kind:ident, $example:expr;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.note(Value::$kind($example.into()));
            match self.value {
                Some(value) => value.clone().$method(visitor),
                None => visitor.$visit($example.into()),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    plain! {
        deserialize_bool, visit_bool, Boolean, false;
        deserialize_i8, visit_i8, Integer, 0i8;
        deserialize_i16, visit_i16, Integer, 0u8;
        deserialize_i32, visit_i32, Integer, 0u8;
        deserialize_i64, visit_i64, Integer, 0u8;
        deserialize_u8, visit_u8, Integer, 0u8;
        deserialize_u16, visit_u16, Integer, 0u8;
        deserialize_u32, visit_u32, Integer, 0u8;
        deserialize_u64, visit_u64, Integer, 0u8;
        deserialize_f32, visit_f32, Float, 0.0f32;
        deserialize_f64, visit_f64, Float, 0.0f32;
        deserialize_str, visit_str, String, "";
        deserialize_string, visit_str, String, "";
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(Probe { optional: true, ..self })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.value {
            Some(Value::Table(_)) | None => visitor.visit_map(Fields { fields, at: 0, owner: self }),
            Some(value) => value.clone().deserialize_struct(name, fields, visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let first = variants.first().copied().unwrap_or_default();
        self.note(Value::String(first.to_owned()));
        match self.value {
            Some(value) => value.clone().deserialize_enum(name, variants, visitor),
            None => {
                let first: StrDeserializer<'_, Error> = first.into_deserializer();
                first.deserialize_enum(name, variants, visitor)
            }
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.note(Value::Array(Vec::new()));
        match self.value {
            Some(value) => value.clone().deserialize_seq(visitor),
            None => visitor.visit_seq(SeqDeserializer::new(std::iter::empty::<u8>())),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Error> {
        self.note(Value::Array(Vec::new()));
        match self.value {
            Some(value) => value.clone().deserialize_tuple(len, visitor),
            None => visitor.visit_seq(SeqDeserializer::new(std::iter::repeat_n(0u8, len))),
        }
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Some(value) => value.clone().deserialize_any(visitor),
            None => visitor.visit_map(MapDeserializer::new(std::iter::empty::<(&str, &str)>())),
        }
    }

    forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf unit unit_struct tuple_struct map identifier ignored_any
    }
}

/// The fields of a struct, whether its default shows them or not.
struct Fields<'a> {
    fields: &'static [&'static str],
    at: usize,
    owner: Probe<'a>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(&field) = self.fields.get(self.at) else { return Ok(None) };
        let name: StringDeserializer<Error> = field.to_owned().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let field = self.fields[self.at];
        self.at += 1;
        let table = self.owner.value.and_then(Value::as_table);
        seed.deserialize(Probe {
            path: tree::join(&self.owner.path, field),
            value: table.and_then(|table| table.get(field)),
            found: self.owner.found,
            optional: false,
        })
    }
}
