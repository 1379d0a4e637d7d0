//! Trees of tensors: structs whose leaves are all of one type and have names, like JAX's pytrees. The macro `tree!` declares
//! one, each field once; what maps, flattens and rebuilds it follows.

/// What is done with a leaf and its name.
pub(crate) type Visit<'a, L, U, E> = dyn FnMut(&str, L) -> Result<U, E> + 'a;

/// What the macro writes for each struct; all else is made of it.
pub(crate) trait Tree {
    type Leaf;
    /// The same tree with other leaves.
    type With<U>;
    /// Applies a fallible function to every leaf and its name, in the order of declaration. `path` stands before each name.
    fn try_map_at<U, E>(self, path: &str, f: &mut Visit<Self::Leaf, U, E>) -> Result<Self::With<U>, E>;
    fn refs(&self) -> Self::With<&Self::Leaf>;
}

/// A part that is there or not; it adds nothing to the names.
impl<S: Tree> Tree for Option<S> {
    type Leaf = S::Leaf;
    type With<U> = Option<S::With<U>>;
    fn try_map_at<U, E>(self, path: &str, f: &mut Visit<S::Leaf, U, E>) -> Result<Option<S::With<U>>, E> {
        self.map(|tree| tree.try_map_at(path, f)).transpose()
    }
    fn refs(&self) -> Option<S::With<&S::Leaf>> {
        self.as_ref().map(Tree::refs)
    }
}

/// Parts that are counted: `layers.3.qkv`.
impl<S: Tree> Tree for Vec<S> {
    type Leaf = S::Leaf;
    type With<U> = Vec<S::With<U>>;
    fn try_map_at<U, E>(self, path: &str, f: &mut Visit<S::Leaf, U, E>) -> Result<Vec<S::With<U>>, E> {
        let numbered = self.into_iter().enumerate();
        numbered.map(|(i, tree)| tree.try_map_at(&format!("{path}{i}."), f)).collect()
    }
    fn refs(&self) -> Vec<S::With<&S::Leaf>> {
        self.iter().map(Tree::refs).collect()
    }
}

/// Declares a tree. Before each field stands what it is: a `leaf`; an `optional` leaf; a `part`, that is a tree whose leaves
/// are called `field.leaf`; or a `flat` part, whose leaves are called as if they were this tree's own. An enum has one list of
/// leaves for each variant.
macro_rules! tree {
    ($(#[$doc:meta])* pub struct $name:ident<$t:ident> {
        $($(#[$field_doc:meta])* $kind:ident $field:ident: $ty:ty,)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name<$t> {
            $($(#[$field_doc])* pub $field: $ty,)*
        }

        impl<$t> $crate::tree::Tree for $name<$t> {
            type Leaf = $t;
            type With<U> = $name<U>;
            fn try_map_at<U, E>(
                self,
                path: &str,
                f: &mut $crate::tree::Visit<$t, U, E>,
            ) -> Result<$name<U>, E> {
                Ok($name { $($field: $crate::tree::tree!(@map $kind, self.$field, path, $field, f),)* })
            }
            fn refs(&self) -> $name<&$t> {
                $name { $($field: $crate::tree::tree!(@refs $kind, self.$field),)* }
            }
        }

        $crate::tree::tree!(@methods $name $t);
    };
    ($(#[$doc:meta])* pub enum $name:ident<$t:ident> {
        $($(#[$variant_doc:meta])* $variant:ident { $($(#[$field_doc:meta])* $field:ident),* $(,)? },)*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub enum $name<$t> {
            $($(#[$variant_doc])* $variant { $($(#[$field_doc])* $field: $t),* },)*
        }

        impl<$t> $crate::tree::Tree for $name<$t> {
            type Leaf = $t;
            type With<U> = $name<U>;
            fn try_map_at<U, E>(
                self,
                path: &str,
                f: &mut $crate::tree::Visit<$t, U, E>,
            ) -> Result<$name<U>, E> {
                Ok(match self {
                    $($name::$variant { $($field),* } => {
                        $name::$variant { $($field: f(&format!("{path}{}", stringify!($field)), $field)?),* }
                    })*
                })
            }
            fn refs(&self) -> $name<&$t> {
                match self {
                    $($name::$variant { $($field),* } => $name::$variant { $($field),* },)*
                }
            }
        }

        $crate::tree::tree!(@methods $name $t);
    };
    (@map leaf, $value:expr, $path:ident, $field:ident, $f:ident) => {
        $f(&format!("{}{}", $path, stringify!($field)), $value)?
    };
    (@map optional, $value:expr, $path:ident, $field:ident, $f:ident) => {
        match $value {
            Some(leaf) => Some($f(&format!("{}{}", $path, stringify!($field)), leaf)?),
            None => None,
        }
    };
    (@map part, $value:expr, $path:ident, $field:ident, $f:ident) => {
        $crate::tree::Tree::try_map_at($value, &format!("{}{}.", $path, stringify!($field)), $f)?
    };
    (@map flat, $value:expr, $path:ident, $field:ident, $f:ident) => {
        $crate::tree::Tree::try_map_at($value, $path, $f)?
    };
    (@refs leaf, $value:expr) => { &$value };
    (@refs optional, $value:expr) => { $value.as_ref() };
    (@refs part, $value:expr) => { $crate::tree::Tree::refs(&$value) };
    (@refs flat, $value:expr) => { $crate::tree::Tree::refs(&$value) };
    (@methods $name:ident $t:ident) => {
        #[allow(dead_code, reason = "not every tree is used in every way")]
        impl<$t> $name<$t> {
            /// Applies a fallible function to every leaf and its name, in the order of declaration; that order is the order
            /// of every flat list of leaves.
            ///
            /// # Errors
            /// The first error of `f`.
            pub fn try_map<U, E>(
                self,
                mut f: impl FnMut(&str, $t) -> Result<U, E>,
            ) -> Result<$name<U>, E> {
                $crate::tree::Tree::try_map_at(self, "", &mut f)
            }

            /// Applies a function to every leaf and its name, in the order of declaration.
            pub fn map<U>(self, mut f: impl FnMut(&str, $t) -> U) -> $name<U> {
                let mapped = self.try_map(|name, leaf| Ok::<U, std::convert::Infallible>(f(name, leaf)));
                mapped.unwrap_or_else(|never| match never {})
            }

            /// The same tree of references.
            pub fn as_ref(&self) -> $name<&$t> {
                $crate::tree::Tree::refs(self)
            }

            /// Names and leaves, in the order of declaration.
            pub fn into_flat(self) -> Vec<(String, $t)> {
                let mut flat = Vec::new();
                self.map(|name, leaf| flat.push((name.to_owned(), leaf)));
                flat
            }

            /// Names and borrowed leaves, in the order of declaration.
            pub fn iter(&self) -> impl Iterator<Item = (String, &$t)> {
                self.as_ref().into_flat().into_iter()
            }

            /// The leaves, in the order of declaration.
            pub fn leaves(&self) -> Vec<$t>
            where
                $t: Clone,
            {
                self.iter().map(|(_, leaf)| leaf.clone()).collect()
            }

            /// A tree of the same form from a flat list in the order of declaration, such as a program's outputs.
            ///
            /// # Panics
            /// If the list has another length.
            #[track_caller]
            pub fn with_leaves<U>(&self, leaves: impl IntoIterator<Item = U>) -> $name<U> {
                let mut leaves = leaves.into_iter();
                let next = |name: &str, _: &$t| leaves.next().unwrap_or_else(|| panic!("no leaf left for `{name}`"));
                let tree = self.as_ref().map(next);
                assert!(leaves.next().is_none(), "more leaves than the tree has");
                tree
            }

            /// Pairs the leaves of two trees.
            ///
            /// # Panics
            /// If the trees are of different forms.
            #[track_caller]
            pub fn zip<U>(self, other: $name<U>) -> $name<($t, U)> {
                let mut others = other.into_flat().into_iter();
                let zipped = self.map(|name, leaf| match others.next() {
                    Some((found, other)) if found == name => (leaf, other),
                    found => panic!(
                        "zip of trees of different forms: `{name}` beside {:?}",
                        found.map(|(name, _)| name)
                    ),
                });
                assert!(others.next().is_none(), "zip of trees of different forms: the second one has more leaves");
                zipped
            }
        }
    };
}
pub(crate) use tree;
