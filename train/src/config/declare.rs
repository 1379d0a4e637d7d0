//! [`table!`]: how a table of the configuration is declared.

/// Declares one table of the configuration: its struct, the value that each key has in preset `1b`, and its [`Key`]s.
///
/// A key is a line: the field's documentation, which is also that of the key, then
/// `name: type = value in 1b, kind and range, what a change of it does ([`OnChange`]);`. A key whose type is an `Option` may be
/// left open. Tables inside of the table stand last, without a kind.
///
/// [`Key`]: super::Key
/// [`OnChange`]: super::OnChange
macro_rules! table {
    (
        $(#[$meta:meta])*
        pub struct $Table:ident in $prefix:literal {
            $(
                $(#[doc = $doc:literal])+
                $key:ident: $type:ty = $value:expr, $kind:expr, $on_change:ident;
            )*
            $(tables {
                $(
                    $(#[$inner_meta:meta])*
                    $inner:ident: $Inner:ty = $inner_value:expr;
                )*
            })?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $Table {
            $($(#[doc = $doc])+ pub $key: $type,)*
            $($($(#[$inner_meta])* pub $inner: $Inner,)*)?
        }

        impl Default for $Table {
            /// The values of preset `1b`.
            fn default() -> $Table {
                $Table { $($key: $value,)* $($($inner: $inner_value,)*)? }
            }
        }

        impl $Table {
            /// The keys of this table, without those of tables inside of it.
            pub(super) const KEYS: &'static [Key] = &[$(Key {
                path: concat!($prefix, stringify!($key)),
                kind: $kind,
                open: $crate::config::declare::Of::<$type>::OPEN,
                on_change: OnChange::$on_change,
                doc: concat!($($doc),+).trim_ascii(),
            }),*];
        }
    };
}

pub(super) use table;

use super::Open;
use std::marker::PhantomData;

/// Whether a key of a type may be left open. Of two constants of one name Rust takes the type's own, which only an `Option` has
/// here, before the trait's.
pub(super) struct Of<T>(PhantomData<T>);

/// The constant of all other types.
pub(super) trait Closed {
    const OPEN: Open = Open::No;
}

impl<T> Of<Option<T>> {
    pub(super) const OPEN: Open = Open::Yes;
}

impl<T> Closed for Of<T> {}
