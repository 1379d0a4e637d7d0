//! [`Example`]: a kernel and what to try it with.

use engine::{Kernel, Target, Type};
use std::sync::Arc;

/// A kernel with arguments to try it with.
#[derive(Clone, Debug)]
pub struct Example {
    /// The kernel.
    pub kernel: Arc<dyn Kernel>,
    /// Types of its arguments, and which numbers they may hold.
    pub args: Vec<(Type, Values)>,
    /// The arguments that a model takes gradients of.
    pub wrt: Vec<usize>,
    /// The targets on which these arguments have a native form, if one is asked for.
    pub native: Vec<Target>,
}

/// Numbers that an argument may hold.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Any between two.
    Between(f64, f64),
    /// These, one for each element.
    Given(Vec<f64>),
}

/// Around zero, of the size of activations.
pub(crate) const ACTIVATIONS: Values = Values::Between(-1.5, 1.5);

impl Example {
    pub(crate) fn new(
        kernel: impl Kernel + 'static,
        args: Vec<(Type, Values)>,
        wrt: &[usize],
        native: &[Target],
    ) -> Example {
        Example { kernel: Arc::new(kernel), args, wrt: wrt.to_vec(), native: native.to_vec() }
    }

    /// The kernel's name without its attributes, `diff_attention`.
    pub fn name(&self) -> String {
        let name = self.kernel.name();
        name.split_once('(').map_or(name.clone(), |(name, _)| name.to_owned())
    }
}
